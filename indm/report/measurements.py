"""What a report measures of runs. A measurement is kept in the run folder, as ``RUN/measurements/NAME.json``, so that
a report that was stopped continues, and a second one is quick.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from indm.conditions import rows_of_data
from indm.config.options import ReportOptions
from indm.data.base import Data, stack
from indm.evaluation import sample_quality
from indm.evaluation.extractor import Extractor
from indm.evaluation.likelihood import evaluate
from indm.evaluation.sample_quality import make_generator
from indm.evaluation.statistics import mean_and_error
from indm.files import atomic, untrusted
from indm.model import INDM
from indm.runs.devices import device
from indm.runs.folder import end_of, open_model
from indm.runs.provenance import weights_hash
from indm.sampling import able_samplers, default_sampler, make_sampler

GAP_IMAGES = 64  # whose likelihood is taken at every snapshot
FOLDER = "measurements"


@dataclass(frozen=True)
class Measurement:
    """A measurement, and for which models it is.

    Attributes:
        make: (run, setup) → what JSON can hold.
        fits: whether it makes sense for a model.
        version: of the result, raised where its form or what it measures changes: stored ones are then made again.
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
        measurements: by name, those of a report by default; who measures more gives a table with more.
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
    """Distances of samples to the test split, over samplers and steps; one row for a model that is no diffusion."""
    model, options, data = open_model(run), setup.options, setup.data
    if not model.is_diffusion:
        examples, generator = (
            min(options.examples, len(data.test)),
            make_generator(model.scaling.scale, options.seed, 0),
        )
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
    """Those of the options that take the model's SDE; where none does, the default one."""
    return able_samplers(model, options.samplers) or [default_sampler(model)]


def gap(run: Path, setup: Setup) -> list[dict]:
    """NELBO − NLL of the probability-flow ODE of the same examples: at every snapshot of the run, and at its end."""
    raw = stack(setup.data.test, min(setup.options.examples, 1000 if len(setup.data.shape) == 1 else GAP_IMAGES))
    snapshots = [folder for folder in (run / "snapshots").glob("*") if folder.name.isdecimal()]
    folders = {int(folder.name): folder for folder in snapshots} | {end_of(run)["steps"]: run}
    rows = []
    for step, folder in sorted(folders.items()):
        model = INDM.load(folder, device=device())
        c = rows_of_data(model, setup.data, "test", len(raw))
        _, nats = evaluate(model, raw, c=c, times=16, seed=setup.options.seed, progress=setup.progress)
        unit = math.log(2) * raw[0].numel() if model.scaling.levels else 1.0
        mean, error = mean_and_error((nats["nelbo"] - nats["nll"]) / unit)
        row = {"step": step, "gap": mean, "standard_error": error, "images": len(raw)}
        rows.append(row | {kind: nats[kind].mean().item() / unit for kind in ("nelbo", "nll")})
    return rows


def is_diffusion(model: Any) -> bool:
    """Whether it has an SDE, samplers and a probability flow."""
    return model.is_diffusion


MEASUREMENTS: dict[str, Measurement] = {
    "quality": Measurement(quality, lambda model: True),
    "gap": Measurement(gap, is_diffusion, version=2),
}


def measurements_of(run: Path, setup: Setup) -> list[str]:
    """The measurements that make sense for a run."""
    model = open_model(run)
    return [name for name, measurement in setup.measurements.items() if measurement.fits(model)]


def measure(run: Path, name: str, setup: Setup) -> Any:
    """A measurement of a run, made and kept in its folder where there is none of these weights with this setup."""
    measurement = setup.measurements[name]
    path, dependencies = run / FOLDER / f"{name}.json", setup.dependencies(run) | {"version": measurement.version}
    stored = _read(path)
    if stored is not None and stored[0] == dependencies:
        return stored[1]
    result = measurement.make(run, setup)
    path.parent.mkdir(exist_ok=True)
    atomic.json_object(path, {"options": dependencies, "result": result})
    return result


def _read(path: Path) -> tuple[dict, Any] | None:
    """What a stored measurement depends on, and its result; None where there is none."""
    stored = untrusted.json_object(path) if path.exists() else {}
    options, result = stored.get("options"), stored.get("result")
    return None if not isinstance(options, dict) or result is None else (options, result)
