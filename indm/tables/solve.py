"""Solutions that the estimators of tables share: log p of latents by the ODE, integrals over noise,
draws, progress.
"""

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from scipy.stats import qmc
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from tqdm.auto import tqdm

from indm.checks import counted
from indm.gaussian import GaussianReference
from indm.likelihood import START, WhitenedFlow, log_prob
from indm.ode import OUT_OF_REACH, ROUNDING_OF_RATES, NotFinite, rademacher
from indm.score import context_of, with_context
from indm.tables.columns import Array
from indm.tables.networks import Components
from indm.tensors import evaluation_mode, event_sum, expand_like

SOLVER_ERROR = 0.05  # nats of a row; the estimate is two to ten times the true error on average
ROUNDED_SHARE = 0.02  # share of the error that may be rounding in single precision
MOST_EXACT, PROBES = 128, 8  # columns up to which a divergence is exact; probes of others
MOST_EXACT_SLOPE = 40  # columns up to which the gradient of a divergence is exact
# Gauss–Legendre points tried in a discrete column; for none, one, two
POINTS = ((1,), (4, 8, 16, 32), (4, 8, 16))
# relative change of a probability by twice as many points; its error is then mostly below 1e-3
CONVERGED_CHANGE = 5e-3
ROWS_AT_ONCE = 2_048
DRAWING: dict[str, Any] = {"sampler": "unipc", "last_denoising": False, "batch_size": ROWS_AT_ONCE}
# steps tried; largest error; draws compared
SAMPLING_STEPS, SAMPLING_ERROR, DRAWN = (12, 24, 48, 96, 192), 0.01, 256
DELAY = 2.0  # seconds, after which a call shows a bar


def at(model: Any, c: Tensor) -> Any:
    """``model`` at the conditions ``c`` (n, k); k may be 0."""
    return model.given(c) if c.shape[1] else model


def averaged(log_densities: Iterable[Tensor]) -> Tensor:
    """log of the mean density of models, nats (n,), from log p by each."""
    each = torch.stack(list(log_densities))
    return each.logsumexp(0) - math.log(len(each))


def bar_of(total: int, text: str, shown: bool, unit: str = "row") -> tqdm:
    """A bar of rows with the time left, which appears only if the call lasts."""
    options: dict[str, Any] = {"delay": DELAY, "miniters": 1, "leave": False}
    return tqdm(total=total, desc=text, unit=unit, disable=not shown, **options)


def batched(rows: Array, size: int, first: int | None = None) -> list[Array]:
    """``rows`` in parts of ``size``, but for the first."""
    return [part for part in np.split(rows, range(first or size, len(rows), size)) if len(part)]


def integrated(
    log_density: Callable[[Array, Array], Array], n: int, k: int, draws: int, bar: tqdm
) -> Array:
    """log of the integral over the noise of ``k`` whole numbers in each of ``n`` rows, (n,), by
    which ``bar`` moves.

    ``log_density`` takes indices of rows and points of the noise (m, k), and returns a value for
    each pair of them. For one or two whole numbers there are as many points as the integral needs.
    For more, or if that does not converge, the result is the mean of the log over the noise, a
    lower bound. The first batch of rows is small, so that the bar soon moves.
    """
    found, rules = np.zeros(n), list(_noise_rules(k, draws))
    # two rules are enough for most rows
    most = max(1, ROWS_AT_ONCE // sum(len(points) for points, _ in rules[:2]))
    for part in batched(np.arange(n), most, max(1, most // 4)):
        rows, before = part, np.full(len(part), np.inf)
        for points, weight in rules:
            if len(rows):
                value = log_density(rows, points)
                integral = logsumexp(value, axis=1, b=weight)
                is_left = np.abs(integral - before) > CONVERGED_CHANGE
                # the former is below the log by Jensen
                found[rows] = np.where(is_left, value @ weight, integral)
                rows, before = rows[is_left], integral[is_left]
        bar.update(len(part))
    return found


def _noise_rules(k: int, draws: int) -> Iterator[tuple[Array, Array]]:
    """Points of the noise (n, k) and their weights (n,), each set finer than that before."""
    if k >= len(POINTS):
        yield qmc.LatinHypercube(k, scramble=False, rng=0).random(draws), np.full(draws, 1 / draws)
        return
    for n in POINTS[k]:
        node, weight = np.polynomial.legendre.leggauss(n)
        grid = [
            np.array(list(itertools.product(part, repeat=k)))
            for part in (0.5 + 0.5 * node, 0.5 * weight)
        ]
        yield grid[0], grid[1].prod(1)


def steps_for_draws(draws: Callable[[int], Array]) -> tuple[int, float]:
    """The fewest steps that leave draws (n, d) within ``SAMPLING_ERROR`` of twice as many, else the
    most; their error.

    NaN are left out.
    """
    fine = draws(SAMPLING_STEPS[0])
    for steps in SAMPLING_STEPS:
        coarse, fine = fine, draws(2 * steps)
        error = float(np.sqrt(np.nanmean(np.square(fine - coarse))))
        if error < SAMPLING_ERROR:
            break
    return steps, error


def latent_log_prob(model: nn.Module, z: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """log p of the probability flow at rows of latents, to ``tol``, and an estimate of the error,
    nats (B,).

    The ODE is solved in single precision, and the estimate includes its rounding. Rows whose
    |log p| is so large that rounding counts are solved in double precision. If the network adds
    nothing, log p is the mixture's, in closed form; the ODE's differs from it by what is left of
    the mixture at T, some 0.01 nats for usual rows.

    Rows so far from the mixture that nothing learned counts
    (:meth:`~indm.tables.components.Components.gate`) have the mixture's density, too, whose mass
    there is below exp(−FAR²/2) = 2e-22. So does a row that even double precision cannot solve; its
    error is infinite.
    """
    with torch.no_grad():
        z, log_det = model.flow(z)
    mixture = mixture_of(model, z)
    found, is_beyond = mixture.log_prob(), mixture.gate() == 0
    if model.score.backbone.is_mixture:
        return found + log_det, z.new_zeros(len(z))
    error = torch.where(is_beyond, 0.0, z.new_full((len(z),), math.inf))
    most = ROUNDED_SHARE * tol / (ROUNDING_OF_RATES * torch.finfo(torch.float32).eps)  # nats

    def solve(rows: Tensor, dtype: torch.dtype) -> None:
        if not bool(rows.any()):
            return
        score = copy.deepcopy(model.score).to(dtype)
        score = with_context(score, tuple(part[rows].to(dtype) for part in context_of(score)))
        try:
            value, estimate = _solved(score, z[rows].to(dtype), tol)
        except NotFinite as failure:
            return solve(rows.masked_scatter(rows, ~failure.failed), dtype)
        found[rows], error[rows] = value.to(z), estimate.to(z)

    is_far = 0.5 * (z.square() + math.log(2 * math.pi)).sum(1) > most
    solve(~(is_far | is_beyond), torch.float32)
    solve((is_far | ~error.isfinite() | (found.abs() > most)) & ~is_beyond, torch.float64)
    return found + log_det, error


def log_prob_in_steps(model: nn.Module, z: Tensor, steps: int) -> Tensor:
    """log p of latents (B,), with gradients, by the ODE in so many equal steps; in closed form if the
    network adds nothing.
    """
    if model.score.backbone.is_mixture:
        h, log_det = model.flow(z)
        return mixture_of(model, h).log_prob() + log_det
    options: dict[str, Any] = (
        {"exact": True} if z.shape[1] <= MOST_EXACT_SLOPE else {"probes": PROBES}
    )
    return log_prob(model, z, steps=steps, generator=torch.Generator().manual_seed(0), **options)


@torch.no_grad()
def start_log_prob(model: nn.Module, z: Tensor) -> Tensor:
    """log p of latents by a model's start, its flow with the mixture behind it, (B,)."""
    h, log_det = model.flow(z)
    return mixture_of(model, h).log_prob() + log_det


def mixture_of(model: nn.Module, z: Tensor) -> Components:
    """The components of the mixture plus the noise of ε at rows of a flow's latents."""
    sde = model.score.sde
    r = (-sde.log_snr(sde.endpoints(z)[START])).exp()
    return model.score.backbone.mixture_at(
        z / (1 + r).sqrt()[:, None], 0.5 * r.log(), *context_of(model.score)
    )


def _solved(score: nn.Module, z: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """:func:`latent_log_prob` in the precision of ``z`` and ``score``."""
    d = z.shape[1]
    flow = WhitenedFlow(score, GaussianReference.standard(z), (d,), exact=d <= MOST_EXACT)
    probe = rademacher(z[:1], PROBES, torch.Generator().manual_seed(0)).expand(len(z), -1, -1)
    with evaluation_mode(score), warnings.catch_warnings():
        # a warning of all rows follows
        warnings.filterwarnings("ignore", OUT_OF_REACH, RuntimeWarning)
        log_alpha = score.sde.log_alpha(score.sde.endpoints(z)[START])
        solution = flow.solve(
            expand_like(log_alpha.exp(), z) * z, START, probe, tol / (d * math.log(2)), None
        )
        return event_sum(log_alpha, z) + flow.log_prob(solution.state), solution.error


def warn_above(tol: float, errors: Tensor, stacklevel: int) -> None:
    """ConvergenceWarning where the ODE's errors, nats (…, n), are above ``tol`` on average, or a
    row's is infinite.
    """
    is_solved = errors.isfinite()
    if not is_solved.all():
        failed = (~is_solved).reshape(-1, errors.shape[-1]).any(0)
        warnings.warn(
            f"the ODE has no finite solution for {int(failed.sum())} of {counted(len(failed), 'row')}, whose log p is "
            "that of the mixture of Gaussians from which the fit started",
            ConvergenceWarning,
            stacklevel=stacklevel,
        )
    errors = errors[is_solved]
    if errors.numel() and errors.mean() > tol:
        warnings.warn(
            f"log p is off by about {errors.mean():.2g} nats on average, and {errors.max():.2g} at most, where the "
            "density is narrow; rows far from all that were fitted are the usual cause",
            ConvergenceWarning,
            stacklevel=stacklevel,
        )
