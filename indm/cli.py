"""The command line: one class a command, ``indm COMMAND --help``."""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from accelerate import PartialState
from tyro.conf import Positional, arg

import indm
from indm import compare, pictures, recipes, runs
from indm.data import load_data, stack
from indm.densities import DENSITIES
from indm.sampling import SAMPLERS

ABOUT = """Implicit nonlinear diffusion models: train one, report its likelihood, sample from it.

  indm recipes                            what can be trained as it is
  indm train digits --out runs/digits     train; Ctrl-C saves, --resume goes on
  indm evaluate runs/digits               NELBO and NLL of the test split, with error bars
  indm sample runs/digits -n 64           a grid of samples
  indm report runs/digits runs/linear     runs side by side on one page
  indm train-pair cats dogs               two image folders, to translate one into the other
  indm translate runs/cats-dogs cats --out as-dogs
  indm reproduce --fast                   the paper's claims, each with a number and a verdict
"""
DOTTED = re.compile(r"--((?:[\w-]+\.[\w.-]+)|data|data[-_]b|flow|sde|net|train|evaluate)(?:=(.*))?", re.DOTALL)


def from_recipe(metavar: str):
    """An option whose default stands in the recipe."""
    return arg(metavar=metavar, help_behavior_hint="(default: the recipe's)")


@dataclass
class Train:
    """Train a model from a recipe, in a run folder.

    Any key of the recipe can be changed: --train.steps 500 --flow.width 32 --data.path my-images. A bare table name
    puts another thing in its place: --flow identity is the linear twin, --sde ve, --net mlp. Values are TOML
    (--net.multipliers "[1, 2]"); what is not is a string.

    Ctrl-C finishes the step, saves, and says how to go on. "indm train runs/digits --resume" does, with the recipe
    saved there. "indm train digits --dry-run > mine.toml" writes a recipe of your own to begin with.
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """Name of a recipe (see "indm recipes"), a TOML file, or a run folder."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/RECIPE)")] = None
    """The run folder."""
    resume: bool = False
    """Go on from the checkpoint in the run folder."""
    dry_run: bool = False
    """Show the resolved recipe, the sizes and the time of one step; write nothing."""
    quiet: bool = False
    """No progress bar."""

    def run(self, changes: dict[str, str]) -> int:
        from indm.training import plan

        recipe = recipes.override(recipes.load(self.recipe), changes)
        is_run = self.recipe not in recipes.bundled() and Path(self.recipe).is_dir()
        out = self.out or (Path(self.recipe) if is_run else Path("runs") / Path(self.recipe).stem)
        if self.dry_run:
            facts = plan(recipe) | {"would be written to": out}
            print(recipes.to_toml(recipes.resolve(recipe)) + "".join(f"\n# {k}: {v}" for k, v in facts.items()))
            return 0
        return train_run(recipe, out, self.resume, self.quiet)


def train_run(recipe: recipes.Recipe, out: Path, resume: bool, quiet: bool) -> int:
    """Train one run and say what came of it; the exit status."""
    from indm.training import train

    summary = train(recipe, out, resume=resume, progress=not quiet)
    if summary["interrupted"]:
        go_on = shlex.join(["indm", "train", str(out), "--resume"])
        print(f"Interrupted at step {summary['steps']}; all is saved. Go on with: {go_on}", file=sys.stderr)
        return 130
    if PartialState().is_main_process:
        print(f"{out}: {json.dumps(summary)}")
    return 0


def recipe_of_two(
    sources: tuple[str, ...], changes: dict[str, str], out: Path | None, suffix: str
) -> tuple[recipes.Recipe, Path]:
    """The recipe that two image folders, or the name of a recipe with two data sets, mean; and the run folder.

    With two folders, what is said of ``data`` also holds for ``data_b``.
    """
    if len(sources) == 1:
        name = Path(sources[0]).stem
        recipe = recipes.override(recipes.load(sources[0]), changes)
    elif len(sources) == 2:
        name = "-".join(Path(source).name for source in sources)
        both = {f"data_b.{key[5:]}": value for key, value in changes.items() if key.startswith("data.")}
        paths = {f"{table}.path": json.dumps(source) for table, source in zip(("data", "data_b"), sources, strict=True)}
        recipe = recipes.override(recipes.load("translate-folders"), paths | both | changes)
    else:
        raise ValueError(f"two image folders or one recipe must be given, got {len(sources)} sources")
    if "data_b" not in recipe:
        raise ValueError(f"{sources[0]} has no [data_b]: give two image folders, or a recipe with two data sets")
    return recipe, out or Path("runs") / f"{name}{suffix}"


@dataclass
class Evaluate:
    """Report the likelihood of held-out data under a run's model: NELBO and NLL, with and without reconstruction.

    Prints a table and writes evaluation.json, and per-example nats to evaluation.npz. What is not given here is as in
    the recipe's [evaluate] table.
    """

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    split: Annotated[Literal["test", "valid", "train"] | None, from_recipe("SPLIT")] = None
    """Which examples: test, valid or train."""
    images: Annotated[int | None, from_recipe("N")] = None
    """How many of them, at most, for the NELBO."""
    nll_images: Annotated[int | None, from_recipe("N")] = None
    """How many of these for the NLL of the probability-flow ODE; 0 skips it."""
    repeats: Annotated[int | None, from_recipe("N")] = None
    """Independent estimates for each example (2 or more), which tell the estimator's noise."""
    times: Annotated[int | None, from_recipe("N")] = None
    """Score evaluations of one NELBO estimate."""
    probes: Annotated[int | None, from_recipe("N")] = None
    """Hutchinson probes of the divergence."""
    rtol: Annotated[float | None, from_recipe("TOLERANCE")] = None
    """Relative tolerance of the ODE solver."""
    atol: Annotated[float | None, from_recipe("TOLERANCE")] = None
    """Absolute tolerance of the ODE solver."""
    steps: Annotated[int | None, from_recipe("N")] = None
    """Solve the ODE in so many equal steps (24 is usual): fast, but without error control; 0 is adaptive."""
    batch_size: Annotated[int | None, from_recipe("N")] = None
    """Examples at a time."""
    seed: Annotated[int | None, from_recipe("N")] = None
    """Of everything random in it."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        given = {k: v for k, v in vars(self).items() if v is not None and k not in ("run_folder", "quiet")}
        result = runs.evaluate(self.run_folder, given, progress=not self.quiet)
        if PartialState().is_main_process:
            print(compare.likelihood_table(result))
        return 0


@dataclass
class Sample:
    """Draw samples from a run's model: samples.png (a grid, or a scatter plot beside the data) and samples.npz."""

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    n: Annotated[int, arg(aliases=["-n"])] = 64
    """How many."""
    sampler: Annotated[str, arg(help=f'{", ".join(SAMPLERS)}; "ode" is adaptive and chooses its own steps.')] = "unipc"
    steps: int = 25
    """Time steps."""
    temperature: float = 1.0
    """Factor on the latent before it is decoded; 1 samples the model."""
    batch_size: int = 256
    """Samples at a time."""
    seed: int = 0
    """Of the noise."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: the run folder)")] = None
    """Where to write."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        model, recipe = runs.open_run(self.run_folder)
        if self.n < 1:
            raise ValueError(f"-n must be at least 1 sample, got {self.n}")
        generator = torch.Generator(model.scaling.scale.device).manual_seed(self.seed)
        x = indm.sample(
            model, self.n, sampler=self.sampler, steps=self.steps, temperature=self.temperature,
            batch_size=self.batch_size, generator=generator, progress=not self.quiet,
        )  # fmt: skip
        samples, out = model.scaling.to_data(x).cpu(), self.out or self.run_folder
        out.mkdir(parents=True, exist_ok=True)
        runs.save_arrays(
            out / "samples.npz", {"samples": samples.numpy(), "levels": np.array(model.scaling.levels or 0)}
        )
        if samples.ndim == 4:
            pictures.save_grid(samples, model.scaling.levels or 256, out / "samples.png")
        elif samples.shape[1] > 1:
            reference = stack(load_data(**recipe["data"]).test, len(samples)).float()
            pictures.scatter(samples, reference, DENSITIES.get(recipe["data"]["name"]), out / "samples.png")
        print(f"{out / 'samples.png'}: {self.n} samples by {self.sampler}, {self.steps} steps")
        return 0


@dataclass
class Compare:
    """Compare evaluated runs: a table, paired differences from the first run, and comparison.png.

    A difference within two standard errors is a tie.
    """

    run_folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN RUN…")]
    """Two or more run folders, each of them evaluated on the same examples."""
    out: Path = Path(".")
    """Where to write comparison.png and comparison.json."""

    def run(self) -> int:
        print(compare.compare(list(self.run_folders), self.out))
        print(f"{self.out / 'comparison.png'}")
        return 0


@dataclass
class Inspect:
    """Look at what the flow of a run does: flow.png and flow.json.

    The singular values of its Jacobian, where its action lies (colour, low and high frequencies, position), and how
    long the class can be told from x_t. Give a linear run (--flow identity) as a second one to compare with.
    """

    run_folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN RUN…")]
    """One or more run folders, all of the same data."""
    examples: int = 2000
    """Examples of each split to look at, at most."""
    seed: int = 0
    """Of dequantization and noise."""
    out: Path = Path(".")
    """Where to write flow.png and flow.json."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        from indm import anatomy

        found = {}
        for folder in self.run_folders:
            model, recipe = runs.open_run(folder)
            data = load_data(**recipe["data"])
            options = {"examples": self.examples, "seed": self.seed, "progress": not self.quiet}
            found[str(folder)] = anatomy.inspect(model, data, **options)
        self.out.mkdir(parents=True, exist_ok=True)
        runs.write_json(self.out / "flow.json", found)
        anatomy.save_figure(found, self.out / "flow.png")
        for name, result in found.items():
            print(name, ", ".join(f"{key} {value:.3f}" for key, value in result["action"].items()))
        print(self.out / "flow.png")
        return 0


@dataclass
class Report:
    """Set runs of one data set side by side on one page: index.html, its pictures as PNG, report.json.

    Learning curves, likelihoods, sample quality over steps for each sampler, samples, paths x_t, interpolation,
    transport cost, the sampling error by parts, what the flow does. Runs that differ in the seed alone are averaged.
    What was measured is kept in the run folders, so that a report that was stopped goes on.
    """

    run_folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN RUN…")]
    """One or more run folders of one data set; what was not evaluated is."""
    out: Path = Path("report")
    """Where to write."""
    images: int = 500
    """Samples of each measure, at most; a tenth of it is quick and rough."""
    steps: tuple[int, ...] = (5, 10, 20, 50, 100)
    """Of the samplers. From 200 on for the stochastic ones alone: the others have long converged."""
    samplers: tuple[str, ...] = ("unipc", "heun", "euler-maruyama")
    seed: int = 0
    """Of everything random."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        from indm.report import Options, report

        options = Options(self.images, self.steps, self.samplers, self.seed)
        print(report(list(self.run_folders), self.out, options, progress=not self.quiet))
        return 0


@dataclass
class Reproduce:
    """Reproduce the paper's claims: train INDM and its linear twin at equal seconds, and judge each claim.

    Also the plain flow, a VAE, pre-trained INDM, and both under VE; three seeds each. Writes index.html, claims.md and
    claims.json. It can be killed at any time: the same command goes on. On two cores the whole takes about 80 minutes,
    --fast about 15.
    """

    data: tuple[Literal["eight-gaussians", "digits", "fashion-mnist-16", "fashion-mnist"], ...] = (
        "eight-gaussians", "digits", "fashion-mnist-16",
    )  # fmt: skip
    """Data sets; fashion-mnist is the one of 28×28."""
    out: Path = Path("runs/reproduce")
    """Where to write."""
    fast: bool = False
    """A tenth of the budget: whether all works, not whether the claims hold."""
    seeds: int = 3
    jobs: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one a core; 1 with a GPU)")] = None
    """Runs side by side."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        from indm.reproduce import Plan, reproduce, summary

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: all units save what they have
        plan = Plan(self.data, self.seeds, self.fast)
        try:
            verdicts = reproduce(self.out, plan, jobs=self.jobs, progress=not self.quiet)
        except KeyboardInterrupt:
            print("Interrupted; all is saved. The same command goes on.", file=sys.stderr)
            return 130
        print(f"{summary(verdicts)}\n{self.out / 'index.html'}")
        return 0


@dataclass
class TrainPair:
    """Train two models, one of each of two data sets, to translate between them with "indm translate".

    Give two image folders, or a recipe with [data] and [data_b] (sneaker-boot, pullover-dress, digits-3-8, …). Both
    models have the recipe's settings and its whole budget each. Any key can be changed as in "indm train":
    --data.size 32 (with two folders: for both), --train.seconds 600; --flow identity is DDIB, the linear baseline.

    The run folder holds a run for each side, a and b. Ctrl-C saves; the same command with --resume goes on.
    """

    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="A B | RECIPE")]
    """Two image folders, or one recipe."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/RECIPE or runs/A-B)")] = None
    """The run folder."""
    resume: bool = False
    """Go on from where the run folder is."""
    quiet: bool = False
    """No progress bar."""

    def run(self, changes: dict[str, str]) -> int:
        from indm.pairs import train_pair

        recipe, out = recipe_of_two(self.sources, changes, self.out, "")
        summaries = train_pair(recipe, out, resume=self.resume, progress=not self.quiet)
        if any(summary["interrupted"] for summary in summaries.values()):
            print("Interrupted; all is saved. The same command with --resume goes on.", file=sys.stderr)
            return 130
        for side, summary in summaries.items():
            print(f"{out / side}: {json.dumps(summary)}")
        return 0


@dataclass
class TrainBridge:
    """Train one model whose diffusion begins in the images of A and ends in those of B.

    It minimises the NELBO of A plus train.terminal (1 unless changed) times −log p of B's images under the flow and
    the prior, both per dimension; both are logged, as nelbo and terminal. Sources and changes as in "indm train-pair".
    """

    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="A B | RECIPE")]
    """Two image folders, or one recipe."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/RECIPE-bridge)")] = None
    """The run folder."""
    resume: bool = False
    """Go on from the checkpoint in the run folder."""
    quiet: bool = False
    """No progress bar."""

    def run(self, changes: dict[str, str]) -> int:
        recipe, out = recipe_of_two(self.sources, changes, self.out, "-bridge")
        return train_run(recipe, out, self.resume, self.quiet)


@dataclass
class Translate:
    """Translate images of A into images of B, without pairs to learn from.

      indm translate RUN_A RUN_B photos --out results     two models: to T along A's flow of probability, back along B's
      indm translate PAIR photos --out results            the same, with the folder of "indm train-pair"
      indm translate BRIDGE photos --out results          one model of "indm train-bridge"

    Writes NAME.png for each image (NAME.npz for an array), sheet.png with sources and results in turns, and
    translation.json with the distance of each result from its source and the reason for each that failed.
    """

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN] IMAGES…")]
    """One or two run folders, then images: files, folders, patterns like "x/*.png", arrays as .npz or .npy."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Where to write; a folder that holds anything is an error without --overwrite."""
    direction: Literal["forward", "backward"] = "forward"
    """From A to B, or from B to A."""
    strength: float = 1.0
    """How far up the diffusion to go, as a share of T; less than 1 keeps more of the source."""
    stochastic: bool = False
    """Go up by random noise in place of the probability flow; what comes out depends on --seed."""
    seed: int = 0
    """Of that noise."""
    tol: float = 1e-5
    """Tolerance of the solver."""
    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: as many as --tol needs)")] = None
    """Evaluations of the networks, in place of a tolerance: 50 is quick, and its cycle is less exact."""
    strip: Annotated[int, arg(metavar="FRAMES")] = 0
    """Also write strips/NAME.png, so many pictures of each leg of the way; 0 for none."""
    cycle: bool = False
    """Also go back to A: cycle/NAME.png, and the largest error of each image in grey levels."""
    score: bool = False
    """Also compare with the data of B (Fréchet and kernel distance, how many a classifier takes for B, diversity)."""
    strict: bool = False
    """An image of another size than the model's, or a file that is no image, is an error."""
    overwrite: bool = False
    """Write into a folder that holds something."""
    batch_size: int = 64
    """Images at a time."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        from indm import pairs

        count = next((i for i, path in enumerate(self.paths) if not pairs.is_run(path)), len(self.paths))
        if not count or count == len(self.paths):
            what = "a run folder (with a recipe.toml in it) first" if not count else "images after the run folders"
            raise ValueError(f"translate needs {what}, got {' '.join(map(str, self.paths))}")
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())) and not self.overwrite:
            raise ValueError(f"--out {self.out} exists and is not empty: name another, or add --overwrite")
        opened = pairs.open_runs(self.paths[:count], self.direction)
        options = pairs.Options(
            self.strength, self.stochastic, self.tol, self.steps, self.seed, self.strip, self.cycle, self.score,
            self.strict, self.batch_size,
        )  # fmt: skip
        report = pairs.translate_files(opened, self.paths[count:], self.out, options, progress=not self.quiet)
        print(pairs.summary(report))
        for name, reason in report["failed"].items():
            print(f"indm: not translated: {name}: {reason}", file=sys.stderr)
        print(f"{self.out / 'sheet.png'}" if report["examples"] else "nothing was translated")
        return 1 if report["failed"] else 0


@dataclass
class Recipes:
    """List the recipes that come with indm."""

    def run(self) -> int:
        for name, description in recipes.bundled().items():
            print(f"{name:18} {description}")
        return 0


Command = (
    Train | Evaluate | Sample | TrainPair | TrainBridge | Translate | Compare | Inspect | Report | Reproduce | Recipes
)


def parse(arguments: list[str]) -> tuple[Command, dict[str, str]]:
    """The command, and the dotted changes of a recipe, which only those that train take."""
    changes: dict[str, str] = {}
    rest = list(arguments)
    if arguments[:1] in (["train"], ["train-pair"], ["train-bridge"]):
        rest, changes = split_changes(arguments)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                Command, prog="indm", description=ABOUT, args=rest, config=(tyro.conf.FlagCreatePairsOff,)
            ), changes
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        _, *lines = (re.sub(r"[─-╿|+]|-{3,}", " ", line).strip() for line in complaint.getvalue().splitlines())
        raise ValueError("; ".join(line for line in lines if line).replace(":;", ":")) from None


def split_changes(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take the ``--table.key value`` and ``--table name`` pairs out of the arguments."""
    rest, changes = [], {}
    remaining = iter(arguments)
    for argument in remaining:
        match = DOTTED.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        value = match[2] if match[2] is not None else next(remaining, None)
        if value is None:
            raise ValueError(f"{argument} needs a value")
        changes[match[1].replace("-", "_")] = value
    return rest, changes


def main(arguments: list[str] | None = None) -> int:
    """Run one command; what the user can mend is one line on standard error and status 2."""
    warnings.formatwarning = lambda message, *_: f"indm: warning: {message}\n"
    try:
        command, changes = parse(sys.argv[1:] if arguments is None else arguments)
        return command.run(changes) if isinstance(command, Train | TrainPair | TrainBridge) else command.run()
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("INDM_TRACEBACK"):
            raise
        print(f"indm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
