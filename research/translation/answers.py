"""Translations between styles of the same drawings, against the true counterparts; see answers.md.

    python -m research.translation answers glyphs FOLDER    # what has no row yet; stopped and
    started again, it goes on python -m research.translation answers punks FOLDER

FOLDER is what ``research.data.glyphs`` or ``research.data.punks`` has written. Each method of each
seed is a job: it trains what it needs, translates the test images of A and adds a row to
``translation-answers.csv``. Models and results stay in ``--out``, with pictures of the results of
the first seed.
"""

import argparse
import functools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Num
from sklearn.preprocessing import QuantileTransformer
from torch import Tensor
from torchvision.io import read_image

import indm
from indm.evaluation.statistics import mean_and_error
from indm.model import count_parameters
from indm.tensors import double
from indm.translation import Route
from indm.workbench.data.base import load_data
from indm.workbench.figures.plots import save_pixels
from indm.workbench.figures.sheets import Panel, sheet
from indm.workbench.recipes import recipe as recipes
from indm.workbench.training.pairs import as_bridge, sides_of
from indm.workbench.translation.routes import open_runs
from research.data import thinned
from research.lab.costs import costs_in_turns, step_of
from research.lab.extractor import Extractor, FeatureNetwork, general_features, load_or_train
from research.lab.seeds import over_seeds
from research.markdown import in_table, with_error
from research.records import RECORDS, Records, made_by
from research.translation.metrics import recall, rms_distance, two_classes
from research.verdict.family import family

Grey = Num[Tensor, "n channels height width"]  # levels of 256
EVALUATIONS = 60  # evaluations of the networks, one way
STRENGTH = 0.5  # strength of SDEdit
CYCLED, SHOWN = 32, 12  # test pairs that also go back; pairs of the picture
MOST = 2000  # images of a folder: for the controls, and test pairs
LEVELS, SIDE = 256, 24
ALIKE = {  # settings of all trainings, beside the recipe translate-folders
    "data.size": SIDE, "data_b.size": SIDE, "data.flip": False, "data_b.flip": False, "net.attention": [6],
    "train.seconds": math.inf, "train.validate_every": 1_000_000, "train.final": "last", "train.threads": 1,
}  # fmt: skip
LINEAR = {"flow": "identity", "train.flow_update_every": 1}
TRAINED = {
    "indm": "two INDMs",
    "linear": "two linear diffusions",
    "bridge": "one bridge",
    "sdedit": f"SDEdit {STRENGTH:g} of one linear diffusion",
}
CONTROLS = {
    "source": "source as it is",
    "histogram": "control: histogram matching",
    "colours": "control: linear colour transfer",
}
METHODS = TRAINED | CONTROLS
COLUMNS = {
    "rmse": "RMSE, levels",
    "pixels_recall_1": "recall at 1 by pixels",
    "pixels_recall_5": "at 5",
    "features_recall_1": "recall at 1 by features",
    "features_recall_5": "at 5",
    "taken": "taken for B",
    "cycle": "cycle error, levels",
}


@dataclass(frozen=True)
class Task:
    """A translation from style ``a`` to style ``b`` in so many seeds; each linear model makes
    ``steps`` steps.
    """

    a: str
    b: str
    seeds: int
    steps: int


STUDIES = {
    "glyphs": (Task("sans", "serif", 1, 2000),),
    "punks": (Task("punks", "goldenpunks", 3, 1000), Task("punks", "halloweenpunks", 3, 1000)),
}
CONTROL = "best control"
FAMILY = tuple(
    (task.b, "indm", other) for task in STUDIES["punks"] for other in ("linear", CONTROL)
)


# ── Trainings ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Lab:
    """The places of a task's data, its runs and its rows."""

    task: Task
    data: Path
    out: Path
    records: Path

    @property
    def table(self) -> Records:
        """The rows of the task, one for each method and seed."""
        return Records(self.records / "translation-answers.csv").at(data=self.task.b)

    @property
    def costs(self) -> Records:
        """Costs of steps; tasks of one A share them, as they share models of A."""
        return Records(self.records / "translation-answers-costs.csv").at(data=self.task.a)

    def recipe(self, kind: str, style: str, seed: int = 0, steps: int = 1000) -> recipes.Recipe:
        """The recipe of a model of one style ("indm" or "linear"), or of a "bridge" from ``style``
        to the task's B.
        """
        paths = {"data.path": str(self.data / style), "data_b.path": str(self.data / self.task.b)}
        budget = {"train.seed": seed, "train.steps": steps}
        pair = recipes.override(recipes.load("translate-folders"), ALIKE | paths | budget)
        if kind == "bridge":
            return recipes.resolve(as_bridge(pair))
        return recipes.resolve(
            recipes.override(sides_of(pair)["a"], LINEAR if kind == "linear" else {})
        )

    def steps(self, kind: str) -> int:
        """The number of steps that cost as much as one linear model, or two for a bridge; costs are
        measured once.
        """
        if kind == "linear":
            return self.task.steps

        def measured() -> dict[str, float]:
            steps = {name: step_of(self.recipe(name, self.task.a)) for name in ("linear", kind)}
            return costs_in_turns(steps, "linear")[kind]

        cost = self.costs.at(kind=kind).kept(measured)["cost"]
        return max(1, round(self.task.steps * (2 if kind == "bridge" else 1) / cost))

    def trained(self, kind: str, style: str, seed: int) -> Path:
        """The run folder of a model, trained to its end; models of one style serve several tasks."""
        name = f"{style}-{self.task.b}" if kind == "bridge" else style
        run = self.out / "runs" / f"{kind}-{name}-{seed}"
        recipe, begun = self.recipe(kind, style, seed, self.steps(kind)), time.process_time()
        run.parent.mkdir(parents=True, exist_ok=True)
        try:
            summary = indm.train(recipe, run, resume=(run / "recipe.toml").exists(), progress=False)
        finally:
            with run.with_name(f"{run.name}.seconds").open("a") as file:
                print(round(time.process_time() - begun, 1), file=file)
        if summary["interrupted"]:
            raise KeyboardInterrupt
        return run

    def runs(self, method: str, seed: int) -> list[Path]:
        """The runs that a method needs; missing ones are trained."""
        if method == "bridge":
            return [self.trained("bridge", self.task.a, seed)]
        if method == "sdedit":
            return [self.trained("linear", self.task.b, seed)]
        return [self.trained(method, style, seed) for style in (self.task.a, self.task.b)]


def cpu_seconds(runs: Sequence[Path]) -> float:
    """CPU seconds of the trainings, whichever processes shared them."""
    files = (run.with_name(f"{run.name}.seconds") for run in runs)
    return round(sum(float(line) for file in files for line in file.read_text().splitlines()), 1)


def route_of(method: str, runs: list[Path]) -> Route:
    """The method's way from A to B."""
    if method == "sdedit":
        return open_runs(runs, method="sdedit").route(
            method="sdedit", strength=STRENGTH, steps=EVALUATIONS
        )
    return open_runs(runs).route(steps=EVALUATIONS)


def translated(route: Route, source: Grey) -> tuple[Grey, dict[str, Any]]:
    """The translation of images, its evaluations and parameters, and the error of A → B → A where
    there is a way back.

    ``cycle`` is the root mean square over an image, ``cycle_max`` the largest error of all pixels,
    before rounding.
    """
    x = route.source(source)
    there = route.translate(source, generator=torch.Generator().manual_seed(0))
    models = {id(leg.model): leg.model for leg in route.legs}
    row: dict[str, Any] = {
        "nfe": there.nfe,
        "parameters": sum(map(count_parameters, models.values())),
    }
    if not any(leg.noise for leg in route.legs):
        some = thinned(range(len(x)), CYCLED)
        error = (route.back().follow(there.end[some]).end - x[some]) * route.models[0].scaling.scale
        row["cycle"], row["cycle_standard_error"] = mean_and_error(
            error.flatten(1).square().mean(1).sqrt()
        )
        row["cycle_max"] = error.abs().max().item()
    return route.models[1].scaling.to_data(there.x), row


# ── Controls ──────────────────────────────────────────────────────────────────────────────────────


def pixels_of(images: Grey) -> Float[np.ndarray, "pixels channels"]:
    return images.movedim(1, -1).flatten(0, -2).double().numpy()


def as_images(pixels: Float[np.ndarray, "pixels channels"], like: Grey) -> Grey:
    """Whole grey levels in the shape of ``like``."""
    n, _, height, width = like.shape
    levels = torch.from_numpy(pixels).round().clamp(0, LEVELS - 1).to(torch.uint8)
    return levels.unflatten(0, (n, height, width)).movedim(-1, 1)


def histogram_matched(source: Grey, a: Grey, b: Grey) -> Grey:
    """Each channel by the increasing map that carries its levels in ``a`` to those in ``b``."""
    of_a, of_b = (QuantileTransformer(subsample=None).fit(pixels_of(images)) for images in (a, b))
    return as_images(of_b.inverse_transform(of_a.transform(pixels_of(source))), source)


def colours_transferred(source: Grey, a: Grey, b: Grey) -> Grey:
    """The source under the affine map of colours that is optimal transport of pixel Gaussians from
    ``a`` to ``b``.

    Source: Pitié & Kokaram 2007, "The linear Monge-Kantorovitch colour mapping", eq. 4.
    """
    (mean_a, cov_a), (mean_b, cov_b) = (moments(pixels_of(images)) for images in (a, b))
    root, inverse = power(cov_a, 0.5), power(cov_a, -0.5)
    matrix = inverse @ power(root @ cov_b @ root, 0.5) @ inverse
    return as_images((pixels_of(source) - mean_a) @ matrix + mean_b, source)


def moments(
    pixels: Float[np.ndarray, "n k"],
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k k"]]:
    return pixels.mean(0), np.atleast_2d(np.cov(pixels.T))


def power(matrix: Float[np.ndarray, "k k"], exponent: float) -> Float[np.ndarray, "k k"]:
    """A power of a symmetric positive matrix."""
    values, basis = np.linalg.eigh(matrix)
    return (basis * values**exponent) @ basis.T


# ── Measures ──────────────────────────────────────────────────────────────────────────────────────


def images_in(folder: Path, most: int = MOST) -> Grey:
    """At most ``most`` images of a folder, equally far apart in the order of their names, as grey
    levels.
    """
    return torch.stack(
        [read_image(str(file)) for file in thinned(sorted(folder.glob("*.png")), most)]
    )


@dataclass(frozen=True)
class Exam:
    """Test images with their true counterparts, and who marks translations.

    Attributes:
        source, truth: of A and of B, row by row.
        judge: a classifier of the training images of A and B.
        network: its features say how alike images are; it has seen neither style.
    """

    source: Grey
    truth: Grey
    judge: Extractor
    network: FeatureNetwork

    @functools.cached_property
    def truth_features(self) -> Tensor:
        return self.network.features(self.truth)

    def marks(self, result: Grey) -> dict[str, Any]:
        """Marks of translations of ``source``, each a mean over images with its
        ``…_standard_error``.

        ``rmse``: root mean square error of an image in grey levels; ``rmse_levels`` has one for
        each image. ``pixels_recall_K``, ``features_recall_K``: see
        :func:`research.translation.metrics.recall`.
        ``taken``: the share that the judge takes for B.
        """
        error = rms_distance(result, self.truth)
        taken = self.judge(result).argmax(1) == 1
        marks: dict[str, Any] = {"rmse_levels": error.tolist(), "images": len(result)}
        for name, values in (("rmse", error), ("taken", double(taken))):
            marks[name], marks[f"{name}_standard_error"] = mean_and_error(values)
        pairs = {
            "pixels": (double(result).flatten(1), double(self.truth).flatten(1)),
            "features": (self.network.features(result), self.truth_features),
        }
        return marks | {
            f"{kind}_{key}": value
            for kind, pair in pairs.items()
            for key, value in recall(*pair).items()
        }


def exam_of(lab: Lab) -> Exam:
    """The task's test pairs; the judge is trained where it is not yet.

    Raises:
        ValueError: the test folders differ in names.
    """
    a, b = (lab.data / f"{style}-test" for style in (lab.task.a, lab.task.b))
    if {file.name for file in a.iterdir()} != {file.name for file in b.iterdir()}:
        raise ValueError(f"{a} and {b} must have files of the same names")
    sides = [
        load_data("folder", path=lab.data / style, size=SIDE) for style in (lab.task.a, lab.task.b)
    ]
    judge = load_or_train(lab.out / f"judge-{lab.task.b}", two_classes(*sides), progress=False)
    return Exam(images_in(a), images_in(b), judge, general_features())


# ── Jobs ──────────────────────────────────────────────────────────────────────────────────────────


def controlled(lab: Lab, method: str, source: Grey) -> Grey:
    """The results of a control."""
    a, b = (images_in(lab.data / style) for style in (lab.task.a, lab.task.b))
    makers = {
        "source": lambda *_: source,
        "histogram": histogram_matched,
        "colours": colours_transferred,
    }
    return makers[method](source, a, b)


@torch.no_grad()
def job(lab: Lab, exam: Exam, method: str, seed: int) -> dict[str, Any]:
    """The row of one method and seed; its results are kept for the picture."""
    row: dict[str, Any] = {}
    if method in CONTROLS:
        result = controlled(lab, method, exam.source)
    else:
        with torch.enable_grad():
            runs = lab.runs(method, seed)
        result, row = translated(route_of(method, runs), exam.source)
        row |= {"cpu_seconds": cpu_seconds(runs)}
    place = results(lab, method, seed)
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save(result.to(torch.uint8), place)
    judged_by = {
        key: exam.judge.provenance[f"test_{key}"] for key in ("accuracy", "accuracy_standard_error")
    }
    return (
        exam.marks(result)
        | row
        | {f"judge_{key}": value for key, value in judged_by.items()}
        | made_by(seed)
    )


def results(lab: Lab, method: str, seed: int) -> Path:
    """The file of the translations of a method."""
    return lab.out / "results" / lab.task.b / f"{method}-{seed}.pt"


def study(lab: Lab) -> None:
    """All jobs that have no row yet, whole seeds first; and the pictures."""
    exam = exam_of(lab)
    for seed in range(lab.task.seeds):
        for method in METHODS if seed == 0 else TRAINED:
            row = lab.table.at(method=method, seed=seed).kept(
                functools.partial(job, lab, exam, method, seed)
            )
            marks = (f"{key} {row[key]:.3g}" for key in COLUMNS if key in row)
            print(lab.task.b, seed, METHODS[method], *marks, flush=True)
    picture(lab, exam, ("source", *TRAINED, *CONTROLS), lab.out / f"{lab.task.b}.png")
    picture(lab, exam, ("source", "indm"), lab.out / f"{lab.task.b}-indm.png")


def picture(lab: Lab, exam: Exam, methods: Iterable[str], path: Path) -> None:
    """Write to ``path`` a row of each method's results for some sources in the first seed, and a
    row of the truth.
    """
    some = thinned(range(len(exam.truth)), SHOWN)
    made = {METHODS[method]: torch.load(results(lab, method, 0))[some] for method in methods}
    rows = made | {"truth": exam.truth[some]}
    panel = Panel(torch.cat([*rows.values()]), len(some), rows=[*rows])
    save_pixels(sheet([panel], LEVELS), path)


# ── Tables ────────────────────────────────────────────────────────────────────────────────────────


def table(made: Records) -> str:
    """Markdown, a row for each method: means over trainings ± √(a² + b²), a over trainings and b
    over images.
    """
    rows = []
    for method, name in METHODS.items():
        if found := made.at(method=method).rows():
            minutes = (
                sum(row["cpu_seconds"] for row in found) / len(found) / 60
                if method in TRAINED
                else 0
            )
            rows.append(
                (
                    name,
                    len(found),
                    f"{minutes:.1f}",
                    *(with_both_errors(found, key) for key in COLUMNS),
                )
            )
    return in_table("method", "trainings", "CPU minutes", *COLUMNS.values(), rows=rows)


def with_both_errors(found: Sequence[Mapping[str, Any]], key: str) -> str:
    """The mean over trainings and its error, which also has that over the images that all share;
    "–" for none.
    """
    if key not in found[0]:
        return "–"
    mean, trainings = over_seeds([row[key] for row in found], 0.0)
    images = sum(row[f"{key}_standard_error"] for row in found) / len(found)
    return f"{mean:.3g} ± {math.hypot(trainings, images):.1g}"


def errors(made: Records, method: str) -> Float[np.ndarray, "seeds n"]:
    """The error of each image, grey levels, a row for each seed; of the control with the smallest
    mean.
    """
    names = CONTROLS if method == CONTROL else (method,)
    each = [np.array([row["rmse_levels"] for row in made.at(method=name).rows()]) for name in names]
    return min(each, key=np.mean)


def family_table(made: Records) -> str:
    """Markdown: the planned tests of the RMSE of two INDMs against linear diffusions and the best
    control.
    """
    found = {}
    for data, method, other in FAMILY:
        here = made.at(data=data)
        trainings = [len(here.at(method=name).rows()) for name in (method, "linear")]
        if min(trainings) == max(trainings) > 1:
            own, baseline = errors(here, method), errors(here, other)
            found[data, method, other] = own, np.broadcast_to(baseline, own.shape)
    rows = [
        (
            row["data"],
            f"{METHODS[row['variant']]} − {METHODS.get(row['baseline'], row['baseline'])}",
            row["seeds"],
            with_error(row["difference"], row["standard_error"], "+.2f"),
            f"{row['p_holm']:.2g}",
            row["verdict"],
        )
        for row in family(FAMILY, found)
    ]
    return in_table("to", "difference", "seeds", "RMSE, levels", "p by Holm", "verdict", rows=rows)


@indm.trust("research")
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=["answers"])
    parser.add_argument("data", choices=list(STUDIES))
    parser.add_argument("folder", type=Path, help="of the images")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/answers"), help="where runs and results are kept"
    )
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the tables")
    parser.add_argument("--steps", type=int, help="of a linear model, in place of the study's")
    parser.add_argument(
        "--seeds", type=int, help="trainings of each method, in place of the study's"
    )
    o = parser.parse_args()
    torch.set_num_threads(1)
    for task in STUDIES[o.data]:
        task = Task(task.a, task.b, o.seeds or task.seeds, o.steps or task.steps)
        lab = Lab(task, o.folder, o.out / o.data, o.records)
        study(lab)
        print(table(lab.table))
