"""Images decoded when they are asked for, as a data set in which a damaged file costs one image."""

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from indm.data.images import Stored, colour_of, fitted, read_image
from indm.messages import reason

MOST_IN_A_ROW = 100  # unreadable images one after the other, before that is an error
MOST_KEPT = 512 * 2**20  # bytes of decoded images that stay in memory


class ImageFiles(Dataset):
    """Images decoded from ``files`` when asked for: uint8 of ``shape``.

    An image that cannot be read is replaced by the next one that can, always the same. The first is warned of. Where
    all images together are at most :data:`MOST_KEPT`, each is decoded once in each process: decoding a photograph takes
    longer than a step of training.

    Args:
        files: paths, a list or :class:`indm.data.folder_index.Files`; or images inside of other files.
        shape: (channels, height, width) of the result.
        resize: Pillow's interpolation, antialiased.
        crop: True takes the largest centred rectangle with the aspect ratio of the result, an integer the one whose
            shorter side it is (at most the largest), False the whole image without keeping its aspect ratio.
        background: the colour on which transparency is composited, see :func:`indm.data.images.colour_of`.
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
        self._keep(len(files) * math.prod(shape) <= MOST_KEPT, shape)

    def _keep(self, fits: bool, shape: Sequence[int]) -> None:
        """Keep what is made of each file, of ``shape``, where it ``fits``."""
        self.kept = torch.empty(len(self.files) if fits else 0, *shape, dtype=torch.uint8)
        self.is_kept = torch.zeros(len(self.kept), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self._of_file(index).clone()

    def _of_file(self, index: int) -> Tensor:
        """What is made of a file: kept, or read now."""
        if not len(self.kept):
            return self._read(index)
        if not self.is_kept[index]:
            self.kept[index] = self._read(index)
            self.is_kept[index] = True
        return self.kept[index]

    def _read(self, index: int) -> Tensor:
        """What is made of a file, or of the first one after it that can be read."""
        tries = min(len(self), MOST_IN_A_ROW)
        for position in ((index + further) % len(self) for further in range(tries)):
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
    """How many images of a data set could not be read when they were asked for, since this process began.

    Args:
        dataset: read by this process and its workers.
        add_up: the sum of a tensor over several processes, all of which then call this, so that an image counts once
            whichever of them read it; by default this process counts alone.
    """
    return int((add_up(dataset.unreadable.int()) > 0).sum()) if isinstance(dataset, ImageFiles) else 0
