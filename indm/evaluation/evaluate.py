"""The likelihood of held-out data under a model, with error bars."""

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from indm.checks import require
from indm.dequantization import check_raw, in_words
from indm.evaluation.mean_nll import RepeatableDraws, Steps
from indm.evaluation.measures import NLL, Bound, Estimate, Measure, Setting, Solve
from indm.evaluation.statistics import mean_and_error
from indm.evaluation.text import KINDS, likelihood_rows, nats_of_unit, notes, table
from indm.files import atomic, untrusted
from indm.likelihood import latent_reference
from indm.ode import OUT_OF_REACH
from indm.protocols import Model
from indm.score import described
from indm.tensors import SEED_STRIDE, evaluation_mode, outside_inference, squared_norm

T = TypeVar("T")
BAR = "{desc}: {percentage:3.0f}% {bar:20} {elapsed}<{remaining}"
MEASURES = (Bound(), NLL())


@dataclass(frozen=True)
class Likelihoods:
    """The estimates of :func:`evaluate`; ``print`` shows them as a table.

    Attributes:
        report: what JSON can hold: ``images``, how many examples by the kind of a measure; settings and findings, None
            where there are none; ``unit`` of the table; and by kind its numbers, of which ``with_reconstruction`` and
            ``without_reconstruction`` have means, standard errors and the estimator's noise in nats and bits/dim.
            "nelbo" also has ``terms``, which sum to the bound, and ``by_noise_level``, the score term in equal parts of
            the log-SNR clock.
        nats: of each example, means over repeats: by kind, and all but "iw" with the suffix
            ``_without_reconstruction``; "nll" and "iw" also with ``_solver_error``, the largest over repeats. Where the
            mean NLL was corrected, "nll" is "nll_coarse", in few steps, and for each rung l "nll_rung_l" are the
            differences of finer and coarser solves, of the estimates "nll_rung_l_estimates" (example · repeats +
            repeat); "nll_certain" are the differences for estimates whose coarse error was unusually large.
            "nelbo_by_noise_level", (N, 8), are the parts of the score term; "groups" are the examples' groups, if any.

    >>> row = {"bits_per_dim": 2.45, "bits_per_dim_standard_error": 0.01}
    >>> Likelihoods({"nelbo": {"with_reconstruction": row}}, {}).mean()
    (2.45, 0.01)
    """

    report: dict[str, Any]
    nats: dict[str, Tensor]

    def mean(self, kind: str = "nelbo", unit: str = "bits_per_dim") -> tuple[float, float | None]:
        """A likelihood of raw data in bits/dim or nats, and its standard error; None of a single group."""
        row = self.report[kind]["with_reconstruction"]
        return row[unit], row[f"{unit}_standard_error"]

    def __str__(self) -> str:
        return "\n".join([table(likelihood_rows(self.report)), *notes(self.report)])

    def save(self, folder: str | Path) -> None:
        """Write ``evaluation.json`` and ``evaluation.npz`` into a folder."""
        report, arrays = (Path(folder) / f"evaluation.{kind}" for kind in ("json", "npz"))
        write_arrays = atomic.arrays_into({name: values.cpu().numpy() for name, values in self.nats.items()})
        # The report is removed first and written last, so that arrays beside a report are of the same evaluation.
        atomic.together({arrays: write_arrays, report: atomic.json_into(self.report)}, [report])

    @classmethod
    def load(cls, folder: str | Path) -> "Likelihoods":
        """Read the files that :meth:`save` wrote into a folder; ValueError if they cannot be read."""
        arrays = untrusted.arrays(Path(folder) / "evaluation.npz")
        nats = {name: torch.from_numpy(values) for name, values in arrays.items()}
        return cls(untrusted.json_object(Path(folder) / "evaluation.json"), nats)

    def __sub__(self, other: "Likelihoods") -> dict[str, tuple[float, float]]:
        """Mean difference of each likelihood that both have, and its standard error, paired over the examples, or over
        groups of them, in the unit of both.

        Raises:
            ValueError: they are of different examples, seeds or units.
        """
        for key in ("unit", "dims", "seed", "repeats", "examples_sha256"):
            own, others = (one.report.get(key) for one in (self, other))
            require(own == others, f"{key} of other", others, f"{own!r}, as in the evaluation that it is taken from")
        paired, groups = {}, self.nats.get("groups")
        for kind in [kind for kind in KINDS if kind in self.report and kind in other.report]:
            a, b = (one.per_example(kind) for one in (self, other))
            require(len(a) == len(b), f"examples of other, {kind}", len(b), f"{len(a)}, as here")
            mean, error = mean_and_error(a - b, None if groups is None else groups[: len(a)])
            paired[kind] = mean, math.hypot(error, self.added_error(other, kind))
        return paired

    def per_example(self, kind: str = "nelbo") -> Float[Tensor, " n"]:
        """A likelihood of every example in the unit of the report; a coarse one with the mean of the finest rung."""
        if kind in self.nats:
            return self.nats[kind] / nats_of_unit(self.report)
        coarse = self.nats[f"{kind}_coarse"]
        return (coarse + self.mean(kind, "nats")[0] - coarse.mean()) / nats_of_unit(self.report)

    def added_error(self, other: "Likelihoods", kind: str) -> float:
        """The error that corrections of coarse solves add to the mean difference of two evaluations, in their unit.

        Both made the same draws. Where they have the same rungs, the estimates that both corrected make their
        corrections depend on each other, so that the error is smaller than with independent ones.
        """
        both = (self, other)
        numbers, nats = [one.report[kind] for one in both], [one.nats for one in both]
        variance = sum(number.get("added_error", {}).get("nats", 0.0) ** 2 for number in numbers)
        steps = [[rung["steps"] for rung in number.get("rungs", ())] for number in numbers]
        rungs = range(1, len(steps[0])) if steps[0] == steps[1] else ()
        for rung in rungs:
            n, name = numbers[0]["rungs"][0]["estimates"], f"{kind}_rung_{rung}"
            one_of, other_of = (values[f"{name}_estimates"].numpy() for values in nats)
            of_both = np.intersect1d(one_of, other_of, return_indices=True)[1:]
            if len(of_both[0]) > 1:
                usual, sizes = [n - number["certain"] for number in numbers], [len(values[name]) for values in nats]
                differences = [values[name].numpy()[rows] for values, rows in zip(nats, of_both, strict=True)]
                each = math.prod(usual) / n**2 * len(of_both[0]) / math.prod(sizes) * (1 - max(sizes) / max(usual))
                variance -= 2 * each * np.cov(differences[0], differences[1])[0, 1]
        return math.sqrt(max(variance, 0.0)) / nats_of_unit(self.report)


@outside_inference
def evaluate(
    model: Model,
    raw: Tensor,
    measures: Sequence[Measure] = MEASURES,
    *,
    c: Any = None,
    groups: Int[Tensor, " n"] | None = None,
    eps: float | None = None,
    repeats: int = 2,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
    distributed: bool = False,
) -> Likelihoods:
    """Likelihoods of raw data, each with and without reconstruction, with standard errors.

    Ctrl-C ends it with the examples and measures that are done, and ``report["interrupted"]`` is then True.

    Args:
        model: an INDM.
        raw: (N, *event) in data units (grey levels, vectors).
        measures: what is estimated, each kind once: :class:`indm.Bound`, :class:`indm.NLL`, :class:`indm.WeightedNLL`,
            :class:`indm.SamplerBound`.
        c: the conditions, of a model that has one, see :meth:`indm.INDM.given`: likelihoods are then of p(x|c).
        groups: the group of each example, (N,), where examples of one group are alike, as patches of one photograph
            are: standard errors are then over groups, see :func:`indm.evaluation.statistics.mean_and_error`,
            and None where there is one group.
        eps: truncation of bound and ODE, at or above the model's own; None is the model's own.
        repeats: independent draws of all randomness (dequantization, times, noise, probes) for each sample; at
            least 2, because one draw cannot tell estimator noise from the spread of the data.
        batch_size: samples at a time.
        seed: of the generator behind every draw; models evaluated with one seed share dequantization, times and
            noise, so that their paired differences are sharper than the error of either.
        progress: show a bar.
        distributed: every process of ``torch.distributed`` calls this with the same model and data, takes its share of
            the batches, and returns the whole. The model is a bare module, not wrapped for data parallel training.

    Raises:
        ValueError: an option that is out of range, wrong raw data, see :meth:`indm.Scaling.check`, or a row whose
            entries, or their squares, are not finite.
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
    _check(model, raw, measures, repeats, batch_size)
    c, n, device = model.rows(c, len(raw)), len(raw), model.scaling.scale.device
    model.flow.check()
    generator = torch.Generator(device)
    verdict = None
    if (foreign := described(model.score)) is not None:
        found = foreign.examine(model, raw, c=c, batch_size=batch_size, generator=generator.manual_seed(seed))
        verdict = found.verdict
        if found.wrong:
            warnings.warn(verdict, RuntimeWarning, stacklevel=3)
    model = model.truncated(eps)
    reference = latent_reference(model, raw, c=c, batch_size=batch_size, seed=seed)
    drawn = {m.kind: m.coarse(model, m.count(n) * repeats) for m in measures}
    jobs = [(m.kind, rows) for m in measures for rows in torch.arange(m.count(n)).split(batch_size)]

    def draw(job: int, number: int) -> Estimate:
        kind, rows = jobs[job]
        generator.manual_seed(seed + SEED_STRIDE * number)
        return drawn[kind].estimate(model.given(c, rows=rows), raw[rows].to(device), reference, generator)

    def solver_of(measure: Measure) -> Solve:
        """A function that repeats the draws of ``measure`` and solves them in other numbers of steps."""
        first = [kind for kind, _ in jobs].index(measure.kind) * repeats
        count = measure.count(n)
        seeds = [seed + SEED_STRIDE * (first + k) for k in range(math.ceil(count / batch_size) * repeats)]
        made = RepeatableDraws(model, raw[:count], c, reference, batch_size, repeats, seeds, measure.solver)
        return shared(made, progress, distributed)

    dims = math.prod(raw.shape[1:])
    costs = {kind: measure.calls(dims) for kind, measure in drawn.items()}
    work = [(kind, costs[kind] * len(rows)) for kind, rows in jobs]
    with evaluation_mode(model):
        estimates, ended = draw_all(draw, work, repeats, progress, distributed)
    counts = {kind: sum(len(batch[0].total) for batch in batches) for kind, batches in estimates.items()}
    measures = [measure for measure in measures if counts.get(measure.kind, 0) > 1]
    if not measures:
        raise KeyboardInterrupt("before two examples were done")
    setting = Setting(dims, groups, seed, model.sde)
    unit = "nats" if model.scaling.levels is None else "bits/dim"
    report: dict[str, Any] = {
        "images": {m.kind: counts[m.kind] for m in measures},
        "unit": unit,
        "dims": dims,
        "dequantization": in_words(model),
        "eps": model.sde.eps,
        "repeats": repeats,
        "seed": seed,
        "network": verdict,
        "codes": None if model.flow.has_log_det else "one draw for each estimate: the NLL is a bound, too",
        "groups": None if groups is None else len(groups.unique()),
        "examples_sha256": hashlib.sha256(raw.detach().cpu().contiguous().numpy().data).hexdigest(),
    }
    nats: dict[str, Tensor] = {}
    for measure in measures:
        own = estimates[measure.kind]
        try:
            report[measure.kind], by_suffix = measure.numbers(own, setting, solver_of(measure) if ended else None)
        except KeyboardInterrupt:
            if distributed or not ended:
                raise
            ended = False
            report[measure.kind], by_suffix = measure.numbers(own, setting, None)
        nats |= {measure.kind + suffix: values for suffix, values in by_suffix.items()}
    if groups is not None:
        nats["groups"] = groups
    return Likelihoods(report | {"interrupted": not ended}, nats)


def _check(model: Model, raw: Tensor, measures: Sequence[Measure], repeats: int, batch_size: int) -> None:
    are_measures = isinstance(measures, Sequence) and all(isinstance(measure, Measure) for measure in measures)
    require(are_measures, "measures", measures, "a list of measures", "[indm.Bound(), indm.NLL()] would do")
    kinds = [measure.kind for measure in measures]
    require(repeats >= 2, "repeats", repeats, "at least 2", "one draw cannot show its own noise")
    require(len(raw) >= 2, "raw", len(raw), "at least 2 samples for a standard error")
    require(0 < len(kinds) == len(set(kinds)), "measures", kinds, "one or more, each kind once")
    for measure in measures:
        measure.check(len(raw))
    if model.scaling.levels is None:
        norm = torch.cat([squared_norm(model.scaling.to_model(part)) for part in raw.split(batch_size)])
        if len(rows := (~norm.isfinite()).nonzero()):
            largest = raw[rows[0]].abs().max()
            raise ValueError(
                f"raw must be finite, also when squared, got {largest:g} in row {int(rows[0])}; leave it out"
            )


# ── Draws, and their share of each process ──────────────────────────────────────────────────────────────────────────


def draw_all(
    draw: Callable[[int, int], Estimate], jobs: list[tuple[str, float]], repeats: int, progress: bool, distributed: bool
) -> tuple[dict[str, list[list[Estimate]]], bool]:
    """``draw(job, number)`` for each job and repeat, ``number`` counting all draws: by kind, job by job.

    A job is its kind and its cost, by which the bar moves. With ``distributed`` every process draws its share of the
    jobs and gets the estimates of all. Otherwise Ctrl-C keeps the jobs that are done.

    Returns:
        The estimates, and whether all jobs are done.
    """
    share, drawn = _share(len(jobs), distributed), dict[int, list[Estimate]]()
    total = repeats * sum(jobs[job][1] for job in share)
    with tqdm(total=total, bar_format=BAR, disable=not progress) as bar, warnings.catch_warnings():
        try:
            for job in share:
                kind, cost = jobs[job]
                bar.set_description(kind.upper())
                estimates = []
                for repeat in range(repeats):
                    estimates.append(draw(job, job * repeats + repeat))
                    bar.update(cost)
                    if kind != "nelbo":  # warn once if the tolerance cannot be reached
                        warnings.filterwarnings("ignore", OUT_OF_REACH, RuntimeWarning)
                drawn[job] = estimates
        except KeyboardInterrupt:
            if distributed:
                raise
    drawn = _gathered(drawn, distributed)
    by_kind: dict[str, list[list[Estimate]]] = {}
    for job in sorted(drawn):
        by_kind.setdefault(jobs[job][0], []).append(drawn[job])
    return by_kind, len(drawn) == len(jobs)


def shared(draws: RepeatableDraws, progress: bool, distributed: bool) -> Solve:
    """:meth:`RepeatableDraws.solve` for any number of estimates in any order, shared among processes."""

    def solve(estimates: Tensor, ladder: Sequence[Steps]) -> tuple[Tensor, Tensor, int]:
        if not len(estimates):
            return torch.zeros(len(ladder), 0).double(), torch.zeros(0).double(), 0
        places = draws.numbers(estimates).argsort(stable=True)
        parts = estimates[places].split(draws.batch_size)
        bar = tqdm(_share(len(parts), distributed), desc="NLL, corrections", disable=not progress, leave=False)
        solved = _gathered({part: draws.solve(parts[part], ladder) for part in bar}, distributed)
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
