"""One image file: its header, its pixels, and the part of it that a model is given.

Only the formats of :data:`FORMATS` are opened, whatever a file is called: none of their decoders runs another program,
as that of PostScript would. An image of more pixels than PIL's limit is refused by its header.
"""

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageChops, ImageColor, ImageOps
from torch import Tensor

from indm.checks import brief, reason
from indm.files.untrusted import check_plain

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
RESIZE_MODES = {mode.name.lower(): mode for mode in Image.Resampling}


@dataclass(frozen=True)
class Stored:
    """An image file inside something larger: ``read`` gives its bytes, messages call it ``name``."""

    name: str
    read: Callable[[], bytes]

    def __str__(self) -> str:
        return self.name


Source = Path | Stored


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """The image whose header has been read; every failure inside is a ValueError or an OSError."""
    try:
        if isinstance(source, Path):
            check_plain(source)
        file = source if isinstance(source, Path) else io.BytesIO(source.read())
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                size = f"{image.width}×{image.height}"
                raise ValueError(f"{size} pixels, more than PIL's limit of {Image.MAX_IMAGE_PIXELS}")
            yield image
    except (ValueError, OSError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise ValueError(reason(error)) from error


def _kind(image: Image.Image) -> str:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no grey levels")
    return "L" if image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I") else "RGB"


def read_kind(source: Source) -> str:
    """Whether an image is grey ("L") or "RGB", by its header alone."""
    with _opened(source) as image:
        return _kind(image)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of an image, upright as its EXIF data say, by its header alone."""
    with _opened(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4  # by a quarter
        return image.size if turned else image.size[::-1]


def colour_of(background: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 … 255, of a colour as Pillow's ImageColor reads it: "white", "#rrggbb"."""
    try:
        red, green, blue, *alpha = ImageColor.getrgb(background)
    except ValueError:
        alpha = [0]
    if alpha:
        raise ValueError(
            f'background must be an opaque colour, such as "white", "black" or "#rrggbb", got {brief(repr(background))}'
        )
    return red, green, blue


def read_image(source: Source, background: str = "white") -> Image.Image:
    """Decode an image to 8-bit grey ("L") or "RGB": upright as its EXIF data say, 16-bit levels scaled.

    Transparency is composited on ``background``; on one that is no grey the result is RGB.
    """
    colour = colour_of(background)
    with _opened(source) as image:
        kind = _kind(image)
        image.load()  # every pixel, so that truncation shows
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):
            return _first_byte(image)
        if image.has_transparency_data:
            return _composited(image, kind if len(set(colour)) == 1 else "RGB", colour)
        return image.convert(kind)


def _first_byte(image: Image.Image) -> Image.Image:
    """The first byte of 16-bit levels, made in their own precision: images may be as large as PIL's limit."""
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("integer pixels outside 0 … 65535")
    return Image.fromarray((levels >> 8).astype(np.uint8))


def _composited(image: Image.Image, kind: str, colour: tuple[int, int, int]) -> Image.Image:
    """An image with transparency as it looks on a background of that colour, by as few copies."""
    with_alpha = "LA" if kind == "L" else "RGBA"
    if image.mode != with_alpha:
        image = image.convert(with_alpha)
    clear = ImageChops.invert(image.getchannel("A"))
    image = image.convert(kind)
    image.paste(colour[0] if kind == "L" else colour, mask=clear)
    return image


def read_alpha(path: Path) -> Image.Image | None:
    """How opaque each pixel is, 8-bit and upright as the image of :func:`read_image`; None where all of them are."""
    with _opened(path) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image.convert("RGBA").getchannel("A") if image.has_transparency_data else None


def part(image: Image.Image, sides: tuple[int, int], crop: bool | int = True) -> Image.Image:
    """What :class:`ImageFiles` resizes to a height and width of ``sides``: ``image``, or what is cut out of it."""
    if crop is False:
        return image
    largest = min(image.height / sides[0], image.width / sides[1])
    scale = largest if crop is True else min(crop / min(sides), largest)
    height, width = (max(1, round(side * scale)) for side in sides)
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def shown_part(image: Image.Image, sides: tuple[int, int], crop: bool | int) -> Image.Image:
    """:func:`part` of an image from outside the data; the whole image if it has these sides already."""
    return image if (image.height, image.width) == sides else part(image, sides, crop)


def fitted(
    image: Image.Image, shape: tuple[int, int, int], resize: str = "bilinear", crop: bool | int = True
) -> Tensor:
    """An image as uint8 of ``shape``, (channels, height, width), cut and resized as :class:`ImageFiles` says."""
    channels, *sides = shape
    image = part(image.convert("L" if channels == 1 else "RGB"), (sides[0], sides[1]), crop)
    return pixels_of(image.resize(sides[::-1], RESIZE_MODES[resize]))


def pixels_of(image: Image.Image) -> Tensor:
    """The bytes of an image in grey or RGB, (channels, height, width)."""
    return torch.from_numpy(np.array(image)).view(image.height, image.width, -1).permute(2, 0, 1)
