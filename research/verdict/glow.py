"""Do random rotations of 1×1 convolutions spoil a flow in front of a diffusion? ``python -m research.verdict glow``."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from indm.workbench.evaluation.statistics import over_seeds, paired_by_examples
from research.markdown import in_table, with_error
from research.records import RECORDS, Records, made_by
from research.verdict.images import load
from research.verdict.results import called
from research.verdict.search import bound
from research.verdict.training import train
from research.verdict.variants import Variant

TABLE = Records(RECORDS / "verdict-glow.csv")
DATA, STEPS, SEEDS = "cifar10-16", 1_000, (1, 2, 3)
UNIT = 3 * 16 * 16 * math.log(2)  # nats of a bit/dim
CURVE_IMAGES = 500  # of validation, after half of the steps and at the end
RATES = {"lr": 8e-3, "flow_share": 1 / 20}  # the search's
TURNED = {"start": "rotation", "mixing": "frozen"}
LINEAR, COUPLING = "linear", "coupling, from the identity"
VARIANTS = {
    LINEAR: Variant(lr=8e-3),
    COUPLING: Variant(family="affine", **RATES),
    "coupling, learned rotations": Variant(family="affine", start="rotation", **RATES),
    "coupling, fixed rotations": Variant(family="affine", **TURNED, **RATES),
    "linear behind a fixed rotation of 2×2 pixels": Variant(family="linear map", **TURNED, **RATES),
    "linear behind a fixed rotation of colours": Variant(family="colour map", **TURNED, **RATES),
}
UNROTATED = {  # the same without rotations
    name: COUPLING if variant.family == "affine" else LINEAR
    for name, variant in VARIANTS.items()
    if variant.start == "rotation"
}
Job = tuple[str, int]


def at(job: Job) -> Records:
    name, seed = job
    return TABLE.at(variant=name, seed=seed)


def jobs() -> Iterator[Job]:
    """The trainings that have no row yet, all variants of one seed before the next seed."""
    return ((name, seed) for seed in SEEDS for name in VARIANTS if not at((name, seed)).rows())


def run(job: Job, root: Path | None) -> None:
    """Train one variant and write its row."""
    torch.set_num_threads(1)
    (name, seed), images, curve = job, load(DATA, root), []

    def look(model) -> None:
        curve.append(bound(model, images.valid[:CURVE_IMAGES])["bits"])

    model, _, row = train(VARIANTS[name], images.train, STEPS, seed, {STEPS // 2: look, STEPS: look})
    row |= {"setting": str(VARIANTS[name]), "curve": curve} | bound(model, images.test)
    at(job).add(row | made_by(seed))


def markdown(table: Records) -> str:
    """The bounds, and differences in pairs from linear diffusion and from the same without rotations."""
    runs = table.of_common_seeds("variant", VARIANTS)
    bits = {name: np.array([row["nelbo_nats"] for row in own]) / UNIT for name, own in runs.items()}
    rows = []
    for name, own in runs.items():
        half, whole = np.mean([row["curve"] for row in own], axis=0)
        cells = name, len(own), f"{half:.3f}", f"{whole:.3f}", with_error(*over_seeds(bits[name].mean(1)), ".4f")
        others = LINEAR if name != LINEAR else None, UNROTATED.get(name)
        rows.append((*cells, *(less(bits[name], bits[other]) if other else "" for other in others)))
    titles = "flow", "seeds", "validation, 500 steps", "1,000 steps", "test, bits/dim", "less linear", "less unrotated"
    return in_table(*titles, rows=rows)


def less(a: np.ndarray, b: np.ndarray) -> str:
    """a − b, (seeds, images) each, with its error over both; bold where it is called a difference."""
    return called(paired_by_examples(a, b), [*(a - b).mean(1)], ".4f")
