"""The original's settings of a score network, as our tables.

:data:`SAME` and what follows it say of every setting which argument of ours it is, or which values it may have.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from indm.config.checks import check_types
from indm.config.recipes import Tables
from indm.files import untrusted
from indm.messages import brief, nearest

SDES = {"vpsde": "vp", "subvpsde": "subvp", "vesde": "ve"}
SAME = {  # settings that are an argument of ours, under this name
    "nf": ("net", "channels"), "ch_mult": ("net", "multipliers"), "num_res_blocks": ("net", "blocks"),
    "dropout": ("net", "dropout"), "embedding_type": ("net", "embedding"), "fourier_scale": ("net", "fourier_scale"),
    "skip_rescale": ("net", "rescale"), "centered": ("net", "centered"), "scale_by_sigma": ("net", "scale_by_sigma"),
    "ema_rate": ("train", "ema"),
}  # fmt: skip
ONLY = {  # settings of which the network can take these values only
    "name": ("ncsnpp",), "nonlinearity": ("swish", "silu"), "normalization": ("groupnorm",), "conv_size": (3,),
    "attention_type": ("ddpm",), "conditional": (True,), "auxiliary_resblock": (True,), "fourier_feature": (False,),
    "continuous": (True,), "ddpm_score": (True,), "unbounded_parametrization": (False,),
}  # fmt: skip
CHOICES = {
    "resblock_type": {"biggan": "block", "ddpm": "conv"},
    "progressive_input": {"none": "none", "residual": "residual", "input_skip": "sum"},
    "progressive": {"none": "none", "output_skip": "sum"},
    "progressive_combine": {"sum": "sum", "cat": "cat"},
}
SECOND = {  # settings that have a meaning only beside another one
    "fir_kernel": "fir", "attention": "attn_resolutions", "resamp_with_conv": "resblock_type",
    "progressive_combine": "progressive_input",
    **dict.fromkeys(("beta_min", "beta_max", "sigma_min", "sigma_max", "num_scales", "truncation_time"), "sde"),
}  # fmt: skip
OTHER = {"sde", "image_size", "num_channels", "fir", "attn_resolutions"}
INERT = {"init_scale", "note"}  # the weights at the start; a remark
KNOWN = {*SAME, *ONLY, *CHOICES, *SECOND, *OTHER, *INERT}
# The tables of the original's configuration file. Of "training" only what the score depends on is read.
TABLES_READ, TABLES_LEFT = ("training", "data", "model"), ("sampling", "eval", "evaluate", "optim", "flow")
# Settings of training, sampling and evaluation, which do not change the score.
UNRELATED = {
    "batch_size", "n_iters", "snapshot_freq", "log_freq", "eval_freq", "snapshot_freq_for_preemption",
    "snapshot_sampling", "likelihood_weighting", "reduce_mean", "importance_sampling", "st", "k", "num_train_data",
    "reconstruction_loss", "n_steps_each", "noise_removal", "probability_flow", "snr", "method", "predictor",
    "corrector", "temperature", "need_sample", "idx_rand", "pc_denoise", "pc_denoise_time", "more_step", "pc_ratio",
    "begin_snr", "end_snr", "snr_scheduling", "begin_ckpt", "end_ckpt", "enable_sampling", "num_samples",
    "enable_loss", "enable_bpd", "bpd_dataset", "num_test_data", "residual", "score_ema", "flow_ema", "num_nelbo",
    "rtol", "atol", "gap_diff", "target_ckpt", "data_mean", "skip_nll_wrong", "dataset", "random_flip",
    "uniform_dequantization", "category", "tfrecords_path", "optimizer", "weight_decay", "lr", "beta1", "eps",
    "warmup", "grad_clip", "num_micro_batch", "reset", "amsgrad", "seed", "device", "datadir",
    "checkpoint_meta_dir", "resume",
}  # fmt: skip
KINDS = {
    name: kind
    for kind, names in {
        int: "nf num_res_blocks image_size num_channels num_scales",
        float: "dropout fourier_scale beta_min beta_max sigma_min sigma_max truncation_time ema_rate",
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


def tables_of(settings: Mapping[str, Any]) -> Tables:
    """Settings of the original's configuration as our tables "sde", "net", "image" and "train".

    The tables hold only what is given; "image" has ``size`` and ``channels``.

    Args:
        settings: by name, or in the tables of the original's file; those that :func:`unrelated` names are passed over.

    Raises:
        ValueError: a setting that is unknown or has a value that the network cannot take, by its name.
    """
    settings = {place[1]: value for place, value in _by_place(settings).items() if _is_read(*place)}
    settings = {key: value.lower() if isinstance(value, str) else value for key, value in settings.items()}
    _check(settings)
    tables: Tables = {"sde": _sde_table(settings), "net": {}, "image": {}, "train": {}}
    for key, (table, argument) in SAME.items():
        if key in settings:
            tables[table][argument] = settings[key]
    for key, name in (("image_size", "size"), ("num_channels", "channels")):
        if key in settings:
            tables["image"][name] = settings[key]
    tables["net"] |= _resampling(settings) | _pyramids(settings)
    if "attn_resolutions" in settings:
        tables["net"]["attention"] = settings["attn_resolutions"] if settings.get("attention", True) else ()
    if {"sigma_min", "sigma_max", "num_scales"} <= set(settings):
        tables["net"]["sigma_table"] = tuple(settings[key] for key in ("sigma_min", "sigma_max", "num_scales"))
    return tables


def unrelated(settings: Mapping[str, Any]) -> list[str]:
    """The settings of how the original is trained, sampled and evaluated, by dotted names; those of a flow apart."""
    left = (place for place in _by_place(settings) if not _is_read(*place))
    return [".".join(filter(None, place)) for place in left if place[0] != "flow"]


def _by_place(settings: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """The settings by table ("" where they are in none) and name."""
    places: dict[tuple[str, str], Any] = {}
    for key, value in settings.items():
        is_table = key in (*TABLES_READ, *TABLES_LEFT) and isinstance(value, Mapping)
        places |= {(key, name): part for name, part in value.items()} if is_table else {("", key): value}
    return places


def _is_read(table: str, name: str) -> bool:
    """Whether the score may depend on that setting."""
    return name in KNOWN if table == "training" else table not in TABLES_LEFT and name not in UNRELATED


def _check(settings: Mapping[str, object]) -> None:
    """ValueError naming the first setting that is unknown, lacks the one it belongs to, or has a bad value."""
    check_finite_types(settings, KINDS, "settings: ")
    for key, value in settings.items():
        if key not in KNOWN:
            raise ValueError(f"settings: {brief(repr(key))} is no known setting{nearest(key, sorted(KNOWN))}")
        if key in ONLY and value not in ONLY[key]:
            raise ValueError(f"settings: {key} must be {' or '.join(map(repr, ONLY[key]))}, got {brief(repr(value))}")
        if key in CHOICES and value not in CHOICES[key]:
            raise ValueError(f"settings: {key} must be {' or '.join(map(repr, CHOICES[key]))}, got {value!r}")
        if key in SECOND and SECOND[key] not in settings:
            raise ValueError(f"settings: {key} needs {SECOND[key]} beside it")


def _resampling(settings: Mapping[str, Any]) -> dict:
    """The filter and how the network changes its resolution."""
    net = {}
    if "fir" in settings:
        net["fir"] = settings.get("fir_kernel", (1, 3, 3, 1)) if settings["fir"] else ()
    if "resblock_type" in settings:
        net["resample"] = CHOICES["resblock_type"][settings["resblock_type"]]
        if net["resample"] == "conv" and not settings.get("resamp_with_conv", True):
            net["resample"] = "plain"
        if net["resample"] == "conv" and net.get("fir"):
            raise ValueError("settings: fir must be false where resblock_type is 'ddpm' and resamp_with_conv is true")
    return net


def _pyramids(settings: Mapping[str, Any]) -> dict:
    net = {}
    if "progressive_input" in settings:
        net["input_pyramid"] = CHOICES["progressive_input"][settings["progressive_input"]]
        if net["input_pyramid"] == "sum":
            net["input_pyramid"] = settings.get("progressive_combine", "sum")
    if "progressive" in settings:
        net["output_pyramid"] = CHOICES["progressive"][settings["progressive"]]
    return net


def check_finite_types(content: Mapping[str, object], kinds: Mapping[str, object], where: str) -> None:
    """ValueError naming, after ``where``, a value that is not of its key's type, or not finite."""
    check_types(content, kinds, where)
    for key, value in content.items():
        numbers = value if isinstance(value, list | tuple) else (value,)
        if key in kinds and not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise ValueError(f"{where}{key} must be finite, got {brief(repr(value))}")


def _sde_table(settings: Mapping[str, object]) -> dict:
    """The SDE's table, with those of the limits that its kind has."""
    if "sde" not in settings:
        return {}
    if settings["sde"] not in (*SDES, *SDES.values()):
        raise ValueError(f"settings: sde must be {', '.join(SDES)}, got {settings['sde']!r}")
    name = SDES.get(settings["sde"], settings["sde"])
    keys = ("sigma_min", "sigma_max") if name == "ve" else ("beta_min", "beta_max")
    table = {"name": name} | {key: settings[key] for key in keys if key in settings}
    return table | ({"eps": settings["truncation_time"]} if "truncation_time" in settings else {})


def read_settings(path: str | Path) -> dict[str, object]:
    """The settings in a JSON file."""
    try:
        return untrusted.json_object(Path(path))
    except ValueError as error:
        raise ValueError(f"settings {error}") from None
