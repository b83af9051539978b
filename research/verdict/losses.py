"""Estimators of the bound trained at equal cost: ``python -m research.verdict losses ROOT``; see
losses.md.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from indm import INDM
from indm.objective import Objective, constant_part, denoising_error, extended_clock, prior_term
from indm.tensors import event_size, randn_like
from indm.training import TrainingStep, progress_until
from research.lab.costs import Step, kept_costs
from research.lab.seeds import over_seeds, paired_by_examples
from research.markdown import in_table, with_error
from research.records import RECORDS, Records, made_by
from research.verdict.images import DIMS, Images, load
from research.verdict.pays import BATCH, Fit, Setting, batches, bound, built, called, exact

TABLE, COSTS = (
    Records(RECORDS / "verdict-losses.csv"),
    Records(RECORDS / "verdict-losses-costs.csv"),
)
STUDIES = ("clothes-16", "cifar10-16", "digits-8")
# steps of linear diffusion by the plain loss; test images, at most
STEPS, SEEDS, TEST = 1_000, (1, 2), 1_000
GRADIENTS = 40  # draws, of which the deviation is
SETTING = Setting(lr=8e-3, curve_lr=3e-3, coupling_lr=4e-4)
# the names in pays.py
VARIANTS = {"linear": "linear", "spline": "spline", "spline + coupling": "coupling"}


def plain_loss(
    model: INDM, x: Tensor, *, generator: torch.Generator | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The bound by ½‖n − ε̂‖² with all its noise: what :func:`indm.mle_loss` was, and is where no
    law is known.
    """
    z, log_det = model.encode(x, generator=generator)
    t, length = extended_clock(model.sde, len(z), model.sde.eps, generator=generator)
    error = length * denoising_error(model.score, z, t, randn_like(z, generator))
    nats = (
        error - log_det + prior_term(model.sde, z) + constant_part(model.sde, z, model.sde.eps)
    ).mean()
    return nats / event_size(x), {"nelbo": nats.detach()}


@dataclass(frozen=True)
class Arm:
    """A loss, and the rows of its batch: pairs take half as many, so that the network sees as many
    noises.
    """

    make: Callable[[INDM], Callable]
    rows: int = BATCH


ARMS = {
    "plain": Arm(lambda model: plain_loss),
    "exact": Arm(exact()),
    "exact, levels": Arm(exact(levels=True)),
    "exact, pairs": Arm(exact(pairs=True), BATCH // 2),
    "exact, pairs, levels": Arm(exact(pairs=True, levels=True), BATCH // 2),
}
Job = tuple[str, str, str, int]


def at(job: Job) -> Records:
    data, variant, arm, seed = job
    return TABLE.at(data=data, variant=variant, arm=arm, seed=seed)


def jobs() -> Iterator[Job]:
    """The trainings that have no row yet; behind no flow the exact loss has the gradients of the
    plain one.
    """
    for data in STUDIES:
        for seed in SEEDS:
            for variant in VARIANTS:
                for arm in ARMS:
                    if (variant, arm) != ("linear", "exact") and not at(
                        (data, variant, arm, seed)
                    ).rows():
                        yield data, variant, arm, seed


def started(variant: str, arm: str, images: Images, seed: int = 0) -> Fit:
    """A model before its first step."""
    model = built(VARIANTS[variant], "uniform", images, seed)
    return Fit(model, VARIANTS[variant], SETTING, ARMS[arm].make(model))


def measure_costs(data: str, images: Images) -> dict[str, float]:
    """The cost of a step by "variant, arm", relative to linear diffusion with the plain loss;
    measured once.
    """

    def step(variant: str, arm: str) -> Step:
        fit, source = started(variant, arm, images), batches(images.train, 0, ARMS[arm].rows)
        return lambda: fit.train_on(next(source), 0.0)

    steps = {
        f"{variant}, {arm}": partial(step, variant, arm) for variant in VARIANTS for arm in ARMS
    }
    return kept_costs(COSTS.at(data=data), steps, "linear, plain")


def run(job: Job, root: Path | None) -> None:
    """Train one model and write its row; beside the plain loss also the deviation of every loss's
    gradient there.
    """
    torch.set_num_threads(1)
    data, variant, arm, seed = job
    images = load(data, root)
    steps = round(STEPS / measure_costs(data, images)[f"{variant}, {arm}"])
    fit, source = started(variant, arm, images, seed), batches(images.train, seed, ARMS[arm].rows)
    torch.manual_seed(seed)
    for progress in progress_until(steps):
        fit.train_on(next(source), progress)
    nats = bound(VARIANTS[variant], fit.ema.model, images.test[:TEST])
    row = {"steps": steps, "nelbo_nats": nats.tolist()} | made_by(seed)
    if arm == "plain":
        row["deviations"] = {name: deviations(fit.model, name, images.train) for name in ARMS}
    at(job).add(row)


def main(root: Path) -> None:
    for job in jobs():
        run(job, root)


def deviations(model: INDM, arm: str, images: Tensor) -> dict[str, float]:
    """The deviation of the gradient of each part that has weights."""
    step, source = (
        TrainingStep(model, Objective(ARMS[arm].make(model))),
        batches(images, 0, ARMS[arm].rows),
    )
    parts = {
        name: part
        for name, part in {"score": model.score, "flow": model.flow}.items()
        if [*part.parameters()]
    }
    found = gradient_deviations(model, parts, lambda: step(next(source))[0].backward(), GRADIENTS)
    return {name: round(value, 5) for name, value in found.items()}


def gradient_deviations(
    model: INDM, parts: Mapping[str, nn.Module], gradients: Callable[[], Any], draws: int
) -> dict[str, float]:
    """The deviation of the gradient of each part by one batch, the root of its variances summed
    over weights.

    ``gradients`` computes them for another batch at each call. There are twice as many calls as
    ``draws``: the first half lets noise levels see where gradients are large.
    """
    drawn: dict[str, list[Tensor]] = {name: [] for name in parts}
    for _ in range(2 * draws):
        model.zero_grad()
        gradients()
        for name, part in parts.items():
            drawn[name].append(
                torch.cat([p.grad.flatten() for p in part.parameters() if p.grad is not None])
            )
    model.zero_grad()
    return {
        name: torch.stack(rows[draws:]).var(0).sum().sqrt().item() for name, rows in drawn.items()
    }


def markdown(table: Records) -> str:
    """Bounds of the test images, and the difference of each arm from the plain loss, in pairs of
    seeds and images.
    """
    rows = []
    for data in STUDIES:
        for variant in VARIANTS:
            own = table.at(data=data, variant=variant)
            known = [arm for arm in ARMS if own.at(arm=arm).rows()]
            if not known:
                continue
            runs = own.of_common_seeds("arm", known)
            dims = DIMS[data] * math.log(2)
            bits = {arm: np.array([row["nelbo_nats"] for row in runs[arm]]) / dims for arm in known}
            for arm in known:
                differences = bits[arm] - bits["plain"]
                less = paired_by_examples(bits[arm], bits["plain"]) if arm != "plain" else None
                cells = (data, variant, arm, len(runs[arm]), runs[arm][0]["steps"])
                mean = with_error(*over_seeds(bits[arm].mean(1)), ".4f")
                rows.append(
                    (*cells, mean, called(less, [*differences.mean(1)], ".4f") if less else "")
                )
    return in_table(
        "data", "model", "loss", "seeds", "steps", "test, bits/dim", "less plain", rows=rows
    )


def deviation_table(table: Records) -> str:
    """Deviations of the gradients of score and flow at the end of trainings by the plain loss,
    relative to plain.
    """
    rows = []
    for data in STUDIES:
        for variant in VARIANTS:
            found = [
                row["deviations"]
                for row in table.at(data=data, variant=variant, arm="plain").rows()
            ]
            for part in ("score", "flow"):
                if found and part in found[0]["plain"]:
                    known = [arm for arm in ARMS if all(arm in row for row in found)]
                    means = {
                        arm: np.mean([row[arm][part] / row["plain"][part] for row in found])
                        for arm in known
                    }
                    cells = (f"{means[arm]:.2f}" if arm in means else "" for arm in ARMS)
                    rows.append((data, variant, part, *cells))
    return in_table("data", "model", "gradient of", *ARMS, rows=rows)
