"""Recipes: TOML files that say everything about a run. Read, changed key by key, checked, and written back.

``[data]``, ``[flow]``, ``[sde]`` and ``[net]`` each have a ``name`` and the arguments of what it names (checked where
that is built); ``[train]`` and ``[evaluate]`` are the dataclasses :class:`Training` and :class:`Evaluation`.
"""

import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from indm.model import KINDS, nearest
from indm.reading import brief

NAMED_TABLES = ("data", *KINDS)
BUNDLED = Path(__file__).parent
TRACKERS = {"tensorboard", "wandb"}
TEXT_KEYS = ("path", "root")  # also where a folder is called by a number
LARGEST, LARGEST_SEED = 2**31 - 1, 2**63 - 1  # whole numbers that torch takes for a size, and for a seed
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
Recipe = dict[str, dict]


def _require(condition: bool, key: str, value: object, wanted: str) -> None:
    if not condition:
        raise ValueError(f"{key} must be {wanted}, got {brief(repr(value))}")


def _check_each(options: object, table: str, holds: Callable, wanted: str, names: str) -> None:
    for name in names.split():
        _require(holds(getattr(options, name)), f"{table}.{name}", getattr(options, name), wanted)


def check_whole_number(key: str, value: object) -> None:
    """ValueError where ``value`` is a whole number that is too large for what it counts, or for a seed."""
    most = LARGEST_SEED if key.endswith("seed") else LARGEST
    if isinstance(value, int):
        _require(abs(value) <= most, key, value, f"within ±{most:,}")


def check_whole_numbers(options: object, table: str = "") -> None:
    """:func:`check_whole_number` for the fields of a dataclass that are declared so."""
    for field in fields(options):
        if field.type is int:
            check_whole_number(f"{table}{field.name}", getattr(options, field.name))


@dataclass(frozen=True)
class Training:
    """The ``[train]`` table. A run ends after ``steps`` or ``seconds``, whichever comes first; ``inf`` is no limit."""

    # What the score minimises: the NELBO, or the variance-weighted loss; "flow" trains the flow alone, without a score.
    objective: Literal["mle", "fid", "flow"] = "mle"
    steps: float = 10_000  # optimizer steps
    seconds: float = math.inf  # of training alone: validation and checkpoints are not counted
    batch_size: int = 128  # examples of one optimizer step, over all processes and accumulated batches
    accumulate: int = 1  # batches whose gradients make one optimizer step
    lr: float = 1e-3  # of the score
    flow_lr: float = 1e-3
    flow_every: int = 1  # the flow takes part in every so-many-th step; in between the score trains behind it as it is
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01  # of the score
    flow_weight_decay: float = 0.0
    clip: float = 1.0  # largest gradient norm, of score and flow apart
    warmup: int = 0  # steps in which the learning rates rise linearly
    flow_warmup: int = 0  # the same for the flow alone, where that is longer: the score goes ahead
    decay: float = 0.0  # last fraction of the run, in which they fall linearly to 0
    ema: float = 0.999  # decay of the averaged weights, which are the ones validated and saved
    pretrain: float = 0.0  # first fraction of the run, in which the score is trained without the flow
    soft_truncation: float = 0.0  # exponent k of the law of the truncation (1.2 is usual); 0 truncates at ε
    isometry: float = 0.0  # weight of the flow's distance from an isometry: 0 is free, large is a linear diffusion
    terminal: float = 0.0  # weight of −log p(x_T) under [data_b], or under the data's own mean and covariance
    latent_mean: bool = False  # centre the final model's prior on the mean latent (for VE); not in best/, snapshots/
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"  # auto: bf16 where the machine is fast in it
    workers: int = 0  # processes that load data
    log_every: int = 50  # steps
    validate_every: int = 500  # steps
    validate_examples: int = 1000
    checkpoint_every: int = 1000  # steps
    keep_last: int = 2  # checkpoints that stay, each about four times the model; best/ is the averaged model alone
    skips: int = 20  # steps in a row left out for a loss or gradient that is not finite, before the run goes back
    rollbacks: int = 3  # times it goes back to its last checkpoint, at half the learning rates, before it gives up
    keep_every: int = 0  # steps after which the averaged model is also kept as snapshots/STEP; 0 keeps none
    seed: int = 0
    trackers: tuple[str, ...] = ()  # of "tensorboard", "wandb"

    def __post_init__(self):
        check_whole_numbers(self, "train.")
        _check_each(self, "train", lambda v: v >= 1, "at least 1", "batch_size accumulate validate_examples")
        _check_each(self, "train", lambda v: v >= 1, "at least 1", "log_every validate_every checkpoint_every")
        _check_each(self, "train", lambda v: v >= 1, "at least 1", "keep_last skips")
        _check_each(self, "train", lambda v: v > 0, "positive", "steps seconds lr flow_lr clip")
        _check_each(self, "train", lambda v: v >= 0, "0 or more", "weight_decay flow_weight_decay warmup workers seed")
        _check_each(self, "train", lambda v: v >= 0, "0 or more", "soft_truncation flow_warmup isometry terminal")
        _check_each(self, "train", lambda v: v >= 0, "0 or more", "keep_every rollbacks")
        _check_each(self, "train", lambda v: 0 <= v < 1, "in [0, 1)", "ema pretrain")
        _check_each(self, "train", lambda v: 0 <= v <= 1, "in [0, 1]", "decay")
        _check_each(self, "train", lambda v: all(0 <= b < 1 for b in v), "two numbers in [0, 1)", "betas")
        _check_each(self, "train", lambda v: v == math.inf or v == int(v), "a whole number, or inf", "steps")
        _check_each(self, "train", lambda v: v % self.accumulate == 0, "a multiple of train.accumulate", "batch_size")
        _check_each(self, "train", lambda v: set(v) <= TRACKERS, "of tensorboard, wandb", "trackers")
        truncated = self.objective == "flow" and self.soft_truncation > 0
        _require(not truncated, "train.soft_truncation", self.soft_truncation, '0 with train.objective "flow"')
        finite = math.isfinite(min(self.steps, self.seconds))
        _require(finite, "train.seconds", self.seconds, "finite if train.steps is inf")


@dataclass(frozen=True)
class Evaluation:
    """The ``[evaluate]`` table: what ``indm evaluate`` does unless told otherwise."""

    split: Literal["test", "valid", "train"] = "test"
    images: int = 10_000  # examples for the NELBO, at most
    nll_images: int = 1000  # of these, the first so many for the probability-flow ODE; 0 skips it
    repeats: int = 2  # independent estimates for each example, which tell the estimator's noise
    times: int = 4  # score evaluations of one NELBO estimate
    probes: int = 1  # of the divergence
    rtol: float = 1e-4  # tolerances of the ODE solver
    atol: float = 1e-4
    steps: int = 0  # of the fixed-step ODE solver, fast but without error control; 0 is the adaptive one
    eps: float = 0.0  # truncation of bound and ODE, at least the SDE's own; 0 is the SDE's own
    batch_size: int = 250
    seed: int = 0

    def __post_init__(self):
        check_whole_numbers(self, "evaluate.")
        _check_each(self, "evaluate", lambda v: v >= 1, "at least 1", "times probes batch_size")
        _check_each(self, "evaluate", lambda v: v >= 2, "at least 2", "images repeats")
        _check_each(self, "evaluate", lambda v: v >= 0, "0 or more", "nll_images seed steps eps")
        _check_each(self, "evaluate", lambda v: 0 < v < math.inf, "positive and finite", "rtol atol")


OPTION_TABLES = {"train": Training, "evaluate": Evaluation}
OPTIONAL_TABLES = ("data_b",)  # a second data set: the law that x_T shall have
TABLES = (*NAMED_TABLES, *OPTIONAL_TABLES, *OPTION_TABLES)


def bundled() -> dict[str, str]:
    """The names of the recipes that come with indm, each with its one-line description."""
    files = sorted(BUNDLED.glob("*.toml"), key=lambda path: path.stem)
    return {path.stem: path.read_text("utf-8").splitlines()[0].lstrip("# ") for path in files}


def load(source: str | Path) -> Recipe:
    """The recipe of a bundled name, a TOML file, or a run folder, as it is written there (defaults not filled in)."""
    path = Path(source)
    if str(source) in bundled() and not (isinstance(source, Path) and source.is_dir()):
        path = BUNDLED / f"{source}.toml"
    elif path.is_dir():
        path = path / "recipe.toml"
        if not path.is_file():
            raise FileNotFoundError(f"{source} is no run folder: there is no recipe.toml in it")
    if not path.is_file():
        raise FileNotFoundError(f"no recipe or file is called {str(source)!r}{nearest(str(source), bundled())}")
    try:
        recipe = tomllib.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    for table, content in recipe.items():
        if not isinstance(content, dict):
            raise ValueError(f"{path}: {table} must be a table, [{table}], got {content!r}")
    return recipe


def override(recipe: Recipe, changes: dict[str, str]) -> Recipe:
    """``recipe`` with dotted keys changed, values written as in TOML: ``{"train.steps": "500", "flow": "identity"}``.

    A bare table name puts another thing of that kind in its place and keeps none of the old table. What is not
    TOML is taken as a string, and so is whatever a ``path`` or ``root`` is given as.
    """
    changed = {table: dict(content) for table, content in recipe.items()}
    for table in (key for key in changes if "." not in key):
        _check_name(table, (*NAMED_TABLES, *OPTIONAL_TABLES), "table that can be replaced", f"--{table}")
        changed[table] = {"name": changes[table]}
    for dotted in (key for key in changes if "." in key):
        table, key = dotted.split(".", 1)
        _check_name(table, TABLES, "table", f"--{dotted}")
        value = _value(changes[dotted])
        is_text = key in TEXT_KEYS and not isinstance(value, str)
        changed.setdefault(table, {})[key] = changes[dotted] if is_text else value
    return changed


def resolve(recipe: Recipe) -> Recipe:
    """``recipe`` checked and with the defaults of ``[train]`` and ``[evaluate]`` filled in, tables in fixed order."""
    for table in recipe:
        _check_name(table, TABLES, "table", f"[{table}]")
    optional = [table for table in OPTIONAL_TABLES if table in recipe]
    for table in (*NAMED_TABLES, *optional):
        if not isinstance(recipe.get(table, {}).get("name"), str):
            raise ValueError(f'[{table}] needs a name = "…" that says which {table} is meant')
    options = {table: asdict(options_of(recipe, table)) for table in OPTION_TABLES}
    return {table: dict(options.get(table, recipe.get(table, {}))) for table in (*NAMED_TABLES, *optional, *options)}


def model_of(recipe: Recipe) -> Recipe:
    """The tables that describe the model, as :func:`indm.build_model` takes them."""
    return {table: recipe[table] for table in KINDS}


def options_of(recipe: Recipe, table: Literal["train", "evaluate"]) -> Training | Evaluation:
    """The options in that table, checked: unknown keys and wrong types are ValueErrors."""
    kind, content = OPTION_TABLES[table], recipe.get(table, {})
    hints = get_type_hints(kind)
    for key in content:
        _check_name(key, hints, "key", f"{table}.{key}")
    check_kinds(content, hints, f"{table}.")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})


def check_kinds(content: Mapping[str, object], kinds: Mapping[str, object], where: str) -> None:
    """ValueError naming, after ``where``, a value that is not of the type that ``kinds`` has for its key, if any."""
    for key, value in content.items():
        if key in kinds:
            _require(_is_a(value, kinds[key]), f"{where}{key}", value, _describe(kinds[key]))


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The dotted keys in which two recipes differ."""
    old, new = tomllib.loads(to_toml(old)), tomllib.loads(to_toml(new))
    keys = [(table, key) for table in TABLES for key in {**old.get(table, {}), **new.get(table, {})}]
    return [f"{t}.{k}" for t, k in keys if old.get(t, {}).get(k) != new.get(t, {}).get(k)]


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML text."""
    blocks = [
        "\n".join([f"[{table}]", *(f"{_key(key)} = {literal(value)}" for key, value in content.items())])
        for table, content in recipe.items()
    ]
    return "\n\n".join(blocks) + "\n"


def _key(key: str) -> str:
    return key if BARE_KEY.fullmatch(key) else literal(key)


def literal(value) -> str:
    """``value`` as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError(f"{value!r} is no Unicode text, which a recipe must be: rename that file or folder")
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(key)} = {literal(part)}' for key, part in value.items())}}}"
    return str(value)  # numbers and dates


def _value(text: str):
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float | str | list) else text


def _check_name(word: str, known, what: str, shown: str) -> None:
    if word not in known:
        raise ValueError(f"{shown} is no known {what}{nearest(word, known)}")


def _is_a(value, hint) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        many = len(inner) == 2 and inner[1] is Ellipsis
        return (
            isinstance(value, list | tuple)
            and (many or len(value) == len(inner))
            and all(_is_a(v, inner[0]) for v in value)
        )
    if hint is float:
        hint = int | float  # a whole number is a number
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _describe(hint) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list of {_describe(get_args(hint)[0])}"
    return {int: "a whole number", bool: "true or false", str: "a string"}.get(hint, "a number")
