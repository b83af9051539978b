"""A device that is not there, to find on a CPU what would mix devices on a GPU. Importing this makes it, for good.

A tensor on "elsewhere" wraps one on the CPU, where all is computed. An operation on tensors of both devices is an
error, as on a GPU, and so is a draw with a generator of the other device. Files are written and read on the CPU.
"""

import functools

import safetensors.torch
import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_map

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default)  # by indices on the CPU, too


class Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend("elsewhere", Backend())
DEVICE = torch.device("elsewhere:0")


class Elsewhere(torch.Tensor):
    @staticmethod
    def __new__(cls, here):
        options = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, here.shape, device=DEVICE, **options)

    def __init__(self, here):
        self.here = here

    def tolist(self):
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        wrappers, on_cpu = {}, []

        def unwrap(value):
            if isinstance(value, cls):
                wrappers[id(value.here)] = value
                return value.here
            if isinstance(value, torch.Tensor) and value.ndim:
                on_cpu.append(value)
            return torch.device("cpu") if isinstance(value, torch.device) else value

        def wrap(value):
            if not isinstance(value, torch.Tensor):
                return value
            return wrappers[id(value)] if id(value) in wrappers else cls(value)

        here, options = tree_map(unwrap, (args, kwargs))
        is_indexed = func in INDEXED and isinstance(args[0], cls) and not any(map(torch.is_floating_point, on_cpu))
        if on_cpu and func not in COPIES and not is_indexed:
            raise RuntimeError(f"{func} of tensors on the CPU and elsewhere")
        result = func(*here, **options)
        to_cpu = torch.device(kwargs.get("device") or DEVICE).type == "cpu"
        into_cpu = func is aten.copy_.default and not isinstance(args[0], cls)
        return result if to_cpu or into_cpu else tree_map(wrap, result)


# What makes tensors there, or copies to and fro, and has none of its tensors among its arguments.
library = torch.library.Library("aten", "IMPL")
for name in (
    "empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace",
    "randperm", "randperm.generator",
):  # fmt: skip
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(aten, packet), overload or "default")

    def make(*args, operation=operation, **options):
        return Elsewhere(
            operation(*args, **{k: v for k, v in options.items() if k not in ("device", "layout", "pin_memory")})
        )

    library.impl(name, make, "PrivateUse1")


def copy_from(source, target, non_blocking=False):
    getattr(target, "here", target).copy_(getattr(source, "here", source))
    return target


library.impl("_copy_from", copy_from, "PrivateUse1")


class Generator(torch.Generator):
    """One of the CPU, which knows whose it shall be."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.of = torch.device(device).type
        return made

    def __init__(self, device="cpu"):
        pass


def checked(draw):
    @functools.wraps(draw)
    def drawn(*size, generator=None, device=None, **options):
        of, to = getattr(generator, "of", "cpu"), torch.device(device or "cpu").type
        if generator is not None and of != to:
            raise RuntimeError(f"a draw on {to} with a generator of {of}")
        return draw(*size, generator=generator, device=device, **options)

    return drawn


def on_the_cpu(save):
    return lambda state, *rest, **options: save(
        tree_map(lambda value: value.cpu() if isinstance(value, torch.Tensor) else value, state), *rest, **options
    )


torch.Generator = Generator
for name in ("rand", "randn", "randint", "randperm", "poisson"):
    setattr(torch, name, checked(getattr(torch, name)))
torch.save, safetensors.torch.save = on_the_cpu(torch.save), on_the_cpu(safetensors.torch.save)
load = safetensors.torch.load_file
safetensors.torch.load_file = lambda path, device="cpu": {name: value.to(device) for name, value in load(path).items()}
