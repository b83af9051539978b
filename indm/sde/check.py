"""A check for SDEs of one's own: that what they say of themselves fits together."""

import copy

import torch
from torch import Tensor

from indm.sde.linear import LinearSDE
from indm.tensors import float64_device

TIMES, PRECISION = 24, 1e-4


def check_sde(sde: LinearSDE) -> None:
    r"""Compare what an SDE says of itself with the derivatives by autograd, in double precision, at 24 times.

    .. math:: f = \frac{d\log\alpha}{dt}, \qquad g^2 = \frac{d\sigma^2}{dt} - 2 f \sigma^2

    Its :meth:`~LinearSDE.time` must invert its log SNR, and :meth:`~LinearSDE.clock_rate` be (g²/σ²)/(−d log SNR/dt).

    Raises:
        ValueError: one of its methods does not fit the others; it says which, where, and by how much.

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
    t = torch.linspace(twin.eps, twin.T, TIMES + 2, dtype=torch.float64, device=twin.prior_mean.device)[1:-1]
    t.requires_grad_()
    with torch.enable_grad():
        f, g, sigma = (_entries(v) for v in (twin.drift(t), twin.diffusion(t), twin.sigma(t)))
        rate = (g / sigma) ** 2 / _slope(_entries(-twin.log_snr(t)), t)
        expected = {
            "drift": (f, _slope(_entries(twin.log_alpha(t)), t), "d log α/dt"),
            "diffusion": (g**2, _slope(sigma**2, t) - 2 * f * sigma**2, "the root of dσ²/dt − 2 f σ²"),
            "time": (_entries(twin.time(twin.log_snr(t))), _entries(t), "the inverse of log_snr"),
            "clock_rate": (_entries(twin.clock_rate(t)), rate, "(g²/σ²)/(−d log SNR/dt)"),
        }
    for name, (value, wanted, words) in expected.items():
        value, wanted = torch.broadcast_tensors(value.detach(), wanted.detach())
        excess = (value - wanted).abs() - PRECISION * (1e-2 + wanted.abs())
        worst = int(excess.nan_to_num(torch.inf).amax(1).argmax())
        if not bool((excess[worst] <= 0).all()):
            square = "² " if name == "diffusion" else " "
            entry = int(excess[worst].nan_to_num(torch.inf).argmax())
            raise ValueError(
                f"{name} of {type(sde).__name__} must be {words}, got {name}{square}= {value[worst, entry]:.6g} in "
                f"place of {wanted[worst, entry]:.6g} at t = {t[worst]:.3g}"
            )


def _entries(value: Tensor) -> Tensor:
    """A coefficient as (times, entries), with one entry where all share it."""
    return value.reshape(len(value), -1)


def _slope(value: Tensor, t: Tensor) -> Tensor:
    """d/dt of each entry, (times, entries)."""
    if not value.requires_grad:
        return torch.zeros_like(value)
    slopes = [torch.autograd.grad(v.sum(), t, retain_graph=True, allow_unused=True)[0] for v in value.T]
    return torch.stack([torch.zeros_like(t) if slope is None else slope for slope in slopes], 1)
