"""Samplers on the latent: from the prior at T to ε, each a loop over one step that reads like its equation.

A sampler is a function (score, z_T, *, steps, generator, progress) → (z_ε, nfe). The solution is decoded once.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from tqdm import tqdm

from indm.ode import adams, integrate, interpolatory_weights
from indm.rng import randn_like
from indm.score import denoise, probability_flow
from indm.sde.linear import LinearSDE
from indm.tensors import evaluation_mode, expand_like

Sampler = Callable[..., tuple[Tensor, int]]
OPTIONS = {"tol": "ode", "snr": "pc"}  # options of one sampler alone


def log_snr_grid(sde: LinearSDE, steps: int) -> Tensor:
    """Times T = t_0 > … > t_steps = ε, equally spaced in log-SNR, (steps + 1,) in float64."""
    low, high = sde.log_snr(torch.tensor([sde.T, sde.eps], dtype=torch.float64))
    times = sde.time(torch.lerp(low, high, torch.linspace(0, 1, steps + 1, dtype=torch.float64)))
    times[0], times[-1] = sde.T, sde.eps
    return times


def uniform_grid(sde: LinearSDE, steps: int) -> Tensor:
    """Times T = t_0 > … > t_steps = ε, equally spaced in t, (steps + 1,) in float64."""
    return torch.linspace(sde.T, sde.eps, steps + 1, dtype=torch.float64)


def _steps(grid: Tensor, z: Tensor, progress: bool) -> Iterable[tuple[Tensor, Tensor]]:
    """Pairs (t, s) of successive times, each (B,)."""
    grid = grid.to(z.device, z.dtype)
    pairs = itertools.pairwise(grid)
    for t, s in tqdm(pairs, total=len(grid) - 1, desc="sampling", leave=False, disable=not progress):
        yield t.expand(len(z)), s.expand(len(z))


def euler_maruyama(score, z: Tensor, *, steps: int, generator=None, progress: bool = False) -> tuple[Tensor, int]:
    r"""z_s = z − [f z − g² s_θ] Δ + g √Δ n, Δ = t − s, on a uniform grid (the reverse-time SDE)."""
    sde = score.sde
    for t, s in _steps(uniform_grid(sde, steps), z, progress):
        delta, g = expand_like(t - s, z), expand_like(sde.diffusion(t), z)
        drift = expand_like(sde.drift(t), z) * z - g**2 * score(z, t)
        z = z - drift * delta + g * delta.sqrt() * randn_like(z, generator)
    return z, steps


def predictor_corrector(
    score, z: Tensor, *, steps: int, generator=None, progress: bool = False, snr: float | tuple[float, float] = 0.16
) -> tuple[Tensor, int]:
    """Reverse diffusion and one Langevin step at each time, on a uniform grid.

    Args:
        snr: signal-to-noise ratio of the Langevin steps; two numbers are those at T and at ε, linear in time between.
            Published with VE: 0.16 on CIFAR-10, 0.17 on CelebA; INDM: 0.14 to 0.16, 0.15.

    Source: Song et al. 2021, algorithms 2–5, https://arxiv.org/abs/2011.13456.
    """
    first, last = snr if isinstance(snr, tuple) else (snr, snr)
    for i, (t, s) in enumerate(_steps(uniform_grid(score.sde, steps), z, progress), start=1):
        z = reverse_diffusion_step(score, z, t, s, generator)
        z = langevin_step(score, z, s, first + (last - first) * i / steps, generator)
    return z, 2 * steps


def reverse_diffusion_step(score, z: Tensor, t: Tensor, s: Tensor, generator=None) -> Tensor:
    """z_s = (2 − a) z + G² s_θ + G n for the forward kernel z_t = a z_s + G n from s to t."""
    a, G = (expand_like(v, z) for v in score.sde.transition(s, t))
    return (2 - a) * z + G**2 * score(z, t) + G * randn_like(z, generator)


def langevin_step(score, z: Tensor, t: Tensor, snr: float, generator=None) -> Tensor:
    """z + η s_θ + √(2η) n with η = 2 (snr ‖n‖/‖s_θ‖)², norms averaged over the batch."""
    s, noise = score(z, t), randn_like(z, generator)
    norms = [v.flatten(1).norm(dim=1).mean() for v in (noise, s)]
    eta = 2 * (snr * norms[0] / norms[1]) ** 2
    return z + eta * s + (2 * eta).sqrt() * noise


def heun(score, z: Tensor, *, steps: int, generator=None, progress: bool = False) -> tuple[Tensor, int]:
    r"""Heun's rule for the probability flow as dy/dν = ε̂, y = z/α, ν = σ/α, ε̂ = −σ s_θ; equal steps in log-SNR.

    Source: Karras et al. 2022, "Elucidating the Design Space", algorithm 1, https://arxiv.org/abs/2206.00364.
    """
    sde = score.sde

    def noise(y: Tensor, t: Tensor) -> Tensor:
        return -expand_like(sde.sigma(t), y) * score(expand_like(sde.alpha(t), y) * y, t)

    eps, T = (expand_like(sde.alpha(t), z) for t in sde.endpoints(z))
    y = z / T
    for t, s in _steps(log_snr_grid(sde, steps), z, progress):
        delta = expand_like(sde.sigma(s) / sde.alpha(s) - sde.sigma(t) / sde.alpha(t), z)
        slope = noise(y, t)
        y = y + 0.5 * delta * (slope + noise(y + delta * slope, s))
    return y * eps, 2 * steps


def _exponential_adams(score, z: Tensor, steps: int, order: int, correct: bool, progress: bool) -> tuple[Tensor, int]:
    """The probability flow as d(z/σ)/dλ = e^λ E[z_0|z_t], λ = ½ log SNR: the exponential is integrated exactly and the
    prediction E[z_0|z_t] as a polynomial through its last ``order`` values.

    With ``correct``, a step is taken once more when the prediction at its end is known, with that value too. The
    prediction itself is not made anew, so every step has one evaluation.
    """
    sde, grid = score.sde, log_snr_grid(score.sde, steps)
    if not sde.is_scalar:
        raise ValueError("sampler must be 'heun' or 'ode' for an SDE that is learned entry by entry")
    alpha, sigma, half = (v.tolist() for v in (sde.alpha(grid), sde.sigma(grid), 0.5 * sde.log_snr(grid)))

    def advance(z: Tensor, i: int, points: list[tuple[float, Tensor]]) -> Tensor:
        weights = exponential_weights([node for node, _ in points], half[i], half[i + 1])
        change = sum(weight * value for weight, (_, value) in zip(weights, points, strict=True))
        return sigma[i + 1] / sigma[i] * z + alpha[i + 1] * change

    points: list[tuple[float, Tensor]] = []  # (λ, prediction), newest first
    before = z
    for i, (t, _) in enumerate(_steps(grid, z, progress)):
        points = [(half[i], denoise(score, z, t)), *points[:order]]
        if correct and i > 0:
            z = advance(before, i - 1, points)
        before, z = z, advance(z, i, points[:order])
    return z, steps


def exponential_weights(nodes: list[float], start: float, end: float) -> list[float]:
    r"""w_j with :math:`\sum_j w_j p(\lambda_j) = \int_{start}^{end} e^{\lambda - end} p(\lambda)\,d\lambda` for every
    polynomial p of a degree below the number of ``nodes`` λ_j."""
    h = end - start
    moments = [-math.expm1(-h)]  # of the powers of (λ − start)/h
    for j in range(1, len(nodes)):
        moments.append(1.0 - j / h * moments[-1])
    return interpolatory_weights(nodes, start, end, moments)


def dpm_solver_2m(score, z: Tensor, *, steps: int, generator=None, progress: bool = False) -> tuple[Tensor, int]:
    """DPM-Solver++(2M): second-order multistep, one evaluation a step.

    Source: Lu et al. 2022, "DPM-Solver++", algorithm 2, https://arxiv.org/abs/2211.01095.
    """
    return _exponential_adams(score, z, steps, order=2, correct=False, progress=progress)


def dpm_solver_3m(score, z: Tensor, *, steps: int, generator=None, progress: bool = False) -> tuple[Tensor, int]:
    """DPM-Solver++(3M): third-order multistep, one evaluation a step. Source: as :func:`dpm_solver_2m`."""
    return _exponential_adams(score, z, steps, order=3, correct=False, progress=progress)


def unipc(score, z: Tensor, *, steps: int, generator=None, progress: bool = False) -> tuple[Tensor, int]:
    """UniPC: DPM-Solver++(3M) with a corrector of fourth order that costs no evaluation.

    Source: Zhao et al. 2023, "UniPC", https://arxiv.org/abs/2302.04867 (with exact integrals of the interpolant).
    """
    return _exponential_adams(score, z, steps, order=3, correct=True, progress=progress)


def follow_flow(
    score, z: Tensor, t: float, s: float, *, tol: float = 1e-5, steps: int | None = None, progress: bool = False
) -> tuple[Tensor, int]:
    """z at time s from z at time t, either way, by the probability-flow ODE on the clock −log SNR.

    Args:
        tol: tolerance of the adaptive solver.
        steps: solve by :func:`indm.ode.adams` in so many equal steps in place of it.

    Returns:
        z_s, and the evaluations of the score for one sample, the most that one took.
    """
    sde = score.sde

    def field(clock: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        bar.update()
        return (probability_flow(score, clock)(state[0]),)

    start, end = (-sde.log_snr(torch.tensor([t, s], dtype=torch.float64))).tolist()
    before, after = (expand_like(sde.marginal_std(z.new_full((len(z),), time)), z) for time in (t, s))
    with tqdm(desc="probability flow (evaluations)", leave=False, disable=not progress) as bar:
        if steps is not None:
            (w,), nfe = adams(field, (z / before,), start, end, steps=steps)
            return after * w, nfe
        (w,), evaluations = integrate(field, (z / before,), start, end, rtol=tol, atol=tol)
    return after * w, int(evaluations.max())


def adaptive_ode(
    score, z: Tensor, *, steps: int | None = None, generator=None, progress: bool = False, tol: float = 1e-5
) -> tuple[Tensor, int]:
    """The probability-flow ODE to tolerance ``tol``, see :func:`follow_flow`; chooses its own ``steps``."""
    return follow_flow(score, z, score.sde.T, score.sde.eps, tol=tol, progress=progress)


SAMPLERS: dict[str, Sampler] = {
    "ode": adaptive_ode,
    "euler-maruyama": euler_maruyama,
    "pc": predictor_corrector,
    "heun": heun,
    "dpm++2m": dpm_solver_2m,
    "dpm++3m": dpm_solver_3m,
    "unipc": unipc,
}


def find_sampler(sampler: str | Sampler, **given: float | tuple[float, ...] | None) -> tuple[Sampler, dict]:
    """A sampler by its name in :data:`SAMPLERS`, and its own :data:`OPTIONS`: those ``given``, else its defaults.

    Raises:
        ValueError: an unknown name, an option that this sampler does not have, or one that is not positive and finite.
    """
    if isinstance(sampler, str) and sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    draw = SAMPLERS[sampler] if isinstance(sampler, str) else sampler
    options = {k: p.default for k, p in inspect.signature(draw).parameters.items() if k in OPTIONS}
    for name, value in given.items():
        if value is None:
            continue
        if name not in options:
            raise ValueError(f"{name} must be left out with sampler {sampler!r}, got {value}; {OPTIONS[name]!r} has it")
        numbers = value if isinstance(value, tuple) else (value,)
        if not 1 <= len(numbers) <= (2 if name == "snr" else 1) or not all(0 < number < math.inf for number in numbers):
            raise ValueError(f"{name} must be positive and finite, got {value}; {options[name]:g} is usual")
        options[name] = value
    return draw, options


def sample(
    model,
    shape_or_n: int | tuple[int, ...],
    *,
    sampler: str | Sampler = "unipc",
    steps: int = 25,
    tol: float | None = None,
    snr: float | tuple[float, ...] | None = None,
    eps: float | None = None,
    temperature: float = 1.0,
    last_denoising: bool = True,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Draw samples: prior → reverse process on the latent → h_φ⁻¹.

    Args:
        model: an INDM.
        shape_or_n: how many (the model then knows its event shape), or the whole shape with the batch axis.
        sampler: a name in :data:`SAMPLERS` or a function of the same kind.
        steps: time steps (the adaptive "ode" takes as many as it needs).
        tol: relative and absolute tolerance of "ode"; default 1e-5.
        snr: signal-to-noise ratio of the Langevin steps of "pc", or those at T and at ε; default 0.16.
        eps: truncation at which the reverse process ends, at least the SDE's own, which is the default.
        temperature: factor on the latent before it is decoded; 1.0 samples the model.
        last_denoising: replace z_ε by E[z_0 | z_ε] at the end, before the temperature.
        batch_size: samples at a time.

    Returns:
        x in model units, (n, *event); ``model.scaling.to_data`` gives grey levels.

    Raises:
        ValueError: an unknown sampler, an option it does not have, or a number that cannot be.
        RuntimeError: where the flow's inverse did not converge (see ``Flow.inverse``).
    """
    shape = (shape_or_n, *model.shape) if isinstance(shape_or_n, int) else tuple(shape_or_n)
    for name, count in {"shape_or_n": shape[0], "steps": steps, "batch_size": batch_size}.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}; 1 samples the model")
    draw, options = find_sampler(sampler, tol=tol, snr=snr)
    parts = []
    with evaluation_mode(model), model.score.sde.truncated(eps):
        for i in tqdm(range(math.ceil(shape[0] / batch_size)), desc="batches", disable=not progress):
            n = min(batch_size, shape[0] - i * batch_size)
            dtype = model.scaling.scale.dtype
            z = model.score.sde.prior_sample((n, *shape[1:]), generator=generator, dtype=dtype)
            z, _ = draw(model.score, z, steps=steps, generator=generator, progress=progress, **options)
            if last_denoising:
                z = denoise(model.score, z, model.score.sde.endpoints(z)[0])
            parts.append(model.decode(temperature * z, generator=generator))
    return torch.cat(parts)


def centre_prior(model, raw: Tensor, *, batch_size: int = 256, generator: torch.Generator | None = None) -> None:
    """Put the mean of the prior where the mean of data goes: α_T times the mean of h(x).

    Args:
        model: an INDM, which is changed.
        raw: data in data units, (n, *event).
    """
    with evaluation_mode(model):
        parts = [part.to(model.scaling.scale.device) for part in raw.split(batch_size)]
        z = torch.cat([model.flow.latent(model.scaling.to_model(part, generator=generator)) for part in parts])
        mean, sde = z.mean(0, keepdim=True), model.score.sde
        sde.prior_mean = (expand_like(sde.alpha(sde.endpoints(mean)[1]), mean) * mean)[0]
