"""The likelihoods that :func:`indm.evaluate` estimates, each one class whose fields are its options.

To write another, subclass :class:`Measure`: its :attr:`~Measure.kind` is the key of its numbers in
a report, :meth:`~Measure.calls` its cost, and :meth:`~Measure.estimate` a draw for a batch. Tables,
files and differences of evaluations follow from these.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from indm.checks import IW_EXAMPLES, NLL_ERROR, PROBES, TIMES, require
from indm.dequantization import from_data
from indm.evaluation.mean_nll import (
    ERROR_SHARE,
    PILOT,
    CoarseSolves,
    Corrected,
    Solve,
    corrected,
    first_steps,
)
from indm.evaluation.report import Correction, Level, Measured, Report, Solves
from indm.evaluation.statistics import mean_and_error, number_of, number_of_draws
from indm.gaussian import GaussianReference
from indm.likelihood import LikelihoodReport, check_solver, importance_bound, nll
from indm.objective import NOISE_LEVELS, nelbo
from indm.protocols import Model
from indm.sde.linear import LinearSDE

TERMS = ("reconstruction", "prior", "flow", "constant", "log_q")  # of the NELBO, after its score
# steps of an ODE whose error decides, typical of digits and vectors: for the share of a bar
SOLVED_IN = 48
Reference = GaussianReference | None
# numbers, and nats of every example by the suffix of their key
Results = tuple[Measured, dict[str, Tensor]]


@dataclass(frozen=True)
class Estimate:
    """One draw for a batch, or repeated draws of all examples.

    Attributes:
        total: (…, B), nats of −log p of the raw data or of a bound of it.
        without_reconstruction: (…, B), the same without the reconstruction term; None where that
            is no number of its own.
        settings: how it was made.
        solver_error: (…, B), of ``total``, nats; None where no ODE was solved.
        nll_error: bits/dim, above which the solver's error of an example is counted as unconverged;
            None where nothing was asked for.
        steps: of the ODE; None where no ODE was solved, or in as many as ``nll_error`` needs.
        nfe: evaluations of the network by the solver of an ODE, for one draw.
        terms: (…, B, NOISE_LEVELS + 5), nats: the score term by noise level, and :data:`TERMS`;
            None where they are not known.
    """

    total: Tensor
    without_reconstruction: Tensor | None
    settings: dict[str, Any]
    solver_error: Tensor | None = None
    nll_error: float | None = None
    steps: int | None = None
    nfe: float = 0
    terms: Tensor | None = None

    @classmethod
    def of(
        cls, total: Tensor, reconstruction: Tensor | None, log_q: Tensor, settings: dict[str, Any]
    ) -> "Estimate":
        """From nats of x in model units, the part of them that is the reconstruction term, and log
        q(x|raw), in float64 on the CPU.
        """
        total = total.cpu().double() + log_q.cpu().double()
        without = None if reconstruction is None else total - reconstruction.cpu()
        return cls(total, without, settings)

    @classmethod
    def solved(cls, report: LikelihoodReport) -> "Estimate":
        """From a likelihood of the probability flow."""
        estimate = cls.of(report.total, report.reconstruction, report.log_q, report.settings)
        return replace(
            estimate,
            solver_error=report.solver_error.cpu().double(),
            nll_error=report.settings["nll_error"],
            steps=report.settings.get("steps"),
            nfe=report.nfe,
        )

    @classmethod
    def joined(cls, batches: Sequence[Sequence["Estimate"]]) -> "Estimate":
        """Estimates batch by batch and repeat by repeat as one, (repeats, n)."""

        def whole(parts: list[list[Tensor | None]]) -> Tensor | None:
            known = [[part for part in batch if part is not None] for batch in parts]
            return torch.cat([torch.stack(batch) for batch in known], 1) if known[0] else None

        total = whole([[one.total for one in batch] for batch in batches])
        assert total is not None
        estimates = [one for batch in batches for one in batch]
        evaluations = sum(one.nfe * one.total.shape[-1] for one in estimates)
        return replace(
            batches[0][0],
            total=total,
            without_reconstruction=whole(
                [[one.without_reconstruction for one in batch] for batch in batches]
            ),
            solver_error=whole([[one.solver_error for one in batch] for batch in batches]),
            nfe=evaluations / sum(one.total.shape[-1] for one in estimates),
            terms=whole([[one.terms for one in batch] for batch in batches]),
        )


@dataclass(frozen=True)
class Setting:
    """What all measures of an evaluation share."""

    dims: int
    groups: Int[Tensor, " n"] | None
    seed: int
    sde: LinearSDE

    def groups_of(self, n: int) -> Int[Tensor, " n"] | None:
        """The groups of the first n examples."""
        return None if self.groups is None else self.groups[:n]

    @property
    def nats_of_bits(self) -> float:
        """The nats of one bit a dimension."""
        return self.dims * math.log(2)


@dataclass(frozen=True, kw_only=True)
class Measure(ABC):
    """A likelihood of the first ``examples``, of all by default.

    Example: half the squared norm of x, a draw of which costs no evaluation of the network.

        >>> @dataclass(frozen=True, kw_only=True)
        ... class Energy(Measure):
        ...     kind = "energy"
        ...     def calls(self, dims):
        ...         return 0.0
        ...     def estimate(self, model, raw, reference, generator):
        ...         x, log_q = from_data(model, raw, generator=generator)
        ...         return Estimate.of(0.5 * x.square().sum(1), None, log_q, {})
        >>> import indm
        >>> model = indm.build_model({"flow": "identity", "sde": "vp", "net": "zero"}, (2,))
        >>> found = indm.evaluate(model, torch.ones(5, 2), [Energy()], progress=False)
        >>> found.mean("energy", "nats")
        (1.0, 0.0)
    """

    kind: ClassVar[str]  # the key of its numbers in a report
    solves_ode: ClassVar[bool] = False
    examples: int | None = None

    def __init_subclass__(cls, **arguments: Any):
        super().__init_subclass__(**arguments)
        kind = getattr(cls, "kind", None)  # a base of several measures has none
        if kind in Report.own_entries():
            raise ValueError(
                f"kind of {cls.__name__} must not be an entry that every report has, got {kind!r}; "
                f"those are {', '.join(sorted(Report.own_entries()))}"
            )

    @property
    def title(self) -> str:
        """Its name in tables."""
        return self.kind

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
        """About how many evaluations of the network an estimate of an event of ``dims`` entries
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
        """The measure by which all ``estimates`` are drawn."""
        return self

    def numbers(self, estimate: Estimate, setting: Setting, solve: Solve | None) -> Results:
        """The numbers of repeated draws (repeats, n); without ``solve`` nothing more is solved."""
        return summary(self.title, estimate, setting)


@dataclass(frozen=True, kw_only=True)
class Bound(Measure):
    """The NELBO of the generative SDE, with its terms and by noise level, by ``times`` score
    evaluations for a draw.

    >>> Bound(times=16, examples=500).count(10_000)  # of the first 500
    500
    """

    kind = "nelbo"
    times: int = TIMES

    @property
    def title(self) -> str:
        return "NELBO"

    def calls(self, dims: int) -> float:
        return self.times

    def estimate(
        self, model: Model, raw: Tensor, reference: Reference, generator: torch.Generator
    ) -> Estimate:
        x, log_q = from_data(model, raw, generator=generator)
        bound = nelbo(
            model, x, times=self.times, reference=reference, log_q=log_q, generator=generator
        )
        assert bound.by_noise_level is not None  # only discrete_nelbo leaves it out
        others = bound.reconstruction, bound.prior, bound.flow, bound.constant, bound.log_q  # TERMS
        columns = [*bound.by_noise_level.unbind(1), *(term.expand(len(x)) for term in others)]
        estimate = Estimate.of(bound.total, bound.reconstruction, log_q, {"times": self.times})
        return replace(estimate, terms=torch.stack(columns, 1).cpu().double())

    def numbers(self, estimate: Estimate, setting: Setting, solve: Solve | None) -> Results:
        numbers, nats = summary(self.title, estimate, setting)
        assert estimate.terms is not None
        terms = estimate.terms.mean(0)
        nats["_by_noise_level"] = terms[:, :NOISE_LEVELS]
        return with_terms(numbers, terms, setting), nats


@dataclass(frozen=True, kw_only=True)
class SamplerBound(Measure):
    """The bound of samples by :class:`indm.sampling.Ancestral` in that many ``steps``, by ``times``
    of them for a draw.

    >>> SamplerBound(steps=100).count(10_000)
    10000
    """

    kind = "ancestral"
    steps: int
    times: int = TIMES

    @property
    def title(self) -> str:
        return f"NELBO of few steps, N = {self.steps}"

    def calls(self, dims: int) -> float:
        return self.times

    def estimate(
        self, model: Model, raw: Tensor, reference: Reference, generator: torch.Generator
    ) -> Estimate:
        x, log_q = from_data(model, raw, generator=generator)
        bound = nelbo(
            model, x, times=self.times, ancestral=self.steps, log_q=log_q, generator=generator
        )
        settings = {"times": self.times, "steps": self.steps}
        return Estimate.of(bound.total, bound.reconstruction, log_q, settings)


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
        return {
            "probes": self.probes,
            "exact": self.exact,
            "nll_error": self.nll_error,
            "steps": self.steps,
        }


@dataclass(frozen=True, kw_only=True)
class NLL(Solved):
    """The NLL of the probability-flow ODE.

    Attributes:
        each: solve every example to ``nll_error``. Otherwise, where there are hundreds, all are
            solved in few steps, and some of them to ``nll_error``, which corrects the mean
            (:mod:`indm.evaluation.mean_nll`).
        mean_error: the standard error that these corrections may add to the mean, bits per
            dimension; by default a fifth of the standard error over examples, or over groups where
            there are several.

    >>> NLL(examples=8, exact=True, nll_error=1e-4).count(10_000)
    8
    """

    kind = "nll"
    each: bool = False
    mean_error: float | None = None

    @property
    def title(self) -> str:
        return "NLL (ODE)"

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

    def numbers(self, estimate: Estimate, setting: Setting, solve: Solve | None) -> Results:
        numbers, nats = summary(self.title, estimate, setting)
        few = estimate.steps
        # where there are no such steps, every example was solved as asked for
        if few is None or self.steps is not None or solve is None:
            return numbers, nats
        assert estimate.without_reconstruction is not None and estimate.solver_error is not None
        coarse = CoarseSolves(
            estimate.without_reconstruction.T.flatten(),
            estimate.solver_error.T.flatten(),
            few,
            estimate.nfe,
        )
        allowed = self.allowed_error(numbers, nats[""], setting)
        found = corrected(coarse, solve, allowed, setting.seed)
        return with_correction(numbers, nats, estimate, found, setting)

    def allowed_error(self, numbers: Measured, values: Tensor, setting: Setting) -> float:
        """The standard error that corrections may add to the mean, nats."""
        if self.mean_error is not None:
            return self.mean_error * setting.nats_of_bits
        error = numbers.with_reconstruction.standard_error
        if error is None:  # a single group: take its examples as independent
            _, error = mean_and_error(values)
        return ERROR_SHARE * error


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

    @property
    def title(self) -> str:
        return f"IW-NLL, K = {self.draws}"

    def calls(self, dims: int) -> float:
        products = self.probes if self.exact is False else dims
        return self.draws * (self.steps or SOLVED_IN) * (1 + 2 * products)

    def estimate(
        self, model: Model, raw: Tensor, reference: Reference, generator: torch.Generator
    ) -> Estimate:
        options = self.solver | {"exact": self.exact is not False}
        bound = importance_bound(
            model, raw, draws=self.draws, reference=reference, generator=generator, **options
        )
        # its weights contain the reconstruction term
        return replace(Estimate.solved(bound), without_reconstruction=None)


# ── Numbers of estimates ──────────────────────────────────────────────────────────────────────────


def summary(title: str, estimate: Estimate, setting: Setting) -> Results:
    """Means over repeats with and without reconstruction, and the largest of the solver's errors."""
    groups = setting.groups_of(estimate.total.shape[1])
    numbers = Measured(title, estimate.settings, number_of_draws(estimate.total, groups))
    nats = {"": estimate.total.mean(0)}
    if estimate.without_reconstruction is not None:
        without = number_of_draws(estimate.without_reconstruction, groups)
        numbers = replace(numbers, without_reconstruction=without)
        nats["_without_reconstruction"] = estimate.without_reconstruction.mean(0)
    if estimate.solver_error is not None:
        errors = estimate.solver_error.amax(0)
        nats["_solver_error"] = errors
        numbers = with_solver_error(
            replace(numbers, nfe=estimate.nfe), errors, estimate.nll_error, setting
        )
    return numbers, nats


def with_solver_error(
    numbers: Measured, errors: Float[Tensor, " n"], asked: float | None, setting: Setting
) -> Measured:
    """With the mean and the largest error of the solver, and in how many examples it is above the
    bits/dim ``asked`` for.
    """
    settings = numbers.settings
    if asked is not None:
        settings = settings | {"nll_error": asked}
    mean = errors.mean().item()
    with_it, without = numbers.with_reconstruction, numbers.without_reconstruction
    bits = errors / setting.nats_of_bits
    return replace(
        numbers,
        settings=settings,
        with_reconstruction=replace(with_it, solver_error=mean),
        without_reconstruction=without and replace(without, solver_error=mean),
        largest_bits_per_dim=bits.max().item(),
        unconverged=None if asked is None else int((bits > asked).sum()),
    )


def with_terms(numbers: Measured, terms: Float[Tensor, "n terms"], setting: Setting) -> Measured:
    """With ``terms`` of the NELBO, and the parts of its score term by noise level."""
    groups = setting.groups_of(len(terms))
    levels, others = terms.split([NOISE_LEVELS, len(TERMS)], 1)
    clock = torch.linspace(*setting.sde.clock_span(), NOISE_LEVELS + 1, dtype=torch.float64)
    ends = pairwise((clock / 2).exp().tolist())
    named = zip(TERMS, others.unbind(1), strict=True)
    return replace(
        numbers,
        terms={"score": number_of(levels.sum(1), groups)}
        | {name: number_of(values, groups) for name, values in named},
        by_noise_level=[
            Level(noise, number_of(values, groups))
            for noise, values in zip(ends, levels.unbind(1), strict=True)
        ],
    )


def with_correction(
    numbers: Measured,
    coarse: dict[str, Tensor],
    estimate: Estimate,
    found: Corrected,
    setting: Setting,
) -> Results:
    """The numbers of an NLL in few steps, with the mean of the finest rung."""
    shift, bits = found.correction.value, setting.nats_of_bits
    without = numbers.without_reconstruction
    # the mean is that of the finest steps
    settings = {name: value for name, value in numbers.settings.items() if name != "steps"}
    estimates = estimate.total.numel()
    solves = [Solves(estimate.steps, estimates, numbers.nfe)]
    for rung in found.rungs:
        mean = rung.differences.mean().item() / bits
        deviation = rung.differences.std().item() / bits
        solves.append(Solves(rung.steps, len(rung.estimates), rung.evaluations, mean, deviation))
    certain, certain_differences = found.certain
    report = replace(
        numbers,
        settings=settings,
        with_reconstruction=numbers.with_reconstruction + shift,
        without_reconstruction=without and without + shift,
        nfe=numbers.nfe + found.evaluations / estimates,
        correction=Correction(
            solves, len(certain), found.correction.added_error, found.correction.degrees
        ),
    )
    nats = {f"_coarse{suffix}": values for suffix, values in coarse.items()}
    for number, rung in enumerate(found.rungs, 1):
        nats[f"_rung_{number}"] = rung.differences
        nats[f"_rung_{number}_estimates"] = rung.estimates
    if len(certain):
        nats["_certain"] = certain_differences
        nats["_certain_estimates"] = certain
    errors = found.rungs[-1].error
    return with_solver_error(report, errors, estimate.nll_error, setting), nats
