"""Released score networks: their architecture, as the tensors show it, and their weights, layer by layer.

What the tensors do not show is taken from what the caller gives, then from a recipe, then from the published settings.
The original keeps its layers in one list, ``all_modules.N``; :func:`published_order` walks ours in that order, and
:func:`tensors_of` says which of its tensors become which of ours.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from indm.checks import brief, check_arguments, require
from indm.nets.unet import Attention, ResBlock
from indm.published.checkpoint import Reader, StateDict, check_agrees
from indm.published.ncsnpp import Fourier, Inlet, NCSNpp

Tables = dict[str, dict[str, Any]]  # keys by table
# What tensors do not show, as published: DDPM++ with VP and sub-VP, NCSN++ with VE.
DDPMPP = {"fir": (), "rescale": True, "centered": True, "scale_by_sigma": False, "dropout": 0.1}
NCSNPP = DDPMPP | {"fir": (1, 3, 3, 1), "centered": False, "scale_by_sigma": True}
ASSUMED = {"vp": DDPMPP, "subvp": DDPMPP, "ve": NCSNPP}
FOREIGN = "the checkpoint's layers are not those of DDPM++ or NCSN++"


@dataclass(frozen=True)
class Architecture:
    """Tables of an SDE and a network, the event shape, and where the network's arguments are from."""

    sde: dict
    net: dict
    shape: tuple[int, int, int]
    inferred: dict  # the part of net that the tensors show
    assumed: dict  # the part of net that is taken from a recipe or as published


def architecture(state: StateDict, given: Tables, fallback: Tables, size: int | None) -> Architecture:
    """The architecture of a network for images of side ``size``: by the tensors, then by what is ``given``, then by a
    recipe, then as published; a ValueError where what is given or the recipe contradicts the tensors."""
    chosen, default = (dict(tables.get("net", {})) for tables in (given, fallback))
    for net in (chosen, default):
        name = net.pop("name", "ncsnpp")
        require(name == "ncsnpp", "net.name", name, "ncsnpp, whose checkpoint this is")
        check_arguments(NCSNpp, net, table="net", what="net 'ncsnpp'", given_later=("shape",))
    sde = _sde_table(given, fallback)
    inferred, attends, image_channels = infer(state)
    if size is None:
        raise ValueError("data.size must be given, or a recipe: the tensors do not tell the images' side")
    heights = [size // 2**level for level in range(len(attends))]
    inferred["attention"] = tuple(h for h, attention in zip(heights, attends, strict=True) if attention)
    said = default | chosen
    if "attention" in said:
        said["attention"] = tuple(h for h in heights if h in said["attention"])  # no level has another height
    sigmas = _sigmas(state["sigmas"]) if "sigmas" in state and sde["name"] == "ve" else {}
    check_agrees(inferred | _prefixed("sde.", sigmas), said | _prefixed("sde.", sde))
    assumed = dict(ASSUMED[sde["name"]])
    if not assumed["fir"] and any(key.endswith(".Conv2d_0.weight") for key in state):
        assumed["fir"] = NCSNPP["fir"]
    assumed |= {key: value for key, value in default.items() if key in assumed}
    assumed = {key: value for key, value in assumed.items() if key not in {*chosen, *inferred}}
    sde = sigmas | sde
    return Architecture(sde, {**assumed, **inferred, **chosen}, (image_channels, size, size), inferred, assumed)


def _sde_table(given: Tables, fallback: Tables) -> dict:
    """The SDE that is given, completed by the recipe's where both are of one kind."""
    sde, default = given.get("sde", {}), fallback.get("sde", {})
    if sde.get("name", default.get("name")) == default.get("name"):
        sde = default | sde
    is_known = sde.get("name") in tuple(ASSUMED)
    require(is_known, "sde", sde.get("name"), "vp, subvp or ve, or a recipe: the tensors do not tell which it was")
    return sde


def _sigmas(deviations: Tensor) -> dict[str, float]:
    """The least and the largest of the original's noise levels, which it keeps in falling order."""
    if deviations.ndim != 1 or len(deviations) < 2 or deviations.is_complex():
        shape = brief(tuple(deviations.shape))
        raise ValueError(f"the checkpoint's sigmas must be two deviations or more, got a tensor of shape {shape}")
    return {"sigma_min": _rounded(deviations[-1]), "sigma_max": _rounded(deviations[0])}


def infer(state: StateDict) -> tuple[dict, list[bool], int]:
    """Arguments of :class:`NCSNpp`, attention at each level, and image channels, as the tensors show them."""
    layers = _layers(state)
    kinds = [_kind(layers.get(n, {})) for n in range(max(layers) + 1)]
    try:
        return _infer(layers, kinds)
    except (ValueError, LookupError, ArithmeticError) as error:
        raise ValueError(f"{FOREIGN}: {brief(', '.join(kinds))}") from error


def _layers(state: StateDict) -> dict[int, StateDict]:
    """The tensors of each layer of the original's list, by their names in it."""
    layers: dict[int, StateDict] = {}
    for key, value in state.items():
        match = re.fullmatch(r"all_modules\.(\d+)\.(.+)", key)
        if match:
            layers.setdefault(int(match[1]), {})[match[2]] = value
    if not layers:
        raise ValueError(
            "the checkpoint holds no score network (no tensors all_modules.N); give a flow as the second argument"
        )
    if max(layers) > 2 * len(layers):  # a layer without tensors has others on both sides
        raise ValueError(f"{FOREIGN}: it holds {len(layers)} of them, and they are numbered up to {brief(max(layers))}")
    return layers


def _infer(layers: dict[int, StateDict], kinds: list[str]) -> tuple[dict, list[bool], int]:
    """:func:`infer` from the layers and the kind of each."""
    stem = kinds.index("conv")
    runs, between = _runs(kinds, stem + 1)
    levels = (len(runs) + 1) // 2
    first = [layers[run[0]] for run in runs[:levels]]
    channels, image_channels = layers[stem]["weight"].shape[:2]
    counts = [[kinds[n] for n in run].count("block") for run in runs]
    arguments = {
        "channels": channels,
        "multipliers": tuple(_outputs(block) // channels for block in first),
        "blocks": counts[0] if levels > 1 else (counts[0] - 3) // 2,
        "embedding": "fourier" if kinds[0] == "fourier" else "positional",
    }
    if levels > 1:
        down, *inlet = (kinds[n] for n in between[0])
        if down != "resampling" or inlet not in ([], ["filtered"], ["strided"]):
            raise ValueError("levels are joined by other layers than a residual block and a strided convolution")
        arguments |= {"input_pyramid": "residual" if inlet else "none"} | ({"fir": ()} if inlet == ["strided"] else {})
    attention = [[kinds[n] for n in run].count("attention") for run in runs[:levels]]
    return arguments, [n > (level == levels - 1) for level, n in enumerate(attention)], image_channels


def _runs(kinds: list[str], start: int) -> tuple[list[list[int]], list[list[int]]]:
    """Positions from ``start`` on: runs of blocks and attention, and what lies between each run and the next."""
    runs: list[list[int]] = []
    between: list[list[int]] = [[]]
    for n in range(start, len(kinds)):
        if kinds[n] not in ("block", "attention"):
            between[-1].append(n)
        elif runs and not between[-1]:
            runs[-1].append(n)
        else:
            runs.append([n])
            between.append([])
    return runs, between[1:]


def _kind(layer: StateDict) -> str:
    """The kind of a layer in the original's list, by the names of its tensors; "empty" for a layer without any."""
    names = {key.rpartition(".")[0] for key in layer}
    if names & {"Dense_0", "Conv_1", "GroupNorm_1"}:
        inputs = _width(layer, "GroupNorm_0.weight", "GroupNorm_0.bias")
        return "resampling" if "Conv_2" in names and inputs == _outputs(layer) else "block"
    if names & {"NIN_1", "NIN_2", "NIN_3"}:
        return "attention"
    for mark, kind in {"Conv2d_0": "filtered", "Conv_0": "strided"}.items():
        if mark in names:
            return kind
    if "W" in layer:
        return "fourier"
    if "weight" in layer:
        return {1: "norm", 2: "linear", 4: "conv"}.get(layer["weight"].ndim, "unknown")
    return "unknown" if layer else "empty"


def _outputs(block: StateDict) -> int:
    return _width(block, "Conv_1.bias", "GroupNorm_1.weight", "GroupNorm_1.bias", "Dense_0.bias")


def _width(layer: StateDict, *names: str) -> int:
    """Length of the first tensor that is there, of names with one entry for each channel; 0 where there is none."""
    return next((len(layer[name]) for name in names if name in layer and layer[name].ndim > 0), 0)


def _prefixed(prefix: str, table: dict) -> dict:
    return {f"{prefix}{key}": value for key, value in table.items()}


def _rounded(value: Tensor) -> float:
    """A number without the noise of exp(log(·))."""
    return float(f"{value.item():.9g}")


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
    yield from (net.norm, net.output)


def _present(*parts: nn.Module) -> Iterator[nn.Module]:
    return (part for part in parts if not isinstance(part, nn.Identity))


def tensors_of(part: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a part of a network, by their names in the original's layer that they are copied from."""
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
