"""Patches of photographs: small squares cut from a folder of large images, split by photograph."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from indm.files.untrusted import check_memory
from indm.workbench.data.base import Data, describe_split
from indm.workbench.data.examples import words_of
from indm.workbench.data.folder import Files, find_images
from indm.workbench.data.images import RESIZE_MODES, ImageFiles, ImageOptions, data_of_images, pixels_of


class Patches(ImageFiles):
    """The same number of patches of each photograph, uint8 of ``shape``: the first of each, then the second of each, ….

    A photograph is decoded when one of its patches is first asked for, and all its patches stay in memory. One that
    cannot be read is replaced by the next, as in :class:`~indm.workbench.data.images.ImageFiles`.

    Args:
        files: the photographs.
        shape: (channels, height, width) of a patch.
        corners: (photographs, patches, 2) in [0, 1), where each patch lies between the top and bottom, and between the
            left and right edge.
        short: pixels to which the short side of a larger photograph is reduced; smaller ones stay as they are, but for
            those that are smaller than a patch, which are enlarged to it.
        resize: Pillow's interpolation, antialiased.
        background: the colour on which transparency is composited.

    Example: two patches of a photograph of 64 × 48 pixels.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "grey.png"
        ...     Image.new("L", (64, 48), 100).save(path)
        ...     patches = Patches([path], (1, 8, 8), torch.rand(1, 2, 2), short=16)
        ...     len(patches), patches[1].shape, int(patches[1].max())
        (2, torch.Size([1, 8, 8]), 100)
    """

    def __init__(
        self,
        files: Files | list[Path],
        shape: tuple[int, int, int],
        corners: Tensor,
        short: int = 512,
        resize: str = "bilinear",
        background: str = "white",
    ):
        super().__init__(files, shape, resize, background=background)
        self.corners, self.short = corners, short
        self.keeps = True

    def __len__(self) -> int:
        return self.corners.shape[0] * self.corners.shape[1]

    def __getitem__(self, index: int) -> Tensor:
        patch, photograph = divmod(range(len(self))[index], self.corners.shape[0])
        return self._of_file(photograph)[patch].clone()

    def _made_of(self, image: Image.Image, position: int) -> Tensor:
        channels, height, width = self.shape
        smallest = max(height / image.height, width / image.width)  # smallest scale at which a patch fits
        scale = max(min(self.short / min(image.size), 1.0), smallest)
        sides = [max(height, round(scale * image.height)), max(width, round(scale * image.width))]
        image = image.convert("L" if channels == 1 else "RGB")
        pixels = pixels_of(image.resize(sides[::-1], RESIZE_MODES[self.resize]))
        room = torch.tensor([sides[0] - height + 1, sides[1] - width + 1])
        tops_and_lefts = (self.corners[position] * room).long().tolist()
        return torch.stack([pixels[:, top : top + height, left : left + width] for top, left in tops_and_lefts])


def load_patches(
    *,
    path: str | Path,
    patches: int = 80,
    short: int = 512,
    size: int | str | list[int] = 32,
    channels: int | None = None,
    resize: str = "bilinear",
    background: str = "white",
    valid: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    centered: bool = True,
    flip: bool = False,
) -> Data:
    """Patches of all photographs under a folder (recursive, hidden files apart), split by photograph.

    No photograph has patches in two splits. Patches of one photograph are alike, so the standard errors of an
    evaluation are over photographs (``Data.groups``).

    Args:
        path: the folder. A photograph that lies there in several sizes or crops could be in two splits: keep one.
        patches: of each photograph, at places drawn by ``seed``.
        short: pixels to which the short side of a larger photograph is reduced first.
        size: side in pixels of a patch, or height x width: "24x48" or [24, 48].
        channels: 1 (grey) or 3 (RGB), by default 3 where any photograph is in colour.
        resize: how photographs are reduced: "bilinear", "bicubic", …; antialiased.
        background: behind transparent pixels.
        valid: fraction of the photographs for validation.
        test: fraction of the photographs for the test.
        seed: of the split and of the patches' places.
        centered: whether the model sees grey levels in [−1, 1]; else in [0, 1].
        flip: whether training flips images horizontally at random.

    Raises:
        ValueError: an option out of range, a folder without images, or more patches than memory holds.
    """
    options = ImageOptions(
        size=size, channels=channels, resize=resize, background=background, valid=valid, test=test, seed=seed
    )
    if patches < 1:
        raise ValueError(f"patches must be at least 1 of each photograph, got {patches}; 80 is usual")
    if short < max(options.sides):
        raise ValueError(
            f"short must be at least the patches' size {words_of(options.sides)}, got {short}; 512 is usual"
        )
    files, (_, n_colour), notes = find_images(Path(path).expanduser())
    shape, count = (channels or (3 if n_colour else 1), *options.sides), patches
    try:
        check_memory(len(files) * count * math.prod(shape))
    except ValueError as error:
        raise ValueError(
            f"patches of {len(files)} photographs must fit in memory, lower data.patches: {error}"
        ) from error
    parts = options.divided(len(files))
    corners = torch.rand(len(files), count, 2, generator=torch.Generator().manual_seed(seed))
    sets = {
        part: Patches(files.select(chosen.numpy()), shape, corners[chosen], short, resize, background)
        for part, chosen in parts.items()
    }
    notes += [
        f"{count} patches of {words_of(options.sides)} pixels from each photograph, reduced to a short side of "
        f"{short} ({resize}), on {background}",
        f"{describe_split(parts, seed, 'by photograph ')} photographs",
    ]
    groups = {part: chosen.repeat(count) for part, chosen in parts.items()}
    about = {"notes": notes, "fingerprint": files.fingerprint(), "groups": groups}
    return data_of_images("patches", sets, centered, flip, **about)
