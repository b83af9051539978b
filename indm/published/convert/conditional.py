"""The code of a released conditional flow: the encoder that infers it, and its prior."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from indm.config.checks import check_types
from indm.flows.base import ActNorm
from indm.flows.coupling import Coupling, InvertibleLinear
from indm.messages import brief
from indm.published.conditional import ConditionalResidualFlow, Interleaved
from indm.published.convert.flow_settings import check_agrees, table
from indm.published.convert.reader import Reader

ENCODER = "discriminator.encoder.net."
HEAD = "discriminator.fc.linear"
STEPS = "discriminator.prior.flow.steps."


# Of each table of settings: those with one value that is converted, and the others that are known.
TABLES: dict[str, tuple[tuple[str, ...], dict[str, str], tuple[str, ...]]] = {
    "discriminator.": ((), {"type": "gaussian"}, ("encoder", "in_dim", "dim", "prior")),
    "discriminator.encoder.": (
        ("encoder",), {"type": "global_resnet_bn"},
        ("levels", "in_planes", "hidden_planes", "out_planes", "activation"),
    ),
    "discriminator.prior.": (
        ("prior",), {"type": "flow", "transform": "affine", "coupling_type": "mlp"},
        ("num_steps", "in_features", "hidden_features", "activation", "alpha"),  # the original never uses alpha
    ),
}  # fmt: skip


def check_code_settings(settings: Mapping[str, Any]) -> None:
    """ValueError naming the first setting of encoder or prior that is unknown or cannot be converted."""
    given = {path: table(settings, "discriminator", *place) for path, (place, _, _) in TABLES.items()}
    for path in ("discriminator.encoder.", "discriminator.prior."):
        check_types(given[path], {"activation": str}, f"settings: {path}")
    for path, (_, fixed, known) in TABLES.items():
        for key, value in given[path].items():
            if key not in {*fixed, *known}:
                raise ValueError(f"settings: {path}{brief(key)} is unknown, with the value {brief(repr(value))}")
            if value != fixed.get(key, value):
                raise ValueError(f"settings: {path}{key} must be {fixed[key]!r}, got {brief(repr(value))}")


def code_arguments(
    reader: Reader, settings: Mapping[str, Any], shape: tuple[int, ...], squeeze: bool
) -> dict[str, Any]:
    """Arguments of the encoder and the prior, from tensors where they show there."""
    check_code_settings(settings)
    levels = reader.indices(f"{ENCODER}resnet")
    planes = tuple(reader.shape(f"{ENCODER}resnet{i}.main.0.conv1.weight", 4)[0] for i in levels)
    channels = reader.shape(f"{ENCODER}top.weight", 4)[0]
    outputs, features = reader.shape(f"{HEAD}.weight_v", 2)
    hidden, half = reader.shape(f"{STEPS}0.unit.coupling1_up.net.fc1.weight", 2)
    steps = len(reader.indices(STEPS))
    actual: dict[str, dict[str, Any]] = {
        "discriminator.": {"in_dim": features, "dim": outputs // 2},
        "discriminator.encoder.": {
            "levels": len(planes), "in_planes": shape[0] * (4 if squeeze else 1), "hidden_planes": planes,
            "out_planes": channels,
        },
        "discriminator.prior.": {"num_steps": steps, "in_features": 2 * half, "hidden_features": hidden},
    }  # fmt: skip
    for path, values in actual.items():
        for key, value in values.items():
            check_agrees(table(settings, "discriminator", *TABLES[path][0]), key, value, path)
    encoder, prior = (table(settings, "discriminator", name) for name in ("encoder", "prior"))
    return {"code_dim": outputs // 2, "encoder_planes": planes, "encoder_channels": channels,
            "encoder_activation": encoder.get("activation", "elu"), "prior_steps": steps, "prior_width": hidden,
            "prior_activation": prior.get("activation", "elu")}  # fmt: skip


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
    reader.copy(f"{ENCODER}top.weight", top.weight)
    reader.copy(f"{ENCODER}top.bias", top.bias)
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
        source = f"{STEPS}{i // len(names)}.{names[i % len(names)]}"
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
    for name, layer in {"fc1": first, "fc2": second}.items():
        reader.copy(f"{source}.net.{name}.weight", layer.weight)
        reader.copy(f"{source}.net.{name}.bias", layer.bias)
    key = f"{source}.net.fc3.linear"
    for value, parameter in [
        (reader.weight_norm(key, last.weight), last.weight),
        (reader.take(f"{key}.bias", last.bias), last.bias),
    ]:
        if value is not None:
            parameter.copy_(value.roll(len(value) // 2, 0))
