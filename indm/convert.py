"""Checkpoints in the layout of the paper's code, which is that of score_sde_pytorch, as run folders of ours.

The original keeps its layers in one list, ``all_modules.N``; :func:`published_order` walks ours in that order. What
the tensors cannot tell is taken, in this order, from what the caller gives, a recipe, or the published settings.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from indm import reading, recipes, runs, writing
from indm.data import check_data
from indm.flows import Flow, Identity
from indm.model import INDM, build, count_parameters, nearest
from indm.nets import NCSNpp
from indm.nets.fir import StridedConv
from indm.nets.ncsnpp import Block, Fourier, Plain, ResidualInlet, SkipInlet
from indm.nets.unet import Attention
from indm.recipes import Recipe
from indm.scaling import Scaling
from indm.score import PublishedScore

State = dict[str, Tensor]
Weights = Literal["ema", "model"]
# Last parts of the names under which the released files keep what is no trainable parameter. The one-dimensional
# ``all_modules.0.W`` is one too: the frozen frequencies of the Fourier embedding.
BUFFERS = {
    "sigmas", "scale", "last_n_samples", "last_firmom", "last_secmom",
    "running_mean", "running_var", "num_batches_tracked",
}  # fmt: skip
SIDES = {"cifar10": 32, "celeba": 64, "fashion-mnist": 28, "digits": 8}


class Unused:
    """What stands for a number of NumPy's: optimizer states hold them (learning rates), and nothing here needs one."""

    def __init__(self, *_):
        pass

    def __setstate__(self, _):
        pass


NUMPY_SCALARS = dict.fromkeys(("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), Unused)


# ── Files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Checkpoint:
    """What a released file holds: the last weights, their moving average in parameter order, its decay, the step."""

    path: Path
    state: State
    shadow: list[Tensor] | None
    decay: float | None
    step: int | None

    def weights(self, which: Weights) -> State:
        """The state with the trainable parameters' last values ("model") or their moving averages ("ema").

        Raises:
            ValueError: the file holds no averages, or averages of another number or shape than the parameters.
        """
        if which == "model":
            return self.state
        if self.shadow is None:
            raise ValueError(f'{self.path} holds no moving average; weights "model" takes the last ones')
        trained = [key for key, value in self.state.items() if _is_trainable(key, value)]
        pairs = list(zip(trained, self.shadow, strict=False))
        differing = [
            f"{key} {tuple(self.state[key].shape)} against {tuple(average.shape)}"
            for key, average in pairs
            if self.state[key].shape != average.shape
        ]
        if len(trained) != len(self.shadow) or differing:
            raise ValueError(
                f"the {len(self.shadow)} moving averages of {self.path} do not follow its {len(trained)} parameters: "
                f"{reading.listed(differing) or 'shapes agree as far as they go'}"
            )
        return self.state | dict(pairs)


def _is_trainable(key: str, value: Tensor) -> bool:
    return key.rpartition(".")[2] not in BUFFERS and not (key == "all_modules.0.W" and value.ndim == 1)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a released file, without running any code that is pickled in it.

    Raises:
        ValueError: the file is missing, no checkpoint, or not in the released layout.
    """
    path = Path(path)
    try:
        content = reading.checkpoint(path, NUMPY_SCALARS)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # damaged files surface as almost anything
        reason = reading.reason(error) if isinstance(error, ValueError) else "damaged, or of another kind"
        raise ValueError(f"{path} cannot be read as a checkpoint of torch: {reason}") from error
    if not (isinstance(content, dict) and _is_state(content.get("model"))):
        found = reading.brief(", ".join(map(_shown, content))) if isinstance(content, dict) else _shown(content)
        raise ValueError(f'{path} must hold a dict whose "model" is a dict of tensors, as released; it holds {found}')
    state, average, step = content["model"], content.get("ema"), content.get("step")
    average = {} if average is None else average
    shadow = average.get("shadow_params") if isinstance(average, dict) else ()
    if shadow is not None and not (isinstance(shadow, list) and all(isinstance(value, Tensor) for value in shadow)):
        raise ValueError(f'{path} must hold a list of tensors as "shadow_params" of its "ema", as released')
    decay = average.get("decay")
    if decay is not None and not (type(decay) in (int, float) and 0 <= decay <= 1):
        raise ValueError(f'{path} must hold a number from 0 to 1 as "decay" of its "ema", got {_shown(decay)}')
    if step is not None and not (type(step) is int and step >= 0):
        raise ValueError(f'{path} must hold a whole number, 0 or more, as "step", got {_shown(step)}')
    state = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        for tensors in (state, {f"average {i}": value for i, value in enumerate(shadow or ())}):
            reading.check_held(tensors, path.stat().st_size)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a checkpoint of torch: {error}") from error
    return Checkpoint(path, state, shadow, decay, step)


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _shown(value: object) -> str:
    """A value of a checkpoint for a message; of most only the type, as they may be of any depth and length."""
    return reading.brief(value) if isinstance(value, str | int | float) else type(value).__name__


# ── The original's settings in our words ────────────────────────────────────────────────────────────────────────────

SDES = {"vpsde": "vp", "subvpsde": "subvp", "vesde": "ve"}
SAME = {  # settings that are an argument of ours under another name
    "nf": ("net", "channels"), "ch_mult": ("net", "multipliers"), "num_res_blocks": ("net", "blocks"),
    "dropout": ("net", "dropout"), "embedding_type": ("net", "embedding"), "fourier_scale": ("net", "fourier_scale"),
    "skip_rescale": ("net", "rescale"), "centered": ("net", "centered"), "scale_by_sigma": ("net", "scale_by_sigma"),
    "ema_rate": ("train", "ema"),
}  # fmt: skip
ONLY = {  # settings of which the network knows one value
    "name": ("ncsnpp",), "nonlinearity": ("swish", "silu"), "normalization": ("groupnorm",), "conv_size": (3,),
    "attention_type": ("ddpm",), "conditional": (True,), "auxiliary_resblock": (True,), "fourier_feature": (False,),
    "continuous": (True,),
}  # fmt: skip
CHOICES = {
    "resblock_type": {"biggan": "block", "ddpm": "conv"},
    "progressive_input": {"none": "none", "residual": "residual", "input_skip": "sum"},
    "progressive": {"none": "none", "output_skip": "sum"},
    "progressive_combine": {"sum": "sum", "cat": "cat"},
}
SECOND = {  # settings that say more about another one
    "fir_kernel": "fir", "attention": "attn_resolutions", "resamp_with_conv": "resblock_type",
    "progressive_combine": "progressive_input",
    **dict.fromkeys(("beta_min", "beta_max", "sigma_min", "sigma_max", "num_scales"), "sde"),
}  # fmt: skip
OTHER = {"sde", "image_size", "num_channels", "fir", "attn_resolutions"}
INERT = {"init_scale", "note"}  # the weights at the start; a remark
KNOWN = {*SAME, *ONLY, *CHOICES, *SECOND, *OTHER, *INERT}
KINDS = {
    name: kind
    for kind, names in {
        int: "nf num_res_blocks image_size num_channels num_scales",
        float: "dropout fourier_scale beta_min beta_max sigma_min sigma_max ema_rate",
        bool: "fir attention resamp_with_conv skip_rescale centered scale_by_sigma",
        str: f"sde embedding_type {' '.join(CHOICES)}",
        tuple[int, ...]: "ch_mult attn_resolutions",
        tuple[float, ...]: "fir_kernel",
    }.items()
    for name in names.split()
}
SDE_KINDS = {"name": str} | dict.fromkeys(("beta_min", "beta_max", "sigma_min", "sigma_max", "eps"), float)
NET_KINDS = {SAME[name][1]: KINDS[name] for name in SAME if SAME[name][0] == "net"} | {
    "attention": tuple[int, ...], "fir": tuple[float, ...], "sigma_table": tuple[float, ...],
    **dict.fromkeys(("resample", "input_pyramid", "output_pyramid"), str),
}  # fmt: skip


def tables_of(settings: Mapping[str, object]) -> Recipe:
    """Settings of the original's configuration, in one flat mapping, as our tables "sde", "net", "image" and "train".

    Only what is given there is in the tables; "image" has ``size`` and ``channels``.

    Raises:
        ValueError: a setting that is unknown or has a value that the network cannot take, by its name.
    """
    settings = {key: value.lower() if isinstance(value, str) else value for key, value in settings.items()}
    _check_kinds(settings, KINDS, "settings: ")
    for key, value in settings.items():
        if key not in KNOWN:
            raise ValueError(f"settings: {reading.brief(repr(key))} is no known setting{nearest(key, sorted(KNOWN))}")
        if key in ONLY and value not in ONLY[key]:
            raise ValueError(
                f"settings: {key} must be {' or '.join(map(repr, ONLY[key]))}, got {reading.brief(repr(value))}"
            )
        if key in CHOICES and value not in CHOICES[key]:
            raise ValueError(f"settings: {key} must be {' or '.join(map(repr, CHOICES[key]))}, got {value!r}")
        if key in SECOND and SECOND[key] not in settings:
            raise ValueError(f"settings: {key} needs {SECOND[key]} beside it")
    tables: Recipe = {"sde": {}, "net": {}, "image": {}, "train": {}}
    for key, (table, argument) in SAME.items():
        if key in settings:
            tables[table][argument] = settings[key]
    net = tables["net"]
    if "fir" in settings:
        net["fir"] = settings.get("fir_kernel", (1, 3, 3, 1)) if settings["fir"] else ()
    if "attn_resolutions" in settings:
        net["attention"] = settings["attn_resolutions"] if settings.get("attention", True) else ()
    if "resblock_type" in settings:
        net["resample"] = CHOICES["resblock_type"][settings["resblock_type"]]
        if net["resample"] == "conv" and not settings.get("resamp_with_conv", True):
            net["resample"] = "plain"
        if net["resample"] == "conv" and net.get("fir"):
            raise ValueError("settings: fir must be false where resblock_type is 'ddpm' and resamp_with_conv is true")
    if "progressive_input" in settings:
        net["input_pyramid"] = CHOICES["progressive_input"][settings["progressive_input"]]
        if net["input_pyramid"] == "sum":
            net["input_pyramid"] = settings.get("progressive_combine", "sum")
    if "progressive" in settings:
        net["output_pyramid"] = CHOICES["progressive"][settings["progressive"]]
    for key, name in (("image_size", "size"), ("num_channels", "channels")):
        if key in settings:
            tables["image"][name] = settings[key]
    tables["sde"] = _sde_table(settings)
    if {"sigma_min", "sigma_max", "num_scales"} <= set(settings):
        net["sigma_table"] = tuple(settings[key] for key in ("sigma_min", "sigma_max", "num_scales"))
    return tables


def _check_kinds(content: Mapping[str, object], kinds: Mapping[str, object], where: str) -> None:
    """ValueError naming, after ``where``, a value that is of another type than its own, or no finite number."""
    recipes.check_kinds(content, kinds, where)
    for key, value in content.items():
        numbers = value if isinstance(value, list | tuple) else (value,)
        if key in kinds and not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise ValueError(f"{where}{key} must be finite, got {reading.brief(repr(value))}")


def _sde_table(settings: Mapping[str, object]) -> dict:
    """The SDE's table; of the rates and deviations those that its kind has."""
    if "sde" not in settings:
        return {}
    if settings["sde"] not in (*SDES, *SDES.values()):
        raise ValueError(f"settings: sde must be {', '.join(SDES)}, got {settings['sde']!r}")
    name = SDES.get(settings["sde"], settings["sde"])
    keys = ("sigma_min", "sigma_max") if name == "ve" else ("beta_min", "beta_max")
    return {"name": name} | {key: settings[key] for key in keys if key in settings}


def read_settings(path: str | Path) -> dict[str, object]:
    """The settings in a JSON file."""
    try:
        return reading.json_object(Path(path))
    except ValueError as error:
        raise ValueError(f"settings {error}") from None


# ── The score network ───────────────────────────────────────────────────────────────────────────────────────────────


def published_order(net: NCSNpp) -> Iterator[nn.Module]:
    """The parts of ``net`` in the order of the original's list; one without parameters has its place there too."""
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


# One parameter of a part: its name, those of the original that make it, and how they do.
Leaf = tuple[str, tuple[str, ...], Callable[..., Tensor]]


def _same(value: Tensor) -> Tensor:
    return value


def _as_linear(*weights: Tensor) -> Tensor:
    """The original's 1×1 maps are x ↦ x W + b over channels: one linear map of all."""
    return torch.cat([weight.mT for weight in weights])


def _as_conv(weight: Tensor) -> Tensor:
    return weight.mT[:, :, None, None]


def _together(*biases: Tensor) -> Tensor:
    return torch.cat(biases)


def _layer(ours: str, theirs: str) -> list[Leaf]:
    return [(f"{ours}{kind}", (f"{theirs}{kind}",), _same) for kind in ("weight", "bias")]


def leaves(part: nn.Module, net: NCSNpp) -> list[Leaf]:
    """The parameters of a part of ``net``, from those of the original's layer in its place."""
    if isinstance(part, Fourier):
        return [("omega", ("W",), _same)]
    if isinstance(part, Block):
        ours = ("norm1.", "conv1.", "level.", "norm2.", "conv2.")
        theirs = ("GroupNorm_0.", "Conv_0.", "Dense_0.", "GroupNorm_1.", "Conv_1.")
        found = [leaf for names in zip(ours, theirs, strict=True) for leaf in _layer(*names)]
        if isinstance(part.shortcut, nn.Identity):
            return found
        if net.resample == "block":
            return found + _layer("shortcut.", "Conv_2.")
        return [*found, ("shortcut.weight", ("NIN_0.W",), _as_conv), ("shortcut.bias", ("NIN_0.b",), _same)]
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
    """Give ``net`` the weights of the original's ``state`` (names without "module.").

    Raises:
        ValueError: listing every tensor that is missing, left over, or of another shape.
    """
    ours = net.state_dict()
    names = {module: f"{name}." for name, module in net.named_modules()}
    new, taken, problems = {}, {"sigmas"}, []
    for position, part in enumerate(published_order(net)):
        for leaf, sources, join in leaves(part, net):
            keys = [f"all_modules.{position}.{source}" for source in sources]
            taken.update(keys)
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
    problems += [f"{key} is left over" for key in state if key not in taken]
    if problems:
        raise ValueError(f"the checkpoint does not match the network: {reading.listed(problems)}")
    net.load_state_dict(new)


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
            f"numbered up to {reading.brief(max(layers))}"
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
        shown = reading.brief(", ".join(kinds))
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


# ── The run ─────────────────────────────────────────────────────────────────────────────────────────────────────────

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
        _check_kinds(tables.get("net", {}), NET_KINDS, "net.")
        _check_kinds(tables.get("sde", {}), SDE_KINDS, "sde.")
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
            shape = reading.brief(tuple(deviations.shape))
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
        raise ValueError(f"the tensors tell otherwise than what is given: {reading.listed(contradicted)}")
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


def score_of_checkpoint(state: State, sde: dict, net: dict, shape: tuple[int, ...]) -> PublishedScore:
    """The published score with the weights of the original's ``state``, in evaluation mode.

    Raises:
        ValueError: bad tables, or tensors that do not match, each of them listed.
    """
    make = functools.partial(build, {"name": "ncsnpp", **net}, "net", shape)
    reading.check_described(make, {**net, "shape": shape}, state)
    network = make()
    load_published(network, state)
    return PublishedScore(network, build(sde, "sde", shape)).eval()


def read_flow(path: str | Path, weights: Weights, settings: str | Path | None, shape: tuple[int, ...]) -> Flow:
    """The flow of a released flow checkpoint; ``settings`` is a JSON file of its configuration."""
    from indm.convert_flow import flow_from_state

    state = read_checkpoint(path).weights(weights)
    return flow_from_state(state, {} if settings is None else read_settings(settings), shape)


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    flow_checkpoint: str | Path | None = None,
    weights: Weights | None = None,
    recipe: str | Path | None = None,
    settings: str | Path | None = None,
    flow_settings: str | Path | None = None,
    image_size: int | None = None,
    changes: Mapping[str, str] | None = None,
) -> dict:
    """Write the run folder ``out`` of a released score checkpoint and, where there is one, its flow checkpoint.

    Args:
        weights: "ema" or "model" (the last ones) for both; by default "ema" for the score and "model" for the flow, as
            the paper's results were evaluated.
        recipe: whose data, SDE, network and evaluation hold where the tensors and what else is given do not tell.
        settings, flow_settings: JSON files of the original's settings.
        image_size: side of the images.
        changes: dotted keys of the tables data, sde, net and evaluate, as on the command line.

    Returns:
        What is also written to ``conversion.json``, there with its provenance: the files and their weights, and where
        each setting is from.

    Raises:
        ValueError: files that cannot be read, settings that are missing, unknown or contradicted, tensors that do not
            match (all of them listed), or a folder ``out`` that is not empty.
    """
    out, changes = Path(out), changes or {}
    runs.check_empty(out)
    for table in {key.partition(".")[0] for key in changes} - set(TABLES):
        raise ValueError(f"--{table} is not for converting; {', '.join(TABLES)} can be changed")
    fallback = recipes.load(recipe) if recipe is not None else {}
    given = {} if settings is None else tables_of(read_settings(settings))
    for table, content in recipes.override({}, dict(changes)).items():
        given[table] = content if "name" in content else given.get(table, {}) | content
    data = given.get("data", {})
    data = data if "name" in data else fallback.get("data", {}) | data
    _check_kinds(data, {"name": str}, "data.")
    sizes = (image_size, given.get("image", {}).get("size"), data.get("size", SIDES.get(data.get("name"))))
    size = next((size for size in sizes if size is not None), None)
    if size is not None and (type(size) is not int or size < 1):
        raise ValueError(
            "--image-size (or image_size of --settings, or data.size) must be a whole number of pixels, 1 or more, "
            f"got {reading.brief(repr(size))}"
        )

    source = read_checkpoint(checkpoint)
    found = architecture(source.state, given, fallback, size)
    files = [_provenance(checkpoint, weights or "ema")]
    score = score_of_checkpoint(source.weights(weights or "ema"), found.sde, found.net, found.shape)
    flow: Flow = Identity()
    if flow_checkpoint is not None:
        files.append(_provenance(flow_checkpoint, weights or "model"))
        flow = read_flow(flow_checkpoint, weights or "model", flow_settings, found.shape)
    centered = score.backbone.centered
    model = INDM(flow, score, Scaling.images(256, centered), found.shape).eval()

    described = {kind: {k: v for k, v in table.items() if k != "shape"} for kind, table in model.description().items()}
    options = {table: fallback.get(table, {}) | given.get(table, {}) for table in ("train", "evaluate")}
    data = (data if "name" in data else _likely_data(found.shape) | data) | {"centered": centered}
    check_data(**data)
    made = recipes.resolve({"data": data} | described | options)
    result = {
        "files": files,
        "step": source.step,
        "ema_decay": source.decay,
        "shape": list(found.shape),
        "parameters": {"score": count_parameters(score), "flow": count_parameters(flow)},
        "from_the_tensors": found.inferred,
        "assumed": found.assumed,
        "data": data,
    }
    made_by = runs.provenance(None, {file["name"]: file["sha256"] for file in files})
    told = writing.json_into(result | {"provenance": made_by})  # what cannot be told is an error before all writing
    runs.describe(out, made, torch.device("cpu"), [f"converted from {file['name']}" for file in files])
    model.save(out)
    writing.whole(out / "conversion.json", told)
    return result


def _provenance(path: str | Path, weights: Weights) -> dict[str, str]:
    path = Path(path)
    return {"name": path.name, "sha256": sha256(path.read_bytes()).hexdigest(), "weights": weights}


def _likely_data(shape: tuple[int, int, int]) -> dict:
    """The published data set of that shape; else a folder of images that is yet to be named."""
    published = {(3, 32, 32): {"name": "cifar10"}, (3, 64, 64): {"name": "celeba"}}
    return published.get(shape, {"name": "folder", "path": "images", "size": shape[1], "channels": shape[0]})
