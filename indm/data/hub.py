"""Data sets of the Hugging Face hub, and those on disk that its package ``datasets`` reads."""

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from indm.data.base import Data, as_data, events_of_shape
from indm.data.cache import cache_folder
from indm.data.images import Stored
from indm.data.raw import height_and_width
from indm.data.stored import stored_images
from indm.files.plain import check_plain
from indm.messages import brief, nearest


@events_of_shape(
    lambda options: (None,) if options["size"] is None else (options["channels"], *height_and_width(options["size"]))
)
def load_hub(
    *,
    path: str | Path,
    config: str | None = None,
    split: str = "train",
    stream: int | None = None,
    download: bool = True,
    x: str | tuple[str, ...] = "image",
    c: str = "",
    size: int | str | list[int] | None = None,
    channels: int | None = None,
    resize: str = "bilinear",
    crop: bool | int = True,
    background: str = "white",
    levels: int | None = None,
    valid: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    centered: bool = True,
    flip: bool = False,
) -> Data:
    """A split of a data set as ``datasets.load_dataset`` finds it, divided by ``seed``.

    Images stay in files that are mapped into memory, so they may be larger than that; columns of numbers are read. What
    is trained on is on disk, so that a run can be resumed exactly: the whole split, or as many rows as ``stream`` says.
    No code from the hub is run.

    Args:
        path: a name on the hub, "user/name", or a folder: of images or tables, or what ``save_to_disk`` wrote.
        config: which of its configurations, where there are several.
        split: which of its splits; "train+test" takes both.
        stream: take the first so many rows of the split, without a download of the rest. They are kept in the cache
            folder ($INDM_DATA), and read from there next time, whatever has become of the data set (not those of what
            ``save_to_disk`` wrote, which are on disk anyway). By default all.
        download: whether to ask the hub for what is not on this machine.
        x: the column of images; or columns of numbers, which make vectors.
        c: the column of the condition: class labels, numbers or words; none by default.
        size: of images: side in pixels of the square, or height x width: "24x48" or [24, 48].
        channels: of images: 1 (grey) or 3 (RGB), by default 3 where any of the first is in colour.
        resize: how: "bilinear", "bicubic", "lanczos", …; antialiased.
        crop: true cuts out the largest rectangle in the middle with the aspect ratio of ``size``, a number the one with
            that shorter side; false squeezes.
        background: behind transparent pixels: "white", "black", "#rrggbb" or a colour that Pillow's ImageColor knows.
        levels: of columns of whole numbers that are grey levels: how many.
        valid: fraction of the rows for validation.
        test: fraction of the rows for the test.
        seed: of the division.
        limit: training examples to keep, the first ones; all by default.
        centered: whether the model sees grey levels in [−1, 1]; else in [0, 1].
        flip: whether training flips images horizontally at random.

    Raises:
        ValueError: no such data set, column or option; ``datasets`` is not installed.
    """
    rows = _rows(str(path), config, split, stream, download)
    names = (x,) if isinstance(x, str) else tuple(x)
    for name in (*names, *((c,) if c else ())):
        if name not in rows.column_names:
            raise ValueError(f"{path} has no column {name!r}{nearest(name, rows.column_names)}")
        _check_usable(rows.features[name], name, path, is_x=name in names)
    conditions = _conditions(rows, c) if c else None
    kind = rows.features[names[0]]
    if type(kind).__name__ != "Image":
        if size is not None:
            raise ValueError(f"size is for images, and the column {names[0]!r} of {path} holds {brief(kind)}")
        table = np.column_stack([np.asarray(rows.with_format("numpy")[name][:]) for name in names])
        return as_data(
            table, name="datasets", levels=levels, valid=valid, test=test, seed=seed, limit=limit, centered=centered,
            flip=flip, where=path, c=False if conditions is None else conditions,
        )  # fmt: skip
    if len(names) > 1 or size is None:
        raise ValueError(
            f"the column {names[0]!r} of {path} holds images, which stand alone in data.x and need data.size"
        )
    images = HubImages(rows, names[0], _places(Path(path).expanduser()))
    return stored_images(
        images, [] if conditions is None else conditions, "datasets", path, images.fingerprint(), size=size,
        channels=channels, resize=resize, crop=crop, background=background, valid=valid, test=test, seed=seed,
        limit=limit, centered=centered, flip=flip,
    )  # fmt: skip


def _check_usable(kind: Any, name: str, path: str | Path, *, is_x: bool) -> None:
    """ValueError for a column of media: to decode them, the library opens whatever file a row names."""
    from datasets.features.features import require_decoding

    if require_decoding(kind) and not (is_x and type(kind).__name__ == "Image"):
        raise ValueError(
            f"x must be images or numbers, and c labels or numbers; {name!r} of {path} holds {brief(kind)}"
        )


def _places(folder: Path) -> list[Path]:
    """Where the files of a data set may lie: in ``folder``, or in the caches of what is downloaded from the hub."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    return [folder.resolve()] if folder.exists() else [Path(datasets.config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE)]


def _own_file(path: str, places: Sequence[Path]) -> Path:
    """The file of a data set that a row names; a relative path begins in the first of the ``places``.

    Raises:
        ValueError: it lies in none of them, or is not a regular file.
    """
    file = Path(os.path.normpath(places[0] / path))
    if not any(file.is_relative_to(place) for place in places):
        raise ValueError(f"{brief(path)} lies outside of the data set in {places[0]}, whose own files alone are read")
    check_plain(file)
    return file


def _rows(path: str, config: str | None, split: str, stream: int | None, download: bool) -> Any:
    """The rows of a split, or the first ``stream`` of them.

    Raises:
        ValueError: there is no such data set or split; ``datasets`` is not installed.
    """
    if importlib.util.find_spec("datasets") is None:
        raise ValueError("the data set 'datasets' needs the library datasets: pip install 'indm[datasets]'")
    import datasets

    if stream is not None and stream < 1:
        raise ValueError(f"stream must be at least 1, or none for all rows, got {stream}")
    folder = Path(path).expanduser()
    try:
        if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
            found = datasets.load_from_disk(str(folder))
            rows = found[split] if isinstance(found, dict) else found
            return rows if stream is None else rows.select(range(min(stream, len(rows))))
        local = str(folder.resolve())
        with nullcontext() if download else _offline():
            if stream is None:
                return datasets.load_dataset(local if folder.exists() else path, config, split=split)
            is_local = folder.exists() or _kept(local, config, split, stream).exists()
            return _head(local if is_local else path, config, split, stream, download or is_local)
    except (OSError, ValueError, KeyError, ConnectionError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{path}, split {split!r}, cannot be read as a data set: {brief(error.__cause__ or error)}"
        ) from error


@contextmanager
def _offline() -> Iterator[None]:
    """Inside, the library ``datasets`` takes from its cache what is there, and does not ask the hub."""
    from datasets import config

    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _kept(name: str, config: str | None, split: str, count: int) -> Path:
    """Where the first ``count`` rows of a split are kept."""
    which = hashlib.sha256(repr((name, config, split, count)).encode()).hexdigest()[:16]
    return cache_folder() / "datasets" / which


def _head(name: str, config: str | None, split: str, count: int, read: bool) -> Any:
    """The first ``count`` rows of a split, which are ``read`` from it as a stream where they are not kept."""
    import datasets

    place = _kept(name, config, split, count)
    if not read and not place.exists():
        raise ValueError(f"its first {count} rows are not on this machine, and download is false")
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not place.exists():
            head = datasets.load_dataset(name, config, split=split, streaming=True).take(count)
            head = head.decode(False) if head.features else head  # those of tables are not known before they are read
            with tempfile.TemporaryDirectory(dir=place.parent, ignore_cleanup_errors=True) as folder:
                own = partial(map, partial(_own_row, name=name), head)
                rows = datasets.Dataset.from_generator(own, features=head.features, cache_dir=folder)
                rows.save_to_disk(f"{folder}/rows")
                Path(folder, "rows").replace(place)
    return datasets.load_from_disk(str(place))


def _own_row(row: Any, name: str) -> Any:
    """``row`` of a stream; ValueError where it names a file of others, which would be read when the row is kept."""
    parts = row.values() if isinstance(row, dict) else row if isinstance(row, list) else ()
    for part in parts:
        _own_row(part, name)
    if isinstance(row, dict) and row.keys() == {"bytes", "path"} and row["bytes"] is None and row["path"]:
        file = row["path"].rpartition("::")[2]  # of the archive in which it is
        if not file.startswith(f"hf://datasets/{name}@"):
            _own_file(file, [Path(name)])
    return row


def _conditions(rows: Any, c: str) -> np.ndarray:
    """A column of conditions; labels by the names that the data set has for them."""
    values = np.asarray(rows.with_format("numpy")[c][:])
    names = getattr(rows.features[c], "names", None)
    if names is not None and (values < 0).any():
        raise ValueError(f"the column {c!r} has no label in row {int((values < 0).argmax())}; leave such rows out")
    return values if names is None else np.array(names)[values]


class HubImages(Sequence[Stored]):
    """The images in the column ``name`` of ``rows``: bytes, or files in one of the ``places``."""

    def __init__(self, rows: Any, name: str, places: Sequence[Path]):
        import datasets

        self.rows, self.name = rows.select_columns([name]).cast_column(name, datasets.Image(decode=False)), name
        self.places = places

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        stored = self.rows[int(index)][self.name]

        def read() -> bytes:
            if stored["bytes"] is not None:
                return stored["bytes"]
            return _own_file(stored["path"], self.places).read_bytes()

        return Stored(f"row {index} of the column {self.name!r}", read)

    def fingerprint(self) -> str:
        """SHA-256 of the number of bytes of each image, or of its path where its bytes are in a file of its own."""
        import pyarrow.compute

        sizes: list[int | str] = []
        for chunk in self.rows.with_format("arrow")[:].column(self.name).chunks:
            stored, path = (pyarrow.compute.struct_field(chunk, part) for part in ("bytes", "path"))
            both = zip(pyarrow.compute.binary_length(stored).to_pylist(), path.to_pylist(), strict=True)
            sizes += [name if size is None else size for size, name in both]
        return hashlib.sha256(repr(sizes).encode()).hexdigest()
