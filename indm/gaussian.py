r"""Gaussian latents. Their denoising error has a closed form, which makes it a control variate for
any other law.

For latents N(m, QΛQᵀ) the exact score gives the denoising error (with r = σ²/α², and λ, δ, n the
variance, z₀ − m and the noise in one coordinate of the basis Q)

.. math:: D_G = \tfrac12 \sum \left(\frac{\lambda n - \sqrt r\,\delta}{\lambda + r}\right)^2, \qquad
          E[D_G] = \tfrac12 \sum \frac{\lambda^2 + r\delta^2}{(\lambda+r)^2},

and on the same noise, the error of a score network is close to the error of the Gaussian score.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from indm.sde.linear import LinearSDE
from indm.tensors import Batch, PerSample, double, event_size, expand_like, float64_device

# dimensions up to which the covariance is dense; above, only its diagonal is used
LARGEST_DENSE = 4096


class GaussianReference:
    """A Gaussian law of the latents: its mean and its variance along the columns of an orthonormal
    ``basis`` (d, d).

    Both are (d,), or one number for all; the basis is None for the standard one."""

    def __init__(
        self,
        mean: Float[Tensor, "..."],
        variance: Float[Tensor, "..."],
        basis: Float[Tensor, "d d"] | None = None,
    ):
        self.mean, self.variance, self.basis = mean, variance, basis

    def given(self, c: Tensor) -> "GaussianReference":
        """This law, which does not depend on a condition."""
        return self

    @classmethod
    def standard(cls, z: Batch) -> "GaussianReference":
        """N(0, I) for latents like ``z``."""
        zero = z.new_zeros(event_size(z))
        return cls(zero, zero + 1)

    @classmethod
    def fit(cls, z: Batch) -> "GaussianReference":
        """Mean and covariance of latents ``z``; correlations are shrunk towards 0, more so with
        fewer samples.

        Source of the shrinkage: Chen et al. 2010, "Shrinkage Algorithms for MMSE Covariance
        Estimation", eq. 23, https://arxiv.org/abs/0907.4698.
        """
        n, d = len(z), event_size(z)
        v = double(z.flatten(1))
        std, mean = torch.std_mean(v, dim=0, correction=0)
        std = std.clamp_min(1e-8)
        if d > LARGEST_DENSE:
            return cls(mean.to(z), std.square().to(z))
        v = (v - mean) / std
        correlation = v.T @ v / n
        total = correlation.square().sum()
        shrinkage = ((1 - 2 / d) * total + d**2) / ((n + 1 - 2 / d) * (total - d).clamp_min(1e-12))
        shrinkage = shrinkage.clamp(1e-6, 1.0)
        correlation = (1 - shrinkage) * correlation + shrinkage * torch.eye(
            d, dtype=v.dtype, device=v.device
        )
        variance, basis = torch.linalg.eigh(std[:, None] * correlation * std)
        return cls(mean.to(z), variance.clamp_min(1e-16).to(z), basis.to(z))

    def coordinates(self, v: Batch) -> Float[Tensor, "batch d"]:
        """``v`` in the basis."""
        return v.flatten(1) if self.basis is None else v.flatten(1) @ self.basis

    def offset(self, z: Batch) -> Float[Tensor, "batch d"]:
        """δ = z − mean in the basis."""
        return self.coordinates(z.flatten(1) - self.mean)

    def whiten(self, w: Batch, clock: PerSample) -> Float[Tensor, "batch d"]:
        """The coordinate v = Qᵀ(w √(1+r) − m)/√(λ+r), r = e^clock, of w = z_t/√(α_t² + σ_t²).

        It is constant along the probability flow of this Gaussian law
        (:func:`indm.score.probability_flow`).
        """
        r = expand_like(clock.exp().to(w), w.flatten(1))
        return self.offset((1 + r).sqrt() * w.flatten(1)) / (self.variance + r).sqrt()

    def colour(self, v: Float[Tensor, "batch d"], clock: PerSample) -> Float[Tensor, "batch d"]:
        """w, flat, from v: the inverse of :meth:`whiten`."""
        r = expand_like(clock.exp().to(v), v)
        y = (self.variance + r).sqrt() * v
        y = y if self.basis is None else y @ self.basis.T
        return (y + self.mean) / (1 + r).sqrt()

    def whitened_velocity(
        self, v: Float[Tensor, "batch d"], w: Batch, velocity: Batch, clock: PerSample
    ) -> Tensor:
        """dv/dclock where dw/dclock = ``velocity``."""
        r = expand_like(clock.exp().to(v), v)
        y = (1 + r).sqrt() * velocity.flatten(1) + 0.5 * r / (1 + r).sqrt() * w.flatten(1)
        total = self.variance + r
        return self.coordinates(y) / total.sqrt() - 0.5 * r / total * v

    def _growth(self, clock: PerSample, like: Tensor) -> Float[Tensor, "batch d"]:
        """The eigenvalues of A = ∂(dw/dclock)/∂w along the probability flow of this law."""
        r = clock.exp().to(like)[:, None]
        return 0.5 * r * (1 / (self.variance + r) - 1 / (1 + r))

    def trace(self, clock: PerSample, like: Batch) -> PerSample:
        """tr A, (B,), in the dtype of ``like``."""
        return self._growth(clock, like).sum(1)

    def divergence(
        self, probe: Float[Tensor, "batch probes *event"], clock: PerSample
    ) -> PerSample:
        """The estimate of tr A by ``probe``: Σ vᵀ A v, (B,)."""
        along = probe.flatten(2) if self.basis is None else probe.flatten(2) @ self.basis
        return (self._growth(clock, probe)[:, None] * along.square()).sum((1, 2))

    def log_volume(self, clock: PerSample) -> PerSample:
        """log|det ∂w/∂v| of :meth:`colour`, (B,), whose derivative is tr A."""
        r = clock.exp()[:, None]
        return 0.5 * ((self.variance + r) / (1 + r)).log().sum(1)

    def excess(self, sde: LinearSDE, z: Batch, t: PerSample, noise: Batch) -> PerSample:
        """D_G(t) − E[D_G(t)] at z_t = α_t z + σ_t noise: the error above its mean over the noise."""
        r = expand_like((-sde.log_snr(t)).exp(), z.flatten(1))
        offset, total = self.offset(z), self.variance + r
        error = ((self.variance * self.coordinates(noise) - r.sqrt() * offset) / total).square()
        mean = (self.variance**2 + r * offset.square()) / total.square()
        return 0.5 * (error - mean).sum(1)

    def log_prob(self, z: Batch) -> PerSample:
        """The log-density of latents, nats, (B,)."""
        offset = self.offset(z)
        terms = offset.square() / self.variance.to(z) + (2 * math.pi * self.variance.to(z)).log()
        return -0.5 * terms.expand_as(offset).sum(1)

    def denoising(self, sde: LinearSDE, z: Batch, eps: float) -> PerSample:
        r"""Score and reconstruction terms of this law on average over the noise, nats, (B,): ∫
        E[D_G] dΛ + E[D_G(ε)].

        .. math:: \tfrac12 \sum \Big[\log\frac{r}{\lambda+r}
            + \frac{\lambda-\delta^2}{\lambda+r}\Big]_{r_\epsilon}^{r_T}
            + \tfrac12 \sum \frac{\lambda^2 + r_\epsilon\delta^2}{(\lambda+r_\epsilon)^2}
        """
        ends = torch.tensor([eps, sde.T], dtype=torch.float64, device=float64_device(z.device))
        start, end = (-sde.log_snr(ends)).exp()
        offset = self.offset(z)
        variance = double(self.variance).expand(offset.shape[1])
        total = variance + start, variance + end
        mean = (
            (end / total[1]).log()
            - (start / total[0]).log()
            + variance / total[1]
            - variance / total[0]
        )
        mean = mean + (variance / total[0]).square()
        of_square = 1 / total[0] - 1 / total[1] + start / total[0].square()
        return 0.5 * (mean.sum().to(z) + (of_square.to(z) * offset.square()).sum(1))


# N(0, I), for latents of any size
STANDARD = GaussianReference(torch.tensor(0.0), torch.tensor(1.0))
