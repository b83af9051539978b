"""How close translated images are to the data that they should look like, and how much of their sources they keep.

The features and the classes come from a small classifier of the two data sets (:mod:`indm.evaluation.extractor`), so
distances compare translations of one pair of data sets with one another; they are no FID.
"""

import importlib.util
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Num
from torch import Tensor

from indm.data.base import Data, InMemory, stack
from indm.evaluation.distances import frechet_distance, kernel_distance
from indm.evaluation.extractor import Extractor
from indm.evaluation.statistics import jackknife, mean_and_error
from indm.tensors import double

Images = Num[Tensor, "n *event"]
WINDOW = 7  # of SSIM, pixels
MOST = 2000  # training images of the target that results are compared with
MOST_GENERAL = 500  # the same by general features, which take more time


def two_classes(a: Data, b: Data) -> Data:
    """The images of both data sets as one, of the classes A and B: what tells them apart can be learned from it."""
    parts: dict[str, Any] = {}
    labels: dict[str, Tensor] = {}
    for part in ("train", "valid", "test"):
        sets = [stack(getattr(data, part), 10_000) for data in (a, b)]
        parts[part] = InMemory(torch.cat(sets))
        labels[part] = torch.cat([torch.full((len(images),), label) for label, images in enumerate(sets)])
    order = torch.randperm(len(labels["train"]), generator=torch.Generator().manual_seed(0))
    parts["train"], labels["train"] = InMemory(parts["train"].tensor[order]), labels["train"][order]
    notes = [f"0: {note}" for note in a.notes] + [f"1: {note}" for note in b.notes]
    about: dict[str, Any] = {"scaling": a.scaling, "shape": a.shape, "labels": labels, "classes": ("A", "B")}
    return Data(name=f"{a.name} and {b.name}", notes=notes, **about, **parts)


def translation_metrics(
    source: Images,
    result: Images,
    target: Data,
    extractor: Extractor,
    label: int,
    general: Callable[[Images], Tensor] | None = None,
) -> dict:
    """The results of a translation against its sources, pair by pair, and against the target's data.

    Args:
        source, result: grey levels, row by row, at least 20.
        target: the data that results should look like; its training images are the reference.
        label: the target's class by ``extractor``.
        general: features of images of any kind, see :mod:`indm.evaluation.general_features`.

    Returns:
        Each but the limits with its ``…_standard_error``. ``frechet``, ``kid``: of features of the results and of the
        target's training images; ``…_floor``: of as many of the target's test images, ``…_ceiling``: of the sources.
        ``general_kid``: the same as ``kid`` by ``general`` features, None without.
        ``accuracy``: the share that the classifier takes for the target, ``accuracy_floor`` that of its test images.
        ``distance``: RMS of a result minus its source over the image, grey levels; ``ssim``, None without torchmetrics.
        ``diversity``: mean distance of two results' features over that of two test images.
    """
    train, test = stack(target.train, MOST), stack(target.test, len(result))
    f = {name: extractor.features(x) for name, x in (("a", source), ("ab", result), ("b", train), ("test", test))}
    metrics: dict = {"images": len(result), "target_images": len(train), "target_test_images": len(test)}
    metrics |= jackknife(_feature_distances, f["ab"], f["b"])
    for suffix, other in (("floor", "test"), ("ceiling", "a")):
        limits = jackknife(_feature_distances, f[other], f["b"])
        metrics |= {f"{name}_{suffix}": limits[name] for name in ("frechet", "kid")}
    metrics |= _general_distances(general, train[:MOST_GENERAL], {"": result, "_floor": test, "_ceiling": source})
    for suffix, features in (("", f["ab"]), ("_floor", f["test"]), ("_ceiling", f["a"])):
        right = extractor.head(features.to(extractor.head.weight.device)).argmax(1).cpu() == label
        metrics[f"accuracy{suffix}"], error = mean_and_error(double(right))
        metrics |= {"accuracy_standard_error": error} if not suffix else {}
    difference = (double(result) - double(source)).flatten(1)
    for name, values in (
        ("distance", difference.square().mean(1).sqrt()),
        ("ssim", structural_similarity(source, result, extractor.levels)),
    ):
        metrics[name], metrics[f"{name}_standard_error"] = (None, None) if values is None else mean_and_error(values)
    spread = jackknife(_spread, f["ab"])
    whole = _spread(f["test"])["diversity"]
    return metrics | {name: value / whole for name, value in spread.items()}


def structural_similarity(a: Images, b: Images, levels: int) -> Tensor | None:
    """SSIM of each pair of images, (n,), in windows of 7×7 pixels, borders reflected; None without torchmetrics.

    Source: Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861.
    """
    if importlib.util.find_spec("torchmetrics") is None:
        return None
    from torchmetrics.functional.image import structural_similarity_index_measure

    options: dict[str, Any] = {
        "gaussian_kernel": False,
        "kernel_size": WINDOW,
        "data_range": float(levels - 1),
        "reduction": "none",
    }
    return cast(Tensor, structural_similarity_index_measure(double(a), double(b), **options))


def _feature_distances(a: Tensor, b: Tensor) -> dict[str, float]:
    return {"frechet": frechet_distance(a, b), "kid": kernel_distance(a, b)}


def _general_distances(general: Callable[[Images], Tensor] | None, reference: Images, sets: dict[str, Images]) -> dict:
    """``general_kid`` of each set from the reference, named by its suffix, the first with its standard error."""
    if general is None:
        return {"general_kid": None, "general_kid_standard_error": None}

    def distance(a: Tensor, b: Tensor) -> dict[str, float]:
        return {"general_kid": kernel_distance(a, b)}

    b, features = general(reference), {suffix: general(images) for suffix, images in sets.items()}
    limits = {f"general_kid{suffix}": kernel_distance(a, b) for suffix, a in features.items() if suffix}
    return jackknife(distance, features[""], b) | limits


def _spread(features: Tensor) -> dict[str, float]:
    """Mean distance of two samples."""
    n = len(features)
    return {"diversity": (torch.cdist(features, features).sum() / (n * (n - 1))).item()}


COLUMNS = {
    "frechet": "Fréchet distance to B",
    "kid": "KID to B",
    "general_kid": "KID, general features",
    "accuracy": "taken for B",
    "distance": "distance to source",
    "ssim": "SSIM with source",
    "diversity": "diversity",
}


def row(metrics: dict) -> list[str]:
    """The columns of :data:`COLUMNS` as text, ± one standard error."""
    return [
        "–" if metrics[name] is None else f"{metrics[name]:.3g} ± {metrics[f'{name}_standard_error']:.1g}"
        for name in COLUMNS
    ]


def limits(metrics: dict) -> dict[str, list[str]]:
    """The rows of B's own test images and of the sources, which no translation made."""
    rows = {}
    for title, suffix in (("B's test images", "floor"), ("sources", "ceiling")):
        own = {name: metrics.get(f"{name}_{suffix}", math.nan) for name in COLUMNS}
        rows[title] = ["–" if math.isnan(value) else f"{value:.3g}" for value in own.values()]
    return rows
