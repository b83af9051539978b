"""What is known of runs: recipes, likelihoods and measures, made where they are missing and kept in their folders.

A measure is kept as ``RUN/measures/NAME.json``, so that a report that was stopped goes on and a second one is quick.
Runs whose recipes differ in the seed alone are one group.
"""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import indm
from indm import anatomy, measures, recipes, runs, vae
from indm.compare import KINDS
from indm.data import Data, stack
from indm.extractor import Extractor
from indm.recipes import Recipe
from indm.sampling import SAMPLERS
from indm.training import count_parameters

MANY_STEPS, FEW_IMAGES = 200, 256  # from so many steps on, no more images than this
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
        if self.images < 2 * measures.FOLDS:
            raise ValueError(f"images must be at least {2 * measures.FOLDS} for standard errors, got {self.images}")
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
        return [row | measures.distances(samples, stack(data.test, images), data.scaling, extractor)]
    model, rows = runs.open_run(run)[0], []
    few = [steps for steps in options.steps if steps < MANY_STEPS]
    many = [steps for steps in options.steps if steps >= MANY_STEPS]
    stochastic = [name for name in options.samplers if name in measures.STOCHASTIC]  # the others have long converged
    for steps, samplers, images in (few, options.samplers, options.images), (many, stochastic, FEW_IMAGES):
        if steps and samplers:
            rows += measures.quality(
                model, data, extractor, samplers=samplers, steps=steps, images=min(images, options.images),
                seed=options.seed, progress=progress,
            )  # fmt: skip
    return rows


def transport(run: Path, data: Data, extractor: Extractor | None, options: Options, progress: bool) -> dict:
    """The cost of the probability flow on the data space beside the least cost."""
    model = runs.open_run(run)[0]
    device = model.scaling.scale.device
    generator = torch.Generator(device).manual_seed(options.seed)
    raw = stack(data.test, min(options.images, measures.LARGEST_ASSIGNMENT)).to(device)
    x = model.scaling.to_model(raw, generator=generator)
    return measures.transport(model, x, generator=generator, progress=progress)


def errors(run: Path, data: Data, extractor: Extractor | None, options: Options, progress: bool) -> dict:
    """The sampling error by parts, of the first sampler that is one of the probability flow."""
    steps = [n for n in options.steps if n < MANY_STEPS]
    sampler = next((name for name in options.samplers if name not in measures.STOCHASTIC), "heun")
    return measures.sampling_errors(
        runs.open_run(run)[0], data, extractor, steps=steps, sampler=sampler, images=options.images,
        seed=options.seed, progress=progress,
    )  # fmt: skip


def gap(run: Path, data: Data, extractor: Extractor | None, options: Options, progress: bool) -> list[dict]:
    """NELBO − NLL of the probability-flow ODE of the same examples: at every snapshot of the run, and at its end."""
    raw = stack(data.test, min(options.images, 1000 if len(data.shape) == 1 else GAP_IMAGES))
    last = runs.read_metrics(run)[-1]["step"]
    kept = {int(folder.name): folder for folder in (run / "snapshots").glob("*")} | {last: run}
    rows = []
    for step, folder in sorted(kept.items()):
        model = indm.INDM.load(folder)
        _, nats = indm.evaluate(model, raw, times=16, seed=options.seed, progress=progress)
        unit = math.log(2) * raw[0].numel() if model.scaling.levels else 1.0
        mean, error = measures.mean_and_error((nats["nelbo"] - nats["nll"]) / unit)
        rows.append({"step": step, "gap": mean, "standard_error": error, "images": len(raw)}
                    | {kind: nats[kind].mean().item() / unit for kind in KINDS})  # fmt: skip
    return rows


def flow(run: Path, data: Data, extractor: Extractor | None, options: Options, progress: bool) -> dict:
    """What the flow does, see :func:`indm.anatomy.inspect`."""
    model = runs.open_run(run)[0]
    return anatomy.inspect(model, data, examples=options.images, seed=options.seed, progress=progress)


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
    path, made_by = run / "measures" / f"{name}.json", asdict(options) | {"of": _weights_time(run)}
    made_by = json.loads(json.dumps(made_by))
    if path.exists():
        kept = json.loads(path.read_text("utf-8"))
        if kept["options"] == made_by:
            return kept["found"]
    found = MEASURES[name](run, data, extractor, options, progress)
    path.parent.mkdir(exist_ok=True)
    runs.write_json(path, {"options": made_by, "found": found})
    return found


def _weights_time(run: Path) -> int:
    """When the model was last written: a run that was trained on is measured anew."""
    return (run / (vae.WEIGHTS if is_vae(run) else "model.safetensors")).stat().st_mtime_ns


@dataclass(frozen=True)
class Facts:
    """All that a report knows of one run; ``measures`` by name."""

    folder: Path
    group: str
    recipe: Recipe
    evaluation: dict
    parameters: int
    measures: dict

    @property
    def unit(self) -> str:
        return self.evaluation["unit"]

    @property
    def end(self) -> dict:
        """The last line of its metrics: ``step``, ``seconds``, …"""
        return runs.read_metrics(self.folder)[-1]

    def bound(self, kind: str = "nelbo") -> tuple[float, float] | None:
        """NELBO or NLL with its standard error over examples, in the run's unit."""
        if kind not in self.evaluation:
            return None
        values, key = self.evaluation[kind]["with_reconstruction"], "bits_per_dim" if self.unit != "nats" else "nats"
        return values[key], values[f"{key}_standard_error"]


def groups_of(folders: Sequence[Path]) -> dict[Path, str]:
    """The group of each run: runs whose recipes differ in the seed alone share one, named after their common folder."""
    known: list[tuple[Recipe, list[Path]]] = []
    for folder in folders:
        recipe = recipes.load(folder)
        twins = [found for other, found in known if recipes.differences(other, recipe) in ([], ["train.seed"])]
        if twins:
            twins[0].append(folder)
        else:
            known.append((recipe, [folder]))
    named: dict[Path, str] = {}
    for _, found in known:
        label = found[0].name if len(found) == 1 else found[0].resolve().parent.name
        label = label if label not in named.values() else str(found[0])
        named |= dict.fromkeys(found, label)
    return {folder: named[folder] for folder in folders}


def facts_of(
    run: Path,
    group: str,
    extractor: Extractor | None,
    data: Data,
    options: Options,
    names: Sequence[str],
    progress: bool = True,
) -> Facts:
    """The facts of one run with the measures of these names, made where they are not there yet."""
    evaluated = run / "evaluation.json"
    if not evaluated.exists() or evaluated.stat().st_mtime_ns < _weights_time(run):
        vae.evaluate_run(run) if is_vae(run) else runs.evaluate(run, progress=progress)
    found = {name: measure(run, name, data, extractor, options, progress=progress) for name in names}
    evaluation = json.loads(evaluated.read_text("utf-8"))
    model = vae.load(run) if is_vae(run) else runs.open_run(run)[0]
    return Facts(run, group, recipes.load(run), evaluation, count_parameters(model), found)


def gather(
    folders: Sequence[Path], extractor: Extractor | None, data: Data, options: Options, progress: bool = True
) -> list[Facts]:
    """The facts of every run, with all measures that it can have."""
    return [
        facts_of(folder, group, extractor, data, options, ["quality"] if is_vae(folder) else list(MEASURES), progress)
        for folder, group in groups_of(folders).items()
    ]


def by_group(facts: Sequence[Facts]) -> dict[str, list[Facts]]:
    groups: dict[str, list[Facts]] = {}
    for f in facts:
        groups.setdefault(f.group, []).append(f)
    return groups


def mean_and_error(values: Sequence[float], alone: float = math.nan) -> tuple[float, float]:
    """Mean over seeds and its standard error; that of a single value is ``alone``."""
    if len(values) == 1:
        return values[0], alone
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
