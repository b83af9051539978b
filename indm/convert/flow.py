"""Released flow checkpoints as flows of this library: the plain residual flow and the conditional one.

The architecture is read off the tensors. Settings are needed for what tensors do not show, the activations and the
Lipschitz coefficient, which otherwise are the published ones; any other setting is compared with the tensors. What
does not match is an error that lists it.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from indm.config.checks import check_kinds
from indm.files.untrusted import check_described
from indm.flows import ActNorm, ConditionalResidualFlow, Coupling, Flow, InvertibleLinear, ResidualFlow
from indm.flows.conditional import ConditionalBlock, Interleaved
from indm.flows.residual import ResidualBlock
from indm.messages import brief, listed

# Entries that say nothing of the map: the roulette's parameters and statistics, the norms and the matrix inverses that
# are computed anew from the weights, and whether an ActNorm has seen data (checked apart).
INCIDENTAL = re.compile(r"(^|\.)(geom_p|lamb|last_n_samples|last_firmom|last_secmom|scale|weight_inv|initialized)$")
# Settings of training and estimators alone, which leave the map as it is, and remarks.
UNRELATED = {
    "note", "lr", "ema_rate", "optim_reset", "grad_in_forward", "neumann_grad", "n_power_series", "n_dist", "n_samples",
    "n_exact_terms", "dropout", "rank", "local_rank", "batch_size", "eval_batch_size", "batch_steps", "init_batch_size",
    "epochs", "valid_epochs", "seed", "train_k", "log_interval", "warmup_steps", "lr_decay", "beta1", "beta2", "eps",
    "weight_decay", "amsgrad", "grad_clip", "dataset", "category", "workers", "n_bits", "recover", "model_config",
}  # fmt: skip
# Settings that only have the one value that is converted.
FIXED = {
    "vnorms": ("ffff",),
    "kernels": ("3-1-3",),
    "resblock_type": ("resflow",),
    "model": ("resflow", "wolf"),
    "preact": (True,),
    "first_resblock": (True,),
    **dict.fromkeys(("factor_out", "quadratic", "fc_actnorm", "batchnorm", "fc", "fc_end", "learn_p"), (False,)),
}
DERIVED = ("nblocks", "intermediate_dim", "image_size", "num_channels", "squeeze", "actnorm", "code_dim")
CHOSEN = ("act_fn", "coeff", "discriminator")


def flow_from_state(state: Mapping[str, Tensor], settings: Mapping[str, Any], shape: tuple[int, ...]) -> Flow:
    """The flow of a released checkpoint, in evaluation mode and single precision.

    Args:
        state: its ``model`` entry, or its averaged parameters under the same names; keys may begin with ``module.``.
        settings: of the original: ``act_fn`` (default "sin") and ``coeff`` (0.98); of the conditional flow's
            ``discriminator``, the activations of its encoder and its prior ("elu"). Whatever else there is must agree.
        shape: of the images, (C, H, W), before any squeeze.

    Returns:
        A :class:`~indm.flows.ResidualFlow` or :class:`~indm.flows.ConditionalResidualFlow` that computes the same z.

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
        agree(settings, "code_dim", arguments["code_dim"])
        make: Callable[[], Flow] = functools.partial(ConditionalResidualFlow, shape, **arguments)
    else:
        make = functools.partial(ResidualFlow, shape, **arguments)
    check_described(make, arguments | {"shape": shape}, reader.state)
    flow = make()
    if isinstance(flow, ConditionalResidualFlow):
        read_chain(reader, prefix, flow.chain)
        read_encoder(reader, flow)
        read_prior(reader, flow)
    else:
        read_chain(reader, prefix, flow.flows)
    reader.finish()
    return flow.eval()


class Reader:
    """The tensors of a state, each to be taken once; what went wrong is collected and told together."""

    def __init__(self, state: dict[str, Tensor]):
        self.state, self.left, self.problems = state, set(state), list[str]()

    def has(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self.state)

    def indices(self, prefix: str) -> list[int]:
        """The numbers that follow ``prefix`` in the keys, sorted."""
        pattern = re.compile(re.escape(prefix) + r"(\d+)(\.|$)")
        return sorted({int(match[1]) for match in map(pattern.match, self.state) if match})

    def shape(self, key: str, sides: int) -> tuple[int, ...]:
        """Of a tensor on which the architecture depends, and which must have so many sides."""
        if key not in self.state:
            raise ValueError(f"state lacks {key!r}, from which the architecture is read")
        shape = tuple(self.state[key].shape)
        if len(shape) != sides:
            raise ValueError(f"state must hold {sides} sides of {key!r}, got the shape {brief(shape)}")
        return shape

    def take(self, key: str, like: Tensor) -> Tensor | None:
        """The tensor ``key``; None, and a problem, where it is missing or of another shape than ``like``."""
        self.left.discard(key)
        value = self.state.get(key)
        if value is None:
            self.problems.append(f"{key} is missing")
        elif value.shape != like.shape:
            self.problems.append(f"{key} has shape {tuple(value.shape)} where {tuple(like.shape)} is needed")
            return None
        return value

    @torch.no_grad()
    def copy(self, key: str, target: Tensor) -> None:
        """Copy the tensor ``key`` into ``target``."""
        value = self.take(key, target)
        if value is not None:
            target.copy_(value)

    def weight_norm(self, key: str, like: Tensor) -> Tensor | None:
        """g v/‖v‖ of a layer whose rows v have the lengths g; ``like`` is of its shape."""
        g, v = self.take(f"{key}.weight_g", like[:, :1]), self.take(f"{key}.weight_v", like)
        return None if g is None or v is None else g * v / v.norm(dim=1, keepdim=True)

    def finish(self) -> None:
        """ValueError with everything that did not match."""
        unknown = sorted(key for key in self.left if not INCIDENTAL.search(key))
        problems = self.problems + [f"{key} is not understood" for key in unknown]
        if problems:
            raise ValueError(f"state does not fit the architecture that was read from it: {listed(problems)}")


def check_settings(settings: Mapping[str, Any], conditional: bool) -> None:
    """ValueError naming every setting that is unknown, or has a value that is not converted."""
    known = {*UNRELATED, *FIXED, *DERIVED, *CHOSEN, *(("generator", "dequantizer") if conditional else ())}
    check_kinds(settings, {"act_fn": str, "coeff": float}, "settings: ")
    problems = [f"{key} is unknown" for key in settings if key not in known]
    for key, values in FIXED.items():
        if key in settings and settings[key] not in values:
            problems.append(f"{key} must be {' or '.join(map(repr, values))}, got {settings[key]!r}")
    table(settings, "discriminator")
    flow, dequantizer = table(settings, "generator", "flow"), table(settings, "dequantizer")
    if flow.get("type", "resflow") != "resflow":
        problems.append(f"generator must have a flow of type 'resflow', got {flow['type']!r}")
    if dequantizer.get("type", "uniform") != "uniform":
        problems.append(f"dequantizer must be of type 'uniform', got {dequantizer['type']!r}")
    if problems:
        raise ValueError(f"settings cannot be converted: {listed(problems)}")


def table(settings: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The table at ``path`` in the settings, empty where there is none; a ValueError where there is something else."""
    for i, key in enumerate(path):
        settings = settings.get(key, {})
        if not isinstance(settings, Mapping):
            raise ValueError(f"settings: {'.'.join(path[: i + 1])} must be a table, got {brief(repr(settings))}")
    return settings


def agree(settings: Mapping[str, Any], key: str, found: Any, path: str = "") -> None:
    """ValueError where a setting is given and is not what was ``found``."""
    given = settings.get(key, found)
    given = tuple(given) if isinstance(given, list) else given
    if given != found:
        raise ValueError(f"settings: {path}{key} is {brief(repr(given))}, but the tensors and the shape say {found!r}")


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
    agree(settings, "nblocks", "-".join(map(str, groups)))
    agree(settings, "intermediate_dim", width)
    agree(settings, "num_channels", shape[0])
    agree(settings, "image_size", shape[1])
    agree(settings, "squeeze", squeeze)
    agree(settings, "actnorm", actnorm)
    learned = any(key.endswith(".beta") for key in reader.state)
    activation, coeff = settings.get("act_fn", "swish" if learned else "sin"), settings.get("coeff", 0.98)
    return {"blocks": tuple(groups), "width": width, "norm": "rows", "coeff": float(coeff),
            "activation": activation, "squeeze": squeeze, "actnorm": actnorm}  # fmt: skip


def chains(reader: Reader, prefix: str) -> list[str]:
    """Prefixes of the groups of blocks."""
    return [f"{prefix}transforms.{i}.chain." for i in reader.indices(f"{prefix}transforms.")]


def first_block(reader: Reader, prefix: str) -> str:
    chain = chains(reader, prefix)[0]
    return next((f"{chain}{j}" for j in reader.indices(chain) if reader.has(f"{chain}{j}.nnet.")), f"{chain}0")


def read_chain(reader: Reader, prefix: str, flows) -> None:
    """Fill blocks and ActNorms in the order in which the data meet them."""
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
    """(x + bias) e^weight in the original."""
    weight, bias = reader.take(f"{source}.weight", target.log_scale), reader.take(f"{source}.bias", target.shift)
    if weight is not None and bias is not None:
        target.log_scale.copy_(weight)
        target.shift.copy_(bias * weight.exp())


def read_block(reader: Reader, source: str, target: ResidualBlock) -> None:
    """Activations and maps in turn; the first activation is missing where the block is not pre-activated."""
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


ENCODER = "discriminator.encoder.net."
HEAD = "discriminator.fc.linear"
STEPS = "discriminator.prior.flow.steps."


def code_arguments(
    reader: Reader, settings: Mapping[str, Any], shape: tuple[int, ...], squeeze: bool
) -> dict[str, Any]:
    """Arguments of the encoder and the prior, from tensors where they show there."""
    whole, encoder, prior = (table(settings, "discriminator", *path) for path in ((), ("encoder",), ("prior",)))
    for name, part in {"encoder": encoder, "prior": prior}.items():
        check_kinds(part, {"activation": str}, f"settings: discriminator.{name}.")
    tables = {
        "discriminator.": (whole, {"type": "gaussian"}, ("encoder", "in_dim", "dim", "prior")),
        "discriminator.encoder.": (
            encoder, {"type": "global_resnet_bn"}, ("levels", "in_planes", "hidden_planes", "out_planes", "activation"),
        ),
        "discriminator.prior.": (
            prior, {"type": "flow", "transform": "affine", "coupling_type": "mlp"},
            ("num_steps", "in_features", "hidden_features", "activation", "alpha"),  # the original never uses alpha
        ),
    }  # fmt: skip
    for path, (given, fixed, known) in tables.items():
        for key, value in given.items():
            if key not in {*fixed, *known}:
                raise ValueError(f"settings: {path}{brief(key)} is unknown, with the value {brief(repr(value))}")
            if value != fixed.get(key, value):
                raise ValueError(f"settings: {path}{key} must be {fixed[key]!r}, got {brief(repr(value))}")

    levels = reader.indices(f"{ENCODER}resnet")
    planes = tuple(reader.shape(f"{ENCODER}resnet{i}.main.0.conv1.weight", 4)[0] for i in levels)
    channels = reader.shape(f"{ENCODER}top.weight", 4)[0]
    outputs, features = reader.shape(f"{HEAD}.weight_v", 2)
    hidden, half = reader.shape(f"{STEPS}0.unit.coupling1_up.net.fc1.weight", 2)
    steps = len(reader.indices(STEPS))
    agree(whole, "in_dim", features, "discriminator.")
    agree(whole, "dim", outputs // 2, "discriminator.")
    agree(encoder, "levels", len(planes), "discriminator.encoder.")
    agree(encoder, "in_planes", shape[0] * (4 if squeeze else 1), "discriminator.encoder.")
    agree(encoder, "hidden_planes", planes, "discriminator.encoder.")
    agree(encoder, "out_planes", channels, "discriminator.encoder.")
    agree(prior, "num_steps", steps, "discriminator.prior.")
    agree(prior, "in_features", 2 * half, "discriminator.prior.")
    agree(prior, "hidden_features", hidden, "discriminator.prior.")
    return {"code_dim": outputs // 2, "encoder_planes": planes, "encoder_channels": channels,
            "encoder_activation": encoder.get("activation", "elu"), "prior_steps": steps, "prior_width": hidden,
            "prior_activation": prior.get("activation", "elu")}  # fmt: skip


@torch.no_grad()
def read_encoder(reader: Reader, flow: ConditionalResidualFlow) -> None:
    """Two blocks a level, then the 1×1 convolution and the head."""
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
    """Seven layers a step, under these names."""
    names = ("actnorm", "linear", "unit.coupling1_up", "unit.coupling1_dn", "unit.actnorm", "unit.coupling2_up",
             "unit.coupling2_dn")  # fmt: skip
    for i, layer in enumerate(flow.prior.flows):
        source = f"{STEPS}{i // len(names)}.{names[i % len(names)]}"
        if isinstance(layer, ActNorm):
            reader.copy(f"{source}.log_scale", layer.log_scale)
            reader.copy(f"{source}.bias", layer.shift)
        elif isinstance(layer, InvertibleLinear):
            read_linear(reader, source, layer)
        else:
            read_coupling(reader, source, layer.flow if isinstance(layer, Interleaved) else layer)


@torch.no_grad()
def read_linear(reader: Reader, source: str, target: InvertibleLinear) -> None:
    """W as P L U, computed in double precision."""
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
    """Three dense layers; the original's last gives shifts before scales, and has weight norm."""
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


def _some(names) -> str:
    """The first few of them."""
    names = [str(name) for name in names]
    return brief(", ".join(names[:5])) + (", …" if len(names) > 5 else "") if names else "nothing"
