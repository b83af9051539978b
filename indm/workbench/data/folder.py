"""Images as data: folders of files, and data sets of the library ``datasets``."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from indm.checks import reason, require
from indm.files import check_plain
from indm.workbench.data.base import Data
from indm.workbench.data.images import IMAGE_SUFFIXES, ImageOptions


def list_images(folder: Path, below: Sequence[str] = ("",)) -> list[Path]:
    """The images in the folders ``below`` one, by their suffixes, sorted and without hidden files.

    Raises:
        ValueError: one of them is not a folder, or there are no images.
    """
    found: list[Path] = []
    for part in below:
        top = folder / part
        if not top.is_dir():
            raise ValueError(f"path must be a folder, got '{top}'")
        for path in sorted(top.rglob("*")):
            is_hidden = any(name.startswith(".") for name in path.relative_to(top).parts)
            if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden and path.is_file():
                found.append(path)
    if not found:
        raise ValueError(f"path must hold images, png, jpeg, webp, bmp, …, got '{folder}'")
    return found


def fingerprint_of(files: Sequence[Path], folder: Path) -> str:
    """SHA-256 of the paths below the folder."""
    paths = "\0".join(str(file.relative_to(folder)) for file in files)
    return hashlib.sha256(paths.encode(errors="surrogateescape")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Folder(ImageOptions):
    """The images in a folder and its subfolders, except hidden files, split by ``seed``.

    They are read when they are needed, and turned upright by their EXIF data. An image that cannot
    be read is replaced by the next one.
    """

    path: str | Path
    """The folder."""
    classes: bool | list[str] = False
    """Whether each folder in it is a class of that name; or the names of the folders that are, and
    then no other is read.
    """
    groups: Literal["subfolder", "prefix", None] = None
    """Images that must stay in one split, such as frames of a film: those in one "subfolder" (of the
    folder, or of its class), or with one "prefix", the name up to the first "_". Standard errors
    are then over groups.
    """

    def data(self) -> Data:
        folder = Path(self.path).expanduser()
        names = [] if isinstance(self.classes, bool) else self.classes
        files = list_images(folder, names or ("",))
        labels = [class_of(file, folder, names) for file in files] if self.classes else ()
        groups = self.grouped(files, folder, labels)
        notes = [f"read from {folder}"]
        return self.data_of(
            "folder", folder, files, fingerprint_of(files, folder), notes, labels, names, groups
        )

    def grouped(self, files: Sequence[Path], folder: Path, labels: Sequence[str]) -> list[str]:
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
                raise ValueError(
                    f"data.groups must be prefix, or each image in {what}: '{path}' is in none"
                )
        return [
            Path(*path.parts[:depth]).as_posix() for path, depth in zip(below, depths, strict=True)
        ]


def class_of(file: Path, folder: Path, names: Sequence[str]) -> str:
    """The one of the folders ``names`` that a file is in; without names, the first below ``folder``."""
    below = file.relative_to(folder)
    if len(below.parts) == 1:
        raise ValueError(
            f"data.classes must be false, or each image in the folder of its class: '{below}' is in none"
        )
    return next((name for name in names if below.is_relative_to(name)), below.parts[0])


# ── The library ``datasets``


@dataclass(frozen=True, kw_only=True)
class Datasets(ImageOptions):
    """The images of a data set of the library ``datasets``, divided by ``seed``.

    Images stay in the library's files, so they may be larger than memory. No code from the hub is
    run.
    """

    path: str | Path
    """A name on the hub, "user/name", or a folder of images, tables or tar files of webdataset (with
    x "png" and c "cls").
    """
    config: str | None = None
    """Its configuration, if there are several."""
    split: str = "train"
    """Its split; "train+test" takes both."""
    download: bool = True
    """Whether to fetch from the hub what is not on this machine."""
    x: str = "image"
    """The column of images."""
    c: str = ""
    """The column of the condition: class labels, numbers or words; none by default."""

    def data(self) -> Data:
        import datasets

        rows = self.rows().select_columns([name for name in (self.x, self.c) if name])
        kind = type(rows.features[self.x]).__name__
        require(kind == "Image", "data.x", self.x, f"a column of images, not of {kind}")
        c = self.conditions(rows) if self.c else ()
        stored = rows.select_columns([self.x]).cast_column(self.x, datasets.Image(decode=False))
        images = [Row(stored, self.x, position) for position in range(len(stored))]
        fingerprint = fingerprint_of_column(stored, self.x)
        notes = [f"{len(rows)} images of {self.path}"]
        return self.data_of("datasets", self.path, images, fingerprint, notes, c)

    def rows(self) -> Any:
        """The rows of the split, as the library has them."""
        import datasets

        folder = Path(self.path).expanduser()
        name = str(folder.resolve()) if folder.exists() else str(self.path)
        local = datasets.DownloadConfig(local_files_only=not self.download)
        try:
            return datasets.load_dataset(name, self.config, split=self.split, download_config=local)
        except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
            cause = reason(error.__cause__ or error)
            raise ValueError(
                f"{self.path}, split {self.split!r}, cannot be read as a data set: {cause}"
            ) from error

    def conditions(self, rows: Any) -> np.ndarray:
        """The column of conditions; labels by their names in the data set."""
        values = np.asarray(rows.with_format("numpy")[self.c][:])
        names = getattr(rows.features[self.c], "names", None)
        if names is not None and (values < 0).any():
            row = int((values < 0).argmax())
            raise ValueError(f"the column {self.c!r} has no label in row {row}")
        return values if names is None else np.array(names)[values]


@dataclass(frozen=True)
class Row:
    """The image in a column of a row, stored as bytes or as a file."""

    rows: Any
    column: str
    position: int

    def __str__(self) -> str:
        return f"row {self.position} of the column {self.column!r}"

    def read(self) -> bytes:
        stored = self.rows[self.position][self.column]
        if stored["bytes"] is not None:
            return stored["bytes"]
        check_plain(Path(stored["path"]))
        return Path(stored["path"]).read_bytes()


def fingerprint_of_column(rows: Any, name: str) -> str:
    """SHA-256 of the number of bytes of each image, or of the path of its file."""
    import pyarrow.compute

    sizes: list[int | str] = []
    for chunk in rows.with_format("arrow")[:].column(name).chunks:
        stored, path = (pyarrow.compute.struct_field(chunk, part) for part in ("bytes", "path"))
        both = zip(pyarrow.compute.binary_length(stored).to_pylist(), path.to_pylist(), strict=True)
        sizes += [place if size is None else size for size, place in both]
    return hashlib.sha256(repr(sizes).encode()).hexdigest()
