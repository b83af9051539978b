r"""The forward process of the latents: the law of z_t given z_0, on the clock Λ = log σ²/α² of a linear SDE.

.. math:: z_t = \alpha_t\,M(z_0, \Lambda) + \sigma_t\,R(z_0, \Lambda)\,n, \qquad n \sim N(0, I)

The generative SDE is :math:`dz = (fz - g^2 s_\theta)\,dt + g\,d\bar w`, with f and g of the linear SDE, whatever M and
R are. Given z_0, the process that has the law of z_t and the volatility g runs backwards with the drift

.. math:: b = fz - g^2 \Big(-\frac{e}{\sigma}\Big), \qquad
          e = \frac{\alpha}{\sigma}\,\partial_\Lambda M + \big(\tfrac12 R + \partial_\Lambda R\big)\,n + \frac{n}{2R},

so that the bound has the term :math:`\tfrac12\int E\|e + \sigma s_\theta\|^2\,d\Lambda`. With M = z_0 and R = 1, e is
the noise n, and this is the linear diffusion.

s_θ then learns −E[e|z_t]/σ, and the score of the law of z_t is −E[n/R|z_t]/σ. Where they differ the process needs two
scores: see :class:`research.forward.scores.TwoScores`. The bound then exceeds the entropy by

.. math:: \tfrac12\int E\,\mathrm{tr}\,\mathrm{Var}\big(e - n/R \,\big|\, z_t\big)\,d\Lambda

even for the best s_θ.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm.rng import randn_like
from indm.sde.linear import Kernel, LinearSDE
from indm.tensors import Batch, PerSample, expand_like

Path = Callable[[PerSample], tuple[Batch, Batch]]  # the clock → M and R
NODES = 4  # of the integral of a correlation


@dataclass(frozen=True)
class Noised:
    """Latents z_t with what the objective needs of them.

    Attributes:
        z_t: α M + σ R n.
        target: e, which −σ s_θ(z_t, t) predicts.
        noise: n/R, which −σ times the score of the law of z_t predicts.
        kernel: α, σ and the rate of the clock at t.

    Example: z_t without its noise is the mean, α z_0 of the linear diffusion, and one score serves.

        >>> from indm.sde import VPSDE
        >>> sde, z, t = VPSDE(), torch.randn(3, 2), torch.full((3,), 0.5)
        >>> noised = Linear().at(sde, z, t, torch.randn(3, 2))
        >>> torch.allclose(noised.z_t - sde.sigma(t)[:, None] * noised.noise, sde.alpha(t)[:, None] * z, atol=1e-5)
        True
        >>> torch.equal(noised.target, noised.noise)
        True
    """

    z_t: Batch
    target: Batch
    noise: Batch
    kernel: Kernel


class ForwardProcess(nn.Module, ABC):
    """The law of z_t given z_0.

    To write one, define :meth:`path`; M and R need to be differentiable in the clock. At ε, M must be z_0 and R 1, as
    the reconstruction of z_0 from z_ε takes for granted, and ∂M must fall towards ε like σ², as :func:`noise_share`
    does, for the bound weighs its square by α²/σ².

    Attributes:
        is_tight: whether e is n/R at every z_t: then one score serves, and the bound is tight at the best one, given a
            code where there is one.
        any_truncation: whether it stays the same process where another ε than the SDE's is asked for.

    Example: a mean that fades, M = e^{u_ε − u} z_0.

        >>> from indm.sde import VPSDE
        >>> class Fading(ForwardProcess):
        ...     def path(self, sde, z):
        ...         return lambda clock: (expand_like((-noise_share(sde, clock)).exp(), z) * z, torch.ones_like(z))
        >>> z, t = torch.ones(2, 3), torch.tensor([0.5, 0.5])
        >>> Fading().at(VPSDE(), z, t, torch.zeros(2, 3)).target[0, 0] < 0
        tensor(True)
    """

    is_tight: ClassVar[bool] = False
    any_truncation: ClassVar[bool] = False

    @property
    def scores(self) -> int:
        """How many scores it needs."""
        return 1 if self.is_tight else 2

    @property
    def seen_shape(self) -> tuple[int, ...]:
        """Of a code of z_0 that SDE and network depend on; () for none."""
        return ()

    def is_scalar(self, sde: LinearSDE) -> bool:
        """Whether all entries of the latent share one SDE, which some samplers need."""
        return sde.is_scalar

    def encoded(self, z: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, PerSample, PerSample]:
        """A draw c of q(c|z_0), KL(q(c|z_0) ‖ p(c)), and log q(c|z_0)/p(c), nats; of a process with a code."""
        raise NotImplementedError(f"{type(self).__name__} has no code")

    def drawn(self, z: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Codes from their prior for latents like ``z``; of a process with a code."""
        raise NotImplementedError(f"{type(self).__name__} has no code")

    def sde_at(self, base: LinearSDE, code: Tensor) -> LinearSDE:
        """The SDE of the model, ``base``, given codes; of a process with a code."""
        raise NotImplementedError(f"{type(self).__name__} has no code")

    @abstractmethod
    def path(self, sde: LinearSDE, z: Batch) -> Path:
        """M and R of the latents ``z`` = z_0 (B, *event), as a function of the clock (B,) in the dtype of ``z``."""

    def at(self, sde: LinearSDE, z: Batch, t: PerSample, noise: Batch) -> Noised:
        """z_t at times ``t`` (B,) from ``z`` = z_0 and ``noise`` = n, with e and n/R."""
        clock = sde.clock(t).to(z)
        (mean, spread), (slope, growth) = cast(
            tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
            torch.func.jvp(self.path(sde, z), (clock,), (torch.ones_like(clock),)),
        )
        kernel = sde.kernel(t)
        alpha, sigma, rate = (expand_like(v, z) for v in (kernel.alpha, kernel.sigma, kernel.rate))
        target = alpha / sigma * slope / rate + (0.5 * spread + growth / rate) * noise + 0.5 * noise / spread
        return Noised(alpha * mean + sigma * spread * noise, target, noise / spread, kernel)

    def moments(self, sde: LinearSDE, z: Batch, t: PerSample) -> tuple[Batch, Tensor]:
        """Mean α M, (B, *event), and standard deviation σ R, (B,) or (B, *event), of z_t given ``z`` = z_0."""
        (mean, spread), kernel = self.path(sde, z)(sde.clock(t).to(z)), sde.kernel(t)
        return expand_like(kernel.alpha, z) * mean, expand_like(kernel.sigma, z) * spread

    def correlation(self, sde: LinearSDE, z: Batch, t: PerSample, s: PerSample) -> Tensor:
        r""":math:`\kappa = \exp(-\tfrac12\int_s^t R^{-2}\,d\Lambda)` of the noises of z_s and z_t, s < t, (B, *event).

        Λ is each entry's own. Backwards in time, by \|dΛ\|, the noise given z_0 follows
        :math:`dn = -\tfrac12 R^{-2} n\,d\Lambda + R^{-1}\,dw`, which keeps N(0, I). So q(z_s|z_t, z_0) is Gaussian
        with mean α_s M_s + σ_s R_s κ n_t and deviation σ_s R_s √(1 − κ²).
        """
        path, (start, end) = self.path(sde, z), (sde.clock(time) for time in (s, t))
        inverse, length = torch.zeros_like(z), torch.zeros_like(z)
        for node, weight in zip(*(v.tolist() for v in gauss_legendre(NODES)), strict=True):
            clock = start + node * (end - start)
            step = weight * expand_like(sde.clock_rate(sde.time(-clock)), z).to(z)
            inverse, length = inverse + step * path(clock.to(z))[1] ** -2, length + step
        return _linear_correlation(sde, z, t, s) ** (inverse / length)


class Linear(ForwardProcess):
    """The linear diffusion itself, M = z_0 and R = 1, of any SDE: fixed or learned, one for all entries or not.

    Example: the noises of two times have the correlation α_t σ_s/(α_s σ_t).

        >>> from indm.sde import VPSDE
        >>> sde, z, t, s = VPSDE(), torch.zeros(1, 2), torch.tensor([0.5]), torch.tensor([0.3])
        >>> kappa = (sde.alpha(t) * sde.sigma(s) / (sde.alpha(s) * sde.sigma(t))).item()
        >>> torch.allclose(Linear().correlation(sde, z, t, s), torch.full((1, 2), kappa))
        True
    """

    is_tight = any_truncation = True

    def path(self, sde: LinearSDE, z: Batch) -> Path:
        return lambda clock: (z, torch.ones_like(z))

    def at(self, sde: LinearSDE, z: Batch, t: PerSample, noise: Batch) -> Noised:
        kernel = sde.kernel(t)
        return Noised(kernel.perturb(z, noise), noise, noise, kernel)

    def moments(self, sde: LinearSDE, z: Batch, t: PerSample) -> tuple[Batch, Tensor]:
        kernel = sde.kernel(t)
        return expand_like(kernel.alpha, z) * z, kernel.sigma

    def correlation(self, sde: LinearSDE, z: Batch, t: PerSample, s: PerSample) -> Tensor:
        return _linear_correlation(sde, z, t, s)


def _linear_correlation(sde: LinearSDE, z: Batch, t: PerSample, s: PerSample) -> Tensor:
    """σ_s α_t/(σ_t α_s), of each entry's own clock."""
    ratios = [expand_like(sde.sigma(time) / sde.alpha(time), z) for time in (s, t)]
    return (ratios[0] / ratios[1]).expand_as(z)


LINEAR = Linear()


def noise_share(sde: LinearSDE, clock: PerSample) -> PerSample:
    """u − u_ε with u = σ²/(α² + σ²) = sigmoid(Λ): 0 at ε, and its derivative falls like σ² towards it.

    What an own :class:`ForwardProcess` changes may grow with it.

    Example:
        >>> from indm import VPSDE
        >>> sde = VPSDE()
        >>> start, end = sde.clock_span()
        >>> [round(share, 2) for share in noise_share(sde, torch.tensor([start, 0, end])).tolist()]
        [0.0, 0.5, 1.0]
    """
    start, _ = sde.clock_span()
    return clock.sigmoid() - clock.new_tensor(start).sigmoid()


def gauss_legendre(count: int) -> tuple[Float[Tensor, " count"], Float[Tensor, " count"]]:
    """Nodes and weights of the rule of Gauss and Legendre on [0, 1], in float64."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(count))
    return 0.5 * (1 + nodes), 0.5 * weights


def process_path(
    process: ForwardProcess, sde: LinearSDE, z: Batch, times: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""z_t of the forward process at increasing ``times``, given ``z`` = z_0 (B, *event); exact in law for any of them.

    .. math:: z_t = \alpha_t M_t + \sigma_t R_t n_t, \qquad n_t = \kappa n_s + \sqrt{1-\kappa^2}\,\xi

    with κ of :meth:`ForwardProcess.correlation`.
    """
    noise, path, times = randn_like(z, generator), [], times.to(z)
    for number, t in enumerate(times):
        if number:
            kappa = process.correlation(sde, z, t.expand(len(z)), times[number - 1].expand(len(z)))
            noise = kappa * noise + (1 - kappa**2).sqrt() * randn_like(z, generator)
        mean, std = process.moments(sde, z, t.expand(len(z)))
        path.append(mean + expand_like(std, z) * noise)
    return torch.stack(path)
