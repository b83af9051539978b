"""The likelihoods that :func:`indm.evaluate` estimates, each a small class whose fields are its
options.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from indm.checks import IW_EXAMPLES, NLL_ERROR, PROBES, TIMES, require
from indm.dequantization import from_data
from indm.evaluation.mean_nll import ERROR_SHARE, PILOT, Corrected, Steps, corrected, first_steps
from indm.evaluation.report import InUnits, Measured
from indm.evaluation.statistics import in_both_units, in_units, mean_and_error
from indm.gaussian import GaussianReference
from indm.likelihood import LikelihoodReport, check_solver, importance_bound, nll
from indm.objective import NOISE_LEVELS, nelbo
from indm.protocols import Model
from indm.sde.linear import LinearSDE

# terms of the NELBO beside its score term
TERMS = ("reconstruction", "prior", "flow", "constant", "log_q")
# steps of an ODE, where its error decides; of digits and of vectors, for the share of a progress
# bar
SOLVED_IN = 48
# see indm.evaluation.mean_nll
Solve = Callable[[Tensor, Sequence[Steps]], tuple[Tensor, Tensor, int]]
Reference = GaussianReference | None
# numbers, and nats of every example by the suffix of their key
Results = tuple[Measured, dict[str, Tensor]]


@dataclass(frozen=True)
class Estimate:
    """One draw for a batch.

    Attributes:
        total: (B,), nats of −log p of the raw data or of a bound of it.
        without_reconstruction: (B,), the same without the reconstruction term.
        solver_error: (B,), of ``total``, nats; 0 where no ODE was solved.
        settings: how it was made.
        nfe: evaluations of the network by the solver of an ODE.
        terms: (B, NOISE_LEVELS + 5), nats: the score term by noise level, and :data:`TERMS`; None
            where not known.
    """

    total: Tensor
    without_reconstruction: Tensor
    solver_error: Tensor
    settings: dict
    nfe: int = 0
    terms: Tensor | None = None

    @classmethod
    def of(cls, total: Tensor, reconstruction: Tensor, log_q: Tensor, settings: dict) -> "Estimate":
        """From nats of x in model units and log q(x|raw), in float64 on the CPU."""
        total = total.cpu().double() + log_q.cpu().double()
        return cls(total, total - reconstruction.cpu(), torch.zeros_like(total), settings)

    @classmethod
    def solved(cls, report: LikelihoodReport) -> "Estimate":
        """From a likelihood of the probability flow."""
        estimate = cls.of(report.total, report.reconstruction, report.log_q, report.settings)
        return replace(estimate, nfe=report.nfe, solver_error=report.solver_error.cpu().double())


Estimates = list[list[Estimate]]  # batch by batch and repeat by repeat


@dataclass(frozen=True)
class Setting:
    """The setting that all measures share."""

    dims: int
    groups: Int[Tensor, " n"] | None
    seed: int
    sde: LinearSDE


@dataclass(frozen=True, kw_only=True)
class Measure(ABC):
    """A likelihood of the first ``examples``, of all by default."""

    kind: ClassVar[str]  # its key in a report
    examples: int | None = None
    solves_ode: ClassVar[bool] = False

    def count(self, n: int) -> int:
        """The number of examples, of n, that it is computed for."""
        return n if self.examples is None else min(self.examples, n)

    def check(self, n: int) -> None:
        """ValueError for an option that is out of range, where there are n examples."""
        count, name = self.count(n), f"examples of {type(self).__name__}"
        require(count >= 2, name, count, "at least 2 for a standard error")

    @property
    def solver(self) -> dict[str, Any]:
        """Options of :func:`indm.nll` for its ODE; empty for a measure without one."""
        return {}

    @abstractmethod
    def calls(self, dims: int) -> float:
        """About how many evaluations of the network an estimate of an event of so many entries
        takes.
        """

    @abstractmethod
    def estimate(
        self, model: Model, raw: Tensor, reference: Reference, generator: torch.Generator
    ) -> Estimate:
        """A draw for a batch; ``model`` is at its conditions, ``reference`` is the law of the
        latents.
        """

    def coarse(self, model: Model, estimates: int) -> "Measure":
        """The measure of which all ``estimates`` are drawn."""
        return self

    def numbers(self, estimates: Estimates, setting: Setting, solve: Solve | None) -> Results:
        """The numbers of estimates, batch by batch and repeat by repeat; without ``solve`` nothing
        more is solved.
        """
        return summary(estimates, setting)


@dataclass(frozen=True, kw_only=True)
class Bound(Measure):
    """The NELBO of the generative SDE, with its terms and by noise level, by ``times`` score
    evaluations for a draw.

    >>> Bound(times=16, examples=500).count(10_000)  # of the first 500
    500
    """

    kind = "nelbo"
    times: int = TIMES

    def calls(self, dims: int) -> float:
        return self.times

    def estimate(
        self, model: Model, raw: Tensor, reference: Reference, generator: torch.Generator
    ) -> Estimate:
        x, log_q = from_data(model, raw, generator=generator)
        terms = nelbo(
            model, x, times=self.times, reference=reference, log_q=log_q, generator=generator
        )
        estimate = Estimate.of(terms.total, terms.reconstruction, log_q, {"times": self.times})
        assert terms.by_noise_level is not None  # discrete_nelbo alone leaves it out
        columns = [
            *terms.by_noise_level.unbind(1),
            *(getattr(terms, name).expand(len(x)) for name in TERMS),
        ]
        return replace(estimate, terms=torch.stack(columns, 1).cpu().double())

    def numbers(self, estimates: Estimates, setting: Setting, solve: Solve | None) -> Results:
        numbers, nats = summary(estimates, setting)
        terms = stacked(estimates, "terms").mean(0)
        nats["_by_noise_level"] = terms[:, :NOISE_LEVELS]
        return by_noise_level(numbers, terms, setting), nats


@dataclass(frozen=True, kw_only=True)
class SamplerBound(Measure):
    """The bound of samples by :class:`indm.sampling.Ancestral` in so many ``steps``, by ``times``
    of them for a draw.

    >>> SamplerBound(steps=100).count(10_000)
    10000
    """

    kind = "ancestral"
    steps: int
    times: int = TIMES

    def calls(self, dims: int) -> float:
        return self.times

    def estimate(
        self, model: Model, raw: Tensor, reference: Reference, generator: torch.Generator
    ) -> Estimate:
        x, log_q = from_data(model, raw, generator=generator)
        terms = nelbo(
            model, x, times=self.times, ancestral=self.steps, log_q=log_q, generator=generator
        )
        return Estimate.of(
            terms.total, terms.reconstruction, log_q, {"times": self.times, "steps": self.steps}
        )


@dataclass(frozen=True, kw_only=True)
class Solved(Measure):
    """Base of the measures that solve the probability-flow ODE; fields are options of
    :func:`indm.nll`.
    """

    solves_ode = True
    probes: int = PROBES
    exact: bool | None = None
    nll_error: float = NLL_ERROR
    steps: int | None = None

    def check(self, n: int) -> None:
        super().check(n)
        check_solver(self.probes, self.steps, self.nll_error)

    def calls(self, dims: int) -> float:
        # with a Jacobian, each of about two evaluations
        products = dims if self.exact else self.probes
        return (self.steps or SOLVED_IN) * (1 + 2 * products)

    @property
    def solver(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("probes", "exact", "nll_error", "steps")}


@dataclass(frozen=True, kw_only=True)
class NLL(Solved):
    """The NLL of the probability-flow ODE.

    Attributes:
        each: solve every example to ``nll_error``. Otherwise, where there are hundreds, all are
            solved in few steps, and some of them to ``nll_error``, which corrects the mean
            (:mod:`indm.evaluation.mean_nll`).
        mean_error: the standard error that these corrections may add to the mean, bits per
            dimension; default a fifth of the standard error over examples, or over groups where
            there are several.

    >>> NLL(examples=8, exact=True, nll_error=1e-4).count(10_000)
    8
    """

    kind = "nll"
    each: bool = False
    mean_error: float | None = None

    def check(self, n: int) -> None:
        super().check(n)
        fits = self.mean_error is None or 0 < self.mean_error < math.inf
        require(
            fits, "mean_error", self.mean_error, "positive and finite", "1e-3 bits/dim is usual"
        )

    def estimate(
        self, model: Model, raw: Tensor, reference: Reference, generator: torch.Generator
    ) -> Estimate:
        x, log_q = from_data(model, raw, generator=generator)
        return Estimate.solved(
            nll(model, x, reference=reference, log_q=log_q, generator=generator, **self.solver)
        )

    def coarse(self, model: Model, estimates: int) -> Measure:
        if self.each or self.steps is not None or estimates < 4 * PILOT:
            return self
        return replace(self, steps=first_steps(model.score))

    def numbers(self, estimates: Estimates, setting: Setting, solve: Solve | None) -> Results:
        numbers, nats = summary(estimates, setting)
        few = numbers.settings.get("steps")
        # every example was solved as asked for
        if few is None or self.steps is not None or solve is None:
            return numbers, nats
        coarse, stated = (
            stacked(estimates, part).T.flatten()
            for part in ("without_reconstruction", "solver_error")
        )
        bits, error = setting.dims * math.log(2), numbers.with_reconstruction["nats_standard_error"]
        if error is None:  # a single group: take its examples as independent
            _, error = mean_and_error(nats[""])
        allowed = ERROR_SHARE * error if self.mean_error is None else self.mean_error * bits
        result = corrected(coarse, stated, few, numbers.nfe, allowed, setting.seed, solve)
        return of_rungs(numbers, nats, result, len(coarse), setting.dims)


@dataclass(frozen=True, kw_only=True)
class WeightedNLL(Solved):
    """The importance-weighted bound of :func:`indm.importance_bound` from K = ``draws``; its
    divergence is exact unless ``exact`` is False.

    >>> WeightedNLL(draws=16).count(10_000)
    100
    """

    kind = "iw"
    examples: int | None = IW_EXAMPLES
    draws: int = 8

    def calls(self, dims: int) -> float:
        products = self.probes if self.exact is False else dims
        return self.draws * (self.steps or SOLVED_IN) * (1 + 2 * products)

    def estimate(
        self, model: Model, raw: Tensor, reference: Reference, generator: torch.Generator
    ) -> Estimate:
        options = self.solver | {
            "exact": self.exact is not False,
            "reference": reference,
            "generator": generator,
        }
        return Estimate.solved(importance_bound(model, raw, draws=self.draws, **options))

    def numbers(self, estimates: Estimates, setting: Setting, solve: Solve | None) -> Results:
        numbers, nats = summary(estimates, setting)
        del nats["_without_reconstruction"]  # the weights are that term, too
        return replace(numbers, without_reconstruction=None), nats


def stacked(estimates: list[list[Estimate]], part: str) -> Float[Tensor, "repeats n"]:
    """A part of estimates, batch by batch and repeat by repeat."""
    return torch.cat([torch.stack([getattr(e, part) for e in batch]) for batch in estimates], 1)


def summary(estimates: Estimates, setting: Setting) -> Results:
    """Means over repeats with and without reconstruction, and the solver's error, the largest of
    them.
    """
    total, without = stacked(estimates, "total"), stacked(estimates, "without_reconstruction")
    groups = None if setting.groups is None else setting.groups[: total.shape[1]]
    with_it, without_it = (in_units(draws, setting.dims, groups) for draws in (total, without))
    numbers = Measured(dict(estimates[0][0].settings), with_it, without_it)
    nats = {"": total.mean(0), "_without_reconstruction": without.mean(0)}
    evaluations = [e.nfe for batch in estimates for e in batch]
    if any(evaluations):
        nats["_solver_error"] = errors = stacked(estimates, "solver_error").amax(0)
        numbers = replace(numbers, nfe=sum(evaluations) / len(evaluations))
        numbers = with_solver_error(numbers, errors, setting.dims)
    return numbers, nats


def of_rungs(
    numbers: Measured, coarse: dict[str, Tensor], result: Corrected, estimates: int, dims: int
) -> Results:
    """The numbers of an NLL in few steps, with the mean of the finest rung."""
    bits, added, shift = dims * math.log(2), result.correction.added_error, result.correction.value

    def shifted(row: InUnits | None) -> Any:
        return row and row | {
            "nats": row["nats"] + shift,
            "bits_per_dim": row["bits_per_dim"] + shift / bits,
        }

    first = {"steps": numbers.settings["steps"], "estimates": estimates, "nfe": numbers.nfe}
    finer = [
        {
            "steps": rung.steps,
            "estimates": len(rung.estimates),
            "nfe": rung.evaluations,
            "mean_bits_per_dim": rung.differences.mean().item() / bits,
            "deviation_bits_per_dim": rung.differences.std().item() / bits,
        }
        for rung in result.rungs
    ]
    report = replace(
        numbers,
        settings={key: value for key, value in numbers.settings.items() if key != "steps"},
        with_reconstruction=shifted(numbers.with_reconstruction),
        without_reconstruction=shifted(numbers.without_reconstruction),
        nfe=numbers.nfe + result.evaluations / estimates,
        rungs=[first, *finer],
        certain=len(result.certain[0]),
        added_error={
            "nats": added,
            "bits_per_dim": added / bits,
            "degrees": result.correction.degrees,
        },
    )
    nats = {f"_coarse{suffix}": values for suffix, values in coarse.items()}
    for number, rung in enumerate(result.rungs, 1):
        nats |= {f"_rung_{number}": rung.differences, f"_rung_{number}_estimates": rung.estimates}
    if report.certain:
        nats |= {"_certain": result.certain[1], "_certain_estimates": result.certain[0]}
    return with_solver_error(report, result.rungs[-1].error, dims), nats


def by_noise_level(
    numbers: Measured, terms: Float[Tensor, "n terms"], setting: Setting
) -> Measured:
    """With ``terms`` of the NELBO, and the parts of its score term by noise level."""

    def row(values: Float[Tensor, " n"]) -> InUnits:
        mean, error = mean_and_error(
            values, None if setting.groups is None else setting.groups[: len(values)]
        )
        return in_both_units({"": mean, "_standard_error": error}, setting.dims)

    levels, remaining = terms.split([NOISE_LEVELS, len(TERMS)], 1)
    noise = (
        (torch.linspace(*setting.sde.clock_span(), NOISE_LEVELS + 1, dtype=torch.float64) / 2)
        .exp()
        .tolist()
    )
    return replace(
        numbers,
        terms={"score": row(levels.sum(1))}
        | {name: row(remaining[:, k]) for k, name in enumerate(TERMS)},
        by_noise_level=[
            {"noise": list(ends)} | row(values)
            for ends, values in zip(pairwise(noise), levels.unbind(1), strict=True)
        ],
    )


def with_solver_error(numbers: Measured, errors: Float[Tensor, " n"], dims: int) -> Measured:
    """With the mean and largest error of the solver, and in how many examples it is above
    ``nll_error`` bits/dim.
    """
    bits = errors / (dims * math.log(2))
    sizes = {"nats": errors.mean(), "bits_per_dim": bits.mean(), "largest_bits_per_dim": bits.max()}
    found = {name: size.item() for name, size in sizes.items()}
    return replace(
        numbers, solver_error=found, unconverged=int((bits > numbers.settings["nll_error"]).sum())
    )
