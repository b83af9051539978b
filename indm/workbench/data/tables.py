"""Tables in text files, comma-separated values and their kin, and in Parquet: numbers, and columns by name."""

import contextlib
import csv
import itertools
import math
import warnings
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from indm.files.memory import COPIES, check_memory
from indm.files.plain import check_plain
from indm.messages import brief, nearest, reason

SUFFIXES, PARQUET = {".csv", ".tsv", ".txt"}, {".parquet", ".pq"}
SEPARATORS = ("\t", ";", ",")  # in this order; where none fits, blanks
LOOKED_AT = 10  # lines by which the separator is chosen
EMPTY = {"", "na", "n/a", "#n/a", "nan", "null", "none"}
MISSING = EMPTY | {"?", "-", "."}
INDEX_NAMES = {"", "unnamed: 0", "index", "id", "row", "nr", "no"}  # of a first column that may count the rows
NUMBERS_ONLY = 'in pandas, df.select_dtypes("number").dropna().to_csv("numbers.csv", index=False) keeps what would do'

csv.field_size_limit(2**31 - 1)  # by default a line of 131,072 characters without the separator is an error

Rows = Iterator[tuple[int, list[str]]]


def read_table(path: Path) -> np.ndarray:
    """The numbers of a text file, float32 (rows, columns).

    Tabs, semicolons, commas or blanks separate cells; between semicolons a comma may stand for the decimal point. The
    first line may name the columns. Lines that are empty or begin with # are passed over. A first column that
    counts the rows and is called so, or not at all as pandas writes it, is left out with a warning.
    """
    try:
        _check_size(path)
        separator = _separator(path)
        rows = _rows(path, separator)
        first = next(rows, (1, []))
        names = first[1] if _are_names(first[1]) else None
        table = _numbers(rows if names else itertools.chain([first], rows), len(first[1]), names, separator == ";")
    except (ValueError, OSError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table of numbers: {reason(error)}") from error
    is_index = names is not None and names[0].lower() in INDEX_NAMES and len(names) > 1
    if is_index and np.array_equal(table[:, 0] - table[0, 0], np.arange(len(table))):
        warnings.warn(f"{path}: the first column, which counts the rows, is left out", stacklevel=2)
        return table[:, 1:]
    return table


def names_of(path: Path, x: str | Sequence[str] = (), c: str | Sequence[str] = ()) -> list[str]:
    """The names of the columns of a file that a model has: ``x``, or all of a text file but ``c``; none without names.

    Raises:
        OSError, ValueError, csv.Error: it cannot be read.
    """
    x, c = ([part] if isinstance(part, str) else list(part) for part in (x, c))
    if x or path.suffix.lower() not in SUFFIXES:
        return x
    check_plain(path)
    _, first = next(_rows(path, _separator(path)), (1, []))
    return [name for name in first if name not in c] if _are_names(first) else []


def read_columns(path: Path, x: Sequence[str], c: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """The columns ``x`` as float32 (n, D), and ``c`` as labels (n,) or numbers (n, size); None without any.

    A single column c of words or whole numbers is one of labels. Parquet is read by pandas.
    """
    try:
        _check_size(path)
        table = _parquet(path) if path.suffix.lower() in PARQUET else _text(path)
    except ImportError as error:  # of pandas, and by pandas of pyarrow
        raise ValueError(f"{path}: Parquet needs pandas and pyarrow: pip install pandas pyarrow") from error
    except Exception as error:  # pandas and pyarrow raise of every kind
        raise ValueError(f"{path} cannot be read as a table: {reason(error)}") from error
    for name in (*x, *c):
        if name not in table:
            raise ValueError(f"{path} has columns {brief(', '.join(table))}, and none {name!r}{nearest(name, table)}")
    if both := set(x) & set(c):
        raise ValueError(f"{path}: column {min(both)!r} cannot be both x and c")
    x = x or [name for name in table if name not in c]
    values = np.stack([_finite(path, name, table[name]) for name in x], 1)
    if not c:
        return values, None
    labels = table[c[0]]
    if len(c) > 1 or labels.dtype.kind == "f":
        return values, np.stack([_finite(path, name, table[name]) for name in c], 1)
    if labels.dtype.kind in "iub":
        return values, labels
    if None in (words := labels.tolist()):
        raise ValueError(f"{path}: column {c[0]!r} is empty in row {words.index(None) + 1}")
    return values, labels.astype(str)


def _check_size(path: Path) -> None:
    check_plain(path)
    check_memory(2 * path.stat().st_size)  # a number takes two characters or more, and four bytes in memory


def _text(path: Path) -> dict[str, np.ndarray]:
    """The columns of a text file by name: of one type each, or objects of which None is an empty cell."""
    separator = _separator(path)
    rows = [cells for _, cells in _rows(path, separator)]
    decimal = "," if separator == ";" else "."
    columns: Iterator[tuple[str, ...]] = zip(*rows, strict=True)
    return {name: _typed([cell.replace(decimal, ".") for cell in cells]) for name, *cells in columns}


def _typed(cells: list[str]) -> np.ndarray:
    """Whole numbers, numbers, truth values or words."""
    if all(cell.lower() in ("true", "false") for cell in cells):
        return np.array([cell.lower() == "true" for cell in cells])
    values: list[Any] = [None if cell.lower() in EMPTY else cell for cell in cells]
    with contextlib.suppress(ValueError, TypeError):
        return np.array([int(value) for value in values])
    with contextlib.suppress(ValueError):
        return np.array([math.nan if value is None else float(value) for value in values])
    return np.array(values, dtype=object)


def _parquet(path: Path) -> dict[str, np.ndarray]:
    """The columns of a Parquet file, as :func:`_text` gives them."""
    import pandas
    from pyarrow import parquet

    claims = parquet.read_metadata(path)
    groups = [claims.row_group(i) for i in range(claims.num_row_groups)]
    cells = sum(group.column(i).num_values for group in groups for i in range(group.num_columns))
    check_memory(COPIES * 8 * cells)
    table = pandas.read_parquet(path)
    columns: dict[str, Any] = {str(name): table[name].to_numpy() for name in table.columns}
    objects = {str(name): table[name].isna() for name in table.columns if columns[str(name)].dtype.kind == "O"}
    return columns | {name: np.where(empty, None, columns[name]) for name, empty in objects.items()}


def _finite(path: Path, name: str, column: np.ndarray) -> np.ndarray:
    """A column as finite float32 numbers; ValueError naming the first cell that is none."""
    is_numeric = column.dtype.kind in "biuf"
    numbers = column if is_numeric else np.array([_number(cell) for cell in column.tolist()])
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        cell = brief(repr(column[wrong[:1]].tolist()[0]))
        raise ValueError(
            f"{path}: column {name!r} must hold finite numbers, got {cell} in row {wrong[0] + 1} (of {len(wrong)} such)"
            "; data.x names the columns that are to be used"
        )
    return numbers.astype(np.float32)


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan


def _rows(path: Path, separator: str | None) -> Rows:
    """The cells of each line that holds any, with the number of the line."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file, delimiter=separator or ",", skipinitialspace=True)
        lines = ((reader.line_num, row) for row in reader) if separator else enumerate(map(str.split, file), 1)
        for number, row in lines:
            cells = [cell.strip() for cell in row]
            if any(cells) and not cells[0].startswith("#"):
                yield number, cells


def _separator(path: Path) -> str | None:
    """The first that cuts all first lines into as many cells, two or more; or that cuts any; None stands for blanks."""
    lengths = {
        separator: {len(cells) for _, cells in itertools.islice(_rows(path, separator), LOOKED_AT)}
        for separator in SEPARATORS
    }
    even = [separator for separator, found in lengths.items() if len(found) == 1 and found != {1}]
    return next(iter(even + [separator for separator, found in lengths.items() if max(found, default=1) > 1]), None)


def _are_names(cells: list[str]) -> bool:
    """Whether a first line names columns: no cell is a number, or they count the columns, as pandas names them."""
    count = [str(i) for i in range(len(cells))]
    counted = len(cells) > 1 and cells in (count, ["", *count[:-1]])
    return counted or not any(_is_number(cell.replace(",", ".")) for cell in cells)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(array("f", [float(text)])[0])
    except ValueError:
        return False


def _numbers(rows: Rows, columns: int, names: list[str] | None, decimal_comma: bool) -> np.ndarray:
    """The cells of all rows as numbers; ValueError for the first that is none."""
    values = array("f")
    for line, cells in rows:
        if len(cells) != columns:
            raise ValueError(f"line {line} has {len(cells)} cells, and the first has {columns}")
        texts = [cell.replace(",", ".") for cell in cells] if decimal_comma else cells
        try:
            values.extend(map(float, texts))
            wrong = not all(map(math.isfinite, values[-columns:]))
        except ValueError:
            wrong = True
        if wrong:
            column = next(i for i, text in enumerate(texts) if not _is_number(text))
            name = f"column {column + 1}" + (f" ({brief(names[column])})" if names and names[column] else "")
            what = "no value" if cells[column].lower() in MISSING else "no number that can be used"
            raise ValueError(f"{name} has {what} in line {line}, but {brief(repr(cells[column]))}; {NUMBERS_ONLY}")
    if not len(values):
        raise ValueError("it holds no rows of numbers")
    return np.frombuffer(values, np.float32).reshape(-1, columns)
