"""What a flow alone makes of B, where the terminal bridge ends, along its training: ankle boots, emoji of one artist.

    python -m research.translation.flow_alone sneaker-boot --steps 1600     # what has no record yet; killed, it goes on
    python -m research.translation.flow_alone emoji-32 --paths GOOGLE TWITTER --steps 6400 \\
        --flows "patches of 4×4, noise-augmented"
    python -m research.translation.flow_alone sneaker-boot --table

Each flow is trained by its own likelihood, without a diffusion. "noise-augmented" is TarFlow as published (Zhai et al.
2024, https://arxiv.org/abs/2412.06329): x + σn in place of x, and samples x + σ² ∇log p(x), which are no samples of a
density; no likelihood is claimed of it. After 100, 200, 400, … steps 200 samples of the averaged weights are compared
with B as ``study.py`` compares translations. Each flow is a row of ``flow_alone.csv``.
"""

import argparse
import functools
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import indm
from indm.model import INDM, count_parameters
from indm.objective import Objective, as_objective, flow_loss, flow_nll, objective_of
from indm.tensors import evaluation_mode, noisy
from indm.translation import without_noise
from indm.workbench.data.base import Data, load_data, stack
from indm.workbench.figures.plots import save_pixels
from indm.workbench.figures.sheets import Panel, sheet
from indm.workbench.recipes import recipe as recipes
from indm.workbench.training.checkpoints import has_state
from indm.workbench.training.pairs import sides_of
from research.lab.distances import frechet_distance
from research.lab.extractor import Extractor, load_or_train
from research.lab.statistics import share_error
from research.markdown import in_table
from research.records import RECORDS, Records, made_by
from research.translation.metrics import MOST
from research.translation.study import ARTISTS, classified, recipe_of

IMAGES, SHOWN, FIRST = 200, 10, 100
SIGMA = 0.1  # of images on [−1, 1]
TARFLOW = {"flow": "autoregressive", "flow.width": 96, "flow.blocks": 6, "train.flow_lr": 1e-3}
WIDER = TARFLOW | {"flow.width": 128, "flow.blocks": 5}  # as the bridge of two folders has it
FLOWS: dict[str, dict[str, dict[str, Any]]] = {
    "sneaker-boot": {
        "coupling, spline": {"flow": "coupling", "flow.levels": 3, "flow.depth": 4, "train.flow_lr": 1e-2},
        "autoregressive, spline": TARFLOW | {"flow.transform": "spline"},
        "autoregressive, noise-augmented": TARFLOW,
    },
    ARTISTS: {
        "patches of 4×4, noise-augmented": WIDER | {"flow.patch": 4},
        "patches of 2×2, noise-augmented": WIDER | {"flow.patch": 2},
    },
}


def augmented(sigma: float) -> Objective:
    """The flow's likelihood of x + σn."""

    @as_objective(trains_score=False, truncates=False, standard_prior=True)
    def loss(model, x: Tensor, *, eps: float | None = None, generator: torch.Generator | None = None):
        return flow_loss(model, noisy(x, sigma, generator), eps=eps, generator=generator)

    return objective_of(loss)


def samples(model: INDM, n: int, sigma: float) -> Tensor:
    """x = h⁻¹(z), and x + σ² ∇log p(x) of a flow that was trained with noise, in grey levels."""
    z = torch.randn(n, *model.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = model.decode(z)
    return model.scaling.to_data(without_noise(model, x, sigma) if sigma else x)


def measured(
    model: INDM, data: Data, extractor: Extractor, label: int, sigma: float
) -> tuple[dict[str, float], Tensor]:
    """Distance to B, the share that is taken for its class, bits/dim of validation images; and the samples."""
    with evaluation_mode(model):
        raw, x = samples(model, IMAGES, sigma), model.from_data(stack(data.valid))[0]
        nats = flow_nll(model, x).mean().item()
    features = extractor.features(raw)
    taken = (extractor.head(features).argmax(1) == label).double().mean().item()
    numbers = {
        "frechet": frechet_distance(features, extractor.features(stack(data.train, MOST))),
        "accuracy": taken,
        "accuracy_standard_error": share_error(taken, IMAGES),
    }
    bits = (
        {}
        if sigma
        else {"bits": (nats - model.scaling.log_volume(model.shape)) / (math.prod(model.shape) * math.log(2))}
    )
    return numbers | bits, raw


def study(
    name: str, recipe: dict, flow: dict[str, Any], steps: int, out: Path, extractor: Extractor, label: int
) -> dict:
    """Train one flow of the recipe's B, and measure it along the way."""
    sigma = SIGMA if name.endswith("noise-augmented") else 0.0
    budget: dict[str, Any] = {"train.steps": steps, "train.seconds": math.inf, "train.flow_update_every": 1}
    recipe = recipes.override(sides_of(recipe)["b"], budget | {"net": "zero"} | flow)
    marks, data = {FIRST * 2**k for k in range(20)}, load_data(**recipe["data"])
    file = out / f"{name}.json"
    curve: dict[str, dict] = json.loads(file.read_text()) if file.exists() else {}

    def measure(trainer: Any, terms: Any) -> None:
        if trainer.step in marks or trainer.step == steps:
            curve[str(trainer.step)], raw = measured(trainer.ema.model, data, extractor, label, sigma)
            file.write_text(json.dumps(curve))
            save_pixels(sheet([Panel(raw[:SHOWN], SHOWN)], 256), out / f"{name}.png")
            print(name, trainer.step, curve[str(trainer.step)], flush=True)

    run = out / name
    options: dict[str, Any] = {"callbacks": [measure], "resume": has_state(run)}
    summary = indm.train(recipe, run, objective=augmented(sigma) if sigma else "flow", **options)
    if summary["interrupted"]:
        raise KeyboardInterrupt
    return {"curve": curve, "parameters": count_parameters(INDM.load(run).flow), "sigma": sigma} | made_by(0)


def table(data: str, records: Records) -> str:
    """Along the steps: Fréchet distance to B, and the share that is taken for it."""
    by_flow = {row["flow"]: row for row in records.rows()}
    made = {name: by_flow[name] for name in FLOWS[data] if name in by_flow}
    steps = sorted({int(step) for record in made.values() for step in record["curve"]})
    rows = []
    for name, record in made.items():
        cells = [
            "" if found is None else f"{found['frechet']:.0f}, {100 * found['accuracy']:.0f} %"
            for found in (record["curve"].get(str(step)) for step in steps)
        ]
        rows.append((name, f"{record['parameters']:,}", *cells))
    return in_table("flow", "parameters", *(f"{step} steps" for step in steps), rows=rows)


@indm.trust("research")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(FLOWS))
    every = [name for flows in FLOWS.values() for name in flows]
    parser.add_argument("--flows", nargs="+", choices=every, help="some of those of the data; all by default")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--paths", nargs=2, help="of the images, for emoji-32: the packages of two artists, unpacked")
    parser.add_argument("--out", type=Path, default=Path("runs/flow-alone"), help="where the runs are or shall be")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the table")
    parser.add_argument("--table", action="store_true", help="of the records alone")
    o = parser.parse_args()
    records = Records(o.records / "flow_alone.csv").at(data=o.data)
    if not o.table:
        make(o, o.out / o.data, records)
    print(table(o.data, records))


def make(o: argparse.Namespace, out: Path, records: Records) -> None:
    """Make the records that there are not yet."""
    out.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of(o.data, o.paths, 0)
    of_all, label = classified(recipe, *(load_data(**recipe[table]) for table in ("data", "data_b")))
    extractor = load_or_train(out / "extractor", of_all)
    for name in o.flows or FLOWS[o.data]:
        made = functools.partial(study, name, recipe, FLOWS[o.data][name], o.steps, out, extractor, label)
        records.at(flow=name).kept(made)


if __name__ == "__main__":
    main()
