r"""A linear diffusion whose drift and volatility are learned, entry by entry of the latent.

.. math:: dz_i = \big(f + \dot a_i\big)\,z_i\,dt + g\,e^{v_i/2}\,dw_i

with f, g of the VP diffusion and a_i, v_i piecewise linear on its clock τ = −log SNR. The kernel stays Gaussian, with
α_i = α e^{a_i} and

.. math:: \sigma_i^2/\alpha_i^2 = \int_{-\infty}^{\tau} e^{u + v_i(u) - 2a_i(u)}\,du .

Drift and volatility enter the path of the signal-to-noise ratio only through v − 2a, so either of them can bend it in
any way that the other can. The drift alone sets the scale of z_t, which matters only at T, where z_T should be N(0, I).

The flow before the diffusion mixes the entries of the data. So this is the general linear SDE whose matrices commute at
all times, in the coordinates that diagonalise them.
"""

import torch
from torch import Tensor, nn

from indm.sde.linear import VPSDE, Kernel, LinearSDE, Times
from indm.tensors import double, float64_device


class LearnedSDE(LinearSDE):
    """VP with learned drift, volatility or both, for each entry of the event; starts at VP.

    Coefficients are (B, *event) where those of a scalar SDE are (B,). ``log_snr`` and ``time`` stay those of VP: the
    common clock, on which entry i ages at :meth:`clock_rate`.

    Args:
        shape: event shape.
        learn: "drift" (a), "volatility" (v) or "both".
        knots: number of knots of a and v on the clock, at least 2.
        beta_min, beta_max, eps: see :class:`~indm.sde.linear.VPSDE`.

    Example: coefficients of each entry; untrained they are those of VP.

        >>> sde, t = LearnedSDE((3,)), torch.tensor([0.1, 0.9])
        >>> sde.is_scalar, torch.allclose(sde.sigma(t), VPSDE().sigma(t)[:, None].expand(2, 3), atol=1e-5)
        (False, True)
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        learn: str = "both",
        knots: int = 8,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        eps: float = 1e-5,
    ):
        super().__init__(eps)
        if learn not in ("drift", "volatility", "both"):
            raise ValueError(f'learn must be "drift", "volatility" or "both", got {learn!r}')
        if knots < 2:
            raise ValueError(f"knots must be at least 2, got {knots}; 8 is usual")
        self.shape, self.learn, self.knots = tuple(shape), learn, knots
        self.beta_min, self.beta_max = beta_min, beta_max
        self.base = VPSDE(beta_min, beta_max, eps)
        zeros = torch.zeros(knots, *self.shape)
        self.log_gain = nn.Parameter(zeros.clone()) if learn != "volatility" else None  # a at the knots, from its first
        self.log_volatility = nn.Parameter(zeros.clone()) if learn != "drift" else None  # v at the knots

    def log_snr(self, t: Times) -> Times:
        return self.base.log_snr(t)

    def time(self, log_snr: Times) -> Times:
        return self.base.time(log_snr)

    def log_alpha(self, t: Times) -> Tensor:
        gain, _ = self._interpolate(self._gain(), t)
        return (self._expand(self.base.log_alpha(double(t))) + gain).to(t)

    def sigma(self, t: Times) -> Tensor:
        return self.kernel(t).sigma

    def kernel(self, t: Times) -> Kernel:
        """All from one integral of the signal-to-noise ratio."""
        log_alpha, (noise_to_signal, growth) = self.log_alpha(double(t)), self._log_noise_to_signal(t)
        rate = (growth - noise_to_signal).exp()
        return Kernel(log_alpha.to(t), (log_alpha + 0.5 * noise_to_signal).exp().to(t), rate.to(t))

    def drift(self, t: Times) -> Tensor:
        _, slope = self._interpolate(self._gain(), t)
        speed = (self.base.diffusion(double(t)) / self.base.sigma(double(t))) ** 2
        return (self._expand(self.base.drift(double(t))) + self._expand(speed) * slope).to(t)

    def diffusion(self, t: Times) -> Tensor:
        volatility, _ = self._interpolate(self._volatility(), t)
        return (self._expand(self.base.diffusion(double(t))) * (0.5 * volatility).exp()).to(t)

    def clock_rate(self, t: Times) -> Tensor:
        return self.kernel(t).rate

    def sample_time(self, n: int, *, importance: bool, eps=None, generator=None, device=None):
        eps = self.truncation(eps)
        return self.base.sample_time(n, importance=importance, eps=eps, generator=generator, device=device)

    def _gain(self) -> Tensor:
        return self._zeros() if self.log_gain is None else double(self.log_gain - self.log_gain[:1])

    def _volatility(self) -> Tensor:
        return self._zeros() if self.log_volatility is None else double(self.log_volatility)

    def _bend(self) -> Tensor:
        """v − 2a at the knots: the only combination on which the signal-to-noise ratio depends."""
        return self._volatility() - 2 * self._gain()

    def _zeros(self) -> Tensor:
        return torch.zeros(self.knots, *self.shape, dtype=torch.float64, device=float64_device(self.prior_mean.device))

    def _expand(self, v: Tensor) -> Tensor:
        """(B,) to (B, 1, …), as many axes as (B, *event) has."""
        return v.reshape(*v.shape, *(1 for _ in self.shape))

    def _locate(self, t: Times) -> tuple[Tensor, Tensor]:
        """The segment between knots that holds ``t``, and the distance on the clock from its first knot to ``t``."""
        (start, end), length = self.base.clock_span(), self._segment_length()
        offset = (-self.base.log_snr(double(t)) - start).clamp(0, end - start)
        segment = (offset / length).long().clamp(max=self.knots - 2)
        return segment, offset - double(segment) * length

    def _segment_length(self) -> float:
        start, end = self.base.clock_span()
        return (end - start) / (self.knots - 1)

    def _interpolate(self, knots: Tensor, t: Times) -> tuple[Tensor, Tensor]:
        """Value and slope on the clock at ``t``, (B, *event), of the piecewise linear function through the knots."""
        segment, offset = self._locate(t)
        slope = (knots[1:] - knots[:-1])[segment] / self._segment_length()
        return knots[segment] + self._expand(offset) * slope, slope

    def _log_noise_to_signal(self, t: Times) -> tuple[Tensor, Tensor]:
        """log σ_i²/α_i² by the closed form of its integral over each segment, and log of the integrand, (B, *event)."""
        bend, length, (start, _) = self._bend(), self._segment_length(), self.base.clock_span()
        knots = start + length * torch.arange(self.knots, dtype=torch.float64, device=bend.device)
        value = self._expand(knots) + bend  # log of the integrand at the knots
        slope = 1 + (bend[1:] - bend[:-1]) / length
        whole = _log_integral(value[:-1], slope, torch.full_like(slope, length))
        before = torch.logcumsumexp(torch.cat([value[:1], whole]), dim=0)  # up to each knot; bend is constant before
        segment, offset = self._locate(t)
        first, slope, offset = value[segment], slope[segment], self._expand(offset)
        return torch.logaddexp(before[segment], _log_integral(first, slope, offset)), first + slope * offset


def _log_integral(value: Tensor, slope: Tensor, length: Tensor) -> Tensor:
    """log of the integral of e^(value + slope u) over u in [0, length]."""
    x = slope * length
    small = x.abs() < 1e-4
    safe = torch.where(small, torch.ones_like(x), x)
    mean = torch.where(small, x / 2 + x**2 / 24, (torch.expm1(safe) / safe).log())
    return value + length.clamp_min(torch.finfo(length.dtype).tiny).log() + mean
