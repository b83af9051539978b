"""The command line: one class a command, ``indm COMMAND --help``."""

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from accelerate import PartialState
from tyro.conf import Positional, arg

from indm.config import recipes
from indm.config.options import Evaluation
from indm.data.base import stack
from indm.data.densities import DENSITIES
from indm.data.registry import load_data
from indm.evaluation import plots
from indm.evaluation.comparison import compare, likelihood_table
from indm.evaluation.runs import evaluate_run
from indm.files import atomic
from indm.messages import one_line
from indm.runs.folder import check_absent, open_run
from indm.runs.provenance import provenance, weights_hash
from indm.runs.samples import SAMPLES, Drawing, draw
from indm.runs.signals import end_at_once
from indm.sampling import SAMPLERS

ABOUT = """Implicit nonlinear diffusion models: train one, report its likelihood, sample from it.

  indm recipes                            what can be trained as it is
  indm train digits --out runs/digits     train; Ctrl-C saves, --resume goes on
  indm evaluate runs/digits               NELBO and NLL of the test split, with error bars
  indm sample runs/digits -n 64           a grid of samples
  indm fid runs/cifar10                   FID, Inception score, KID, precision and recall
  indm report runs/digits runs/linear     runs side by side on one page
  indm train-pair cats dogs               two image folders, to translate one into the other
  indm translate runs/cats-dogs cats --out as-dogs
  indm reproduce --fast                   the paper's claims, each with a number and a verdict
  indm convert FILE --recipe NAME --out RUN   a checkpoint of the paper's code, as a run

Exit status:

  0    all is done
  1    some examples failed and are named on standard error, the others are done
  2    a mistake, which one line on standard error names
  3    an error that should not be; the same command with --debug shows where it came from
  130  interrupted: Ctrl-C ends a training when its step is saved, all else as soon as may be, the second time at once
  141  nobody reads the output any more, as in "indm recipes | head"

No file is written over without --overwrite.
"""
DONE, SOME_FAILED, MISTAKE, DEFECT, INTERRUPTED, NOBODY_READS = 0, 1, 2, 3, 130, 141
EVALUATION = {field.name for field in fields(Evaluation)}
DOTTED = re.compile(r"--((?:[\w-]+\.[\w.-]+)|data|data[-_]b|flow|sde|net|train|evaluate)(?:=(.*))?", re.DOTALL)


def from_recipe(metavar: str):
    """An option whose default stands in the recipe."""
    return arg(metavar=metavar, help_behavior_hint="(default: the recipe's)")


@dataclass(kw_only=True)
class Common:
    """What every command takes."""

    debug: bool = False
    """Also show where in the program an error came from."""


@dataclass
class Train(Common):
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
        from indm.training.loop import plan

        recipe = recipes.override(recipes.load(self.recipe), changes)
        is_run = self.recipe not in recipes.bundled() and Path(self.recipe).is_dir()
        out = self.out or (Path(self.recipe) if is_run else Path("runs") / name_of(self.recipe))
        if self.dry_run:
            facts = plan(recipe) | {"would be written to": out}
            comments = "".join(f"\n# {key}: {one_line(value)}" for key, value in facts.items())
            print(recipes.to_toml(recipes.resolve(recipe)) + comments)
            return DONE
        return train_run(recipe, out, self.resume, self.quiet)


def train_run(recipe: recipes.Recipe, out: Path, resume: bool, quiet: bool) -> int:
    """Train one run and say what came of it; the exit status."""
    from indm.training.loop import train

    summary = train(recipe, out, resume=resume, progress=not quiet)
    del summary["signal_received"]
    if summary["interrupted"]:
        go_on = shlex.join(["indm", "train", str(out), "--resume"])
        say(f"Interrupted at {what_is_kept(summary)}. Go on with: {go_on}", file=sys.stderr)
        return INTERRUPTED
    say(f"{out}: {json.dumps(summary)}")
    return DONE


def what_is_kept(summary: dict) -> str:
    """Of a run that was interrupted: no state is saved while steps are being left out."""
    step, saved = summary["steps"], summary["saved_step"]
    if saved == step:
        return f"step {step}; all is saved"
    return f"step {step}; saved is step {saved}, the last before steps were left out"


def say(text: str, file: io.TextIOBase | None = None) -> None:
    """Print what all processes know, once."""
    if PartialState().is_main_process:
        print(text, file=file)


def name_of(source: str) -> str:
    """What a run of a recipe or on a folder is called: one name, which never leads out of the folder of runs."""
    path = Path(os.path.abspath(source))
    return (path.name if path.is_dir() else path.stem).lstrip(".") or "run"


def recipe_of_two(
    sources: tuple[str, ...], changes: dict[str, str], out: Path | None, suffix: str
) -> tuple[recipes.Recipe, Path]:
    """The recipe that two image folders, or the name of a recipe with two data sets, mean; and the run folder.

    With two folders, what is said of ``data`` also holds for ``data_b``.
    """
    if len(sources) == 1:
        name = name_of(sources[0])
        recipe = recipes.override(recipes.load(sources[0]), changes)
    elif len(sources) == 2:
        name = "-".join(map(name_of, sources))
        both = {f"data_b.{key[5:]}": value for key, value in changes.items() if key.startswith("data.")}
        paths = {f"{table}.path": json.dumps(source) for table, source in zip(("data", "data_b"), sources, strict=True)}
        recipe = recipes.override(recipes.load("translate-folders"), paths | both | changes)
    else:
        raise ValueError(f"two image folders or one recipe must be given, got {len(sources)} sources")
    if "data_b" not in recipe:
        raise ValueError(f"{sources[0]} has no [data_b]: give two image folders, or a recipe with two data sets")
    return recipe, out or Path("runs") / f"{name}{suffix}"


@dataclass
class Evaluate(Common):
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
    nll_examples: Annotated[int | None, from_recipe("N")] = None
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
    eps: Annotated[float | None, from_recipe("TIME")] = None
    """Truncation of bound and ODE, at or above the model's own; 0 is the model's own."""
    batch_size: Annotated[int | None, from_recipe("N")] = None
    """Examples at a time."""
    seed: Annotated[int | None, from_recipe("N")] = None
    """Of everything random in it."""
    overwrite: bool = False
    """Write over an evaluation that is there."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        check_absent(self.run_folder, ["evaluation.json", "evaluation.npz"], self.overwrite)
        given = {k: v for k, v in vars(self).items() if v is not None and k in EVALUATION}
        result = evaluate_run(self.run_folder, given, progress=not self.quiet)
        if PartialState().is_main_process:  # which alone has the whole of it
            print(likelihood_table(result))
        return DONE


@dataclass(kw_only=True)
class Draws(Common):
    """How a command draws samples of a run: the options are those of :class:`indm.runs.samples.Drawing`."""

    sampler: Annotated[str, arg(help=f'{", ".join(SAMPLERS)}; "ode" is adaptive and chooses its own steps.')] = "unipc"
    steps: int = 25
    """Time steps."""
    tol: Annotated[float | None, arg(metavar="TOLERANCE", help_behavior_hint="(default: 1e-5)")] = None
    """Of the sampler "ode", relative and absolute."""
    snr: Annotated[tuple[float, ...], arg(metavar="RATIO [RATIO]", help_behavior_hint="(default: 0.16)")] = ()
    """Signal-to-noise ratio of the Langevin steps of the sampler "pc"; of two, from the first step to the last."""
    eps: Annotated[float | None, arg(metavar="TIME", help_behavior_hint="(default: the model's)")] = None
    """Where the reverse process ends, at or above the model's own truncation."""
    latent_mean: bool = False
    """Centre the prior on the mean latent of the training data."""
    temperature: float = 1.0
    """Factor on the latent before it is decoded; 1 samples the model."""
    last_denoising: bool = True
    """Leave out the last step, from z at the truncation to the mean of z_0 given it."""
    batch_size: int = 256
    """Samples at a time; part of what decides them."""
    seed: int = 0
    """Of the noise."""
    overwrite: bool = False
    """Write over samples that are there and were drawn otherwise."""
    quiet: bool = False
    """No progress bar."""

    def drawing(self, n: int) -> Drawing:
        own = {key: value for key, value in vars(self).items() if key in {f.name for f in fields(Drawing)}}
        return Drawing(**own | {"n": n, "snr": self.snr[0] if len(self.snr) == 1 else self.snr or None})


@dataclass
class Sample(Draws):
    """Draw samples from a run's model: samples.png (a grid, or a scatter plot beside the data) and samples.npz.

    samples.npz and samples.json tell how they were drawn. Samples that are there already, drawn just so, are not drawn
    again.
    """

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    n: Annotated[int, arg(aliases=["-n"])] = 64
    """How many."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: the run folder)")] = None
    """Where to write."""

    def run(self) -> int:
        out = self.out or self.run_folder
        options = {"overwrite": self.overwrite, "progress": not self.quiet}
        samples, levels, made_by = draw(self.run_folder, self.drawing(self.n), out, **options)
        if (out / "samples.png").exists():
            pass  # drawn just so before, and shown
        elif samples.ndim == 4:
            plots.save_grid(samples, levels or 256, out / "samples.png")
        elif samples.shape[1] > 1:
            reference = stack(load_data(**made_by["data"]).test, len(samples)).float()
            plots.scatter(samples, reference, DENSITIES.get(made_by["data"]["name"]), out / "samples.png")
        by = f"{self.sampler}, {self.steps} steps" if made_by["steps"] else self.sampler
        shown = "samples.png" if (out / "samples.png").exists() else SAMPLES  # numbers by themselves
        print(f"{out / shown}: {self.n} samples by {by}")
        return DONE


@dataclass
class Fid(Draws):
    """Score samples against a reference by torch-fidelity: FID, Inception score, KID, precision and recall.

    indm fid runs/cifar10 draws samples as "indm sample" does and keeps them in samples.npz; drawn just so before, they
    are not drawn again. The scores are added to fid.json with their provenance: pixels, sampler, split, extractor.
    Needs 'indm[fid]', and Inception's weights in a place that the error names where they are missing.
    """

    source: Annotated[Positional[str], arg(metavar="RUN|FOLDER")]
    """What is scored: a run folder, a folder of images, a samples.npz; or a data set's test split, as a yardstick."""
    reference: Annotated[str | None, arg(metavar="SOURCE", help_behavior_hint="(default: the run's data)")] = None
    """A data set (by its name, a recipe or a run folder), a folder of images or a samples.npz."""
    split: Literal["train+valid", "train", "valid", "test"] = "train+valid"
    """Of the reference's data set; train+valid is all that is not for testing, as published scores have it."""
    extractor: Annotated[str, arg(metavar="FOLDER|FILE|inception")] = "inception"
    """Inception, a file of its weights, or a folder with indm's own extractor, trained there on labels if need be."""
    size: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="(default: as they are)")] = None
    """Resize the images of a folder to this side."""
    resize: Annotated[str, arg(metavar="MODE")] = "bilinear"
    """How: bilinear, bicubic, lanczos, …; antialiased."""
    n: Annotated[int | None, arg(aliases=["-n"], metavar="N", help_behavior_hint="(default: as the reference)")] = None
    """How many samples; by default a run draws as many as the reference has, at most 50,000."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: the run folder, or .)")] = None
    """Where to write."""

    def run(self) -> int:
        if importlib.util.find_spec("torch_fidelity") is None:
            raise ValueError("indm fid needs the library torch-fidelity: pip install 'indm[fid]'")
        from indm.evaluation import fid

        reading = {"size": self.size, "resize": self.resize}
        is_run, progress = fid.is_run(self.source), not self.quiet
        idle = [
            f.name for f in fields(Draws) if f.name not in ("quiet", "debug") and getattr(self, f.name) != f.default
        ]
        if idle and not is_run:
            raise ValueError(f"--{idle[0].replace('_', '-')} is for samples drawn of a run, and {self.source} is none")
        if self.reference is None and not is_run:
            raise ValueError(f"--reference must be given for {self.source}, which is no run folder")
        out = self.out or (Path(self.source) if is_run else Path("."))
        check_absent(out, (), self.overwrite)
        fid.read_records(out / "fid.json")
        if self.n is not None:
            fid.check_number("n", self.n)
        reference = fid.open_images(self.reference or self.source, split=self.split, **reading)
        fid.check_number("reference", len(reference.raw))
        features = fid.find_features(self.extractor, reference.data, progress=progress)
        if is_run:
            drawing = self.drawing(min(len(reference.raw), fid.MOST) if self.n is None else self.n)
            samples = fid.of_run(Path(self.source), drawing, out, overwrite=self.overwrite, progress=progress)
        else:
            samples = fid.open_images(self.source, split="test", **reading).first(self.n)
        record = fid.score(samples, reference, features, progress=progress)
        print(fid.table(record))
        fid.keep(record, out / "fid.json")
        print(out / "fid.json")
        return DONE


@dataclass
class Compare(Common):
    """Compare evaluated runs: a table, paired differences from the first run, and comparison.png.

    A difference within two standard errors is a tie.
    """

    run_folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN RUN…")]
    """Two or more run folders, each of them evaluated on the same examples."""
    out: Path = Path(".")
    """Where to write comparison.png and comparison.json."""
    overwrite: bool = False
    """Write over a comparison that is there."""

    def run(self) -> int:
        check_absent(self.out, ["comparison.json", "comparison.png"], self.overwrite)
        print(compare(list(self.run_folders), self.out))
        print(f"{self.out / 'comparison.png'}")
        return DONE


@dataclass
class Inspect(Common):
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
    overwrite: bool = False
    """Write over what is there."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        from indm.evaluation import flow_analysis

        if not self.run_folders:
            raise ValueError("inspect needs at least one run folder, got none")
        check_absent(self.out, ["flow.json", "flow.png"], self.overwrite)
        found = {}
        for folder in self.run_folders:
            model, recipe = open_run(folder)
            data = load_data(**recipe["data"])
            options = {"examples": self.examples, "seed": self.seed, "progress": not self.quiet}
            found[str(folder)] = flow_analysis.inspect(model, data, **options)
        self.out.mkdir(parents=True, exist_ok=True)
        made_by = provenance(self.seed, {str(folder): weights_hash(folder) for folder in self.run_folders})
        atomic.json_object(self.out / "flow.json", {"provenance": made_by, "runs": found})
        flow_analysis.save_figure(found, self.out / "flow.png")
        for name, result in found.items():
            print(name, ", ".join(f"{key} {value:.3f}" for key, value in result["action"].items()))
        print(self.out / "flow.png")
        return DONE


@dataclass
class Report(Common):
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
    overwrite: bool = False
    """Write over another report; the same one goes on without."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        from indm.report.records import Options
        from indm.report.writer import report

        options = Options(self.images, self.steps, self.samplers, self.seed)
        print(report(list(self.run_folders), self.out, options, overwrite=self.overwrite, progress=not self.quiet))
        return DONE


@dataclass
class Reproduce(Common):
    """Reproduce the paper's claims: train INDM and its linear twin at equal seconds, and judge each claim.

    Also the plain flow, a VAE, pre-trained INDM, and both under VE; three seeds each. Writes index.html, claims.md and
    claims.json. It can be killed at any time: the same command goes on. On two cores the whole takes one and a half
    hours, --fast a quarter of an hour.
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
        from indm.reproduction.reproduce import Plan, reproduce, summary

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: all units save what they have
        plan = Plan(self.data, self.seeds, self.fast)
        try:
            verdicts = reproduce(self.out, plan, jobs=self.jobs, progress=not self.quiet)
        except KeyboardInterrupt:
            print("Interrupted. What is done is kept, and the same command goes on.", file=sys.stderr)
            return INTERRUPTED
        print(f"{summary(verdicts)}\n{self.out / 'index.html'}")
        return DONE


@dataclass
class TrainPair(Common):
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
        from indm.training.pairs import train_pair

        recipe, out = recipe_of_two(self.sources, changes, self.out, "")
        summaries = train_pair(recipe, out, resume=self.resume, progress=not self.quiet)
        side, last = list(summaries.items())[-1]
        if last["interrupted"] or len(summaries) < 2:
            kept = what_is_kept(last)
            say(f"Interrupted in {side}, at {kept}. The same command with --resume goes on.", file=sys.stderr)
            return INTERRUPTED
        for side, summary in summaries.items():
            say(f"{out / side}: {json.dumps(summary)}")
        return DONE


@dataclass
class TrainBridge(Common):
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
class Translate(Common):
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
    steps: int = 200
    """Evaluations of the networks: 50 is four times quicker, and its cycle is less exact."""
    tol: Annotated[float | None, arg(metavar="TOLERANCE", help_behavior_hint="(default: equal steps)")] = None
    """Solve adaptively to this tolerance in place of equal steps; 1e-6 is usual."""
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
        from indm.evaluation import file_translation

        count = next((i for i, path in enumerate(self.paths) if not file_translation.is_run(path)), len(self.paths))
        if not count or count == len(self.paths):
            what = "a run folder (with a recipe.toml in it) first" if not count else "images after the run folders"
            raise ValueError(f"translate needs {what}, got {' '.join(map(str, self.paths))}")
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())) and not self.overwrite:
            raise ValueError(f"--out {self.out} exists and is not empty: name another, or add --overwrite")
        opened = file_translation.open_runs(self.paths[:count], self.direction)
        options = file_translation.Options(
            self.strength, self.stochastic, self.steps, self.tol, self.seed, self.strip, self.cycle, self.score,
            self.strict, self.batch_size,
        )  # fmt: skip
        report = file_translation.translate_files(
            opened, self.paths[count:], self.out, options, progress=not self.quiet
        )
        print(file_translation.summary(report))
        for name, reason in report["failed"].items():
            print(f"indm: not translated: {one_line(name)}: {reason}", file=sys.stderr)
        print(f"{self.out / 'sheet.png'}" if report["examples"] else "nothing was translated")
        return SOME_FAILED if report["failed"] else DONE


@dataclass
class Recipes(Common):
    """List the recipes that come with indm."""

    def run(self) -> int:
        for name, description in recipes.bundled().items():
            print(f"{name:18} {description}")
        return DONE


@dataclass
class Convert(Common):
    """Make a run of a released checkpoint: of the paper's code, or of score_sde_pytorch (then without a flow).

    Channels, levels, blocks, attention, pyramids and embedding are read off the tensors. What they do not tell is
    asked for: --recipe cifar10-vp-nll says it all for that setting of the paper; or --sde vp, subvp or ve and
    --image-size, the rest being taken as published for DDPM++ (vp, subvp) or NCSN++ (ve) and listed, to be changed by
    --net.centered false, --net.fir "[1, 3, 3, 1]", --net.scale_by_sigma, --net.rescale, --sde.beta_max and so on; or
    --settings, a JSON file of the original's settings under their original names. --data says what "indm evaluate"
    shall load: --data folder --data.path my-images --data.size 32.

    A tensor that does not fit is an error that lists it, and so is a setting that is not known. Nothing pickled in the
    files is run.
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """The score's file, for example checkpoint_26.pth."""
    flow_checkpoint: Annotated[Positional[Path | None], arg(metavar="FLOW_CHECKPOINT")] = None
    """The flow's file, for example flow_checkpoint_26.pth; without one the flow is the identity."""
    out: Annotated[Path, arg(metavar="RUN")] = Path("runs/converted")
    """The run folder."""
    weights: Annotated[
        Literal["ema", "model"] | None, arg(metavar="ema|model", help_behavior_hint="(default: as published)")
    ] = None
    """Moving averages or the last weights. The paper's results are of the score's averages and the flow's last ones."""
    recipe: Annotated[str | None, arg(metavar="RECIPE", help_behavior_hint="(default: none)")] = None
    """A recipe whose data, SDE and network hold where the tensors do not tell."""
    settings: Annotated[Path | None, arg(metavar="JSON", help_behavior_hint="(default: none)")] = None
    """The original's settings: {"sde": "vpsde", "image_size": 32, "centered": true, "fir": false, …}."""
    flow_settings: Annotated[Path | None, arg(metavar="JSON", help_behavior_hint="(default: none)")] = None
    """The original's settings of the flow."""
    image_size: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="(default: that of the data)")] = None
    """Side of the images."""

    def run(self, changes: dict[str, str]) -> int:
        from indm.convert.run import convert

        options = {key: value for key, value in vars(self).items() if key != "debug"}
        made = convert(**options, changes=changes)
        for name in ("from_the_tensors", "assumed", "data"):
            told = ", ".join(f"{key} = {recipes.literal(value)}" for key, value in made[name].items())
            print(f"{name.replace('_', ' ')}: {told or 'nothing'}")
        files = " and ".join(f"{file['name']} ({file['weights']})" for file in made["files"])
        print(f"{self.out}: {files}, step {made['step']}, {made['parameters']['score']:,} parameters of the score")
        return DONE


# The commands that take the dotted changes of a recipe, and all of them.
Changing = Train | TrainPair | TrainBridge | Convert
Command = Changing | Evaluate | Sample | Fid | Translate | Compare | Inspect | Report | Reproduce | Recipes
CHANGING = ("train", "train-pair", "train-bridge", "convert")


def parse(arguments: list[str]) -> tuple[Command, dict[str, str]]:
    """The command, and the dotted changes of a recipe."""
    changes: dict[str, str] = {}
    rest = list(arguments)
    if arguments and arguments[0] in CHANGING:
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


def interrupt(number: int, frame: object) -> None:
    """A handler of signals: the first is a KeyboardInterrupt, the second ends the process at once."""
    signal.signal(number, end_at_once)
    raise KeyboardInterrupt


def is_ctrl_c_free() -> bool:
    """Whether nobody else decides what Ctrl-C means."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return usual and threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """The first Ctrl-C is a KeyboardInterrupt, the second ends the process at once."""
    if not is_ctrl_c_free():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def program() -> int:
    """:func:`main` where nothing comes after it: Ctrl-C then ends Python at once, whatever still has to be put away."""
    free = is_ctrl_c_free()
    if free:
        signal.signal(signal.SIGINT, interrupt)
    status = main()
    if free:
        signal.signal(signal.SIGINT, end_at_once)
    return status


def main(arguments: list[str] | None = None) -> int:
    """Run one command; every failure is one line on standard error and an exit status, see "indm --help"."""
    for name in ("stdout", "stderr"):  # what was closed before it began
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    warnings.formatwarning = lambda message, *_: f"indm: warning: {one_line(message)}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be Unicode
    command: Command | None = None
    try:
        with interruptible():
            command, changes = parse(sys.argv[1:] if arguments is None else arguments)
            trains = isinstance(command, Changing)
            status = command.run(changes) if trains else command.run()
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        print("indm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS
    except Exception as error:
        if command is not None and command.debug:
            traceback.print_exc()
        kind = type(error)
        if issubclass(kind, ValueError | OSError) or kind in (RuntimeError, MemoryError, torch.OutOfMemoryError):
            print(f"indm: error: {one_line(error) or kind.__name__}", file=sys.stderr)
            return MISTAKE
        said = f"unexpected {kind.__name__}: {one_line(error)}"
        print(f"indm: error: {said} (the same command with --debug shows where)", file=sys.stderr)
        return DEFECT


if __name__ == "__main__":
    sys.exit(program())
