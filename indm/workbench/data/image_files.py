"""Image files as a data set: one class of options, and images decoded when they are asked for."""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from indm.checks import nearest, reason
from indm.files.memory import most_memory
from indm.scaling import Scaling
from indm.workbench.data.base import Data
from indm.workbench.data.images import RESIZE_MODES, Stored, colour_of, fitted, read_image
from indm.workbench.data.raw import check_size, height_and_width, words_of
from indm.workbench.data.splits import condition_fields, counts, describe_split, split

MOST_IN_A_ROW = 100  # unreadable images one after the other, before that is an error
MOST_KEPT = 512 * 2**20  # bytes of decoded images that stay in memory


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What is made of each image, and how images are split; :func:`indm.workbench.data.folder.load_folder` explains.

    Raises:
        ValueError: an option out of range, or an image that memory cannot hold.
    """

    size: int | str | list[int]
    channels: int | None = None
    resize: str = "bilinear"
    background: str = "white"
    crop: bool | int = True
    valid: float = 0.1
    test: float = 0.1
    seed: int = 0
    limit: int | None = None
    centered: bool = True
    flip: bool = False

    def __post_init__(self) -> None:
        check_decoded((self.channels or 3, *self.sides))
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels}")
        if self.resize not in RESIZE_MODES:
            raise ValueError(f"unknown resize {self.resize!r}{nearest(self.resize, RESIZE_MODES)}")
        colour_of(self.background)
        if self.crop is not True and self.crop is not False:
            check_size(self.crop)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return height_and_width(self.size)

    def split(self, n: int) -> dict[str, Tensor]:
        """Which of ``n`` images are in which split, see :func:`indm.workbench.data.splits.split`."""
        return split(n, **counts(n, self.valid, self.test), seed=self.seed, limit=self.limit)

    @property
    def note(self) -> str:
        """What is done to each image, in words."""
        how = "squashed" if self.crop is False else "centre-cropped"
        return f"{how}, resized to {words_of(self.sides)} ({self.resize}), on {self.background}"

    def data_of(
        self,
        name: str,
        where: str | Path,
        images: Any,
        colour: bool,
        notes: list[str],
        labels: Any = (),
        classes: Sequence[str] = (),
        grey: Tensor | None = None,
    ) -> Data:
        """The data set ``name`` of the ``images`` in ``where``.

        Args:
            images: a sequence of paths or :class:`~indm.workbench.data.images.Stored` with ``select`` and
                ``fingerprint``.
            colour: whether any of them is in colour.
            labels: the class of each, in the order of ``classes`` or of the alphabet; none by default.
            grey: bool, (n,), which are made grey, see :class:`ImageFiles`.
        """
        shape = (self.channels or (3 if colour else 1), *self.sides)
        parts = self.split(len(images))
        sets = {
            part: ImageFiles(
                images.select(index.numpy()), shape, self.resize, self.crop,
                self.background, None if grey is None else grey[index],
            )
            for part, index in parts.items()
        }  # fmt: skip
        about = condition_fields(labels, parts, where, classes) if len(labels) else {}
        about |= {"notes": [*notes, describe_split(parts, self.seed)], "fingerprint": images.fingerprint()}
        return data_of_images(name, sets, self.centered, self.flip, **about)


def data_of_images(name: str, sets: dict[str, Any], centered: bool, flip: bool, **about: Any) -> Data:
    """The splits ``sets`` of :class:`ImageFiles` as a :class:`Data`, with what else is known ``about`` them."""
    scaling, shape = Scaling.images(256, centered), sets["train"].shape
    return Data(name=name, scaling=scaling, shape=shape, flip=flip, **sets, **about)


def check_decoded(shape: tuple[int, int, int]) -> None:
    """ValueError where memory cannot hold one image, as Pillow has it (4 bytes a pixel), as bytes and as floats."""
    channels, *sides = shape
    needed, most = math.prod(sides) * (4 + 5 * channels), most_memory()
    if needed > most:
        raise ValueError(
            f"size must be such that memory holds an image: {'×'.join(map(str, sides))} pixels take "
            f"{needed / 2**30:,.1f} GiB, and there are {most / 2**30:,.1f} GiB"
        )


class ImageFiles(Dataset):
    """Images decoded from ``files`` when asked for: uint8 of ``shape``.

    An image that cannot be read is replaced by the next one that can, always the same. The first is warned of. Where
    all images together are at most :data:`MOST_KEPT`, each is decoded once in each process: decoding a photograph takes
    longer than a step of training.

    Args:
        files: paths, a list or :class:`indm.workbench.data.folder.Files`; or images inside of other files.
        shape: (channels, height, width) of the result.
        resize: Pillow's interpolation, antialiased.
        crop: True takes the largest centred rectangle with the aspect ratio of the result, an integer the one whose
            shorter side it is (at most the largest), False the whole image without keeping its aspect ratio.
        background: the colour on which transparency is composited, see :func:`indm.workbench.data.images.colour_of`.
        grey: bool, one a file: which are made grey, also where the result has three channels.

    Attributes:
        unreadable: bool, one an image, shared by all worker processes: which ones were replaced.

    Raises:
        ValueError: the background is no colour; on reading where a hundred images in a row cannot be read.

    Example: a white picture of 20 × 10 pixels in colour, as 2 × 2 in grey.

        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "white.png"
        ...     Image.new("RGB", (20, 10), "white").save(path)
        ...     ImageFiles([path], (1, 2, 2))[0].tolist()
        [[[255, 255], [255, 255]]]
    """

    def __init__(
        self,
        files: Sequence[Path] | Sequence[Stored],
        shape: tuple[int, int, int],
        resize: str = "bilinear",
        crop: bool | int = True,
        background: str = "white",
        grey: Tensor | None = None,
    ):
        colour_of(background)
        self.files, self.shape, self.grey = files, shape, grey
        self.resize, self.crop, self.background = resize, crop, background
        self.unreadable = torch.zeros(len(files), dtype=torch.bool).share_memory_()
        self.keeps, self.made_shape = len(files) * math.prod(shape) <= MOST_KEPT, tuple(shape)
        self.is_kept = torch.zeros(len(files), dtype=torch.bool)

    @functools.cached_property
    def kept(self) -> Tensor:
        """What is made of each file that has been read, where memory keeps it."""
        return torch.empty(len(self.files), *self.made_shape, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self._of_file(range(len(self))[index]).clone()

    def _of_file(self, index: int) -> Tensor:
        """What is made of a file: kept, or read now."""
        if not self.keeps:
            return self._read(index)
        if not self.is_kept[index]:
            self.kept[index] = self._read(index)
            self.is_kept[index] = True
        return self.kept[index]

    def _read(self, index: int) -> Tensor:
        """What is made of a file, or of the first one after it that can be read."""
        tries = min(len(self.files), MOST_IN_A_ROW)
        for position in ((index + further) % len(self.files) for further in range(tries)):
            try:
                image = read_image(self.files[position], self.background)
            except (ValueError, OSError) as error:
                self._skip(position, error)
                continue
            return self._made_of(image, position)
        raise ValueError(f"{tries} images in a row cannot be read, beginning with {self.files[index]}")

    def _made_of(self, image: Image.Image, position: int) -> Tensor:
        """What the data set has of the decoded file at ``position``."""
        image = image.convert("L") if self.grey is not None and self.grey[position] else image
        return fitted(image, self.shape, self.resize, self.crop)

    def _skip(self, position: int, error: Exception) -> None:
        if not bool(self.unreadable.any()):
            warnings.warn(
                f"{self.files[position]} cannot be read ({reason(error)}): the image after it takes its place, "
                "here and wherever that happens again",
                stacklevel=3,
            )
        self.unreadable[position] = True


def count_unreadable(dataset: object, add_up: Callable[[Tensor], Tensor] = lambda unreadable: unreadable) -> int:
    """How many images of a data set could not be read when they were asked for, since this process began."""
    return int((add_up(dataset.unreadable.int()) > 0).sum()) if isinstance(dataset, ImageFiles) else 0
