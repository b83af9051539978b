"""Tables as programs write them: what separates, what names, and what is said of a cell that is no number."""

import csv
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from indm.workbench.data.arrays import read_columns, read_events
from indm.workbench.data.base import as_data, load_data, stack


def read_table(path):
    return read_columns(path, (), ())[0]


NUMBERS = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)


def written(path, rows, **dialect):
    with path.open("w", newline="", encoding=dialect.pop("encoding", "utf-8")) as file:
        csv.writer(file, **dialect).writerows(rows)
    return path


@pytest.mark.parametrize("header", [[], [["a", "b b", "c,c"]]])
@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_a_table_is_its_numbers_with_names_and_without(tmp_path, suffix, separator, header):
    rows = [*header, *NUMBERS.tolist()]
    assert np.array_equal(read_table(written(tmp_path / f"a.{suffix}", rows, delimiter=separator)), NUMBERS)


def test_tables_of_other_programs(tmp_path):
    np.savetxt(tmp_path / "numpy.txt", NUMBERS, header="a b c")  # blanks, and a header behind #
    written(tmp_path / "quoted.csv", [["x", "y", "z"], *NUMBERS.tolist(), []], quoting=csv.QUOTE_ALL)
    written(tmp_path / "mark.csv", [["x", "y", "z"], *NUMBERS.tolist()], encoding="utf-8-sig")
    for name in ("numpy.txt", "quoted.csv", "mark.csv"):
        assert np.allclose(read_table(tmp_path / name), NUMBERS, rtol=1e-6), name
    comma = [[str(x).replace(".", ",") for x in row] for row in NUMBERS.tolist()]
    for header in ([["x", "y", "z"]], []):
        written(tmp_path / "comma.csv", [*header, *comma], delimiter=";")
        with pytest.raises(ValueError, match=r"data\.read_csv has arguments of pandas\.read_csv, such as \{sep = ';'"):
            read_table(tmp_path / "comma.csv")
        read_csv = {"sep": ";", "decimal": ","}
        assert np.allclose(read_columns(tmp_path / "comma.csv", (), (), read_csv)[0], NUMBERS, rtol=1e-6)
    assert load_data("array", path=tmp_path / "comma.csv", read_csv=read_csv).shape == (3,)


def test_numbers_that_single_precision_rounds_away_are_refused(tmp_path):
    """Seconds since 1970: single precision holds every 128th, so that a density of them is one of its rounding."""
    seconds, tenth = 1.7e9 + np.arange(200.0), 0.1 + 1e-17 * np.arange(200.0)  # a constant, but for rounding
    table = written(tmp_path / "t.csv", [["time", "tenth"], *zip(seconds, tenth, strict=True)])
    with pytest.raises(ValueError, match=r"t\.csv: column 'time' has numbers near 1\.7e\+09 .* subtract a constant"):
        load_data("array", path=table)
    rows = np.stack([tenth, seconds], 1)
    with pytest.raises(ValueError, match=r"numbers near 1\.7e\+09 .* in column 1"):
        as_data(rows)
    for wide in (rows - [0, 1.7e9], rows + [[0, 1e5 * i] for i in range(200)]):  # days apart
        assert as_data(wide).shape == (2,)


def test_an_index_of_pandas_is_left_out(tmp_path):
    indexed = [["", "x", "y", "z"], *([i, *row] for i, row in enumerate(NUMBERS.tolist()))]
    with pytest.warns(UserWarning, match="the first column, which has no name, is left out"):
        assert np.array_equal(read_table(written(tmp_path / "a.csv", indexed)), NUMBERS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age,city\n1,2\n3,Bonn\n", "column 'city' must hold finite numbers, got 'Bonn' in row 2"),
        ("age,city\n\n1,2\n,4\n", r"column 'age' must hold finite numbers, got nan in row 2 \(of 1 such\); data\.x"),
        ("age,city\n1,2\n3,NA\n", "column 'city' must hold finite numbers, got nan in row 2"),
        ("1,2\n3,nan\n", "column 'x2' must hold finite numbers, got nan in row 2"),
        ("Anna,1\nBert,2\n", "column 'x1' must hold finite numbers, got 'Anna' in row 1"),
        ("1,2\n3,1e99\n", r"column 'x2' must hold finite numbers, got 1e\+99 in row 2"),
        ("1,2\n3,4,5\n", "cannot be read as a table: .*Expected 2 fields in line 2, saw 3"),
        ("a,b\n3,4,5\n", "its lines have more cells than its first, which has 2"),
        ("x,y\n1,2\n3\n", "column 'y' must hold finite numbers, got nan in row 2"),
        ("x,y\n", "holds no rows of numbers"),
        ("", "cannot be read as a table: .*No columns"),
    ],
)
def test_a_cell_that_is_no_number_is_named(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=f"t.csv.*{message}"):
        read_table(tmp_path / "t.csv")


def test_all_problems_of_a_table_are_named_at_once(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,c,d\n1,2,x,4\n1,,3,4\n5,,y,inf\n")
    said = (
        r"a\.csv: column 'b' must hold finite numbers, got nan in row 2 \(of 2 such\); column 'c' must hold finite "
        r"numbers, got 'x' in row 1 \(of 2 such\); column 'd' .* got inf in row 3 .*; data\.x names the columns .*"
        r"for gaps and words, in Python, there is indm\.JointDensityEstimator"
    )
    with pytest.raises(ValueError, match=said):
        read_table(tmp_path / "a.csv")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_two_columns_of_one_name_are_an_error(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        path.write_text("a,b,a\n1,2,3\n")
    else:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table([[1.0], [2.0], [3.0]], ["a", "b", "a"]), path)
    with pytest.raises(ValueError, match=r"two columns are called 'a'; each needs a name of its own"):
        read_columns(path, ("b",), ())


def test_of_a_parquet_file_larger_than_memory_random_rows_are_read(tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    pandas.DataFrame({"a": np.arange(100_000.0), "b": 0.0}).to_parquet(path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=32 * 100_000))
    with pytest.warns(UserWarning, match=r"cannot hold the 100,000 rows of .*a\.parquet: a random 50\.0% are read"):
        rows = read_table(path)[:, 0]
    assert abs(len(rows) - 50_000) < 1_000 and abs(rows.mean() - 50_000) < 1_000
    assert len(set(rows.tolist())) == len(rows)
    with pytest.warns(UserWarning, match="are read"):
        assert len(read_columns(path, ("a", "b"), ())[0]) == len(rows)


def test_a_table_is_data(tmp_path):
    table = written(tmp_path / "t.csv", [["a", "b", "c"], *NUMBERS.tolist()])
    data = load_data("array", path=table)
    assert data.shape == (3,) and data.scaling.levels is None
    rows = torch.cat([stack(getattr(data, part)) for part in ("train", "valid", "test")])
    assert np.array_equal(np.sort(rows.numpy(), 0), np.sort(NUMBERS, 0))
    assert torch.equal(read_events(table, None), torch.from_numpy(NUMBERS))
    whole = written(tmp_path / "w.csv", [[i % 4, i % 3] for i in range(30)])
    assert load_data("array", path=whole, levels=4).scaling.levels == 4
    assert read_events(whole, 4).dtype == torch.uint8
    with pytest.raises(ValueError, match=r"t\.csv must hold integers 0 … 3"):
        read_events(table, 4)
    with pytest.raises(ValueError, match="a table is one array without a name"):
        load_data("array", path=table, key="a")


def test_a_table_larger_than_memory_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "t.csv").open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(ValueError, match="it claims 8,796,093,022,208 bytes"):
        read_table(tmp_path / "t.csv")
