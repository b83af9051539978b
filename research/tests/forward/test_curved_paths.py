"""A process whose M and R depend on z_0 without a closed form, and still move at T: its bound by quadrature."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from indm.sde import VPSDE
from indm.tensors import expand_like
from research.forward.base import ForwardProcess, noise_share
from research.forward.objective import constant_term, denoising_error, prior_term, reconstruction_term

MEAN, VARIANCE = 0.3, 0.6  # of the data on a line
SDE = VPSDE(beta_max=6.0, eps=1e-2)  # α² is 0.05 at T


def log_normal(x, mean, variance):
    """Entry by entry."""
    return -0.5 * ((x - mean) ** 2 / variance + math.log(2 * math.pi) + torch.as_tensor(variance).log())


class Curved(ForwardProcess):
    """M = z + ½ s tanh z and R = e^{0.4 s sin z}, s the share of noise."""

    def path(self, sde, z):
        def path(clock):
            share = expand_like(noise_share(sde, clock), z)
            return z + 0.5 * share * z.tanh(), (0.4 * share * z.sin()).exp()

        return path


class Best(nn.Module):
    """s_θ = −E[e|z_t]/σ and ŝ = −E[n/R|z_t]/σ, by a sum over z_0."""

    def __init__(self):
        super().__init__()
        self.sde = SDE
        self.z_0 = MEAN + VARIANCE**0.5 * torch.linspace(-6, 6, 601, dtype=torch.float64)

    def conditioned(self, z_t, t):
        """log of the joint density of z_t and each z_0, and e and n/R there, (B, K) each."""
        clock = -SDE.log_snr(t)
        u = clock.sigmoid()
        share, slope = (v[:, None] for v in (noise_share(SDE, clock), u * (1 - u)))
        alpha, sigma = SDE.alpha(t)[:, None], SDE.sigma(t)[:, None]
        z_0 = self.z_0[None]
        M, R = z_0 + 0.5 * share * z_0.tanh(), (0.4 * share * z_0.sin()).exp()
        dM, dR = 0.5 * slope * z_0.tanh(), 0.4 * slope * z_0.sin() * R
        n = (z_t.flatten()[:, None] - alpha * M) / (sigma * R)
        joint = log_normal(z_0, MEAN, VARIANCE) + log_normal(n, 0, 1) - (sigma * R).log()
        return joint, alpha / sigma * dM + (0.5 * R + dR) * n + 0.5 * n / R, n / R

    def moments(self, z_t, t):
        """E[e], E[n/R] and Var(e − n/R) given z_t, (B,) each."""
        joint, e, noise = self.conditioned(z_t, t)
        share = joint.softmax(1)
        first, of_law = (share * e).sum(1), (share * noise).sum(1)
        return first, of_law, (share * (e - noise) ** 2).sum(1) - (first - of_law) ** 2

    def log_p(self, z_t, t):
        """Of the law of z_t."""
        return self.conditioned(z_t, t)[0].logsumexp(1) + (self.z_0[1] - self.z_0[0]).log()

    def forward(self, z_t, t):
        return -(self.moments(z_t, t)[0] / SDE.sigma(t)).view_as(z_t)

    @property
    def of_law(self):
        return OfLaw(self)


class OfLaw(nn.Module):
    def __init__(self, best):
        super().__init__()
        self.sde, self.best = SDE, best

    def forward(self, z_t, t):
        return -(self.best.moments(z_t, t)[1] / SDE.sigma(t)).view_as(z_t)


def expectation(value, count=14):
    """E of value(z_0, n) over data and noise, by quadrature."""
    nodes, weights = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(count))
    weights = weights / weights.sum()
    z, n = (MEAN + VARIANCE**0.5 * nodes).repeat_interleave(count)[:, None], nodes.repeat(count)[:, None]
    each = weights.repeat_interleave(count) * weights.repeat(count)
    return (each * value(z, n)).sum().item()


def test_the_bound_exceeds_the_entropy_by_the_stated_gap():
    best, process = Best(), Curved()
    nodes, weights = np.polynomial.legendre.leggauss(16)
    start, end = SDE.clock_span()
    times = SDE.time(torch.tensor(-(start + (end - start) * (1 + nodes) / 2)))

    def over_clock(value):
        return 0.5 * (end - start) * sum(w * value(t) for w, t in zip(weights, times, strict=True))

    def error(t):
        return expectation(lambda z, n: denoising_error(best, z, t.expand(len(z)), n, process=process))

    def variance(t):
        def of_rows(z, n):
            each = t.expand(len(z))
            return best.moments(process.at(SDE, z, each, n).z_t, each)[2]

        return 0.5 * expectation(of_rows)

    def rest(z, n):
        last = process.moments(SDE, z, SDE.endpoints(z)[1])
        return constant_term(SDE, z, end=last) + prior_term(SDE, z, last) + reconstruction_term(best, z, n)

    def at_ends(z, n):
        """log p_T/π, and log p(z_0|z_ε) over the Gaussian that reconstructs."""
        eps, T = SDE.endpoints(z)
        z_T, z_eps = (process.at(SDE, z, t, n).z_t for t in (T, eps))
        exact = (log_normal(z, MEAN, VARIANCE) + log_normal(n, 0, 1))[:, 0] - SDE.sigma(eps).log()
        alpha, sigma = SDE.alpha(eps)[:, None], SDE.sigma(eps)[:, None]
        mean = (z_eps + sigma**2 * best.of_law(z_eps, eps)) / alpha
        reconstructed = log_normal(z, mean, (sigma / alpha) ** 2)[:, 0]
        return best.log_p(z_T, T) - SDE.prior_log_prob(z_T) + exact - best.log_p(z_eps, eps) - reconstructed

    entropy, gap = 0.5 * math.log(2 * math.pi * math.e * VARIANCE), over_clock(variance)
    assert gap > 0.01
    bound = over_clock(error) + expectation(rest)
    assert bound - entropy == pytest.approx(gap + expectation(at_ends), abs=1e-4)
