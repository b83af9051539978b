"""The original's settings of a flow: which are known, and what is checked of each."""

from collections.abc import Mapping
from typing import Any

from indm.config.checks import check_types
from indm.messages import brief, listed

# Settings of training and of estimators, which do not change the map, and remarks.
UNRELATED = {
    "note", "lr", "ema_rate", "optim_reset", "grad_in_forward", "neumann_grad", "n_power_series", "n_dist", "n_samples",
    "n_exact_terms", "dropout", "rank", "local_rank", "batch_size", "eval_batch_size", "batch_steps", "init_batch_size",
    "epochs", "valid_epochs", "seed", "train_k", "log_interval", "warmup_steps", "lr_decay", "beta1", "beta2", "eps",
    "weight_decay", "amsgrad", "grad_clip", "dataset", "category", "workers", "n_bits", "recover", "model_config",
}  # fmt: skip
# Settings of which only these values can be converted.
FIXED = {
    "vnorms": ("ffff",),
    "kernels": ("3-1-3",),
    "resblock_type": ("resflow",),
    "model": ("resflow", "wolf"),
    "preact": (True,),
    "first_resblock": (True,),
    **dict.fromkeys(("factor_out", "quadratic", "fc_actnorm", "batchnorm", "fc", "fc_end", "learn_p"), (False,)),
}
# Settings that the tensors or the shape show, and settings that choose what they do not show.
DERIVED = ("nblocks", "intermediate_dim", "image_size", "num_channels", "squeeze", "actnorm", "code_dim")
CHOSEN = ("act_fn", "coeff", "discriminator")


def check_settings(settings: Mapping[str, Any], conditional: bool) -> None:
    """ValueError naming every setting that is unknown or has a value that cannot be converted."""
    known = {*UNRELATED, *FIXED, *DERIVED, *CHOSEN, *(("generator", "dequantizer") if conditional else ())}
    check_types(settings, {"act_fn": str, "coeff": float}, "settings: ")
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
    """The table at ``path`` in the settings, empty where there is none; ValueError where it is no table."""
    for i, key in enumerate(path):
        settings = settings.get(key, {})
        if not isinstance(settings, Mapping):
            raise ValueError(f"settings: {'.'.join(path[: i + 1])} must be a table, got {brief(repr(settings))}")
    return settings


def check_agrees(settings: Mapping[str, Any], key: str, actual: Any, path: str = "") -> None:
    """ValueError where a setting is given and is not the ``actual`` value, which tensors or shape show."""
    given = settings.get(key, actual)
    given = tuple(given) if isinstance(given, list) else given
    if given != actual:
        raise ValueError(f"settings: {path}{key} is {brief(repr(given))}, but the tensors and the shape say {actual!r}")
