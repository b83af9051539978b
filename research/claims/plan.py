"""The plan of one reproduction: which runs it holds, their recipes and what is measured of them, kept in ``plan.json``.

Learning rates are constant (no decay), so that every point of a learning curve is what a run that ended there would
have reached.
"""

import pkgutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from indm.files import atomic, untrusted
from indm.messages import nearest, reason
from indm.workbench.evaluation.methods import MARGIN
from indm.workbench.evaluation.statistics import LEVEL
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import ReportOptions
from indm.workbench.recipes.recipe import Recipe
from research.claims.claims import CLAIMS, THESE_EXAMPLES, Claim, family_of
from research.claims.studies import STUDIES, VARIANTS
from research.measurements import MEASUREMENTS

PLAN = "plan.json"
FIRST_SEED = 0  # its runs keep snapshots, and more is shown of them
FAST_SEEDS = 2
STEPS, FAST_STEPS = (5, 10, 20, 50, 100), (5, 10, 20)
SAMPLERS = ("unipc", "euler-maruyama")


@dataclass(frozen=True)
class Plan:
    """What is trained and judged."""

    data: tuple[str, ...] = tuple(STUDIES)[:3]
    """Data sets: eight-gaussians, digits, fashion-mnist-16 or fashion-mnist, the one of 28×28."""
    seeds: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 10 in the plane, 5 of images)")] = None
    """Runs of each model. A verdict needs at least two, and hardly comes with fewer than five."""
    fast: bool = False
    """A tenth of the budget and two seeds, with which verdicts come out undecided: shows whether everything works, not
    whether the claims hold."""
    claims: Annotated[tuple[str, ...], arg(help_behavior_hint="(default: none)")] = ()
    """Claims of your own beside the paper's: package.module:name, each a function that returns a Claim."""

    def __post_init__(self):
        if not self.data:
            raise ValueError(f"data must name at least one of {', '.join(STUDIES)}, got none")
        for name in self.data:
            if name not in STUDIES:
                raise ValueError(f"data must be of {', '.join(STUDIES)}, got {name!r}{nearest(name, STUDIES)}")
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}; 5 is usual")

    def options(self, data: str, seed: int) -> ReportOptions:
        """What is measured of a run; each seed has its own noise, so that the spread over seeds includes it."""
        study = STUDIES[data]
        images, steps = (study.fast_images, FAST_STEPS) if self.fast else (study.images, STEPS)
        return ReportOptions(images, steps, SAMPLERS, seed)

    def seeds_of(self, data: str) -> range:
        """The seeds of every variant's runs."""
        return range(self.seeds or (FAST_SEEDS if self.fast else STUDIES[data].seeds))

    @property
    def validations(self) -> int:
        """Points of a learning curve."""
        return 10 if self.fast else 20

    @property
    def snapshots(self) -> int:
        """Models kept along training, for the first seed."""
        return 2 if self.fast else 4

    def steps(self, data: str) -> int:
        """Optimizer steps of INDM."""
        return STUDIES[data].fast_steps if self.fast else STUDIES[data].steps

    def units(self) -> list[tuple[str, str, int]]:
        """Data, variant and seed of every run, INDM and its twin first."""
        order = sorted(VARIANTS, key=lambda variant: variant not in ("linear", "indm"))
        return [
            (data, variant, seed)
            for data in self.data
            for variant in order
            if variant in STUDIES[data].variants
            for seed in self.seeds_of(data)
        ]


def claims_of(plan: Plan) -> tuple[Claim, ...]:
    """The paper's claims, and the plan's own, which are imported.

    Raises:
        ValueError: a name that leads to no claim.
    """
    return (*CLAIMS, *map(_own_claim, plan.claims))


def family_of_plan(plan: Plan) -> tuple[str, ...]:
    """Every difference that the plan will judge, as "claim · data · quantity"."""
    variants = {data: STUDIES[data].variants for data in plan.data}
    return tuple(f"{c.name} · {data} · {row.quantity}" for c, data, row in family_of(claims_of(plan), variants))


def _own_claim(name: str) -> Claim:
    try:
        claim = pkgutil.resolve_name(name)()
    except (ValueError, ImportError, AttributeError, TypeError) as error:
        raise ValueError(
            f"claims: {name} must be package.module:name, a function without arguments that returns a Claim: "
            f"{reason(error)}"
        ) from error
    if not isinstance(claim, Claim):
        raise ValueError(f"claims: {name} must be a function that returns a Claim, it returns {type(claim).__name__}")
    return claim


def measurements_of(claims: Sequence[Claim], variant: str, seed: int) -> list[str]:
    """What is measured of a run: what the claims need and what the page shows, in the order of the table."""
    row = VARIANTS[variant]
    needed = {name for claim in claims if variant in claim.variants for name in claim.measurements} | {*row.shown}
    if seed == FIRST_SEED:
        needed |= {*row.shown_once}
    return [name for name in MEASUREMENTS if name in needed]


def run_folder(out: Path, data: str, variant: str, seed: int) -> Path:
    """Where a run of the reproduction in ``out`` is."""
    return out / data / variant / str(seed)


def recipe_of(plan: Plan, data: str, variant: str, seed: int, steps: int) -> Recipe:
    """The recipe of a run: that of the data, with the variant's changes and the budget."""
    study, row = STUDIES[data], VARIANTS[variant]
    recipe = recipes.override(recipes.load(study.recipe), dict(study.changes))
    evaluate = {**study.evaluate, **({"examples": "200", "nll_examples": "0"} if plan.fast else {})}
    changes = {**row.changes, **row.fit(recipe), **{f"evaluate.{key}": value for key, value in evaluate.items()}}
    changes |= {
        "train.seed": str(seed),
        "train.steps": str(steps),
        "train.seconds": "inf",
        "train.decay": "0.0",
        "train.validate_every": str(max(1, steps // plan.validations)),
        "train.validate_examples": "500",
        "train.snapshot_every": str(max(1, steps // plan.snapshots) if seed == FIRST_SEED else 0),
        "train.checkpoint_every": "200",
    }
    return recipes.resolve(recipes.override(recipe, changes))


@dataclass(frozen=True)
class Budget:
    """What ``plan.json`` holds.

    Args:
        plan: what the reproduction is.
        seconds_per_step: by data and variant.
        log_cost: log of the seconds of an INDM step over those of a linear one, and its standard error, by data.
        steps: of each run, by data and variant.
        threads: of each run, with which the costs were measured.
        family: every difference that will get a verdict, stated before anything is trained.
    """

    plan: Plan
    seconds_per_step: dict[str, dict[str, float]]
    log_cost: dict[str, tuple[float, float]]
    steps: dict[str, dict[str, int]]
    threads: int
    family: tuple[str, ...]

    def save(self, out: Path) -> None:
        """Write ``plan.json`` into ``out``."""
        out.mkdir(parents=True, exist_ok=True)
        atomic.json_object(out / PLAN, asdict(self))

    @staticmethod
    def load(out: Path) -> "Budget | None":
        """What ``plan.json`` in ``out`` holds; None where there is none.

        Raises:
            ValueError: it is damaged.
        """
        path = out / PLAN
        if not path.exists():
            return None
        stored = untrusted.json_object(path)
        try:
            names = {key: tuple(stored["plan"].get(key, ())) for key in ("data", "claims")}
            plan = Plan(**stored["plan"] | names)
            log_cost = {data: (cost, error) for data, (cost, error) in stored["log_cost"].items()}
            family = tuple(stored["family"])
            return Budget(**stored | {"plan": plan, "log_cost": log_cost, "family": family})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is no plan of a reproduction: {reason(error)}") from error

    def text(self) -> str:
        """What every run could spend, in words."""
        parts = []
        for data in self.plan.data:
            costs, steps = self.seconds_per_step[data], self.steps[data]
            counts = ", ".join(f"{v} {steps[v]} × {1e3 * costs[v]:.0f} ms" for v in STUDIES[data].variants)
            parts.append(f"{data}: {counts}")
        return (
            f"Equal seconds for all. Steps × cost of a step on {self.threads} thread(s): {'; '.join(parts)}. "
            "Differences are INDM − linear in pairs over seeds, ± √(a² + b²) of the standard errors over seeds and of "
            "what all seeds share: the examples of a NELBO and of a gap NELBO − NLL (errors of the two models' gaps "
            "are added as if independent), and the measured cost of a step. Seeds share examples in the rows "
            f'"{THESE_EXAMPLES}" as well, but their error leaves that out: other examples could give another verdict. '
            "p is that of Student's paired t over seeds; Holm's p is adjusted over the whole table, "
            f"{len(self.family)} differences that {PLAN} stated before anything was trained. "
            f"A verdict needs one of at most {LEVEL:.0%}, two seeds or more, and steps × cost that differ by at most "
            f'{MARGIN:.0%}. "Steps" are the optimizer steps that runs of the two made. Distances of samples have noise '
            "of their own in every seed."
        )
