"""A stand-in for a device without float64, as Apple's GPUs are: another device for PyTorch, computed on the CPU.

Its tensors do not mix with those of the CPU, but for numbers and indices. A tensor of it in float64 is a TypeError,
wherever it comes from, as on Apple's. The name of the device is :data:`NAME`, once :func:`register` was called.

    python -m single_precision train digits …    # indm commands in a process that has the device; «,» between two
"""

import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_map

NAME = "single"
FORBIDDEN = (torch.float64, torch.complex128)
ATEN = torch.ops.aten
TAKES_BOTH = (  # as on other devices, copies and indices
    ATEN.copy_.default,
    ATEN._to_copy.default,
    ATEN.index.Tensor,
    ATEN.index_put.default,
    ATEN.index_put_.default,
    ATEN._index_put_impl_.default,
)
_alive: list[Any] = []  # of what PyTorch keeps no reference itself


class OnDevice(Tensor):
    """A tensor of the device; ``held`` has its numbers."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnDevice":
        if held.dtype in FORBIDDEN:
            raise TypeError(f"Cannot convert a {NAME} Tensor to {held.dtype}: the device does not support it")
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.shape, device=torch.device(NAME, 0), **layout)
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:  # a file of another device's tensors is read on the CPU
        return self.held.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(op, *args, **(kwargs or {}))


class Generator(torch.Generator):
    """A generator that says that it is of the device, where it was made for it."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls, "cpu" if _is_own(device) else device)
        made.of = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.of


class Backend:
    """What PyTorch asks of the module of a device."""

    _is_in_bad_fork = staticmethod(lambda: False)
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    set_device = synchronize = empty_cache = manual_seed = manual_seed_all = staticmethod(lambda *_: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])


def _is_own(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def computed(op: Any, *args: Any, **kwargs: Any) -> Any:
    """What ``op`` gives: on the CPU where it copies there, else on the device."""
    given: dict[int, OnDevice] = {}

    def on_host(value: Any) -> Any:
        if isinstance(value, OnDevice):
            given[id(value.held)] = value
            return value.held
        if isinstance(value, Tensor) and value.ndim and op not in TAKES_BOTH:
            raise RuntimeError(f"Expected all tensors to be on the same device, got cpu and {NAME} in {op}")
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def on_device(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return given[id(value)] if id(value) in given else OnDevice(value)

    result = op(*tree_map(on_host, args), **tree_map(on_host, kwargs))
    if op is ATEN.copy_.default:
        return args[0]
    copies_to_cpu = kwargs.get("device") is not None and not _is_own(kwargs["device"])
    return result if copies_to_cpu else tree_map(on_device, result)


def register() -> None:
    """Give this process the device, which it keeps."""
    parts = {"hook": backend_registration._DummyPrivateUse1Hook()}
    parts["device_guard"] = backend_registration._DummyDeviceGuard()
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend, **parts)
    library = torch.library.Library("_", "IMPL")
    library.fallback(computed, "PrivateUse1")
    _alive.extend([parts, library])
    torch.Generator = Generator  # type: ignore[misc]


if __name__ == "__main__":
    register()
    from indm.workbench.cli.main import main

    for command in " ".join(sys.argv[1:]).split(" , "):
        if status := main(command.split()):
            raise SystemExit(status)
