"""Tables in files, as pandas reads them; and what they may claim of memory."""

import csv

import numpy as np
import pandas
import pytest
import torch

from indm.workbench.data.arrays import names_of, read_columns, read_events
from indm.workbench.data.base import as_data, load_data, stack

NUMBERS = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)


def read_table(path, **options):
    return read_columns(path, **options)[0]


def written(path, rows, **dialect):
    with path.open("w", newline="", encoding=dialect.pop("encoding", "utf-8")) as file:
        csv.writer(file, **dialect).writerows(rows)
    return path


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_a_table_is_its_numbers_with_names_and_without(tmp_path, suffix, separator):
    path = tmp_path / f"a.{suffix}"
    written(path, [["a", "b b", " c,c"], *NUMBERS.tolist()], delimiter=separator)
    assert np.array_equal(read_table(path), NUMBERS) and names_of({"path": path}) == [
        "a",
        "b b",
        "c,c",
    ]
    written(path, NUMBERS.tolist(), delimiter=separator)
    assert np.array_equal(read_table(path, header=False), NUMBERS)
    assert names_of({"path": path, "header": False}) == ["x1", "x2", "x3"]
    with pytest.raises(ValueError, match="header must be false"):
        read_table(path)


def test_tables_of_other_programs(tmp_path):
    np.savetxt(tmp_path / "numpy.txt", NUMBERS)
    assert np.allclose(read_table(tmp_path / "numpy.txt", header=False), NUMBERS, rtol=1e-6)
    written(
        tmp_path / "quoted.csv", [["x", "y", "z"], *NUMBERS.tolist(), []], quoting=csv.QUOTE_ALL
    )
    written(tmp_path / "mark.csv", [["x", "y", "z"], *NUMBERS.tolist()], encoding="utf-8-sig")
    for name in ("quoted.csv", "mark.csv"):
        assert np.array_equal(read_columns(tmp_path / name, ("x", "z"))[0], NUMBERS[:, [0, 2]])
    comma = [[str(x).replace(".", ",") for x in row] for row in NUMBERS.tolist()]
    written(tmp_path / "comma.csv", [["x", "y", "z"], *comma], delimiter=";")
    read_csv = {"sep": ";", "decimal": ","}
    assert np.allclose(read_table(tmp_path / "comma.csv", read_csv=read_csv), NUMBERS, rtol=1e-6)
    assert load_data("array", path=tmp_path / "comma.csv", read_csv=read_csv).shape == (3,)
    indexed = written(
        tmp_path / "a.csv",
        [["", "x", "y", "z"], *([i, *row] for i, row in enumerate(NUMBERS.tolist()))],
    )
    with pytest.raises(ValueError, match="first column must have a name"):
        read_table(indexed)
    assert np.array_equal(read_table(indexed, read_csv={"usecols": ["x", "y", "z"]}), NUMBERS)


def test_numbers_that_single_precision_rounds_away_are_refused(tmp_path):
    """Seconds since 1970: single precision holds every 128th, so that a density of them is one of
    its rounding.
    """
    # a constant, but for rounding
    seconds, tenth = 1.7e9 + np.arange(200.0), 0.1 + 1e-17 * np.arange(200.0)
    table = written(tmp_path / "t.csv", [["time", "tenth"], *zip(seconds, tenth, strict=True)])
    with pytest.raises(ValueError, match="column 'time'"):
        load_data("array", path=table)
    rows = np.stack([tenth, seconds], 1)
    with pytest.raises(ValueError, match="in column 1"):
        as_data(rows)
    for wide in (rows - [0, 1.7e9], rows + [[0, 1e5 * i] for i in range(200)]):  # days apart
        assert as_data(wide).shape == (2,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age,city\n1,2\n3,Bonn\n", "column 'city' .* 'Bonn' in row 2"),
        ("age,city\n\n1,2\n,4\n", "column 'age' .* nan in row 2"),
        ("age,city\n1,2\n3,NA\n", "column 'city' .* nan in row 2"),
        ("a,b\n3,1e99\n", "column 'b' .* in row 1"),
        ("a,b\n1,2\n3,4,5\n", "cannot be read as a table"),
        ("a,b\n3,4,5\n", "first column must have a name"),
        ("x,y\n1,2\n3\n", "column 'y' .* nan in row 2"),
        ("", "cannot be read as a table"),
    ],
)
def test_a_cell_that_is_no_number_is_named(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=f"t.csv.*{message}"):
        read_table(tmp_path / "t.csv")


def test_a_table_is_data(tmp_path):
    table = written(tmp_path / "t.csv", [["a", "b", "c"], *NUMBERS.tolist()])
    data = load_data("array", path=table)
    assert data.shape == (3,) and data.scaling.levels is None
    rows = torch.cat([stack(getattr(data, part)) for part in ("train", "valid", "test")])
    assert np.array_equal(np.sort(rows.numpy(), 0), np.sort(NUMBERS, 0))
    assert torch.equal(read_events(table, None), torch.from_numpy(NUMBERS))
    whole = written(tmp_path / "w.csv", [["a", "b"], *([i % 4, i % 3] for i in range(30))])
    assert load_data("array", path=whole, levels=4).scaling.levels == 4
    assert read_events(whole, 4).dtype == torch.uint8
    for options in ({"x": "d"}, {"x": "a", "c": "a"}):
        with pytest.raises(ValueError, match=r"t\.csv"):
            load_data("array", path=table, **options)


# ── Parquet


def test_of_a_parquet_file_only_the_columns_that_are_named_are_read(tmp_path):
    """In several groups of rows; with labels in words, whole numbers, and an index of pandas, which
    is left out.
    """
    frame = pandas.DataFrame(
        {"a": [1.5, 2.0, 3.0], "b": [0, 1, 2], "word": ["u", "v", "u"]}, index=["i", "j", "k"]
    )
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=2)
    x, c = read_columns(tmp_path / "a.parquet", ("b",), ("word",))
    assert x.tolist() == [[0.0], [1.0], [2.0]] and c.tolist() == ["u", "v", "u"]
    x, c = read_columns(tmp_path / "a.parquet", ("a", "b"), ("b",)[:0])
    assert x.tolist() == [[1.5, 0.0], [2.0, 1.0], [3.0, 2.0]] and c is None
    assert read_columns(tmp_path / "a.parquet", ("a",), ("b",))[1].tolist() == [0, 1, 2]
    for columns in (("word",), ("none",)):
        with pytest.raises(ValueError, match=rf"a\.parquet.*{columns[0]}"):
            read_columns(tmp_path / "a.parquet", columns)


def test_a_table_larger_than_memory_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "t.csv").open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(ValueError, match="it claims 8,796,093,022,208 bytes"):
        read_table(tmp_path / "t.csv")
