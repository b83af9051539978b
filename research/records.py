"""Records of studies: one CSV file a table, with a row for each training, which is never made
again.

    table = Records(RECORDS / "verdict-final.csv")
    training = table.at(data="clothes-16", variant="indm", seed=1)
    record = training.kept(lambda: {"setting": {"train.lr": 1e-3}, "nelbo": [1.9, 0.1],
    "nelbo_nats": [83.1, 80.2]}) table.at(data="digits").rows()

A cell is JSON, or text as it is; one that is empty has no value. Numbers of single examples, whose
names end in ``_nats``, ``_bits`` or ``_levels``, are in the ``.npz`` beside the file, in single
precision, under the text in the column ``arrays``. Several processes may write into one table.
"""

import csv
import functools
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from indm.files import atomic
from indm.workbench.runs.provenance import provenance

RECORDS = Path(__file__).with_name("records")
ARRAYS, OF_EXAMPLES = "arrays", ("_nats", "_bits", "_levels")
VERSIONS = ("indm", "torch", "python", "git", "device", "threads")
Row = dict[str, Any]


@dataclass(frozen=True)
class Records:
    """The rows of a table that have the values of ``key`` in its columns: all of them, some, or a
    single one.
    """

    path: Path
    key: tuple[tuple[str, Any], ...] = ()

    def at(self, **columns: Any) -> "Records":
        return replace(self, key=(*self.key, *columns.items()))

    def rows(self) -> list[Row]:
        found = [row for row in self._lines() if self._has(row)]
        arrays = self._arrays() if any(ARRAYS in row for row in found) else {}
        return [
            with_arrays({name: value(cell) for name, cell in row.items()}, arrays) for row in found
        ]

    def of_common_seeds(
        self, column: str, names: Iterable[str], having: str = "seed"
    ) -> dict[str, list[Row]]:
        """The rows with each of ``names`` in a column, in order of the seeds that all of them have.

        Rows without the column ``having`` do not count.
        """
        rows = [row for row in self.rows() if having in row]
        found = {name: {row["seed"]: row for row in rows if row[column] == name} for name in names}
        seeds = sorted(set.intersection(*map(set, found.values())))
        return {name: [by_seed[seed] for seed in seeds] for name, by_seed in found.items()}

    def kept(self, make: Callable[[], Mapping[str, Any]]) -> Row:
        """The only row, which is made where there is none."""
        if not self.rows():
            self.add(make())
        (row,) = self.rows()
        return row

    def add(self, record: Mapping[str, Any]) -> None:
        """Write the row, in the place of one with the same key."""
        name = text([part for _, part in self.key])
        own = {
            f"{name}/{column}": np.float32(record[column])
            for column in record
            if column.endswith(OF_EXAMPLES)
        }
        cells = {
            column: part for column, part in record.items() if not column.endswith(OF_EXAMPLES)
        }
        line = {
            column: text(part) for column, part in (dict(self.key) | cells | dict(self.key)).items()
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            if own:
                arrays = dict(sorted((self._arrays() | own).items()))
                atomic.whole(self.path.with_suffix(".npz"), atomic.arrays_into(arrays))
            others = [row for row in self._lines() if not self._has(row)]
            lines = [*others, line | ({ARRAYS: name} if own else {})]
            self._write(
                sorted(lines, key=lambda row: [place(value(row[column])) for column, _ in self.key])
            )

    def _has(self, row: Mapping[str, str]) -> bool:
        return all(column in row and value(row[column]) == wanted for column, wanted in self.key)

    def _lines(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            return [
                {name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)
            ]

    def _write(self, lines: list[dict[str, str]]) -> None:
        file = io.StringIO()
        writer = csv.DictWriter(
            file, list(dict.fromkeys(name for row in lines for name in row)), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(lines)
        atomic.text(self.path, file.getvalue())

    def _arrays(self) -> dict[str, np.ndarray]:
        path = self.path.with_suffix(".npz")
        return loaded(path, path.stat().st_mtime_ns) if path.exists() else {}


@functools.lru_cache(maxsize=4)
def loaded(path: Path, changed: int) -> dict[str, np.ndarray]:
    """The arrays of a file that was ``changed`` at this time: pages read the same ones many times."""
    with np.load(path) as file:
        return dict(file)


def with_arrays(row: Row, arrays: Mapping[str, np.ndarray]) -> Row:
    """The row with its numbers of single examples, as lists."""
    name = text(row.pop(ARRAYS, None))
    own = {
        key.rpartition("/")[2]: array.tolist()
        for key, array in arrays.items()
        if key.rpartition("/")[0] == name
    }
    return row | own


def text(part: Any) -> str:
    """A cell: text that would read as JSON is written as JSON, too.

    >>> text("digits"), text("1"), text(1), text(None), text({"lr": 1e-3})
    ('digits', '"1"', '1', 'null', '{"lr": 0.001}')
    """
    if isinstance(part, str) and part and isinstance(value(part), str) and value(part) == part:
        return part
    return json.dumps(part, ensure_ascii=False, allow_nan=False)


def value(cell: str) -> Any:
    """The value that a cell holds.

    >>> value("digits"), value('"1"'), value("1"), value("null")
    ('digits', '1', 1, None)
    """
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def place(part: Any) -> tuple[bool, float, str]:
    """The place of a key's part in the order of rows: numbers come first."""
    return (False, part, "") if isinstance(part, int | float) else (True, 0.0, text(part))


def made_by(seed: int) -> Row:
    """The code and the machine that made a record."""
    whole = provenance(seed, {})
    return {name: whole[name] for name in VERSIONS} | {"machine": machine()}


def machine() -> str:
    """A name of this machine since it was started: differences between machines are not used."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return hashlib.blake2s(boot.read_bytes() if boot.exists() else b"", digest_size=4).hexdigest()
