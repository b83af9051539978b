"""Data sets of the Hugging Face hub, and those on disk that its package ``datasets`` reads."""

import contextlib
import copy
import hashlib
import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from indm.checks import brief, nearest, reason
from indm.files.untrusted import check_plain
from indm.workbench.data.base import Data, as_data
from indm.workbench.data.image_files import ImageOptions
from indm.workbench.data.images import Stored, read_kind

LOOKED_AT = 32  # images whose headers decide on colour


def load_hub(
    *,
    path: str | Path,
    size: int | str | list[int] | None = None,
    channels: int | None = None,
    resize: str = "bilinear",
    background: str = "white",
    crop: bool | int = True,
    valid: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    centered: bool = True,
    flip: bool = False,
    config: str | None = None,
    split: str = "train",
    download: bool = True,
    x: str | tuple[str, ...] = "image",
    c: str = "",
    levels: int | None = None,
) -> Data:
    """A split of a data set as ``datasets.load_dataset`` finds it, divided by ``seed``.

    Images stay in files that are mapped into memory, so they may be larger than that; columns of numbers are read. The
    whole split is on disk, so that a run can be resumed exactly. No code from the hub is run. The headers of some
    images decide whether any is in colour.

    Args:
        path: a name on the hub, "user/name", or a folder: of images, tables or tar files of webdataset (where x is
            "png" and c "cls"), or what ``save_to_disk`` wrote.
        size: side in pixels of the square to which all images are brought, or height x width: "24x48" or [24, 48].
            Columns of numbers need none.
        channels: 1 (grey) or 3 (RGB), by default 3 where any image is in colour.
        resize: how: "bilinear", "bicubic", "lanczos", …; antialiased.
        background: behind transparent pixels: "white", "black", "#rrggbb" or a colour that Pillow's ImageColor knows.
        crop: true cuts out the largest rectangle in the middle with the aspect ratio of ``size``, a number the one with
            that shorter side; false squeezes.
        valid: fraction of the images for validation.
        test: fraction of the images for the test.
        seed: of the split.
        limit: training examples to keep, the first ones; all by default.
        centered: whether the model sees grey levels in [−1, 1]; else in [0, 1].
        flip: whether training flips images horizontally at random.
        config: which of its configurations, where there are several.
        split: which of its splits; "train+test" takes both.
        download: whether to ask the hub for what is not on this machine.
        x: the column of images; or columns of numbers, which make vectors.
        c: the column of the condition: class labels, numbers or words; none by default.
        levels: of columns of whole numbers that are grey levels: how many.

    Raises:
        ValueError: no such data set, column or option; ``datasets`` is not installed.
    """
    rows = _rows(str(path), config, split, download)
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
            table, name="datasets", levels=levels, where=path, c=False if conditions is None else conditions,
            valid=valid, test=test, seed=seed, limit=limit, centered=centered, flip=flip,
        )  # fmt: skip
    if len(names) > 1 or size is None:
        raise ValueError(
            f"the column {names[0]!r} of {path} holds images, which stand alone in data.x and need data.size"
        )
    options = ImageOptions(
        size=size, channels=channels, resize=resize, background=background, crop=crop, valid=valid, test=test,
        seed=seed, limit=limit, centered=centered, flip=flip,
    )  # fmt: skip
    images = HubImages(rows, names[0], _places(Path(path).expanduser()))
    if not len(images):
        raise ValueError(f"{path} holds no images")
    looked_at = np.linspace(0, len(images) - 1, min(len(images), LOOKED_AT)).astype(int)
    colour = channels is None and "RGB" in _kinds(images[i] for i in looked_at.tolist())
    notes, labels = [f"{len(images)} images of {path}, {options.note}"], () if conditions is None else conditions
    return options.data_of("datasets", path, images, colour, notes, labels)


def _kinds(images: Iterable[Stored]) -> set[str]:
    """The kinds of the images, see :func:`read_kind`; :class:`ImageFiles` reports those that cannot be read."""
    kinds = set()
    for image in images:
        with contextlib.suppress(ValueError, OSError):
            kinds.add(read_kind(image))
    return kinds


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
    """The file of a data set that a row names; a relative path begins in the first of the ``places``."""
    file = Path(os.path.normpath(places[0] / path))
    if not any(file.is_relative_to(place) for place in places):
        raise ValueError(f"{brief(path)} lies outside of the data set in {places[0]}, whose own files alone are read")
    check_plain(file)
    return file


def _rows(path: str, config: str | None, split: str, download: bool) -> Any:
    """The rows of a split."""
    if importlib.util.find_spec("datasets") is None:
        raise ValueError("the data set 'datasets' needs the library datasets: pip install datasets")
    import datasets

    folder = Path(path).expanduser()
    try:
        if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
            found = datasets.load_from_disk(str(folder))
            return found[split] if isinstance(found, dict) else found
        name = str(folder.resolve()) if folder.exists() else path
        with nullcontext() if download else _offline():
            return datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, KeyError, ConnectionError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{path}, split {split!r}, cannot be read as a data set: {reason(error.__cause__ or error)}"
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
        self.places, self.chosen = places, np.arange(len(rows))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index):
        row = int(self.chosen[index])
        stored = self.rows[row][self.name]

        def read() -> bytes:
            if stored["bytes"] is not None:
                return stored["bytes"]
            return _own_file(stored["path"], self.places).read_bytes()

        return Stored(f"row {row} of the column {self.name!r}", read)

    def select(self, index: np.ndarray) -> "HubImages":
        """Those at the positions ``index``."""
        chosen = copy.copy(self)
        chosen.chosen = self.chosen[index]
        return chosen

    def fingerprint(self) -> str:
        """SHA-256 of the number of bytes of each image, or of its path where its bytes are in a file of its own."""
        import pyarrow.compute

        sizes: list[int | str] = []
        for chunk in self.rows.with_format("arrow")[:].column(self.name).chunks:
            stored, path = (pyarrow.compute.struct_field(chunk, part) for part in ("bytes", "path"))
            both = zip(pyarrow.compute.binary_length(stored).to_pylist(), path.to_pylist(), strict=True)
            sizes += [name if size is None else size for size, name in both]
        return hashlib.sha256(repr(sizes).encode()).hexdigest()
