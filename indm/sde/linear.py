r"""Linear diffusions on the latent, :math:`dz = f(t)\,z\,dt + g(t)\,dw` on :math:`[\epsilon, T]`.

Every linear SDE has a Gaussian kernel :math:`q(z_t \mid z_0) = N(\alpha_t z_0, \sigma_t^2 I)`, and
every one
here satisfies :math:`d \log(\sigma_t^2/\alpha_t^2) = (g^2/\sigma^2)\,dt`. The log signal-to-noise
ratio is therefore the natural clock: importance-sampled times are uniform in it, the closed-form
constant of the
NELBO is read off it, and the samplers step in it.
"""

import copy
import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm.checks import require
from indm.tensors import (
    Batch,
    M,
    PerSample,
    double,
    event_size,
    expand_like,
    float64_device,
    squared_norm,
    strata,
    with_parts,
)

Times = Float[Tensor, "..."]


class Kernel(NamedTuple):
    """The law q(z_t | z_0) = N(α_t z_0, σ_t² I) at times (B,): log α and σ, (B,) each.

    >>> kernel = VPSDE().kernel(torch.tensor([0.5]))
    >>> torch.allclose(kernel.alpha**2 + kernel.sigma**2, torch.ones(1))
    True
    """

    log_alpha: Tensor
    sigma: Tensor

    @property
    def alpha(self) -> Tensor:
        """The scale of the mean."""
        return self.log_alpha.exp()

    def perturb(self, z: Batch, noise: Batch) -> Tensor:
        """z_t = α z_0 + σ noise, from ``z`` = z_0 and ``noise`` (B, *event)."""
        return expand_like(self.alpha, z) * z + expand_like(self.sigma, z) * noise


class LinearSDE(nn.Module, ABC):
    """A linear SDE with a Gaussian prior, on ``[eps, T]``.

    Args:
        eps: the truncation ε, the only one in the library; ``0 < eps < T = 1``.

    The prior is N(prior_mean, prior_std² I). ``prior_mean`` is a buffer (zero unless set, for
    example to
    the mean of the latents), so it moves and is saved with the model.

    To write an SDE, define its five abstract methods, which take times of any shape and return
    numbers of the same shape and dtype. Set ``prior_std`` where σ_T is not 1, and keep every
    constructor argument as an attribute of the same name.

    Example: a variance-preserving diffusion at a constant rate.

        >>> class ConstantRate(LinearSDE):
        ...     def __init__(self, beta: float = 10.0, eps: float = 1e-5):
        ...         super().__init__(eps)
        ...         self.beta = beta
        ...     def log_alpha(self, t):
        ...         return -0.5 * self.beta * t
        ...     def sigma(self, t):
        ...         return (-torch.expm1(-self.beta * t)).sqrt()
        ...     def drift(self, t):
        ...         return torch.full_like(t, -0.5 * self.beta)
        ...     def diffusion(self, t):
        ...         return torch.full_like(t, self.beta**0.5)
        ...     def time(self, log_snr):
        ...         return torch.nn.functional.softplus(-log_snr) / self.beta
        >>> sde, t = ConstantRate(), torch.tensor([0.2, 0.7])
        >>> torch.allclose(sde.time(sde.log_snr(t)), t)
        True

    Source: Song et al. 2021, "Score-Based Generative Modeling through SDEs",
    https://arxiv.org/abs/2011.13456.
    """

    T = 1.0
    prior_std = 1.0

    def __init__(self, eps: float = 1e-5):
        super().__init__()
        require(0.0 < eps < self.T, "eps", eps, f"strictly between 0 and {self.T}", "1e-5 is usual")
        self.eps = eps
        self.register_buffer("prior_mean", torch.tensor(0.0))

    @abstractmethod
    def log_alpha(self, t: Times) -> Times:
        r""":math:`\log\alpha_t = \int_0^t f`."""

    @abstractmethod
    def sigma(self, t: Times) -> Times:
        r"""Standard deviation :math:`\sigma_t` of the kernel."""

    @abstractmethod
    def drift(self, t: Times) -> Times:
        """The coefficient f(t) of the linear drift f(t) z."""

    @abstractmethod
    def diffusion(self, t: Times) -> Times:
        """The volatility g(t)."""

    @abstractmethod
    def time(self, log_snr: Times) -> Times:
        """The inverse of :meth:`log_snr`."""

    def kernel(self, t: Times) -> Kernel:
        """:meth:`log_alpha` and :meth:`sigma` at once: to be defined where they share work."""
        return Kernel(self.log_alpha(t), self.sigma(t))

    def alpha(self, t: Times) -> Times:
        r"""Scale :math:`\alpha_t` of the mean of the kernel."""
        return self.log_alpha(t).exp()

    def marginal_std(self, t: Times) -> Times:
        r""":math:`\sqrt{\alpha_t^2+\sigma_t^2}`: standard deviation of z_t for latents of unit
        variance.
        """
        return torch.hypot(self.alpha(t), self.sigma(t))

    def log_snr(self, t: Times) -> Times:
        r""":math:`\log(\alpha_t^2/\sigma_t^2)`, strictly decreasing, with derivative
        :math:`-g^2/\sigma^2`.
        """
        return 2.0 * (self.log_alpha(t) - self.sigma(t).log())

    def transition(self, t: Times, s: Times) -> tuple[Times, Times]:
        r"""The kernel of z_s given z_t, for times s ≥ t: :math:`q(z_s \mid z_t) = N(r z_t, v^2 I)`.

        .. math:: r = \alpha_s/\alpha_t, \qquad v = \sqrt{\sigma_s^2 - r^2\sigma_t^2}
        """
        ratio, variance = self.transition_moments(t, s)
        return ratio, variance.sqrt()

    def transition_moments(self, t: Times, s: Times) -> tuple[Times, Times]:
        """The ratio r and the variance v² of :meth:`transition`."""
        ratio = self.alpha(s) / self.alpha(t)
        return ratio, (self.sigma(s) ** 2 - (ratio * self.sigma(t)) ** 2).clamp_min(0)

    def perturb(self, z: Batch, t: Times, noise: Batch) -> Tensor:
        r""":math:`z_t = \alpha_t z_0 + \sigma_t\,\mathrm{noise}`; ``z`` and ``noise`` (B, *event),
        ``t`` (B,).
        """
        return self.kernel(t).perturb(z, noise)

    def endpoints(self, z: Batch) -> tuple[PerSample, PerSample]:
        """ε and T as tensors (B,) with the dtype and device of ``z``."""
        return z.new_full((len(z),), self.eps), z.new_full((len(z),), self.T)

    def prior_sample(self, shape, *, generator=None, device=None, dtype=None) -> Tensor:
        """Draw from the prior N(prior_mean, prior_std² I); ``shape`` includes the batch axis."""
        device = self.prior_mean.device if device is None else device
        noise = torch.randn(*shape, generator=generator, device=device, dtype=dtype)
        return self.prior_mean.to(noise) + self.prior_std * noise

    def prior_log_prob(self, z: Batch) -> PerSample:
        """log π(z) in nats, (B,)."""
        d = event_size(z)
        mahalanobis = squared_norm(z - self.prior_mean.to(z)) / self.prior_std**2
        return -0.5 * mahalanobis - d * (math.log(self.prior_std) + 0.5 * math.log(2 * math.pi))

    def checked_truncation(self, eps: float | None) -> float:
        """``eps``, checked; the SDE's own where it is None."""
        if eps is None:
            return self.eps
        in_range = self.eps <= eps < self.T
        require(
            in_range, "eps", eps, f"in [{self.eps}, {self.T})", "it can only raise the SDE's own"
        )
        return eps

    def sample_time(
        self, n: int, *, importance: bool, eps: float | None = None, generator=None, device=None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        r"""Draw ``n`` stratified times on [ε, T], in random order, and the reciprocals of their
        density, (n,) each.

        ``importance`` is a density ∝ g²/σ² (uniform in log-SNR) instead of uniform in t; ``eps``
        raises the truncation.
        """
        eps = self.checked_truncation(eps)
        device = self.prior_mean.device if device is None else device
        u = strata(n, generator=generator, device=device)
        if not importance:
            t = eps + (self.T - eps) * u
            return t.to(device, torch.float32), torch.full_like(t, self.T - eps).to(
                device, torch.float32
            )
        start, end = self.log_snr(u.new_tensor([eps, self.T]))
        t = self.time(torch.lerp(start, end, u)).clamp(eps, self.T)
        weight = self.log_snr_range(eps) * (self.sigma(t) / self.diffusion(t)) ** 2
        return t.to(device, torch.float32), weight.to(device, torch.float32)

    def clock(self, t: Times) -> Times:
        """The clock −log SNR at times ``t``, in float64."""
        return -self.log_snr(double(t))

    def clock_fraction(self, clock: Times) -> Times:
        """The share of the clock between ε and T that is over at ``clock``, from 0 to 1."""
        start, end = self.clock_span()
        return (clock - start) / (end - start)

    def clock_span(self) -> tuple[float, float]:
        """The clock τ = −log SNR at ε and at T."""
        start, end = (-self.log_snr(torch.tensor([self.eps, self.T], dtype=torch.float64))).tolist()
        return start, end

    def log_snr_range(self, eps: float | None = None) -> float:
        r""":math:`\int_\epsilon^T g^2/\sigma^2\,dt`, the length of [eps, T] on the log-SNR clock."""
        first, last = self.log_snr(
            torch.tensor([self.checked_truncation(eps), self.T], dtype=torch.float64)
        )
        return (first - last).item()


def truncated(module: M, eps: float | None) -> M:
    """``module``, in which every :class:`LinearSDE` is truncated at ``eps`` (None leaves it);
    weights are shared.

    >>> sde = VPSDE()
    >>> truncated(sde, 1e-3).eps, sde.eps
    (0.001, 1e-05)
    """
    if eps is None:
        return module
    if isinstance(module, LinearSDE):
        view = copy.copy(module)
        view.eps = module.checked_truncation(eps)
        return view
    return with_parts(
        module, {name: part and truncated(part, eps) for name, part in module._modules.items()}
    )


class _VariancePreserving(LinearSDE):
    r"""VP and sub-VP: :math:`f = -\beta/2`,
    :math:`B = \beta_{min} t + (\beta_{max}-\beta_{min})t^2/2`.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, eps: float = 1e-5):
        super().__init__(eps)
        in_order = 0.0 < beta_min < beta_max
        pair = beta_min, beta_max
        require(
            in_order,
            "beta_min and beta_max",
            pair,
            "0 < beta_min < beta_max",
            "0.1 and 20 are usual",
        )
        self.beta_min, self.beta_max = beta_min, beta_max

    def beta(self, t: Times) -> Times:
        """The noise rate β(t), linear in t."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def integrated_beta(self, t: Times) -> Times:
        r""":math:`B(t) = \int_0^t \beta`."""
        return (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t) * t

    def time_of_integrated_beta(self, b: Times) -> Times:
        """The inverse of :meth:`integrated_beta`: the root of the quadratic, in the form without
        cancellation.
        """
        return (
            2
            * b
            / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b).sqrt())
        )

    def log_alpha(self, t: Times) -> Times:
        return -0.5 * self.integrated_beta(t)

    def drift(self, t: Times) -> Times:
        return -0.5 * self.beta(t)


class VPSDE(_VariancePreserving):
    r"""Variance preserving: g² = β, α = exp(−B/2), σ² = 1 − exp(−B), prior N(0, I).

    Args:
        beta_min, beta_max: β(0) and β(1).
        eps: the truncation ε.

    >>> sde, t = VPSDE(), torch.tensor([0.5])
    >>> f"z_0.5 = {sde.alpha(t).item():.2f} z_0 + {sde.sigma(t).item():.2f} n"
    'z_0.5 = 0.28 z_0 + 0.96 n'
    """

    def sigma(self, t: Times) -> Times:
        return (-torch.expm1(-self.integrated_beta(t))).sqrt()

    def diffusion(self, t: Times) -> Times:
        return self.beta(t).sqrt()

    def log_snr(self, t: Times) -> Times:
        return -torch.expm1(self.integrated_beta(t)).log()

    def time(self, log_snr: Times) -> Times:
        return self.time_of_integrated_beta(nn.functional.softplus(-log_snr, threshold=50.0))


class SubVPSDE(_VariancePreserving):
    r"""Sub-VP: g² = β (1 − exp(−2B)), α = exp(−B/2), σ = 1 − exp(−B), prior N(0, I).

    Args:
        beta_min, beta_max: β(0) and β(1).
        eps: the truncation ε.

    Example: its kernel has the mean of VP and less noise, σ² = σ_VP⁴.

        >>> sde, vp, t = SubVPSDE(), VPSDE(), torch.tensor([0.1, 0.5, 0.9])
        >>> torch.equal(sde.alpha(t), vp.alpha(t)), torch.allclose(sde.sigma(t), vp.sigma(t) ** 2)
        (True, True)
    """

    def sigma(self, t: Times) -> Times:
        return -torch.expm1(-self.integrated_beta(t))

    def diffusion(self, t: Times) -> Times:
        return (self.beta(t) * -torch.expm1(-2 * self.integrated_beta(t))).sqrt()

    def time(self, log_snr: Times) -> Times:
        return self.time_of_integrated_beta(2 * torch.asinh(0.5 * (-0.5 * log_snr).exp()))


class VESDE(LinearSDE):
    r"""Variance exploding: f = 0, α = 1, σ = σ_min (σ_max/σ_min)^t.

    The prior is N(prior_mean, σ_max² I).

    Args:
        sigma_min, sigma_max: σ at t = 0 and at t = 1.
        eps: the truncation ε.

    Example: the data keep their size, and half way the noise is the geometric mean of both ends.

        >>> sde, t = VESDE(sigma_min=0.01, sigma_max=100.0), torch.tensor([0.0, 0.5, 1.0])
        >>> sde.alpha(t).tolist(), torch.allclose(sde.sigma(t), torch.tensor([0.01, 1.0, 100.0]))
        ([1.0, 1.0, 1.0], True)
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, eps: float = 1e-5):
        super().__init__(eps)
        in_order = 0.0 < sigma_min < sigma_max
        pair = sigma_min, sigma_max
        require(
            in_order,
            "sigma_min and sigma_max",
            pair,
            "0 < sigma_min < sigma_max",
            "0.01 and 50 are usual",
        )
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.log_ratio = math.log(sigma_max / sigma_min)
        self.prior_std = sigma_max

    def log_alpha(self, t: Times) -> Times:
        return torch.zeros_like(t)

    def sigma(self, t: Times) -> Times:
        return self.sigma_min * (self.log_ratio * t).exp()

    def drift(self, t: Times) -> Times:
        return torch.zeros_like(t)

    def diffusion(self, t: Times) -> Times:
        return self.sigma(t) * math.sqrt(2 * self.log_ratio)

    def time(self, log_snr: Times) -> Times:
        return (-0.5 * log_snr - math.log(self.sigma_min)) / self.log_ratio


class LogLinearSDE(LinearSDE):
    r"""Variance preserving with a log-SNR that falls linearly in t: α² = 1 − σ²,
    g² = c σ², f = −g²/2, c its rate.

    The prior is N(prior_mean, prior_std² I).

    Args:
        log_snr_max, log_snr_min: log(α²/σ²) at t = 0 and at t = 1.
        prior_std: deviation of the prior.
        eps: the truncation ε.

    Example: uniform in log-SNR is uniform in t.

        >>> sde = LogLinearSDE(10.0, -10.0)
        >>> sde.log_snr(torch.tensor([0.0, 0.5, 1.0])).tolist()
        [10.0, 0.0, -10.0]

    Source: Kingma et al. 2021, "Variational Diffusion Models", https://arxiv.org/abs/2107.00630.
    """

    def __init__(
        self,
        log_snr_max: float = 13.0,
        log_snr_min: float = -10.0,
        prior_std: float = 1.0,
        eps: float = 1e-5,
    ):
        super().__init__(eps)
        require(
            log_snr_min < log_snr_max,
            "log_snr_max",
            log_snr_max,
            f"above log_snr_min, {log_snr_min}",
        )
        require(prior_std > 0, "prior_std", prior_std, "positive", "1 is usual")
        self.log_snr_max, self.log_snr_min, self.prior_std = log_snr_max, log_snr_min, prior_std
        self.rate = log_snr_max - log_snr_min

    def log_snr(self, t: Times) -> Times:
        return self.log_snr_max - self.rate * t

    def log_alpha(self, t: Times) -> Times:
        return -0.5 * nn.functional.softplus(-self.log_snr(t))

    def sigma(self, t: Times) -> Times:
        return (-0.5 * nn.functional.softplus(self.log_snr(t))).exp()

    def drift(self, t: Times) -> Times:
        return -0.5 * self.rate * self.sigma(t) ** 2

    def diffusion(self, t: Times) -> Times:
        return math.sqrt(self.rate) * self.sigma(t)

    def time(self, log_snr: Times) -> Times:
        return (self.log_snr_max - log_snr) / self.rate


TIMES, SLOPE_PRECISION = 24, 1e-4


def check_sde(sde: LinearSDE) -> None:
    r"""Compare what an SDE says of itself with the derivatives by autograd, in double precision, at
    24 times.

    .. math:: f = \frac{d\log\alpha}{dt}, \qquad g^2 = \frac{d\sigma^2}{dt} - 2 f \sigma^2

    Its :meth:`~LinearSDE.log_snr` must be log(α²/σ²), and its :meth:`~LinearSDE.time` the inverse.

    Raises:
        ValueError: one of its methods does not fit the others; it says which, where, and by how
            much.

    Example:

        >>> from indm.sde import VPSDE
        >>> class Slow(VPSDE):
        ...     def drift(self, t):
        ...         return 0.5 * super().drift(t)
        >>> check_sde(VPSDE())
        >>> try:
        ...     check_sde(Slow())
        ... except ValueError as error:
        ...     print(str(error).split(",")[0])
        drift of Slow must be d log α/dt
    """
    twin = copy.deepcopy(sde).to(float64_device(sde.prior_mean.device), torch.float64)
    t = torch.linspace(
        twin.eps, twin.T, TIMES + 2, dtype=torch.float64, device=twin.prior_mean.device
    )[1:-1]
    t.requires_grad_()
    with torch.enable_grad():
        log_alpha, sigma, log_snr = twin.log_alpha(t), twin.sigma(t), twin.log_snr(t)
        f, g = twin.drift(t), twin.diffusion(t)
        expected = {
            "drift": (f, _slope(log_alpha, t), "d log α/dt"),
            "diffusion": (
                g**2,
                _slope(sigma**2, t) - 2 * f * sigma**2,
                "the root of dσ²/dt − 2 f σ²",
            ),
            "log_snr": (log_snr, 2 * (log_alpha - sigma.log()), "log(α²/σ²)"),
            "time": (twin.time(log_snr), t, "the inverse of log_snr"),
        }
    name = type(sde).__name__
    for method, (value, wanted, words) in expected.items():
        if not value.shape == wanted.shape == t.shape:
            got = f"{tuple(torch.broadcast_shapes(value.shape[1:], wanted.shape[1:]))} for each by {method}"
            raise ValueError(
                f"coefficients of {name} must be one number for each time, {tuple(t.shape)}, got {got}"
            )
        excess = (
            ((value - wanted).abs() - SLOPE_PRECISION * (1e-2 + wanted.abs()))
            .detach()
            .nan_to_num(torch.inf)
        )
        worst = int(excess.argmax())
        if excess[worst] > 0:
            square = "² " if method == "diffusion" else " "
            raise ValueError(
                f"{method} of {name} must be {words}, got {method}{square}= {value[worst]:.6g} in place of "
                f"{wanted[worst]:.6g} at t = {t[worst]:.3g}"
            )


def _slope(value: Tensor, t: Tensor) -> Tensor:
    """d/dt of a coefficient at each time."""
    if not value.requires_grad:
        return torch.zeros_like(value)
    return torch.autograd.grad(value.sum(), t, retain_graph=True)[0]
