"""Which flow, why Glow fails, and what schedule and penalties do: grids of short trainings over
seeds, compared in pairs.

    python -m research.which_flow glow --out runs/flows
    python -m research.which_flow digits fashion checkerboard --out runs/flows

A grid is a recipe, a budget and named changes of it. Every run has one thread and ``--jobs`` run side by side; killed
and started again, it goes on. Writes ``GRID.json`` and prints its table: the bound, its paired difference from the
grid's first variant, seconds a step, ‖h(x) − x‖/‖x‖ and the time and error of the inverse. The differences of a grid
are one family of tests; a verdict needs two seeds or more. Choices are made on the validation split, which is the
default; what is reported of a choice needs ``--split test`` and another ``--out``.
"""

import argparse
import json
import shlex
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

import indm
from indm.workbench.data.base import stack
from indm.workbench.data.registry import load_data
from indm.workbench.evaluation.results import difference, per_example
from indm.workbench.evaluation.statistics import judged
from indm.workbench.runs.folder import open_run
from research.which_flow.runs import COMMAND, RESIDUAL, run, summary

DATA_START = ("-m", "research.which_flow.data_start")


@dataclass
class Grid:
    """A recipe, the options common to all of its variants, and the variants: name → further options."""

    recipe: str
    common: str
    variants: dict[str, str]
    evaluation: str = "--nll-examples 64 --repeats 4 --times 8"
    data_start: tuple[str, ...] = field(default=())  # the variants whose ActNorms start from the data

    def trainer(self, variant: str) -> tuple[str, ...]:
        return DATA_START if variant in self.data_start else COMMAND


def compose(*flows: str) -> str:
    """A flow that is applied between squeeze and unsqueeze, as an option of ``indm train``."""
    inner = ", ".join(f"{{{flow}}}" for flow in ('name = "squeeze"', *flows, 'name = "unsqueeze"'))
    return f"--flow compose --flow.flows '[{inner}]'"


LINEAR = "--flow identity --train.flow_update_every 1"
SPLINE = "--flow coupling --train.flow_update_every 1"
AFFINE = f"{SPLINE} --flow.transform affine"
FROZEN = "--train.flow_lr 1e-12 --train.flow_update_every 1"
SQUEEZED_ROTATION = compose('name = "linear", channels = 4, start = "rotation"')
SQUEEZED_ACTNORM = compose('name = "actnorm", channels = 4')
ROTATED, FREE = "--flow.start rotation", "--flow.max_log_scale inf"
UNIFORM = "--dequantization uniform --train.flow_lr 1e-3"  # of grey levels, and the rate of flows of whole images
STEPS = f"{UNIFORM} --train.steps 600 --train.seconds inf"
LEARNED = "--sde research.forward.sde:LearnedSDE --sde.eps 1e-3"  # digits' ε
FAMILIES = {
    "linear": LINEAR,
    "residual": shlex.join(RESIDUAL),
    "affine coupling": AFFINE,
    "spline coupling": SPLINE,
    "spline coupling, every 3rd step": "--flow coupling --train.flow_update_every 3",
}

GRIDS = {
    "steps": Grid("digits", STEPS, FAMILIES | {"autoregressive": "--flow autoregressive --train.flow_update_every 1"}),
    "glow": Grid(
        "digits",
        STEPS,
        {
            "linear": LINEAR,
            "glow": f"{AFFINE} {ROTATED} {FREE}",
            "glow, identity 1x1": f"{AFFINE} {FREE}",
            "glow, identity ActNorm": f"{AFFINE} {ROTATED} {FREE}",
            "glow, bounded scale": f"{AFFINE} {ROTATED}",
            "glow, a tenth of the rate": f"{AFFINE} {ROTATED} {FREE} --train.flow_lr 1e-4",
            "cured": AFFINE,
            "cured, rotation": f"{AFFINE} {ROTATED}",
            "cured, data ActNorm": AFFINE,
            "cured, free scale": f"{AFFINE} {FREE}",
            "cured, flow rate x 5": f"{AFFINE} --train.flow_lr 5e-3",
            "linear, fixed rotation": f"{SQUEEZED_ROTATION} {FROZEN}",
            "linear, fixed standardising": f"{SQUEEZED_ACTNORM} {FROZEN}",
            "spline": SPLINE,
            "spline, rotation": f"{SPLINE} {ROTATED}",
        },
        data_start=(
            "glow", "glow, identity 1x1", "glow, bounded scale", "glow, a tenth of the rate", "cured, data ActNorm",
            "linear, fixed standardising",
        ),
    ),
    "digits": Grid("digits", f"{UNIFORM} --train.steps inf --train.seconds 60", FAMILIES),
    "fashion": Grid(
        "fashion-mnist-16",
        f"{UNIFORM} --train.steps inf --train.seconds 150",
        {name: changes for name, changes in FAMILIES.items() if name != "affine coupling"},
        evaluation="--examples 2000 --nll-examples 50 --repeats 2 --times 4",
    ),
    "checkerboard": Grid(
        "checkerboard",
        "--train.steps inf --train.seconds 40",
        {
            "linear": LINEAR,
            "residual": "",
            "affine coupling": f"{AFFINE} --flow.depth 8 --train.flow_update_every 1",
            "spline coupling": f"{SPLINE} --flow.depth 6 --flow.bound 2.5",
            "zuko": "--flow zuko --train.flow_update_every 1",
        },
        evaluation="--examples 20000 --nll-examples 5000 --repeats 2 --times 8",
    ),
    "pretraining": Grid(
        "digits",
        f"{UNIFORM} --train.steps inf --train.seconds 45",
        {
            "scratch": SPLINE,
            "pretrained for a third": f"{SPLINE} --train.pretrain 0.33",
            "warm-up of 200 steps": f"{SPLINE} --train.flow_warmup 200",
            "a third of the rate": f"{SPLINE} --train.flow_lr 3e-4",
            "EMA 0.99": f"{SPLINE} --train.ema 0.99",
        },
    ),
    "strength": Grid(
        "digits",
        STEPS,
        {
            "linear": LINEAR,
            **{f"isometry {weight}": f"{SPLINE} --train.isometry {weight}" for weight in (10, 1, 0.1, 0.01)},
            "free": SPLINE,
        },
    ),
    "drift": Grid(
        "digits",
        STEPS,
        {
            f"{flow}{sde}": f"{changes} {option}"
            for flow, changes in {"linear": LINEAR, "spline": SPLINE}.items()
            for sde, option in {
                "": "",
                ", drift": f"{LEARNED} --sde.learn drift",
                ", volatility": f"{LEARNED} --sde.learn volatility",
                ", both": LEARNED,
            }.items()
        },
        evaluation="--nll-examples 0 --repeats 4 --times 8",
    ),
    "terminal": Grid(
        "checkerboard",
        "--train.steps 1500 --train.seconds inf --flow coupling --flow.depth 6 --flow.bound 2.5 "
        "--train.flow_update_every 1",
        {
            "free": "",
            "moments, 1": "--train.terminal 1",
            **{
                f"eight Gaussians, {weight}": f"--data-b eight-gaussians --train.terminal {weight}"
                for weight in (0.1, 1, 10)
            },
        },
        evaluation="--examples 20000 --nll-examples 0 --repeats 2 --times 8",
    ),
}  # fmt: skip


def report(grid: Grid, out: Path, seeds: range, split: str) -> dict:
    """What the runs of a grid came to."""
    first, table, family = next(iter(grid.variants)), {}, {}
    data = load_data(**open_run(out / first / "0")[1]["data"])
    raw = stack(data.test, 250)
    for name in grid.variants:
        folders = [out / name / str(seed) for seed in seeds]
        evaluations = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
        if any(evaluation["split"] != split for evaluation in evaluations):
            raise ValueError(f"--out must be another one than {out}, whose runs are evaluated on another split")
        key = "bits_per_dim" if evaluations[0]["unit"] == "bits/dim" else "nats"
        table[name] = {
            "nelbo": [float(per_example(folder).mean()) for folder in folders],
            "nll": [e["nll"]["with_reconstruction"][key] if "nll" in e else None for e in evaluations],
            "steps": [summary(folder)["steps"] for folder in folders],
            "seconds_per_step": statistics.median(summary(f)["seconds"] / summary(f)["steps"] for f in folders),
            **measure(indm.INDM.load(folders[0]), raw),
        }
        if name != first:
            family[name] = difference([(f, out / first / str(s)) for f, s in zip(folders, seeds, strict=True)])
    for name, row in zip(family, judged(list(family.values())), strict=True):
        table[name]["paired"] = row
    return table


@torch.no_grad()
def measure(model: indm.INDM, raw: torch.Tensor) -> dict:
    """How far the flow moves the data, and what its inverse costs beside 20 sampling steps, and its error."""
    x = model.scaling.to_model(raw, generator=torch.Generator().manual_seed(0))
    z = model.flow.latent(x)
    _, residual, _, _ = model.flow.solve_inverse(z)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    network = model.score.backbone
    level = torch.zeros(len(z))
    seconds = {"inverse": [], "sampling": []}
    for _ in range(3):
        for name, action in {
            "inverse": model.decode,
            "sampling": lambda v: [network(v, level) for _ in range(20)],
        }.items():
            started = time.perf_counter()
            action(z if name == "inverse" else noise)
            seconds[name].append(time.perf_counter() - started)
    return {
        "displacement": ((z - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)).median().item(),
        "latent_std": z.std().item(),
        "inverse_of_20_steps": statistics.median(seconds["inverse"]) / statistics.median(seconds["sampling"]),
        "inverse_residual": residual.max().item(),
    }


def show(table: dict) -> str:
    """The table as Markdown."""
    header = [
        "variant", "NELBO by seed", "NLL", "difference", "±", "Holm's p", "verdict", "s/step", "moved", "std z",
        "inverse", "error",
    ]  # fmt: skip
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for name, row in table.items():
        paired = row.get("paired", {})
        nll = [value for value in row["nll"] if value is not None]
        cells = [
            name,
            ", ".join(f"{value:.3f}" for value in row["nelbo"]),
            f"{statistics.mean(nll):.3f}" if nll else "",
            f"{paired['difference']:+.4f}" if paired else "",
            f"{paired['standard_error']:.4f}" if paired else "",
            f"{paired['p_holm']:.2g}" if paired and paired["p_holm"] is not None else "",
            paired.get("verdict", ""),
            f"{1e3 * row['seconds_per_step']:.1f} ms",
            f"{row['displacement']:.2f}",
            f"{row['latent_std']:.2f}",
            f"{row['inverse_of_20_steps']:.1%}",
            f"{row['inverse_residual']:.0e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grids", nargs="+", choices=GRIDS, metavar="GRID", help=", ".join(GRIDS))
    parser.add_argument("--split", choices=("valid", "test"), default="valid")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(options.seeds)
    for name in options.grids:
        grid, out = GRIDS[name], options.out / name
        with ThreadPoolExecutor(options.jobs) as pool:
            jobs = [
                pool.submit(
                    run, out / variant / str(seed), grid.recipe, seed, shlex.split(f"{grid.common} {changes}"),
                    [*grid.evaluation.split(), "--split", options.split], grid.trainer(variant),
                )
                for seed in seeds
                for variant, changes in grid.variants.items()
            ]  # fmt: skip
            for job in jobs:
                job.result()
        table = report(grid, out, seeds, options.split)
        (options.out / f"{name}.json").write_text(json.dumps(table, indent=2) + "\n")
        print(f"{name}: {grid.recipe} {grid.common}, {options.split} split\n\n{show(table)}\n", flush=True)
