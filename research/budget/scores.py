"""Fréchet distances of a run's samples from its test split, by two kinds of features."""

import functools
from pathlib import Path

import torch
from torch import Tensor

from indm.workbench.data.base import Data, as_data, load_data, stack
from indm.workbench.runs.folder import recipe_of
from indm.workbench.runs.samples import SAMPLES, read_samples
from research.lab.distances import frechet_distance
from research.lab.extractor import general_features, load_or_train
from research.lab.statistics import jackknife

MOST = 5_000  # images of a side


def scores(run: Path, extractors: Path) -> dict[str, float]:
    """``frechet_own`` and ``frechet_general``, each with its standard error.

    Own features are of a classifier of the data: of their classes; of patches, which photograph of the training split
    each is from; none where the data have neither. General features are of a classifier of ImageNet. The reference is
    the test split, and the training split of patches, whose test split holds other photographs.
    """
    data = load_data(**recipe_of(run)["data"])
    drawn, _, _ = read_samples(run / SAMPLES)
    reference = stack(data.train if data.groups else data.test, MOST)
    labelled = data if data.labels else of_groups(data) if data.groups else None
    kinds = {"general": lambda: general_features(data.scaling.levels)}
    if labelled is not None:
        side = "x".join(map(str, data.shape))
        kinds["own"] = functools.partial(load_or_train, extractors / f"{data.name}-{side}", labelled, progress=False)
    found: dict[str, float] = {}
    for kind, make in kinds.items():
        reader = make()
        numbers = jackknife(distance, reader.features(drawn[:MOST]), reader.features(reference))
        found |= {f"frechet_{kind}{name.removeprefix('frechet')}": value for name, value in numbers.items()}
    return found


def distance(*sets: Tensor) -> dict[str, float]:
    return {"frechet": frechet_distance(*sets)}


def of_groups(data: Data) -> Data:
    """The training split as data whose classes are its groups, divided anew."""
    raw = stack(data.train)
    return as_data(raw, name=f"{data.name}-groups", levels=256, c=torch.as_tensor(data.groups["train"]))
