"""Random numbers: noise from a generator in the shape of a batch, and the states of PyTorch's own generators."""

from collections.abc import Mapping

import torch
from torch import Tensor

from indm.tensors import double, widest


def rand_like(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform noise in [0, 1) in the shape, dtype and device of ``z``.

    Example:

        >>> u = rand_like(torch.zeros(4, 3), torch.Generator().manual_seed(0))
        >>> u.shape, 0 <= u.min().item() <= u.max().item() < 1
        (torch.Size([4, 3]), True)
    """
    return torch.rand(z.shape, generator=generator, dtype=z.dtype, device=z.device)


def randn_like(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise in the shape, dtype and device of ``z``.

    Example: from a generator of the same seed the same noise.

        >>> z, seed = torch.zeros(4, 3), torch.Generator().manual_seed
        >>> torch.equal(randn_like(z, seed(0)), randn_like(z, seed(0)))
        True
    """
    return torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)


def noisy(x: Tensor, deviation: float, generator: torch.Generator | None = None) -> Tensor:
    """x + deviation · n, n ~ N(0, I); where the deviation is 0 it is ``x``, and nothing is drawn."""
    return x + deviation * randn_like(x, generator) if deviation else x


def strata(n: int, *, generator: torch.Generator | None = None, device=None) -> Tensor:
    """One number in each of ``n`` equal parts of [0, 1), in random order, (n,).

    In float64, on the CPU where the device has none.
    """
    u = torch.rand(n, generator=generator, device=device, dtype=widest(device))
    order = torch.randperm(n, generator=generator, device=device)
    return (double(order) + double(u)) / n


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of PyTorch's own generators for the CPU and for ``device``, by the kind of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on with what :func:`random_states` gave, where that was on a device of the same kind."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
