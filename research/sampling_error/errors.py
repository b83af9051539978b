r"""The sampling error of a model by parts: prior, discretization, estimation.

Functions return what JSON can hold. Samples and paths are computed in the model's precision, statistics in float64.
Standard errors are of the mean, or by the :func:`~indm.workbench.evaluation.statistics.jackknife` where a number is no
mean.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from indm.conditions import all_rows, at_rows, rows_of_data
from indm.likelihood import latents_of
from indm.objective import prior_term
from indm.rng import randn_like
from indm.sampling import EulerMaruyama, make_sampler
from indm.scaling import Scaling
from indm.score import denoise
from indm.sde.linear import LinearSDE
from indm.tensors import (
    Batch,
    PerSample,
    double,
    evaluation_mode,
    event_size,
    event_sum,
    expand_like,
    float64_device,
    squared_norm,
)
from indm.workbench.data.base import Data, stack
from indm.workbench.data.densities import DENSITIES, Density, Points
from indm.workbench.evaluation.extractor import Extractor
from indm.workbench.evaluation.likelihood import evaluate
from indm.workbench.evaluation.records import Setup, samplers_of
from indm.workbench.evaluation.sample_quality import (
    STEPS,
    count_images,
    distances,
    floor,
    make_generator,
    prior_draws,
    solve,
)
from indm.workbench.evaluation.statistics import mean_and_error
from indm.workbench.runs.folder import open_model

# Of a stochastic sampler. In the plane and on digits the loss of 10 steps is then within 1 % of that against 2000
# steps, of 20 within 2 %, of 100 within 6 to 12 %.
CONVERGED_STEPS = 500
BATCH = 256  # samples that follow their paths at a time
POINTS = 20_000  # test data of a known density whose NELBO is compared with it
NEGLIGIBLE = 14.0  # nats below its highest at which a density is 0 to the quadrature
TABLE = 100_000  # pairs of a sample and a point of the quadrature in one matrix


def driven_step(score, z: Batch, t: PerSample, s: PerSample, noise: Batch) -> Tensor:
    """A step of Euler–Maruyama from z_t to z_s with the noise (w_s − w_t)/√(t − s) of a Brownian path w."""
    delta, g = expand_like(t - s, z), expand_like(score.sde.diffusion(t), z)
    drift = expand_like(score.sde.drift(t), z) * z - g**2 * score(z, t)
    return z - drift * delta + g * delta.sqrt() * noise


def samples_of_one_path(
    score,
    z_T: Batch,
    steps: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> dict[int, Batch]:
    """z_ε by Euler–Maruyama in each number of ``steps``, all from z_T along one Brownian path.

    What few steps lose is then seen sample by sample, against many steps through the same noise.
    """
    grids = {n: EulerMaruyama().grid(score.sde, n).to(z_T) for n in dict.fromkeys(steps)}
    z, done = dict.fromkeys(grids, z_T), dict.fromkeys(grids, 0)
    w = dict.fromkeys(grids, torch.zeros_like(z_T))  # of the path, since the last step
    times = torch.cat(list(grids.values())).unique().flip(0)
    pairs = itertools.pairwise(times)
    for t, s in tqdm(pairs, total=len(times) - 1, desc="one path", leave=False, disable=not progress):
        increment = (t - s).sqrt() * randn_like(z_T, generator)
        for n, grid in grids.items():
            w[n] = w[n] + increment
            start, end = grid[done[n] : done[n] + 2]
            if s == end:
                noise = w[n] / (start - end).sqrt()
                z[n] = driven_step(score, z[n], start.expand(len(z_T)), end.expand(len(z_T)), noise)
                w[n], done[n] = torch.zeros_like(z_T), done[n] + 1
    return z


def sampling_errors(
    model,
    data: Data,
    extractor: Extractor | None = None,
    *,
    steps: Sequence[int] = STEPS,
    samplers: Sequence[str] = ("unipc",),
    images: int = 500,
    seed: int = 0,
    progress: bool = True,
) -> dict:
    """The sampling error as prior + discretization + estimation, each measured apart from the others.

    With x(z_T) for the converged solver's sample (the sampler "ode"): *prior* is π against the law of z_T,
    and x(π) against x(z_T of training data), pair by pair with one noise in both; *discretization* is a sampler in a
    number of steps against the converged one through the same noise; *estimation* x(z_T of training data) against test
    data, beside the :func:`floor`.

    Args:
        model: an INDM; one of p(x|c) is at the c of the training data throughout.
        data: a known density (:data:`~indm.workbench.data.densities.DENSITIES`, by its name) also has its estimation
        error in
            nats, where the flow draws no code.
        samplers: those whose discretization is measured; of the stochastic ones only Euler–Maruyama has any.
        images: samples, at most as many as the test and the training split hold.

    Returns:
        ``prior`` (:func:`prior_error`, and ``rms`` in model units), ``discretization`` (rows of
        :func:`discretization_error` and :func:`path_error`, sampler by sampler), ``estimation`` (``samples``, ``floor``
        and, for a known density, ``kl`` and ``curve``), ``nfe`` of the converged solver, ``images``, ``seed``.

    Raises:
        ValueError: an unknown sampler.
    """
    rules = {name: make_sampler(name) for name in samplers}
    images = count_images(data, images)
    generator = make_generator(model.scaling.scale, seed, 1)
    c = rows_of_data(model, data, "train", images)
    z = latents_of(model, stack(data.train, images), c=c, generator=generator)
    with evaluation_mode(model):
        drawn = prior_draws(model, images, seed)
        noise = (drawn - model.sde.prior_mean.to(drawn)) / model.sde.prior_std
        T = model.sde.endpoints(z)[1]
        z_T = {"data": model.sde.perturb(z, T, noise), "prior": drawn}
    converged, nfe = {}, 0
    for name, start in z_T.items():
        converged[name], count = solve(model, start, "ode", c=c, progress=progress)
        nfe = max(nfe, count)
    discretization: list[dict] = []
    for name, rule in rules.items():
        common: dict = {"steps": steps, "c": c, "extractor": extractor, "progress": progress}
        if not rule.stochastic:
            discretization += discretization_error(model, z_T["prior"], converged["prior"], sampler=name, **common)
        elif isinstance(rule, EulerMaruyama):
            noise = make_generator(model.scaling.scale, seed, 4)
            common |= {"converged_steps": CONVERGED_STEPS, "generator": noise}
            discretization += path_error(model, z_T["prior"], **common)
    prior = prior_error(model.sde, z, z_T["data"], seed=seed)
    estimation: dict = {
        "samples": distances(
            model.scaling.to_data(converged["data"]).cpu(), stack(data.test, images), data.scaling, extractor
        ),
        "floor": floor(data, images, extractor),
    }
    if data.name in DENSITIES and model.flow.one_map:
        estimation |= _estimation_in_nats(model, data, prior, images, seed, progress)
    return {
        "images": images,
        "nfe": nfe,
        "seed": seed,
        "prior": prior | _root_mean_square("rms", converged["prior"] - converged["data"]),
        "discretization": discretization,
        "estimation": estimation,
    }


def errors_of_run(run: Path, setup: Setup) -> dict:
    """The sampling error by parts; what few steps lose, of every sampler."""
    model, options = open_model(run), setup.options
    return sampling_errors(
        model, setup.data, setup.extractor, steps=options.few_steps(), samplers=samplers_of(model, options),
        images=options.examples, seed=options.seed, progress=setup.progress,
    )  # fmt: skip


def _estimation_in_nats(model, data: Data, prior: dict, samples: int, seed: int, progress: bool) -> dict:
    """``kl`` and ``curve`` of data of a known density."""
    density = DENSITIES[data.name]
    in_nats = {"kl": estimation_error(model, density, stack(data.test, POINTS), prior, seed, progress)}
    if model.is_scalar:  # the error is resolved on the one clock of all entries
        in_nats["curve"] = estimation_curve(model, density, samples=samples, seed=seed, progress=progress)
    return in_nats


@torch.no_grad()
def prior_error(sde: LinearSDE, z: Batch, z_T: Float[Tensor, "batch *event"], *, seed: int = 0) -> dict:
    """The law of z_T against the prior π, for latents ``z`` and draws ``z_T`` of their kernel at T.

    Returns:
        ``kl_above``: E KL(q(z_T|z_0) ‖ π), nats, an upper bound of KL(law of z_T ‖ π), with its standard error.
        ``kl_below``: KL of the Gaussian with the moments of z_T from π, a lower bound (π being Gaussian).
        ``latent_rms``: √(E‖z_0‖²/d), with its standard error; for N(0, I) it is 1.
        ``sliced_wasserstein``: of z_T from as many draws of π, latent units, with its standard error, and
        ``sliced_wasserstein_floor``, of two sets of draws of π.
    """
    z = double(z)
    kernel = sde.kernel(sde.endpoints(z)[1])
    mean, std = expand_like(kernel.alpha, z) * z, expand_like(kernel.sigma, z).expand_as(z)
    entropy = event_sum(std.log() + 0.5 * math.log(2 * math.pi * math.e), z)
    above, error = mean_and_error(prior_term(sde, z) - entropy)

    d, shift = event_size(z), (mean.mean(0) - sde.prior_mean.to(z)).flatten() / sde.prior_std
    covariance = torch.cov(mean.flatten(1).T).reshape(d, d) + torch.diag(std.flatten(1).square().mean(0))
    covariance = covariance / sde.prior_std**2
    below = 0.5 * (covariance.trace() + shift.square().sum() - d - covariance.logdet())

    generator, unit = make_generator(z, seed, 2), Scaling()
    pi = [sde.prior_sample(z_T.shape, generator=generator, device=z.device, dtype=z_T.dtype) for _ in range(2)]
    numbers = {"kl_above": above, "kl_above_standard_error": error, "kl_below": below.item()}
    numbers |= _root_mean_square("latent_rms", z)
    for suffix, draws in (("", z_T), ("_floor", pi[1])):
        distance = distances(draws, pi[0], unit)
        numbers[f"sliced_wasserstein{suffix}"] = distance["sliced_wasserstein"]
        numbers[f"sliced_wasserstein{suffix}_standard_error"] = distance["sliced_wasserstein_standard_error"]
    return numbers


def discretization_error(
    model,
    z_T: Batch,
    converged: Float[Tensor, "batch *event"],
    *,
    sampler: str = "unipc",
    steps: Sequence[int] = STEPS,
    c: Any = None,
    extractor: Extractor | None = None,
    progress: bool = True,
) -> list[dict]:
    """What a sampler of the probability flow loses by few steps: its x against the ``converged`` x from the same z_T.

    ``c`` are the conditions of the samples, of a model that has one.

    Returns:
        Rows ``sampler``, ``steps``, ``nfe``, ``rms`` (root mean square over entries, in model units),
        ``rms_grey_levels`` (before rounding; None for continuous data), each with its ``…_standard_error`` over
        samples; and the :func:`~indm.workbench.evaluation.sample_quality.distances` of the two sets. None is ever
        negative.
    """
    rows = []
    for count in tqdm(steps, desc="discretization", disable=not progress):
        x, nfe = solve(model, z_T, sampler, count, c=c, progress=progress)
        rows.append({"sampler": sampler, "steps": count, "nfe": nfe} | _loss(model, x, converged, extractor))
    return rows


def path_error(
    model,
    z_T: Batch,
    *,
    steps: Sequence[int] = STEPS,
    c: Any = None,
    converged_steps: int,
    extractor: Extractor | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> list[dict]:
    """What Euler–Maruyama loses by few steps: its x against that in ``converged_steps`` along the same path.

    All numbers of steps follow one Brownian path from the same z_T, so that the loss is a number of each sample, and
    has no noise of the data. ``c`` as in :func:`discretization_error`.

    Returns:
        Rows as of :func:`discretization_error`.
    """
    counts = (*steps, converged_steps)
    parts: list[dict[int, Tensor]] = []
    codes, c = make_generator(z_T, 0, 3), all_rows(model, c, len(z_T))
    with evaluation_mode(model):
        for rows, part in zip(torch.arange(len(z_T)).split(BATCH), z_T.split(BATCH), strict=True):
            here = at_rows(model, c, rows)
            score = here.score
            z = samples_of_one_path(score, part, counts, generator=generator, progress=progress)
            eps = score.sde.endpoints(part)[0]
            state = codes.get_state()
            decoded = {}
            for count, z_eps in z.items():
                codes.set_state(state)  # a conditional flow has the same codes for all of them
                decoded[count] = here.decode(denoise(score, z_eps, eps), generator=codes)
            parts.append(decoded)
    x = {count: torch.cat([part[count] for part in parts]) for count in parts[0]}
    return [
        {"sampler": "euler-maruyama", "steps": count, "nfe": count + 1}
        | _loss(model, x[count], x[converged_steps], extractor)
        for count in steps
    ]


def _loss(model, x: Tensor, converged: Tensor, extractor: Extractor | None) -> dict:
    """How far ``x`` is from the ``converged`` samples through the same noise, pair by pair and as a set."""
    grey = _root_mean_square("rms_grey_levels", (x - converged) * model.scaling.scale)
    raw, reference = (model.scaling.to_data(samples).cpu() for samples in (x, converged))
    return (
        _root_mean_square("rms", x - converged)
        | (grey if model.scaling.levels else dict.fromkeys(grey))
        | distances(raw, reference, model.scaling, extractor)
    )


def _root_mean_square(name: str, v: Tensor) -> dict[str, float]:
    mean, error = mean_and_error(double(v).square().flatten(1).mean(1))
    root = math.sqrt(mean)
    return {name: root, f"{name}_standard_error": error / max(2 * root, 1e-300)}


def estimation_error(model, density: Density, raw: Points, prior: dict, seed: int = 0, progress: bool = True) -> dict:
    r"""The estimation error of a known density p in nats: E[NELBO] − H(p) − KL(law of z_T ‖ π).

    It equals :math:`\tfrac12\int g^2 E\|s_\theta - \nabla\log p_t\|^2 dt` and the reconstruction's mismatch at ε.
    The entropy is taken sample by sample, as −log p(x), and the KL halfway between the bounds of :func:`prior_error`.

    Returns:
        ``nats``; ``standard_error`` over ``raw``; ``nats_uncertainty``: half the distance of the bounds.
    """
    _, nats = evaluate(model, raw, nll_examples=0, times=8, seed=seed, progress=progress)
    gap, error = mean_and_error(nats["nelbo"] + double(density.log_prob(raw)))
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
        alpha, sigma = (v.reshape(1, -1) for v in (sde.alpha(double(t)[None]), sde.sigma(double(t)[None])))
        scaled, scores = alpha / sigma * self.points, []
        weights = self.log_weights - 0.5 * squared_norm(scaled)
        for part in (double(z_t) / sigma).split(max(1, TABLE // len(scaled))):
            scores.append(torch.addmm(weights, part, scaled.T).softmax(1) @ scaled - part)
        return torch.cat(scores)


def latent_quadrature(model, density: Density, *, step: float = 0.01, half_width: float = 2.0) -> Quadrature:
    """The law of h(x), x ~ ``density``: midpoints of squares of side ``step`` in [−half_width, half_width]²."""
    axis = torch.arange(-half_width + step / 2, half_width, step, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_p = density.log_prob(grid)
    inside = log_p > log_p.max() - NEGLIGIBLE
    raw = grid[inside]

    def latent(raw: Tensor) -> Tensor:
        return double(latents_of(model, raw, batch_size=4096))

    points = latent(raw)
    neighbours = [latent(raw + step * axis) - points for axis in torch.eye(2, dtype=torch.float64)]
    spacing = max(between.norm(dim=1).max().item() for between in neighbours)
    return Quadrature(points, log_p[inside].to(points.device), spacing)


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
    z = latents_of(model, density.sample(samples, generator=torch.Generator().manual_seed(seed)))
    generator = make_generator(z, seed, 1)
    curve, errors = [], []
    for i in tqdm(range(times), desc="estimation", disable=not progress):
        clock = torch.tensor(first + (i + 0.5) * width, dtype=torch.float64, device=float64_device(z.device))
        t = sde.time(-clock).to(z)
        each = t.expand(len(z))
        with evaluation_mode(model):
            z_t = sde.perturb(z, each, randn_like(z, generator))
            scaled = expand_like(sde.sigma(each), z) * model.score(z_t, each)
            error = double(scaled) - quadrature.score(sde, z_t, t)
            errors.append(0.5 * squared_norm(expand_like(sde.clock_rate(each), z).sqrt().to(error) * error))
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
