"""The runs of the study: which there are, with which settings, for how many steps. README.md says why."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

STEPS = 6_000  # of linear diffusion, some 50 minutes of a core; the others have as many as cost the same
TENTH, THIRD = 0.1, 1 / 3
SEEDS, SEARCH_SEED = (1, 2, 3), 0
FAMILY = (  # study, variant, baseline of each difference that is tested
    ("fashion", "spline", "linear"), ("fashion", "indm", "linear"), ("fashion", "indm", "spline"),
    ("fashion", "indm", "flow"), ("fashion", "spline-noise", "spline"),
    ("photos", "spline", "linear"), ("photos", "indm", "linear"), ("photos", "indm", "spline"),
)  # fmt: skip
Setting = dict[str, Any]  # changes of a recipe, by dotted key

SPLINE: Setting = {"name": "elementwise"}
ALIKE: Setting = {  # of all runs
    "train.seconds": math.inf, "train.threads": 1, "train.mixed_precision": "no", "train.final": "last",
    "train.warmup": 0.02, "train.decay": 0.5, "train.ema": 0.999, "train.validate_every": 0.25,
    "train.validate_examples": 1600, "train.checkpoint_every": 0.02, "train.log_every": 0.01,
}  # fmt: skip
LEARNED_NOISE: Setting = {"dequantization": "variational"}


def behind_the_spline(**coupling: Any) -> Setting:
    """A coupling flow behind the spline of grey levels."""
    return {"flow": "compose", "flow.flows": [SPLINE, {"name": "coupling"} | coupling]}


def plain_flow(**coupling: Any) -> Setting:
    """Such a flow without a diffusion."""
    return behind_the_spline(**coupling) | {"net": "zero", "train.objective": "flow"}


@dataclass(frozen=True)
class Variant:
    """What is compared.

    Args:
        setting: changes of the study's recipe.
        axes: of the search, one after the other; each starts at its first value. The first axis of a study's first
            variant is that of the network and the batch, which all its variants then have.
        seeds: of the final trainings.
        like: the variant whose chosen rates it has, before its own axes.
    """

    setting: Setting
    axes: tuple[tuple[Setting, ...], ...] = ()
    seeds: tuple[int, ...] = SEEDS
    like: str | None = None


@dataclass(frozen=True)
class Study:
    """One data set.

    Args:
        recipe: of indm.
        setting: changes of it that all variants share.
        variants: by name, the most informative first; the first is the unit of cost.
        steps: of the first variant.
        folder: of its images, below ``--data``; None where the recipe finds them.
        searched: the study whose chosen settings it has; None for its own search.
        curve: whether a third of the budget is trained, too.
    """

    recipe: str
    setting: Setting
    variants: dict[str, Variant]
    steps: int = STEPS
    folder: str | None = None
    searched: str | None = None
    curve: bool = True


def values(key: str, *options: Any) -> tuple[Setting, ...]:
    return tuple({key: option} for option in options)


RATES = values("train.lr", 2e-3, 1e-3, 4e-3)
SPLINE_RATES = (values("train.lr", 2e-3, 1e-3), values("train.flow_lr", 1e-2, 3e-2))
COUPLING_RATES = (
    values("train.flow_lr", 3e-3, 1e-3),
    values("train.lr", 2e-3, 1e-3),
    values("train.flow_update_every", 1, 3),
)
NETWORKS = ({}, {"train.batch_size": 128}, {"net.channels": 48})
COMPARED = {
    "linear": Variant({"flow": "identity"}, (NETWORKS, RATES)),
    "spline": Variant({"flow": "elementwise"}, SPLINE_RATES),
    "indm": Variant(behind_the_spline(), COUPLING_RATES),
}
STUDIES = {
    "fashion": Study(
        "fashion-mnist",
        {"dequantization": "uniform", "train.batch_size": 32},
        {
            **COMPARED,
            "flow": Variant(
                plain_flow(levels=2, depth=8, width=64),
                (({}, plain_flow(levels=2, depth=6, width=96)), values("train.flow_lr", 3e-3, 1e-3)),
            ),
            "spline-noise": Variant(
                {"flow": "elementwise"} | LEARNED_NOISE, (values("train.dequantization_lr", 3e-3, 1e-3),), like="spline"
            ),
            "residual": Variant(
                {"flow": "residual", "flow.blocks": [4, 4], "flow.width": 64},
                (values("train.flow_lr", 1e-3, 3e-3),),
                seeds=SEEDS[:1],
            ),
        },
    ),
    "photos": Study(
        "photos-32",
        {"data.patches": 400, "data.test": 0.25},
        COMPARED,
        folder="photos",
    ),
    "photos-16": Study(
        "photos-32",
        {"data.patches": 400, "data.test": 0.25, "data.size": 16, "data.short": 256},
        COMPARED,
        steps=round(STEPS * THIRD),
        folder="photos",
        searched="photos",
        curve=False,
    ),
}


@dataclass(frozen=True)
class Job:
    """One training and what is done when it ends.

    Args:
        name: also of its folder and its record.
        recipe: what is trained: a recipe, or two folders.
        setting: changes of it.
        command: of indm that trains it.
        folder: of its images, below ``--data``.
        folders: of A and of B, for a model of pairs.
        tested: whether its test images are read, samples drawn and scored; else it is validated alone.
        share: of the study's budget; None where the setting has the steps.
        about: columns of its row in the tables.
    """

    name: str
    recipe: str
    setting: Setting
    command: str = "train"
    folder: str | None = None
    folders: tuple[str, ...] = ()
    tested: bool = False
    share: float | None = None
    about: dict[str, Any] = field(default_factory=dict)


def structure(variant: str, setting: Setting) -> str:
    """A variant with what of its setting decides about the cost of a step, in words."""
    own = {key: value for key, value in setting.items() if not key.endswith("lr")}
    return " ".join([variant, *(word for item in own.items() if (word := words(*item)))])


def words(key: str, value: Any) -> str:
    """One change of a recipe, in words; "" for what goes without saying."""
    name = key.split(".")[-1]
    if name == "flows":
        return ",".join(f"{k}={v}" for k, v in value[-1].items() if k != "name")
    return "" if key in ("flow", "net", "train.objective") else f"{name}={value}"


def merged(*settings: Setting) -> Setting:
    return dict(itertools.chain.from_iterable(setting.items() for setting in settings))


Valid = Callable[[str], float | None]  # bits/dim of validation of a job that has ended, by its name


def steps_of(job: Job, cost: float) -> int:
    """Steps that cost the job's share of its study's budget, at ``cost`` of one over one of its first variant."""
    assert job.share is not None
    return max(1, round(job.share * STUDIES[job.about["study"]].steps / cost))


@dataclass(frozen=True)
class Planner:
    """What can be trained next, from what has been.

    Args:
        valid: validation of the jobs that have ended.
    """

    valid: Valid

    def job(self, study: str, variant: str, setting: Setting, stage: str, share: float, seed: int) -> Job:
        """The training of a variant at ``share`` of its study's budget."""
        s, v = STUDIES[study], STUDIES[study].variants[variant]
        changes = merged(ALIKE, s.setting, v.setting, setting, {"train.seed": seed})
        tried = ",".join(word for item in setting.items() if (word := words(*item))) or "first"
        name = f"{study}/{stage}/{variant}-{tried if stage == 'search' else seed}"
        about = {"study": study, "variant": variant, "stage": stage, "seed": seed, "setting": tried}
        about |= {"structure": structure(variant, setting)}
        return Job(name, s.recipe, changes, folder=s.folder, tested=stage == "final", share=share, about=about)

    def search(self, study: str, variant: str, axes: int | None = None) -> tuple[Setting | None, list[Job]]:
        """The setting that the search chose along the first ``axes`` (all by default), None where trainings are
        missing; and those of them that can be made now."""
        s, v = STUDIES[study], STUDIES[study].variants[variant]
        if s.searched:
            return self.search(s.searched, variant, axes)
        first = next(iter(s.variants))
        best: Setting | None = {}
        if variant != first:
            best, missing = self.search(study, v.like or first, None if v.like else 1)
            if best is None:
                return None, missing
            if v.setting.get("net") == "zero":
                best = {key: value for key, value in best.items() if not key.startswith("net.")}
            best = best if v.like else {k: x for k, x in best.items() if k in ("train.batch_size", "net.channels")}
        best = merged(best, *(axis[0] for axis in v.axes))
        for axis in v.axes[:axes]:
            jobs = [self.job(study, variant, merged(best, value), "search", TENTH, SEARCH_SEED) for value in axis]
            bits = [self.valid(job.name) for job in jobs]
            if None in bits:
                return None, [job for job, value in zip(jobs, bits, strict=True) if value is None]
            best = merged(best, axis[min(range(len(axis)), key=lambda i: bits[i] or 0.0)])
        return best, []

    def jobs(self) -> list[Job]:
        """What can be trained now, in the order of the plan: searches, first seeds, the curve, more seeds, the rest."""
        ready: list[Job] = []
        chosen: dict[tuple[str, str], Setting] = {}
        for study, s in STUDIES.items():
            for variant in s.variants:
                setting, missing = self.search(study, variant)
                ready += [] if s.searched else missing
                if setting is not None:
                    chosen[study, variant] = setting
        for seed in SEEDS:
            for (study, variant), setting in chosen.items():
                if seed in STUDIES[study].variants[variant].seeds:
                    ready.append(self.job(study, variant, setting, "final", 1.0, seed))
                if seed == SEEDS[0] and STUDIES[study].curve:
                    ready.append(self.job(study, variant, setting, "third", THIRD, SEARCH_SEED))
        unique = {job.name: job for job in [*ready, *SHIPPED, *PAIRS]}
        return [job for job in unique.values() if self.valid(job.name) is None]


LONGER: Setting = {
    "train.objective": "fid",
    "train.batch_size": 32,
    "train.lr": 2e-3,
    "train.flow_lr": 3e-2,
    "train.steps": 12_000,
    "train.seed": 1,
}
FOR_EMOJI: Setting = {"train.batch_size": 32, "train.lr": 2e-3, "train.flow_lr": 1e-2}
SHIPPED = [
    Job(
        "models/fashion-mnist",
        "fashion-mnist",
        ALIKE
        | LONGER
        | LEARNED_NOISE
        | {"train.dequantization_lr": 1e-3, "condition": "classes", "condition.drop": 0.1},
        tested=True,
        about={"study": "models", "variant": "fashion-mnist", "stage": "final", "seed": 1},
    ),
]
EMOJI = ("emoji-pairs/google", "emoji-pairs/twitter")
PAIR: Setting = ALIKE | FOR_EMOJI | {
    "data.size": 32, "data.flip": False, "train.steps": 10_000, "train.seed": 1,
}  # fmt: skip
PAIRS = [
    Job("pairs/two-models", "", PAIR | {"flow": "elementwise"}, "train-pair", folders=EMOJI),
    Job("pairs/classes", "", PAIR | {"flow": "elementwise", "condition.drop": 0.1}, "train-bridge", folders=EMOJI),
    Job("pairs/bridge", "", PAIR | {"form": "terminal", "train.flow_lr": 2e-3}, "train-bridge", folders=EMOJI),
]
