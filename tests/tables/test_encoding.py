"""Columns of numbers, strings, spikes and missing entries, and back."""

import datetime
import warnings

import numpy as np
import pytest

from indm.tables.encoding import Encoding, are_missing
from indm.tables.kinds import Declared, best_map, fitted_column

NUMBERS = np.random.RandomState(0)
NORMAL = np.random.default_rng(0).normal(size=200)


def column_of(entries, **options):
    declared = Declared("column 0 (age)", **options)
    return fitted_column(np.array(entries, dtype=object), declared, NUMBERS)


@pytest.fixture(scope="module")
def table():
    numbers = np.random.default_rng(1)
    rows = np.empty((100, 5), dtype=object)
    rows[:, 0] = numbers.normal(5, 2, 100)
    rows[:, 1] = numbers.choice(["red", "green", "blue"], 100)
    rows[:, 2] = np.where(numbers.uniform(size=100) < 0.4, 0.0, numbers.exponential(size=100))
    rows[:, 3] = numbers.integers(0, 9, 100)
    rows[:, 4] = True
    rows[::7, 0], rows[::5, 1], rows[::6, 2], rows[::9, 3] = None, np.nan, None, np.nan
    options = [{}, {}, {"spikes": (0.0,), "interval": (0.0, np.inf)}, {"is_whole": True}, {}]
    return rows, Encoding(
        tuple(column_of(rows[:, i], **option) for i, option in enumerate(options))
    )


def test_rows_come_back_as_they_were(table):
    rows, encoding = table
    x, codes = encoding.encoded(rows)
    assert encoding.sizes == (3, 2) and encoding.whole.tolist() == [False, False, True]
    back = encoding.table(encoding.latents(x + np.where(encoding.whole, 0.5, 0)), codes)
    missing = are_missing(rows)
    missing[:, 4] = False
    assert (are_missing(back) == missing).all()
    numeric = [0, 2, 3]
    there = ~missing[:, numeric]
    np.testing.assert_allclose(
        back[:, numeric][there].astype(float), rows[:, numeric][there].astype(float), rtol=1e-9
    )
    assert (back[:, 1] == rows[:, 1])[~missing[:, 1]].all() and back[:, 4].all()


def test_spikes_have_codes_and_no_numbers(table):
    rows, encoding = table
    x, codes = encoding.encoded(rows)
    is_zero = np.equal(rows[:, 2], 0.0)
    assert np.isnan(x[is_zero, 1]).all() and (codes[is_zero, 1] == 1).all()
    assert (codes[are_missing(rows[:, 2]), 1] == -1).all()
    np.testing.assert_array_equal(
        encoding.one_hot(codes)[:3, 3:].sum(1), (codes[:3, 1] >= 0).astype(float)
    )


@pytest.mark.parametrize("is_whole", [False, True])
def test_spikes_beside_one_other_value_are_categories(is_whole):
    both = column_of([0.0, 1.0, 0.0, None, 1.0], spikes=(0.0,), is_whole=is_whole)
    if not is_whole:  # whole numbers vary by their noise
        assert not both.is_number and both.values == (0.0, 1.0)
        assert both.encoded(np.array([1.0, 0.0, np.nan]))[1].tolist() == [1, 0, -1]
    alone = column_of([0.0, 0.0, None], spikes=(0.0,), is_whole=is_whole)
    assert alone.constant == 0.0 and not alone.is_number


def test_values_that_rounding_alone_tells_apart_are_one(table):
    entries = 3.0 + 4e-16 * np.sign(NORMAL)
    assert len(set(entries)) > 1 and column_of(entries).constant == pytest.approx(3.0)


def test_the_volume_of_each_number_is_its_slope(table):
    rows, encoding = table
    x = encoding.encoded(rows)[0] + np.where(encoding.whole, 0.5, 0)
    slope = (encoding.latents(x + 1e-6) - encoding.latents(x - 1e-6)) / 2e-6
    there = ~np.isnan(x)
    np.testing.assert_allclose(encoding.log_volume(x)[there], np.log(slope[there]), atol=1e-6)


def test_a_skewed_column_is_bent_and_a_normal_one_is_not():
    line = np.array([[-np.inf], [np.inf]])
    assert best_map(NORMAL[:, None], line, np.random.RandomState(0), True).power == 1
    assert (
        abs(best_map(np.exp(NORMAL)[:, None], line, np.random.RandomState(0), True).power[0]) < 0.3
    )
    far = np.where(np.arange(200) == 7, 1e6, NORMAL)[:, None]
    assert best_map(far, line, np.random.RandomState(0), True).far[0]


ERRORS = {
    "infinite": (
        [1.0, 2.0, np.inf],
        {},
        r"column 0 \(age\) must hold numbers of at most 1e\+300, got inf",
    ),
    "too large to subtract": (
        [1e308, -1e308],
        {},
        r"column 0 \(age\) must hold numbers of at most 1e\+300, got 1e",
    ),
    "words as spikes": (
        [1.0, 2.0],
        {"spikes": ("none",)},
        "could not convert string to float: 'none'",
    ),
    "fractions": ([1.0, 2.5], {"is_whole": True}, "must hold whole numbers, got 2.5 in row 1"),
    "outside": (
        [1.0, -2.0],
        {"interval": (0, np.inf)},
        "must be above 0 and below inf, its bounds, got -2",
    ),
    "on a bound": (
        [1.0, 0.0],
        {"interval": (0, np.inf)},
        "got 0; widen them, or declare a value .* in spikes",
    ),
    "categories": (
        [f"row {i // 2}" for i in range(2002)],
        {},
        "at most 1,000 categories.* got 1,001 in 2,002 rows",
    ),
    "identifiers": (
        [f"row {i // 1.05:.0f}" for i in range(40)],
        {},
        "in several rows each, got 38 .*: drop a column of ident",
    ),
    "dates": (
        [datetime.date(2024, 1, i) for i in range(1, 9)],
        {},
        r"got date; turn dates .*pd.to_datetime\(dates\)",
    ),
    "words of dates": (
        [f"2024-01-{i}" for i in range(10, 31)],
        {},
        r"got dates such as '2024-01-10'.*categories",
    ),
    "no order": (
        ["a", 1j, 2j],
        {"is_category": True},
        "not supported between",
    ),
    "sets": (
        ["a", {1}],
        {},
        "unhashable",
    ),
    "too large": ([1.0, 10**400], {}, r"column 0 \(age\) must hold numbers"),
    "category": (
        ["a", "b"],
        {"spikes": (0,)},
        "has categories, so it cannot have bounds, spikes or whole numbers",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_was_got(case):
    entries, options, message = ERRORS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        column_of(entries, **options)


def test_a_column_of_two_entries_has_a_map():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        column = column_of([None] * 9 + [1.0, 2.0])
    assert (
        column.is_number
        and np.isfinite(column.map.latents(np.array([[1.5]]), np.zeros((1, 0)))).all()
    )


def test_many_categories_are_no_error():
    assert column_of([f"row {i // 2}" for i in range(2000)]).size == 1000
    assert column_of(list("abcdefghi")).size == 9


@pytest.mark.parametrize("entries", [[None, np.nan], [None, 3.0, np.nan], ["a", None]])
def test_a_column_of_fewer_than_two_entries_is_left_out(entries):
    column = column_of(entries)
    assert column.is_out and column.constant is None and column.size == 0
    numbers, codes = column.encoded(np.array(["any", 1.0, None], dtype=object))
    assert np.isnan(numbers).all() and codes.tolist() == [0, 0, -1]


def test_unknown_categories_and_words_among_numbers_are_errors():
    with pytest.raises(ValueError, match="must hold one of a, b, got 'c' in row 1"):
        column_of(["a", "b"]).encoded(np.array(["a", "c"], dtype=object))
    with pytest.raises(
        ValueError, match=r"must hold numbers, or be among the categories, got str; turn"
    ):
        column_of(NORMAL).encoded(np.array([1.0, "tall"], dtype=object))
