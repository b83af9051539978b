"""The penalty of the bridge: the nonlinear diffusion x_t = h⁻¹(z_t) ends at x_T ~ h⁻¹#π, and a chosen law is x_T's."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm.dequantization import from_data
from indm.objective import flow_nll
from indm.tensors import noisy
from indm.training import Penalty
from indm.workbench.data.base import Data, stack
from indm.workbench.data.batches import flip_horizontally
from indm.workbench.recipes.options import Training

Batch = Float[Tensor, "batch *event"]
Law = Callable[[int], Tensor]  # n ↦ n draws in model units, (n, *event)
MOST_IN_MEMORY = 20_000  # examples of the law that x_T shall have


def penalties_of(
    options: Training, model: nn.Module, data: Data, second: Data | None, device: torch.device
) -> list[Penalty]:
    """The penalty on the law of x_T, where ``options`` give it a weight.

    ``second`` are the data whose law x_T shall have; None stands for the Gaussian with the moments of ``data``.
    """
    if not options.terminal:
        return []
    law = with_noise(terminal_law(model, data, second, device), options.terminal_noise)
    return [Penalty("terminal", options.terminal, partial(terminal_nll, law), in_nats=True)]


def terminal_law(model: nn.Module, data: Data, second: Data | None, device: torch.device) -> Law:
    """What draws examples of the law that x_T shall have, in model units."""
    if second is None:
        return normal_law(_without_gradient(model, stack(data.train, MOST_IN_MEMORY).to(device)))
    raw, flip = stack(second.train, MOST_IN_MEMORY), second.flip

    def draw(n: int) -> Tensor:
        rows = raw[torch.randint(len(raw), (n,))].to(device)
        return _without_gradient(model, flip_horizontally(rows) if flip else rows)

    return draw


def with_noise(law: Law, deviation: float) -> Law:
    """``law`` of x + deviation · n, n ~ N(0, I): the noise augmentation of TarFlow.

    Source: Zhai et al. 2024, "Normalizing Flows are Capable Generative Models", https://arxiv.org/abs/2412.06329.
    """

    return (lambda n: noisy(law(n), deviation)) if deviation else law


@torch.no_grad()
def _without_gradient(model: nn.Module, raw: Tensor) -> Tensor:
    """``raw`` in model units, whose noise this loss does not train."""
    return from_data(model, raw)[0]


def terminal_nll(law: Law, model: nn.Module, x: Batch) -> Float[Tensor, ""]:
    """Mean −log density of x_T ~ h⁻¹#π at as many draws of ``law`` as ``x`` has samples, nats."""
    return flow_nll(model, law(len(x))).mean()


def normal_law(x: Batch) -> Law:
    """A sampler of the Gaussian with the mean and the covariance of the data ``x`` (n, *event)."""
    flat = x.flatten(1)
    mean, centred = flat.mean(0), flat - flat.mean(0)
    variance, basis = torch.linalg.eigh(centred.T @ centred / len(flat))
    factor = basis * variance.clamp_min(1e-6).sqrt()

    def draw(n: int) -> Tensor:
        noise = torch.randn(n, len(mean), dtype=x.dtype, device=x.device)
        return (mean + noise @ factor.T).reshape(n, *x.shape[1:])

    return draw
