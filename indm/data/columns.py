"""Named columns of a table as x and c: text files and Parquet, read by pandas (``pip install 'indm[tables]'``)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from indm.files.memory import check_memory
from indm.files.plain import check_plain
from indm.messages import brief, nearest, reason

PARQUET = {".parquet", ".pq"}


def read_columns(path: Path, x: Sequence[str], c: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """The columns ``x`` as float32 (n, D), and ``c`` as labels (n,) or numbers (n, size); None without any.

    A single column c of words or whole numbers is one of labels.

    Args:
        path: a .csv, .tsv, .txt or .parquet file whose first line names its columns.
        x: names of columns of numbers; by default all but ``c``.
        c: names of columns.

    Raises:
        ValueError: no pandas or pyarrow, a file that cannot be read, a column that is not there (with the nearest that
            is), or a cell without a finite number (with the column and the row).
    """
    try:
        import pandas

        check_plain(path)
        check_memory(2 * path.stat().st_size)
        if path.suffix.lower() in PARQUET:
            table = pandas.read_parquet(path)
        else:
            table = pandas.read_csv(path, sep=None, engine="python", encoding="utf-8-sig")
    except ImportError as error:  # of pandas, and by pandas of pyarrow
        raise ValueError(f"{path}: columns by name need pandas and pyarrow: pip install 'indm[tables]'") from error
    except Exception as error:  # pandas and pyarrow raise of every kind
        raise ValueError(f"{path} cannot be read as a table: {reason(error)}") from error
    names = [str(name) for name in table.columns]
    table.columns = names
    for name in (*x, *c):
        if name not in names:
            raise ValueError(f"{path} has columns {brief(', '.join(names))}, and none {name!r}{nearest(name, names)}")
    both = set(x) & set(c)
    if both:
        raise ValueError(f"{path}: column {min(both)!r} cannot be both x and c")
    x = x or [name for name in names if name not in c]
    values = np.stack([_numbers(path, table, name) for name in x], 1).astype(np.float32)
    if not c:
        return values, None
    if len(c) == 1 and not _is_fractional(table[c[0]]):
        column = table[c[0]]
        missing = np.flatnonzero(column.isna().to_numpy())
        if len(missing):
            raise ValueError(f"{path}: column {c[0]!r} is empty in row {missing[0] + 1}")
        return values, column.to_numpy() if column.dtype.kind in "iub" else column.astype(str).to_numpy()
    return values, np.stack([_numbers(path, table, name) for name in c], 1).astype(np.float32)


def _is_fractional(column: Any) -> bool:
    return column.dtype.kind == "f"


def _numbers(path: Path, table: Any, name: str) -> np.ndarray:
    """A column as finite numbers; ValueError naming the first cell that is none."""
    import pandas

    column = table[name]
    numbers = pandas.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        cell = brief(repr(column.tolist()[wrong[0]]))
        raise ValueError(
            f"{path}: column {name!r} must hold finite numbers, got {cell} in row {wrong[0] + 1} (of {len(wrong)} such)"
            "; data.x names the columns that are to be used"
        )
    return numbers
