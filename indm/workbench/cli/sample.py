"""``indm sample`` and ``indm fid``."""

import importlib.util
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from indm.checks import counted
from indm.workbench.cli.common import DONE, ShowsProgress
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import Drawing, FidDrawing, ScoringOptions, default


@dataclass(kw_only=True)
class Draws(ShowsProgress):
    """What the commands that draw samples of a run share."""

    tables = ("sampler",)

    drawing: Annotated[Drawing, arg(name="")]
    overwrite: bool = False
    """Overwrite existing samples that were drawn otherwise."""

    def sampler_options(self) -> dict[str, object]:
        """The values of --sampler.tol and so on."""
        return {name.removeprefix("sampler."): recipes.value_of(text) for name, text in self.table_values.items()}

    def named(self) -> list[str]:
        return [self.drawing.sampler or ""]


@dataclass
class Sample(Draws):
    """Draw samples of a run: samples.png and samples.npz.

    samples.png is a grid of 256 images at most, or points beside the data; samples.csv has the rows of a table.
    samples.json says how they were drawn. Samples that were drawn with the same options are kept, not drawn again. A
    model of classes draws one by --condition 3, or a row of each by --condition all -n 8.
    """

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder, or a model of the hub by its name there, user/name."""
    drawing: Annotated[Drawing, arg(name="")] = field(default_factory=Drawing, kw_only=True)
    out: Annotated[Path | None, arg(metavar="FOLDER"), default("the run folder")] = None
    """Where to write."""

    def run(self) -> int:
        from indm.workbench.data.densities import DENSITIES
        from indm.workbench.figures import plots, sheets
        from indm.workbench.runs.folder import recipe_of, run_folder
        from indm.workbench.runs.samples import SAMPLES, change_line, draw

        run = run_folder(self.run_folder)
        out, drawing = self.out or run, replace(self.drawing, sampler_options=self.sampler_options())
        options = {"overwrite": self.overwrite, "progress": self.progress}
        samples, levels, drawn = draw(run, drawing, out, **options)
        made_by: Any = drawn
        if (out / "samples.png").exists():
            pass  # of the same samples
        elif samples.ndim == 4 and drawing.condition == "all":
            sheets.save_classes(samples, levels or 256, recipe_of(run).labels, out / "samples.png")
        elif samples.ndim == 4:
            sheets.save_grid(samples, levels or 256, out / "samples.png")
        elif samples.shape[1] > 1:
            density = DENSITIES.get(made_by["data"]["name"])
            plots.scatter(samples, test_data(made_by["data"], len(samples)), density, out / "samples.png")
        by = made_by["sampler"] + (f", {counted(made_by['steps'], 'step')}" if made_by["steps"] else "")
        shown = "samples.png" if (out / "samples.png").exists() else SAMPLES  # single numbers have no picture
        print(f"{out / shown}: {counted(len(samples), 'sample')} by {by}")
        if line := change_line(out, levels):
            print(line)
        return DONE


def test_data(table: dict[str, Any], n: int) -> Any:
    """The first ``n`` test examples; None, and a warning, where the data of a run cannot be loaded."""
    from indm.workbench.data.base import stack
    from indm.workbench.data.registry import load_data, without_download

    try:
        return stack(load_data(**without_download(table)).test, n).float()
    except ValueError as error:
        warnings.warn(f"the picture shows no data beside the samples: {error}", stacklevel=2)
        return None


@dataclass
class Fid(Draws):
    """Score samples by torch-fidelity: FID, Inception score, KID, precision, recall.

    indm fid runs/cifar10 draws samples as "indm sample" does, keeps them in samples.npz and uses them again. Writes the
    scores into fid.json with their provenance: pixels, sampler, split, features. Needs torch-fidelity, which fetches
    Inception's weights.
    """

    source: Annotated[Positional[str], arg(metavar="RUN|FOLDER")]
    """What to score: a run folder, a folder of images, a samples.npz, or a data set (its test split)."""
    scoring: Annotated[ScoringOptions, arg(name="")] = field(default_factory=ScoringOptions, kw_only=True)
    drawing: Annotated[FidDrawing, arg(name="")] = field(default_factory=FidDrawing, kw_only=True)
    out: Annotated[Path | None, arg(metavar="FOLDER"), default("the run folder, or .")] = None
    """Where to write."""

    def named(self) -> list[str]:
        return [*super().named(), self.scoring.features]

    def run(self) -> int:
        if importlib.util.find_spec("torch_fidelity") is None:
            raise ValueError("indm fid needs the library torch-fidelity: pip install torch-fidelity")
        from indm.files import atomic
        from indm.names import find, is_outside
        from indm.workbench.evaluation import fid
        from indm.workbench.runs.folder import check_absent, is_run
        from indm.workbench.runs.samples import draw

        scoring = self.scoring
        of_run, progress = is_run(Path(self.source)), self.progress
        if not of_run:
            self.check_nothing_is_drawn()
        if scoring.reference is None and not of_run:
            raise ValueError(f"--reference must be given for {self.source}, which is no run folder")
        out = self.out or (Path(self.source) if of_run else Path("."))
        check_absent(out, ["fid.json"], self.overwrite)
        n = self.drawing.n
        if n is not None:
            fid.check_number("n", n)
        if scoring.features != "inception" and not is_outside(scoring.features):
            raise ValueError(f"features must be inception or package.module:function, got {scoring.features!r}")
        features = None if scoring.features == "inception" else find("features", scoring.features)
        size: Any = scoring.size
        reading = {"size": size, "resize": scoring.resize}
        reference = fid.open_images(scoring.reference or self.source, split=scoring.split, **reading)
        fid.check_number("reference", len(reference.raw))
        if of_run:
            n = min(len(reference.raw), fid.MOST) if n is None else n
            drawing = Drawing(**vars(self.drawing) | {"n": n, "sampler_options": self.sampler_options()})
            run = Path(self.source)
            raw, levels, drawn = draw(run, drawing, out, overwrite=self.overwrite, progress=progress)
            samples = fid.Images(raw, levels, {"run": str(run), "drawn": drawn})
        else:
            samples = fid.open_images(self.source, split="test", **reading).first(n)
        record = fid.score(samples, reference, features, progress=progress)
        print(fid.score_table(record))
        atomic.json_object(out / "fid.json", record)
        print(out / "fid.json")
        return DONE

    def check_nothing_is_drawn(self) -> None:
        """ValueError where an option says how to draw samples from a run, and the source is not a run."""
        defaults = vars(FidDrawing()) | dict.fromkeys(self.table_values)
        for name, value in (vars(self.drawing) | {"n": None} | self.table_values).items():
            if value != defaults[name]:
                raise ValueError(
                    f"--{name.replace('_', '-')} is for samples that are drawn from a run, and {self.source} is no run"
                )
