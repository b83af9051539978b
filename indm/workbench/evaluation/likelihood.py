"""The likelihood of held-out data under a model, with error bars."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, TypedDict, TypeVar, Unpack

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from indm.conditions import all_rows, at_rows
from indm.dequantization import check_raw, from_data, in_words
from indm.foreign.checks import check_denoiser, is_foreign
from indm.gaussian import GaussianReference
from indm.likelihood import (
    NLL_ERROR,
    LikelihoodReport,
    check_nll_error,
    latent_reference,
    log_likelihood,
    log_probability,
)
from indm.messages import nearest
from indm.multilevel import LEAST
from indm.objective import LEVELS, NELBO, nelbo
from indm.ode import OUT_OF_REACH
from indm.sde.linear import LinearSDE
from indm.tensors import evaluation_mode, outside_inference, squared_norm
from indm.workbench.evaluation.mean_nll import SHARE, Draws, Steps, corrected, first_steps
from indm.workbench.evaluation.statistics import in_both_units, mean_and_error, mean_error_and_noise

T = TypeVar("T")
TERMS = ("reconstruction", "prior", "flow", "constant", "log_q")  # of the NELBO beside its score term
SEED_STRIDE = 1_000_003  # between the seeds of successive draws


class Solver(TypedDict, total=False):
    """How the probability-flow ODE is solved: options of :func:`indm.log_likelihood`."""

    probes: int
    exact: bool | None
    nll_error: float
    steps: int | None
    eps: float | None


@dataclass(frozen=True)
class Estimate:
    """One draw for a batch.

    Attributes:
        total: (B,), nats of −log p of the raw data or of a bound of it.
        without_reconstruction: (B,), the same without the reconstruction term.
        solver_error: (B,), of ``total``, nats; 0 where no ODE was solved.
        settings: how it was made.
        nfe: evaluations of the network by the solver of an ODE; 0: none was solved.
        terms: (B, LEVELS + 5), nats: the score term by level, and the terms of :data:`TERMS`; None where not known.
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
        estimate = cls.of(-report.log_prob, report.reconstruction, report.log_q, report.settings)
        return replace(estimate, nfe=report.nfe, solver_error=report.solver_error.cpu().double())


Estimator = Callable[[Any, Tensor, torch.Generator], Estimate]  # (model at the conditions, raw data, generator)


@outside_inference
def evaluate(
    model,
    raw: Tensor,
    *,
    c: Any = None,
    groups: Int[Tensor, " n"] | None = None,
    nll_examples: int | None = None,
    each: bool = False,
    mean_error: float | None = None,
    draws: int = 0,
    iw_examples: int = 100,
    ancestral: int = 0,
    repeats: int = 2,
    times: int = 4,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
    distributed: bool = False,
    **solver: Unpack[Solver],
) -> tuple[dict, dict[str, Tensor]]:
    """NELBO and NLL of raw data, each with and without reconstruction, with standard errors.

    Args:
        model: an INDM; or a model that is not a diffusion (``model.is_diffusion`` is false), whose ``model.bound`` is
            reported as the NELBO, and no NLL.
        raw: (N, *event) in data units (grey levels, vectors).
        c: the conditions, of a model that has one, see :meth:`indm.INDM.given`: likelihoods are then of p(x|c).
        groups: which group each example is of, (N,), where those of one group are alike, as patches of one photograph
            are: standard errors are then over groups, see :func:`indm.workbench.evaluation.statistics.mean_and_error`,
            and None where there is one group.
        nll_examples: how many of them (the first ones) get the NLL; default all, 0 skips it.
        each: solve the NLL of every example to ``nll_error``. Otherwise, where there are hundreds of examples, all are
            solved in few steps, and some of them to ``nll_error``, which corrects the mean (:mod:`indm.multilevel`).
        mean_error: the standard error that these corrections may add to the mean NLL, bits per dimension; default a
            fifth of the standard error over examples, or over groups where there are several.
        draws: K of the importance-weighted bound of :func:`indm.log_probability`; 0 skips it. Its divergence is exact
            unless ``exact`` is False.
        iw_examples: how many (the first ones) get that bound.
        ancestral: N of the bound of samples by :class:`indm.sampling.Ancestral` in N steps; 0 skips it.
        repeats: independent draws of all randomness (dequantization, times, noise, probes) for each sample; at
            least 2, because one draw cannot tell estimator noise from the spread of the data.
        times: score evaluations for each NELBO draw.
        batch_size: samples at a time.
        seed: of the generator behind every draw; models evaluated with one seed share dequantization, times and
            noise, so that their paired differences are sharper than the error of either.
        progress: show a bar.
        distributed: every process of ``torch.distributed`` calls this with the same model and data, takes its share of
            the batches, and returns the whole, which does not depend on the number of processes. The model is a bare
            module, not wrapped for data parallel training: a solver then takes as many steps as its batch needs, and
            no process waits for another before the end.
        **solver: ``probes``, ``exact``, ``nll_error``, ``steps`` and ``eps``, as :func:`indm.log_likelihood` takes
            them; the NELBO has the same ``eps``.

    Returns:
        A JSON-able report, and per-sample nats of the raw data, mean over repeats: ``nelbo``, ``nll``, ``iw``,
        ``ancestral``, and all but ``iw`` with suffix ``_without_reconstruction``; ``nll`` and ``iw`` also with suffix
        ``_solver_error``, the largest over repeats. Unless ``each``, ``nll`` is ``nll_coarse``, in few steps; and for
        each level l ``nll_level_l`` are the differences of finer and coarser solves, of the estimates
        ``nll_level_l_estimates`` (example · repeats + repeat). ``nll_certain`` are those of estimates whose coarse
        error was unusually large. ``report["nelbo"]`` has ``terms``, which sum to the bound, and ``by_level``, the
        score term in equal parts of the log-SNR clock; ``nelbo_levels``, (N, 8), are these parts of each sample.

    Raises:
        ValueError: an option that is unknown or out of range, wrong raw data, see :meth:`indm.Scaling.check`, or a row
            whose entries, or their squares, are not finite.
        RuntimeError: a flow that need not be invertible.

    Example: N(0, I) and its exact score.

        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> report, nats = evaluate(indm.build_model(tables, (2,)), x, each=True, progress=False)
        >>> exact = -torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
        >>> bool((nats["nll"] - exact).abs().max() < 0.1)  # row by row
        True
        >>> row = report["nll"]["with_reconstruction"]
        >>> abs(row["nats"] - math.log(2 * math.pi * math.e)) < 4 * row["nats_standard_error"]  # of the entropy
        True
    """
    check_raw(model, raw)
    counts = {"nelbo": len(raw), "nll": len(raw) if nll_examples is None else min(nll_examples, len(raw))}
    counts |= {"iw": min(iw_examples, len(raw))} if draws and model.is_diffusion else {}
    counts |= {"ancestral": len(raw)} if ancestral and model.is_diffusion else {}
    _check(counts, repeats, mean_error, solver)
    device, eps, notes = model.scaling.scale.device, 0.0, {}
    _check_finite(model, raw, batch_size)
    c = all_rows(model, c, len(raw))
    few = 0  # steps of the coarse NLL
    if model.is_diffusion:
        model.flow.check()
        if is_foreign(model):
            drawn = torch.Generator(device).manual_seed(seed)
            for finding in check_denoiser(model, raw, c=c, batch_size=batch_size, generator=drawn).findings:
                warnings.warn(finding, RuntimeWarning, stacklevel=3)
        model = model.truncated(solver.pop("eps", None))
        eps = model.sde.eps
        reference = latent_reference(model, raw, c=c, batch_size=batch_size, seed=seed)
        if not each and solver.get("steps") is None:
            few = first_steps(model.score) if counts["nll"] * repeats >= 4 * LEAST else 0
        coarse: Solver = {"steps": few} if few else {}
        estimators = diffusion_estimators(reference, times, draws, ancestral, solver, solver | coarse)
        if not model.flow.has_log_det:
            notes = {"codes": "one draw for each estimate: the NLL is a bound, too"}
    else:
        counts["nll"] = 0
        estimators = {"nelbo": bound_estimator(lambda model, x, log_q, **options: model.bound(x, **options), {})}
    jobs = [(kind, rows) for kind, n in counts.items() for rows in torch.arange(n).split(batch_size) if len(rows)]
    generator = torch.Generator(device)

    def draw(job: int, number: int) -> Estimate:
        kind, rows = jobs[job]
        generator.manual_seed(seed + SEED_STRIDE * number)
        return estimators[kind](at_rows(model, c, rows), raw[rows].to(device), generator)

    with evaluation_mode(model):
        estimates = _draw_all(draw, [kind for kind, _ in jobs], repeats, progress, distributed)
    dims = math.prod(raw.shape[1:])
    setting = {"dims": dims, "dequantization": in_words(model), "eps": eps, "repeats": repeats, "seed": seed}
    report: dict[str, Any] = {"images": counts} | setting | notes
    nats: dict[str, Tensor] = {}
    for kind, of_kind in estimates.items():
        own_groups = None if groups is None else groups[: counts[kind]]
        report[kind], own = summary(of_kind, dims, own_groups)
        if kind == "nelbo" and of_kind[0][0].terms is not None:
            terms = _stacked(of_kind, "terms").mean(0)
            report[kind] |= by_level(terms, model.sde, dims, own_groups)
            own["_levels"] = terms[:, :LEVELS]
        if kind == "iw":  # whose weights are the reconstruction terms, too
            del report[kind]["without_reconstruction"], own["_without_reconstruction"]
        if kind == "nll" and few:
            n, first = counts["nll"], min(job for job, (name, _) in enumerate(jobs) if name == "nll") * repeats
            seeds = [seed + SEED_STRIDE * (first + number) for number in range(math.ceil(n / batch_size) * repeats)]
            made = Draws(model, raw[:n], c, reference, batch_size, repeats, seeds, dict(solver))
            solve = shared(made, progress, distributed)
            report[kind], own = _corrected(report[kind], of_kind, own, dims, few, mean_error, seed, solve)
        nats |= {kind + suffix: values for suffix, values in own.items()}
    return report, nats


def shared(draws: Draws, progress: bool, distributed: bool) -> Callable[..., tuple[Tensor, Tensor, int]]:
    """:meth:`Draws.solve` for any number of estimates in any order, shared among processes."""

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


def _corrected(
    numbers: dict,
    estimates: list[list[Estimate]],
    coarse_nats: dict[str, Tensor],
    dims: int,
    few: int,
    mean_error: float | None,
    seed: int,
    solve: Callable[..., tuple[Tensor, Tensor, int]],
) -> tuple[dict, dict[str, Tensor]]:
    """The report and nats of an NLL in few steps, with the mean of the finest level."""
    coarse, stated = (_stacked(estimates, part).T.flatten() for part in ("without_reconstruction", "solver_error"))
    bits, error = dims * math.log(2), numbers["with_reconstruction"]["nats_standard_error"]
    if error is None:  # of a single group: of examples as if they were independent
        _, error = mean_and_error(coarse_nats[""])
    allowed = SHARE * error if mean_error is None else mean_error * bits
    nfe = numbers["nfe"]
    result = corrected(coarse, stated, few, nfe, allowed, seed, solve)
    report = {key: value for key, value in numbers.items() if key not in ("steps", "solver_error", "unconverged")}
    report |= solver_error(result.levels[-1].error, dims, numbers["nll_error"])
    report["nfe"] = nfe + result.evaluations / len(coarse)
    report["levels"] = [{"steps": few, "estimates": len(coarse), "nfe": nfe}] + [
        {
            "steps": level.steps,
            "estimates": len(level.estimates),
            "nfe": level.evaluations,
            "mean_bits_per_dim": level.differences.mean().item() / bits,
            "deviation_bits_per_dim": level.differences.std().item() / bits,
        }
        for level in result.levels
    ]
    report["certain"] = len(result.certain[0])
    added = result.correction.added_error
    report["added_error"] = {"nats": added, "bits_per_dim": added / bits, "degrees": result.correction.degrees}
    for name in ("with_reconstruction", "without_reconstruction"):
        report[name] = dict(numbers[name])
        report[name]["nats"] += result.correction.value
        report[name]["bits_per_dim"] += result.correction.value / bits
    nats = {f"_coarse{suffix}": values for suffix, values in coarse_nats.items()}
    for number, level in enumerate(result.levels, 1):
        nats |= {f"_level_{number}": level.differences, f"_level_{number}_estimates": level.estimates}
    if report["certain"]:
        nats |= {"_certain": result.certain[1], "_certain_estimates": result.certain[0]}
    return report, nats


def _check(counts: Mapping[str, int], repeats: int, mean_error: float | None, solver: Solver) -> None:
    for name in solver:
        if name not in Solver.__annotations__:
            raise ValueError(f"{name} is no option of evaluate{nearest(name, Solver.__annotations__)}")
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2, got {repeats}: one draw cannot show its own noise")
    if counts["nelbo"] < 2:
        raise ValueError(f"raw must hold at least 2 samples for a standard error, got {counts['nelbo']}")
    for kind, name, skipped in (("nll", "nll_examples", "0 (no NLL)"), ("iw", "iw_examples", "draws 0 (no IW-NLL)")):
        if counts.get(kind, 0) < 0 or counts.get(kind) == 1:
            raise ValueError(f"{name} must be at least 2 for a standard error, or {skipped}, got {counts[kind]}")
    check_nll_error(solver.get("nll_error", NLL_ERROR))
    if mean_error is not None and not 0 < mean_error < math.inf:
        raise ValueError(f"mean_error must be positive and finite, got {mean_error}; 1e-3 bits/dim is usual")


def _check_finite(model, raw: Tensor, batch_size: int) -> None:
    """ValueError for a row of continuous data whose squared norm in model units is not a finite number."""
    if model.scaling.levels is None:
        norm = torch.cat([squared_norm(model.scaling.to_model(part)) for part in raw.split(batch_size)])
        if len(rows := (~norm.isfinite()).nonzero()):
            largest = raw[rows[0]].abs().max()
            raise ValueError(
                f"raw must be finite, also when squared, got {largest:g} in row {int(rows[0])}; leave it out"
            )


def diffusion_estimators(
    reference: GaussianReference, times: int, draws: int, ancestral: int, solver: Solver, coarse: Solver
) -> dict[str, Estimator]:
    """The NELBO of the generative SDE, the NLL of the probability-flow ODE as ``coarse`` solves it, the
    importance-weighted bound of that from ``draws``, and the bound of ``ancestral`` steps."""

    def nll(model, raw: Tensor, generator: torch.Generator) -> Estimate:
        x, log_q = from_data(model, raw, generator=generator)
        report = log_likelihood(model, x, **coarse, reference=reference, log_q=log_q, generator=generator)
        return Estimate.solved(report)

    def weighted(model, raw: Tensor, generator: torch.Generator) -> Estimate:
        options = solver | {"exact": solver.get("exact") is not False}
        report = log_probability(model, raw, draws=draws, **options, reference=reference, generator=generator)
        return Estimate.solved(report)

    of_sde = partial(nelbo, times=times, reference=reference)
    of_steps = partial(nelbo, times=times, ancestral=ancestral)
    return {
        "nelbo": bound_estimator(of_sde, {"times": times}),
        "nll": nll,
        "iw": weighted,
        "ancestral": bound_estimator(of_steps, {"times": times, "steps": ancestral}),
    }


def bound_estimator(bound: Callable[..., NELBO], settings: dict[str, int]) -> Estimator:
    """An estimate by a ``bound`` (model, x, log_q=…, generator=…) of −log p(x) in model units."""

    def estimate(model, raw: Tensor, generator: torch.Generator) -> Estimate:
        x, log_q = from_data(model, raw, generator=generator)
        terms = bound(model, x, log_q=log_q, generator=generator)
        estimate = Estimate.of(terms.total, terms.reconstruction, log_q, settings)
        if not model.is_diffusion or terms.levels is None:
            return estimate
        columns = [*terms.levels.unbind(1), *(getattr(terms, name).expand(len(x)) for name in TERMS)]
        return replace(estimate, terms=torch.stack(columns, 1).cpu().double())

    return estimate


def _draw_all(
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
                if kinds[job] != "nelbo":  # of a tolerance that is out of reach one batch tells
                    warnings.filterwarnings("ignore", OUT_OF_REACH, RuntimeWarning)
    drawn = _gathered(drawn, distributed)
    by_kind: dict[str, list[list[Estimate]]] = {}
    for job, kind in enumerate(kinds):
        by_kind.setdefault(kind, []).append(drawn[job])
    return by_kind


def _share(jobs: int, distributed: bool) -> range:
    """The jobs of this process."""
    return range(dist.get_rank(), jobs, dist.get_world_size()) if distributed else range(jobs)


def _gathered(own: dict[int, T], distributed: bool) -> dict[int, T]:
    """The results of all processes by job."""
    if not distributed:
        return own
    parts: list[dict[int, T]] = [{}] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return {job: result for part in parts for job, result in part.items()}


def _stacked(estimates: list[list[Estimate]], part: str) -> Float[Tensor, "repeats n"]:
    """A part of estimates, batch by batch and repeat by repeat."""
    return torch.cat([torch.stack([getattr(e, part) for e in batch]) for batch in estimates], 1)


def summary(
    estimates: list[list[Estimate]], dims: int, groups: Int[Tensor, " n"] | None = None
) -> tuple[dict, dict[str, Tensor]]:
    """What a report says of estimates of one kind, batch by batch and repeat by repeat, and by their suffix the nats of
    every sample: means over repeats with and without reconstruction, and the solver's error, the largest of them."""
    total, without = _stacked(estimates, "total"), _stacked(estimates, "without_reconstruction")
    evaluations = [e.nfe for batch in estimates for e in batch]
    numbers = dict(estimates[0][0].settings)
    nats = {"": total.mean(0), "_without_reconstruction": without.mean(0)}
    if any(evaluations):
        nats["_solver_error"] = errors = _stacked(estimates, "solver_error").amax(0)
        numbers |= {"nfe": sum(evaluations) / len(evaluations)} | solver_error(errors, dims, numbers["nll_error"])
    numbers["with_reconstruction"] = in_units(total, dims, groups)
    numbers["without_reconstruction"] = in_units(without, dims, groups)
    return numbers, nats


def by_level(
    terms: Float[Tensor, "n terms"], sde: LinearSDE, dims: int, groups: Int[Tensor, " n"] | None = None
) -> dict[str, Any]:
    """The ``terms`` of the NELBO, which sum to it, and the parts of its score term ``by_level``, each with the
    ``noise`` σ/α at its ends; means with standard errors."""

    def row(values: Float[Tensor, " n"]) -> dict[str, Any]:
        mean, error = mean_and_error(values, groups)
        return in_both_units({"": mean, "_standard_error": error}, dims)

    levels, others = terms.split([LEVELS, len(TERMS)], 1)
    noise = (torch.linspace(*sde.clock_span(), LEVELS + 1, dtype=torch.float64) / 2).exp().tolist()
    rows = zip(pairwise(noise), levels.unbind(1), strict=True)
    return {
        "terms": {"score": row(levels.sum(1))} | {name: row(others[:, k]) for k, name in enumerate(TERMS)},
        "by_level": [{"noise": list(ends)} | row(values) for ends, values in rows],
    }


def solver_error(errors: Float[Tensor, " n"], dims: int, nll_error: float) -> dict[str, Any]:
    """What a report says of the solver: its mean ``solver_error``, the largest, and in how many examples it is above
    ``nll_error`` bits/dim."""
    bits = errors / (dims * math.log(2))
    mean = {"nats": errors.mean().item(), "bits_per_dim": bits.mean().item()}
    largest = {"largest_bits_per_dim": bits.max().item()}
    return {"solver_error": mean | largest, "unconverged": int((bits > nll_error).sum())}


def in_units(
    draws: Float[Tensor, "repeats n"], dims: int, groups: Int[Tensor, " n"] | None = None
) -> dict[str, float | None]:
    """Mean, standard error and estimator noise of ``draws`` (see :func:`mean_error_and_noise`) in nats and bits/dim."""
    mean, error, noise = mean_error_and_noise(draws, groups)
    return in_both_units({"": mean, "_standard_error": error, "_estimator_noise": noise}, dims)
