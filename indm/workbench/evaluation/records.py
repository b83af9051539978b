"""What is known of runs: recipes, likelihoods and measurements, made where they are missing.

Runs whose recipes differ in the seed alone are one group. A measurement is kept in the run folder, as
``RUN/measurements/NAME.json``, so that a report that was stopped continues, and a second one is quick.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from indm.conditions import rows_of_data
from indm.files import atomic, untrusted
from indm.model import INDM, count_parameters
from indm.sampling import able_samplers, default_sampler, make_sampler
from indm.workbench.data.base import Data, stack
from indm.workbench.evaluation import sample_quality
from indm.workbench.evaluation.extractor import Extractor
from indm.workbench.evaluation.likelihood import evaluate
from indm.workbench.evaluation.methods import Costs, differences, methods_of
from indm.workbench.evaluation.results import current_evaluation, evaluate_run, number_key
from indm.workbench.evaluation.statistics import mean_and_error, over_seeds
from indm.workbench.recipes.options import ReportOptions
from indm.workbench.recipes.recipe import Recipe
from indm.workbench.runs.devices import device
from indm.workbench.runs.folder import end_of, open_model, read_metrics, recipe_of
from indm.workbench.runs.provenance import weights_hash

GAP_IMAGES = 64  # whose likelihood is taken at every snapshot
FOLDER = "measurements"


@dataclass(frozen=True)
class Measurement:
    """A measurement: ``make`` (run, setup) → what JSON can hold, and whether it ``fits`` a model.

    ``version`` of the result is raised where its form or what it measures changes: stored ones are then made again.
    """

    make: Callable[..., Any]
    fits: Callable[[Any], bool]
    version: int = 1


@dataclass(frozen=True)
class Setup:
    """What the measurements of all runs of a report share.

    Attributes:
        data: the data set of the runs.
        extractor: of features for Fréchet distances; None for data without labels.
        options: what is measured.
        progress: show bars.
        measurements: by name, those of a report by default.
    """

    data: Data
    extractor: Extractor | None
    options: ReportOptions
    progress: bool = True
    measurements: Mapping[str, Measurement] = field(default_factory=lambda: MEASUREMENTS)

    def dependencies(self, run: Path) -> dict:
        """What a measurement of ``run`` depends on, as JSON holds it."""
        extractor = None if self.extractor is None else self.extractor.provenance["weights_sha256"]
        weights = {"weights_sha256": weights_hash(run), "extractor_sha256": extractor}
        return json.loads(json.dumps(asdict(self.options) | weights))


def quality(run: Path, setup: Setup) -> list[dict]:
    """Distances of samples to the test split, over samplers and steps; one row for a model that is not a diffusion."""
    model, options, data = open_model(run), setup.options, setup.data
    if not model.is_diffusion:
        examples = min(options.examples, len(data.test))
        generator = sample_quality.make_generator(model.scaling.scale, options.seed, 0)
        samples = model.scaling.to_data(model.sample(examples, generator=generator))
        row = {"sampler": "decoder", "steps": 0, "nfe": 1}
        return [row | sample_quality.distances(samples, stack(data.test, examples), data.scaling, setup.extractor)]
    rows, samplers = [], samplers_of(model, options)
    stochastic = [name for name in samplers if make_sampler(name).stochastic]
    for steps, names in (options.few_steps(), samplers), (options.many_steps(), stochastic):
        if steps and names:
            rows += sample_quality.quality(
                model, data, setup.extractor, samplers=names, steps=steps, images=options.examples, seed=options.seed,
                progress=setup.progress,
            )  # fmt: skip
    return rows


def samplers_of(model: INDM, options: ReportOptions) -> list[str]:
    """The samplers of the options that support the model's SDE; where none does, the default one."""
    return able_samplers(model, options.samplers) or [default_sampler(model)]


def gap(run: Path, setup: Setup) -> list[dict]:
    """NELBO − NLL of the probability-flow ODE of the same examples: at every snapshot of the run, and at its end."""
    raw = stack(setup.data.test, min(setup.options.examples, 1000 if len(setup.data.shape) == 1 else GAP_IMAGES))
    groups = setup.data.groups["test"][: len(raw)] if setup.data.groups else None
    snapshots = [folder for folder in (run / "snapshots").glob("*") if folder.name.isdecimal()]
    folders = {int(folder.name): folder for folder in snapshots} | {end_of(run)["steps"]: run}
    rows = []
    for step, folder in sorted(folders.items()):
        model = INDM.load(folder, device=device())
        c = rows_of_data(model, setup.data, "test", len(raw))
        _, nats = evaluate(model, raw, c=c, each=True, times=16, seed=setup.options.seed, progress=setup.progress)
        unit = math.log(2) * raw[0].numel() if model.scaling.levels else 1.0
        mean, error = mean_and_error((nats["nelbo"] - nats["nll"]) / unit, groups)
        known = None if math.isnan(error) else error  # of a single group
        row = {"step": step, "gap": mean, "standard_error": known, "images": len(raw)}
        rows.append(row | {kind: nats[kind].mean().item() / unit for kind in ("nelbo", "nll")})
    return rows


def is_diffusion(model: Any) -> bool:
    """Whether it has an SDE, samplers and a probability flow."""
    return model.is_diffusion


MEASUREMENTS: dict[str, Measurement] = {
    "quality": Measurement(quality, lambda model: True),
    "gap": Measurement(gap, is_diffusion, version=3),
}


def measure(run: Path, name: str, setup: Setup) -> Any:
    """A measurement of a run, made and kept in its folder where there is none of these weights with this setup."""
    measurement = setup.measurements[name]
    path, dependencies = run / FOLDER / f"{name}.json", setup.dependencies(run) | {"version": measurement.version}
    stored = untrusted.json_object(path) if path.exists() else {}
    if stored.get("options") == dependencies and stored.get("result") is not None:
        return stored["result"]
    result = measurement.make(run, setup)
    atomic.json_object(path, {"options": dependencies, "result": result})
    return result


@dataclass(frozen=True)
class Record:
    """What is known of one run.

    Attributes:
        folder: of the run.
        group: the name of its method's runs, which differ in the seed alone.
        recipe: as the run has it.
        evaluation: what ``evaluation.json`` holds.
        parameters: of the model; None where it was not opened.
        measurements: by name.
        cost: seconds of a step, where they were measured apart from the run.
    """

    folder: Path
    group: str
    recipe: Recipe
    evaluation: dict
    parameters: int | None
    measurements: dict
    cost: float | None = None

    @property
    def unit(self) -> str:
        """ "bits/dim" or "nats"."""
        return self.evaluation["unit"]

    @property
    def is_conditional(self) -> bool:
        """Whether the model is one of p(x|c)."""
        return "condition" in self.evaluation

    @property
    def curve(self) -> list[dict]:
        """Validations along training: ``step``, ``seconds`` (by ``cost`` where that is known) and ``valid_nelbo``."""
        lines = [line for line in read_metrics(self.folder) if "valid_nelbo" in line]
        return lines if self.cost is None else [line | {"seconds": line["step"] * self.cost} for line in lines]

    def bound(self, kind: str = "nelbo") -> tuple[float, float] | None:
        """NELBO or NLL with its standard error over examples, in the run's unit; None where it was not evaluated."""
        if kind not in self.evaluation:
            return None
        values, key = self.evaluation[kind]["with_reconstruction"], number_key(self.evaluation)
        return values[key], values[f"{key}_standard_error"]

    @property
    def solver_error(self) -> float | None:
        """Of the NLL, the mean over examples in the run's unit; None where it is not known."""
        error = self.evaluation.get("nll", {}).get("solver_error")
        return error and error[number_key(self.evaluation)]


def bound_of(group: Sequence[Record], kind: str = "nelbo") -> tuple[float, float] | None:
    """A likelihood of a group and its standard error: over its seeds, or of a single run over the examples."""
    bounds = [bound for record in group if (bound := record.bound(kind))]
    return over_seeds([mean for mean, _ in bounds], bounds[0][1]) if bounds else None


def groups_of(folders: Sequence[Path]) -> dict[Path, str]:
    """The group of each run: the runs of one method (:func:`indm.workbench.evaluation.methods.methods_of`) share one.

    It is named after the folder that holds these runs and none of another method, otherwise after its first run.
    """
    names: dict[Path, str] = {}
    for members in methods_of(folders):
        place = members[0].resolve()
        together = [folder for folder in folders if folder.resolve().parent == place.parent]
        name = place.parent.name if len(members) > 1 and {*together} == {*members} else place.name
        names |= dict.fromkeys(members, name if name not in names.values() else str(members[0]))
    return {folder: names[folder] for folder in folders}


def gather(folders: Sequence[Path], setup: Setup) -> list[Record]:
    """The records of all runs, with every measurement that makes sense for each."""
    return [record_of(folder, group, setup) for folder, group in groups_of(folders).items()]


def record_of(run: Path, group: str, setup: Setup, names: Sequence[str] | None = None) -> Record:
    """The record of one run with the measurements of these names, by default all that make sense for its model.

    What is missing is evaluated and measured.
    """
    model = open_model(run)
    if names is None:
        names = [name for name, measurement in setup.measurements.items() if measurement.fits(model)]
    parameters = count_parameters(model)
    del model  # whatever measures opens its own
    evaluation = current_evaluation(run) or evaluate_run(run, progress=setup.progress)
    results = {name: measure(run, name, setup) for name in names}
    return Record(run, group, recipe_of(run), evaluation, parameters, results)


def by_group(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each group, in order."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    return groups


def folders_of(records: Sequence[Record]) -> dict[str, list[Path]]:
    """The runs of each group."""
    return {name: [record.folder for record in group] for name, group in by_group(records).items()}


def differences_of(records: Sequence[Record], costs: Costs) -> dict[str, dict[str, dict]]:
    """Every group's likelihoods less those of the first, see :func:`indm.workbench.evaluation.methods.differences`."""
    return differences(folders_of(records), {record.folder: record.evaluation for record in records}, costs)
