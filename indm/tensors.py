"""Shapes of batches, noise from a generator, layers that start at zero, and evaluation mode."""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

Batch = Float[Tensor, "batch *event"]
PerSample = Float[Tensor, " batch"]
SEED_STRIDE = 1_000_003  # between the seeds of draws that follow each other; a prime
M = TypeVar("M", bound=nn.Module)
F = TypeVar("F", bound=Callable[..., Any])


def expand_like(t: Tensor, z: Tensor) -> Tensor:
    """Append singleton axes to ``t`` (B,) so that it broadcasts against ``z`` (B, ...); (B, ...)
    stays as it is.
    """
    return t.reshape(t.shape + (1,) * (z.ndim - t.ndim))


def gradient_weighted(x: Tensor, weight: PerSample) -> Tensor:
    """``x``, whose gradient is multiplied by each row's ``weight``, (B,)."""
    return x.detach() + expand_like(weight, x) * (x - x.detach())


def check_shape(shape: Any) -> None:
    """ValueError unless ``shape`` is a sequence of counts, such as (2,) for vectors of two entries."""
    counts = isinstance(shape, Sequence) and all(isinstance(n, int) and n > 0 for n in shape)
    if not (counts and shape):
        raise ValueError(
            f"shape must be a tuple of counts, such as (2,) for vectors of two entries, got {shape!r}"
        )


def image_or_vector(shape: Sequence[int]) -> tuple[int, ...]:
    """``shape`` as a tuple; ValueError unless it is the shape of an image, (C, H, W), or a vector,
    (D,).
    """
    if len(shape) not in (1, 3):
        raise ValueError(
            f"shape must be (C, H, W) for images or (D,) for vectors, got {tuple(shape)}"
        )
    return tuple(shape)


def check_units(x: Tensor) -> None:
    """ValueError where ``x`` cannot be in model units, as it holds whole numbers or is not a
    tensor.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"x must be a float tensor in model units, as model.from_data(raw) gives it, got {got}"
        )


def event_size(z: Tensor) -> int:
    """Number of dimensions of one sample of the batch ``z`` (B, ...)."""
    return math.prod(z.shape[1:])


def event_sum(coefficient: Tensor, z: Tensor) -> Float[Tensor, " batch"]:
    """Sum over the entries of an event like ``z``'s of a coefficient that is (B,) or (B, *event)."""
    if coefficient.ndim == 1:
        return event_size(z) * coefficient
    return coefficient.flatten(1).sum(1)


def squared_norm(v: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
    """‖v‖² of each sample, summed over all event axes."""
    return v.flatten(1).square().sum(1)


@functools.cache
def widest(device: torch.device | str | None) -> torch.dtype:
    """The float of most digits that the device has: float64, or float32 on Apple's GPUs."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64


def float64_device(device: torch.device) -> torch.device:
    """Where tensors of ``device`` can be in float64: there, or on the CPU."""
    return device if widest(device) is torch.float64 else torch.device("cpu")


def double(v: Tensor) -> Tensor:
    """``v`` in float64, on the CPU where its device has none. What is computed of it goes back by
    ``.to(v)``.
    """
    return v.to(float64_device(v.device), torch.float64)


def zeroed(layer: nn.Module) -> nn.Module:
    """``layer`` with all its parameters set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def with_parts(module: M, parts: Mapping[str, nn.Module | None]) -> M:
    """``module`` with other parts of these names, all else shared with it; itself where none
    differs.
    """
    if all(module._modules[name] is part for name, part in parts.items()):
        return module
    view = copy.copy(module)
    view._modules = {**module._modules, **parts}
    return view


@contextmanager
def float32_convolutions() -> Iterator[None]:
    """Inside, GPUs convolve float32 in float32, as TF32 puts a log-likelihood off by some 1e-4
    bits/dim (``bench/tf32.py``).
    """
    cudnn = torch.backends.cudnn
    conv = getattr(cudnn, "conv", None)  # since PyTorch 2.9
    owner, name, exact = (conv, "fp32_precision", "ieee") if conv else (cudnn, "allow_tf32", False)
    before = getattr(owner, name)
    setattr(owner, name, exact)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, autocast is off for ``device``, and so is TF32. The meta device has the autocast of
    the CPU.
    """
    with (
        torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False),
        float32_convolutions(),
    ):
        yield


def outside_inference(function: F) -> F:
    """``function``, which takes derivatives inside, so that it can be called in
    ``torch.inference_mode()``, too.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


@contextmanager
def evaluation_mode(model: Any, *, gradients: bool = False):
    """Evaluation mode without TF32, and without gradients unless told; at the end every module has
    its mode again.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with nullcontext() if gradients else torch.no_grad(), float32_convolutions():
            yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


def rand_like(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform noise in [0, 1) in the shape, dtype and device of ``z``."""
    return torch.rand(z.shape, generator=generator, dtype=z.dtype, device=z.device)


def randn_like(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise in the shape, dtype and device of ``z``."""
    return torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)


def noisy(x: Tensor, deviation: float, generator: torch.Generator | None = None) -> Tensor:
    """x + deviation · n, n ~ N(0, I); where the deviation is 0 it is ``x``, and nothing is drawn."""
    return x + deviation * randn_like(x, generator) if deviation else x


def strata(n: int, *, generator: torch.Generator | None = None, device=None) -> Tensor:
    """One number in each of ``n`` equal parts of [0, 1), in random order, (n,), in float64, on the
    CPU where need be.
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
