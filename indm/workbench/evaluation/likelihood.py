"""The likelihood of held-out data under a model, with error bars."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from indm.checks import require
from indm.dequantization import check_raw, in_words
from indm.foreign.denoiser import check_denoiser, is_foreign
from indm.likelihood import latent_reference
from indm.ode import OUT_OF_REACH
from indm.tensors import evaluation_mode, outside_inference, squared_norm
from indm.workbench.evaluation.mean_nll import RepeatableDraws, Steps
from indm.workbench.evaluation.measures import NLL, Bound, Estimate, Measure, Setting, Solve
from indm.workbench.evaluation.tables import likelihood_table

T = TypeVar("T")
SEED_STRIDE = 1_000_003  # between the seeds of successive draws
MEASURES = (Bound(), NLL())


@dataclass(frozen=True)
class Likelihoods:
    """What :func:`evaluate` has estimated; ``print`` shows it as the table of ``indm evaluate``.

    Attributes:
        report: what JSON can hold: ``images``, how many examples by the kind of a measure; the settings; ``unit``, that
            of the table; and by kind its numbers, of which ``with_reconstruction`` and ``without_reconstruction`` have
            means, standard errors and the estimator's noise in nats and bits/dim. That of "nelbo" has ``terms``, which
            sum to the bound, and ``by_level``, the score term in equal parts of the log-SNR clock.
        nats: of each example, means over repeats: by kind, and all but "iw" with the suffix
            ``_without_reconstruction``; "nll" and "iw" also with ``_solver_error``, the largest over repeats. Where the
            mean NLL was corrected, "nll" is "nll_coarse", in few steps, and for each level l "nll_level_l" are the
            differences of finer and coarser solves, of the estimates "nll_level_l_estimates" (example · repeats +
            repeat); "nll_certain" are those of estimates whose coarse error was unusually large. "nelbo_levels",
            (N, 8), are the parts of the score term.

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
        return likelihood_table(self.report)


@outside_inference
def evaluate(
    model,
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

    Args:
        model: an INDM.
        raw: (N, *event) in data units (grey levels, vectors).
        measures: what is estimated, each kind once: :class:`indm.Bound`, :class:`indm.NLL`, :class:`indm.WeightedNLL`,
            :class:`indm.SamplerBound`.
        c: the conditions, of a model that has one, see :meth:`indm.INDM.given`: likelihoods are then of p(x|c).
        groups: which group each example is of, (N,), where those of one group are alike, as patches of one photograph
            are: standard errors are then over groups, see :func:`indm.workbench.evaluation.statistics.mean_and_error`,
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
    if is_foreign(model):  # a network of other people
        checked = check_denoiser(model, raw, c=c, batch_size=batch_size, generator=generator.manual_seed(seed))
        for finding in checked.findings:
            warnings.warn(finding, RuntimeWarning, stacklevel=3)
    model = model.truncated(eps)
    reference = latent_reference(model, raw, c=c, batch_size=batch_size, seed=seed)
    drawn = {m.kind: m.coarse(model, m.count(n) * repeats) for m in measures}
    jobs = [(m.kind, rows) for m in measures for rows in torch.arange(m.count(n)).split(batch_size)]

    def draw(job: int, number: int) -> Estimate:
        kind, rows = jobs[job]
        generator.manual_seed(seed + SEED_STRIDE * number)
        return drawn[kind].estimate(model.given(c, rows=rows), raw[rows].to(device), reference, generator)

    def solver_of(measure: Measure) -> Solve:
        """What makes the draws of ``measure`` again, and solves them in other numbers of steps."""
        first = [kind for kind, _ in jobs].index(measure.kind) * repeats
        count = measure.count(n)
        seeds = [seed + SEED_STRIDE * (first + k) for k in range(math.ceil(count / batch_size) * repeats)]
        made = RepeatableDraws(model, raw[:count], c, reference, batch_size, repeats, seeds, measure.solver)
        return shared(made, progress, distributed)

    with evaluation_mode(model):
        estimates = draw_all(draw, [kind for kind, _ in jobs], repeats, progress, distributed)
    dims = math.prod(raw.shape[1:])
    setting = Setting(dims, groups, seed, model.sde)
    unit = "nats" if model.scaling.levels is None else "bits/dim"
    about = {"unit": unit, "dims": dims, "dequantization": in_words(model), "eps": model.sde.eps}
    report = {"images": {m.kind: m.count(n) for m in measures}} | about | {"repeats": repeats, "seed": seed}
    if not model.flow.has_log_det:
        report["codes"] = "one draw for each estimate: the NLL is a bound, too"
    if groups is not None:
        report["groups"] = len(groups.unique())
    nats: dict[str, Tensor] = {}
    for measure in measures:
        report[measure.kind], by_suffix = measure.numbers(estimates[measure.kind], setting, solver_of(measure))
        nats |= {measure.kind + suffix: values for suffix, values in by_suffix.items()}
    return Likelihoods(report, nats)


def _check(model, raw: Tensor, measures: Sequence[Measure], repeats: int, batch_size: int) -> None:
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
    draw: Callable[[int, int], Estimate], kinds: list[str], repeats: int, progress: bool, distributed: bool
) -> dict[str, list[list[Estimate]]]:
    """``draw(job, number)`` for each job and repeat, ``number`` counting all draws: by kind, job by job.

    With ``distributed`` every process draws its share of the jobs and gets those of all.
    """
    share, drawn = _share(len(kinds), distributed), dict[int, list[Estimate]]()
    with tqdm(total=repeats * len(share), desc="likelihood", disable=not progress) as bar, warnings.catch_warnings():
        for job in share:
            bar.set_description(kinds[job].upper())
            drawn[job] = []
            for repeat in range(repeats):
                drawn[job].append(draw(job, job * repeats + repeat))
                bar.update()
                if kinds[job] != "nelbo":  # warn once if the tolerance cannot be reached
                    warnings.filterwarnings("ignore", OUT_OF_REACH, RuntimeWarning)
    drawn = _gathered(drawn, distributed)
    by_kind: dict[str, list[list[Estimate]]] = {}
    for job, kind in enumerate(kinds):
        by_kind.setdefault(kind, []).append(drawn[job])
    return by_kind


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
