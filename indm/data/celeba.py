"""CelebA."""

from pathlib import Path
from typing import Any

from torchvision.datasets import CelebA

from indm.data.base import Data, events_of_shape
from indm.data.downloads import download_root, from_torchvision
from indm.data.image_files import ImageFiles
from indm.data.raw import check_size, height_and_width, words_of
from indm.data.splits import limited
from indm.scaling import Scaling


@events_of_shape(lambda options: (3, *height_and_width(options["size"])))
def load_celeba(
    *,
    size: int | str | list[int] = 64,
    crop: int = 140,
    root: str | Path | None = None,
    download: bool = True,
    limit: int | None = None,
    centered: bool = True,
    flip: bool = True,
) -> Data:
    """CelebA by torchvision, in its standard splits: centre crop, antialiased bilinear resize; read from disk.

    Args:
        size: side in pixels, or height x width: "24x48" or [24, 48].
        crop: shorter side of what is cut out of the middle of each image before, with the aspect ratio of ``size``.
        root: folder of the files; by default $INDM_DATA, or ~/.cache/indm.
        download: whether to fetch files that are missing.
        limit: training examples to keep, the first ones; all by default.
        centered: whether the model sees grey levels in [−1, 1]; else in [0, 1].
        flip: whether training flips images horizontally at random.
    """
    check_size(crop)
    shape = (3, *height_and_width(size))
    home = str(download_root(root))
    parts: dict[str, Any] = {}
    for part in ("train", "valid", "test"):
        dataset: Any = from_torchvision("celeba", CelebA, home, split=part, download=download)
        files = [Path(dataset.root, dataset.base_folder, "img_align_celeba", name) for name in dataset.filename]
        parts[part] = ImageFiles(limited(files, limit if part == "train" else None), shape, crop=crop)
    resized = f"centre crop {crop}, then bilinear resize to {words_of(shape[1:])}"
    notes = ["torchvision's CelebA, standard splits", resized]
    scaling = Scaling.images(256, centered)
    return Data(name="celeba", scaling=scaling, shape=shape, flip=flip, notes=notes, **parts)
