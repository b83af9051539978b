"""``indm report``: runs side by side on one self-contained page, with its pictures as PNG and its numbers as JSON."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from indm.files import atomic, untrusted
from indm.workbench.data.base import Data
from indm.workbench.data.registry import load_data, without_download
from indm.workbench.evaluation import compare, figures, plots
from indm.workbench.evaluation.extractor import Extractor, load_or_train
from indm.workbench.evaluation.methods import MARGIN, ONE_TRAINING, Costs, check_distinct, costs_of
from indm.workbench.evaluation.page import Page, View
from indm.workbench.evaluation.plots import Colours
from indm.workbench.evaluation.records import Record, Setup, by_group, differences_of, folders_of, gather
from indm.workbench.evaluation.results import check_same_examples, unconverged
from indm.workbench.evaluation.statistics import FOLDS, LEVEL
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import Equal, ReportOptions
from indm.workbench.runs.folder import model_class, open_model, recipe_of
from indm.workbench.runs.provenance import provenance, same_data, weights_hash


def report(
    folders: Sequence[Path],
    out: Path,
    options: ReportOptions | None = None,
    *,
    equal: Equal = "cost",
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Compare runs of one data set on a page.

    Args:
        folders: run folders of models of any kind, at least one a diffusion, whose ``[data]`` is the same. Those not
            evaluated yet are.
        out: folder for ``index.html``, its PNGs, ``report.json`` and the extractor of the Fréchet distance.
        options: what to measure.
        equal: what groups must have spent alike for a verdict, see :mod:`indm.workbench.evaluation.methods`.
        overwrite: write over another report in ``out``, or a page of something else.
        progress: show bars.

    Returns:
        The path of the page.

    Raises:
        ValueError: no run of a diffusion, one that is named twice, or runs of different data; ``out`` holds another
            report.
        FileNotFoundError: a folder that is not a run.
    """
    options = options or ReportOptions()
    check_distinct(folders)
    table = common_data(folders)
    if not overwrite:
        check_out(folders, out, options)
    data = load_data(**without_download(table))
    if len(data.test) < 2 * FOLDS:
        raise ValueError(
            f"data must have at least {2 * FOLDS} test examples for standard errors, {data.name} has {len(data.test)}; "
            "a larger share of it, --data.test, or more data would do"
        )
    out.mkdir(parents=True, exist_ok=True)
    extractor = load_or_train(out, data, progress=progress) if data.labels else None
    records = gather(folders, Setup(data, extractor, options, progress))
    check_same_examples({record.folder: record.evaluation for record in records})
    costs = costs_of(folders_of(records), equal, progress)
    by_method = differences_of(records, costs)
    # Written first: where it is, the page beside it is of the same report.
    content = {
        "options": asdict(options),
        "provenance": provenance(options.seed, {str(folder): weights_hash(folder) for folder in folders}),
        "runs": {str(r.folder): {"group": r.group, "evaluation": r.evaluation} | r.measurements for r in records},
        "costs": asdict(costs),
        "differences": by_method,
    }
    atomic.json_object(out / "report.json", content)
    page = Page(f"Runs of {data.name}")
    page.conclude([compare.best_model(records, by_method), *compare.conclusions(records)])
    if by_method:
        add_differences(page, by_method, records, costs)
    Sections(page, out, records, data, extractor, plots.colours_of(by_group(records))).add_all()
    page.write(out / "index.html")
    return out / "index.html"


def common_data(folders: Sequence[Path]) -> dict:
    """The ``[data]`` table of all runs; a ValueError where there is none, theirs differ, or no run is a diffusion."""
    if not folders:
        raise ValueError("folders must name at least one run, got none")
    for folder in folders:
        recipe_of(folder)  # an error where this is not a run
        if not same_data(folders[0], folder):
            raise ValueError(f"{folder} and {folders[0]} are runs of different data; report runs of one data set")
        weights_hash(folder)  # an error where there is no model
    kinds = [model_class(folder) for folder in folders]
    if not any(kind.is_diffusion for kind in kinds):
        names = ", ".join(sorted({kind.__name__ for kind in kinds}))
        raise ValueError(f"folders must name at least one run of an INDM, got only {names}")
    return recipes.load(folders[0])["data"]


def check_out(folders: Sequence[Path], out: Path, options: ReportOptions) -> None:
    """ValueError where ``out`` holds another report than that of these runs with these options."""
    file = out / "report.json"
    if file.exists():
        stored, wanted = untrusted.json_object(file), json.loads(json.dumps(asdict(options)))
        if stored.get("options") == wanted and list(stored.get("runs", ())) == list(map(str, folders)):
            return
    elif not (out / "index.html").exists() and not any(out.glob("*.png")):
        return
    raise ValueError(f"{out} holds another report: add --overwrite to write that anew, or name another --out")


def add_differences(page: Page, by_method: compare.Differences, records: Sequence[Record], costs: Costs) -> None:
    """The differences of likelihoods between methods, as :func:`differences_of` judges them."""
    first = records[0]
    page.heading("Differences between methods")
    page.table(compare.difference_rows(by_method, first.group, first.unit))
    page.text(
        "In pairs of equal seeds; those without a partner do not count. ± is √(a² + b²) of the standard errors over "
        "seeds and over the examples, which all seeds share. p is that of Student's paired t over seeds; Holm's p is "
        f"adjusted over all rows of this table; a verdict needs one of at most {LEVEL:.0%}, and budgets that differ by "
        f"at most {MARGIN:.0%}. {costs} {ONE_TRAINING}"
    )
    for line in compare.incomparable(by_method, first.group):
        page.text(line)


@dataclass(frozen=True)
class Sections:
    """The sections of a page on runs of one data set; pictures go to ``out``, their names begin with ``prefix``."""

    page: Page
    out: Path
    records: Sequence[Record]
    data: Data
    extractor: Extractor | None
    colours: Colours
    prefix: str = ""

    def add_all(self) -> None:
        self.page.text(
            f"{'; '.join(self.data.remarks)}. Numbers are means over a group's seeds ± their standard error. Where a "
            "group is one run, ± is over its examples or samples, and says nothing of other trainings of that method."
        )
        self.likelihood()
        self.samples()
        self.paths()

    def having(self, name: str) -> list[list[Record]]:
        """The records that have a measurement, by group."""
        groups = [[r for r in group if name in r.measurements] for group in by_group(self.records).values()]
        return [group for group in groups if group]

    def first(self, name: str) -> list[Record]:
        """The first record of each group that has a measurement."""
        return [group[0] for group in self.having(name)]

    def of_classes(self) -> list[list[Record]]:
        """The groups that were evaluated by class."""
        return [group for group in by_group(self.records).values() if "classes" in group[0].evaluation]

    def at_c(self, sentence: str) -> str:
        """What a caption says of models of p(x|c); nothing where there are none."""
        return f" Of models of p(x|c) {sentence}." if any(record.is_conditional for record in self.records) else ""

    def draw(self, name: str, caption: str, write: Callable[[Path], None]) -> None:
        """Add a picture that ``write`` writes as a PNG."""
        path = self.out / f"{self.prefix}{name}.png"
        write(path)
        self.page.picture(path, caption)

    def chart(self, name: str, caption: str, views: Sequence[View], columns: int, height: float = 4.2) -> None:
        """Add lines as a chart, and as a PNG with ``columns`` panels of that height in a row."""
        path = self.out / f"{self.prefix}{name}.png"
        plots.save_figure(plots.lines_figure(views, columns, (10 / min(columns, 3), height)), path)
        self.page.chart(views, path, caption)

    def likelihood(self) -> None:
        unit = self.records[0].unit
        self.page.heading("Likelihood and budget")
        self.page.table(compare.likelihood_rows(self.records))
        self.page.text(
            "With the reconstruction term. NELBO bounds the likelihood of the generative SDE, NLL is that of the "
            "probability-flow ODE. Of a linear diffusion their difference is zero for the exact score, and no "
            "variational gap."
        )
        if conditional := [name for name, group in by_group(self.records).items() if group[0].is_conditional]:
            self.page.text(
                f"{', '.join(conditional)}: log p(x|c) at the c of each example. It uses c, which p(x) and the "
                "baselines do not."
            )
        for record in self.records:
            for line in unconverged(record.evaluation):
                self.page.text(f"{record.group}, {record.folder.name}: {line}")
        self.page.heading("How they were computed", level=3)
        self.page.table(compare.convention_rows(self.records))
        self.page.text(
            "Estimator noise is the part of ± that more draws would take away. Evaluations are those of the network "
            "for one draw of an example."
        )
        if groups := self.of_classes():
            self.page.heading("Likelihood by class", level=3)
            self.page.table(compare.class_rows(groups))
        self.chart(
            "curves",
            f"Validation NELBO in {unit}, over optimizer steps and over seconds of training: lower is better.",
            figures.curve_views(self.records, self.colours),
            2,
        )
        self.chart(
            "gap",
            f"NELBO − NLL (ODE) of the same examples in {unit}, over optimizer steps; bars are one standard error over "
            "examples.",
            [figures.gap_view(self.first("gap"), self.colours)],
            1,
        )

    def samples(self) -> None:
        self.page.heading("Samples")
        self.draw(
            "samples",
            "Test data, and samples of the first seed of each model: of a diffusion by Heun in 25 steps, of another "
            f"model by its decoder.{self.at_c('the samples are at the c of the data in the same positions')}",
            lambda path: figures.samples_figure(self.records, self.data, path, self.colours),
        )
        if (groups := self.of_classes()) and (len(self.data.shape) == 3 or self.data.shape[0] > 1):
            self.draw(
                "classes",
                f"Test data, and samples of the first seed of each model, a row a class, {figures.CLASSES} at most.",
                lambda path: figures.classes_figure(groups, self.data, path, self.colours),
            )
        if self.extractor is not None:
            made_by = self.extractor.provenance
            self.page.text(
                "Fréchet distances: features of a classifier trained on the real labels, of test accuracy "
                f"{made_by['test_accuracy']:.3f}, weights {made_by['weights_sha256'][:12]}."
            )
        self.page.table(compare.quality_rows(self.having("quality")))
        views = figures.quality_views(self.having("gap"), self.colours)
        kinds = len({view.y for view in views})
        self.chart(
            "quality",
            "Distance to the test data over evaluations of the network, both on logarithmic axes: lower is better. "
            "Dashed: training data. Bars are one standard error.",
            views,
            len(views) // kinds,
            3.2,
        )

    def paths(self) -> None:
        """Strips of images, or a model of the plane; of those whose data have one diffusion."""
        first = self.first("gap")
        records = [record for record in first if open_model(record.folder).flow.has_log_det]
        is_image = len(self.data.shape) == 3
        if not records or not (is_image or self.data.shape == (2,)):
            return
        self.page.heading("Paths")
        left_out = [record.group for record in first if record not in records]
        if left_out:
            self.page.text(f"Without {', '.join(left_out)}: a code is drawn there, and the data have no one diffusion.")
        if is_image:
            self._strips(records)
        else:
            self._planes(records)

    def _strips(self, records: Sequence[Record]) -> None:
        levels = self.data.scaling.levels or 256
        for name, strip in figures.PATHS.items():
            panels = figures.strip_panels(records, self.data, strip)
            pixels = figures.sheets.sheet(panels, levels, across=1)
            self.draw(name, strip.caption + self.at_c(strip.at_c), functools.partial(plots.save_pixels, pixels))

    def _planes(self, records: Sequence[Record]) -> None:
        for record in records:
            self.draw(
                f"plane-{record.group.replace('/', '-')}",
                f"{record.group}: density; particles along the forward diffusion and the generative flow; drift "
                "f_φ (arrows) and volatility G_φ (ellipses), scaled to the largest in each panel. Model units."
                + self.at_c("particles have the c of the data, drift and volatility that of the first example"),
                functools.partial(figures.plane_figure, record, self.data, colours=self.colours),
            )
