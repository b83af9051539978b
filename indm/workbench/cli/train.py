"""``indm train``, ``train-pair`` and ``train-bridge``."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from indm.checks import counted, one_line
from indm.workbench.cli.common import DONE, INTERRUPTED, ShowsProgress, run_name, say
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import default

TRANSLATES = "pictures of A as pictures of B"
EVALUATES = "the likelihood of the test split, with simple baselines"
TWO = arg(
    metavar="A B | RECIPE",
    help_behavior_hint="(required)",
    help="Two image folders, or one recipe.",
)
Sources = Annotated[Positional[tuple[str, ...]], TWO]


@dataclass(kw_only=True)
class TrainsRecipe(ShowsProgress):
    """Base of the commands that train a recipe."""

    tables = recipes.TABLES

    resume: bool = False
    """Continue from the last checkpoint in the run folder."""
    dry_run: bool = False
    """Show the whole recipe, the sizes, and the time of a step and of the run; write nothing."""

    def named(self) -> list[str]:
        if self.resume:  # the run may be somebody else's
            return []
        values = self.table_values.items()
        return [value for key, value in values if "." not in key or key == "train.objective"]

    def train(
        self,
        recipe: recipes.AnyTables,
        out: Path,
        like: Path | None = None,
        *,
        translates: bool = False,
    ) -> int:
        """Train one run and print its result, or show the plan; the exit status."""
        from indm.workbench.training.loop import train

        if self.dry_run:
            return show_plan(recipe, out)
        summary = train(recipe, out, like=like, resume=self.resume, progress=self.progress)
        run, trained = shlex.quote(str(out)), recipes.resolve(recipes.load(out)).train
        if summary["interrupted"]:
            where = f"at step {summary['steps']}"
            say(f"Interrupted {where}. Continue with: indm train {run} --resume", file=sys.stderr)
            return INTERRUPTED
        say(f"{out}: {came_to(summary)}")
        commands = {f"indm translate {run} IMAGES --out FOLDER": TRANSLATES} if translates else {}
        if not trained.initial_noise:
            commands |= {f"indm evaluate {run}": EVALUATES, f"indm sample {run}": "new samples"}
        more = f"--train.seconds {2 * trained.seconds:.0f}"
        if summary["steps"] >= trained.steps:
            more = f"--train.steps {2 * trained.steps:.0f}"
        say(next_commands(commands | {f"indm train {run} --resume {more}": "train on"}))
        return DONE


def loaded(source: str) -> recipes.Tables:
    """The tables of a recipe; if it is data, a ValueError with the right command."""
    path = Path(source)
    if path.is_dir() and not (path / "recipe.toml").is_file() and source not in recipes.bundled():
        meant = "it is empty: give the command that made it, without --resume"
        if any(path.iterdir()):
            meant = f"to train on its images: indm train folder --data.path {shlex.quote(source)}"
        raise ValueError(f"{source} is not a run folder, there is no recipe.toml in it; {meant}")
    if path.is_file() and not source.endswith(".toml"):
        meant = (
            f"to train on an array or a table: indm train array --data.path {shlex.quote(source)}"
        )
        raise ValueError(f"{source} is not a recipe, whose name would end in .toml; {meant}")
    return recipes.load(source)


@dataclass
class Train(TrainsRecipe):
    """Train a model by a recipe, in a run folder.

    Change any key of the recipe by an option: --train.steps 500 --flow.width 32 --data.path
    my-images. The name of a table takes another part: --flow identity (a linear diffusion), --sde
    ve, --net mlp. A part can also be your own code: --net my_package.nets:Mine --net.width 64.
    Values are TOML (--net.multipliers "[1, 2]"); any other text is a string. "indm list train"
    explains the keys of [train]; the keys of a part are in the reference on the site.

    Ctrl-C finishes the step, saves, and prints the command that continues, such as "indm train
    runs/digits --resume". "indm train digits --dry-run > mine.toml" writes a recipe to change.
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """Name of a recipe (see "indm list recipes"), a TOML file, or a run folder."""
    out: Annotated[Path | None, arg(metavar="FOLDER"), default("runs/RECIPE")] = None
    """The run folder."""
    like: Annotated[Path | None, arg(metavar="RUN"), default("the recipe's budget")] = None
    """Choose the number of steps so that this run costs the same as RUN; a step of both is measured."""

    def run(self) -> int:
        options = {"--resume": self.resume, "--dry-run": self.dry_run}
        both = [f"--{key}" for key in ("train.steps", "train.seconds") if key in self.table_values]
        both += [option for option, given in options.items() if given]
        if self.like and both:
            raise ValueError(f"--like gives the budget: leave out {', '.join(both)}")
        recipe = recipes.override(loaded(self.recipe), self.table_values)
        is_run = self.recipe not in recipes.bundled() and Path(self.recipe).is_dir()
        out = self.out or (Path(self.recipe) if is_run else Path("runs") / run_name(self.recipe))
        return self.train(recipe, out, self.like)


@dataclass
class TrainPair(TrainsRecipe):
    """Train two models, of the data of A and of B, for "indm translate".

    Give two image folders, or a recipe with [data] and [data_b] (sneaker-boot, pullover-dress,
    digits-3-8, …). Both models have the recipe's settings, and each has its whole budget. Change
    keys as in "indm train": --data.size 32 (for both folders), --train.seconds 600. With --flow
    identity they are linear diffusions (DDIB).

    The run folder has a run for each side, a and b. Ctrl-C saves; the same command with --resume
    continues.
    """

    sources: Sources
    out: Annotated[Path | None, arg(metavar="FOLDER"), default("runs/RECIPE or runs/A-B")] = None
    """The run folder."""

    def run(self) -> int:
        from indm.workbench.training.pairs import sides_of, train_pair

        recipe, name = recipe_of_two(self.sources, self.table_values)
        out = self.out or Path("runs") / name
        if self.dry_run:
            return show_plan(sides_of(recipe)["a"], out / "a", ", and another run like this to b")
        summaries = train_pair(recipe, out, resume=self.resume, progress=self.progress)
        side, last = list(summaries.items())[-1]
        if last["interrupted"] or len(summaries) < 2:
            where = f"in {side}, at step {last['steps']}"
            say(f"Interrupted {where}. The same command with --resume continues.", file=sys.stderr)
            return INTERRUPTED
        for side, summary in summaries.items():
            say(f"{out / side}: {came_to(summary)}")
        commands = {f"indm translate {shlex.quote(str(out))} IMAGES --out FOLDER": TRANSLATES}
        for side in summaries:
            commands[f"indm evaluate {shlex.quote(str(out / side))}"] = EVALUATES
        say(next_commands(commands))
        return DONE


@dataclass
class TrainBridge(TrainsRecipe):
    """Train one model of the images of A and of B, for "indm translate".

    It is class-conditional: A and B are its classes. A translation goes to noise as class A and
    back as class B.

    With --form terminal its diffusion leads from A at t = 0 to B at t = T. It minimises the NELBO
    of A plus train.terminal times −log p of B under the flow and the prior, both per dimension.
    Only the flow models B, so recipes for this form have a strong flow and a large weight of B.

    Sources and changes are those of "indm train-pair".
    """

    sources: Sources
    out: Annotated[Path | None, arg(metavar="FOLDER"), default("runs/RECIPE-bridge")] = None
    """The run folder."""
    form: Literal["classes", "terminal"] = "classes"
    """A class-conditional model, or one whose diffusion ends in B."""

    def run(self) -> int:
        from indm.workbench.training.pairs import as_bridge, as_one, is_bridge

        if self.form == "classes":
            recipe, name = recipe_of_two(self.sources, self.table_values)
            recipe = as_one(recipe)
        else:
            recipe, name = recipe_of_two(self.sources, self.table_values, as_bridge)
            if not is_bridge(recipe):
                why = "a recipe without [bridge.train] needs it, --train.terminal 100"
                raise ValueError(
                    f"train.terminal must be above 0 for --form terminal, got 0: {why}"
                )
        return self.train(recipe, self.out or Path("runs") / f"{name}-bridge", translates=True)


def show_plan(recipe: recipes.AnyTables, out: Path, more: str = "") -> int:
    """Print the recipe of a run with its costs in comments; the exit status."""
    from indm.workbench.training.loop import plan

    whole, known = plan(recipe)
    comments = "".join(f"\n# {key}: {one_line(value)}" for key, value in known.items())
    print(recipes.to_toml(whole) + comments + f"\n# would be written to: {one_line(out)}{more}")
    return DONE


def came_to(summary: dict) -> str:
    """The result of a run in one line."""
    seconds = timedelta(seconds=round(summary["seconds"]))
    parts = [f"{counted(summary['steps'], 'step')} in {seconds}"]
    if "valid_nelbo" in summary:
        best = summary.get("best", {})
        is_last = best.get("step") in (None, summary["steps"])
        earlier = "" if is_last else f" (best {best['valid_nelbo']:.4g}, at step {best['step']:,})"
        parts.append(f"validation NELBO {summary['valid_nelbo']:.4g} {summary['unit']}{earlier}")
    for key, thing, words in (
        ("skipped_steps", "step", "left out"),
        ("unreadable_images", "image", "that could not be read"),
    ):
        parts += [f"{counted(summary[key], thing)} {words}"] if summary.get(key) else []
    return ", ".join(parts)


def next_commands(lines: dict[str, str]) -> str:
    """Commands with their purposes."""
    width = max(map(len, lines))
    return "\n".join(f"  {command:{width}}   {words}" for command, words in lines.items())


def recipe_of_two(
    sources: Sequence[str],
    changes: dict[str, str],
    prepared: Callable[[recipes.Tables], recipes.Tables] = lambda recipe: recipe,
) -> tuple[recipes.Tables, str]:
    """The recipe of two image folders, or one recipe with two data sets; and the name of its run.

    With two folders, changes of ``data`` are also made to ``data_b``. ``prepared`` is applied
    before the changes.
    """
    first = Path(sources[0]) if sources else Path()
    is_alone = len(sources) == 1 and first.is_dir() and not (first / "recipe.toml").is_file()
    if is_alone or len(sources) not in (1, 2):
        got = f"the folder {sources[0]} alone" if is_alone else f"{len(sources)} sources"
        raise ValueError(f"two image folders or one recipe must be given, got {got}")
    if len(sources) == 1:
        recipe = recipes.override(prepared(loaded(sources[0])), changes)
    else:
        a, b = map(json.dumps, sources)
        of_data = {
            key.partition(".")[2]: v for key, v in changes.items() if key.startswith("data.")
        }
        both = {"data.path": a, "data_b.path": b} | {f"data_b.{k}": v for k, v in of_data.items()}
        recipe = recipes.override(prepared(recipes.load("translate-folders")), both | changes)
    return recipe, "-".join(map(run_name, sources))
