"""How close translations come to the data of B or to their true counterparts, and how much of their sources they keep.

The features and the classes of :func:`translation_metrics` come from a small classifier of the two data sets
(:class:`research.lab.extractor.Extractor`), so distances compare translations of one pair of data sets
with one another; they are not an FID.
"""

import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from indm.tensors import double
from indm.workbench.data import Data, InMemory, stack
from indm.workbench.evaluation.statistics import mean_and_error
from research.lab.distances import frechet_distance, kernel_distance
from research.lab.extractor import Extractor
from research.lab.statistics import jackknife, share_error

Images = Num[Tensor, "n *event"]
ToFeatures = Callable[[Images], Float[Tensor, "n features"]]
WINDOW = 7  # of SSIM, pixels
MOST = 2000  # training images of the target that results are compared with
MOST_GENERAL = 500  # the same by general features, which take more time
RECALL = (1, 5, 10)  # how many of the nearest may be the counterpart
COLUMNS = {
    "frechet": "Fréchet distance to B",
    "kid": "KID to B",
    "general_kid": "KID, general features",
    "accuracy": "taken for B",
    "distance": "distance to source",
    "ssim": "SSIM with source",
    "diversity": "diversity",
}


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
    source: Images, result: Images, target: Data, extractor: Extractor, label: int, general: ToFeatures | None = None
) -> dict:
    """The results of a translation against its sources, pair by pair, and against the target's data.

    Args:
        source, result: grey levels, row by row, at least 20.
        target: the data that results should look like; its training images are the reference.
        label: the target's class by ``extractor``.
        general: features of images of any kind, see :class:`research.lab.extractor.GeneralFeatures`.

    Returns:
        Each but the limits with its ``…_standard_error``. ``frechet``, ``kid``: of features of the results and of the
        target's training images; ``…_floor``: of as many of the target's test images, ``…_ceiling``: of the sources.
        ``general_kid``: the same as ``kid`` by ``general`` features, None without.
        ``accuracy``: the share that the classifier takes for the target, ``accuracy_floor`` that of its test images.
        ``distance``: RMS of a result minus its source over the image, grey levels; ``ssim``, None without torchmetrics.
        ``diversity``: mean distance of two results' features over that of two test images.
    """
    train, test = stack(target.train, MOST), stack(target.test, len(result))
    sets = {"": result, "_floor": test, "_ceiling": source}
    features, reference = {end: extractor.features(x) for end, x in sets.items()}, extractor.features(train)
    metrics: dict = {"images": len(result), "target_images": len(train), "target_test_images": len(test)}
    metrics |= _distances(features, reference, {"frechet": frechet_distance, "kid": kernel_distance})
    if general is None:
        metrics |= {"general_kid": None, "general_kid_standard_error": None}
    else:
        own = {end: general(x) for end, x in sets.items()}
        metrics |= _distances(own, general(train[:MOST_GENERAL]), {"general_kid": kernel_distance})
    for end, x in features.items():
        right = extractor.head(x.to(extractor.head.weight.device)).argmax(1).cpu() == label
        metrics[f"accuracy{end}"], error = mean_and_error(double(right))
        metrics |= {} if end else {"accuracy_standard_error": error}
    similar = structural_similarity(source, result, extractor.levels)
    for name, values in (("distance", rms_distance(result, source)), ("ssim", similar)):
        metrics[name], metrics[f"{name}_standard_error"] = (None, None) if values is None else mean_and_error(values)
    of_tests = _spread(features["_floor"])["diversity"]
    return metrics | {name: value / of_tests for name, value in jackknife(_spread, features[""]).items()}


def _distances(sets: Mapping[str, Tensor], reference: Tensor, kinds: Mapping[str, Callable]) -> dict[str, float]:
    """The distances of each set from the reference, by kind and the set's suffix; the first with standard errors."""

    def distances(a: Tensor, b: Tensor) -> dict[str, float]:
        return {kind: distance(a, b) for kind, distance in kinds.items()}

    limits = {end: distances(features, reference) for end, features in sets.items() if end}
    found = {f"{kind}{end}": value for end, values in limits.items() for kind, value in values.items()}
    return jackknife(distances, sets[""], reference) | found


def rms_distance(a: Images, b: Images) -> Float[Tensor, " n"]:
    """Root mean square of the difference of each pair of images."""
    return (double(a) - double(b)).flatten(1).square().mean(1).sqrt()


def structural_similarity(a: Images, b: Images, levels: int) -> Float[Tensor, " n"] | None:
    """SSIM of each pair of images, (n,), in windows of 7×7 pixels, borders reflected; None without torchmetrics.

    Source: Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861.
    """
    if importlib.util.find_spec("torchmetrics") is None:
        return None
    from torchmetrics.functional.image import structural_similarity_index_measure

    options: dict[str, Any] = {"gaussian_kernel": False, "kernel_size": WINDOW, "reduction": "none"}
    options["data_range"] = float(levels - 1)
    return cast(Tensor, structural_similarity_index_measure(double(a), double(b), **options))


def _spread(features: Tensor) -> dict[str, float]:
    """Mean distance of two samples."""
    n = len(features)
    return {"diversity": (torch.cdist(features, features).sum() / (n * (n - 1))).item()}


def limits(metrics: Mapping) -> dict[str, list[str]]:
    """The rows of B's own test images and of the sources, which no translation made."""
    rows = {}
    for title, end in (("B's test images", "floor"), ("sources", "ceiling")):
        own = [metrics.get(f"{name}_{end}", math.nan) for name in COLUMNS]
        rows[title] = ["–" if math.isnan(value) else f"{value:.3g}" for value in own]
    return rows


def against_truth(
    source: Images, result: Images, truth: Images, features: ToFeatures, levels: int
) -> dict[str, dict[str, float]]:
    """Results, and their sources as they are, against the true counterparts, row by row.

    Args:
        source, result, truth: grey levels.
        features: of images, which say how alike two are.
        levels: number of grey levels.

    Returns:
        For "result" and "source": means over images, each with its ``…_standard_error``. ``distance``: root mean square
        in grey levels; ``ssim`` (with torchmetrics); ``features``: distance of features; ``recall_K``: the share whose
        counterpart is among the K of all n that are nearest by features; ``chance_K`` = K/n is that of guessing.
    """
    of_truth = double(features(truth))
    found: dict[str, dict[str, float]] = {}
    for name, images in (("result", result), ("source", source)):
        apart = torch.cdist(double(features(images)), of_truth)
        values = {"distance": rms_distance(images, truth), "features": apart.diagonal()}
        values |= {} if (similar := structural_similarity(images, truth, levels)) is None else {"ssim": similar}
        found[name] = line = {}
        for key, of_images in values.items():
            line[key], line[f"{key}_standard_error"] = mean_and_error(of_images)
        nearer = others_as_near(apart)
        for k in RECALL:
            share = (nearer < k).double().mean().item()
            line[f"recall_{k}"], line[f"recall_{k}_standard_error"] = share, share_error(share, len(apart))
            line[f"chance_{k}"] = min(1.0, k / len(apart))
    return found


def others_as_near(apart: Num[Tensor, "n n"]) -> Int[Tensor, " n"]:
    """Of each row of a matrix of distances, how many other columns are at most as far as its own.

    Example:

        >>> others_as_near(torch.tensor([[1.0, 2.0], [3.0, 3.0]]))
        tensor([0, 1])
    """
    return (apart <= apart.diagonal()[:, None]).sum(1) - 1
