"""The paper's claims: INDM against its linear twin in pairs over seeds, each difference with its error and a verdict.

A claim is one value: a sentence, the variants that are trained for it, what is measured of them, and how it is judged.
A new claim is a function of :class:`Evidence` and a row of :data:`CLAIMS`.

Source of the claims: Kim et al. 2022, https://arxiv.org/abs/2205.13699.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from indm.evaluation.results import difference
from indm.evaluation.statistics import TIE, over_seeds
from indm.report.records import Record
from indm.reproduction.control import CONTROL_DATA, exact_score_control
from indm.reproduction.verdicts import Comparison, Verdict, paired

FEW_STEPS = (5, 10, 20)
MOST_STEPS = 100  # of the sampling that few steps are compared with
DECOMPOSED_STEPS = 10


@dataclass(frozen=True)
class Evidence:
    """What a claim is judged by, of one data set.

    Args:
        data: its name.
        records: of all runs by variant, in the order of seeds.
        log_cost: log of the seconds of an INDM step over those of a linear one, measured side by side.
        log_cost_error: its standard error.
    """

    data: str
    records: Mapping[str, Sequence[Record]]
    log_cost: float = 0.0
    log_cost_error: float = 0.0

    @property
    def pair(self) -> tuple[Sequence[Record], Sequence[Record]]:
        """The records of INDM and of its linear twin."""
        return self.records["indm"], self.records["linear"]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Args:
        name: as in the table; claims are listed in the order of their names.
        sentence: what is claimed.
        judge: the comparisons that decide it on one data set.
        measurements: names in :data:`indm.report.measurements.MEASUREMENTS`, for every variant and seed.
        variants: names in :data:`indm.reproduction.studies.VARIANTS`, whose runs it needs.
        control: comparisons, made once, that show whether the claim's measurements can be relied on.
    """

    name: str
    sentence: str
    judge: Callable[[Evidence], list[Comparison]]
    measurements: tuple[str, ...] = ()
    variants: tuple[str, ...] = ("linear", "indm")
    control: Callable[[], list[Comparison]] = list

    def verdicts(self, evidence: Evidence) -> list[Verdict]:
        """The claim on one data set; none where that has not all the variants."""
        if not set(self.variants) <= evidence.records.keys():
            return []
        return [Verdict(claim=self.name, data=evidence.data, **vars(row)) for row in self.judge(evidence)]

    def controls(self) -> list[Verdict]:
        """The rows of its control."""
        return [Verdict(claim=self.name, data=CONTROL_DATA, **vars(row)) for row in self.control()]


def bound_at_equal_seconds(indm: Sequence[Record], linear: Sequence[Record], quantity: str) -> Comparison:
    """INDM − linear in the test NELBO, which is taken on the same examples for all seeds."""
    folders = [(a.folder, b.folder) for a, b in zip(indm, linear, strict=True)]
    least_error = difference(folders)["standard_error_over_examples"]
    bounds = [[cast(tuple, record.bound())[0] for record in group] for group in (indm, linear)]
    return paired(f"{quantity}, {indm[0].unit}, at equal seconds", *bounds, sign=-1, least_error=least_error)


def fast_training(e: Evidence) -> list[Comparison]:
    """The bound at equal seconds, and how much sooner INDM reaches the linear model's best validation NELBO."""
    indm, linear = e.pair
    logs = [[math.log(step) for step in steps] for steps in zip(*map(steps_to_goal, indm, linear), strict=True)]
    log_seconds = [[step + e.log_cost for step in logs[0]], logs[1]]
    goal = "to the linear model's best validation NELBO"
    return [
        bound_at_equal_seconds(indm, linear, "test NELBO"),
        paired(f"log of the steps {goal}", *logs, sign=-1),
        paired(f"log of the seconds {goal} (unit: a linear step)", *log_seconds, sign=-1, least_error=e.log_cost_error),
    ]


def steps_to_goal(indm: Record, linear: Record) -> tuple[float, float]:
    """Steps of each run until its validation NELBO reaches the worse of the two bests: one rule for both.

    Where INDM gets there at all, that is the linear model's best; a run against itself takes equal steps.
    """
    curves = [record.curve for record in (indm, linear)]
    goal = max(min(line["valid_nelbo"] for line in curve) for curve in curves)
    return _step_at(curves[0], goal), _step_at(curves[1], goal)


def _step_at(curve: list[dict], goal: float) -> float:
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


def mle_training(e: Evidence) -> list[Comparison]:
    """|NELBO − NLL of the ODE| at the end of training, smaller for INDM; and the gap of each against zero."""
    unit = e.records["indm"][0].unit
    ends = [[record.measurements["gap"][-1] for record in group] for group in e.pair]
    sizes = [[abs(end["gap"]) for end in group] for group in ends]
    least_error = math.hypot(*(statistics.mean(end["standard_error"] for end in group) for group in ends))
    rows = [paired(f"|NELBO − NLL (ODE)|, {unit}", *sizes, sign=-1, least_error=least_error)]
    for name, group in zip(("INDM", "linear"), ends, strict=True):
        gap, error = statistics.mean(end["gap"] for end in group), _error_of_mean_gap(group)
        verdict = "zero within two standard errors" if abs(gap) <= TIE * error else "not zero"
        left, right = (gap, math.nan) if name == "INDM" else (math.nan, gap)
        quantity = f"NELBO − NLL (ODE) of {name}, {unit}"
        rows.append(Comparison(quantity, left, right, gap, error, "over examples and seeds", verdict))
    return rows


def _error_of_mean_gap(ends: list[dict]) -> float:
    """The larger of the standard errors over seeds and over examples, which all seeds share."""
    over_examples = statistics.mean(end["standard_error"] for end in ends)
    return max(over_examples, over_seeds([end["gap"] for end in ends], alone=over_examples)[1])


def robust_sampling(e: Evidence) -> list[Comparison]:
    """What few steps cost, by sampler: the distance at few steps less that at many; and the transport cost."""
    first, rows = e.records["indm"][0].measurements["quality"], []
    measured = {(row["sampler"], row["steps"]) for row in first if row["sampler"] != "data"}
    for sampler in dict.fromkeys(row["sampler"] for row in first if row["sampler"] != "data"):
        most = max(steps for name, steps in measured if name == sampler and steps <= MOST_STEPS)
        few = [steps for steps in FEW_STEPS if steps < most and (sampler, steps) in measured]
        for key, name in (("frechet", "Fréchet"), ("sliced_wasserstein", "sliced Wasserstein")):
            if first[0][key] is None:
                continue
            for steps in few:
                losses = [
                    [_quality(r, sampler, steps)[key] - _quality(r, sampler, most)[key] for r in group]
                    for group in e.pair
                ]
                rows.append(paired(f"{name} distance, {sampler}, {steps} less {most} steps", *losses, sign=-1))
    for key, quantity in (
        ("cost_per_dimension", "transport cost E‖x_T − x_0‖² / d, data space"),
        ("ratio", "transport cost over the optimal one, data space"),
    ):
        costs = [[record.measurements["transport"]["data"][key] for record in group] for group in e.pair]
        rows.append(paired(quantity, *costs, sign=-1))
    return rows


def _quality(record: Record, sampler: str, steps: int) -> dict:
    return next(row for row in record.measurements["quality"] if (row["sampler"], row["steps"]) == (sampler, steps))


def sampling_error(e: Evidence) -> list[Comparison]:
    """The parts of the sampling error, INDM against linear; and the check that their sum bounds the whole.

    The bound is the triangle inequality (see :func:`indm.evaluation.sampling_error.sampling_errors`), so it must hold.
    """
    parts = [[sampling_parts(record, DECOMPOSED_STEPS) for record in group] for group in e.pair]
    rows = []
    for name in parts[0][0]:
        values = [[p[name] for p in group] for group in parts]
        rows.append(paired(f"{name}, {DECOMPOSED_STEPS} steps of UniPC", *values, sign=-1))
    slack = [[p["prior"] + p["discretization"] + p["estimation"] - p["whole"] for p in group] for group in parts]
    check = paired("check: sum of the parts less the whole", *slack, sign=1)
    return [*rows, replace(check, verdict="holds" if min(min(values) for values in slack) >= 0 else "violated")]


def sampling_parts(record: Record, steps: int) -> dict[str, float]:
    """The error of UniPC with ``steps`` steps: the whole (sliced Wasserstein to test data) and its three parts."""
    errors = record.measurements["errors"]
    return {
        "whole": _quality(record, "unipc", steps)["sliced_wasserstein"],
        "prior": errors["prior"]["rms"],
        "discretization": next(row["rms"] for row in errors["discretization"] if row["steps"] == steps),
        "estimation": errors["estimation"]["samples"]["sliced_wasserstein"],
    }


def pretraining(e: Evidence) -> list[Comparison]:
    """Pre-trained INDM (in INDM's column) against INDM from scratch (in the linear one), in the same seconds."""
    quantity = "test NELBO of pre-trained (left) and from scratch (right)"
    return [bound_at_equal_seconds(e.records["indm-pretrained"], e.records["indm"], quantity)]


def both_sdes(e: Evidence) -> list[Comparison]:
    """The bound at equal seconds under each SDE."""
    pairs = {"VP": ("indm", "linear"), "VE": ("indm-ve", "linear-ve")}
    return [
        bound_at_equal_seconds(e.records[indm], e.records[linear], f"test NELBO under {sde}")
        for sde, (indm, linear) in pairs.items()
    ]


CLAIMS = (
    Claim("1 fast training", "INDM reaches a given bound sooner than a linear diffusion.", fast_training),
    Claim(
        "2 MLE training",
        "The bound of INDM is the likelihood of its probability flow: no variational gap is left.",
        mle_training,
        measurements=("gap",),
        control=exact_score_control,
    ),
    Claim(
        "3 robust sampling",
        "Samples of INDM lose less when steps are few, for its paths are closer to optimal transport.",
        robust_sampling,
        measurements=("quality", "transport"),
    ),
    Claim(
        "4 sampling error",
        "INDM makes the parts of the sampling error smaller.",
        sampling_error,
        measurements=("quality", "errors"),
    ),
    Claim(
        "5 pre-training",
        "A score that is trained first, without the flow, makes INDM better.",
        pretraining,
        variants=("indm", "indm-pretrained"),
    ),
    Claim(
        "6 VP and VE",
        "INDM is better than a linear diffusion under either SDE.",
        both_sdes,
        variants=("linear", "indm", "linear-ve", "indm-ve"),
    ),
)
