"""The architecture of a released checkpoint."""

import math
import re
from dataclasses import dataclass

from torch import Tensor

from indm.config.recipes import Recipe
from indm.convert.released import State
from indm.convert.settings import NET_KINDS, SDE_KINDS, check_finite_kinds
from indm.messages import brief, listed

SIDES = {"cifar10": 32, "celeba": 64, "fashion-mnist": 28, "digits": 8}


def _width(layer: State, *names: str) -> int:
    """Length of the first tensor there of those names, which is one for each channel; 0 where there is none."""
    return next((len(layer[name]) for name in names if name in layer and layer[name].ndim > 0), 0)


def _inputs(block: State) -> int:
    return _width(block, "GroupNorm_0.weight", "GroupNorm_0.bias")


def _outputs(block: State) -> int:
    return _width(block, "Conv_1.bias", "GroupNorm_1.weight", "GroupNorm_1.bias", "Dense_0.bias")


def _kind(layer: State) -> str:
    """What a layer of the original's list is, by the names of its tensors; "empty" for one without any."""
    names = {key.rpartition(".")[0] for key in layer}
    if names & {"Dense_0", "Conv_1", "GroupNorm_1"}:
        return "resampling" if "Conv_2" in names and _inputs(layer) == _outputs(layer) else "block"
    if names & {"NIN_1", "NIN_2", "NIN_3"}:
        return "attention"
    for mark, kind in {"Conv2d_0": "filtered", "Conv_0": "strided", "Conv": "skip"}.items():
        if mark in names:
            return kind
    if "W" in layer:
        return "fourier"
    if "weight" in layer:
        return {1: "norm", 2: "linear", 4: "conv"}.get(layer["weight"].ndim, "unknown")
    return "unknown" if layer else "empty"


def infer(state: State) -> tuple[dict, list[bool], int]:
    """What the tensors tell of a network: arguments of :class:`NCSNpp`, attention at each level, image channels.

    Between two resamplings lies one level on the way down or up; at the lowest both ways and the middle are one run.
    """
    layers: dict[int, State] = {}
    for key, value in state.items():
        match = re.fullmatch(r"all_modules\.(\d+)\.(.+)", key)
        if match:
            layers.setdefault(int(match[1]), {})[match[2]] = value
    if not layers:
        raise ValueError(
            "the checkpoint holds no score network (no tensors all_modules.N); that of a flow is the second argument"
        )
    if max(layers) > 2 * len(layers):  # a layer without tensors has others on both sides
        raise ValueError(
            f"the checkpoint's layers are not those of DDPM++ or NCSN++: it holds {len(layers)} of them, and they are "
            f"numbered up to {brief(max(layers))}"
        )
    kinds = [_kind(layers.get(n, {})) for n in range(max(layers) + 1)]
    try:
        stem = kinds.index("conv")
        runs_of, between = _runs(kinds, stem + 1)
        levels = (len(runs_of) + 1) // 2
        first = [layers[run[0]] for run in runs_of[:levels]]
        channels, image_channels = layers[stem]["weight"].shape[:2]
        counts = [[kinds[n] for n in run].count("block") for run in runs_of]
        found = {
            "channels": channels,
            "multipliers": tuple(_outputs(block) // channels for block in first),
            "blocks": counts[0] if levels > 1 else (counts[0] - 3) // 2,
            "embedding": "fourier" if kinds[0] == "fourier" else "positional",
        }
        attention = [[kinds[n] for n in run].count("attention") for run in runs_of[:levels]]
        if levels > 1:
            found["output_pyramid"] = "sum" if "norm" in kinds[:-2] else "none"
            down, *inlet = [kinds[n] for n in between[0]]
            found["resample"] = {"resampling": "block", "strided": "conv", "empty": "plain"}[down]
            doubled = _inputs(first[1]) == 2 * _outputs(first[0])
            pyramids = {"filtered": "residual", "strided": "residual", "skip": "cat" if doubled else "sum"}
            found["input_pyramid"] = pyramids[inlet[0]] if inlet else "none"
            if found["input_pyramid"] == "residual" and inlet[0] == "strided":
                found["fir"] = ()
        return found, [n > (level == levels - 1) for level, n in enumerate(attention)], image_channels
    except (ValueError, LookupError, ArithmeticError) as error:
        shown = brief(", ".join(kinds))
        raise ValueError(f"the checkpoint's layers are not those of DDPM++ or NCSN++: {shown}") from error


def _runs(kinds: list[str], start: int) -> tuple[list[list[int]], list[list[int]]]:
    """Positions from ``start`` on: runs of blocks and attention, and what lies between each run and the next."""
    runs_of: list[list[int]] = []
    between: list[list[int]] = [[]]
    for n in range(start, len(kinds)):
        if kinds[n] not in ("block", "attention"):
            between[-1].append(n)
        elif runs_of and not between[-1]:
            runs_of[-1].append(n)
        else:
            runs_of.append([n])
            between.append([])
    return runs_of, between[1:]


# What tensors cannot tell, as published: DDPM++ with VP and sub-VP, NCSN++ with VE.
DDPMPP = {"fir": (), "rescale": True, "centered": True, "scale_by_sigma": False, "dropout": 0.1}
NCSNPP = DDPMPP | {"fir": (1, 3, 3, 1), "centered": False, "scale_by_sigma": True}
ASSUMED = {"vp": DDPMPP, "subvp": DDPMPP, "ve": NCSNPP}
TABLES = ("data", "sde", "net", "evaluate")  # of a recipe, that may be changed


@dataclass(frozen=True)
class Architecture:
    """Tables of an SDE and a network, the event shape, and where the network's arguments are from."""

    sde: dict
    net: dict
    shape: tuple[int, int, int]
    inferred: dict
    assumed: dict


def architecture(state: State, given: Recipe, fallback: Recipe, size: int | None) -> Architecture:
    """Which network the tensors are of: what they tell, then what is ``given``, then a recipe's, then as published.

    Args:
        given: tables "sde", "net", "image", which the tensors must not contradict.
        fallback: tables of a recipe, which they may.
        size: side of the images.

    Raises:
        ValueError: what is given contradicts the tensors, by its names; or what neither tells is missing.
    """
    for tables in (given, fallback):
        check_finite_kinds(tables.get("net", {}), NET_KINDS, "net.")
        check_finite_kinds(tables.get("sde", {}), SDE_KINDS, "sde.")
    sde = given.get("sde", {})
    if sde.get("name", fallback.get("sde", {}).get("name")) == fallback.get("sde", {}).get("name"):
        sde = fallback.get("sde", {}) | sde
    if sde.get("name") not in ASSUMED:
        raise ValueError(
            f"--sde must be given (vp, subvp or ve), or --recipe or --settings, got {sde.get('name')!r}: the tensors "
            "do not tell which it was"
        )
    if given.get("net", {}).get("name", "ncsnpp") != "ncsnpp":
        raise ValueError(f"net.name must be ncsnpp, whose checkpoint this is, got {given['net']['name']!r}")
    inferred, attends, image_channels = infer(state)
    if size is None:
        raise ValueError(
            "--image-size must be given, or --recipe or --settings: the tensors do not tell the images' side"
        )
    heights = [size // 2**level for level in range(len(attends))]
    inferred["attention"] = tuple(h for h, attention in zip(heights, attends, strict=True) if attention)
    deviations = state.get("sigmas")
    sigmas = {}
    if deviations is not None:
        if deviations.ndim != 1 or len(deviations) < 2 or deviations.is_complex():
            shape = brief(tuple(deviations.shape))
            raise ValueError(f"the checkpoint's sigmas must be two deviations or more, got a tensor of shape {shape}")
        table = (_short(deviations[-1]), _short(deviations[0]), len(deviations))
        inferred["sigma_table"] = table
        sigmas = dict(zip(("sigma_min", "sigma_max"), table, strict=False)) if sde["name"] == "ve" else {}
    known = dict(given.get("net", {}))
    if "attention" in known:
        known["attention"] = tuple(h for h in heights if h in known["attention"])  # others are at no level
    told = inferred | {f"sde.{key}": value for key, value in sigmas.items()}
    said = known | {f"sde.{key}": value for key, value in given.get("sde", {}).items()}
    said |= {"image channels": given.get("image", {}).get("channels", image_channels)}
    told |= {"image channels": image_channels}
    contradicted = [f"{k} is {told[k]}, not {v}" for k, v in said.items() if k in told and not _alike(told[k], v)]
    if contradicted:
        raise ValueError(f"the tensors tell otherwise than what is given: {listed(contradicted)}")
    assumed = dict(ASSUMED[sde["name"]])
    if not assumed["fir"] and any(key.endswith(".Conv2d_0.weight") for key in state):
        assumed["fir"] = NCSNPP["fir"]
    assumed |= {key: value for key, value in fallback.get("net", {}).items() if key in assumed}
    assumed = {key: value for key, value in assumed.items() if key not in {**known, **inferred}}
    net = {**assumed, **inferred, **known}
    if net["embedding"] == "fourier" or not net["scale_by_sigma"]:
        net.pop("sigma_table", None)  # not in use
    sde = sde | {key: value for key, value in sigmas.items() if not _alike(value, sde.get(key))}
    return Architecture(sde, net, (image_channels, size, size), inferred, assumed)


def _short(value: Tensor) -> float:
    """A number without the noise of exp(log(·))."""
    return float(f"{value.item():.9g}")


def _alike(a: object, b: object) -> bool:
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-6)
    return a == b
