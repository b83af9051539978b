"""Weights of released score networks, layer by layer.

The original keeps its layers in one list, ``all_modules.N``. :func:`published_order` lists ours in
that order, and :func:`tensors_of` gives the original's names of their tensors.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from indm.nets.unet import Attention, ResBlock
from indm.published.checkpoint import Reader, StateDict
from indm.published.ncsnpp import Fourier, Inlet, NCSNpp


def published_order(net: NCSNpp) -> Iterator[nn.Module]:
    """The parts of ``net`` in the order of the original's list, also those without parameters."""
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
    yield from (net.norm, net.output)


def _present(*parts: nn.Module) -> Iterator[nn.Module]:
    return (part for part in parts if not isinstance(part, nn.Identity))


def tensors_of(part: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a part of a network, with their names in the original's layer."""
    if isinstance(part, Fourier):
        return [("W", part.omega)]
    if isinstance(part, ResBlock):
        layers = {"GroupNorm_0.": part.norm1, "Conv_0.": part.conv1, "Dense_0.": part.level}
        layers |= {"GroupNorm_1.": part.norm2, "Conv_1.": part.conv2}
        layers |= {} if isinstance(part.shortcut, nn.Identity) else {"Conv_2.": part.shortcut}
        return [pair for name, layer in layers.items() for pair in _of_layer(name, layer)]
    if isinstance(part, Attention):  # 1×1 maps, which are x ↦ x W + b over channels in the original
        weights = [*part.query_key_value.weight.chunk(3), part.project.weight]
        biases = [*part.query_key_value.bias.chunk(3), part.project.bias]
        maps = [(f"NIN_{i}.W", weight.mT) for i, weight in enumerate(weights)]
        maps += [(f"NIN_{i}.b", bias) for i, bias in enumerate(biases)]
        return _of_layer("GroupNorm_0.", part.norm) + maps
    if isinstance(part, Inlet):
        return _of_layer("Conv2d_0." if part.down.taps else "Conv_0.", part.down.conv)
    return _of_layer("", part)


def _of_layer(name: str, layer: Any) -> list[tuple[str, Tensor]]:
    return [(f"{name}weight", layer.weight), (f"{name}bias", layer.bias)]


@torch.no_grad()
def load_published(net: NCSNpp, state: StateDict) -> None:
    """Load the original's ``state`` (names without "module.") into ``net``.

    Raises:
        ValueError: listing every tensor that is missing, not understood, or of another shape.
    """
    reader = Reader(state)
    for position, part in enumerate(published_order(net)):
        for name, target in tensors_of(part):
            reader.copy(f"all_modules.{position}.{name}", target)
    reader.finish()
