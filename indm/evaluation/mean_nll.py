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
from typing import Any

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


@dataclass(frozen=True)
class Mean:
    """A mean over examples and the error that its corrections add.

    Attributes:
        value: the estimate, in the unit of the values.
        added_error: the standard error of the corrections, by the variance of their differences; 0
            where every example is corrected. Differences that no subset met are unknown to it, so
            that 95 % intervals hold
            the mean less often where differences have heavy tails (docs/likelihood.md).
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
class Corrected:
    """The mean NLL of the finest rung.

    Attributes:
        correction: added to the mean of the coarse NLL, nats, with the error of this.
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


def corrected(
    coarse: Tensor,
    stated: Tensor,
    first: int,
    evaluations: float,
    mean_error: float,
    seed: int,
    solve: Callable[[Tensor, Sequence[Steps]], tuple[Tensor, Tensor, int]],
) -> Corrected:
    """The correction by finer solves to the mean of ``coarse``.

    A pilot of :data:`PILOT` estimates shows variance and cost of one correction to the finest rung.
    Where that costs more than the coarse solves, the cheapest rungs between are chosen. Sizes are
    fixed then, and fresh subsets
    of these sizes are solved, so that the estimate is unbiased.

    Args:
        coarse: −log P without reconstruction of every estimate in ``first`` steps, nats, (n,).
        stated: the errors that their solver states, nats.
        evaluations: of the network, of one of them.
        mean_error: the standard error that the corrections may add, nats.
        seed: of the random order of the subsets: models with the same examples share them.
        solve: :meth:`RepeatableDraws.solve`, for any number of estimates in any order.
    """
    n = len(coarse)
    unusual = stated > UNUSUAL * stated.median()
    unusual &= stated >= stated.sort(descending=True).values[n // MOST_UNUSUAL]
    certain = unusual.nonzero().flatten()
    usual, share = n - len(certain), (n - len(certain)) / n

    def subset(number: int) -> Tensor:
        """The usual estimates in the random order of a rung."""
        rows = order(n, number, seed)
        return rows[~unusual[rows]]

    def rung(number: int, steps: Sequence[Steps], estimates: Tensor) -> Rung:
        """Correction ``number``, from 1, of these estimates."""
        nats, error, spent = solve(estimates, steps[max(number - 1, 1) : number + 1])
        differences = nats[-1] - (coarse[estimates] if number == 1 else nats[0])
        return Rung(steps[number], estimates, differences, error, spent / max(len(estimates), 1))

    steps: list[Steps] = [first, None]
    pilot = rung(1, steps, subset(1)[:PILOT])
    spent, allowed = 0.0, mean_error / share
    wanted = sizes([pilot.differences.var().item()], [pilot.evaluations], usual, allowed)
    if wanted[0] > 2 * PILOT and wanted[0] * pilot.evaluations > n * evaluations:
        between = [first * 2**k for k in range(1, DOUBLINGS + 1)]
        nats, _, looked = solve(pilot.estimates, between)
        values = torch.stack(
            [coarse[pilot.estimates], *nats, coarse[pilot.estimates] + pilot.differences]
        )
        costs = [evaluations * k / first for k in between]
        chosen, wanted = cheapest(values, [*costs, pilot.evaluations], usual, allowed)
        steps = [first, *(between[k] for k in chosen), None]
        spent = looked
    spent += pilot.evaluations * len(pilot.estimates)
    # The subsets are drawn afresh: a pilot without a large difference asks for few estimates, so
    # that their
    # mean and variance would be too small if the pilot were a part of them.
    # their differences are those of this rung
    known = pilot.estimates if len(steps) == 2 else pilot.estimates[:0]
    rungs = []
    for number, size in enumerate(wanted, 1):
        estimates = subset(number + 1)[:size]
        is_solved = torch.isin(estimates, known)
        new = rung(number, steps, estimates[~is_solved])
        spent += new.evaluations * len(new.estimates)
        rungs.append(new.joined(pilot.among(estimates[is_solved])) if is_solved.any() else new)
    mean = multilevel_mean(torch.zeros(usual), [part.differences for part in rungs])
    shift, nats = mean.value * share, coarse[:0]
    if len(certain):
        found, _, own = solve(certain, [None])
        nats, spent = found[-1] - coarse[certain], spent + own
        shift += nats.sum().item() / n
    return Corrected(
        Mean(shift, mean.added_error * share, mean.degrees), rungs, (certain, nats), spent
    )


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
    """The n examples in the random order of a rung: its subset are the first of them, for each
    model alike.
    """
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed + 7_919 * rung))
