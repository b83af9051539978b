"""The law of x_T of a bridge, and the penalty by which it is learned.

The nonlinear diffusion x_t = h⁻¹(z_t) ends at x_T ~ h⁻¹#π.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm.dequantization import from_data
from indm.objective import flow_nll
from indm.tensors import noisy
from indm.training import Penalty
from indm.workbench.data.base import Data, stack
from indm.workbench.data.examples import flip_horizontally

DrawLaw = Callable[[int], Tensor]  # n ↦ n draws in model units, (n, *event)
MOST_IN_MEMORY = 20_000  # examples of the law


def terminal_penalty(law: DrawLaw, weight: float) -> Penalty:
    """The mean −log density of x_T ~ h⁻¹#π at draws of its wanted ``law``, nats."""

    def value(model: nn.Module, x: Tensor) -> Tensor:
        return flow_nll(model, law(len(x))).mean()

    return Penalty("terminal", weight, value, in_nats=True)


def terminal_law(
    model: nn.Module, data: Data, second: Data | None, device: torch.device
) -> DrawLaw:
    """The law of x_T in model units: of ``second``, or a Gaussian with the moments of ``data``."""
    if second is None:
        return normal_law(_without_gradient(model, stack(data.train, MOST_IN_MEMORY).to(device)))
    raw = stack(second.train, MOST_IN_MEMORY)
    flips = second.flip

    def draw(n: int) -> Tensor:
        rows = raw[torch.randint(len(raw), (n,))].to(device)
        return _without_gradient(model, flip_horizontally(rows) if flips else rows)

    return draw


def with_noise(law: DrawLaw, deviation: float) -> DrawLaw:
    """The law of x + deviation · n for x of ``law`` and n ~ N(0, I), as in TarFlow.

    Source: Zhai et al. 2024, "Normalizing Flows are Capable Generative Models",
    https://arxiv.org/abs/2412.06329.
    """
    return (lambda n: noisy(law(n), deviation)) if deviation else law


@torch.no_grad()
def _without_gradient(model: nn.Module, raw: Tensor) -> Tensor:
    """``raw`` in model units; this loss does not train the noise of grey levels."""
    return from_data(model, raw)[0]


def normal_law(x: Float[Tensor, "batch *event"]) -> DrawLaw:
    """The Gaussian with the mean and the covariance of the data ``x`` (n, *event)."""
    flat = x.flatten(1)
    mean = flat.mean(0)
    centred = flat - mean
    variance, basis = torch.linalg.eigh(centred.T @ centred / len(flat))
    factor = basis * variance.clamp_min(1e-6).sqrt()

    def draw(n: int) -> Tensor:
        noise = torch.randn(n, len(mean), dtype=x.dtype, device=x.device)
        return (mean + noise @ factor.T).reshape(n, *x.shape[1:])

    return draw
