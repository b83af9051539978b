"""The settings of the original's configuration files, in one table: what each is here, or which values it may have."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indm.config.checks import check_types
from indm.config.recipes import Tables
from indm.files import untrusted
from indm.messages import brief, listed, nearest


@dataclass(frozen=True)
class Setting:
    """One setting of the original.

    Args:
        kind: its type; None is not checked.
        ours: the argument of ours that it is, "net.channels".
        values: those that can be converted; as a mapping, with what they are called here.
        beside: the setting without which it has no meaning.
    """

    kind: Any = None
    ours: str = ""
    values: tuple | Mapping[Any, Any] = ()
    beside: str = ""


INTEGERS, NUMBERS, SDES = tuple[int, ...], tuple[float, ...], ("vp", "subvp", "ve")
SCORE = {
    "nf": Setting(int, "net.channels"),
    "ch_mult": Setting(INTEGERS, "net.multipliers"),
    "num_res_blocks": Setting(int, "net.blocks"),
    "dropout": Setting(float, "net.dropout"),
    "embedding_type": Setting(str, "net.embedding"),
    "fourier_scale": Setting(float, "net.fourier_scale"),
    "skip_rescale": Setting(bool, "net.rescale"),
    "centered": Setting(bool, "net.centered"),
    "scale_by_sigma": Setting(bool, "net.scale_by_sigma"),
    "attn_resolutions": Setting(INTEGERS, "net.attention"),
    "attention": Setting(bool, beside="attn_resolutions"),
    "fir": Setting(bool),
    "fir_kernel": Setting(NUMBERS, beside="fir"),
    "resblock_type": Setting(str, "net.resample", {"biggan": "block", "ddpm": "conv"}),
    "resamp_with_conv": Setting(bool, beside="resblock_type"),
    "progressive": Setting(str, "net.output_pyramid", {"none": "none", "output_skip": "sum"}),
    "progressive_input": Setting(
        str, "net.input_pyramid", {"none": "none", "residual": "residual", "input_skip": "sum"}
    ),
    "progressive_combine": Setting(str, values=("sum", "cat"), beside="progressive_input"),
    "sde": Setting(str, "sde.name", {"vpsde": "vp", "subvpsde": "subvp", "vesde": "ve"} | {n: n for n in SDES}),
    "beta_min": Setting(float, "sde.beta_min", beside="sde"),
    "beta_max": Setting(float, "sde.beta_max", beside="sde"),
    "sigma_min": Setting(float, "sde.sigma_min", beside="sde"),
    "sigma_max": Setting(float, "sde.sigma_max", beside="sde"),
    "truncation_time": Setting(float, "sde.eps", beside="sde"),
    "num_scales": Setting(int, beside="sde"),
    "image_size": Setting(int, "image.size"),
    "num_channels": Setting(int, "image.channels"),
    "ema_rate": Setting(float, "train.ema"),
    "lr": Setting(float, "train.lr"),
    "warmup": Setting(int, "train.warmup"),
    "grad_clip": Setting(float, "train.clip"),
    **{name: Setting(values=(True,)) for name in ("conditional", "auxiliary_resblock", "continuous", "ddpm_score")},
    **{name: Setting(values=(False,)) for name in ("fourier_feature", "unbounded_parametrization")},
    "name": Setting(values=("ncsnpp",)),
    "nonlinearity": Setting(values=("swish", "silu")),
    "normalization": Setting(values=("groupnorm",)),
    "conv_size": Setting(values=(3,)),
    "attention_type": Setting(values=("ddpm",)),
    "init_scale": Setting(),  # of the weights at the start
    "note": Setting(),
}
FLOW = {
    "act_fn": Setting(str),
    "coeff": Setting(float),
    "vnorms": Setting(values=("ffff",)),
    "kernels": Setting(values=("3-1-3",)),
    "resblock_type": Setting(values=("resflow",)),
    "model": Setting(values=("resflow", "wolf")),
    **{name: Setting(values=(True,)) for name in ("preact", "first_resblock")},
    **{
        name: Setting(values=(False,))
        for name in ("factor_out", "quadratic", "fc_actnorm", "batchnorm", "fc", "fc_end", "learn_p")
    },
    "generator.flow.type": Setting(values=("resflow",)),
    "dequantizer.type": Setting(values=("uniform",)),
    "discriminator.type": Setting(values=("gaussian",)),
    "discriminator.encoder.type": Setting(values=("global_resnet_bn",)),
    "discriminator.encoder.activation": Setting(str),
    "discriminator.prior.type": Setting(values=("flow",)),
    "discriminator.prior.transform": Setting(values=("affine",)),
    "discriminator.prior.coupling_type": Setting(values=("mlp",)),
    "discriminator.prior.activation": Setting(str),
    "discriminator.prior.alpha": Setting(),  # the original never uses it
}
DERIVED = (  # settings of a flow that its tensors or the shape show
    "nblocks", "intermediate_dim", "image_size", "num_channels", "squeeze", "actnorm", "code_dim",
    "discriminator.in_dim", "discriminator.dim", "discriminator.encoder.levels", "discriminator.encoder.in_planes",
    "discriminator.encoder.hidden_planes", "discriminator.encoder.out_planes", "discriminator.prior.num_steps",
    "discriminator.prior.in_features", "discriminator.prior.hidden_features",
)  # fmt: skip
FLOW_TABLES = (
    "generator", "generator.flow", "dequantizer", "discriminator", "discriminator.encoder", "discriminator.prior",
)  # fmt: skip
# The tables of the original's configuration file. In those of training, what is not known here is passed over.
TRAINING_TABLES = ("training", "optim")
TABLES_READ, TABLES_LEFT = (*TRAINING_TABLES, "data", "model"), ("sampling", "eval", "evaluate", "flow")
# Settings of training, sampling and evaluation, which change nothing but where a table above has them.
UNRELATED = {
    "batch_size", "n_iters", "snapshot_freq", "log_freq", "eval_freq", "snapshot_freq_for_preemption",
    "snapshot_sampling", "likelihood_weighting", "reduce_mean", "importance_sampling", "st", "k", "num_train_data",
    "reconstruction_loss", "n_steps_each", "noise_removal", "probability_flow", "snr", "method", "predictor",
    "corrector", "temperature", "need_sample", "idx_rand", "pc_denoise", "pc_denoise_time", "more_step", "pc_ratio",
    "begin_snr", "end_snr", "snr_scheduling", "begin_ckpt", "end_ckpt", "enable_sampling", "num_samples",
    "enable_loss", "enable_bpd", "bpd_dataset", "num_test_data", "residual", "score_ema", "flow_ema", "num_nelbo",
    "rtol", "atol", "gap_diff", "target_ckpt", "data_mean", "skip_nll_wrong", "dataset", "random_flip",
    "uniform_dequantization", "category", "tfrecords_path", "optimizer", "weight_decay", "lr", "beta1", "eps",
    "warmup", "grad_clip", "num_micro_batch", "reset", "amsgrad", "seed", "device", "datadir", "checkpoint_meta_dir",
    "resume", "note", "ema_rate", "optim_reset", "grad_in_forward", "neumann_grad", "n_power_series", "n_dist",
    "n_samples", "n_exact_terms", "dropout", "rank", "local_rank", "eval_batch_size", "batch_steps",
    "init_batch_size", "epochs", "valid_epochs", "train_k", "log_interval", "warmup_steps", "lr_decay", "beta2",
    "workers", "n_bits", "recover", "model_config",
}  # fmt: skip


def _kinds_of(table: str) -> dict[str, Any]:
    """The types of our arguments in ``table`` that settings are."""
    return {s.ours.partition(".")[2]: s.kind for s in SCORE.values() if s.ours.startswith(f"{table}.")}


SDE_KINDS = _kinds_of("sde")
NET_KINDS = _kinds_of("net") | {"fir": NUMBERS, "sigma_table": NUMBERS}


def tables_of(settings: Mapping[str, Any]) -> Tables:
    """Settings of the original's configuration as our tables "sde", "net", "image" and "train"."""
    settings = {place[1]: value for place, value in _by_place(settings).items() if _is_read(*place)}
    settings = {key: value.lower() if isinstance(value, str) else value for key, value in settings.items()}
    check_settings(settings, SCORE)
    tables: Tables = {"sde": {}, "net": {}, "image": {}, "train": {}}
    for key in SCORE:
        if key in settings and SCORE[key].ours:
            table, _, argument = SCORE[key].ours.partition(".")
            tables[table][argument] = _ours(SCORE[key], settings[key])
    _combine(tables["net"], settings)
    if tables["train"].get("clip", 1) <= 0:  # the original's way to say that nothing is clipped
        tables["train"]["clip"] = math.inf
    of_other_kind = "beta_" if tables["sde"].get("name") == "ve" else "sigma_"
    tables["sde"] = {key: value for key, value in tables["sde"].items() if not key.startswith(of_other_kind)}
    return tables


def _ours(setting: Setting, value: Any) -> Any:
    return setting.values[value] if isinstance(setting.values, Mapping) else value


def _combine(net: dict, settings: Mapping[str, Any]) -> None:
    """The arguments of the network that several settings decide together."""
    if "fir" in settings:
        net["fir"] = settings.get("fir_kernel", (1, 3, 3, 1)) if settings["fir"] else ()
    if net.get("resample") == "conv" and not settings.get("resamp_with_conv", True):
        net["resample"] = "plain"
    if net.get("resample") == "conv" and net.get("fir"):
        raise ValueError("settings: fir must be false where resblock_type is 'ddpm' and resamp_with_conv is true")
    if net.get("input_pyramid") == "sum":
        net["input_pyramid"] = settings.get("progressive_combine", "sum")
    if "attention" in net and not settings.get("attention", True):
        net["attention"] = ()
    if {"sigma_min", "sigma_max", "num_scales"} <= set(settings):
        net["sigma_table"] = tuple(settings[key] for key in ("sigma_min", "sigma_max", "num_scales"))


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
    """Whether the score or the recipe may depend on that setting."""
    known = name in SCORE or (table not in TRAINING_TABLES and name not in UNRELATED)
    return known and table not in TABLES_LEFT


def check_settings(settings: Mapping[str, Any], known: Mapping[str, Setting]) -> None:
    """ValueError listing the settings that are unknown, lack the one they belong to, or have a bad value."""
    check_finite_types(settings, {name: s.kind for name, s in known.items() if s.kind}, "settings: ")
    problems = []
    for key, value in settings.items():
        setting = known.get(key)
        if setting is None:
            problems.append(f"{brief(repr(key))} is no known setting{nearest(key, sorted(known))}")
        elif setting.values and value not in setting.values:
            wanted = " or ".join(map(repr, setting.values))
            problems.append(f"{key} must be {wanted}, got {brief(repr(value))}")
        elif setting.beside and setting.beside not in settings:
            problems.append(f"{key} needs {setting.beside} beside it")
    if problems:
        raise ValueError(f"settings: {listed(problems)}")


def flow_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The original's settings of a flow by dotted names, without those that do not change it."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if name not in FLOW_TABLES:
            found[name] = value
        elif isinstance(value, Mapping):
            found |= flow_settings(value, f"{name}.")
        else:
            raise ValueError(f"settings: {name} must be a table, got {brief(repr(value))}")
    if not prefix:
        known = FLOW | dict.fromkeys(DERIVED, Setting())
        found = {key: value for key, value in found.items() if key in known or not _passed_over(key)}
        check_settings(found, known)
    return found


def _passed_over(name: str) -> bool:
    """Whether a setting of a flow does not change it."""
    return name in UNRELATED or name.startswith(("generator.", "dequantizer."))


def check_agrees(settings: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
    """ValueError where a setting is given and is not the ``actual`` value, which tensors or shape show."""
    for key, value in actual.items():
        given = settings.get(key, value)
        given = tuple(given) if isinstance(given, list) else given
        if given != value:
            raise ValueError(f"settings: {key} is {brief(repr(given))}, but the tensors and the shape say {value!r}")


def check_finite_types(content: Mapping[str, object], kinds: Mapping[str, object], where: str) -> None:
    """ValueError naming, after ``where``, a value that is not of its key's type, or not finite."""
    check_types(content, kinds, where)
    for key, value in content.items():
        numbers = value if isinstance(value, list | tuple) else (value,)
        if key in kinds and not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise ValueError(f"{where}{key} must be finite, got {brief(repr(value))}")


def read_settings(path: str | Path) -> dict[str, object]:
    """The settings in a JSON file."""
    try:
        return untrusted.json_object(Path(path))
    except ValueError as error:
        raise ValueError(f"settings {error}") from None
