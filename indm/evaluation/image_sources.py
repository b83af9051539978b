"""Images to be scored, and where they are from: a data set, a folder, a file of samples, a run."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Num
from torch import Tensor

from indm.config import recipes
from indm.config.options import Drawing
from indm.config.parts import BUILT_IN
from indm.data.base import Data, stack
from indm.data.folder import find_images
from indm.data.image_files import ImageFiles
from indm.data.images import RESIZE_MODES, read_size
from indm.data.raw import Size, height_and_width
from indm.data.registry import load_data, without_download
from indm.messages import nearest
from indm.runs.folder import is_run
from indm.runs.samples import draw, read_samples

SPLITS = ("train+valid", "train", "valid", "test")
FEWEST = 20  # images, at least, whose scores mean something
MOST = 50_000  # samples drawn of a run by default, as published scores have them; fewer where the reference has fewer


@dataclass(frozen=True)
class Images:
    """Images to be scored, or scored against.

    Attributes:
        raw: (n, C, H, W), grey levels 0 … ``levels`` − 1.
        levels: number of grey levels.
        provenance: where they are from and what was done to them, as JSON can hold it.
        data: the data set that they are of, if they are of one.
    """

    raw: Num[Tensor, "n c h w"]
    levels: int
    provenance: dict
    data: Data | None = None

    def first(self, n: int | None) -> "Images":
        """The first ``n``, all for None; a ValueError where there are fewer, or ``n`` is too few to be scored."""
        if n is not None:
            check_number("n", n)
        if n is not None and n > len(self.raw):
            raise ValueError(f"n must be at most the {len(self.raw)} images that there are, got {n}")
        return replace(self, raw=self.raw[:n])


def check_number(name: str, n: int) -> None:
    """ValueError where ``n`` images are too few to be scored."""
    if n < FEWEST:
        raise ValueError(f"{name} must be at least {FEWEST} images, of which scores can be made, got {n}")


def open_images(
    source: str | Path, *, split: str = "train+valid", size: Size | None = None, resize: str = "bilinear"
) -> Images:
    """Images that exist: of a data set, a folder, or a file of samples.

    Args:
        source: a recipe by name or TOML file, a run folder (both stand for their data), a name in
            :data:`indm.config.parts.BUILT_IN`, a folder of images (searched recursively), or a ``samples.npz``.
        split: of a data set; "train+valid" is all that is not for testing, as published scores have it.
        size, resize: side of a square, or height x width as "24x48", to which the largest centred part of that aspect
            ratio of each image of a folder is resized, and how; without a size the files must be of one size, and stay
            as they are.

    Raises:
        ValueError: a source that is unknown or holds no images.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    path = Path(source)
    if path.suffix == ".npz":
        samples, levels, made_by = read_samples(path)
        return _grey(samples, levels, {"file": str(path), "drawn": made_by})
    if str(source) in recipes.bundled() or is_run(path) or path.suffix == ".toml":
        table = recipes.resolve(recipes.load(source))["data"]
        return of_data(without_download(table) if is_run(path) else table, split)
    if path.is_dir():
        return of_folder(path, size, resize)
    if str(source) in BUILT_IN["data"]:
        return of_data({"name": str(source)}, split)
    known = [*recipes.bundled(), *BUILT_IN["data"]]
    raise ValueError(
        f"no images are found by the name {str(source)!r}{nearest(str(source), known)}; a run or image folder, a "
        "samples.npz, a recipe or a data set would do"
    )


def of_data(table: dict, split: str = "train+valid") -> Images:
    """A split of the data set of a recipe's ``[data]``."""
    data = load_data(**table)
    raw = torch.cat([stack(getattr(data, part)) for part in split.split("+")])
    images = _grey(raw, data.scaling.levels or 0, {"data": table, "split": split, "notes": data.notes})
    return replace(images, data=data)


def of_folder(folder: Path, size: Size | None = None, resize: str = "bilinear") -> Images:
    """All images of a folder, in sorted order; RGB where one of them is. Damaged ones are left out."""
    if resize not in RESIZE_MODES:
        raise ValueError(f"unknown resize {resize!r}{nearest(resize, RESIZE_MODES)}")
    files, (_, colour), notes = find_images(folder, whole=True)
    sizes = {read_size(file) for file in files} if size is None else {height_and_width(size)}
    if len(sizes) > 1:
        sides = [side for pair in sizes for side in pair]
        raise ValueError(f"size must be given for {folder}: its images have sides of {min(sides)} to {max(sides)}")
    ((height, width),) = sizes
    crop = f"the largest centred {'square' if height == width else 'rectangle of that aspect ratio'}"
    how = {"size": [height, width], "mode": resize, "crop": crop, "by": "Pillow"}
    raw = stack(ImageFiles(files, (3 if colour else 1, height, width), resize))
    return _grey(raw, 256, {"folder": str(folder), "resize": None if size is None else how, "notes": notes})


def of_run(
    run: Path, drawing: Drawing, out: Path | None = None, *, overwrite: bool = False, progress: bool = True
) -> Images:
    """Samples of a run, see :func:`indm.runs.samples.draw`."""
    samples, levels, made_by = draw(run, drawing, out, overwrite=overwrite, progress=progress)
    return _grey(samples, levels, {"run": str(run), "drawn": made_by})


def _grey(raw: Tensor, levels: int, provenance: dict) -> Images:
    if raw.ndim != 4 or not levels:
        raise ValueError(f"only images with grey levels can be scored, got events of shape {tuple(raw.shape[1:])}")
    return Images(raw, levels, provenance)
