"""The mean NLL of a data set: every example solved in few steps, a few of them to the error that is asked for."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from indm.dequantization import from_data
from indm.gaussian import GaussianReference
from indm.likelihood import NLL_ERROR, Start, WhitenedFlow, start_of
from indm.multilevel import LEAST, Mean, multilevel_mean, order, sizes
from indm.protocols import Score
from indm.score import is_smooth
from indm.tensors import evaluation_mode

FIRST_SMOOTH, FIRST = 12, 16  # steps of the coarsest rung, for networks known to be smooth in t and for others
DOUBLINGS = 3  # times that intermediate rungs may double the coarsest rung's steps
UNUSUAL = 2.0  # an estimate whose stated error is above this many times the median is solved finely for certain
MOST_UNUSUAL = 20  # one in so many estimates can be
PARTS = ("estimates", "differences", "error")  # fields of a rung with an entry for each estimate
SHARE = 0.2  # error that the corrections may add by default, as a share of the standard error over examples

Steps = int | None  # None: as many as the error that is asked for needs


@dataclass(frozen=True)
class RepeatableDraws:
    """The draws behind every NLL estimate of a data set, which can be made again for some of the estimates.

    The estimate of an example's repeat has the number example · repeats + repeat.

    Args:
        model: an INDM.
        raw: (N, *event), data units.
        c: rows of its condition, or None.
        reference: the Gaussian law of the latents.
        batch_size, repeats: examples that were drawn together, and draws of each batch.
        seeds: of the draws, in the order batch · repeats + repeat.
        solver: options of :func:`indm.nll`.
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
        return estimates // self.repeats // self.batch_size * self.repeats + estimates % self.repeats

    def solve(self, estimates: Tensor, ladder: Sequence[Steps]) -> tuple[Tensor, Tensor, int]:
        """Solve ``estimates``, sorted by their draws, in each number of steps of a ladder.

        Returns:
            −log P without reconstruction, nats, (steps, estimates); the errors that the last solves state, nats; the
            evaluations, all told.
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
            start = Start(*(torch.cat(parts) for parts in zip(*(vars(s).values() for s in starts), strict=True)))
            flow = replace(flow, score=self.model.given(self.c, rows=torch.cat(rows)).score)
            found = [start.solved(flow, self.solver.get("nll_error", NLL_ERROR), steps) for steps in ladder]
        nats = torch.stack([torch.cat(log_q).cpu().double() - log_prob.cpu().double() for log_prob, _, _ in found])
        return nats, found[-1][1].cpu().double(), sum(int(nfe.sum()) for _, _, nfe in found)

    def _drawn(self, first: int, number: int) -> tuple[WhitenedFlow, Start, Tensor]:
        """The flow of a batch's latents, its start and log q(x|raw), drawn as :func:`indm.nll` does."""
        rows = torch.arange(first, min(first + self.batch_size, len(self.raw)))
        model, device = self.model.given(self.c, rows=rows), self.model.scaling.scale.device
        generator = torch.Generator(device).manual_seed(self.seeds[number])
        x, log_q = from_data(model, self.raw[rows].to(device), generator=generator)
        probes, exact = self.solver.get("probes", 1), self.solver.get("exact")
        return *start_of(model, x, probes, exact, self.reference, generator), log_q


@dataclass(frozen=True)
class Rung:
    """A correction: the NLL in ``steps`` less that in the steps of the rung below, of M estimates by their numbers.

    ``differences`` are (M,) in nats, as is ``error``, the solver's error estimate for the finer solve; ``evaluations``
    count one difference.
    """

    steps: Steps
    estimates: Tensor
    differences: Tensor
    error: Tensor
    evaluations: float

    def joined(self, other: "Rung") -> "Rung":
        """With the estimates of another correction of this rung."""
        estimates, differences, error = (torch.cat([getattr(part, name) for part in (self, other)]) for name in PARTS)
        m, n = len(self.estimates), len(other.estimates)
        evaluations = (m * self.evaluations + n * other.evaluations) / (m + n)
        return Rung(self.steps, estimates, differences, error, evaluations)


@dataclass(frozen=True)
class Corrected:
    """The mean NLL of the finest rung.

    Attributes:
        correction: what is to be added to the mean of the coarse NLL, nats, with the error that this adds.
        rungs: the corrections, the finest last.
        certain: numbers of the estimates that were solved finely for certain, and their differences, nats.
        evaluations: of the network by all corrections.
    """

    correction: Mean
    rungs: list[Rung]
    certain: tuple[Tensor, Tensor]
    evaluations: float


def first_steps(score: Score) -> int:
    """Steps of the coarsest rung."""
    return FIRST_SMOOTH if is_smooth(score) else FIRST


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

    A pilot of :data:`indm.multilevel.LEAST` estimates tells variances and costs of one correction to the finest rung.
    Where that would cost more than the coarse solves, it is also solved in numbers of steps between, and rungs are
    chosen that cost least. Sizes are fixed once after it.

    Args:
        coarse: −log P without reconstruction of every estimate in ``first`` steps, nats, (n,).
        stated: the errors that their solver states, nats.
        first: steps.
        evaluations: of the network, of one of them.
        mean_error: the standard error that the corrections may add, nats.
        seed: of the subsets, which are the first of a random order: models with the same examples share them.
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
    pilot = rung(1, steps, subset(1)[:LEAST])
    spent, allowed = 0.0, mean_error / share
    wanted = sizes([pilot.differences.var().item()], [pilot.evaluations], usual, allowed)
    if wanted[0] > 2 * LEAST and wanted[0] * pilot.evaluations > n * evaluations:
        between = [first * 2**k for k in range(1, DOUBLINGS + 1)]
        nats, _, looked = solve(pilot.estimates, between)
        values = torch.stack([coarse[pilot.estimates], *nats, coarse[pilot.estimates] + pilot.differences])
        costs = [evaluations * k / first for k in between]
        chosen, wanted = cheapest(values, [*costs, pilot.evaluations], usual, allowed)
        steps = [first, *(between[k] for k in chosen), None]
        spent = looked
    if len(steps) == 2:
        rungs = [pilot.joined(rung(1, steps, subset(1)[LEAST : wanted[0]]))]
    else:  # use fresh subsets, which played no part in the choice of the rungs
        spent += pilot.evaluations * len(pilot.estimates)
        rungs = [rung(k, steps, subset(k + 1)[:size]) for k, size in enumerate(wanted, 1)]
    spent += sum(part.evaluations * len(part.estimates) for part in rungs)
    mean = multilevel_mean(torch.zeros(usual), [part.differences for part in rungs])
    shift, nats = mean.value * share, coarse[:0]
    if len(certain):
        found, _, own = solve(certain, [None])
        nats, spent = found[-1] - coarse[certain], spent + own
        shift += nats.sum().item() / n
    return Corrected(Mean(shift, mean.added_error * share, mean.degrees), rungs, (certain, nats), spent)


def cheapest(values: Tensor, costs: Sequence[float], n: int, added_error: float) -> tuple[list[int], list[int]]:
    """The cheapest rungs between the first and the last, and the number of the n estimates to correct at each, such
    that the corrections add at most ``added_error``.

    ``values`` are of the same estimates at every rung, (rungs, m), and ``costs`` the evaluations of one at each rung
    but the first, whose values are known.
    """
    best: tuple[float, list[int], list[int]] = (math.inf, [], [])
    last = len(costs) - 1
    for chosen in itertools.chain.from_iterable(itertools.combinations(range(last), k) for k in range(last + 1)):
        path = [0, *(k + 1 for k in chosen), last + 1]
        variances = [(values[b] - values[a]).var().item() for a, b in itertools.pairwise(path)]
        own = [costs[b - 1] + (costs[a - 1] if a else 0.0) for a, b in itertools.pairwise(path)]
        wanted = sizes(variances, own, n, added_error)
        cost = sum(size * each for size, each in zip(wanted, own, strict=True))
        if cost < best[0]:
            best = cost, list(chosen), wanted
    return best[1:]
