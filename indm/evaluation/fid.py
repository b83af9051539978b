"""Scores of images against reference images by torch-fidelity: FID, Inception score, KID, precision and recall.

Rounding, a dropped last batch, the way of resizing, the split and the number of images all change such scores, so none
is returned or kept without its provenance: which pixels, how they were made, and which extractor saw them.

Source: Obukhov et al. 2020, "torch-fidelity", https://github.com/toshas/torch-fidelity.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import indm
from indm.data.base import InMemory
from indm.evaluation.features import INCEPTION, Features, fit
from indm.evaluation.image_sources import Images, check_number
from indm.evaluation.reference_features import REFERENCE, features_file, kept_features
from indm.files import atomic, untrusted
from indm.runs.devices import device
from indm.runs.provenance import provenance

BATCH = 64
SETTINGS = {"isc_splits": 10, "kid_subsets": 100, "prc_neighborhood": 3, "rng_seed": 2020}


class Pixels(InMemory):
    """Images in memory whose batches are lists, which the loader of torch-fidelity stacks."""

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return list(self.tensor[indices])


def score(samples: Images, reference: Images, features: Features, *, progress: bool = True) -> dict:
    """The scores of samples against a reference, with their provenance.

    The features of the reference are kept, see :func:`~indm.evaluation.reference_features.kept_features`.

    Returns:
        ``scores``: ``frechet_distance`` (squared units of the features; the FID where the extractor is Inception),
        ``inception_score`` (mean and ``…_std`` over 10 parts), ``kernel_distance`` (KID: mean and ``…_std`` over
        100 subsets), ``precision`` and ``recall`` (3 nearest neighbours, in the features of the other scores).
        ``samples``, ``reference``: their provenance, ``images``, ``shape``, ``levels`` and the SHA-256 of the pixels
        that the extractor saw. ``extractor``, ``settings``, ``versions``. ``provenance``: what all files of numbers
        have, see :func:`indm.runs.provenance.provenance`.

    Raises:
        ValueError: fewer than 20 images, or images of different shapes.

    Source: Heusel et al. 2017, https://arxiv.org/abs/1706.08500; Salimans et al. 2016,
    https://arxiv.org/abs/1606.03498; Bińkowski et al. 2018, https://arxiv.org/abs/1801.01401; Kynkäänniemi et al. 2019,
    https://arxiv.org/abs/1904.06991.
    """
    import torch_fidelity

    pixels, about = {}, {}
    for name, images in {"samples": samples, "reference": reference}.items():
        check_number(name, len(images.raw))
        pixels[name] = fit(images, features).contiguous()
        about[name] = _describe(images, pixels[name])
    shapes = [tuple(raw.shape[1:]) for raw in pixels.values()]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"samples and reference must be of one shape, got {shapes[0]} and {shapes[1]}; resize a folder"
        )
    settings = SETTINGS | {"kid_subset_size": min(1000, *map(len, pixels.values()))}
    file = features_file(
        [about["reference"]["pixels_sha256"], shapes[1], features.provenance, torch_fidelity.__version__]
    )
    with kept_features(file, features, len(pixels["reference"])) as cache:
        scores = _calculate(pixels["samples"], pixels["reference"], features, settings, cache, progress)
    versions = {"indm": indm.__version__, "torch": torch.__version__, "torch_fidelity": torch_fidelity.__version__}
    how = {"extractor": features.provenance, "settings": settings, "versions": versions}
    return {"scores": scores, **about, **how, "provenance": _provenance(about)}


def _describe(images: Images, pixels: Tensor) -> dict:
    """What a record says of images, and of the pixels that the extractor saw."""
    return images.provenance | {
        "images": len(pixels),
        "shape": list(images.raw.shape[1:]),
        "levels": images.levels,
        "pixels_sha256": hashlib.sha256(pixels.numpy().data).hexdigest(),
    }


def _calculate(
    samples: Tensor, reference: Tensor, features: Features, settings: dict, cache: Path, progress: bool
) -> dict[str, float]:
    """The scores by their names in a record."""
    import torch_fidelity

    metrics = torch_fidelity.calculate_metrics(
        input1=Pixels(samples),
        input2=Pixels(reference),
        input2_cache_name=REFERENCE,
        cache_root=str(cache),
        feature_extractor=features.name,
        feature_extractor_weights_path=str(features.weights),
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        cuda=device().startswith("cuda"),
        batch_size=BATCH,
        save_cpu_ram=True,  # no worker processes: the images are in memory
        verbose=progress and features.name == INCEPTION,  # it calls every Fréchet distance a FID
        **settings,
    )
    return {
        "frechet_distance": metrics[torch_fidelity.KEY_METRIC_FID],
        "inception_score": metrics[torch_fidelity.KEY_METRIC_ISC_MEAN],
        "inception_score_std": metrics[torch_fidelity.KEY_METRIC_ISC_STD],
        "kernel_distance": metrics[torch_fidelity.KEY_METRIC_KID_MEAN],
        "kernel_distance_std": metrics[torch_fidelity.KEY_METRIC_KID_STD],
        "precision": metrics[torch_fidelity.KEY_METRIC_PRECISION],
        "recall": metrics[torch_fidelity.KEY_METRIC_RECALL],
    }


def _provenance(about: dict[str, dict]) -> dict:
    """The provenance of scores: the seed of the samples, and the weights of all that was drawn of a run."""
    drawn: dict[Any, Any] = {source.get("run", source.get("file")): source.get("drawn") for source in about.values()}
    weights = {source: made_by["weights_sha256"] for source, made_by in drawn.items() if made_by}
    return provenance((about["samples"].get("drawn") or {}).get("seed"), weights)


def read_records(file: Path) -> list[dict]:
    """The records of scores in a JSON file, none where there is no such file.

    Raises:
        ValueError: something else is there, to which none can be added.
    """
    if not file.exists():
        return []
    records = untrusted.json_object(file).get("records")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f'{file} holds no list of "records" of scores, to which others could be added; move it away')
    return records


def add_record(record: dict, file: Path) -> None:
    """Add what :func:`score` returned to the ``records`` of a JSON file; one of the same images and settings goes.

    Raises:
        ValueError: see :func:`read_records`.
    """
    records = read_records(file)
    record = json.loads(json.dumps(record))  # as it will be read
    ignored = {"scores": None, "provenance": None}  # another command may have asked for the same scores
    others = [old for old in records if old | ignored != record | ignored]
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.json_object(file, {"records": [*others, record]})


def score_table(record: dict) -> str:
    """The scores as text, by their names: only features of Inception make a FID."""
    scores, extractor = record["scores"], record["extractor"]
    inception = extractor["name"] == INCEPTION
    counts = ", ".join(f"{record[name]['images']} {name}" for name in ("samples", "reference"))
    lines = [f"{counts}; features of {extractor['name']}{'' if inception else ', which make no FID'}"]
    for name in (name for name in scores if not name.endswith("_std")):
        std = scores.get(f"{name}_std")
        label = {"frechet_distance": "FID", "kernel_distance": "KID"}.get(name, name) if inception else name
        lines.append(f"{label.replace('_', ' '):20} {scores[name]:.5g}" + (f" ± {std:.2g}" if std is not None else ""))
    return "\n".join(lines)
