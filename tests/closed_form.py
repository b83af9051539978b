"""Score models known in closed form: Gaussian and mixture data under any linear SDE, for events of
any shape.
"""

import math

import pytest
import torch
from torch import nn

from indm.names import BUILT_IN, find

SDES = {name: find("sde", name) for name in BUILT_IN["sde"]}
# For fixtures of whole rooms: sub-VP, of the same family as VP, is left to the long tests.
EACH_SDE = [
    pytest.param(name, marks=pytest.mark.long) if name == "subvp" else name for name in SDES
]


def column(value, z):
    """A coefficient for each sample, (B,) or (), shaped to multiply ``z`` (B, *event)."""
    return value.reshape(value.shape + (1,) * (z.ndim - value.ndim)) if value.ndim else value


class GaussianScore(nn.Module):
    """The exact score of z_t for data N(mean, diag variance); ``mean`` and ``variance`` have the
    event's shape.
    """

    is_smooth = True

    def __init__(self, sde, mean, variance):
        super().__init__()
        self.sde = sde
        self.register_buffer("mean", torch.as_tensor(mean))
        self.register_buffer("variance", torch.as_tensor(variance))

    def law(self, t, z):
        """Mean and variance of z_t, in the precision of ``z``."""
        alpha, sigma = column(self.sde.alpha(t), z).to(z), column(self.sde.sigma(t), z).to(z)
        return alpha * self.mean.to(z), alpha**2 * self.variance.to(z) + sigma**2

    def forward(self, z, t):
        mean, variance = self.law(t, z)
        return (mean - z) / variance

    def sample(self, n, generator=None, dtype=torch.float64):
        noise = torch.randn(n, *self.mean.shape, dtype=dtype, generator=generator)
        return self.mean.to(dtype) + self.variance.to(dtype).sqrt() * noise

    def log_prob(self, z):
        return normal_log_prob(z, self.mean.to(z), self.variance.to(z))

    def flow(self, z, t, s):
        """The probability flow from time t to s: it keeps the whitened coordinate."""
        t, s = torch.tensor(t, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)
        (mean_t, variance_t), (mean_s, variance_s) = self.law(t, z), self.law(s, z)
        return mean_s + (variance_s / variance_t).sqrt() * (z - mean_t)

    def flow_log_prob(self, z):
        """log-density at ε of the prior N(0, prior_std² I) carried back from T by the probability
        flow.
        """
        like = z.new_zeros(())
        eps, T = like.new_tensor(self.sde.eps), like.new_tensor(self.sde.T)
        (mean_e, variance_e), (mean_T, variance_T) = self.law(eps, z), self.law(T, z)
        ratio = variance_e / variance_T
        return normal_log_prob(z, mean_e - ratio.sqrt() * mean_T, ratio * self.sde.prior_std**2)

    def bound_gap(self, eps=None):
        """E[NELBO] − H(data): the divergence of p_T from the prior and of p(z_0|z_ε) from its
        Gaussian, nats.
        """
        mean, variance = self.mean.double(), self.variance.double()
        t = torch.tensor([self.sde.eps if eps is None else eps, self.sde.T], dtype=torch.float64)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        # p(z_0|z_ε) is Gaussian with Tweedie's mean and this variance; the model uses σ²/α² in its
        # place.
        narrower = (
            (1 / variance + alpha[0] ** 2 / sigma[0] ** 2).reciprocal()
            * alpha[0] ** 2
            / sigma[0] ** 2
        )
        posterior = 0.5 * (narrower - 1 - narrower.log())
        wider = (alpha[1] ** 2 * variance + sigma[1] ** 2) / self.sde.prior_std**2
        prior = 0.5 * (wider - 1 - wider.log() + (alpha[1] * mean / self.sde.prior_std) ** 2)
        return (posterior + prior).sum().item()

    def entropy(self):
        return 0.5 * (2 * math.pi * math.e * self.variance.double()).log().sum().item()


class MixtureScore(nn.Module):
    """The exact score for data Σ_k weight_k N(mean_k, std_k² I): ``means`` (K, *event), ``stds``,
    ``weights`` (K,).
    """

    is_smooth = True

    def __init__(self, sde, means, stds, weights):
        super().__init__()
        self.sde = sde
        for name, value in {"means": means, "stds": stds, "weights": weights}.items():
            self.register_buffer(name, torch.as_tensor(value))

    def _components(self, z, alpha, sigma):
        """Residual (B, K, *event), variance (B, K) and log of weight times density (B, K) of each
        component.
        """
        means = self.means.to(z)
        alpha, sigma = alpha.to(z).expand(len(z)), sigma.to(z).expand(len(z))
        residual = z[:, None] - column(alpha, z[:, None]) * means
        variance = (alpha[:, None] * self.stds.to(z)) ** 2 + sigma[:, None] ** 2
        log_density = -0.5 * (residual.flatten(2).square().sum(2) / variance)
        log_density = log_density - 0.5 * z[0].numel() * (2 * math.pi * variance).log()
        return residual, variance, log_density + self.weights.to(z).log()

    def forward(self, z, t):
        residual, variance, log_joint = self._components(z, self.sde.alpha(t), self.sde.sigma(t))
        pull = (log_joint.softmax(1) / variance).reshape(*variance.shape, *(1,) * (z.ndim - 1))
        return -(pull * residual).sum(1)

    def sample(self, n, generator=None, dtype=torch.float64):
        k = torch.multinomial(self.weights.double(), n, replacement=True, generator=generator)
        noise = torch.randn(n, *self.means.shape[1:], dtype=dtype, generator=generator)
        return self.means.to(dtype)[k] + column(self.stds.to(dtype)[k], noise) * noise

    def log_prob(self, z):
        one, zero = z.new_ones(()), z.new_zeros(())
        return self._components(z, one, zero)[2].logsumexp(1)


class LinearScore(nn.Module):
    """s(z, t) = −(weight · z + bias)/(α² + σ²), entrywise: wrong for most data, with parameters to
    train.
    """

    is_smooth = True

    def __init__(self, sde, weight, bias):
        super().__init__()
        self.sde = sde
        self.weight = nn.Parameter(torch.as_tensor(weight, dtype=torch.float64))
        self.bias = nn.Parameter(torch.as_tensor(bias, dtype=torch.float64))

    def forward(self, z, t):
        power = column(self.sde.alpha(t) ** 2 + self.sde.sigma(t) ** 2, z)
        return -(self.weight.to(z) * z + self.bias.to(z)) / power


def normal_log_prob(x, mean, variance):
    """Σ over one event of log N(x; mean, variance), (B,)."""
    terms = -0.5 * (
        (x - mean) ** 2 / variance + torch.log(2 * math.pi * variance + torch.zeros_like(x))
    )
    return terms.flatten(1).sum(1)


def gaussian(name, shape=(2,), seed=0, **sde):
    """A Gaussian of spread-out means and variances and its score under the SDE of that name."""
    generator = torch.Generator().manual_seed(seed)
    mean = 0.6 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.3
    variance = 0.3 + 1.2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    return GaussianScore(SDES[name](**sde), mean, variance)


def within(draws, expected, errors=4.5, floor=1e-12):
    """Whether the mean of ``draws`` over axis 0 is ``expected`` within so many standard errors,
    everywhere.
    """
    draws = draws.double()
    error = draws.std(0) / math.sqrt(len(draws))
    return bool(((draws.mean(0) - expected).abs() <= errors * error + floor).all())
