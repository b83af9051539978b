"""What is known of runs: recipes, likelihoods and measures, made where they are missing and kept in their folders.

A measure is kept as ``RUN/measures/NAME.json``, so that a report that was stopped goes on and a second one is quick.
Runs whose recipes differ in the seed alone are one group.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from indm.config import recipes
from indm.config.recipes import Recipe
from indm.data.base import Data, stack
from indm.evaluation import flow_analysis, sample_quality
from indm.evaluation import transport as transport_module
from indm.evaluation.comparison import KINDS, read_evaluation
from indm.evaluation.extractor import Extractor
from indm.evaluation.likelihood import evaluate
from indm.evaluation.runs import evaluate_run
from indm.evaluation.sampling_error import sampling_errors
from indm.evaluation.statistics import FOLDS, mean_and_error
from indm.evaluation.transport import LARGEST_ASSIGNMENT
from indm.files import atomic, untrusted
from indm.model import INDM, count_parameters
from indm.reproduction import vae
from indm.runs import provenance
from indm.runs.folder import FREE_ON_RESUME, open_run, read_metrics
from indm.runs.provenance import weights_hash
from indm.sampling import SAMPLERS

MANY_STEPS = 200  # from so many on only stochastic samplers are measured: the others have long converged
GAP_IMAGES = 64  # whose likelihood is taken at every snapshot


@dataclass(frozen=True)
class Options:
    """What a report measures.

    Args:
        images: samples of each measure, at most.
        steps: of the samplers.
        samplers: names in :data:`indm.sampling.SAMPLERS`.
        seed: of everything random.
    """

    images: int = 500
    steps: tuple[int, ...] = (5, 10, 20, 50, 100)
    samplers: tuple[str, ...] = ("unipc", "heun", "euler-maruyama")
    seed: int = 0

    def __post_init__(self):
        if self.images < 2 * FOLDS:
            raise ValueError(f"images must be at least {2 * FOLDS} for standard errors, got {self.images}")
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"steps must be one or more numbers of at least 1, got {self.steps}")
        if min(self.steps) >= MANY_STEPS:
            raise ValueError(f"steps must hold one below {MANY_STEPS}, where all samplers run, got {self.steps}")
        if not self.samplers or not set(self.samplers) <= set(SAMPLERS):
            raise ValueError(f"samplers must be one or more of {', '.join(SAMPLERS)}, got {self.samplers}")


def is_vae(run: Path) -> bool:
    return (run / vae.DESCRIPTION).exists()


def quality(run: Path, data: Data, extractor: Extractor | None, options: Options, progress: bool) -> list[dict]:
    """Distances of samples to the test split, over samplers and steps; one row for a VAE."""
    if is_vae(run):
        model, generator = vae.load(run), torch.Generator().manual_seed(options.seed)
        images = min(options.images, len(data.test))
        samples = model.scaling.to_data(vae.sample(model, images, generator=generator))
        row = {"sampler": "decoder", "steps": 0, "nfe": 1}
        return [row | sample_quality.distances(samples, stack(data.test, images), data.scaling, extractor)]
    model, rows = open_run(run)[0], []
    few = [steps for steps in options.steps if steps < MANY_STEPS]
    many = [steps for steps in options.steps if steps >= MANY_STEPS]
    samplers = samplers_of(model, options)
    for steps, some in (few, samplers), (many, [name for name in samplers if name in sample_quality.STOCHASTIC]):
        if steps and some:
            rows += sample_quality.quality(
                model, data, extractor, samplers=some, steps=steps, images=options.images, seed=options.seed,
                progress=progress,
            )  # fmt: skip
    return rows


def samplers_of(model, options: Options) -> list[str]:
    """Those of the options that take the model's SDE; Heun where none does (an SDE learned entry by entry)."""
    if model.sde.is_scalar:
        return list(options.samplers)
    return [name for name in options.samplers if name == "heun"] or ["heun"]


def transport(run: Path, data: Data, extractor: Extractor | None, options: Options, progress: bool) -> dict:
    """The cost of the probability flow on the data space beside the least cost."""
    model = open_run(run)[0]
    device = model.scaling.scale.device
    generator = torch.Generator(device).manual_seed(options.seed)
    raw = stack(data.test, min(options.images, LARGEST_ASSIGNMENT)).to(device)
    x = model.scaling.to_model(raw, generator=generator)
    return transport_module.transport(model, x, generator=generator, progress=progress)


def errors(run: Path, data: Data, extractor: Extractor | None, options: Options, progress: bool) -> dict:
    """The sampling error by parts, of the first sampler that is one of the probability flow."""
    steps = [n for n in options.steps if n < MANY_STEPS]
    model = open_run(run)[0]
    sampler = next((name for name in samplers_of(model, options) if name not in sample_quality.STOCHASTIC), "heun")
    return sampling_errors(
        model, data, extractor, steps=steps, sampler=sampler, images=options.images,
        seed=options.seed, progress=progress,
    )  # fmt: skip


def gap(run: Path, data: Data, extractor: Extractor | None, options: Options, progress: bool) -> list[dict]:
    """NELBO − NLL of the probability-flow ODE of the same examples: at every snapshot of the run, and at its end."""
    raw = stack(data.test, min(options.images, 1000 if len(data.shape) == 1 else GAP_IMAGES))
    last = end_of(run)["steps"]
    found = [folder for folder in (run / "snapshots").glob("*") if folder.name.isdecimal()]
    kept = {int(folder.name): folder for folder in found} | {last: run}
    rows = []
    for step, folder in sorted(kept.items()):
        model = INDM.load(folder, device=provenance.device())
        _, nats = evaluate(model, raw, times=16, seed=options.seed, progress=progress)
        unit = math.log(2) * raw[0].numel() if model.scaling.levels else 1.0
        mean, error = mean_and_error((nats["nelbo"] - nats["nll"]) / unit)
        rows.append({"step": step, "gap": mean, "standard_error": error, "images": len(raw)}
                    | {kind: nats[kind].mean().item() / unit for kind in KINDS})  # fmt: skip
    return rows


def flow(run: Path, data: Data, extractor: Extractor | None, options: Options, progress: bool) -> dict:
    """What the flow does, see :func:`indm.evaluation.flow_analysis.inspect`."""
    model = open_run(run)[0]
    return flow_analysis.inspect(model, data, examples=options.images, seed=options.seed, progress=progress)


MEASURES: dict[str, Callable] = {
    "quality": quality,
    "transport": transport,
    "errors": errors,
    "gap": gap,
    "flow": flow,
}


def measure(
    run: Path, name: str, data: Data, extractor: Extractor | None, options: Options, *, progress: bool = True
) -> dict | list[dict]:
    """A measure of a run, from its folder where it was made with these options, else made and kept there."""
    path, made_by = run / "measures" / f"{name}.json", asdict(options) | {"weights_sha256": weights_hash(run)}
    made_by["extractor_sha256"] = None if extractor is None else extractor.provenance["weights_sha256"]
    made_by = json.loads(json.dumps(made_by))
    if path.exists():
        kept = untrusted.json_object(path)
        if kept.get("options") == made_by and "found" in kept:
            return kept["found"]
    found = MEASURES[name](run, data, extractor, options, progress)
    path.parent.mkdir(exist_ok=True)
    atomic.json_object(path, {"options": made_by, "found": found})
    return found


def end_of(run: Path) -> dict:
    """What a run came to, ``steps``, ``seconds``, …; of a released checkpoint that was converted, ``steps`` alone.

    Raises:
        ValueError: it was killed and has not been gone on with.
    """
    summary, conversion = run / "summary.json", run / "conversion.json"
    if not summary.exists() and conversion.exists():
        return {"steps": int(untrusted.json_object(conversion).get("step") or 0)}
    end = untrusted.json_object(summary) if summary.exists() else {}
    if not isinstance(end.get("steps"), int):
        raise ValueError(f"{run} has not come to an end: go on with 'indm train {run} --resume'")
    return end


@dataclass(frozen=True)
class Record:
    """All that a report knows of one run; ``measures`` by name, ``cost`` in seconds a step where measured apart."""

    folder: Path
    group: str
    recipe: Recipe
    evaluation: dict
    parameters: int
    measures: dict
    cost: float | None = None

    @property
    def unit(self) -> str:
        return self.evaluation["unit"]

    @property
    def curve(self) -> list[dict]:
        """Validations along training: ``step``, ``seconds`` (by ``cost`` where that is known) and ``valid_nelbo``."""
        lines = [line for line in read_metrics(self.folder) if "valid_nelbo" in line]
        return lines if self.cost is None else [line | {"seconds": line["step"] * self.cost} for line in lines]

    def bound(self, kind: str = "nelbo") -> tuple[float, float] | None:
        """NELBO or NLL with its standard error over examples, in the run's unit."""
        if kind not in self.evaluation:
            return None
        values, key = self.evaluation[kind]["with_reconstruction"], "bits_per_dim" if self.unit != "nats" else "nats"
        return values[key], values[f"{key}_standard_error"]


def groups_of(folders: Sequence[Path]) -> dict[Path, str]:
    """The group of each run: runs whose recipes differ in the seed alone share one, named after their common folder.

    How a run is watched and evaluated makes no difference, but its budget does.
    """
    alike = {"train.seed", *FREE_ON_RESUME} - {"train.steps", "train.seconds"}
    known: list[tuple[Recipe, list[Path]]] = []
    for folder in folders:
        recipe = recipes.load(folder)
        twins = [
            found
            for other, found in known
            if all(key in alike or key.startswith("evaluate.") for key in recipes.differences(other, recipe))
        ]
        if twins:
            twins[0].append(folder)
        else:
            known.append((recipe, [folder]))
    named: dict[Path, str] = {}
    for _, found in known:
        place = found[0].resolve()
        label = place.name if len(found) == 1 else place.parent.name
        label = label if label not in named.values() else str(found[0])
        named |= dict.fromkeys(found, label)
    return {folder: named[folder] for folder in folders}


def record_of(
    run: Path,
    group: str,
    extractor: Extractor | None,
    data: Data,
    options: Options,
    names: Sequence[str],
    progress: bool = True,
) -> Record:
    """The facts of one run with the measures of these names, made where they are not there yet."""
    try:
        kept = read_evaluation(run)
    except (FileNotFoundError, ValueError):
        kept = {"weights_sha256": None}
    if kept["weights_sha256"] != weights_hash(run):
        kept = vae.evaluate_vae_run(run) if is_vae(run) else evaluate_run(run, progress=progress)
    found = {name: measure(run, name, data, extractor, options, progress=progress) for name in names}
    model = vae.load(run) if is_vae(run) else open_run(run)[0]
    return Record(run, group, recipes.load(run), kept, count_parameters(model), found)


def gather(
    folders: Sequence[Path], extractor: Extractor | None, data: Data, options: Options, progress: bool = True
) -> list[Record]:
    """The facts of every run, with all measures that it can have."""
    return [
        record_of(folder, group, extractor, data, options, measures_of(folder), progress)
        for folder, group in groups_of(folders).items()
    ]


def measures_of(run: Path) -> list[str]:
    """The measures that make sense for a run: a VAE has no diffusion, a conditional flow no single map."""
    if is_vae(run):
        return ["quality"]
    one_map = open_run(run)[0].flow.one_map
    return [name for name in MEASURES if one_map or name not in ("transport", "flow")]


def by_group(facts: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for f in facts:
        groups.setdefault(f.group, []).append(f)
    return groups
