r"""What a report says of one trained model: sample quality over steps, transport cost, and the sampling error by parts.

Measures take a model and data and return what JSON can hold. Samples and paths are computed in the model's precision,
statistics in float64. Standard errors are of the mean, or by the :func:`jackknife` where a number is no mean.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from tqdm import tqdm

from indm.data import Data, stack
from indm.densities import DENSITIES, Density, Points
from indm.extractor import Extractor
from indm.flows import require_one_map
from indm.likelihood import evaluate, evaluation_mode
from indm.metrics import frechet_distance, sliced_wasserstein
from indm.objective import prior_term, randn_like
from indm.sampling import SAMPLERS, follow_flow
from indm.scaling import Scaling
from indm.score import denoise
from indm.sde import LinearSDE, event_sum, expand_like, squared_norm

FOLDS = 10  # of the jackknife
PROJECTIONS = 200  # of the sliced Wasserstein distance
CHUNKS = 5  # sets of training data, at most, that show the spread of a floor
LARGEST_ASSIGNMENT = 2000  # samples whose optimal transport is solved exactly
POINTS = 20_000  # test data of a known density whose NELBO is compared with it
STEPS = (5, 10, 20, 50, 100)
STOCHASTIC = ("euler-maruyama", "pc")
NEGLIGIBLE = 14.0  # nats below its highest at which a density is 0 to the quadrature
TABLE = 100_000  # pairs of a sample and a point of the quadrature looked at in one go
Batch = Float[Tensor, "batch *event"]


def jackknife(statistic: Callable[..., dict[str, float]], *sets: Tensor) -> dict[str, float]:
    """The numbers statistic(*sets), each with its ``…_standard_error`` from those without every tenth sample.

    The sets may differ in size; they are taken to be independent, or paired row by row.

    Raises:
        ValueError: fewer than 20 samples in a set.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", ch. 11, with groups of samples left out.
    """
    sizes = [len(samples) for samples in sets]
    if min(sizes) < 2 * FOLDS:
        raise ValueError(f"sets must hold at least {2 * FOLDS} samples each for a standard error, got {sizes}")
    without = [
        statistic(*(samples[torch.arange(len(samples), device=samples.device) % FOLDS != fold] for samples in sets))
        for fold in range(FOLDS)
    ]
    found = {}
    for name, value in statistic(*sets).items():
        spread = torch.tensor([values[name] for values in without], dtype=torch.float64).std().item()
        found |= {name: value, f"{name}_standard_error": (FOLDS - 1) / math.sqrt(FOLDS) * spread}
    return found


def mean_and_error(values: Float[Tensor, " n"]) -> tuple[float, float]:
    """Mean and its standard error."""
    values = values.double()
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


def distances(raw: Tensor, reference: Tensor, scaling: Scaling, extractor: Extractor | None = None) -> dict:
    """Distances of two sets in data units, each with its jackknife standard error.

    Returns:
        ``images``: of the first set. ``sliced_wasserstein``: in units of ``scaling``, along 200 fixed directions.
        ``frechet``: of the extractor's features, None without one.
    """

    def sliced(*sets: Tensor) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        return {"sliced_wasserstein": sliced_wasserstein(*sets, projections=PROJECTIONS, generator=generator)}

    def frechet(*sets: Tensor) -> dict[str, float]:
        return {"frechet": frechet_distance(*sets)}

    units = [(samples.cpu().float() - scaling.shift.cpu()) / scaling.scale.cpu() for samples in (raw, reference)]
    found = {"images": len(raw)} | jackknife(sliced, *units)
    if extractor is None:
        return found | {"frechet": None, "frechet_standard_error": None}
    return found | jackknife(frechet, *(extractor.features(samples) for samples in (raw, reference)))


def floor(data: Data, images: int, extractor: Extractor | None = None) -> dict:
    """The :func:`distances` of training data from as many test data: what a perfect model would get.

    They are means over up to 5 disjoint sets of training data (``sets``), with the standard error of one set, and
    ``…_spread``, the standard deviation over sets, None for one set.
    """
    test = stack(data.test, images)
    chunks = [part for part in stack(data.train, CHUNKS * images).split(images) if len(part) == images]
    rows = [distances(part, test, data.scaling, extractor) for part in chunks]
    found = {"images": images, "sets": len(rows)}
    for key in ("sliced_wasserstein", "frechet"):
        values = None if rows[0][key] is None else torch.tensor([row[key] for row in rows], dtype=torch.float64)
        found[key] = None if values is None else values.mean().item()
        found[f"{key}_standard_error"] = rows[0][f"{key}_standard_error"]
        found[f"{key}_spread"] = None if values is None or len(rows) == 1 else values.std().item()
    return found


def solve(
    model,
    z_T: Batch,
    sampler: str,
    steps: int | None = None,
    *,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> tuple[Batch, int]:
    """x in model units from given z_T, by a sampler, the last denoising and h⁻¹, as :func:`indm.sample` does it.

    A conditional flow has the same codes in every call, so that samples of the same z_T can be compared.

    Returns:
        x, and the evaluations of the score for one sample (the most that one took), that of the denoising included.
    """
    parts, nfe, codes = [], 0, _generator(z_T, 0, 3)
    with evaluation_mode(model):
        for part in z_T.split(batch_size):
            z, count = SAMPLERS[sampler](model.score, part, steps=steps, generator=generator, progress=progress)
            parts.append(model.decode(denoise(model.score, z, model.sde.endpoints(z)[0]), generator=codes))
            nfe = max(nfe, count + 1)
    return torch.cat(parts), nfe


def prior_draws(model, n: int, seed: int) -> Batch:
    """z_T from the prior, the same for every use of one seed."""
    generator = _generator(model.scaling.scale, seed, 0)
    return model.sde.prior_sample((n, *model.shape), generator=generator, dtype=model.scaling.scale.dtype)


def _generator(like: Tensor, seed: int, stream: int) -> torch.Generator:
    """On the device of ``like``; streams of one seed share no numbers."""
    return torch.Generator(like.device).manual_seed(seed + 1_000_003 * stream)


def latents(model, raw: Tensor, *, generator: torch.Generator | None = None, batch_size: int = 256) -> Batch:
    """h(x) of data in data units."""
    with evaluation_mode(model):
        parts = [part.to(model.scaling.scale.device) for part in raw.split(batch_size)]
        batches = (model.scaling.to_model(part, generator=generator) for part in parts)
        return torch.cat([model.flow.latent(x, generator=generator) for x in batches])


# ── Quality over steps ──────────────────────────────────────────────────────────────────────────────────────────────


def quality(
    model,
    data: Data,
    extractor: Extractor | None = None,
    *,
    samplers: Sequence[str] = ("unipc", "heun", "euler-maruyama"),
    steps: Sequence[int] = STEPS,
    images: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> list[dict]:
    """Distances of samples to the test split, in data units, for samplers and numbers of steps from the same z_T.

    Args:
        model: an INDM.
        data: whose test split they are compared with, in ``data.scaling``'s units, common to all models of the data.
        extractor: of features, for images; None for vectors.
        images: samples, at most as many as the test and the training split hold.

    Returns:
        Rows ``sampler``, ``steps``, ``nfe`` (evaluations of the score, that of the last denoising included),
        ``seconds`` and those of :func:`distances`; the first row is the :func:`floor`, sampler "data".

    Raises:
        ValueError: an unknown sampler.
    """
    for sampler in samplers:
        _check_sampler(sampler, SAMPLERS)
    images = _count(data, images)
    test, z_T = stack(data.test, images), prior_draws(model, images, seed)
    rows = [{"sampler": "data", "steps": None, "nfe": 0, "seconds": 0.0} | floor(data, images, extractor)]
    for sampler, count in tqdm(list(itertools.product(samplers, steps)), desc="quality", disable=not progress):
        generator, start = _generator(z_T, seed, 1), time.perf_counter()
        x, nfe = solve(model, z_T, sampler, count, generator=generator, progress=progress)
        raw = model.scaling.to_data(x).cpu()
        row = {"sampler": sampler, "steps": count, "nfe": nfe, "seconds": time.perf_counter() - start}
        rows.append(row | distances(raw, test, data.scaling, extractor))
    return rows


def _count(data: Data, images: int) -> int:
    """``images``, or as many as there are to compare."""
    return min(images, len(data.test), len(data.train))


def _check_sampler(sampler: str, known: Iterable[str]) -> None:
    if sampler not in known:
        raise ValueError(f"sampler must be one of {', '.join(known)}, got {sampler!r}")


# ── Transport ───────────────────────────────────────────────────────────────────────────────────────────────────────


def encode_ode(model, z_eps: Batch, *, tol: float = 1e-5, progress: bool = False) -> tuple[Batch, int]:
    """z_T from z_ε by the probability flow on the latent: the way back of the sampler "ode"; and its evaluations."""
    with evaluation_mode(model):
        return follow_flow(model.score, z_eps, model.sde.eps, model.sde.T, tol=tol, progress=progress)


def transport(model, x: Batch, *, generator: torch.Generator | None = None, progress: bool = True) -> dict:
    """How far the probability flow carries data, beside the least that any map of the same two sets could.

    x_0 → z_0 = h(x_0) → z_ε ~ q(·|z_0) → z_T by the ODE → x_T = h⁻¹(z_T).

    Args:
        model: an INDM.
        x: data in model units, 20 to 2000 of them.

    Returns:
        ``nfe``, and for ``data`` (x_0 → x_T) and ``latent`` (z_0 → z_T) what :func:`transport_cost` does.

    Raises:
        ValueError: too few or too many samples, or a flow that draws its map anew in every call.
    """
    require_one_map(model.flow, "transport along it")
    if not 2 * FOLDS <= len(x) <= LARGEST_ASSIGNMENT:
        raise ValueError(f"x must hold {2 * FOLDS} to {LARGEST_ASSIGNMENT} samples, got {len(x)}; 1000 is usual")
    with evaluation_mode(model):
        z = model.flow.latent(x)
        z_T, nfe = encode_ode(
            model, model.sde.perturb(z, model.sde.endpoints(z)[0], randn_like(z, generator)), progress=progress
        )
        x_T = model.decode(z_T)
    return {"nfe": nfe, "data": transport_cost(x, x_T), "latent": transport_cost(z, z_T)}


def transport_cost(start: Batch, end: Float[Tensor, "batch *event"]) -> dict:
    """Mean squared distance of paired samples and of their optimal pairing, in squared units of the samples.

    The optimum is exact for the two sets, so it is never above the cost; in many dimensions a few samples lie so far
    apart that little remains to be gained, and ``ratio`` is near 1 for any map: compare at one number of samples.

    Returns:
        ``cost``, ``optimal``, ``excess`` (cost − optimal) and ``ratio`` (cost/optimal), each with its
        ``…_standard_error``; ``cost_per_dimension``, …, divided by ``dims``; ``samples``.
    """
    start, end = (samples.flatten(1).double().cpu() for samples in (start, end))

    def costs(a: Tensor, b: Tensor) -> dict[str, float]:
        table = torch.cdist(a, b).square().numpy()
        cost, optimal = float(table.diagonal().mean()), float(table[linear_sum_assignment(table)].mean())
        return {"cost": cost, "optimal": optimal, "excess": cost - optimal, "ratio": cost / optimal}

    found = {"samples": len(start), "dims": start.shape[1]} | jackknife(costs, start, end)
    for name in ("cost", "optimal", "excess"):
        for key in (name, f"{name}_standard_error"):
            found[key.replace(name, f"{name}_per_dimension")] = found[key] / found["dims"]
    return found


# ── The sampling error by parts ─────────────────────────────────────────────────────────────────────────────────────


def sampling_errors(
    model,
    data: Data,
    extractor: Extractor | None = None,
    *,
    steps: Sequence[int] = STEPS,
    sampler: str = "unipc",
    images: int = 500,
    seed: int = 0,
    progress: bool = True,
) -> dict:
    """The sampling error as prior + discretization + estimation, each measured apart from the others.

    With x(z_T) for the converged solver's sample (probability-flow ODE to 1e-5): *prior* is π against the law of z_T,
    and x(π) against x(z_T of training data), pair by pair with one noise in both; *discretization* the sampler in so
    many steps against x, from the same z_T ~ π; *estimation* x(z_T of training data) against test data, beside the
    :func:`floor`.

    Args:
        model: an INDM.
        data: a known density (:data:`indm.densities.DENSITIES`, by its name) also has its estimation error in nats,
            unless the flow draws its map anew in every call.
        sampler: one that solves the probability flow.
        images: samples, at most as many as the test and the training split hold.

    Returns:
        ``prior`` (:func:`prior_error`, and ``rms`` in model units), ``discretization`` (:func:`discretization_error`),
        ``estimation`` (``samples``, ``floor`` and, for a known density, ``kl`` and ``curve``), ``nfe`` of the converged
        solver, ``images``, ``sampler``, ``seed``.

    Raises:
        ValueError: a sampler that is unknown or stochastic.
    """
    _check_sampler(sampler, [name for name in SAMPLERS if name not in STOCHASTIC])
    images = _count(data, images)
    generator = _generator(model.scaling.scale, seed, 1)
    z = latents(model, stack(data.train, images), generator=generator)
    with evaluation_mode(model):
        drawn = prior_draws(model, images, seed)
        noise = (drawn - model.sde.prior_mean.to(drawn)) / model.sde.prior_std
        z_T = {"data": model.sde.perturb(z, model.sde.endpoints(z)[1], noise), "prior": drawn}
    converged, nfe = {}, 0
    for name, start in z_T.items():
        converged[name], count = solve(model, start, "ode", progress=progress)
        nfe = max(nfe, count)
    prior = prior_error(model.sde, z, z_T["data"], seed=seed)
    estimation: dict = {
        "samples": distances(
            model.scaling.to_data(converged["data"]).cpu(), stack(data.test, images), data.scaling, extractor
        ),
        "floor": floor(data, images, extractor),
    }
    if data.name in DENSITIES and model.flow.one_map:
        density = DENSITIES[data.name]
        estimation["kl"] = estimation_error(model, density, stack(data.test, POINTS), prior, seed, progress)
        if model.sde.alpha(model.sde.endpoints(z)[1]).ndim == 1:  # entries of one clock, on which it is resolved
            estimation["curve"] = estimation_curve(model, density, samples=images, seed=seed, progress=progress)
    return {
        "images": images,
        "sampler": sampler,
        "nfe": nfe,
        "seed": seed,
        "prior": prior | _root_mean_square("rms", converged["prior"] - converged["data"]),
        "discretization": discretization_error(
            model, z_T["prior"], converged["prior"], sampler=sampler, steps=steps, progress=progress
        ),
        "estimation": estimation,
    }


@torch.no_grad()
def prior_error(sde: LinearSDE, z: Batch, z_T: Float[Tensor, "batch *event"], *, seed: int = 0) -> dict:
    """The law of z_T against the prior π, for latents ``z`` and draws ``z_T`` of their kernel at T.

    Returns:
        ``kl_above``: E KL(q(z_T|z_0) ‖ π), nats, an upper bound of KL(law of z_T ‖ π), with its standard error.
        ``kl_below``: KL of the Gaussian with the moments of z_T from π, a lower bound (π being Gaussian); the
        covariance is that of ``z`` carried to T.
        ``sliced_wasserstein``: of z_T from as many draws of π, latent units, with its standard error, and
        ``sliced_wasserstein_floor``, of two sets of draws of π.
    """
    z = z.double()
    _, T = sde.endpoints(z)
    alpha, sigma = (expand_like(v, z).expand_as(z)[0].flatten() for v in (sde.alpha(T), sde.sigma(T)))
    entropy = event_sum(expand_like(sde.sigma(T), z).expand_as(z).log() + 0.5 * math.log(2 * math.pi * math.e), z)
    above, error = mean_and_error(prior_term(sde, z) - entropy)

    shift = alpha * z.flatten(1).mean(0) - sde.prior_mean.to(z).expand(z.shape[1:]).flatten()
    covariance = alpha[:, None] * torch.cov(z.flatten(1).T).reshape(len(alpha), len(alpha)) * alpha
    covariance = (covariance + torch.diag(sigma**2)) / sde.prior_std**2
    below = 0.5 * (covariance.trace() + (shift / sde.prior_std).square().sum() - len(alpha) - covariance.logdet())

    generator, unit = _generator(z, seed, 2), Scaling()
    pi = [sde.prior_sample(z_T.shape, generator=generator, device=z.device, dtype=z_T.dtype) for _ in range(2)]
    found = {"kl_above": above, "kl_above_standard_error": error, "kl_below": below.item()}
    for suffix, draws in (("", z_T), ("_floor", pi[1])):
        seen = distances(draws, pi[0], unit)
        found[f"sliced_wasserstein{suffix}"] = seen["sliced_wasserstein"]
        found[f"sliced_wasserstein{suffix}_standard_error"] = seen["sliced_wasserstein_standard_error"]
    return found


def discretization_error(
    model,
    z_T: Batch,
    converged: Float[Tensor, "batch *event"],
    *,
    sampler: str = "unipc",
    steps: Sequence[int] = STEPS,
    progress: bool = True,
) -> list[dict]:
    """Root mean square over entries of the sampler's x − the ``converged`` x from the same z_T, for numbers of steps.

    Returns:
        Rows ``steps``, ``nfe``, ``rms`` in model units and ``rms_grey_levels`` (before rounding; None for continuous
        data), each with its ``…_standard_error`` over samples.
    """
    rows = []
    for count in tqdm(steps, desc="discretization", disable=not progress):
        x, nfe = solve(model, z_T, sampler, count, progress=progress)
        row = {"steps": count, "nfe": nfe} | _root_mean_square("rms", x - converged)
        grey = _root_mean_square("rms_grey_levels", (x - converged) * model.scaling.scale)
        rows.append(row | (grey if model.scaling.levels else dict.fromkeys(grey)))
    return rows


def _root_mean_square(name: str, v: Tensor) -> dict[str, float]:
    mean, error = mean_and_error(v.double().square().flatten(1).mean(1))
    root = math.sqrt(mean)
    return {name: root, f"{name}_standard_error": error / max(2 * root, 1e-300)}


def estimation_error(model, density: Density, raw: Points, prior: dict, seed: int = 0, progress: bool = True) -> dict:
    r"""The estimation error of a known density p in nats: E[NELBO] − H(p) − KL(law of z_T ‖ π).

    It equals :math:`\tfrac12\int g^2 E\|s_\theta - \nabla\log p_t\|^2 dt` and the reconstruction's mismatch at ε.
    The entropy is taken sample by sample, as −log p(x), and the KL halfway between the bounds of :func:`prior_error`.

    Returns:
        ``nats``; ``standard_error`` over ``raw``; ``nats_uncertainty``: half the distance of the bounds.
    """
    _, nats = evaluate(model, raw, nll_images=0, times=8, seed=seed, progress=progress)
    gap, error = mean_and_error(nats["nelbo"] + density.log_prob(raw).double())
    middle = 0.5 * (prior["kl_above"] + prior["kl_below"])
    half = 0.5 * (prior["kl_above"] - prior["kl_below"])
    return {"nats": gap - middle, "standard_error": error, "nats_uncertainty": half}


@dataclass(frozen=True)
class Quadrature:
    """A law of z_0 as weighted points.

    Attributes:
        points: (m, 2) float64.
        log_weights: (m,), up to a constant.
        spacing: the largest distance of neighbours.
    """

    points: Float[Tensor, "m 2"]
    log_weights: Float[Tensor, " m"]
    spacing: float

    def score(self, sde: LinearSDE, z_t: Points, t: Float[Tensor, ""]) -> Points:
        """σ_t ∇log p_t(z_t) = −(z_t − α_t E[z_0|z_t])/σ_t, float64."""
        alpha, sigma = (v.reshape(1, -1) for v in (sde.alpha(t.double()[None]), sde.sigma(t.double()[None])))
        scaled, found = alpha / sigma * self.points, []
        weights = self.log_weights - 0.5 * squared_norm(scaled)
        for part in (z_t.double() / sigma).split(max(1, TABLE // len(scaled))):
            found.append(torch.addmm(weights, part, scaled.T).softmax(1) @ scaled - part)
        return torch.cat(found)


def latent_quadrature(model, density: Density, *, step: float = 0.01, half_width: float = 2.0) -> Quadrature:
    """The law of h(x), x ~ ``density``: midpoints of squares of side ``step`` in [−half_width, half_width]²."""
    axis = torch.arange(-half_width + step / 2, half_width, step, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_p = density.log_prob(grid)
    kept = log_p > log_p.max() - NEGLIGIBLE
    raw = grid[kept]

    def latent(raw: Tensor) -> Tensor:
        return latents(model, raw, batch_size=4096).double()

    points = latent(raw)
    neighbours = [latent(raw + step * axis) - points for axis in torch.eye(2, dtype=torch.float64)]
    spacing = max(between.norm(dim=1).max().item() for between in neighbours)
    return Quadrature(points, log_p[kept].to(points.device), spacing)


def estimation_curve(
    model,
    density: Density,
    *,
    samples: int = 1000,
    times: int = 24,
    step: float = 0.01,
    seed: int = 0,
    progress: bool = True,
) -> dict:
    r"""The score's error against the true score of a known density, ½ E‖σ_t (s_θ − ∇log p_t)‖² per unit of log-SNR.

    The true score is an integral over x_0, by quadrature (:class:`Quadrature`) with squares of side ``step``; it is
    trusted where σ_t/α_t is at least twice the distance of neighbouring points in the latent. ``times`` midpoints
    divide that part of the clock.

    Returns:
        ``curve``: ``t``, ``clock`` (−log SNR), ``integrand`` and ``standard_error`` (nats per unit of the clock).
        ``integral`` over ``range`` of the clock, with ``integral_standard_error``, nats; ``whole_range``, of the
        model; ``spacing`` in the latent; ``samples``.
    """
    sde, quadrature = model.sde, latent_quadrature(model, density, step=step)
    start, end = sde.clock_span()
    first = max(start, 2 * math.log(2 * quadrature.spacing))
    width = (end - first) / times
    z = latents(model, density.sample(samples, generator=torch.Generator().manual_seed(seed)))
    generator = _generator(z, seed, 1)
    curve, errors = [], []
    for i in tqdm(range(times), desc="estimation", disable=not progress):
        clock = torch.tensor(first + (i + 0.5) * width, dtype=torch.float64, device=z.device)
        t = sde.time(-clock).to(z)
        each = t.expand(len(z))
        with evaluation_mode(model):
            z_t = sde.perturb(z, each, randn_like(z, generator))
            error = expand_like(sde.sigma(each), z) * model.score(z_t, each) - quadrature.score(sde, z_t, t)
            errors.append(0.5 * squared_norm(expand_like(sde.rate(each), z).sqrt() * error))
        integrand, standard_error = mean_and_error(errors[-1])
        point = {"t": t.item(), "clock": clock.item(), "integrand": integrand, "standard_error": standard_error}
        curve.append(point)
    integral, integral_error = mean_and_error(width * torch.stack(errors).sum(0))
    return {
        "curve": curve,
        "integral": integral,
        "integral_standard_error": integral_error,
        "range": [first, end],
        "whole_range": [start, end],
        "spacing": quadrature.spacing,
        "samples": samples,
    }
