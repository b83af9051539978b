"""Tables in text files, comma-separated values and their kin, and in Parquet, as pandas reads them."""

import csv
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from indm.checks import brief, nearest, reason
from indm.files.memory import COPIES, check_memory
from indm.files.untrusted import check_plain

if TYPE_CHECKING:
    import pandas

SUFFIXES, PARQUET = {".csv", ".tsv", ".txt"}, {".parquet", ".pq"}
SEPARATORS = ("\t", ";", ",")  # the first of these in the first line; where there is none, blanks
COUNTS = {"unnamed: 0", "index", "id", "row", "nr", "no"}  # names of a first column that may count the rows


def read_columns(path: Path, x: Sequence[str], c: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """The columns ``x`` as float32 (n, D), and ``c`` as labels (n,) or numbers (n, size); None without any.

    Without ``x`` they are all but ``c``, and but a first column that counts the rows and is called so, with a warning.
    A single column c of words or whole numbers is one of labels.

    Raises:
        ValueError: no such column, or a cell of ``x`` that is not a finite number.
    """
    table = read_frame(path)
    for name in (*x, *c):
        if name not in table:
            raise ValueError(f"{path} has columns {brief(', '.join(table))}, and none {name!r}{nearest(name, table)}")
    if both := set(x) & set(c):
        raise ValueError(f"{path}: column {min(both)!r} cannot be both x and c")
    if not x and _counts_rows(table):
        warnings.warn(f"{path}: the first column, which counts the rows, is left out", stacklevel=2)
        table = table.iloc[:, 1:]
    values = _numbers(path, table, x or [name for name in table if name not in c])
    if not c:
        return values, None
    labels = table[c[0]]
    if len(c) > 1 or labels.dtype.kind == "f":
        return values, _numbers(path, table, c)
    if labels.isna().any():
        raise ValueError(f"{path}: column {c[0]!r} is empty in row {labels.isna().argmax() + 1}")
    return values, labels.to_numpy() if labels.dtype.kind in "iub" else labels.to_numpy().astype(str)


def names_of(path: Path, x: str | Sequence[str] = (), c: str | Sequence[str] = ()) -> list[str]:
    """The names of the columns of a file that a model has: ``x``, or all of a table but ``c``; none of other files.

    Raises:
        ValueError: it cannot be read.
    """
    x, c = ([part] if isinstance(part, str) else list(part) for part in (x, c))
    if x or path.suffix.lower() not in SUFFIXES:
        return x
    return [name for name in read_frame(path, rows=0) if name not in c]


def read_frame(path: Path, rows: int | None = None) -> "pandas.DataFrame":
    """The table in a file, or its first ``rows``; columns without names are x1, x2, ….

    In text files tabs, semicolons, commas or blanks separate cells; between semicolons a comma is the decimal point.
    The first line may name the columns. Lines before it that are empty or begin with # are passed over.

    Raises:
        ValueError: it cannot be read, or memory cannot hold it.
    """
    try:
        check_plain(path)
        check_memory(2 * path.stat().st_size)  # a number takes two characters or more, and four bytes in memory
        table = _parquet(path) if path.suffix.lower() in PARQUET else _text(path, rows)
    except ImportError as error:  # by pandas, of pyarrow
        raise ValueError(f"{path}: Parquet needs pyarrow: pip install pyarrow") from error
    except Exception as error:  # pandas and pyarrow raise of every kind
        raise ValueError(f"{path} cannot be read as a table: {reason(error)}") from error
    return table.set_axis([str(name).strip() for name in table.columns], axis=1)


def _text(path: Path, rows: int | None) -> "pandas.DataFrame":
    import pandas

    with path.open(encoding="utf-8-sig", errors="replace") as file:
        passed_over, line = next(((i, s) for i, s in enumerate(file) if s.strip() and not s.startswith("#")), (0, ""))
    bare = re.sub(r'"[^"]*"', "", line)
    separator = next((mark for mark in SEPARATORS if mark in bare), None)
    cells = [cell.strip() for cell in next(csv.reader([line], delimiter=separator))] if separator else line.split()
    table = pandas.read_csv(
        path, sep=separator or r"\s+", decimal="," if separator == ";" else ".", nrows=rows, skiprows=passed_over,
        header=0 if _are_names(cells) else None, skipinitialspace=True, float_precision="round_trip",
        encoding="utf-8-sig", encoding_errors="replace", low_memory=False,
    )  # fmt: skip
    if not isinstance(table.index, pandas.RangeIndex):
        raise ValueError(f"its lines have more cells than its first, which has {len(cells)}")
    return table if _are_names(cells) else table.set_axis([f"x{i + 1}" for i in range(len(cells))], axis=1)


def _are_names(cells: list[str]) -> bool:
    """Whether a first line names columns: no cell is a number, or they count the columns, as pandas names them."""
    count = [str(i) for i in range(len(cells))]
    counted = len(cells) > 1 and cells in (count, ["", *count[:-1]])
    return counted or not any(_is_number(cell.replace(",", ".")) for cell in cells)


def _is_number(text: str) -> bool:
    try:
        return np.isfinite(float(text)).item()
    except ValueError:
        return False


def _parquet(path: Path) -> "pandas.DataFrame":
    """The table of a Parquet file, counted before it is read: zeros take next to nothing in the file."""
    import pandas
    from pyarrow import parquet

    claims = parquet.read_metadata(path)
    groups = [claims.row_group(i) for i in range(claims.num_row_groups)]
    cells = sum(group.column(i).num_values for group in groups for i in range(group.num_columns))
    check_memory(COPIES * 8 * cells)
    return pandas.read_parquet(path)


def _counts_rows(table: "pandas.DataFrame") -> bool:
    first = table.iloc[:, 0] if len(table.columns) > 1 else None
    if first is None or table.columns[0].lower() not in COUNTS or first.dtype.kind not in "iu":
        return False
    return bool((np.diff(first) == 1).all())


def _numbers(path: Path, table: "pandas.DataFrame", names: Sequence[str]) -> np.ndarray:
    """Columns as finite float32 numbers, (rows, columns)."""
    import pandas

    if table.empty or not names:
        raise ValueError(f"{path} holds no rows of numbers")
    values = np.empty((len(table), len(names)), np.float32)
    with np.errstate(over="ignore"):
        for i, name in enumerate(names):
            values[:, i] = pandas.to_numeric(table[name], errors="coerce")
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0].tolist()
        got, name = brief(repr(table[names[column]].iloc[row : row + 1].tolist()[0])), names[column]
        raise ValueError(
            f"{path}: column {name!r} must hold finite numbers, got {got} in row {row + 1} (of {len(wrong)} such); "
            "data.x names the columns that are to be used"
        )
    return values
