"""Image files: decoded one at a time, and folders of very many of them, whose list is made once and kept.

Only the formats of :data:`FORMATS` are opened, whatever a file is called: none of their decoders runs another program,
as that of PostScript would. An image of more pixels than PIL's limit is refused by its header.
"""

import contextlib
import hashlib
import math
import os
import stat
import tempfile
import threading
import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from indm.files import untrusted
from indm.messages import reason

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
KINDS = (None, "L", "RGB")  # of a file in an index: no image that can be used, grey, colour
IN_INDEX = ("names", "ends", "sizes", "times", "kinds")
KEPT_FROM = 1000  # files from which on the index of a folder is kept
AT_ONCE = 4096  # files that are looked at side by side
WHOLE_AT_ONCE = threading.BoundedSemaphore(os.cpu_count() or 1)  # images that are decoded; one may take a gigabyte
MOST_IN_A_ROW = 100  # images that cannot be read, one after the other, before that is an error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image whose header has been read; every failure inside is a ValueError or an OSError."""
    try:
        if not path.is_file():  # a named pipe would be waited for
            raise ValueError("it is no file" if path.exists() else "there is no such file")
        with Image.open(path, formats=FORMATS) as image:
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


def read_kind(path: Path) -> str:
    """Whether an image is grey ("L") or "RGB", by its header alone.

    Raises:
        ValueError, OSError: it is no image that can be used.
    """
    with _opened(path) as image:
        return _kind(image)


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as it is stored, by its header alone.

    Raises:
        ValueError, OSError: it is no image that can be used.
    """
    with _opened(path) as image:
        return image.size


def read_image(path: Path) -> Image.Image:
    """Decode an image to 8-bit grey ("L") or "RGB": upright, 16-bit levels scaled, transparency over white.

    Raises:
        ValueError, OSError: it is no image that can be used, or a damaged one.
    """
    with _opened(path) as image:
        kind = _kind(image)
        image.load()  # every pixel, so that truncation shows
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):
            return _first_byte(image)
        if image.has_transparency_data:
            return _over_white(image, kind)
        return image.convert(kind)


def _first_byte(image: Image.Image) -> Image.Image:
    """The first byte of 16-bit levels, made in their own precision: images may be as large as PIL's limit."""
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("integer pixels outside 0 … 65535")
    return Image.fromarray((levels >> 8).astype(np.uint8))


def _over_white(image: Image.Image, kind: str) -> Image.Image:
    """An image with transparency as it looks over white, by as few copies."""
    with_alpha = "LA" if kind == "L" else "RGBA"
    if image.mode != with_alpha:
        image = image.convert(with_alpha)
    clear = ImageChops.invert(image.getchannel("A"))
    image = image.convert(kind)
    image.paste("white", mask=clear)
    return image


def square(image: Image.Image, size: int, channels: int, resize: str = "bilinear", crop: bool | int = True) -> Tensor:
    """An image as uint8 (``channels``, ``size``, ``size``), cut and resized as :class:`ImageFiles` says."""
    image = image.convert("L" if channels == 1 else "RGB")
    if crop is not False:
        largest = min(image.size)
        image = F.center_crop(image, [largest if crop is True else min(crop, largest)])
    return F.pil_to_tensor(F.resize(image, [size, size], InterpolationMode(resize)))


class Files(Sequence[Path]):
    """Paths below ``folder`` in as many bytes as their names have: a million need some 30 MB, not a gigabyte.

    Args:
        folder: to which the names are relative.
        names: all names, one after the other, as the file system encodes them.
        ends: where each ends in ``names``.
        chosen: which of them, in this order; all by default.
    """

    def __init__(self, folder: Path, names: np.ndarray, ends: np.ndarray, chosen: np.ndarray | None = None):
        self.folder, self.names, self.ends = folder, names, ends
        self.chosen = np.arange(len(ends)) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int | slice) -> "Path | Files":
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        return self.folder / os.fsdecode(self.name(index))

    def name(self, index: int) -> bytes:
        """The path below the folder, as the file system encodes it."""
        i = self.chosen[index]
        return self.names[self.ends[i - 1] if i else 0 : self.ends[i]].tobytes()

    def select(self, index: np.ndarray) -> "Files":
        """Those at the positions ``index``."""
        return Files(self.folder, self.names, self.ends, self.chosen[index])

    def fingerprint(self) -> str:
        """SHA-256 of the paths below the folder, in the order of ``names`` whatever that of ``chosen``."""
        lengths, chosen = np.diff(self.ends, prepend=0), np.zeros(len(self.ends), bool)
        chosen[self.chosen] = True
        found = hashlib.sha256(lengths[chosen])
        found.update(self.names[np.repeat(chosen, lengths)])
        return found.hexdigest()


@dataclass(frozen=True)
class Index:
    """What is known of the files below a folder, hidden ones apart, in sorted order.

    Attributes:
        files: their paths.
        sizes, times: bytes, and nanoseconds of the last change, int64.
        kinds: positions in :data:`KINDS`, uint8.
    """

    files: Files
    sizes: np.ndarray
    times: np.ndarray
    kinds: np.ndarray


def index(folder: Path, whole: bool = False) -> Index:
    """List the images below ``folder``, and look at the header of each.

    The index of a folder of many files is kept (see :func:`index_file`), and only what was added or changed since is
    looked at again.

    Args:
        folder: searched recursively.
        whole: decode every image in place of its header, whatever is kept.
    """
    found = _listed(folder)
    place = _place(folder) if len(found.files) >= KEPT_FROM and not whole else None
    kept = None if place is None else _kept(place, folder)
    known = _known(found, kept)
    unknown = np.flatnonzero(~known)
    look = _whole_kind if whole else _header_kind
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(unknown), AT_ONCE):
            part = unknown[first : first + AT_ONCE]
            found.kinds[part] = list(pool.map(look, found.files.select(part)))
    if place is not None and len(unknown):
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time alone
            _keep(place, found)
    return found


def cache() -> Path:
    """Where data are kept that can be had again: $INDM_DATA, or ~/.cache/indm."""
    return Path(os.environ.get("INDM_DATA") or Path.home() / ".cache" / "indm").expanduser()


def index_file(folder: Path) -> Path:
    """Where the index of ``folder`` is kept."""
    return cache() / "indexes" / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]}.npz"


def _place(folder: Path) -> Path | None:
    """:func:`index_file`, or None for a user without a home."""
    try:
        return index_file(folder)
    except RuntimeError:
        return None


def _header_kind(path: Path) -> int:
    return _looked(read_kind, path)


def _whole_kind(path: Path) -> int:
    with WHOLE_AT_ONCE:
        return _looked(lambda path: read_image(path).mode, path)


def _looked(kind: Callable[[Path], str], path: Path) -> int:
    if path.suffix.lower() not in SUFFIXES:
        return 0
    try:
        return KINDS.index(kind(path))
    except (ValueError, OSError):
        return 0


def _listed(folder: Path) -> Index:
    """All files below ``folder``, with kinds yet to be filled in."""
    names, ends, sizes, times = bytearray(), array("q"), array("q"), array("q")
    waiting = [""]
    while waiting:
        name = waiting.pop()
        path = os.path.join(folder, name)
        found = os.lstat(path) if name else None
        if found is not None and stat.S_ISLNK(found.st_mode):
            found = os.stat(path) if os.path.isfile(path) else found
        if found is None or stat.S_ISDIR(found.st_mode):
            below = sorted((n for n in os.listdir(path) if not n.startswith(".")), reverse=True)
            waiting += [os.path.join(name, n) for n in below]
        elif stat.S_ISREG(found.st_mode):
            names += os.fsencode(name)
            ends.append(len(names))
            sizes.append(found.st_size)
            times.append(found.st_mtime_ns)
    numbers = [np.array(values, np.int64) for values in (ends, sizes, times)]
    files = Files(folder, np.frombuffer(bytes(names), np.uint8), numbers[0])
    return Index(files, *numbers[1:], np.zeros(len(ends), np.uint8))


def _known(found: Index, kept: Index | None) -> np.ndarray:
    """Take over the kinds of the files that are as they were; which those are, as booleans."""
    if kept is None:
        return np.zeros(len(found.files), bool)
    then, now = ((i.files.names, i.files.ends, i.sizes, i.times) for i in (kept, found))
    if all(map(np.array_equal, then, now)):
        found.kinds[:] = kept.kinds
        return np.ones(len(found.files), bool)
    as_they_were = {
        (kept.files.name(i), size, time): i
        for i, (size, time) in enumerate(zip(kept.sizes.tolist(), kept.times.tolist(), strict=True))
    }
    times = enumerate(zip(found.sizes.tolist(), found.times.tolist(), strict=True))
    place = np.array([as_they_were.get((found.files.name(i), size, time), -1) for i, (size, time) in times], int)
    known = place >= 0
    found.kinds[known] = kept.kinds[place[known]]
    return known


def _kept(path: Path, folder: Path) -> Index | None:
    """The index that was kept; None where there is none that can be used."""
    try:
        names, ends, sizes, times, kinds = (untrusted.array(path, name) for name in IN_INDEX)
    except ValueError:
        return None
    fits = len(ends) == len(sizes) == len(times) == len(kinds) and kinds.max(initial=0) < len(KINDS)
    rising = len(ends) == 0 or (ends[0] >= 0 and ends[-1] == len(names) and bool((np.diff(ends) >= 0).all()))
    return Index(Files(folder, names, ends), sizes, times, kinds) if fits and rising else None


def _keep(path: Path, found: Index) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = (found.files.names, found.files.ends, found.sizes, found.times, found.kinds)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # nothing half written stays on a full disk
        beside = Path(folder) / path.name
        np.savez(beside, **dict(zip(IN_INDEX, arrays, strict=True)))
        os.replace(beside, path)


class ImageFiles(Dataset):
    """Images decoded from ``files`` when asked for: uint8 (``channels``, ``size``, ``size``).

    ``crop``: an integer takes the centred square of that side (at most the image's), True the largest centred
    square, False the whole image, aspect ratio not kept; the result is resized by ``resize`` (antialiased).

    In place of an image that cannot be read stands the next one that can, always the same, and the first such image
    is warned of. ``unreadable`` (bool, one an image, shared by all worker processes) says which those were.

    Raises:
        ValueError: a hundred images in a row cannot be read.
    """

    def __init__(
        self, files: Sequence[Path], size: int, channels: int, resize: str = "bilinear", crop: bool | int = True
    ):
        self.files, self.size, self.channels, self.resize, self.crop = files, size, channels, resize, crop
        self.unreadable = torch.zeros(len(files), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        for further in range(min(len(self), MOST_IN_A_ROW)):
            place = (index + further) % len(self)
            try:
                image = read_image(self.files[place])
            except (ValueError, OSError) as error:
                self._skip(place, error)
                continue
            return square(image, self.size, self.channels, self.resize, self.crop)
        raise ValueError(f"{further + 1} images in a row cannot be read, beginning with {self.files[index]}")

    def _skip(self, place: int, error: Exception) -> None:
        if not bool(self.unreadable.any()):
            warnings.warn(
                f"{self.files[place]} cannot be read ({reason(error)}): the image after it takes its place, "
                "here and wherever that happens again",
                stacklevel=3,
            )
        self.unreadable[place] = True


def count_unreadable(dataset: Dataset, add_up: Callable[[Tensor], Tensor] = lambda met: met) -> int:
    """How many images of a data set could not be read when they were asked for, since this process began.

    Args:
        dataset: of which this process and its workers have read.
        add_up: the sum of a tensor over several processes, all of which then call this, so that an image counts once
            whichever of them met it; by default this process counts alone.
    """
    return int((add_up(dataset.unreadable.int()) > 0).sum()) if isinstance(dataset, ImageFiles) else 0
