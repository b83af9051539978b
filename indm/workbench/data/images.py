"""Image files: how they are read, cut and resized, and made into a data set.

Only the formats of :data:`FORMATS` are opened, whatever a file is called: none of their decoders
runs another program, as that of PostScript would.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Num
from PIL import Image, ImageColor, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from indm.checks import counted, reason
from indm.files import check_plain
from indm.scaling import Scaling
from indm.workbench.data.base import Data, DividedLoader, condition_fields, describe_split
from indm.workbench.data.examples import check_size, height_and_width, words_of

IMAGE_SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
RESIZE_MODES = {mode.name.lower(): mode for mode in Image.Resampling}
ResizeMode = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
LOOKED_AT = 32  # images of a data set whose headers decide on colour
MOST_IN_A_ROW = 100  # unreadable images in a row that are an error
MOST_KEPT = 512 * 2**20  # bytes of decoded images that stay in memory


class Stored(Protocol):
    """An image file inside a larger file; messages call it by its ``str``."""

    def read(self) -> bytes: ...


Source = Path | Stored


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """Open an image by its header; every failure inside is a ValueError or an OSError."""
    try:
        if isinstance(source, Path):
            check_plain(source)
        file = source if isinstance(source, Path) else io.BytesIO(source.read())
        with Image.open(file, formats=FORMATS) as image:
            yield image
    except (ValueError, OSError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise ValueError(reason(error)) from error


def _kind(image: Image.Image) -> str:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no grey levels")
    return "L" if image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I") else "RGB"


def in_colour(images: Sequence[Source]) -> bool:
    """Whether any of :data:`LOOKED_AT` images is in colour, by their headers."""
    kinds = set()
    for index in np.linspace(0, len(images) - 1, min(len(images), LOOKED_AT)).astype(int).tolist():
        # one that cannot be read will be replaced
        with contextlib.suppress(ValueError, OSError), _opened(images[index]) as image:
            kinds.add(_kind(image))
    return "RGB" in kinds


def colour_of(background: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 … 255, of a colour of Pillow's ImageColor, such as "#rrggbb"."""
    red, green, blue = ImageColor.getrgb(background)[:3]
    return red, green, blue


def read_image(source: Source, background: str = "white") -> Image.Image:
    """An image in 8-bit grey ("L") or "RGB", turned upright by its EXIF data.

    16-bit levels are scaled. Transparency is composited on ``background``; on a coloured one the
    result is RGB.
    """
    colour = colour_of(background)
    with _opened(source) as image:
        kind = _kind(image)
        image.load()  # an error if it is truncated
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):
            levels = np.asarray(image)
            if levels.min() < 0 or levels.max() > 65535:
                raise ValueError("integer pixels outside 0 … 65535")
            if image.mode == "I" and image.format == "TIFF" and levels.max() < 256:
                raise ValueError(
                    "32-bit pixels that are all below 256, which may be 8-bit levels; save them as 8 bits"
                )
            return Image.fromarray((levels >> 8).astype(np.uint8))
        if image.has_transparency_data:
            kind = kind if len(set(colour)) == 1 else "RGB"
            paper = Image.new("RGBA", image.size, colour)
            image = Image.alpha_composite(paper, image.convert("RGBA"))
        return image.convert(kind)


def part(image: Image.Image, sides: tuple[int, int], crop: bool | int = True) -> Image.Image:
    """The part of ``image`` that is resized to ``sides``, a height and a width."""
    if crop is False:
        return image
    largest = min(image.height / sides[0], image.width / sides[1])
    scale = largest if crop is True else min(crop / min(sides), largest)
    height, width = (max(1, round(side * scale)) for side in sides)
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def fitted(
    image: Image.Image,
    shape: tuple[int, int, int],
    resize: str = "bilinear",
    crop: bool | int = True,
) -> Tensor:
    """An image as uint8 of ``shape``, (channels, height, width), cut and resized."""
    channels, *sides = shape
    image = part(image.convert("L" if channels == 1 else "RGB"), (sides[0], sides[1]), crop)
    return pixels_of(image.resize(sides[::-1], RESIZE_MODES[resize]))


class Example(NamedTuple):
    """One example in data units, (C, H, W) or (D,), and a note on how it was changed."""

    pixels: Num[Tensor, "*event"]
    note: str = ""


def read_example(file: Path, shape: tuple[int, ...], levels: int | None, data: dict) -> Example:
    """An image file as an example for a model of images of this shape and number of grey levels.

    ``data`` is the ``[data]`` table of a run. It says how images of another size are cut and
    resized, by default to the largest centred part with the model's aspect ratio, and the
    ``background`` of transparent ones, by default white.
    """
    channels, height, width = shape
    image = read_image(file, data.get("background", "white"))
    crop = image.size != (width, height) and data.get("crop", True)
    pixels = fitted(image, (channels, height, width), data.get("resize", "bilinear"), crop)
    note = "" if image.size == (width, height) else f"resized from {image.width}×{image.height}"
    return Example((pixels.double() * ((levels or 256) - 1) / 255).round().to(torch.uint8), note)


def pixels_of(image: Image.Image) -> Tensor:
    """The bytes of an image in grey or RGB, (channels, height, width)."""
    return torch.from_numpy(np.array(image)).view(image.height, image.width, -1).permute(2, 0, 1)


# ── As data


@dataclass(frozen=True, kw_only=True)
class ImageOptions(DividedLoader):
    """Options for the preparation of each image of a data set."""

    size: int | str | list[int]
    """Side in pixels of the square to which all images are brought, or height x width: "24x48" or
    [24, 48].
    """
    channels: Literal[1, 3] | None = None
    """1 (grey) or 3 (RGB); by default 3 if one of 32 images is in colour."""
    resize: ResizeMode = "bilinear"
    """The filter, which is antialiased."""
    background: str = "white"
    """The colour behind transparent pixels: "white", "#rrggbb" or another one of Pillow's ImageColor."""
    crop: bool | int = True
    """True cuts out the largest rectangle in the middle with the aspect ratio of ``size``. A number
    cuts out the one with that shorter side. False squeezes the image.
    """

    def __post_init__(self) -> None:
        height_and_width(self.size)
        colour_of(self.background)
        if self.crop is not True and self.crop is not False:
            check_size(self.crop)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return height_and_width(self.size)

    def data_of(
        self,
        name: str,
        where: str | Path,
        images: Sequence[Source],
        fingerprint: str,
        notes: list[str],
        labels: Any = (),
        classes: Sequence[str] = (),
        groups: Sequence[str] = (),
    ) -> Data:
        """The data set of ``images``, with the labels and groups of each if there are any."""
        shape = (self.channels or (3 if in_colour(images) else 1), *self.sides)
        parts = self.divided(len(images), groups, labels)
        sets = {
            part: ImageFiles(
                [images[i] for i in index.tolist()], shape, self.resize, self.crop, self.background
            )
            for part, index in parts.items()
        }
        how = "squashed" if self.crop is False else "centre-cropped"
        how += f", resized to {words_of(self.sides)} ({self.resize}), on {self.background}"
        about = condition_fields(labels, parts, where, classes) if len(labels) else {}
        names, group = np.unique(np.asarray(groups), return_inverse=True)
        by = f"of {counted(len(names), 'group')} " if groups else ""
        about["notes"] = [*notes, how, describe_split(parts, self.seed, by)]
        about["fingerprint"] = fingerprint
        if groups:
            numbers = torch.from_numpy(group)
            about["groups"] = {part: numbers[index] for part, index in parts.items()}
        return data_of_images(name, sets, self.centered, self.flip, **about)


def data_of_images(
    name: str, sets: dict[str, Any], centered: bool, flip: bool, **about: Any
) -> Data:
    """A :class:`Data` of splits of :class:`ImageFiles`, with other fields ``about`` them."""
    scaling, shape = Scaling.images(256, centered), sets["train"].shape
    return Data(name=name, scaling=scaling, shape=shape, flip=flip, **sets, **about)


class ImageFiles(Dataset):
    """A data set of image files, decoded when they are needed, as uint8 of ``shape``.

    An image that cannot be read is replaced by the next one that can; a warning names the first. If
    all images together take at most :data:`MOST_KEPT` bytes, each is decoded once in each process:
    decoding a photograph takes longer than a step of training.

    Args:
        files: paths, or images inside other files.
        shape: (channels, height, width) of the result.
        resize, crop, background: as in :class:`ImageOptions`; an integer ``crop`` is at most the
            largest rectangle's.

    Attributes:
        unreadable: whether each image was replaced, shared by all worker processes.

    Raises:
        ValueError: the background is not a colour, or a hundred images in a row cannot be read.

    Example: a white picture of 20 × 10 pixels in colour as 2 × 2 pixels in grey.

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
        files: Sequence[Source],
        shape: tuple[int, int, int],
        resize: str = "bilinear",
        crop: bool | int = True,
        background: str = "white",
    ):
        colour_of(background)
        self.files, self.shape = files, shape
        self.resize = resize
        self.crop = crop
        self.background = background
        self.unreadable = torch.zeros(len(files), dtype=torch.bool).share_memory_()
        self.keeps, self.kept = len(files) * math.prod(shape) <= MOST_KEPT, dict[int, Tensor]()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self._of_file(range(len(self))[index]).clone()

    def _of_file(self, index: int) -> Tensor:
        """The pixels of a file, or of the next one that can be read; kept ones are not read again."""
        if index in self.kept:
            return self.kept[index]
        tries = min(len(self.files), MOST_IN_A_ROW)
        for position in ((index + further) % len(self.files) for further in range(tries)):
            try:
                image = read_image(self.files[position], self.background)
            except (ValueError, OSError) as error:
                self._skip(position, error)
                continue
            made = fitted(image, self.shape, self.resize, self.crop)
            if self.keeps:
                self.kept[index] = made
            return made
        raise ValueError(
            f"{tries} images in a row cannot be read, beginning with {self.files[index]}"
        )

    def _skip(self, position: int, error: Exception) -> None:
        if not bool(self.unreadable.any()):
            warnings.warn(
                f"{self.files[position]} cannot be read ({reason(error)}): the next image takes its place, "
                "as for all others that cannot be read",
                stacklevel=3,
            )
        self.unreadable[position] = True


def count_unreadable(
    dataset: object, add_up: Callable[[Tensor], Tensor] = lambda unreadable: unreadable
) -> int:
    """The number of images that could not be read since this process began.

    ``add_up`` sums over processes.
    """
    if not isinstance(dataset, ImageFiles):
        return 0
    return int((add_up(dataset.unreadable.int()) > 0).sum())
