"""Arrays in .npy and .npz files, and tables of numbers in text files and in Parquet, as pandas reads them."""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from torch import Tensor

from indm.checks import brief, listed, nearest, reason
from indm.files import check_plain, untrusted
from indm.files.untrusted import check_memory
from indm.workbench.data.base import Data, DividedLoader
from indm.workbench.data.examples import OnDemand, are_lost, grey_levels, in_words_lost

if TYPE_CHECKING:
    import pandas

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": r"\s+"}
TABLE_SUFFIXES, PARQUET = {*SEPARATORS}, {".parquet", ".pq"}
CELL = 32  # bytes that a cell takes while a table is read: its copies at one time; 25 were measured
CURE = "data.read_csv has arguments of pandas.read_csv, such as {sep = ';', decimal = ','}"


@dataclass(frozen=True, kw_only=True)
class ArrayFile(DividedLoader):
    """An array of a .npy or .npz file, or a table of a .csv, .tsv, .txt or .parquet file.

    Floats (N, D) are vectors, standardised by the training split. Integers are grey levels 0 … ``levels`` − 1:
    images (N, H, W), (N, H, W, C) or (N, C, H, W), or vectors (N, D). For tables see :func:`read_columns`; they are
    floats without ``levels``, and integers with them.
    """

    path: str | Path
    """The file."""
    key: str | None = None
    """Name of the array in an .npz; by default ``samples``, ``x`` or the only one."""
    levels: int | None = None
    """Number of grey levels of integers; by default 256 if they are uint8."""
    x: str | tuple[str, ...] = ()
    """Columns of a table by name; by default all but ``c``."""
    c: str | tuple[str, ...] = ()
    """What the condition of each example is: columns of a table by name, the key of another array of an .npz, or
    another .npy file by its path from the same folder. One column of words or whole numbers is one of class labels."""
    read_csv: dict[str, Any] = field(default_factory=dict)
    """Arguments of pandas.read_csv for a table in a text file, such as {sep = ";", decimal = ","}."""
    mmap: bool = False
    """Leave a .npy file on disk, and read rows as training asks for them: for more than memory holds."""

    def data(self) -> Data:
        place = Path(self.path).expanduser()
        x, c = ((part,) if isinstance(part, str) else tuple(part) for part in (self.x, self.c))
        if self.mmap:
            array: Any = OnDemand(_mapped_array(place), self.levels, place)
            conditions = untrusted.array(place.parent / c[0]) if c else None
        else:
            array, conditions = _with_conditions(place, self.key, self.levels, x, c, self.read_csv)
        given = False if conditions is None else conditions
        data = self.as_data(array, name="array", levels=self.levels, where=self.path, c=given)
        note = f"read from {self.path}" + (f", key {self.key}" if self.key else "")
        return replace(data, notes=[note, *data.notes])


def _mapped_array(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped into memory and not read; ValueError where it is another file, or of objects."""
    try:
        check_plain(path)
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError) as error:
        what = "cannot be mapped into memory, as an .npy file of numbers can"
        raise ValueError(f"{path} {what}: {reason(error)}") from error


def _with_conditions(
    path: Path,
    key: str | None,
    levels: int | None,
    x: tuple[str, ...],
    c: tuple[str, ...],
    read_csv: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[np.ndarray, np.ndarray | None]:
    """The array of a file, and the conditions that ``c`` names in it or beside it, None without."""
    if path.suffix.lower() in TABLE_SUFFIXES | PARQUET:
        if key is not None:
            raise ValueError(f"{path}: key {key!r} was given, but a table is one array without a name")
        values, conditions = read_columns(path, x, c, read_csv)
        is_whole = levels is not None and np.array_equal(values, np.floor(values))
        return values.astype(np.int64) if is_whole else values, conditions
    if x or len(c) > 1:
        raise ValueError(f"{path} has no named columns: data.x and several data.c are for tables, got {(*x, *c)}")
    array = _read_array(path, key)
    if array.dtype.kind == "f" and array.ndim > 2:  # grey levels that were most likely lost
        raise ValueError(f"{path} must hold float vectors or uint8 images, got {array.dtype} of shape {array.shape}")
    if not c:
        return array, None
    is_beside = untrusted.array_names(path) is None
    return array, untrusted.array(path.parent / c[0]) if is_beside else _read_array(path, c[0])


def read_events(path: Path, levels: int | None) -> Tensor:
    """The events of a .npy, .npz (the only array, or ``samples``) or .csv file, in data units, (N, *event)."""
    array, _ = _with_conditions(path, None, levels, (), ())
    if 0 in array.shape:
        raise ValueError(f"{path} holds no events: its shape is {array.shape}")
    if (levels is None) != (array.dtype.kind == "f"):
        wanted = "floats" if levels is None else f"integers 0 … {levels - 1}"
        raise ValueError(f"{path} must hold {wanted}, as the model has them, got {array.dtype}")
    events = array.astype(np.float32, copy=False) if levels is None else grey_levels(array, levels, path)[0]
    return torch.from_numpy(events)


def _read_array(path: Path, key: str | None) -> np.ndarray:
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a .npy, .npz or .csv file; the data set 'folder' reads images")
    if path.is_file() and path.suffix.lower() not in (".npy", ".npz"):
        raise ValueError(f"{path} is not a .npy, .npz, .csv or .parquet file: write it as one of these")
    names = untrusted.array_names(path)
    if names is None:
        if key is not None:
            raise ValueError(f"{path}: key {key!r} was given, but a .npy file holds one array without a name")
        return untrusted.array(path)
    if not names:
        raise ValueError(f"{path} holds no arrays; it must hold an array of the data")
    usual = [name for name in ("samples", "x") if name in names] or names
    if key is None and (len(usual) == 1 or usual is not names):
        key = usual[0]
    if key is None:
        raise ValueError(f"{path} holds several arrays; pass key= one of {brief(', '.join(names))}")
    if key not in names:
        raise ValueError(f"{path} has no array {key!r}{nearest(key, map(brief, names))}")
    return untrusted.array(path, key)


# ── Tables ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_columns(
    path: Path, x: Sequence[str], c: Sequence[str], read_csv: Mapping[str, Any] = MappingProxyType({})
) -> tuple[np.ndarray, np.ndarray | None]:
    """The columns ``x`` as float32 (n, D), and ``c`` as labels (n,) or numbers (n, size); None without any.

    Without ``x`` they are all but ``c`` and a first column without a name. A single column c of words or whole numbers
    is one of labels.

    Raises:
        ValueError: no such column, or a cell of ``x`` that is not a finite number.
    """
    table = read_frame(path, x, c, read_csv)
    if both := set(x) & set(c):
        raise ValueError(f"{path}: column {min(both)!r} cannot be both x and c")
    if not x and _has_index(table):
        warnings.warn(f"{path}: the first column, which has no name, is left out", stacklevel=2)
    values = _numbers(path, table, x or _all_but(c, table))
    if not c:
        return values, None
    labels = table[c[0]]
    if len(c) > 1 or labels.dtype.kind == "f":
        return values, _numbers(path, table, c)
    if labels.isna().any():
        row = labels.isna().argmax() + 1
        raise ValueError(f"{path}: column {c[0]!r} is empty in row {row}, or has a word that stands for that, as NA")
    if labels.dtype.kind in "iub":
        return values, labels.to_numpy()
    return values, labels.to_numpy().astype(str)


def names_of(data: Mapping[str, Any]) -> list[str]:
    """The names of the columns of a model, from the ``[data]`` table of its run; none of files without names.

    Raises:
        ValueError: the file cannot be read.
    """
    x, c = ([part] if isinstance(part, str) else list(part) for part in (data.get("x", ()), data.get("c", ())))
    path = Path(data.get("path", ""))
    if x or path.suffix.lower() not in TABLE_SUFFIXES:
        return x
    return _all_but(c, read_frame(path, read_csv={"nrows": 0, **data.get("read_csv", {})}))


def _all_but(c: Sequence[str], table: "pandas.DataFrame") -> list[str]:
    """The columns without ``c`` and without a first one that has no name."""
    return [name for name in [*table][_has_index(table) :] if name not in c]


def _has_index(table: "pandas.DataFrame") -> bool:
    """Whether the first column is the index, as pandas writes it, without a name."""
    return len(table.columns) > 1 and table.columns[0] == "Unnamed: 0"


def read_frame(
    path: Path, x: Sequence[str] = (), c: Sequence[str] = (), read_csv: Mapping[str, Any] = MappingProxyType({})
) -> "pandas.DataFrame":
    """The table in a file; columns without names are x1, x2, ….

    Cells are separated by commas in .csv, by tabs in .tsv and by blanks in .txt files, where # begins a comment;
    ``read_csv`` are other arguments of pandas. A first line without a number names the columns. Of Parquet only the
    columns ``x`` and ``c`` are read, and where memory cannot hold them, random rows, of which a warning says how many.

    Raises:
        ValueError: it cannot be read, or memory cannot hold it; no such column, or two of one name.
    """
    try:
        check_plain(path)
        table = _parquet(path, x, c) if path.suffix.lower() in PARQUET else _text(path, (*x, *c), read_csv)
    except ImportError as error:  # pandas needs pyarrow
        raise ValueError(f"{path}: Parquet needs pyarrow: pip install pyarrow") from error
    except Exception as error:  # pandas and pyarrow raise of every kind
        raise ValueError(f"{path} cannot be read as a table: {reason(error)}") from error
    return table.set_axis([str(name).strip() for name in table.columns], axis=1)


def _check_names(names: Sequence[str], wanted: Sequence[str]) -> None:
    """ValueError where two columns have one name, or one that is wanted is not there."""
    names = [str(name).strip() for name in names]
    if twice := [name for name, other in itertools.pairwise(sorted(names)) if name == other]:
        raise ValueError(f"two columns are called {brief(repr(twice[0]))}; each needs a name of its own")
    for name in wanted:
        if name not in names:
            raise ValueError(f"it has columns {brief(', '.join(names))}, and none {name!r}{nearest(name, names)}")


def _text(path: Path, wanted: Sequence[str], read_csv: Mapping[str, Any]) -> "pandas.DataFrame":
    import pandas

    check_memory(2 * path.stat().st_size)  # a number takes two characters or more, and four bytes in memory
    suffix = path.suffix.lower()
    is_exact = tuple(map(int, pandas.__version__.split(".")[:2])) >= (3, 1)  # exact by itself, the option deprecated
    options: dict[str, Any] = {
        "sep": SEPARATORS[suffix],
        "comment": "#" if suffix == ".txt" else None,
        "encoding": "utf-8-sig",
        "skipinitialspace": True,
        "low_memory": False,
        "float_precision": None if is_exact else "round_trip",
    } | dict(read_csv)
    first = pandas.read_csv(path, **options | {"header": None, "nrows": 1, "dtype": str, "keep_default_na": False})
    cells = [cell.strip() for cell in first.iloc[0]]
    has_names = not any(map(_is_number, cells))
    names = cells if has_names else [f"x{i + 1}" for i in range(len(cells))]
    _check_names(names, wanted)
    table = pandas.read_csv(path, **{"header": 0 if has_names else None} | options)
    if not isinstance(table.index, pandas.RangeIndex):
        raise ValueError(f"its lines have more cells than its first, which has {len(cells)}; {CURE}")
    return table if has_names else table.set_axis(names, axis=1)


def _is_number(text: str) -> bool:
    try:
        return np.isfinite(float(text.replace(",", "."))).item()
    except ValueError:
        return False


def _parquet(path: Path, x: Sequence[str], c: Sequence[str]) -> "pandas.DataFrame":
    """Columns ``x`` and ``c`` of a Parquet file, all without ``x``; random rows where memory cannot hold them."""
    import pandas
    from pyarrow import parquet

    file, chosen = parquet.ParquetFile(path), [*x, *c] if x else None
    _check_names(file.schema_arrow.names, (*x, *c))
    rows, columns = file.metadata.num_rows, len(chosen or file.schema_arrow.names)
    share = psutil.virtual_memory().available / max(1, CELL * rows * columns)
    if share >= 1:
        return pandas.read_parquet(path, columns=chosen)
    warnings.warn(f"memory cannot hold the {rows:,} rows of {path}: a random {share:.1%} are read", stacklevel=2)
    numbers = np.random.default_rng(0)
    parts = (batch.to_pandas() for batch in file.iter_batches(columns=chosen))
    return pandas.concat([part[numbers.random(len(part)) < share] for part in parts], ignore_index=True)


def _numbers(path: Path, table: "pandas.DataFrame", names: Sequence[str]) -> np.ndarray:
    """Columns as finite float32 numbers, (rows, columns)."""
    import pandas

    if table.empty or not names:
        raise ValueError(f"{path} holds no rows of numbers")
    values, problems, has_gaps = np.empty((len(table), len(names)), np.float32), list[str](), False
    with np.errstate(all="ignore"):
        for i, name in enumerate(names):
            column = pandas.to_numeric(table[name], errors="coerce").to_numpy(np.float64, na_value=np.nan)
            values[:, i] = column
            if len(rows := np.flatnonzero(~np.isfinite(values[:, i]))):
                got, has_gaps = table[name].iloc[rows[:1]].tolist()[0], has_gaps or bool(table[name].isna().any())
                of = f"{brief(repr(got))} in row {rows[0] + 1} (of {len(rows)} such)"
                problems.append(f"column {name!r} must hold finite numbers, got {of}")
            elif are_lost(column):
                problems.append(f"column {name!r} has {in_words_lost(column)}")
    if problems:
        joint = "; for gaps and words, in Python, there is indm.JointDensityEstimator" if has_gaps else ""
        raise ValueError(f"{path}: {listed(problems)}; data.x names the columns to be used, and {CURE}{joint}")
    return values
