"""A plugin for mypy: an attribute that a module of PyTorch does not declare may be anything.

PyTorch's annotations make it a ``Tensor | Module``, so that nothing can be done with a buffer, or
with a submodule that is found by its name. What a class of ours declares keeps its type.
"""

from mypy.plugin import AttributeContext, Plugin
from mypy.types import AnyType, Type, TypeOfAny

MODULE = "torch.nn.modules.module.Module."


class Torch(Plugin):
    def get_attribute_hook(self, fullname: str):
        return anything if fullname.startswith(MODULE) else None


def anything(context: AttributeContext) -> Type:
    """Any, in place of what ``Module.__getattr__`` returns; what PyTorch declares keeps its type."""
    undeclared = (
        str(context.default_attr_type) == "torch._tensor.Tensor | torch.nn.modules.module.Module"
    )
    return AnyType(TypeOfAny.explicit) if undeclared else context.default_attr_type


def plugin(version: str) -> type[Plugin]:
    """What mypy asks a plugin for."""
    return Torch
