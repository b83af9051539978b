"""The likelihood of held-out data under a model, with error bars."""

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm.auto import tqdm

from indm.checks import BATCH_SIZE, REPEATS, require
from indm.dequantization import check_raw, in_words
from indm.evaluation.mean_nll import RepeatableDraws, Steps
from indm.evaluation.measures import (
    NLL,
    SOLVED_IN,
    Bound,
    Estimate,
    Estimates,
    Measure,
    Setting,
    Solve,
)
from indm.evaluation.report import Likelihoods, Measured, Report
from indm.likelihood import latent_reference
from indm.ode import OUT_OF_REACH
from indm.protocols import Model
from indm.score import described
from indm.tensors import SEED_STRIDE, evaluation_mode, outside_inference, squared_norm

T = TypeVar("T")
Job = tuple[Measure, float]  # and its cost
EVALUATION_BAR = "{desc}: {percentage:3.0f}% {bar:20} {elapsed}<{remaining}"
CALLS = 2 * SOLVED_IN  # of the network in a solve of the ODE, about
# share of a job's cost that calls of the network move the bar by, before it is done
MOST_OF_A_JOB = 0.98
MEASURES = (Bound(), NLL())


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
    c, n, device = model.rows(c, len(raw)), len(raw), model.scaling.scale.device
    model.flow.check()
    generator = torch.Generator(device)
    verdict = None
    if (foreign := described(model.score)) is not None:
        found = foreign.examine(
            model, raw, c=c, batch_size=batch_size, generator=generator.manual_seed(seed)
        )
        verdict = found.verdict
        if found.wrong:
            warnings.warn(verdict, RuntimeWarning, stacklevel=3)
    model = model.truncated(eps)
    reference = latent_reference(model, raw, c=c, batch_size=batch_size, seed=seed)
    drawn = {m.kind: m.coarse(model, m.count(n) * repeats) for m in measures}
    jobs = [(m.kind, rows) for m in measures for rows in torch.arange(m.count(n)).split(batch_size)]

    def seed_of(job: int, repeat: int) -> int:
        return seed + SEED_STRIDE * (job * repeats + repeat)

    def draw(job: int, repeat: int) -> Estimate:
        kind, rows = jobs[job]
        generator.manual_seed(seed_of(job, repeat))
        return drawn[kind].estimate(
            model.given(c, rows=rows), raw[rows].to(device), reference, generator
        )

    def solver_of(measure: Measure) -> Solve:
        """A function that repeats the draws of ``measure`` and solves them in other numbers of
        steps.
        """
        count, own = (
            measure.count(n),
            [job for job, (kind, _) in enumerate(jobs) if kind == measure.kind],
        )
        seeds = [seed_of(job, repeat) for job in own for repeat in range(repeats)]
        made = RepeatableDraws(
            model, raw[:count], c, reference, batch_size, repeats, seeds, measure.solver
        )
        return shared(made, model.score, progress, distributed)

    dims = math.prod(raw.shape[1:])
    work = [(drawn[kind], drawn[kind].calls(dims) * len(rows)) for kind, rows in jobs]
    with evaluation_mode(model):
        estimates, ended = draw_all(draw, work, repeats, model.score, progress, distributed)
    counts = {
        kind: sum(len(batch[0].total) for batch in batches) for kind, batches in estimates.items()
    }
    measures = [measure for measure in measures if counts.get(measure.kind, 0) > 1]
    if not measures:
        raise KeyboardInterrupt("before two examples were done")
    setting = Setting(dims, groups, seed, model.sde)
    unit = "nats" if model.scaling.levels is None else "bits/dim"
    by_kind: dict[str, Measured] = {}
    nats: dict[str, Tensor] = {}
    for measure in measures:
        own = estimates[measure.kind]
        try:
            by_kind[measure.kind], by_suffix = measure.numbers(
                own, setting, solver_of(measure) if ended else None
            )
        except KeyboardInterrupt:
            if distributed or not ended:
                raise
            ended = False
            by_kind[measure.kind], by_suffix = measure.numbers(own, setting, None)
        nats |= {measure.kind + suffix: values for suffix, values in by_suffix.items()}
    if groups is not None:
        nats["groups"] = groups
    report = Report(
        images={kind: counts[kind] for kind in by_kind},
        unit=unit,
        dims=dims,
        dequantization=in_words(model),
        eps=model.sde.eps,
        repeats=repeats,
        seed=seed,
        network=verdict,
        codes=None
        if model.flow.has_log_det
        else "one draw for each estimate: the NLL is a bound, too",
        groups=None if groups is None else len(groups.unique()),
        examples_sha256=hashlib.sha256(raw.detach().cpu().contiguous().numpy().data).hexdigest(),
        interrupted=not ended,
        **by_kind,
    )
    return Likelihoods(report, nats)


def group_numbers(groups: Any, n: int) -> Tensor:
    """The number of the group of each of ``n`` examples, (n,), from a tensor, an array or a list."""
    if not isinstance(groups, Tensor):
        array = np.asarray(groups)
        hint = "numpy.unique(groups, return_inverse=True)[1] would do"
        require(array.dtype.kind in "biuf", "groups", array.dtype.name, "numbers", hint)
        groups = torch.as_tensor(array if array.dtype.kind == "f" else array.astype(np.int64))
    wanted = f"one number for each of {n} examples, ({n},)"
    require(groups.shape == (n,), "groups", tuple(groups.shape), wanted)
    require(
        not groups.isnan().any(),
        "groups",
        math.nan,
        "known",
        "give an example without a group its own number",
    )
    return groups.detach()


def _check(
    model: Model, raw: Tensor, measures: Sequence[Measure], repeats: int, batch_size: int
) -> None:
    are_measures = isinstance(measures, Sequence) and all(
        isinstance(measure, Measure) for measure in measures
    )
    require(
        are_measures,
        "measures",
        measures,
        "a list of measures",
        "[indm.Bound(), indm.NLL()] would do",
    )
    kinds = [measure.kind for measure in measures]
    require(repeats >= 2, "repeats", repeats, "at least 2", "one draw cannot show its own noise")
    require(len(raw) >= 2, "raw", len(raw), "at least 2 samples for a standard error")
    require(0 < len(kinds) == len(set(kinds)), "measures", kinds, "one or more, each kind once")
    for measure in measures:
        measure.check(len(raw))
    if model.scaling.levels is None:
        norm = torch.cat(
            [squared_norm(model.scaling.to_model(part)) for part in raw.split(batch_size)]
        )
        if len(rows := (~norm.isfinite()).nonzero()):
            got = f"{raw[rows[0]].abs().max():g} in row {int(rows[0])}"
            raise ValueError(f"raw must be finite, also when squared, got {got}; leave it out")


# ── Draws, and their share of each process ────────────────────────────────────────────────────────


@contextmanager
def moving(bar: tqdm, network: nn.Module, cost: float, calls: float) -> Iterator[None]:
    """Move a bar by ``cost`` in all, a part of it at each of about ``calls`` calls of the network."""
    start = bar.n

    def step(*_: Any) -> None:
        left = MOST_OF_A_JOB * cost - (bar.n - start)
        bar.update(min(cost / calls, left))

    handle = network.register_forward_hook(step)
    try:
        yield
    finally:
        handle.remove()
    bar.update(start + cost - bar.n)


def draw_all(
    draw: Callable[[int, int], Estimate],
    jobs: Sequence[Job],
    repeats: int,
    network: nn.Module,
    progress: bool,
    distributed: bool,
) -> tuple[dict[str, Estimates], bool]:
    """``draw(job, repeat)`` for each job and repeat: the estimates by kind, and whether all are
    done.

    The bar moves by the costs of the jobs, also within a long one, as the ``network`` is called.
    With ``distributed`` every process draws its share of the jobs and gets the estimates of all.
    Otherwise Ctrl-C keeps the jobs that are done.
    """
    share, drawn = _share(len(jobs), distributed), dict[int, list[Estimate]]()
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
                    with moving(bar, network, cost, CALLS):
                        estimates.append(draw(job, repeat))
                    if measure.solves_ode:  # warn once if the tolerance cannot be reached
                        warnings.filterwarnings("ignore", OUT_OF_REACH, RuntimeWarning)
                drawn[job] = estimates
        except KeyboardInterrupt:
            if distributed:
                raise
    drawn = _gathered(drawn, distributed)
    by_kind: dict[str, Estimates] = {}
    for job in sorted(drawn):
        by_kind.setdefault(jobs[job][0].kind, []).append(drawn[job])
    return by_kind, len(drawn) == len(jobs)


def shared(draws: RepeatableDraws, network: nn.Module, progress: bool, distributed: bool) -> Solve:
    """:meth:`RepeatableDraws.solve` for any number of estimates in any order, shared among
    processes.
    """

    def solve(estimates: Tensor, ladder: Sequence[Steps]) -> tuple[Tensor, Tensor, int]:
        if not len(estimates):
            return torch.zeros(len(ladder), 0).double(), torch.zeros(0).double(), 0
        places = draws.numbers(estimates).argsort(stable=True)
        parts = estimates[places].split(draws.batch_size)
        share, found = _share(len(parts), distributed), {}
        options: dict[str, Any] = {
            "desc": "NLL, corrections",
            "bar_format": EVALUATION_BAR,
            "leave": False,
        }
        with tqdm(total=len(share), disable=not progress, **options) as bar:
            for part in share:
                with moving(bar, network, 1.0, len(ladder) * CALLS):
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
