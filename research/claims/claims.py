"""The paper's claims: INDM against its linear twin in pairs over seeds.

A claim is one value: a sentence, and rows, each a quantity that is compared between two variants and gets a verdict.
The rows of all claims on all data sets of a plan are the family of its tests, known before anything is trained
(:func:`family_of`). What only shows whether the measurements can be relied on is a check, and gets none.

Source of the claims: Kim et al. 2022, https://arxiv.org/abs/2205.13699.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from indm.workbench.evaluation.records import Record
from indm.workbench.evaluation.results import difference
from indm.workbench.evaluation.statistics import Difference, over_seeds
from research.claims.control import exact_score_control
from research.claims.verdicts import Check, Comparison, paired

FEW_STEPS = 10  # of a sampler, whose loss is judged
ZERO = 2.0  # standard errors within which a check does not tell a number from zero
# Of a row whose seeds share examples while its error is over seeds alone: other examples could give another verdict.
THESE_EXAMPLES = "for these examples"


@dataclass(frozen=True)
class Evidence:
    """What a row is judged by, on one data set.

    Args:
        data: its name.
        pair: the records of the two variants, each in the order of seeds.
        log_cost: log of the seconds of an INDM step over those of a linear one, measured side by side.
        log_cost_error: its standard error.

    Example: numbers of the runs of two seeds.

        >>> from pathlib import Path
        >>> runs = [Record(Path(), "digits", {}, {}, parameters=n, measurements={}) for n in (110, 120, 100, 100)]
        >>> Evidence("digits", (runs[:2], runs[2:])).of(lambda run: run.parameters)
        [[110, 120], [100, 100]]
    """

    data: str
    pair: tuple[Sequence[Record], Sequence[Record]]
    log_cost: float = 0.0
    log_cost_error: float = 0.0

    def of(self, value: Callable[[Record], float]) -> list[list[float]]:
        """A number of every record of the pair."""
        return [[value(record) for record in group] for group in self.pair]


@dataclass(frozen=True)
class Row:
    """A quantity that is compared and gets a verdict.

    Args:
        quantity: its name, one in a claim.
        measure: the comparison.
        variants: whose records it compares, names in :data:`research.claims.studies.VARIANTS`.
        scope: what its verdict is limited to, such as :data:`THESE_EXAMPLES`; shown beside the quantity.

    Example: a row that compares the number of parameters.

        >>> from pathlib import Path
        >>> row = Row("parameters", lambda e: paired(*e.of(lambda run: run.parameters), sign=-1), scope="this network")
        >>> runs = [Record(Path(), "digits", {}, {}, parameters=n, measurements={}) for n in (110, 120, 100, 100)]
        >>> comparison = row.measure(Evidence("digits", (runs[:2], runs[2:])))
        >>> row.shown, comparison.difference.difference
        ('parameters, this network', 15.0)
    """

    quantity: str
    measure: Callable[[Evidence], Comparison]
    variants: tuple[str, str] = ("indm", "linear")
    scope: str = ""

    @property
    def shown(self) -> str:
        """The quantity and its scope."""
        return f"{self.quantity}, {self.scope}" if self.scope else self.quantity


def no_checks(evidence: Evidence) -> list[Check]:
    return []


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Args:
        name: as in the table; claims are listed in the order of their names.
        sentence: what is claimed.
        rows: what decides it, on every data set that has the variants.
        measurements: names in :data:`research.measurements.MEASUREMENTS`, for every variant and seed.
        checks: of INDM and its linear twin on one data set.
        control: checks that are made once.

    Example: a verdict on each data set that has the runs which the claim is about.

        >>> row = Row("test NELBO under VE", bound, variants=("indm-ve", "linear-ve"))
        >>> claim = Claim("7 VE", "INDM is better under VE.", (row,))
        >>> data = {"digits": ["indm", "linear", "indm-ve", "linear-ve"], "checkerboard": ["indm", "linear"]}
        >>> [(name, each.quantity) for _, name, each in family_of([claim], data)]
        [('digits', 'test NELBO under VE')]
    """

    name: str
    sentence: str
    rows: tuple[Row, ...]
    measurements: tuple[str, ...] = ()
    checks: Callable[[Evidence], list[Check]] = no_checks
    control: Callable[[], list[Check]] = list

    @property
    def variants(self) -> set[str]:
        """Whose runs it needs."""
        return {variant for row in self.rows for variant in row.variants}


def family_of(claims: Sequence[Claim], variants: Mapping[str, Sequence[str]]) -> list[tuple[Claim, str, Row]]:
    """Every difference that gets a verdict, by claim: those of all data sets, by the ``variants`` that each has."""
    return [
        (claim, data, row)
        for claim in sorted(claims, key=lambda claim: claim.name)
        for data, names in variants.items()
        for row in claim.rows
        if set(row.variants) <= set(names)
    ]


# ── Fast training ───────────────────────────────────────────────────────────────────────────────────────────────────


def bound(e: Evidence) -> Comparison:
    """The test NELBO, which is taken on the same examples for all seeds."""
    left, right = e.pair
    shared = difference([(a.folder, b.folder) for a, b in zip(left, right, strict=True)]).standard_error_shared
    bounds = e.of(lambda record: cast(tuple, record.bound())[0])
    return paired(*bounds, sign=-1, unit=left[0].unit, shared_error=shared)


def log_steps(e: Evidence) -> Comparison:
    """Log of the steps to the goal."""
    return paired(*_log_steps(e), sign=-1)


def log_seconds(e: Evidence) -> Comparison:
    """Log of the seconds to the goal, in units of a linear step's."""
    ours, theirs = _log_steps(e)
    return paired([step + e.log_cost for step in ours], theirs, sign=-1, shared_error=e.log_cost_error)


def _log_steps(e: Evidence) -> list[list[float]]:
    return [[math.log(step) for step in steps] for steps in zip(*map(steps_to_goal, *e.pair), strict=True)]


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


# ── Training towards the likelihood ─────────────────────────────────────────────────────────────────────────────────


def size_of_gap(e: Evidence) -> Comparison:
    """|NELBO − NLL of the ODE| at the end of training.

    The two models share examples as well, but the errors of their gaps are added as if they did not, which is too much
    where the gaps of an example are alike.
    """
    shared = math.hypot(*(statistics.mean(_end(record)["standard_error"] for record in group) for group in e.pair))
    sizes = e.of(lambda record: abs(_end(record)["gap"]))
    return paired(*sizes, sign=-1, unit=e.pair[0][0].unit, shared_error=shared)


def gap_checks(e: Evidence) -> list[Check]:
    """The gap of each against zero."""
    checks = []
    for name, group in zip(("INDM", "linear"), e.pair, strict=True):
        shared = statistics.mean(_end(record)["standard_error"] for record in group)
        mean, error = over_seeds([_end(record)["gap"] for record in group])
        gap = Difference(mean, len(group), error, shared)
        near = abs(gap.difference) <= ZERO * gap.standard_error
        outcome = "not told from zero" if near else "not zero"
        quantity = f"NELBO − NLL (ODE) of {name}, {group[0].unit}"
        rule = f"two standard errors, {gap.seeds} seeds and the examples"
        checks.append(Check(quantity, gap.difference, gap.standard_error, outcome, rule))
    return checks


def _end(record: Record) -> dict:
    return record.measurements["gap"][-1]


# ── Sampling ────────────────────────────────────────────────────────────────────────────────────────────────────────


def loss_by_few_steps(sampler: str) -> Row:
    """The distance of samples in few steps to those of the converged solver through the same noise: never negative.

    It is the Fréchet distance of features, or the sliced Wasserstein distance where data have no labels.
    """

    def measure(e: Evidence) -> Comparison:
        labelled = _loss(e.pair[0][0], sampler)["frechet"] is not None
        key, name = ("frechet", "Fréchet") if labelled else ("sliced_wasserstein", "sliced Wasserstein")
        return paired(*e.of(lambda record: _loss(record, sampler)[key]), sign=-1, unit=name)

    return Row(f"distance of {FEW_STEPS} steps of {sampler} to its converged samples", measure)


def transport_cost(e: Evidence) -> Comparison:
    """How far the probability flow carries data."""
    return paired(*e.of(lambda record: record.measurements["transport"]["data"]["cost_per_dimension"]), sign=-1)


def part_of_error(name: str) -> Callable[[Evidence], Comparison]:
    """A part of the sampling error, see :func:`sampling_parts`."""
    return lambda e: paired(*e.of(lambda record: sampling_parts(record, FEW_STEPS)[name]), sign=-1)


def bounds_check(e: Evidence) -> list[Check]:
    """The sum of the parts bounds the whole in every run.

    It is the triangle inequality (see :func:`research.sampling_error.errors.sampling_errors`), so it must hold.
    """
    parts = [sampling_parts(record, FEW_STEPS) for group in e.pair for record in group]
    slack = [p["prior"] + p["discretization"] + p["estimation"] - p["whole"] for p in parts]
    outcome = "holds" if min(slack) >= 0 else "violated"
    quantity = f"least sum of the parts less the whole, {FEW_STEPS} steps of unipc"
    return [Check(quantity, min(slack), math.nan, outcome, f"not negative in any of {len(slack)} runs")]


def sampling_parts(record: Record, steps: int) -> dict[str, float]:
    """The error of UniPC with ``steps`` steps: the whole (sliced Wasserstein to test data) and its three parts."""
    errors = record.measurements["errors"]
    samples = (row for row in record.measurements["quality"] if (row["sampler"], row["steps"]) == ("unipc", steps))
    return {
        "whole": next(samples)["sliced_wasserstein"],
        "prior": errors["prior"]["rms"],
        "discretization": _loss(record, "unipc", steps)["rms"],
        "estimation": errors["estimation"]["samples"]["sliced_wasserstein"],
    }


def _loss(record: Record, sampler: str, steps: int = FEW_STEPS) -> dict:
    rows = record.measurements["errors"]["discretization"]
    return next(row for row in rows if (row["sampler"], row["steps"]) == (sampler, steps))


GOAL = "to the linear model's best validation NELBO"
CLAIMS = (
    Claim(
        "1 fast training",
        "INDM reaches a given bound sooner than a linear diffusion.",
        (
            Row("test NELBO at equal seconds", bound),
            Row(f"log of the steps {GOAL}", log_steps, scope=THESE_EXAMPLES),
            Row(f"log of the seconds {GOAL} (unit: a linear step)", log_seconds, scope=THESE_EXAMPLES),
        ),
    ),
    Claim(
        "2 MLE training",
        "The bound of INDM is the likelihood of its probability flow: no variational gap is left.",
        (Row("|NELBO − NLL (ODE)|", size_of_gap),),
        measurements=("gap",),
        checks=gap_checks,
        control=exact_score_control,
    ),
    Claim(
        "3 robust sampling",
        "Samples of INDM lose less when steps are few, for its paths are closer to optimal transport.",
        (
            loss_by_few_steps("unipc"),
            loss_by_few_steps("euler-maruyama"),
            Row("transport cost E‖x_T − x_0‖² / d, data space", transport_cost, scope=THESE_EXAMPLES),
        ),
        measurements=("errors", "transport"),
    ),
    Claim(
        "4 sampling error",
        "INDM makes the parts of the sampling error smaller.",
        (
            Row("prior: RMS, model units", part_of_error("prior"), scope=THESE_EXAMPLES),
            Row(f"discretization: RMS of {FEW_STEPS} steps of unipc, model units", part_of_error("discretization")),
            Row("estimation: sliced Wasserstein, model units", part_of_error("estimation"), scope=THESE_EXAMPLES),
        ),
        measurements=("quality", "errors"),
        checks=bounds_check,
    ),
    Claim(
        "5 pre-training",
        "A score that is trained first, without the flow, makes INDM better.",
        (
            Row(
                "test NELBO at equal seconds of pre-trained (left) and from scratch (right)",
                bound,
                variants=("indm-pretrained", "indm"),
            ),
        ),
    ),
    Claim(
        "6 VP and VE",
        "INDM is better than a linear diffusion under either SDE (VP: claim 1).",
        (Row("test NELBO at equal seconds under VE", bound, variants=("indm-ve", "linear-ve")),),
    ),
)
