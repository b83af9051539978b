"""Scores of images against reference images by torch-fidelity: FID, Inception score, KID, precision and recall.

Rounding, the resizing, the split and the number of images all change such scores, so each is kept with its provenance.

Source: Obukhov et al. 2020, "torch-fidelity", https://github.com/toshas/torch-fidelity.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Num
from torch import Tensor

from indm.checks import require
from indm.tensors import double
from indm.workbench.data.base import InMemory, load_data, stack, without_download
from indm.workbench.data.examples import Size, height_and_width
from indm.workbench.data.folder import find_images
from indm.workbench.data.images import ImageFiles, read_size
from indm.workbench.runs.devices import device
from indm.workbench.runs.folder import is_run, recipe_of
from indm.workbench.runs.provenance import provenance

INCEPTION = "inception-v3-compat"  # torch-fidelity's name of the network of the original FID
USERS = "users"  # the name under which it knows a function of the user
SETTINGS = {"isc_splits": 10, "kid_subsets": 100, "prc_neighborhood": 3, "rng_seed": 2020}
FEWEST_IMAGES = 20  # images, at least, whose scores mean something
MOST_SAMPLES = 50_000  # samples drawn of a run by default, as published scores have them
ToFeatures = Callable[[Num[Tensor, "n c h w"]], Float[Tensor, "n k"]]


@dataclass(frozen=True)
class Images:
    """``raw`` (n, C, H, W) in grey levels 0 … ``levels`` − 1, and its ``provenance``, as JSON can hold it."""

    raw: Num[Tensor, "n c h w"]
    levels: int
    provenance: dict

    def __post_init__(self) -> None:
        if self.raw.ndim != 4 or not self.levels:
            shape = tuple(self.raw.shape[1:])
            raise ValueError(f"only images with grey levels can be scored, got events of shape {shape}")


def check_number(name: str, n: int) -> None:
    """ValueError where ``n`` images are too few to be scored."""
    require(n >= FEWEST_IMAGES, name, n, f"at least {FEWEST_IMAGES} images, of which scores can be made")


def open_images(folder: Path, *, split: str = "train+valid", size: Size | None = None) -> Images:
    """The images of a folder (searched recursively), or the data of a run folder.

    A folder's images are in sorted order, and in RGB where one of them is; damaged ones are left out. With a ``size``,
    the side of a square or height x width as "24x48", the largest centred part of each is resized to it (bilinear,
    antialiased); without one the files must be of one size. Of a run's data, "train+valid" is all that is not for
    testing, as published scores have it.

    Raises:
        ValueError: a folder that holds no images.
    """
    if is_run(folder):
        table = without_download(recipe_of(folder).data.table())
        data = load_data(**table)
        raw = torch.cat([stack(getattr(data, part)) for part in split.split("+")])
        return Images(raw, data.scaling.levels or 0, {"data": table, "split": split, "notes": data.notes})
    require(folder.is_dir(), "the source of images", str(folder), "a run folder or a folder of images")
    files, (_, colour), notes = find_images(folder, whole=True)
    sizes = {read_size(file) for file in files} if size is None else {height_and_width(size)}
    if len(sizes) > 1:
        sides = [side for pair in sizes for side in pair]
        raise ValueError(f"size must be given for {folder}: its images have sides of {min(sides)} to {max(sides)}")
    ((height, width),) = sizes
    raw = stack(ImageFiles(files, (3 if colour else 1, height, width)))
    resized = None if size is None else [height, width]
    return Images(raw, 256, {"folder": str(folder), "resized": resized, "notes": notes})


def as_inception_takes(images: Images) -> Num[Tensor, "n 3 h w"]:
    """RGB of 256 levels: grey levels to the nearest of these, one channel three times."""
    raw = (images.raw.float() * 255 / (images.levels - 1)).round().to(torch.uint8)
    require(raw.shape[1] in (1, 3), "images", raw.shape[1], "of 1 or 3 channels for Inception")
    return raw.expand(-1, 3, -1, -1).contiguous()


class Listed(InMemory):
    """Images in memory whose batches are lists, which the loader of torch-fidelity stacks."""

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return list(self.tensor[indices])


def score(samples: Images, reference: Images, features: ToFeatures | None = None, *, progress: bool = True) -> dict:
    """The scores of samples against a reference, at least 20 images of one shape each.

    ``features`` maps (n, C, H, W) in the grey levels of the images to (n, K); None: Inception's features, whose weights
    torch-fidelity fetches.

    Returns:
        ``scores``, by torch-fidelity's names: the Fréchet distance (an FID by Inception alone), the Inception score (by
        Inception alone), the kernel distance (KID), precision and recall. ``samples``, ``reference``: their provenance,
        ``images``, ``shape`` and the SHA-256 of the pixels. ``features``, ``settings``, ``torch_fidelity``, its
        version, and ``provenance``.

    Raises:
        ValueError: fewer than 20 images, or images of different shapes.
    """
    import torch_fidelity

    about, pixels = {}, []
    for name, images in {"samples": samples, "reference": reference}.items():
        check_number(name, len(images.raw))
        sha256 = hashlib.sha256(images.raw.contiguous().numpy().data).hexdigest()
        shape = {"images": len(images.raw), "shape": list(images.raw.shape[1:]), "levels": images.levels}
        about[name] = images.provenance | shape | {"pixels_sha256": sha256}
        pixels.append(as_inception_takes(images) if features is None else images.raw)
    if pixels[0].shape[1:] != pixels[1].shape[1:]:
        shapes = " and ".join(str(tuple(raw.shape[1:])) for raw in pixels)
        raise ValueError(f"samples and reference must be of one shape, got {shapes}; resize a folder")
    settings = SETTINGS | {"kid_subset_size": min(1000, *map(len, pixels))}
    if features is not None:
        _register(features)
    scores = torch_fidelity.calculate_metrics(
        input1=Listed(pixels[0]), input2=Listed(pixels[1]),
        feature_extractor=INCEPTION if features is None else USERS,
        isc=features is None, fid=True, kid=True, prc=True, cache=False, cuda=device().startswith("cuda"),
        save_cpu_ram=True,  # no worker processes: the images are in memory
        verbose=progress, **settings,
    )  # fmt: skip
    by = INCEPTION if features is None else f"{features.__module__}:{features.__qualname__}"
    how = {"features": by, "settings": settings, "torch_fidelity": torch_fidelity.__version__}
    drawn = about["samples"].get("drawn", {})
    made_by = provenance(drawn.get("seed"), {about["samples"]["run"]: drawn["weights_sha256"]} if drawn else {})
    return {"scores": scores, **about, **how, "provenance": made_by}


def _register(compute: ToFeatures) -> None:
    """Make the user's function known to torch-fidelity, in place of an earlier one."""
    import torch_fidelity
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Users(torch_fidelity.FeatureExtractorBase):
        """Features in float64, so that torch-fidelity takes their mean in that precision."""

        def __init__(self, name: str, features_list: list[str], **options):
            super().__init__(name, features_list)

        def forward(self, raw: Tensor) -> tuple[Tensor]:
            return (double(compute(raw)),)

        @staticmethod
        def get_provided_features_list() -> tuple[str]:
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "features"

    FEATURE_EXTRACTORS_REGISTRY[USERS] = Users


def score_table(record: dict) -> str:
    """The scores as text, by torch-fidelity's names: only features of Inception make an FID."""
    counts = ", ".join(f"{record[name]['images']} {name}" for name in ("samples", "reference"))
    no_fid = "" if record["features"] == INCEPTION else ", which make no FID"
    lines = [f"{counts}; features of {record['features']}{no_fid}"]
    lines += [f"{name.replace('_', ' '):32} {value:.5g}" for name, value in record["scores"].items()]
    return "\n".join(lines)
