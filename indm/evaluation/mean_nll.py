r"""The mean NLL of a data set: every example solved in few steps, a few of them to the error that
is asked for.

.. math:: \hat\mu = \frac1N \sum_x Y_0(x) + \sum_{l=1}^{L} \frac1{M_l} \sum_{x \in S_l} [Y_l(x) - Y_{l-1}(x)]

Y_0 is the cheapest approximation of a value and Y_L the best. The S_l are random subsets of M_l of
the N examples, independent across rungs. The estimate is unbiased for the mean of Y_L over these
examples, and the corrections add

.. math:: \operatorname{Var}(\hat\mu) = \sum_{l \ge 1} \frac{V_l}{M_l}\Big(1 - \frac{M_l}{N}\Big)

to its variance, V_l the variance of the differences over the N examples.

Source: Heinrich 2001, "Multilevel Monte Carlo methods", https://doi.org/10.1007/3-540-45346-6_5;
Giles 2015, "Multilevel Monte Carlo methods", Acta Numerica,
https://doi.org/10.1017/S096249291500001X.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor

from indm.checks import NLL_ERROR
from indm.dequantization import from_data
from indm.gaussian import GaussianReference
from indm.likelihood import Start, WhitenedFlow, start_of
from indm.ode import COARSE, COARSE_SMOOTH
from indm.protocols import Score
from indm.score import is_smooth
from indm.tensors import double, evaluation_mode

# examples of a rung, from which its variance is known well enough where differences have heavy
# tails
PILOT = 48
DOUBLINGS = 3  # times that intermediate rungs may double the coarsest rung's steps
# an estimate whose stated error is above this many times the median is solved finely for certain
UNUSUAL = 2.0
MOST_UNUSUAL = 20  # one in so many estimates can be
PARTS = ("estimates", "differences", "error")  # fields of a rung with an entry for each estimate
# error that the corrections may add by default, as a share of the standard error over examples
ERROR_SHARE = 0.2

Steps = int | None  # None: as many as the error that is asked for needs
# numbers of estimates, and a ladder ↦ see RepeatableDraws.solve
Solve = Callable[[Tensor, Sequence[Steps]], tuple[Tensor, Tensor, int]]


@dataclass(frozen=True)
class Mean:
    """A mean over examples and the error that its corrections add.

    Attributes:
        value: the estimate, in the unit of the values.
        added_error: the standard error of the corrections, by the variance of their differences; 0
            where every example is corrected. Differences that no subset met are unknown to it, so
            that 95 % intervals hold the mean less often where differences have heavy tails
            (docs/likelihood.md).
        degrees: of freedom of ``added_error``, by Welch and Satterthwaite.
    """

    value: float
    added_error: float
    degrees: float

    def interval(self, level: float) -> tuple[float, float]:
        """The ends of an interval that has the mean of the best values with probability ``level``."""
        half = (
            self.added_error * student.ppf(0.5 + level / 2, self.degrees)
            if self.added_error
            else 0.0
        )
        return self.value - half, self.value + half


@dataclass(frozen=True)
class RepeatableDraws:
    """The draws behind every NLL estimate of a data set, which can be made again for some of the
    estimates.

    The estimate of an example's repeat has the number example · repeats + repeat; ``seeds`` have
    the order batch · repeats + repeat. ``raw`` are (N, *event) in data units, ``c`` rows of the
    condition, ``solver`` options of :func:`indm.nll`.
    """

    model: Any
    raw: Tensor
    c: Tensor | None
    reference: GaussianReference
    batch_size: int
    repeats: int
    seeds: Sequence[int]
    solver: dict[str, Any]

    def numbers(self, estimates: Tensor) -> Tensor:
        """The number of the draw that each estimate belongs to."""
        return (
            estimates // self.repeats // self.batch_size * self.repeats + estimates % self.repeats
        )

    def solve(self, estimates: Tensor, ladder: Sequence[Steps]) -> tuple[Tensor, Tensor, int]:
        """Solve ``estimates``, sorted by their draws, in each number of steps of a ladder.

        Returns −log P without reconstruction, nats, (steps, estimates), errors of the last solves,
        and evaluations.
        """
        starts, rows, log_q = [], [], []
        numbers = self.numbers(estimates)
        with evaluation_mode(self.model):
            for number in numbers.unique().tolist():
                first = number // self.repeats * self.batch_size
                chosen = estimates[numbers == number] // self.repeats
                flow, start, own = self._drawn(first, number)
                starts.append(start.rows(chosen - first))
                rows.append(chosen)
                log_q.append(own[chosen - first])
            start = Start(
                *(
                    torch.cat(parts)
                    for parts in zip(*(vars(s).values() for s in starts), strict=True)
                )
            )
            flow = replace(flow, score=self.model.given(self.c, rows=torch.cat(rows)).score)
            found = [
                start.solved(flow, self.solver.get("nll_error", NLL_ERROR), steps)
                for steps in ladder
            ]
        nats = torch.stack(
            [torch.cat(log_q).cpu().double() - log_prob.cpu().double() for log_prob, _, _ in found]
        )
        return nats, found[-1][1].cpu().double(), sum(int(nfe.sum()) for _, _, nfe in found)

    def _drawn(self, first: int, number: int) -> tuple[WhitenedFlow, Start, Tensor]:
        """The flow of a batch's latents, its start and log q(x|raw), drawn as :func:`indm.nll`
        does.
        """
        rows = torch.arange(first, min(first + self.batch_size, len(self.raw)))
        model, device = self.model.given(self.c, rows=rows), self.model.scaling.scale.device
        generator = torch.Generator(device).manual_seed(self.seeds[number])
        x, log_q = from_data(model, self.raw[rows].to(device), generator=generator)
        probes, exact = self.solver.get("probes", 1), self.solver.get("exact")
        return *start_of(model, x, probes, exact, self.reference, generator), log_q


@dataclass(frozen=True)
class Rung:
    """A correction: the NLL in ``steps`` minus the NLL of the rung below, of M ``estimates`` by
    their numbers.

    ``differences`` (M,) and the ``error`` of the finer solve are in nats; ``evaluations`` count one
    difference.
    """

    steps: Steps
    estimates: Tensor
    differences: Tensor
    error: Tensor
    evaluations: float

    def among(self, estimates: Tensor) -> "Rung":
        """The part of this rung whose estimates are among these."""
        is_among = torch.isin(self.estimates, estimates)
        kept = {name: getattr(self, name)[is_among] for name in PARTS}
        return replace(self, **kept)

    def joined(self, other: "Rung") -> "Rung":
        """With the estimates of another correction of this rung."""
        estimates, differences, error = (
            torch.cat([getattr(part, name) for part in (self, other)]) for name in PARTS
        )
        m, n = len(self.estimates), len(other.estimates)
        evaluations = (m * self.evaluations + n * other.evaluations) / (m + n)
        return Rung(self.steps, estimates, differences, error, evaluations)


@dataclass(frozen=True)
class CoarseSolves:
    """Every estimate of a data set, solved in few steps.

    Attributes:
        nats: −log P without reconstruction, (n,).
        stated: the error that the solver states for each, nats, (n,).
        steps: of the solver.
        evaluations: of the network, for one estimate.
    """

    nats: Tensor
    stated: Tensor
    steps: int
    evaluations: float

    @cached_property
    def is_unusual(self) -> Tensor:
        """Mask of the estimates with an unusually large stated error, at most one in twenty."""
        largest = self.stated.sort(descending=True).values
        is_large = self.stated > UNUSUAL * self.stated.median()
        return is_large & (self.stated >= largest[len(largest) // MOST_UNUSUAL])

    @property
    def usual(self) -> int:
        """The number of all other estimates."""
        return len(self.nats) - int(self.is_unusual.sum())


class Plan(NamedTuple):
    """The steps of each rung, how many estimates each correction needs, and the evaluations spent
    on finding out.
    """

    steps: list[Steps]
    sizes: list[int]
    evaluations: float


@dataclass(frozen=True)
class Ladder:
    """Corrections of the usual estimates among ``coarse``, by finer solves of random subsets.

    Models with the same examples and the same ``seed`` share the subsets.
    """

    coarse: CoarseSolves
    solve: Solve
    seed: int

    def subset(self, number: int) -> Tensor:
        """The usual estimates in the random order of a correction."""
        rows = order(len(self.coarse.nats), number, self.seed)
        return rows[~self.coarse.is_unusual[rows]]

    def rung(self, number: int, steps: Sequence[Steps], estimates: Tensor) -> Rung:
        """Correction ``number``, from 1, of these estimates."""
        nats, error, spent = self.solve(estimates, steps[max(number - 1, 1) : number + 1])
        below = self.coarse.nats[estimates] if number == 1 else nats[0]
        each = spent / max(len(estimates), 1)
        return Rung(steps[number], estimates, nats[-1] - below, error, each)

    def pilot(self) -> Rung:
        """One correction to the finest rung, of :data:`PILOT` estimates."""
        return self.rung(1, [self.coarse.steps, None], self.subset(1)[:PILOT])

    def plan(self, pilot: Rung, added_error: float) -> Plan:
        """The cheapest rungs that add ``added_error``, judged by variance and cost of the pilot.

        One correction is enough unless it costs more than all coarse solves.
        """
        coarse, first = self.coarse, self.coarse.steps
        variance = pilot.differences.var().item()
        wanted = sizes([variance], [pilot.evaluations], coarse.usual, added_error)
        is_cheap = wanted[0] * pilot.evaluations <= len(coarse.nats) * coarse.evaluations
        if is_cheap or wanted[0] <= 2 * PILOT:
            return Plan([first, None], wanted, 0.0)
        between = [first * 2**k for k in range(1, DOUBLINGS + 1)]
        nats, _, looked = self.solve(pilot.estimates, between)
        of_pilot = coarse.nats[pilot.estimates]
        values = torch.stack([of_pilot, *nats, of_pilot + pilot.differences])
        costs = [coarse.evaluations * k / first for k in between]
        chosen, wanted = cheapest(values, [*costs, pilot.evaluations], coarse.usual, added_error)
        return Plan([first, *(between[k] for k in chosen), None], wanted, looked)

    def climbed(self, plan: Plan, pilot: Rung) -> tuple[list[Rung], float]:
        """The corrections of a plan, and the evaluations that they took.

        Their subsets are drawn afresh. A pilot without a large difference asks for few estimates,
        so their mean and variance would be too small if the pilot were a part of them. The pilot's
        solves are used again for the estimates that a fresh subset shares with it.
        """
        known = pilot.estimates if len(plan.steps) == 2 else pilot.estimates[:0]
        rungs, spent = [], plan.evaluations + pilot.evaluations * len(pilot.estimates)
        for number, size in enumerate(plan.sizes, 1):
            estimates = self.subset(number + 1)[:size]
            is_solved = torch.isin(estimates, known)
            new = self.rung(number, plan.steps, estimates[~is_solved])
            spent += new.evaluations * len(new.estimates)
            rungs.append(new.joined(pilot.among(estimates[is_solved])) if is_solved.any() else new)
        return rungs, spent


@dataclass(frozen=True)
class Corrected:
    """The mean NLL of the finest rung.

    Attributes:
        correction: added to the mean of the coarse NLL, nats, with the error that it adds.
        rungs: the corrections, the finest last.
        certain: numbers of the unusual estimates, all solved finely, and their differences, nats.
        evaluations: of the network by all corrections.
    """

    correction: Mean
    rungs: list[Rung]
    certain: tuple[Tensor, Tensor]
    evaluations: float


def first_steps(score: Score) -> int:
    """Steps of the coarsest rung."""
    return COARSE_SMOOTH if is_smooth(score) else COARSE


def corrected(coarse: CoarseSolves, solve: Solve, mean_error: float, seed: int) -> Corrected:
    """The correction by finer solves to the mean of ``coarse``.

    A pilot of :data:`PILOT` estimates shows variance and cost of one correction to the finest rung.
    Where that costs more than the coarse solves, the cheapest rungs between are chosen. Sizes are
    then fixed, and fresh subsets of these sizes are solved, so that the estimate is unbiased.
    Unusual estimates are all solved finely.

    Args:
        coarse: all estimates.
        solve: :meth:`RepeatableDraws.solve`, for any number of estimates in any order.
        mean_error: the standard error that the corrections may add, nats.
        seed: of the random order of the subsets.
    """
    n = len(coarse.nats)
    share = coarse.usual / n
    ladder = Ladder(coarse, solve, seed)
    pilot = ladder.pilot()
    rungs, spent = ladder.climbed(ladder.plan(pilot, mean_error / share), pilot)
    mean = multilevel_mean(torch.zeros(coarse.usual), [part.differences for part in rungs])
    shift = mean.value * share
    certain, differences = coarse.is_unusual.nonzero().flatten(), coarse.nats[:0]
    if len(certain):
        found, _, own = solve(certain, [None])
        differences = found[-1] - coarse.nats[certain]
        spent += own
        shift += differences.sum().item() / n
    total = Mean(shift, mean.added_error * share, mean.degrees)
    return Corrected(total, rungs, (certain, differences), spent)


def cheapest(
    values: Tensor, costs: Sequence[float], n: int, added_error: float
) -> tuple[list[int], list[int]]:
    """The cheapest rungs between first and last, and how many of n estimates each corrects, to add
    ``added_error``.

    ``values`` are of the same estimates at every rung, (rungs, m), and ``costs`` the evaluations of
    one at each rung but the first.
    """
    best: tuple[float, list[int], list[int]] = (math.inf, [], [])
    last = len(costs) - 1
    for chosen in itertools.chain.from_iterable(
        itertools.combinations(range(last), k) for k in range(last + 1)
    ):
        path = [0, *(k + 1 for k in chosen), last + 1]
        variances = [(values[b] - values[a]).var().item() for a, b in itertools.pairwise(path)]
        own = [costs[b - 1] + (costs[a - 1] if a else 0.0) for a, b in itertools.pairwise(path)]
        wanted = sizes(variances, own, n, added_error)
        cost = sum(size * each for size, each in zip(wanted, own, strict=True))
        if cost < best[0]:
            best = cost, list(chosen), wanted
    return best[1:]


# ── Multilevel means ──────────────────────────────────────────────────────────────────────────────


def multilevel_mean(
    coarse: Float[Tensor, " n"], corrections: Sequence[Float[Tensor, " m"]]
) -> Mean:
    """The mean of the best values of n examples, from ``coarse`` Y_0 of each and ``corrections``
    Y_l − Y_{l−1}.

    Example: each correction is 1, so that it adds no error.

        >>> mean = multilevel_mean(torch.arange(100.0), [torch.ones(40), torch.ones(32)])
        >>> mean.value, mean.added_error
        (51.5, 0.0)
    """
    value, variances = double(coarse).mean().item(), []
    for differences in map(double, corrections):
        m = len(differences)
        value += differences.mean().item()
        variances.append((m, differences.var().item() / m * (1 - m / len(coarse))))
    added = sum(variance for _, variance in variances)
    spread = sum(variance**2 / (m - 1) for m, variance in variances)
    return Mean(value, math.sqrt(added), added**2 / spread if spread else math.inf)


def sizes(
    variances: Sequence[float], costs: Sequence[float], n: int, added_error: float
) -> list[int]:
    """The number of the n examples to correct at each rung, such that ``added_error`` is reached at
    the least cost.

    M_l ∝ √(V_l/C_l), at least :data:`PILOT` or n, and at most n, for variances V_l of differences
    that cost C_l each.

    Example: one rung, of variance 1, in a large population.

        >>> sizes([1.0], [10.0], 1_000_000, 0.1)
        [100]
    """
    exact: set[int] = set()  # rungs at which every example is corrected
    while True:
        free = [rung for rung in range(len(costs)) if rung not in exact]
        budget = added_error**2 + sum(variances[rung] for rung in free) / n
        total = sum(math.sqrt(variances[rung] * costs[rung]) for rung in free)
        wanted = {
            rung: math.sqrt(variances[rung] / costs[rung]) * total / budget
            for rung in free
            if budget
        }
        above = {rung for rung, size in wanted.items() if size >= n}
        if not above:
            least = min(PILOT, n)
            return [
                n if rung in exact else max(least, math.ceil(wanted.get(rung, 0.0)))
                for rung in range(len(costs))
            ]
        exact |= above


def order(n: int, rung: int, seed: int) -> Tensor:
    """The n examples in the random order of a rung; every model uses the same leading subset."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed + 7_919 * rung))
