"""Arrays in .npy and .npz files, and tables in text files and in Parquet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from indm.checks import brief, nearest, reason
from indm.files import check_plain, untrusted
from indm.files.untrusted import check_memory
from indm.workbench.data.base import Data, DividedLoader, as_data
from indm.workbench.data.examples import OnDemand, are_lost, grey_levels, in_words_lost

if TYPE_CHECKING:
    import pandas

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": r"\s+"}
PARQUET = (".parquet", ".pq")
CURE = "data.read_csv has arguments of pandas.read_csv, such as {sep = ';', decimal = ','}"


@dataclass(frozen=True, kw_only=True)
class ArrayFile(DividedLoader):
    """An array of a .npy or .npz file, or a table of a .csv, .tsv, .txt or .parquet file.

    Floats (N, D) are vectors, standardised by the training split. Integers are grey levels 0 …
    ``levels`` − 1: images (N, H, W), (N, H, W, C) or (N, C, H, W), or vectors (N, D). Tables, see
    :func:`read_columns`, are integers if ``levels`` are given.
    """

    path: str | Path
    """The file."""
    key: str | None = None
    """Name of the array in an .npz file; by default ``samples``, ``x`` or the only one."""
    levels: int | None = None
    """Number of grey levels of integers; by default 256 if they are uint8."""
    x: str | tuple[str, ...] = ()
    """Columns of a table by name; by default all but ``c``."""
    c: str | tuple[str, ...] = ()
    """The condition of each example: columns of a table by name, the key of another array of an
    .npz file, or another .npy file by its path from the same folder. A single column of words or
    whole numbers has class labels.
    """
    header: bool = True
    """Whether the first line of a table in a text file names its columns."""
    read_csv: dict[str, Any] = field(default_factory=dict)
    """Arguments of pandas.read_csv for a text file, such as {sep = ";", decimal = ","}."""
    mmap: bool = False
    """Read the rows of a .npy file from disk when they are needed, if it is larger than memory."""

    def data(self) -> Data:
        place = Path(self.path).expanduser()
        x, c = ((part,) if isinstance(part, str) else tuple(part) for part in (self.x, self.c))
        if self.mmap:
            array: Any = OnDemand(_mapped_array(place), self.levels, place)
            conditions = untrusted.array(place.parent / c[0]) if c else None
        else:
            array, conditions = _with_conditions(
                place, self.key, self.levels, x, c, self.read_csv, self.header
            )
        data = as_data(
            array,
            name="array",
            levels=self.levels,
            valid=self.valid,
            test=self.test,
            seed=self.seed,
            limit=self.limit,
            centered=self.centered,
            flip=self.flip,
            c=False if conditions is None else conditions,
            where=self.path,
        )
        note = f"read from {self.path}" + (f", key {self.key}" if self.key else "")
        return replace(data, notes=[note, *data.notes])


def _mapped_array(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped into memory."""
    try:
        check_plain(path)
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be mapped into memory: {reason(error)}") from error


def _with_conditions(
    path: Path,
    key: str | None,
    levels: int | None,
    x: tuple[str, ...],
    c: tuple[str, ...],
    read_csv: Mapping[str, Any] = MappingProxyType({}),
    header: bool = True,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The array of a file, and the conditions that ``c`` names in it or in its folder, if any."""
    if path.suffix.lower() in {*SEPARATORS, *PARQUET}:
        values, conditions = read_columns(path, x, c, read_csv, header)
        is_whole = levels is not None and np.array_equal(values, np.floor(values))
        return values.astype(np.int64) if is_whole else values, conditions
    if x or len(c) > 1:
        raise ValueError(
            f"{path} has no named columns: data.x and several data.c are for tables, got {(*x, *c)}"
        )
    array = _read_array(path, key)
    if array.dtype.kind == "f" and array.ndim > 2:  # images that have lost their grey levels
        raise ValueError(
            f"{path} must hold float vectors or uint8 images, got {array.dtype} of shape {array.shape}"
        )
    if not c:
        return array, None
    if untrusted.array_names(path) is None:
        return array, untrusted.array(path.parent / c[0])
    return array, _read_array(path, c[0])


def read_events(path: Path, levels: int | None) -> Tensor:
    """The events of an array or a table in data units, (N, *event).

    Raises:
        ValueError: they are not floats, or not integers of this number of ``levels``.
    """
    array, _ = _with_conditions(path, None, levels, (), ())
    if (levels is None) != (array.dtype.kind == "f"):
        wanted = "floats" if levels is None else f"integers 0 … {levels - 1}"
        raise ValueError(f"{path} must hold {wanted}, as the model has them, got {array.dtype}")
    if levels is None:
        return torch.from_numpy(array.astype(np.float32, copy=False))
    return torch.from_numpy(grey_levels(array, levels, path)[0])


def _read_array(path: Path, key: str | None) -> np.ndarray:
    """The array of a .npy file, or an array of an .npz file: ``key``, or a usual name."""
    names = untrusted.array_names(path)
    if names is None:
        return untrusted.array(path)
    usual = [name for name in ("samples", "x") if name in names]
    if key is None and (usual or len(names) == 1):
        key = [*usual, *names][0]
    if key not in names:
        raise ValueError(
            f"key must be one of {brief(', '.join(names))}, the arrays of {path}, got {key!r}"
        )
    return untrusted.array(path, key)


# ── Tables


def read_columns(
    path: Path,
    x: Sequence[str] = (),
    c: Sequence[str] = (),
    read_csv: Mapping[str, Any] = MappingProxyType({}),
    header: bool = True,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The columns ``x`` as float32 (n, D), and ``c`` as labels (n,) or numbers (n, size), or None.

    Without ``x`` all columns but ``c`` are taken. A single column c of words or whole numbers has
    labels.

    Raises:
        ValueError: no such column, or a cell of ``x`` that is not a finite number.
    """
    table = read_frame(path, [*x, *c] if x else (), read_csv, header)
    for name in (*x, *c):
        if name not in table:
            raise ValueError(f"{path} has no column {name!r}{nearest(name, table.columns)}")
    both = set(x) & set(c)
    if both:
        raise ValueError(f"{path}: column {min(both)!r} cannot be both x and c")
    values = _numbers(path, table[[*x] if x else [name for name in table if name not in c]])
    if not c:
        return values, None
    labels = table[c[0]]
    if len(c) > 1 or labels.dtype.kind == "f":
        return values, _numbers(path, table[[*c]])
    if labels.isna().any():
        row = labels.isna().argmax() + 1
        raise ValueError(
            f"{path}: column {c[0]!r} is empty in row {row}, or has a word that stands for that, as NA"
        )
    if labels.dtype.kind in "iub":
        return values, labels.to_numpy()
    names = labels.astype("category").cat
    words = names.categories.to_numpy().astype(str)
    check_memory(words.itemsize * len(labels))
    return values, words[names.codes.to_numpy()]


def names_of(data: Mapping[str, Any]) -> list[str]:
    """The names of the columns of a model, from the ``[data]`` table of its run, if they have any.

    Raises:
        ValueError: the file cannot be read.
    """
    x, c = (
        [part] if isinstance(part, str) else list(part)
        for part in (data.get("x", ()), data.get("c", ()))
    )
    path = Path(data.get("path", ""))
    if x or path.suffix.lower() not in SEPARATORS:
        return x
    table = read_frame(path, (), {**data.get("read_csv", {}), "nrows": 0}, data.get("header", True))
    return [name for name in table if name not in c]


def read_frame(
    path: Path,
    columns: Sequence[str] = (),
    read_csv: Mapping[str, Any] = MappingProxyType({}),
    header: bool = True,
) -> "pandas.DataFrame":
    """The table in a file, as pandas reads it; only ``columns`` of a Parquet file.

    Cells are separated by commas in .csv, by tabs in .tsv and by blanks in .txt files. Columns
    without names are called x1, x2, ….

    Args:
        read_csv: arguments of pandas.read_csv.
        header: whether the first line of a text file has the names.

    Raises:
        ValueError: it cannot be read, memory cannot hold it, or the first line has numbers in place
            of names.
    """
    import pandas

    try:
        check_plain(path)
        if path.suffix.lower() in PARQUET:
            table = pandas.read_parquet(path, columns=[*columns] or None).reset_index(drop=True)
        else:
            # a number takes two characters or more, and four bytes in memory
            check_memory(2 * path.stat().st_size)
            options = {"sep": SEPARATORS[path.suffix.lower()], "skipinitialspace": True} | {
                **read_csv
            }
            # from 3.1 on, floats are exact without this option
            is_exact = tuple(map(int, pandas.__version__.split(".")[:2])) >= (3, 1)
            exact = {} if is_exact or "engine" in options else {"float_precision": "round_trip"}
            table = pandas.read_csv(path, header="infer" if header else None, **exact | options)
    except Exception as error:  # pandas and pyarrow raise errors of many kinds
        raise ValueError(f"{path} cannot be read as a table: {reason(error)}") from error
    if not header:
        table.columns = [f"x{i + 1}" for i in range(len(table.columns))]
    table.columns = [str(name).strip() for name in table.columns]
    first = str(table.columns[0])
    if not isinstance(table.index, pandas.RangeIndex) or first.startswith("Unnamed: "):
        raise ValueError(
            f"{path}: its first column must have a name; {CURE}, and {{index_col = 0}} leaves it out"
        )
    if _is_number(first):
        raise ValueError(
            f"header must be false if the first line has no names: {path} has {first!r}"
        )
    return table


def _is_number(text: str) -> bool:
    try:
        return np.isfinite(float(text)).item()
    except ValueError:
        return False


def _numbers(path: Path, table: "pandas.DataFrame") -> np.ndarray:
    """A table of finite numbers as float32 (rows, columns)."""
    import pandas

    values = np.empty(table.shape, np.float32)
    for i, name in enumerate(table):
        column = table[name]
        if column.dtype.kind not in "biuf":
            column = pandas.to_numeric(column.astype(object), errors="coerce")
        exact = column.to_numpy(np.float64, na_value=np.nan)
        with np.errstate(over="ignore"):
            values[:, i] = exact
        bad = np.flatnonzero(~np.isfinite(values[:, i]))
        if len(bad):
            got = brief(repr(table[name].iloc[bad[:1]].tolist()[0]))
            cure = f"data.x names the columns to be used, and {CURE}; indm.JointDensityEstimator takes gaps and words"
            where = f"row {bad[0] + 1} (of {len(bad)} such)"
            raise ValueError(
                f"{path}: column {name!r} must hold finite numbers, got {got} in {where}; {cure}"
            )
        if are_lost(exact):
            raise ValueError(f"{path}: column {name!r} has {in_words_lost(exact)}")
    return values
