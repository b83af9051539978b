"""Means and their standard errors, against what many draws show and by hand."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from research.lab.seeds import Difference, holm, judged, over_seeds, paired, paired_by_examples


def test_means_over_seeds():
    values = [0.3, 0.5, 1.3]
    mean, error = over_seeds(values)
    assert mean == pytest.approx(np.mean(values)) and error == pytest.approx(
        np.std(values, ddof=1) / math.sqrt(3)
    )
    assert over_seeds([0.3], 0.1) == (0.3, 0.1) and math.isnan(over_seeds([0.3])[1])


# ── Differences over seeds ────────────────────────────────────────────────────────────────────────

A, B = [2.13, 2.31, 2.05, 2.4], [2.5, 2.44, 2.61, 2.48]


def test_the_test_is_scipys_paired_t():
    found, known = paired(A, B), ttest_rel(A, B)
    assert (found.difference, found.seeds) == (pytest.approx(np.mean(A) - np.mean(B)), 4)
    assert found.difference / found.standard_error == pytest.approx(known.statistic)
    assert found.p == pytest.approx(known.pvalue) and paired(B, A).p == pytest.approx(known.pvalue)
    shared = np.array([0.0, 5.0, -3.0, 9.0])  # what makes a seed hard for both
    assert paired(list(A + shared), list(B + shared)).p == pytest.approx(known.pvalue)
    with pytest.raises(ValueError, match="zip"):
        paired(A, B[:3])


def test_errors_over_seeds_and_of_what_they_share_add_up():
    """Two seeds, three examples, by hand: √(1² + 3.25/3), and Student's t with one degree of
    freedom.
    """
    a = np.array([[-1.0, -2.0, -3.0], [-2.0, -3.0, -7.0]])
    found = paired_by_examples(a + 5, np.full((2, 3), 5.0))
    assert found.difference == pytest.approx(-3.0) and found.seeds == 2
    assert found.standard_error_over_seeds == pytest.approx(1.0)  # −2 and −4
    assert found.standard_error_shared == pytest.approx(math.sqrt(3.25 / 3))  # −1.5, −2.5 and −5
    assert found.standard_error == pytest.approx(math.sqrt(1 + 3.25 / 3))
    # Cauchy's tails
    assert found.p == pytest.approx(1 - 2 / math.pi * math.atan(3 / found.standard_error))
    assert paired(A, B, 0.3).standard_error == pytest.approx(
        math.hypot(paired(A, B).standard_error, 0.3)
    )


def test_one_training_is_no_test():
    one = paired_by_examples(np.array([[1.0, 2.0, 6.0]]), np.zeros((1, 3)))
    assert one.standard_error == one.standard_error_shared == pytest.approx(
        math.sqrt(7 / 3)
    ) and math.isnan(one.p)
    # however small the error over examples
    (row,) = judged([replace(one, standard_error_shared=1e-9)])
    assert (
        row["verdict"] == "untested"
        and row["p"] is row["p_holm"] is row["standard_error_over_seeds"] is None
    )
    assert math.isnan(paired([1.0], [2.0]).standard_error)


def test_what_has_no_spread_and_what_diverged():
    assert paired([0.0, 0.0], [1.0, 1.0]).p == 0 and paired([1.0, 1.0], [1.0, 1.0]).p == 1
    for broken in (math.nan, math.inf):
        (row,) = judged([paired([1.0, broken], [3.0, 3.1])])
        assert row["verdict"] == "undecided" and row["p"] == 1 and row["difference"] is None
        json.dumps(row, allow_nan=False)


def test_holm_by_hand():
    """Worked: 4 · 0.005, 3 · 0.01, 2 · 0.03, and 1 · 0.04 raised to the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []
    with_none = holm([math.nan, 0.01, 0.04])  # no test does not count
    assert math.isnan(with_none[0]) and with_none[1:] == pytest.approx([0.02, 0.04])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.001, 0.2))
def test_holm_rejects_what_closed_testing_by_bonferroni_rejects(p, level):
    """By enumeration: a hypothesis falls where every set that holds it has a p of at most level /
    size.
    """
    for i, adjusted in enumerate(holm(p)):
        others = [j for j in range(len(p)) if j != i]
        sets = [(i, *rest) for n in range(len(p)) for rest in itertools.combinations(others, n)]
        closed = max(len(s) * min(p[j] for j in s) for s in sets)
        assert adjusted == pytest.approx(min(1.0, closed)) and adjusted >= p[i]
        assert (adjusted <= level) == (min(1.0, closed) <= level) or adjusted == pytest.approx(
            level
        )


def test_verdicts():
    rows = judged(
        [paired(A, B), paired(A, B), paired(B, A), paired(A, [a + 0.01 for a in reversed(A)])]
    )
    assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["p"] for row in rows]))
    strong = [paired([a - 9 for a in A], B), paired([a + 9 for a in A], B), paired(A, A[::-1])]
    assert [row["verdict"] for row in judged(strong)] == ["better", "worse", "undecided"]
    (alone,) = judged([paired([1.0], [2.0])])
    assert alone["verdict"] == "untested"


@pytest.mark.parametrize(("seeds", "shared"), [(3, 0.0), (10, 0.5)])
def test_a_family_of_true_null_hypotheses_has_a_wrong_verdict_in_at_most_one_of_twenty(
    seeds, shared
):
    """Ten comparisons of equal methods, 1,000 times: seeds differ, and all of them share the luck
    of the examples.
    """
    generator, wrong = np.random.default_rng(0), 0
    values = generator.normal(size=(1000, 10, seeds)) * math.sqrt(
        seeds
    ) + shared * generator.normal(size=(1000, 10, 1))
    means, errors = values.mean(2).tolist(), (values.std(2, ddof=1) / math.sqrt(seeds)).tolist()
    for row in zip(means, errors, strict=True):
        family = [Difference(mean, seeds, error, shared) for mean, error in zip(*row, strict=True)]
        wrong += any(row["verdict"] != "undecided" for row in judged(family))
    assert wrong / 1000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
