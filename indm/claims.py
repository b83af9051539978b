"""The paper's claims as numbers: INDM against its linear twin in pairs over seeds, each with its error and a verdict.

A claim is *reproduced* where the difference has the claimed sign by two standard errors, *failed* where it has the
other, and a *tie* within them. With few seeds a standard error is itself rough, so Student's p-value is beside it.

Source of the claims: Kim et al. 2022, https://arxiv.org/abs/2205.13699.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor, nn

from indm import runs
from indm.compare import TIE, difference
from indm.densities import EightGaussians
from indm.facts import Facts
from indm.flows import Identity
from indm.likelihood import evaluate
from indm.model import INDM
from indm.sde import VPSDE, LinearSDE

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
    """A verdict on INDM − linear over seeds; the standard error is at least ``least`` (that of the examples, say)."""
    values = [a - b for a, b in zip(indm, linear, strict=True)]
    mean, error = statistics.mean(values), math.nan
    test = "one seed"
    if len(values) > 1:
        error = statistics.stdev(values) / math.sqrt(len(values))
        p = 2 * stats.t.sf(abs(mean) / max(error, 1e-300), len(values) - 1)
        test = f"paired over {len(values)} seeds, p = {p:.2g}"
    error = max(error, least) if math.isfinite(error) else least
    averages = statistics.mean(indm), statistics.mean(linear)
    return Verdict(claim, data, quantity, *averages, mean, error, test, judge(mean, error, sign))


# ── The claims ──────────────────────────────────────────────────────────────────────────────────────────────────────


def fast_training(data: str, indm: list[Facts], linear: list[Facts], cost: float) -> list[Verdict]:
    """The bound at equal seconds, and how much sooner INDM reaches the linear model's last validation NELBO.

    Args:
        cost: seconds of an INDM step over those of a linear one, measured side by side.
    """
    claim, pairs = "1 fast training", [(a.folder, b.folder) for a, b in zip(indm, linear, strict=True)]
    found = difference(pairs)
    bounds = [[f.bound()[0] for f in group] for group in (indm, linear)]
    least = found["standard_error_over_images"]
    rows = [paired(claim, data, f"test NELBO at equal seconds, {indm[0].unit}", *bounds, sign=-1, least=least)]
    in_steps = [speedup(a, b) for a, b in zip(indm, linear, strict=True)]
    for what, ratios in (("steps", in_steps), ("seconds", [r / cost for r in in_steps])):
        quantity = f"{what} of the linear model over INDM's, to the linear model's final validation NELBO (1 = equal)"
        rows.append(paired(claim, data, quantity, ratios, [1.0] * len(ratios), sign=1))
    return rows


def speedup(indm: Facts, linear: Facts) -> float:
    """Steps of the linear run over those INDM needs for its last validation NELBO; 0 where INDM never gets there."""
    curves = [[line for line in runs.read_metrics(f.folder) if "valid_nelbo" in line] for f in (indm, linear)]
    goal, before = curves[1][-1]["valid_nelbo"], None
    for line in curves[0]:
        if line["valid_nelbo"] <= goal:
            step = line["step"]
            if before is not None:  # by linear interpolation
                share = (before["valid_nelbo"] - goal) / (before["valid_nelbo"] - line["valid_nelbo"])
                step = before["step"] + share * (step - before["step"])
            return curves[1][-1]["step"] / step
        before = line
    return 0.0


def mle_training(data: str, indm: list[Facts], linear: list[Facts]) -> list[Verdict]:
    """|NELBO − NLL of the ODE| at the end of training, smaller for INDM; and INDM's against zero."""
    claim = "2 MLE training"
    ends = [[f.measures["gap"][-1] for f in group] for group in (indm, linear)]
    sizes = [[abs(end["gap"]) for end in group] for group in ends]
    least = math.hypot(*(_together(group) for group in ends))
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


def robust_sampling(data: str, indm: list[Facts], linear: list[Facts]) -> list[Verdict]:
    """What few steps cost: the distance at so many steps less that at the most, by sampler; and the transport cost."""
    claim, rows = "3 robust sampling", []
    known = {(row["sampler"], row["steps"]) for row in indm[0].measures["quality"] if row["sampler"] != "data"}
    for sampler in dict.fromkeys(row["sampler"] for row in indm[0].measures["quality"] if row["sampler"] != "data"):
        reference = max(steps for name, steps in known if name == sampler and steps <= 100)
        for key, name in (("frechet", "Fréchet"), ("sliced_wasserstein", "sliced Wasserstein")):
            if indm[0].measures["quality"][0][key] is None:
                continue
            for steps in (n for n in FEW_STEPS if (sampler, n) in known):
                loss = [
                    [_at(f, sampler, steps)[key] - _at(f, sampler, reference)[key] for f in group]
                    for group in (indm, linear)
                ]
                quantity = f"{name} distance, {sampler}, {steps} less {reference} steps"
                rows.append(paired(claim, data, quantity, *loss, sign=-1))
    ratios = [[f.measures["transport"]["data"]["ratio"] for f in group] for group in (indm, linear)]
    rows.append(paired(claim, data, "transport cost over the optimal one, data space", *ratios, sign=-1))
    return rows


def _at(f: Facts, sampler: str, steps: int) -> dict:
    return next(row for row in f.measures["quality"] if (row["sampler"], row["steps"]) == (sampler, steps))


def decomposition(data: str, indm: list[Facts], linear: list[Facts], steps: int = 10) -> list[Verdict]:
    """The parts of the sampling error, INDM against linear, and whether their sum bounds the whole.

    All are root mean squares per dimension in model units, so that the triangle inequality of the sliced Wasserstein
    distance holds between them: whole ≤ prior + discretization + estimation.
    """
    claim, rows = "4 sampling error", []
    parts = [[sampling_parts(f, steps) for f in group] for group in (indm, linear)]
    for name in parts[0][0]:
        values = [[p[name] for p in group] for group in parts]
        rows.append(paired(claim, data, f"{name}, {steps} steps of UniPC", *values, sign=-1))
    for name, group in zip(("INDM", "linear"), parts, strict=True):
        slack = [p["prior"] + p["discretization"] + p["estimation"] - p["whole"] for p in group]
        rows.append(paired(claim, data, f"{name}: sum of the parts less the whole", slack, [0.0] * len(slack), sign=1))
    return rows


def sampling_parts(f: Facts, steps: int) -> dict[str, float]:
    """Whole, prior, discretization and estimation error of UniPC in so many steps."""
    e = f.measures["errors"]
    return {
        "whole": _at(f, "unipc", steps)["sliced_wasserstein"],
        "prior": e["prior"]["samples"]["sliced_wasserstein"],
        "discretization": next(row["rms"] for row in e["discretization"] if row["steps"] == steps),
        "estimation": e["estimation"]["samples"]["sliced_wasserstein"],
    }


def pretraining(data: str, pretrained: list[Facts], indm: list[Facts]) -> list[Verdict]:
    """Pre-trained INDM against INDM from scratch, in the same seconds: here "linear" is from scratch."""
    least = difference([(a.folder, b.folder) for a, b in zip(pretrained, indm, strict=True)])
    bounds = [[f.bound()[0] for f in group] for group in (pretrained, indm)]
    quantity = f"test NELBO, pre-trained (INDM column) against from scratch, {indm[0].unit}"
    return [paired("5 pre-training", data, quantity, *bounds, sign=-1, least=least["standard_error_over_images"])]


def both_sdes(data: str, pairs: dict[str, tuple[list[Facts], list[Facts]]]) -> list[Verdict]:
    """INDM against linear under each SDE."""
    rows = []
    for sde, (indm, linear) in pairs.items():
        least = difference([(a.folder, b.folder) for a, b in zip(indm, linear, strict=True)])
        bounds = [[f.bound()[0] for f in group] for group in (indm, linear)]
        rows.append(paired("6 VP and VE", data, f"test NELBO under {sde}, {indm[0].unit}", *bounds, sign=-1,
                           least=least["standard_error_over_images"]))  # fmt: skip
    return rows


# ── The control of claim 2 ──────────────────────────────────────────────────────────────────────────────────────────


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
