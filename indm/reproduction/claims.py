"""The paper's claims as numbers: INDM against its linear twin in pairs over seeds, each with its error and a verdict.

A claim is *reproduced* where the difference has the claimed sign by two standard errors, *failed* where it has the
other, a *tie* within them and *untested* without any. With few seeds a standard error is itself rough, so Student's
p-value is beside it.

Source of the claims: Kim et al. 2022, https://arxiv.org/abs/2205.13699.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from scipy import stats
from torch import Tensor, nn

from indm.data.densities import EightGaussians
from indm.evaluation.comparison import difference
from indm.evaluation.likelihood import evaluate
from indm.evaluation.statistics import TIE
from indm.flows import Identity
from indm.model import INDM
from indm.report.records import Record
from indm.sde.linear import VPSDE, LinearSDE

FEW_STEPS = (5, 10, 20)


@dataclass(frozen=True)
class Verdict:
    """A line of the table: INDM's and its linear twin's value (NaN: none), their difference, the test, the outcome."""

    claim: str
    data: str
    quantity: str
    indm: float
    linear: float
    difference: float
    standard_error: float
    test: str
    verdict: str


def judge(difference: float, error: float, sign: int) -> str:
    """ "reproduced", "tie" or "failed", for a claim that ``sign`` · difference is positive."""
    if not math.isfinite(difference):
        return "failed"
    if abs(difference) <= TIE * error:
        return "tie"
    return "reproduced" if sign * difference > 0 else "failed"


def paired(
    claim: str, data: str, quantity: str, indm: Sequence[float], linear: Sequence[float], sign: int, least: float = 0.0
) -> Verdict:
    """A verdict on INDM − linear over seeds; the standard error is at least ``least``, that of what all seeds share."""
    values = [a - b for a, b in zip(indm, linear, strict=True)]
    mean, averages = statistics.mean(values), (statistics.mean(indm), statistics.mean(linear))
    if len(values) == 1:
        error, verdict = (least, judge(mean, least, sign)) if least else (math.nan, "untested")
        return Verdict(claim, data, quantity, *averages, mean, error, "one seed", verdict)
    error = max(statistics.stdev(values) / math.sqrt(len(values)), least)
    p = 2 * stats.t.sf(abs(mean) / max(error, 1e-300), len(values) - 1)
    test = f"paired over {len(values)} seeds, p = {p:.2g}"
    return Verdict(claim, data, quantity, *averages, mean, error, test, judge(mean, error, sign))


def fast_training(
    data: str, indm: list[Record], linear: list[Record], cost: float, cost_error: float = 0.0
) -> list[Verdict]:
    """The bound at equal seconds, and how much sooner INDM reaches the linear model's best validation NELBO.

    Args:
        cost: log of the seconds of an INDM step over those of a linear one, measured side by side.
        cost_error: its standard error.
    """
    claim = "1 fast training"
    rows = [bound_at_equal_seconds(claim, data, indm, linear, "test NELBO")]
    logs = [[math.log(step) for step in steps] for steps in zip(*map(steps_to_goal, indm, linear), strict=True)]
    goal = "to the linear model's best validation NELBO"
    rows.append(paired(claim, data, f"log of the steps {goal}", *logs, sign=-1))
    taken = [step + cost for step in logs[0]]
    rows.append(paired(claim, data, f"log of the seconds {goal} (unit: a linear step)", taken, logs[1], sign=-1,
                       least=cost_error))  # fmt: skip
    return rows


def bound_at_equal_seconds(claim: str, data: str, indm: list[Record], linear: list[Record], quantity: str) -> Verdict:
    """INDM − linear in the test NELBO, which all seeds take on the same examples."""
    found = difference([(a.folder, b.folder) for a, b in zip(indm, linear, strict=True)])
    bounds = [[f.bound()[0] for f in group] for group in (indm, linear)]
    least = found["standard_error_over_examples"]
    return paired(claim, data, f"{quantity}, {indm[0].unit}, at equal seconds", *bounds, sign=-1, least=least)


def steps_to_goal(indm: Record, linear: Record) -> tuple[float, float]:
    """Steps of each run until its validation NELBO reaches the worse of the two bests: one rule for both.

    Where INDM gets there at all, that is the linear model's best; a run against itself takes equal steps.
    """
    curves = [f.curve for f in (indm, linear)]
    goal = max(min(line["valid_nelbo"] for line in curve) for curve in curves)
    return _reached(curves[0], goal), _reached(curves[1], goal)


def _reached(curve: list[dict], goal: float) -> float:
    """Where a curve first is at ``goal``, by linear interpolation between validations."""
    before = None
    for line in curve:
        if line["valid_nelbo"] <= goal:
            if before is None:
                return line["step"]
            share = (before["valid_nelbo"] - goal) / (before["valid_nelbo"] - line["valid_nelbo"])
            return before["step"] + share * (line["step"] - before["step"])
        before = line
    raise ValueError(f"goal must be reached by the curve, whose least is {min(m['valid_nelbo'] for m in curve)}")


def mle_training(data: str, indm: list[Record], linear: list[Record]) -> list[Verdict]:
    """|NELBO − NLL of the ODE| at the end of training, smaller for INDM; and INDM's against zero."""
    claim = "2 MLE training"
    ends = [[f.measures["gap"][-1] for f in group] for group in (indm, linear)]
    sizes = [[abs(end["gap"]) for end in group] for group in ends]
    least = math.hypot(*(statistics.mean(end["standard_error"] for end in group) for group in ends))
    rows = [paired(claim, data, f"|NELBO − NLL (ODE)|, {indm[0].unit}", *sizes, sign=-1, least=least)]
    for name, group in zip(("INDM", "linear"), ends, strict=True):
        gap, error = statistics.mean(end["gap"] for end in group), _together(group)
        zero = "zero within two standard errors" if abs(gap) <= TIE * error else "not zero"
        signed = (gap, math.nan) if name == "INDM" else (math.nan, gap)
        rows.append(Verdict(claim, data, f"NELBO − NLL (ODE) of {name}, {indm[0].unit}", *signed, gap, error,
                            "over examples and seeds", zero))  # fmt: skip
    return rows


def _together(ends: list[dict]) -> float:
    """Standard error of the mean gap: the larger of those over seeds and over examples, which all seeds share."""
    gaps, alone = [end["gap"] for end in ends], statistics.mean(end["standard_error"] for end in ends)
    return max(alone, statistics.stdev(gaps) / math.sqrt(len(gaps))) if len(gaps) > 1 else alone


def robust_sampling(data: str, indm: list[Record], linear: list[Record]) -> list[Verdict]:
    """What few steps cost: the distance at so many steps less that at the most, by sampler; and the transport cost."""
    claim, rows = "3 robust sampling", []
    known = {(row["sampler"], row["steps"]) for row in indm[0].measures["quality"] if row["sampler"] != "data"}
    for sampler in dict.fromkeys(row["sampler"] for row in indm[0].measures["quality"] if row["sampler"] != "data"):
        reference = max(steps for name, steps in known if name == sampler and steps <= 100)
        for key, name in (("frechet", "Fréchet"), ("sliced_wasserstein", "sliced Wasserstein")):
            if indm[0].measures["quality"][0][key] is None:
                continue
            for steps in (n for n in FEW_STEPS if n < reference and (sampler, n) in known):
                loss = [
                    [_at(f, sampler, steps)[key] - _at(f, sampler, reference)[key] for f in group]
                    for group in (indm, linear)
                ]
                quantity = f"{name} distance, {sampler}, {steps} less {reference} steps"
                rows.append(paired(claim, data, quantity, *loss, sign=-1))
    for key, quantity in (
        ("cost_per_dimension", "transport cost E‖x_T − x_0‖² / d, data space"),
        ("ratio", "transport cost over the optimal one, data space"),
    ):
        costs = [[f.measures["transport"]["data"][key] for f in group] for group in (indm, linear)]
        rows.append(paired(claim, data, quantity, *costs, sign=-1))
    return rows


def _at(f: Record, sampler: str, steps: int) -> dict:
    return next(row for row in f.measures["quality"] if (row["sampler"], row["steps"]) == (sampler, steps))


def decomposition(data: str, indm: list[Record], linear: list[Record], steps: int = 10) -> list[Verdict]:
    """The parts of the sampling error, INDM against linear; and the check that their sum bounds the whole.

    The bound is the triangle inequality (see :func:`indm.evaluation.sampling_error.sampling_errors`), so it must hold.
    """
    claim, parts = "4 sampling error", [[sampling_parts(f, steps) for f in group] for group in (indm, linear)]
    rows = []
    for name in parts[0][0]:
        values = [[p[name] for p in group] for group in parts]
        rows.append(paired(claim, data, f"{name}, {steps} steps of UniPC", *values, sign=-1))
    slack = [[p["prior"] + p["discretization"] + p["estimation"] - p["whole"] for p in group] for group in parts]
    row = paired(claim, data, "check: sum of the parts less the whole", *slack, sign=1)
    return [*rows, replace(row, verdict="holds" if min(min(values) for values in slack) >= 0 else "violated")]


def sampling_parts(f: Record, steps: int) -> dict[str, float]:
    """Whole (sliced Wasserstein to test data), prior, discretization and estimation error of UniPC in so many steps."""
    e = f.measures["errors"]
    return {
        "whole": _at(f, "unipc", steps)["sliced_wasserstein"],
        "prior": e["prior"]["rms"],
        "discretization": next(row["rms"] for row in e["discretization"] if row["steps"] == steps),
        "estimation": e["estimation"]["samples"]["sliced_wasserstein"],
    }


def pretraining(data: str, pretrained: list[Record], indm: list[Record]) -> list[Verdict]:
    """Pre-trained INDM (in INDM's column) against INDM from scratch (in the other), in the same seconds."""
    quantity = "test NELBO of pre-trained (left) and from scratch (right)"
    return [bound_at_equal_seconds("5 pre-training", data, pretrained, indm, quantity)]


def both_sdes(data: str, pairs: dict[str, tuple[list[Record], list[Record]]]) -> list[Verdict]:
    """INDM against linear under each SDE."""
    return [
        bound_at_equal_seconds("6 VP and VE", data, indm, linear, f"test NELBO under {sde}")
        for sde, (indm, linear) in pairs.items()
    ]


class MixtureScore(nn.Module):
    """``factor`` times the exact score of z_t for data from eight Gaussians, under any linear SDE."""

    def __init__(self, sde: LinearSDE, factor: float = 1.0):
        super().__init__()
        self.sde, self.factor, self.density = sde, factor, EightGaussians()

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.sde.alpha(t.double())[:, None, None], self.sde.sigma(t.double())[:, None, None]
        variance = (alpha * self.density.std) ** 2 + sigma**2
        difference = alpha * self.density.centres - z_t.double()[:, None]
        weight = (-0.5 * difference.square().sum(2, keepdim=True) / variance).softmax(1)
        return self.factor * (weight * difference / variance).sum(1).to(z_t)


def control(seed: int = 0, points: int = 2000) -> list[Verdict]:
    """NELBO − NLL of the ODE with the exact score, which must be zero, and with 1.1 times it, which must not."""
    raw = EightGaussians().sample(points, generator=torch.Generator().manual_seed(seed))
    rows = []
    for factor, name in ((1.0, "the exact score"), (1.1, "1.1 times the exact score")):
        model = INDM(Identity(), MixtureScore(VPSDE(), factor), shape=(2,))
        _, nats = evaluate(model, raw, times=64, seed=seed, progress=False)
        gaps = nats["nelbo"] - nats["nll"]
        gap, error = gaps.mean().item(), (gaps.std() / math.sqrt(points)).item()
        zero = abs(gap) <= 3 * error
        expected = zero == (factor == 1.0)
        quantity, test = f"control: NELBO − NLL (ODE) with {name}, nats", f"three standard errors, {points} points"
        outcome = "as expected" if expected else "NOT as expected"
        rows.append(Verdict("2 MLE training", "eight Gaussians", quantity, math.nan, gap, gap, error, test, outcome))
    return rows
