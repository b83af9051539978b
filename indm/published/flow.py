"""Weights of released flows: the plain residual flow and the conditional one."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from indm.checks import brief
from indm.flows.base import ActNorm, Flow
from indm.flows.coupling import Coupling, InvertibleLinear
from indm.flows.residual import ResidualBlock
from indm.model import build
from indm.published.checkpoint import Reader
from indm.published.conditional import ConditionalBlock, ConditionalResidualFlow, Interleaved

ENCODER = "discriminator.encoder.net."
HEAD = "discriminator.fc.linear"
STEPS_KEY = "discriminator.prior.flow.steps."


def flow_from_state(
    state: Mapping[str, Tensor], table: Mapping[str, Any], shape: tuple[int, ...]
) -> Flow:
    """The flow of a released checkpoint, in evaluation mode and single precision.

    Args:
        state: its parameters; keys may begin with ``module.``.
        table: the flow as a recipe describes it, with its ``name``: "residual" or
            "conditional-residual".
        shape: of the images, (C, H, W), before any squeeze.

    Raises:
        ValueError: naming the arguments that are wrong, or listing the tensors that are missing,
            not understood or of the wrong shape.
    """
    reader = Reader({re.sub(r"^(module\.)+", "", key): value for key, value in state.items()})
    flow: Any = build(table, "flow", tuple(shape))
    is_conditional = isinstance(flow, ConditionalResidualFlow)
    prefix = "generator.flow." if is_conditional else ""
    groups = len(chains(reader, prefix))
    if groups > 2:
        wanted = "one or two groups of blocks"
        raise ValueError(f"state must hold {wanted}, got {groups}: more would reorder the latent")
    uninitialized = [
        key
        for key, value in reader.state.items()
        if key.endswith(".initialized") and not value.all()
    ]
    if uninitialized:
        raise ValueError(
            f"state holds an ActNorm that never saw data: {brief(', '.join(uninitialized))}"
        )
    read_chain(reader, prefix, flow.chain if is_conditional else flow.flows)
    if is_conditional:
        read_encoder(reader, flow)
        read_prior(reader, flow)
    reader.finish()
    return flow.eval()


def chains(reader: Reader, prefix: str) -> list[str]:
    """Prefixes of the groups of blocks."""
    return [f"{prefix}transforms.{i}.chain." for i in reader.indices(f"{prefix}transforms.")]


def read_chain(reader: Reader, prefix: str, flows: Iterable[nn.Module]) -> None:
    """Copy blocks and ActNorms, from the data to the latent."""
    sources = [f"{chain}{j}" for chain in chains(reader, prefix) for j in reader.indices(chain)]
    targets = [flow for flow in flows if isinstance(flow, ResidualBlock | ActNorm)]
    if len(sources) != len(targets):
        found = f"{prefix}transforms has {len(sources)} layers"
        reader.problems.append(f"{found} where {len(targets)} are needed")
    for source, target in zip(sources, targets, strict=False):
        if isinstance(target, ResidualBlock):
            read_block(reader, source, target)
        else:
            read_actnorm(reader, source, target)


@torch.no_grad()
def read_actnorm(reader: Reader, source: str, target: ActNorm) -> None:
    """Copy an ActNorm, which is (x + bias) e^weight in the original."""
    weight = reader.take(f"{source}.weight", target.log_scale)
    bias = reader.take(f"{source}.bias", target.shift)
    if weight is not None and bias is not None:
        target.log_scale.copy_(weight)
        target.shift.copy_(bias * weight.exp())


def read_block(reader: Reader, source: str, target: ResidualBlock) -> None:
    """Copy activations and maps, which alternate; the first is a map unless it is pre-activated."""
    for i, linear in enumerate(target.maps):
        place = f"{source}.nnet.{2 * i + target.preactivate}"
        reader.copy_layer(place, linear)
        if i == 1 and isinstance(target, ConditionalBlock):
            reader.copy_layer(f"{place}.h_net.net", target.code)
    for i, activation in enumerate(target.activations):
        for name, parameter in activation.named_parameters():
            reader.copy(f"{source}.nnet.{2 * i + (not target.preactivate)}.{name}", parameter)


@torch.no_grad()
def read_encoder(reader: Reader, flow: ConditionalResidualFlow) -> None:
    """Copy the encoder: two blocks for each level, then the 1×1 convolution and the head."""
    *blocks, top, _ = flow.encoder.layers
    for i, block in enumerate(blocks):
        source = f"{ENCODER}resnet{i // 2}.main.{i % 2}"
        parts = {("conv1", "bn1"): block.first, ("conv2", "bn2"): block.second}
        if not isinstance(block.shortcut, torch.nn.Identity):
            parts["downsample.0", "downsample.1"] = block.shortcut
        for (convolution, norm), part in parts.items():
            reader.copy(f"{source}.{convolution}.weight", part[0].weight)
            for name, target in part[1].state_dict().items():
                reader.copy(f"{source}.{norm}.{name}", target)
    reader.copy_layer(f"{ENCODER}top", top)
    head = reader.weight_norm(HEAD, flow.encoder.head.weight)
    if head is not None:
        flow.encoder.head.weight.copy_(head)
    reader.copy(f"{HEAD}.bias", flow.encoder.head.bias)


def read_prior(reader: Reader, flow: ConditionalResidualFlow) -> None:
    """Copy the prior: every step has seven layers, with these names."""
    names = ("actnorm", "linear", "unit.coupling1_up", "unit.coupling1_dn", "unit.actnorm", "unit.coupling2_up",
             "unit.coupling2_dn")  # fmt: skip
    layers: Iterable[Any] = flow.prior.flows
    for i, layer in enumerate(layers):
        source = f"{STEPS_KEY}{i // len(names)}.{names[i % len(names)]}"
        if isinstance(layer, ActNorm):
            reader.copy(f"{source}.log_scale", layer.log_scale)
            reader.copy(f"{source}.bias", layer.shift)
        elif isinstance(layer, InvertibleLinear):
            read_linear(reader, source, layer)
        else:
            coupling: Any = layer.flow if isinstance(layer, Interleaved) else layer
            read_coupling(reader, source, coupling)


@torch.no_grad()
def read_linear(reader: Reader, source: str, target: InvertibleLinear) -> None:
    """Copy an invertible W as P L U, computed in double precision."""
    weight = reader.take(f"{source}.weight", target.off_diagonal)
    if weight is None:
        return
    permutation, lower, upper = torch.linalg.lu(weight.double())
    diagonal = upper.diagonal()
    target.permutation.copy_(permutation)
    target.sign.copy_(diagonal.sign())
    target.log_diagonal.copy_(diagonal.abs().log())
    target.off_diagonal.copy_(lower.tril(-1) + upper.triu(1))


@torch.no_grad()
def read_coupling(reader: Reader, source: str, target: Coupling) -> None:
    """Copy three dense layers; the original's last has weight norm and gives shifts before scales."""
    first, _, second, _, last = target.conditioner.layers
    reader.copy_layer(f"{source}.net.fc1", first)
    reader.copy_layer(f"{source}.net.fc2", second)
    key = f"{source}.net.fc3.linear"
    weight, bias = reader.weight_norm(key, last.weight), reader.take(f"{key}.bias", last.bias)
    for value, parameter in ((weight, last.weight), (bias, last.bias)):
        if value is not None:
            parameter.copy_(value.roll(len(value) // 2, 0))
