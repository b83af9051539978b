"""Tables of numbers in text files: comma-separated values and their kin."""

import csv
import itertools
import math
import warnings
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from indm.files.memory import check_memory
from indm.files.plain import check_plain
from indm.messages import brief, reason

SUFFIXES = {".csv", ".tsv", ".txt"}
SEPARATORS = ("\t", ";", ",")  # in this order; where none fits, blanks
LOOKED_AT = 10  # lines by which the separator is chosen
MISSING = {"", "na", "n/a", "#n/a", "nan", "null", "none", "?", "-", "."}
INDEX_NAMES = {"", "unnamed: 0", "index", "id", "row", "nr", "no"}  # of a first column that may count the rows
NUMBERS_ONLY = 'in pandas, df.select_dtypes("number").dropna().to_csv("numbers.csv", index=False) keeps what would do'

csv.field_size_limit(
    2**31 - 1
)  # of the module; by default a line of 131,072 characters without the separator is an error

Rows = Iterator[tuple[int, list[str]]]


def read_table(path: Path) -> np.ndarray:
    """The numbers of a text file, float32 (rows, columns).

    Tabs, semicolons, commas or blanks separate cells; between semicolons a comma may stand for the decimal point. The
    first line may name the columns. Lines that are empty or begin with # are passed over. A first column that
    counts the rows and is called so, or not at all as pandas writes it, is left out with a warning.

    Raises:
        ValueError: no file, one without rows or too large for memory, a line of another number of cells than the first,
            a cell without a finite number; with the column, the line, and what would do.
    """
    try:
        check_plain(path)
        check_memory(2 * path.stat().st_size)  # a number takes two characters or more here, and four bytes in memory
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
