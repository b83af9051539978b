"""Released flow checkpoints as flows of this library: the plain residual flow and the conditional one.

The architecture is read off the tensors. Settings are needed for what tensors do not show: the activations and the
Lipschitz coefficient, by default the published ones. Every other setting is compared with the tensors. Whatever does
not match is listed in one error.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from indm.files.untrusted import build_described
from indm.flows.base import ActNorm, Flow
from indm.flows.residual import ResidualBlock, ResidualFlow
from indm.messages import brief
from indm.published.conditional import ConditionalBlock, ConditionalResidualFlow
from indm.published.convert.conditional import code_arguments, read_encoder, read_prior
from indm.published.convert.flow_settings import check_agrees, check_settings
from indm.published.convert.reader import Reader


def flow_from_state(state: Mapping[str, Tensor], settings: Mapping[str, Any], shape: tuple[int, ...]) -> Flow:
    """The flow of a released checkpoint, in evaluation mode and single precision.

    Args:
        state: its ``model`` entry, or its averaged parameters under the same names; keys may begin with ``module.``.
        settings: of the original: ``act_fn`` (default "sin") and ``coeff`` (0.98); of the conditional flow's
            ``discriminator``, the activations of its encoder and its prior ("elu"). All others must agree with the
            tensors.
        shape: of the images, (C, H, W), before any squeeze.

    Returns:
        A :class:`~indm.flows.ResidualFlow` or :class:`~indm.published.ConditionalResidualFlow` that computes the same
        z.

    Raises:
        ValueError: naming the settings that are unknown, unsupported or at odds with the tensors, or listing the
            tensors that are missing, not understood or of the wrong shape.
    """
    reader = Reader({re.sub(r"^(module\.)+", "", key): value for key, value in state.items()})
    shape = tuple(shape)
    if len(shape) != 3:
        raise ValueError(f"shape must be (C, H, W), got {shape}: the released flows are of images")
    conditional = reader.has("generator.") or reader.has("discriminator.")
    prefix = "generator.flow." if conditional else ""
    if not chains(reader, prefix):
        raise ValueError(
            "state must hold a residual flow, with keys like 'transforms.0.chain.0.nnet.0.weight' or "
            f"'generator.flow.transforms.…' for the conditional one, got {_some(reader.state)}"
        )
    check_settings(settings, conditional)
    arguments = residual_arguments(reader, prefix, settings, shape)
    if conditional:
        arguments |= code_arguments(reader, settings, shape, arguments["squeeze"])
        check_agrees(settings, "code_dim", arguments["code_dim"])
        make: Callable[[], Flow] = functools.partial(ConditionalResidualFlow, shape, **arguments)
    else:
        make = functools.partial(ResidualFlow, shape, **arguments)
    flow = build_described(make, arguments | {"shape": shape}, reader.state)
    if isinstance(flow, ConditionalResidualFlow):
        read_chain(reader, prefix, flow.chain)
        read_encoder(reader, flow)
        read_prior(reader, flow)
    else:
        read_chain(reader, prefix, flow.flows)
    reader.finish()
    return flow.eval()


def residual_arguments(
    reader: Reader, prefix: str, settings: Mapping[str, Any], shape: tuple[int, ...]
) -> dict[str, Any]:
    """Arguments of the residual flow, from tensors where they show there."""
    groups = [sum(reader.has(f"{chain}{j}.nnet.") for j in reader.indices(chain)) for chain in chains(reader, prefix)]
    width, inputs = reader.shape(f"{first_block(reader, prefix)}.nnet.0.weight", 4)[:2]
    squeeze = inputs == 4 * shape[0]
    if inputs != shape[0] and not squeeze:
        squeezed = f", or {inputs // 4} that are squeezed" if inputs % 4 == 0 else ""
        raise ValueError(f"the flow is one of images of {inputs} channel(s){squeezed}, the shape asked for is {shape}")
    if len(groups) > 2:
        raise ValueError(
            f"settings: nblocks with more than two groups cannot be converted, got {groups}: the original puts the "
            "entries of such a z into another order than their places in the image"
        )
    actnorm = any(key.endswith(".initialized") for key in reader.state)
    uninitialized = [k for k, v in reader.state.items() if k.endswith(".initialized") and not v.all()]
    if uninitialized:
        raise ValueError(f"state holds an ActNorm that never saw data: {_some(uninitialized)}")
    check_agrees(settings, "nblocks", "-".join(map(str, groups)))
    check_agrees(settings, "intermediate_dim", width)
    check_agrees(settings, "num_channels", shape[0])
    check_agrees(settings, "image_size", shape[1])
    check_agrees(settings, "squeeze", squeeze)
    check_agrees(settings, "actnorm", actnorm)
    learned = any(key.endswith(".beta") for key in reader.state)
    activation, coeff = settings.get("act_fn", "swish" if learned else "sin"), settings.get("coeff", 0.98)
    return {"blocks": tuple(groups), "width": width, "norm": "rows", "coeff": float(coeff),
            "activation": activation, "squeeze": squeeze, "actnorm": actnorm}  # fmt: skip


def chains(reader: Reader, prefix: str) -> list[str]:
    """Prefixes of the groups of blocks."""
    return [f"{prefix}transforms.{i}.chain." for i in reader.indices(f"{prefix}transforms.")]


def first_block(reader: Reader, prefix: str) -> str:
    """The prefix of the first residual block."""
    chain = chains(reader, prefix)[0]
    return next((f"{chain}{j}" for j in reader.indices(chain) if reader.has(f"{chain}{j}.nnet.")), f"{chain}0")


def read_chain(reader: Reader, prefix: str, flows: Iterable[nn.Module]) -> None:
    """Copy blocks and ActNorms, in the order in which data pass them."""
    sources = [f"{chain}{j}" for chain in chains(reader, prefix) for j in reader.indices(chain)]
    targets = [flow for flow in flows if isinstance(flow, ResidualBlock | ActNorm)]
    if len(sources) != len(targets):
        reader.problems.append(f"{prefix}transforms has {len(sources)} layers where {len(targets)} are needed")
    for source, target in zip(sources, targets, strict=False):
        if isinstance(target, ResidualBlock):
            read_block(reader, source, target)
        else:
            read_actnorm(reader, source, target)


@torch.no_grad()
def read_actnorm(reader: Reader, source: str, target: ActNorm) -> None:
    """Copy an ActNorm, which is (x + bias) e^weight in the original."""
    weight, bias = reader.take(f"{source}.weight", target.log_scale), reader.take(f"{source}.bias", target.shift)
    if weight is not None and bias is not None:
        target.log_scale.copy_(weight)
        target.shift.copy_(bias * weight.exp())


def read_block(reader: Reader, source: str, target: ResidualBlock) -> None:
    """Copy activations and maps, which alternate; a block that is not pre-activated begins with a map."""
    for i, linear in enumerate(target.maps):
        place = 2 * i + target.preactivate
        reader.copy(f"{source}.nnet.{place}.weight", linear.weight)
        reader.copy(f"{source}.nnet.{place}.bias", linear.bias)
        if i == 1 and isinstance(target, ConditionalBlock):
            reader.copy(f"{source}.nnet.{place}.h_net.net.weight", target.code.weight)
            reader.copy(f"{source}.nnet.{place}.h_net.net.bias", target.code.bias)
    for i, activation in enumerate(target.activations):
        for name, parameter in activation.named_parameters():
            reader.copy(f"{source}.nnet.{2 * i + (not target.preactivate)}.{name}", parameter)


def _some(names: Iterable[str]) -> str:
    """The first few of the names."""
    names = list(names)
    return brief(", ".join(names[:5])) + (", …" if len(names) > 5 else "") if names else "nothing"
