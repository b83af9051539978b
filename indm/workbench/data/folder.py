"""Image files as data: folders, whose paths are listed in little memory, and what the library ``datasets`` reads."""

import contextlib
import copy
import hashlib
import importlib.util
import os
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from indm.checks import counted, nearest, reason, require
from indm.files import check_plain
from indm.workbench.data.base import Data
from indm.workbench.data.images import IMAGE_SUFFIXES, ImageOptions, Stored, read_image, read_kind

FILE_KINDS = (None, "L", "RGB")  # kinds of a file: not a usable image, grey, colour
LOOKED_AT = 32  # images of a data set of the hub whose headers decide on colour


class Chosen(Sequence[Any]):
    """Sequence of a subclass's items :meth:`at` the positions ``chosen``, by default all of ``n``."""

    def __init__(self, n: int):
        self.chosen = np.arange(n)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index):
        return self.select(index) if isinstance(index, slice) else self.at(int(self.chosen[index]))

    @abstractmethod
    def at(self, position: int) -> Any: ...

    def select(self, index: slice | np.ndarray) -> Self:
        """The items at the positions ``index``."""
        some = copy.copy(self)
        some.chosen = self.chosen[index]
        return some


class Files(Chosen):
    """Paths below ``folder`` in as many bytes as the longest has: a million need some 30 MB, not a gigabyte.

    ``names`` are the paths below it, as the file system encodes them, an array of bytes.
    """

    def __init__(self, folder: Path, names: np.ndarray):
        super().__init__(len(names))
        self.folder, self.names = folder, names

    def at(self, position: int) -> Path:
        return self.folder / os.fsdecode(self.names[position])

    def fingerprint(self) -> str:
        """SHA-256 of the paths below the folder, in the order of ``names``, whatever the order of ``chosen``."""
        names = self.names[np.sort(self.chosen)].tolist()
        lengths = np.array([len(name) for name in names], np.int64)
        return hashlib.sha256(lengths.tobytes() + b"".join(names)).hexdigest()


def list_files(folder: Path, below: Sequence[str] = ("",)) -> Files:
    """All files in the folders ``below`` one, each in sorted order, hidden ones apart; links to folders not followed.

    Raises:
        ValueError: one of them is not a folder.
    """
    start, names = len(os.path.join(os.fsencode(folder), b"")), list[bytes]()
    for part in below:
        top, found = folder / part, list[bytes]()
        if not top.is_dir():
            what = f"a file; its folder is '{top.parent}'" if top.exists() else "not there"
            raise ValueError(f"path '{top}' must be a folder, and it is {what}")
        for place, folders, files in os.walk(os.fsencode(top)):
            folders[:] = [name for name in folders if not name.startswith(b".")]
            paths = [os.path.join(place, name) for name in files if not name.startswith(b".")]
            found += [path[start:].replace(os.fsencode(os.sep), b"/") for path in paths if os.path.isfile(path)]
        names += sorted(found, key=lambda name: name.split(b"/"))
    return Files(folder, np.array(names, dtype="S"))


def kinds_of(files: Files, whole: bool = False) -> np.ndarray:
    """The positions in :data:`FILE_KINDS` of files, by their headers or, with ``whole``, from all of each."""
    with ThreadPoolExecutor(os.cpu_count() if whole else None) as pool:  # one image may take a gigabyte to decode
        return np.fromiter(pool.map(partial(_kind, whole=whole), files), np.uint8, len(files))


def _kind(path: Path, whole: bool) -> int:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return 0
    try:
        return FILE_KINDS.index(read_image(path).mode if whole else read_kind(path))
    except (ValueError, OSError):
        return 0


def find_images(
    folder: Path, below: Sequence[str] = ("",), *, whole: bool = False
) -> tuple[Files, tuple[int, int], list[str]]:
    """The images of :func:`list_files`, how many are grey and in colour, and notes.

    ``whole`` decodes every file in place of reading its header.
    """
    files = list_files(folder, below)
    kinds = kinds_of(files, whole)
    bad, grey, colour = np.bincount(kinds, minlength=3).tolist()
    notes = [f"read from {folder}, listed by {'decoding each' if whole else 'the header of each'}"]
    count = counted(len(files), "file")
    first = f"; the first is {_first_bad(files[int(np.argmin(kinds))])}" if bad else ""
    if not grey + colour:
        raise ValueError(f"no readable images in '{folder}' ({count}); it takes png, jpeg, webp, bmp, …{first}")
    if bad:
        notes.append(f"skipped {bad} of {count}, unreadable as images{first}")
        warnings.warn(notes[-1], stacklevel=3)
    return files.select(np.flatnonzero(kinds)), (grey, colour), notes


def _first_bad(path: Path) -> str:
    """A path, and why it is not a usable image."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return f"{path}: not an image by its name"
    try:
        read_image(path)
    except (ValueError, OSError) as error:
        return f"{path}: {reason(error)}"
    return f"{path}: it has changed since it was looked at"


@dataclass(frozen=True, kw_only=True)
class Folder(ImageOptions):
    """All images under a folder (recursive, hidden files apart), in sorted order, split by ``seed``; read from disk.

    Images are turned upright as their EXIF data say. Files whose header does not show an image are skipped and
    counted. An image whose damage shows only when it is decoded is replaced by the next.
    """

    path: str | Path
    """The folder."""
    classes: bool | list[str] = False
    """Whether each folder in it is a class, called like that folder; or those folders in it that are, and then no
    other is read."""
    groups: Literal["subfolder", "prefix", None] = None
    """Which images stay in one split, as frames of one film do: those in one "subfolder" (of the folder, or of its
    class), or those with one "prefix", the name up to the first "_". Standard errors are then over groups."""

    def data(self) -> Data:
        folder, names = Path(self.path).expanduser(), [] if isinstance(self.classes, bool) else self.classes
        require(len(set(names)) != 1, "data.classes", names, "true, false or two different folders or more")
        files, (n_grey, n_colour), notes = find_images(folder, names or ("",))
        if self.channels is None and n_grey and n_colour:
            count = f"{n_colour} images are in colour and {n_grey} are grey"
            notes.append(f"RGB, as {count}; data.channels 1 makes all grey")
        labels = [class_of(file, folder, names) for file in files] if self.classes else ()
        return self.data_of(
            "folder", folder, files, n_colour > 0, notes, labels, names, self.grouped(files, folder, labels)
        )

    def grouped(self, files: Files, folder: Path, labels: Sequence[str]) -> list[str]:
        """The group of each file; [] without groups."""
        if self.groups is None:
            return []
        if self.groups == "prefix":
            return [file.stem.split("_")[0] for file in files]
        below = [file.relative_to(folder) for file in files]
        depths = [1 + len(Path(label).parts) for label in labels or [""] * len(below)]
        for path, depth in zip(below, depths, strict=True):
            if len(path.parts) <= depth:
                what = "a folder of its group" + (" in that of its class" if labels else "")
                raise ValueError(f"data.groups must be prefix, or each image in {what}: '{path}' is in none")
        return [Path(*path.parts[:depth]).as_posix() for path, depth in zip(below, depths, strict=True)]


def class_of(file: Path, folder: Path, names: Sequence[str]) -> str:
    """The one of the folders ``names`` below ``folder`` in which a file is; without names, the first one below it."""
    below = file.relative_to(folder)
    if len(below.parts) == 1:
        raise ValueError(f"data.classes must be false, or each image in the folder of its class: '{below}' is in none")
    return next((name for name in names if below.is_relative_to(name)), below.parts[0])


# ── The library ``datasets`` ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Datasets(ImageOptions):
    """A split of a data set as ``datasets.load_dataset`` finds it, divided by ``seed``; no code from the hub is run.

    Images stay in the library's files, so they may be larger than memory.
    """

    path: str | Path
    """A name on the hub, "user/name", or a folder: of images, tables or tar files of webdataset (where x is "png" and c
    "cls"), or what ``save_to_disk`` wrote."""
    config: str | None = None
    """Which of its configurations, where there are several."""
    split: str = "train"
    """Which of its splits; "train+test" takes both."""
    download: bool = True
    """Whether to ask the hub for what is not on this machine."""
    x: str = "image"
    """The column of images."""
    c: str = ""
    """The column of the condition: class labels, numbers or words; none by default."""

    def data(self) -> Data:
        rows = self.rows()
        for name in (self.x, self.c):
            if name and name not in rows.column_names:
                raise ValueError(f"{self.path} has no column {name!r}{nearest(name, rows.column_names)}")
        kind = type(rows.features[self.x]).__name__
        require(kind == "Image", "data.x", self.x, f"a column of images, not of {kind}")
        c = self.conditions(rows) if self.c else ()
        images, notes = StoredImages(rows, self.x), [f"{len(rows)} images of {self.path}"]
        return self.data_of("datasets", self.path, images, images.in_colour(), notes, c)

    def rows(self) -> Any:
        """The rows of the split, as the library has them."""
        if importlib.util.find_spec("datasets") is None:
            raise ValueError("the data set 'datasets' needs the library datasets: pip install datasets")
        import datasets

        folder = Path(self.path).expanduser()
        try:
            if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
                found = datasets.load_from_disk(str(folder))
                return found[self.split] if isinstance(found, dict) else found
            name = str(folder.resolve()) if folder.exists() else str(self.path)
            with contextlib.nullcontext() if self.download else _offline():
                return datasets.load_dataset(name, self.config, split=self.split)
        except (OSError, ValueError, KeyError, ConnectionError, datasets.exceptions.DatasetsError) as error:
            cause = reason(error.__cause__ or error)
            raise ValueError(f"{self.path}, split {self.split!r}, cannot be read as a data set: {cause}") from error

    def conditions(self, rows: Any) -> np.ndarray:
        """The column of conditions; labels by the names that the data set has for them."""
        values = np.asarray(rows.with_format("numpy")[self.c][:])
        names = getattr(rows.features[self.c], "names", None)
        if names is not None and (values < 0).any():
            row = int((values < 0).argmax())
            raise ValueError(f"the column {self.c!r} has no label in row {row}; leave such rows out")
        return values if names is None else np.array(names)[values]


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Inside, the library takes from its cache what is there, and does not ask the hub."""
    from datasets import config

    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


class StoredImages(Chosen):
    """The images in the column ``name`` of ``rows``: bytes, or files."""

    def __init__(self, rows: Any, name: str):
        import datasets

        super().__init__(len(rows))
        self.rows, self.name = rows.select_columns([name]).cast_column(name, datasets.Image(decode=False)), name

    def at(self, position: int) -> Stored:
        stored = self.rows[position][self.name]

        def read() -> bytes:
            if stored["bytes"] is not None:
                return stored["bytes"]
            check_plain(Path(stored["path"]))
            return Path(stored["path"]).read_bytes()

        return Stored(f"row {position} of the column {self.name!r}", read)

    def in_colour(self) -> bool:
        """Whether any of some images is in colour, by their headers."""
        kinds = set()
        for index in np.linspace(0, len(self) - 1, min(len(self), LOOKED_AT)).astype(int).tolist():
            with contextlib.suppress(ValueError, OSError):  # when it is decoded, the next image takes its place
                kinds.add(read_kind(self[index]))
        return "RGB" in kinds

    def fingerprint(self) -> str:
        """SHA-256 of the number of bytes of each image, or of its path where its bytes are in a file of its own."""
        import pyarrow.compute

        sizes: list[int | str] = []
        for chunk in self.rows.with_format("arrow")[:].column(self.name).chunks:
            stored, path = (pyarrow.compute.struct_field(chunk, part) for part in ("bytes", "path"))
            both = zip(pyarrow.compute.binary_length(stored).to_pylist(), path.to_pylist(), strict=True)
            sizes += [name if size is None else size for size, name in both]
        return hashlib.sha256(repr(sizes).encode()).hexdigest()
