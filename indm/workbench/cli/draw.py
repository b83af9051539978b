"""The commands that draw: ``indm sample``, ``fid`` and ``translate``."""

import itertools
import sys
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from indm.checks import counted, one_line
from indm.workbench.cli.common import DONE, SOME_FAILED, RunFolder, ShowsProgress
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import Drawing, TranslationOptions, default


@dataclass(kw_only=True)
class DrawsSamples(ShowsProgress):
    """Base of the commands that draw samples of a run."""

    tables = ("sampler",)

    drawing: Annotated[Drawing, arg(name="")] = field(default_factory=Drawing)
    overwrite: bool = False
    """Overwrite existing samples."""

    def sampler_options(self) -> dict[str, object]:
        """The values of --sampler.tol and so on."""
        values = self.table_values.items()
        return {name.removeprefix("sampler."): recipes.value_of(text) for name, text in values}

    def named(self) -> list[str]:
        return [self.drawing.sampler]


@dataclass
class Sample(DrawsSamples):
    """Draw samples of a run: samples.png and samples.npz.

    samples.png is a grid of at most 256 images, or points with the data; samples.csv has the rows
    of a table. samples.json records how they were drawn. A model of classes draws a row of each.
    Draw one class with --condition 3, and classes as often as in the data with -n.
    """

    run_folder: RunFolder
    out: Annotated[Path | None, arg(metavar="FOLDER"), default("the run folder")] = None
    """Where to write."""

    def run(self) -> int:
        from indm.workbench.figures import plots, sheets
        from indm.workbench.runs.folder import recipe_of, run_folder
        from indm.workbench.runs.samples import SAMPLES, change_line, draw

        run = run_folder(self.run_folder)
        out = self.out or run
        drawing = replace(self.drawing, sampler_options=self.sampler_options())
        options = {"overwrite": self.overwrite, "progress": self.progress}
        samples, levels, drawn = draw(run, drawing, out, **options)
        made_by: Any = drawn
        if samples.ndim == 4 and made_by["condition"] == "all":
            sheets.save_classes(samples, levels or 256, recipe_of(run).labels, out / "samples.png")
        elif samples.ndim == 4:
            sheets.save_grid(samples, levels or 256, out / "samples.png")
        elif samples.shape[1] > 1:
            plots.scatter(samples, test_data(made_by["data"], len(samples)), out / "samples.png")
        by = made_by["sampler"]
        by += f", {counted(made_by['steps'], 'step')}" if made_by["steps"] else ""
        # single numbers have no picture
        shown = "samples.png" if (out / "samples.png").exists() else SAMPLES
        print(f"{out / shown}: {counted(len(samples), 'sample')} by {by}")
        line = change_line(out, levels)
        if line:
            print(line)
        return DONE


def test_data(table: dict[str, Any], n: int) -> Any:
    """The first ``n`` test examples of a run; None, with a warning, if they cannot be loaded."""
    from indm.workbench.data.base import load_data, stack, without_download

    try:
        return stack(load_data(**without_download(table)).test, n).float()
    except ValueError as error:
        warnings.warn(f"the picture shows no data with the samples: {error}", stacklevel=2)
        return None


@dataclass
class Fid(ShowsProgress):
    """Score samples by torch-fidelity: FID, Inception score, precision, recall.

    Writes the scores into fid.json. Needs torch-fidelity, which downloads Inception's weights.
    """

    samples: Annotated[Positional[Path], arg(metavar="RUN|FOLDER")]
    """A folder that holds samples.npz of "indm sample", or a folder of images."""
    reference: Annotated[Positional[str], arg(metavar="FOLDER|NAME")]
    """A folder of images, or a data set of torch-fidelity, such as cifar10-train."""
    out: Annotated[Path | None, arg(metavar="FOLDER"), default("that of the samples")] = None
    """Where to write."""
    overwrite: bool = False
    """Overwrite existing scores."""

    def run(self) -> int:
        from indm.files import atomic
        from indm.workbench.evaluation import fid
        from indm.workbench.runs.folder import check_absent
        from indm.workbench.runs.provenance import provenance

        out = self.out or self.samples
        check_absent(out, ["fid.json"], self.overwrite)
        scores = fid.score(self.samples, self.reference, progress=self.progress)
        record = {"scores": scores, "samples": str(self.samples), "reference": self.reference}
        atomic.json_object(out / "fid.json", record | {"provenance": provenance(None, {})})
        for name, value in scores.items():
            print(f"{name.replace('_', ' '):32} {value:.5g}")
        print(out / "fid.json")
        return DONE


@dataclass
class Translate(ShowsProgress):
    """Translate images of A into images of B by trained runs.

    "indm translate RUN_A RUN_B photos --out results" uses two models: the probability flow of A to
    noise, and that of B back.

    "indm translate PAIR photos --out results" does the same, with the folder of "indm train-pair".

    "indm translate BRIDGE photos --out results" uses one model of "indm train-bridge".

    "indm translate RUN photos --condition cat dog --out results" uses one model of classes: to
    noise as cat, back as dog.

    With --method sdedit --strength 0.5 all of these add noise, then follow the flow of B back. Then
    "indm translate RUN_B photos" is enough.

    Writes NAME.png for each image (NAME.npz for an array), sheet.png with sources and results, and
    translation.json with the distance of each result from its source, and reasons for failures.
    """

    paths: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="RUN [RUN] IMAGES…", help_behavior_hint="(required)"),
    ]
    """One or two run folders or models of the hub, user/name; then images: files, folders, patterns
    like "x/*.png", arrays as .npz or .npy.
    """
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Where to write; a folder that is not empty is an error without --overwrite."""
    direction: Literal["forward", "backward"] = "forward"
    """From A to B, or from B to A."""
    condition: Annotated[
        tuple[str, str] | None, arg(metavar="CLASS CLASS"), default("two data sets")
    ] = None
    """For one model of classes: the class of the images, and the class of the results, by name, or by
    index from 0 unless a class name contains a digit.
    """
    options: Annotated[TranslationOptions, arg(name="")] = field(default_factory=TranslationOptions)
    overwrite: bool = False
    """Write into a folder that is not empty."""

    def run(self) -> int:
        from indm.workbench.runs.folder import check_empty, is_run, run_folder
        from indm.workbench.training.pairs import is_pair
        from indm.workbench.translation.routes import found_in, open_runs
        from indm.workbench.translation.translate import summary, translate_files

        if not self.overwrite:
            check_empty(self.out, "name another, or add --overwrite")
        first, *others = self.paths
        # with a suffix it is an image
        second = [path if path.suffix else run_folder(path) for path in others[:1]]
        given = (run_folder(first), *second, *others[1:])
        count = len([*itertools.takewhile(lambda path: is_run(path) or is_pair(path), given)])
        runs, sources = given[:count], given[count:]
        if not runs or not sources:
            what = "images after the run folders"
            if not runs:
                what = "a run folder (with a recipe.toml in it) first"
            raise ValueError(f"translate needs {what}, got {' '.join(map(str, self.paths))}")
        found_in(sources)
        opened = open_runs(runs, self.direction, self.condition, method=self.options.method)
        report = translate_files(opened, sources, self.out, self.options, progress=self.progress)
        print(summary(report))
        for name, why in report["failed"].items():
            print(f"indm: not translated: {one_line(name)}: {why}", file=sys.stderr)
        print(self.out / "sheet.png" if report["examples"] else "nothing was translated")
        return SOME_FAILED if report["failed"] else DONE
