"""The weights of a released score network, layer by layer.

The original keeps its layers in one list, ``all_modules.N``; :func:`published_order` walks ours in that order, and
:func:`leaves` says which of its tensors make which of our parameters.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from indm.messages import listed
from indm.nets.unet import Attention
from indm.published.convert.released import State
from indm.published.fir import StridedConv
from indm.published.ncsnpp import Block, Fourier, NCSNpp, Plain, ResidualInlet, SkipInlet


def published_order(net: NCSNpp) -> Iterator[nn.Module]:
    """The parts of ``net`` in the order of the original's list, including those without parameters."""
    if isinstance(net.features, Fourier):
        yield net.features
    yield from (net.level[0], net.level[2], net.stem)
    for i, (blocks, attentions) in enumerate(zip(net.encoder, net.encoder_attention, strict=True)):
        if i > 0:
            yield net.downs[i - 1]
            yield from net.inlets[i - 1 : i]
        for block, attention in zip(blocks, attentions, strict=True):
            yield from _present(block, attention)
    yield from (net.middle[0], net.middle_attention, net.middle[1])
    for i, (blocks, attention) in enumerate(zip(net.decoder, net.decoder_attention, strict=True)):
        yield from net.ups[i - 1 : i] if i > 0 else ()
        yield from _present(*blocks, attention)
        if net.output_pyramid == "sum":
            yield from (net.readouts[i].norm, net.readouts[i].conv)
    if net.output_pyramid == "none":
        yield from (net.readouts[0].norm, net.readouts[0].conv)


def _present(*parts: nn.Module) -> Iterator[nn.Module]:
    return (part for part in parts if not isinstance(part, nn.Identity))


# A parameter of a part: its name, the names of the original's that make it, and the function that does.
Leaf = tuple[str, tuple[str, ...], Callable[..., Tensor]]


def _same(value: Tensor) -> Tensor:
    return value


def _as_linear(*weights: Tensor) -> Tensor:
    """One linear map from the original's 1×1 maps, which are x ↦ x W + b over channels."""
    return torch.cat([weight.mT for weight in weights])


def _as_conv(weight: Tensor) -> Tensor:
    return weight.mT[:, :, None, None]


def _together(*biases: Tensor) -> Tensor:
    return torch.cat(biases)


def _layer(ours: str, theirs: str) -> list[Leaf]:
    return [(f"{ours}{kind}", (f"{theirs}{kind}",), _same) for kind in ("weight", "bias")]


def leaves(part: nn.Module, net: NCSNpp) -> list[Leaf]:
    """The parameters of a part of ``net``, and what they are made of in the original's layer."""
    if isinstance(part, Fourier):
        return [("omega", ("W",), _same)]
    if isinstance(part, Block):
        ours = ("norm1.", "conv1.", "level.", "norm2.", "conv2.")
        theirs = ("GroupNorm_0.", "Conv_0.", "Dense_0.", "GroupNorm_1.", "Conv_1.")
        block = [leaf for names in zip(ours, theirs, strict=True) for leaf in _layer(*names)]
        if isinstance(part.shortcut, nn.Identity):
            return block
        if net.resample == "block":
            return block + _layer("shortcut.", "Conv_2.")
        return [*block, ("shortcut.weight", ("NIN_0.W",), _as_conv), ("shortcut.bias", ("NIN_0.b",), _same)]
    if isinstance(part, Attention):
        return [
            *_layer("norm.", "GroupNorm_0."),
            ("query_key_value.weight", ("NIN_0.W", "NIN_1.W", "NIN_2.W"), _as_linear),
            ("query_key_value.bias", ("NIN_0.b", "NIN_1.b", "NIN_2.b"), _together),
            ("project.weight", ("NIN_3.W",), _as_linear),
            ("project.bias", ("NIN_3.b",), _same),
        ]
    if isinstance(part, ResidualInlet):
        return _layer("down.conv.", "Conv2d_0." if part.down.taps else "Conv_0.")
    if isinstance(part, SkipInlet):
        return _layer("conv.", "Conv.")
    if isinstance(part, Plain):
        weighted = {StridedConv: "layer.conv.", nn.Sequential: "layer.1."}.get(type(part.layer))
        return _layer(weighted, "Conv_0.") if weighted else []
    return _layer("", "")


def load_published(net: NCSNpp, state: State) -> None:
    """Load the original's ``state`` (names without "module.") into ``net``.

    Raises:
        ValueError: listing every tensor that is missing, left over, or of another shape.
    """
    ours = net.state_dict()
    names = {module: f"{name}." for name, module in net.named_modules()}
    new, used, problems = {}, {"sigmas"}, []
    for position, part in enumerate(published_order(net)):
        for leaf, sources, join in leaves(part, net):
            keys = [f"all_modules.{position}.{source}" for source in sources]
            used.update(keys)
            missing = [f"{key} is missing" for key in keys if key not in state]
            problems += missing
            if missing:
                continue
            name = names[part] + leaf
            try:
                new[name] = join(*(state[key].float() for key in keys))
                fits = new[name].shape == ours[name].shape
            except (RuntimeError, IndexError):
                fits = False
            if not fits:
                shapes = ", ".join(str(tuple(state[key].shape)) for key in keys)
                problems.append(f"{' and '.join(keys)} of shape {shapes} cannot be {name} {tuple(ours[name].shape)}")
    problems += [f"{key} is left over" for key in state if key not in used]
    if problems:
        raise ValueError(f"the checkpoint does not match the network: {listed(problems)}")
    net.load_state_dict(new)
