"""The likelihood of held-out data under a model, with error bars."""

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm.auto import tqdm

from indm.checks import BATCH_SIZE, REPEATS, require
from indm.dequantization import check_raw, in_words
from indm.evaluation.mean_nll import RepeatableDraws, Solve, Steps
from indm.evaluation.measures import (
    NLL,
    SOLVED_IN,
    Bound,
    Estimate,
    Measure,
    Setting,
)
from indm.evaluation.report import Likelihoods, Measured, Report
from indm.gaussian import GaussianReference
from indm.likelihood import latent_reference
from indm.ode import OUT_OF_REACH
from indm.protocols import Model, Score
from indm.score import described
from indm.tensors import SEED_STRIDE, evaluation_mode, outside_inference, squared_norm

T = TypeVar("T")
Job = tuple[Measure, float]  # and its cost
Estimates = dict[str, list[list[Estimate]]]  # by kind, batch by batch and repeat by repeat
EVALUATION_BAR = "{desc}: {percentage:3.0f}% {bar:20} {elapsed}<{remaining}"
CALLS = 2 * SOLVED_IN  # of the network in a solve of the ODE, about
# share of a job's cost that calls of the network move the bar by, before it is done
MOST_OF_A_JOB = 0.98
MEASURES = (Bound(), NLL())
CODES = "one draw for each estimate: the NLL is a bound, too"


@outside_inference
def evaluate(
    model: Model,
    raw: Tensor,
    measures: Sequence[Measure] = MEASURES,
    *,
    c: Any = None,
    groups: Any = None,
    eps: float | None = None,
    repeats: int = REPEATS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    progress: bool = True,
    distributed: bool = False,
) -> Likelihoods:
    """Likelihoods of raw data, each with and without reconstruction, with standard errors.

    The ODE of :class:`indm.NLL` is solved in as many steps as its ``nll_error`` needs, by default
    1e-3 bits/dim of an example. Of hundreds of examples all are solved in 12 or 16 steps, and
    random ones to that error, which corrects the mean (:mod:`indm.evaluation.mean_nll`).
    :class:`indm.NLL` takes ``steps`` for another number.

    Ctrl-C ends it with the examples and measures that are done, and ``report.interrupted`` is then
    True.

    Args:
        model: an INDM.
        raw: (N, *event) in data units (grey levels, vectors).
        measures: what is estimated, each kind once: :class:`indm.Bound`, :class:`indm.NLL`,
            :class:`indm.WeightedNLL`, :class:`indm.SamplerBound`.
        c: the conditions, of a model that has one, see :meth:`indm.INDM.given`: likelihoods are
            then of p(x|c).
        groups: the number of each example's group, (N,), a tensor, an array or a list; patches of
            one photograph are a group. Standard errors are then over groups, see
            :func:`indm.evaluation.statistics.mean_and_error`, and None where there is one group.
        eps: truncation of bound and ODE, at or above the model's own; None is the model's own.
        repeats: independent draws of all randomness for each sample, at least 2 to know the
            estimator's noise.
        batch_size: samples at a time.
        seed: of the generator behind every draw; models evaluated with one seed share all noise, so
            that their paired differences are sharper than the error of either.
        progress: show a bar; once the network was called a few times, it also shows how long the
            rest will take.
        distributed: every process of ``torch.distributed`` calls this with the same bare model and
            data, takes its share of the batches, and returns the whole.

    Returns:
        ``report`` has for each measure the mean, its standard error, the noise of the estimator,
        the mean and largest error that the ODE's solver states, and how many examples are above
        ``nll_error`` (``unconverged``). ``nats`` has the values of every example by kind, such as
        ``"nelbo"``, and the solver's errors as ``"nll_solver_error"``. Where the mean NLL is
        corrected, the values of examples are those of few steps, under ``"nll_coarse"``;
        ``NLL(each=True)`` gives ``"nll"``.

    Raises:
        ValueError: an option that is out of range, or wrong raw data, see
            :meth:`indm.Scaling.check`.
        RuntimeError: a flow that need not be invertible.

    Example: N(0, I) and its exact score.

        >>> import indm
        >>> tables = {"flow": "identity", "sde": "vp", "net": "zero"}
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> found = evaluate(indm.build_model(tables, (2,)), x, [indm.NLL(each=True)], progress=False)
        >>> exact = -torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
        >>> bool((found.nats["nll"] - exact).abs().max() < 0.1)  # row by row
        True
        >>> mean, error = found.mean("nll", "nats")
        >>> abs(mean - math.log(2 * math.pi * math.e)) < 4 * error  # of the entropy
        True
        >>> print(found)  # doctest: +ELLIPSIS
                                                          examples  nats    ± standard error  estimator noise ...
        NLL (ODE)                                         500       2.89...
    """
    check_raw(model, raw)
    groups = None if groups is None else group_numbers(groups, len(raw))
    _check(model, raw, measures, repeats, batch_size)
    c = model.rows(c, len(raw))
    model.flow.check()
    verdict = verdict_on_network(model, raw, c, batch_size, seed)
    model = model.truncated(eps)
    reference = latent_reference(model, raw, c=c, batch_size=batch_size, seed=seed)
    draws = Draws(model, raw, c, reference, measures, repeats, batch_size, seed)
    with evaluation_mode(model):
        estimates, is_complete = draw_all(
            draws.draw, draws.costs(), repeats, model.score, progress, distributed
        )

    def solver_of(measure: Measure) -> Solve:
        return shared(draws.again(measure), model.score, progress, distributed)

    setting = Setting(math.prod(raw.shape[1:]), groups, seed, model.sde)
    joined = {kind: Estimate.joined(batches) for kind, batches in estimates.items()}
    numbers, nats, is_solved = numbers_of(
        measures, joined, setting, solver_of if is_complete else None, not distributed
    )
    if groups is not None:
        nats["groups"] = groups
    images = {kind: joined[kind].total.shape[1] for kind in numbers}
    report = draws.report(numbers, images, setting, verdict)
    return Likelihoods(replace(report, interrupted=not is_complete or not is_solved), nats)


def verdict_on_network(
    model: Model, raw: Tensor, c: Tensor | None, batch_size: int, seed: int
) -> str | None:
    """What data say of the description of a network of another library; None for other networks."""
    network = described(model.score)
    if network is None or network.examine is None:
        return None
    generator = torch.Generator(model.scaling.scale.device).manual_seed(seed)
    found = network.examine(model, raw, c=c, batch_size=batch_size, generator=generator)
    if found.wrong:
        warnings.warn(found.verdict, RuntimeWarning, stacklevel=4)
    return found.verdict


def numbers_of(
    measures: Sequence[Measure],
    estimates: Mapping[str, Estimate],
    setting: Setting,
    solver_of: Callable[[Measure], Solve] | None,
    can_end: bool,
) -> tuple[dict[str, Measured], dict[str, Tensor], bool]:
    """The numbers of each measure with two examples at least, nats of every example, and whether
    all that ``solver_of`` solves is done.

    Where it ``can_end``, Ctrl-C leaves the rest unsolved.
    """
    found: dict[str, Measured] = {}
    nats: dict[str, Tensor] = {}
    is_solved = True
    for measure in measures:
        kind = measure.kind
        if kind not in estimates or estimates[kind].total.shape[1] < 2:
            continue
        solve = solver_of(measure) if solver_of is not None and is_solved else None
        try:
            found[kind], values = measure.numbers(estimates[kind], setting, solve)
        except KeyboardInterrupt:
            if solve is None or not can_end:
                raise
            is_solved = False
            found[kind], values = measure.numbers(estimates[kind], setting, None)
        nats |= {kind + suffix: part for suffix, part in values.items()}
    if not found:
        raise KeyboardInterrupt("before two examples were done")
    return found, nats, is_solved


@dataclass(frozen=True)
class Draws:
    """The draws of an evaluation: a job is a measure and a batch, and each of its repeats has a
    seed of its own.
    """

    model: Model
    raw: Tensor
    c: Tensor | None
    reference: GaussianReference
    measures: Sequence[Measure]
    repeats: int
    batch_size: int
    seed: int

    @cached_property
    def jobs(self) -> list[tuple[Measure, Tensor]]:
        """Each measure, as all its estimates are drawn, with the rows of each batch."""
        jobs: list[tuple[Measure, Tensor]] = []
        for measure in self.measures:
            count = measure.count(len(self.raw))
            drawn = measure.coarse(self.model, count * self.repeats)
            jobs += [(drawn, rows) for rows in torch.arange(count).split(self.batch_size)]
        return jobs

    def costs(self) -> list[Job]:
        """The measure of each job, and about how many evaluations of the network it takes."""
        dims = math.prod(self.raw.shape[1:])
        return [(measure, measure.calls(dims) * len(rows)) for measure, rows in self.jobs]

    def seed_of(self, job: int, repeat: int) -> int:
        return self.seed + SEED_STRIDE * (job * self.repeats + repeat)

    def draw(self, job: int, repeat: int) -> Estimate:
        """One estimate for the batch of a job."""
        measure, rows = self.jobs[job]
        device = self.model.scaling.scale.device
        generator = torch.Generator(device).manual_seed(self.seed_of(job, repeat))
        model = self.model.given(self.c, rows=rows)
        return measure.estimate(model, self.raw[rows].to(device), self.reference, generator)

    def again(self, measure: Measure) -> RepeatableDraws:
        """The draws of ``measure``, to be solved in different numbers of steps."""
        own = [job for job, (drawn, _) in enumerate(self.jobs) if drawn.kind == measure.kind]
        seeds = [self.seed_of(job, repeat) for job in own for repeat in range(self.repeats)]
        raw = self.raw[: measure.count(len(self.raw))]
        return RepeatableDraws(
            self.model, raw, self.c, self.reference, self.batch_size, self.repeats, seeds,
            measure.solver,
        )  # fmt: skip

    def report(
        self,
        numbers: dict[str, Measured],
        images: dict[str, int],
        setting: Setting,
        network: str | None,
    ) -> Report:
        """The report of these draws; ``images`` are how many examples each kind has."""
        model, raw, groups = self.model, self.raw, setting.groups
        return Report(
            measured=numbers,
            images=images,
            unit="nats" if model.scaling.levels is None else "bits/dim",
            dims=setting.dims,
            dequantization=in_words(model),
            eps=model.sde.eps,
            repeats=self.repeats,
            seed=self.seed,
            network=network,
            codes=None if model.flow.has_log_det else CODES,
            groups=None if groups is None else len(groups.unique()),
            examples_sha256=hashlib.sha256(
                raw.detach().cpu().contiguous().numpy().data
            ).hexdigest(),
        )


def group_numbers(groups: Any, n: int) -> Tensor:
    """The number of the group of each of ``n`` examples, (n,), from a tensor, an array or a list."""
    if not isinstance(groups, Tensor):
        array = np.asarray(groups)
        hint = "numpy.unique(groups, return_inverse=True)[1] would do"
        require(array.dtype.kind in "biuf", "groups", array.dtype.name, "numbers", hint)
        groups = torch.as_tensor(array if array.dtype.kind == "f" else array.astype(np.int64))
    wanted = f"one number for each of {n} examples, ({n},)"
    require(groups.shape == (n,), "groups", tuple(groups.shape), wanted)
    return groups.detach()


def _check(
    model: Model, raw: Tensor, measures: Sequence[Measure], repeats: int, batch_size: int
) -> None:
    are_listed = isinstance(measures, Sequence)
    are_measures = are_listed and all(isinstance(measure, Measure) for measure in measures)
    hint = "[indm.Bound(), indm.NLL()] would do"
    require(are_measures, "measures", measures, "a list of measures", hint)
    kinds = [measure.kind for measure in measures]
    require(repeats >= 2, "repeats", repeats, "at least 2", "one draw cannot show its own noise")
    require(0 < len(kinds) == len(set(kinds)), "measures", kinds, "one or more, each kind once")
    for measure in measures:
        measure.check(len(raw))
    if model.scaling.levels is None:
        parts = [model.scaling.to_model(part) for part in raw.split(batch_size)]
        norm = torch.cat([squared_norm(part) for part in parts])
        rows = (~norm.isfinite()).nonzero()
        if len(rows):
            got = f"{raw[rows[0]].abs().max():g} in row {int(rows[0])}"
            raise ValueError(f"raw must be finite, also when squared, got {got}; leave it out")


# ── Draws, and their share of each process ────────────────────────────────────────────────────────


@contextmanager
def moving(bar: tqdm, score: Score, cost: float, calls: float) -> Iterator[None]:
    """Move a bar by ``cost`` in all, a part of it at each of about ``calls`` calls of the network."""
    start = bar.n

    def step(*_: Any) -> None:
        left = MOST_OF_A_JOB * cost - (bar.n - start)
        bar.update(min(cost / calls, left))

    handle = score.register_forward_hook(step)
    try:
        yield
    finally:
        handle.remove()
    bar.update(start + cost - bar.n)


def draw_all(
    draw: Callable[[int, int], Estimate],
    jobs: Sequence[Job],
    repeats: int,
    score: Score,
    progress: bool,
    distributed: bool,
) -> tuple[Estimates, bool]:
    """``draw(job, repeat)`` for each job and repeat: the estimates by kind, and whether all are
    done.

    The bar moves by the costs of the jobs, also within a long one, as the ``score`` is called.
    With ``distributed`` every process draws its share of the jobs and gets the estimates of all.
    Otherwise Ctrl-C keeps the jobs that are done.
    """
    share = _share(len(jobs), distributed)
    drawn: dict[int, list[Estimate]] = {}
    total = repeats * sum(jobs[job][1] for job in share)
    with (
        tqdm(total=total, bar_format=EVALUATION_BAR, disable=not progress) as bar,
        warnings.catch_warnings(),
    ):
        try:
            for job in share:
                measure, cost = jobs[job]
                bar.set_description(measure.kind.upper())
                estimates = []
                for repeat in range(repeats):
                    with moving(bar, score, cost, CALLS):
                        estimates.append(draw(job, repeat))
                    if measure.solves_ode:  # warn once if the tolerance cannot be reached
                        warnings.filterwarnings("ignore", OUT_OF_REACH, RuntimeWarning)
                drawn[job] = estimates
        except KeyboardInterrupt:
            if distributed:
                raise
    drawn = _gathered(drawn, distributed)
    by_kind: Estimates = {}
    for job in sorted(drawn):
        by_kind.setdefault(jobs[job][0].kind, []).append(drawn[job])
    return by_kind, len(drawn) == len(jobs)


def shared(draws: RepeatableDraws, score: Score, progress: bool, distributed: bool) -> Solve:
    """:meth:`RepeatableDraws.solve` for any number of estimates in any order, shared among
    processes.
    """

    def solve(estimates: Tensor, ladder: Sequence[Steps]) -> tuple[Tensor, Tensor, int]:
        if not len(estimates):
            return torch.zeros(len(ladder), 0).double(), torch.zeros(0).double(), 0
        places = draws.numbers(estimates).argsort(stable=True)
        parts = estimates[places].split(draws.batch_size)
        share, found = _share(len(parts), distributed), {}
        with tqdm(
            total=len(share), desc="NLL, corrections", bar_format=EVALUATION_BAR, leave=False,
            disable=not progress,
        ) as bar:  # fmt: skip
            for part in share:
                with moving(bar, score, 1.0, len(ladder) * CALLS):
                    found[part] = draws.solve(parts[part], ladder)
        solved = _gathered(found, distributed)
        nats, errors, evaluations = zip(*(solved[part] for part in sorted(solved)), strict=True)
        back = places.argsort()
        return torch.cat(nats, 1)[:, back], torch.cat(errors)[back], sum(evaluations)

    return solve


def _share(jobs: int, distributed: bool) -> range:
    """The jobs of this process."""
    return range(dist.get_rank(), jobs, dist.get_world_size()) if distributed else range(jobs)


def _gathered(results: dict[int, T], distributed: bool) -> dict[int, T]:
    """The results of all processes by job."""
    if not distributed:
        return results
    parts: list[dict[int, T]] = [{}] * dist.get_world_size()
    dist.all_gather_object(parts, results)
    return {job: result for part in parts for job, result in part.items()}
