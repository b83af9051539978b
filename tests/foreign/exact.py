"""Exact denoisers of mixtures in every parameterization and path, and the pulled-back prior by
SciPy.
"""

import math

import numpy as np
import torch
from scipy.integrate import solve_ivp

from indm.foreign.paths import path_of

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


class Cosine:
    """A path of somebody else's: α² = cos, τ from 0.01 to 0.99, with its ends in the usual order."""

    range = (0.01, 0.99)

    def alpha(self, tau):
        return (0.5 * math.pi * tau).cos().sqrt()

    def sigma(self, tau):
        return (1 - (0.5 * math.pi * tau).cos()).sqrt()


PATHS = {
    "edm": "edm",
    "sigmas": {"sigmas": (0.01, 50.0)},
    "betas": {"betas": BETAS},
    "alphas_bar": {"alphas_bar": (1 - BETAS).cumprod(0)},
    "linear": "linear",
    "linear-reversed": "linear-reversed",
    "trigonometric": "trigonometric",
    "trigonometric-reversed": "trigonometric-reversed",
    "an object": Cosine(),
}
PREDICTS = ["noise", "data", "v", "score", "velocity"]


class Exact(torch.nn.Module):
    """What a perfect network of that kind gives for data from a mixture of isotropic Gaussians."""

    is_smooth = True

    def __init__(self, predicts, path, weights, means, stds):
        super().__init__()
        self.predicts, self.path = predicts, path_of(path)
        self.weights, self.means, self.stds = (
            torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, stds)
        )

    def at(self, x, alpha, sigma):
        """Log-density, E[x_0|x] and E[n|x]."""
        variance = alpha**2 * self.stds**2 + sigma**2  # (B, K)
        away = x[:, None] - alpha[..., None] * self.means
        d = x.shape[1]
        log = self.weights.log() - 0.5 * (
            away.square().sum(2) / variance + d * (2 * math.pi * variance).log()
        )
        share = log.softmax(1)[..., None]
        data = (share * (self.means + (alpha * self.stds**2 / variance)[..., None] * away)).sum(1)
        return log.logsumexp(1), data, (x - alpha * data) / sigma

    def forward(self, x, tau):
        tau = tau.double()[:, None]
        alpha, sigma = self.path.alpha(tau), self.path.sigma(tau)
        _, data, noise = self.at(x.double(), alpha, sigma)
        if self.predicts == "velocity":
            slopes = [slope(v, tau) for v in (self.path.alpha, self.path.sigma)]
            return (slopes[0] * data + slopes[1] * noise).to(x)
        kinds = {
            "noise": noise,
            "data": data,
            "v": alpha * noise - sigma * data,
            "score": -noise / sigma,
        }
        return kinds[self.predicts].to(x)


def slope(coefficient, tau):
    """d/dτ."""
    with torch.enable_grad():
        tau = tau.requires_grad_()
        value = coefficient(tau)
        return (
            torch.autograd.grad(value.sum(), tau)[0]
            if value.requires_grad
            else torch.zeros_like(value)
        )


def pulled_back(network, x):
    """log of the density of α_ε x_ε by which N(0, prior_std²) is carried there, by SciPy over
    log(σ/α), (B,).

    For y = x/α at α = 1 and σ = ν, dy/dν = n̂ = (y − D)/ν, whose divergence is (d − tr
    Cov[x_0|y]/ν²)/ν.
    """
    weights, means, variances = (
        network.weights.numpy(),
        network.means.numpy(),
        network.stds.numpy() ** 2,
    )
    path, d = network.path, x.shape[1]
    first, last = torch.tensor(path.range, dtype=torch.float64)

    def slope(log_nu, state):
        nu = math.exp(log_nu)
        y, total = state.reshape(-1, d + 1)[:, :d], variances + nu**2
        away = y[:, None] - means
        share = weights * np.exp(-0.5 * (away**2).sum(2) / total) / total ** (d / 2)
        share /= share.sum(1, keepdims=True)
        # of x_0 given y, component by component
        means_of = means + (variances / total)[:, None] * away
        D = (share[..., None] * means_of).sum(1)
        spread = d * variances * nu**2 / total + ((means_of - D[:, None]) ** 2).sum(2)
        divergence = d - (share * spread).sum(1) / nu**2
        return np.concatenate([y - D, divergence[:, None]], 1).ravel()

    # y = x_ε/α_ε = x
    start = np.concatenate([x.double().numpy(), np.zeros((len(x), 1))], 1).ravel()
    ends = path.level(torch.stack([first, last])).tolist()
    found = solve_ivp(slope, ends, start, rtol=1e-9, atol=1e-10).y[:, -1].reshape(-1, d + 1)
    alpha = path.alpha(last).item()
    prior = -0.5 * (alpha * found[:, :d] / path.prior_std) ** 2 - math.log(
        path.prior_std * math.sqrt(2 * math.pi)
    )
    return torch.tensor(prior.sum(1) + d * math.log(alpha) + found[:, d])
