"""What a report knows of runs: recipes, likelihoods and measurements, made where they are missing.

Runs whose recipes differ in the seed alone are one group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from indm.config import recipes
from indm.config.recipes import Recipe
from indm.dequantization import in_words
from indm.evaluation.budgets import Costs
from indm.evaluation.diagnosis import conclusion
from indm.evaluation.methods import differences, methods_of
from indm.evaluation.results import number_key, read_evaluation
from indm.evaluation.runs import evaluate_run
from indm.model import count_parameters
from indm.report.measurements import Setup, measure, measurements_of
from indm.runs.folder import open_model, read_metrics
from indm.runs.provenance import weights_hash


@dataclass(frozen=True)
class Record:
    """What a report knows of one run.

    Attributes:
        folder: of the run.
        group: the name of its method's runs, which differ in the seed alone.
        recipe: as the run has it.
        evaluation: what ``evaluation.json`` holds.
        parameters: of the model.
        measurements: by name.
        cost: seconds of a step, where they were measured apart from the run.
    """

    folder: Path
    group: str
    recipe: Recipe
    evaluation: dict
    parameters: int
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


def groups_of(folders: Sequence[Path]) -> dict[Path, str]:
    """The group of each run: the runs of one method (:func:`indm.evaluation.methods.methods_of`) share one, named after
    their common folder."""
    names: dict[Path, str] = {}
    for members in methods_of(folders):
        place = members[0].resolve()
        name = place.name if len(members) == 1 else place.parent.name
        names |= dict.fromkeys(members, name if name not in names.values() else str(members[0]))
    return {folder: names[folder] for folder in folders}


def record_of(run: Path, group: str, setup: Setup, names: Sequence[str]) -> Record:
    """The record of one run with the measurements of these names; what is missing is evaluated and measured."""
    model = open_model(run)
    dequantization, parameters = in_words(model), count_parameters(model)
    del model  # whatever measures opens its own
    evaluation = _evaluation_of(run, dequantization, setup.progress)
    results = {name: measure(run, name, setup) for name in names}
    return Record(run, group, recipes.resolve(recipes.load(run)), evaluation, parameters, results)


def _evaluation_of(run: Path, dequantization: str, progress: bool) -> dict:
    """That in the run's folder; a new one where it is of other weights or counts its dequantization otherwise."""
    try:
        evaluation = read_evaluation(run)
        if evaluation["dequantization"] == dequantization and evaluation["weights_sha256"] == weights_hash(run):
            return evaluation
    except (FileNotFoundError, ValueError):
        pass
    return evaluate_run(run, progress=progress)


def gather(folders: Sequence[Path], setup: Setup) -> list[Record]:
    """The records of all runs, with every measurement that makes sense for each."""
    groups = groups_of(folders)
    return [record_of(folder, group, setup, measurements_of(folder, setup)) for folder, group in groups.items()]


def by_group(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each group, in order."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    return groups


def conclusions(records: Sequence[Record]) -> list[str]:
    """Whether each group's models learned the data, see :func:`indm.evaluation.diagnosis.conclusion`, a line for each.

    Of several seeds it is the worst that speaks. Groups whose evaluations have no baselines have no line.
    """
    lines = []
    for name, group in by_group(records).items():
        worst = max(group, key=lambda record: record.evaluation["nelbo"]["with_reconstruction"]["nats"])
        sentence = conclusion(worst.folder, worst.evaluation)
        seeds = f", the worst of {len(group)} seeds" if len(group) > 1 else ""
        lines += [f"{name}{seeds}: {sentence}"] if sentence else []
    return lines


def folders_of(records: Sequence[Record]) -> dict[str, list[Path]]:
    """The runs of each group."""
    return {name: [record.folder for record in group] for name, group in by_group(records).items()}


def differences_of(records: Sequence[Record], costs: Costs) -> dict[str, dict[str, dict]]:
    """Every group's likelihoods less those of the first, see :func:`indm.evaluation.methods.differences`."""
    return differences(folders_of(records), {record.folder: record.evaluation for record in records}, costs)
