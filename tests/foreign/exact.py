"""Exact denoisers of mixtures in every parameterization and path, and the pulled-back prior by SciPy."""

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
        self.weights, self.means, self.stds = (torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, stds))

    def at(self, x, alpha, sigma):
        """Log-density, E[x_0|x] and E[n|x]."""
        variance = alpha**2 * self.stds**2 + sigma**2  # (B, K)
        away = x[:, None] - alpha[..., None] * self.means
        d = x.shape[1]
        log = self.weights.log() - 0.5 * (away.square().sum(2) / variance + d * (2 * math.pi * variance).log())
        share = log.softmax(1)[..., None]
        data = (share * (self.means + (alpha * self.stds**2 / variance)[..., None] * away)).sum(1)
        return log.logsumexp(1), data, (x - alpha * data) / sigma

    def forward(self, x, tau):
        tau = tau.double()[:, None].requires_grad_()
        with torch.enable_grad():
            alpha, sigma = self.path.alpha(tau), self.path.sigma(tau)
            slopes = [
                torch.autograd.grad(v.sum(), tau, retain_graph=True)[0] if v.requires_grad else torch.zeros_like(v)
                for v in (alpha, sigma)
            ]
        alpha, sigma = alpha.detach(), sigma.detach()
        _, data, noise = self.at(x.double(), alpha, sigma)
        kinds = {
            "noise": noise,
            "data": data,
            "v": alpha * noise - sigma * data,
            "score": -noise / sigma,
            "velocity": slopes[0] * data + slopes[1] * noise,
        }
        return kinds[self.predicts].to(x)


def pulled_back(network, x):
    """log of the density of α_ε x_ε by which N(0, prior_std²) is carried there, by RK45 over ν = σ/α, (B,)."""
    path = network.path
    first, last = (torch.tensor([[end]], dtype=torch.float64) for end in path.range)
    ends = [(path.sigma(end) / path.alpha(end)).item() for end in (first, last)]
    d, out = x.shape[1], []

    def slope(log_ratio, state):
        """d(y, log density)/d log ν for y = x/α at α = 1, σ = ν: dy/dν = n̂."""
        nu = math.exp(log_ratio)
        y = torch.tensor(state[None, :d], requires_grad=True)
        with torch.enable_grad():
            noise = network.at(y, torch.ones(1, 1).double(), torch.full((1, 1), nu).double())[2]
            trace = sum(torch.autograd.grad(noise[0, i], y, retain_graph=True)[0][0, i] for i in range(d))
        return np.append(noise.detach().numpy()[0], trace.item()) * nu

    alpha_end = path.alpha(last).item()
    for row in x.double():
        start = np.append(row.numpy(), 0.0)  # y = x_ε/α_ε = x
        found = solve_ivp(slope, [math.log(v) for v in ends], start, rtol=1e-9, atol=1e-10).y[:, -1]
        z = found[:d] * alpha_end
        prior = -0.5 * (z / path.prior_std) ** 2 - math.log(path.prior_std * math.sqrt(2 * math.pi))
        out.append(prior.sum() + d * math.log(alpha_end) + found[d])
    return torch.tensor(out)
