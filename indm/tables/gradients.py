"""Gradients of log p in rows of θ, by those in latents."""

import numpy as np
import torch

from indm.tables.columns import Array, Columns
from indm.tables.density import LatentDensity
from indm.tables.solve import ROWS_AT_ONCE, averaged

NUDGE = 1e-3  # step in a latent for derivatives of the columns


def log_prob_with_gradient(
    density: LatentDensity, theta: Array, c: Array, steps: int
) -> tuple[Array, Array]:
    """log p of rows of θ, nats (n,), and its gradient in θ, (n, d), in so many steps of the ODE."""
    columns, varies = density.columns_, density.varies_
    c = density.standardised(c, len(theta))
    value = np.full(len(theta), -np.inf)
    gradient = np.full(theta.shape, np.nan)
    rows = density.possible(theta, c)
    X, c = theta[rows][:, varies], c[rows]
    stretch, bend = _derivatives(columns, X, c)
    log_p, slope = _gradient_of_latents(density, columns.latents(X, c), c, steps)
    value[rows] = log_p + columns.log_volume(X)
    gradient[np.ix_(rows, varies)] = stretch * (slope @ columns.whitening.T) + bend
    gradient[:, ~varies] = 0.0
    return value, gradient


def _gradient_of_latents(
    density: LatentDensity, latents: Array, c: Array, steps: int
) -> tuple[Array, Array]:
    """log p of latents at standardised conditions, (n,), and its gradient in them, (n,
    columns).
    """
    values, slopes = [np.zeros(0)], [np.zeros((0, latents.shape[1]))]
    parts = (torch.from_numpy(np.array(part)).split(ROWS_AT_ONCE) for part in (latents, c))
    for z, rows in zip(*parts, strict=True):
        z = z.clone().requires_grad_()
        value = averaged(density.log_densities(z, rows.numpy(), steps))
        (slope,) = torch.autograd.grad(value.sum(), z)
        values.append(value.detach().numpy())
        slopes.append(slope.numpy())
    return np.concatenate(values), np.concatenate(slopes)


def _derivatives(columns: Columns, X: Array, c: Array) -> tuple[Array, Array]:
    """y′ and ∂ log y′/∂θ of each varying column, (n, columns), y being its number before columns
    are whitened.
    """
    unwhitening = np.linalg.inv(columns.whitening)
    z = columns.latents(X, c)
    # a step of y, in units of what c leaves of it
    spread = NUDGE * np.linalg.norm(unwhitening, axis=0)
    step = spread @ columns.whitening
    high = columns.rows(z + step, c)
    low = columns.rows(z - step, c)
    width = high - low
    bend = np.zeros_like(X)
    for i in range(X.shape[1]):
        is_i = np.arange(X.shape[1]) == i
        above = columns.log_volume(np.where(is_i, high, X))
        below = columns.log_volume(np.where(is_i, low, X))
        bend[:, i] = (above - below) / width[:, i]
    return 2 * spread / width, bend
