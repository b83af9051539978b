"""Figures of docs/flows.md from the runs of bench/flows.py.

python bench/flow_figures.py runs/flows --out docs/figures
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from flows import GRIDS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import indm
from indm.data.base import stack
from indm.data.registry import load_data
from indm.evaluation.distances import mmd, sliced_wasserstein
from indm.evaluation.plots import save_figure
from indm.evaluation.sheets import grid
from indm.evaluation.style import COLOURS, DATA_COLOUR, colours_of, styled
from indm.runs.folder import open_run
from indm.training.penalties import normal_law

STEPS = (3, 5, 10, 20, 50)


def dots(axes: Axes, table: dict) -> None:
    """The bound of every variant of a grid, one dot a seed."""
    for i, row in enumerate(table.values()):
        axes.plot(row["nelbo"], [i] * len(row["nelbo"]), "o", color=COLOURS[0] if i else DATA_COLOUR)
    axes.axvline(statistics.mean(next(iter(table.values()))["nelbo"]), color=DATA_COLOUR, linewidth=0.8)
    axes.set(yticks=range(len(table)), yticklabels=list(table), xlabel="NELBO (test, one dot a seed)")
    axes.invert_yaxis()


@styled
def bounds(runs: Path, name: str, out: Path) -> None:
    """:func:`dots` of a grid as a figure of its own."""
    table = json.loads((runs / f"{name}.json").read_text())
    figure = Figure(figsize=(8, 0.35 * len(table) + 1.2))
    dots(figure.subplots(), table)
    save_figure(figure, out / f"flows-{name}.png")


def sampling_curve(model: indm.INDM, data: torch.Tensor) -> list[float]:
    """Sliced Wasserstein distance of 360 samples to the test data, in model units, over the number of steps."""
    curve = []
    for steps in STEPS:
        x = indm.sample(model, len(data), steps=steps, generator=torch.Generator().manual_seed(0))
        curve.append(sliced_wasserstein(x, data, generator=torch.Generator().manual_seed(1)))
    return curve


@styled
def strength(runs: Path, out: Path) -> dict:
    """NELBO, the ODE's NLL and the sampling curve along the weight of the isometry term; first samples below."""
    table = json.loads((runs / "strength.json").read_text())
    figure = Figure(figsize=(13, 7))
    above, below = figure.subfigures(2, 1, height_ratios=(1.2, 1))
    left, right = above.subplots(1, 2)
    names = list(table)
    left.plot(names, [statistics.mean(row["nelbo"]) for row in table.values()], ".-", color=DATA_COLOUR, label="NELBO")
    nll = [statistics.mean(row["nll"]) for row in table.values()]
    left.plot(names, nll, ".--", color=DATA_COLOUR, label="NLL (ODE), first 64 images")
    left.set(xlabel="weight of the isometry term", ylabel="bits/dim")
    left.tick_params(axis="x", rotation=20)
    curves = {}
    for axes, name, colour in zip(below.subplots(1, len(names)), names, colours_of(names).values(), strict=True):
        model, recipe = open_run(runs / "strength" / name / "0")
        data = load_data(**recipe["data"])
        x = model.scaling.to_model(stack(data.test), generator=torch.Generator().manual_seed(2))
        curves[name] = sampling_curve(model, x)
        right.plot(STEPS, curves[name], ".-", color=colour, label=name)
        samples = indm.sample(model, 25, steps=20, generator=torch.Generator().manual_seed(0))
        axes.imshow(grid(model.scaling.to_data(samples), model.scaling.levels), interpolation="nearest")
        axes.set_title(name)
        axes.axis("off")
    right.set(xlabel="sampling steps", ylabel="sliced Wasserstein distance to test data", xscale="log", yscale="log")
    right.set_xticks(STEPS, labels=STEPS)
    right.minorticks_off()
    save_figure(figure, out / "flows-strength.png")
    return curves


@styled
@torch.no_grad()
def terminal(runs: Path, out: Path) -> dict:
    """x_T of every variant, and its sliced Wasserstein distance and MMD to three laws."""
    names = list(GRIDS["terminal"].variants)
    figure = Figure(figsize=(3 * len(names), 6))
    panels = figure.subplots(2, len(names), sharex=True, sharey=True)
    found: dict = {}
    data, other = (stack(load_data(name).test, 2000) for name in ("checkerboard", "eight-gaussians"))
    for column, name in zip(panels.T, names, strict=True):
        model, _ = open_run(runs / "terminal" / name / "0")
        end = model.decode(torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)))
        x = model.scaling.to_model(data)
        torch.manual_seed(0)
        laws = {
            "N(0, I)": torch.randn(2000, 2),
            "moments of the data": normal_law(x)(2000),
            "eight Gaussians": model.scaling.to_model(other),
        }
        found[name] = {
            k: {"sliced_wasserstein": sliced_wasserstein(end, y), "mmd": mmd(end, y)} for k, y in laws.items()
        }
        samples = indm.sample(model, 2000, steps=40, generator=torch.Generator().manual_seed(3))
        for axes, points, what in zip(column, (end, samples), ("x_T", "samples"), strict=True):
            axes.plot(*points.T.numpy(), ".", markersize=1)
            axes.set(title=f"{name}: {what}", aspect="equal", xlim=(-2.5, 2.5), ylim=(-2.5, 2.5))
    save_figure(figure, out / "flows-terminal.png")
    return found


@styled
@torch.no_grad()
def drift(runs: Path, out: Path) -> None:
    """Bounds with a learned linear SDE, and how the entries' clocks run in it."""
    table = json.loads((runs / "drift.json").read_text())
    figure = Figure(figsize=(13, 4))
    left, middle, right = figure.subplots(1, 3)
    dots(left, table)
    model, _ = open_run(runs / "drift" / "linear, both" / "0")
    sde = model.sde
    start, end = sde.clock_span()
    clock = torch.linspace(start, end, 200, dtype=torch.float64)
    t = sde.time(-clock).clamp(sde.eps, sde.T)
    rate = sde.clock_rate(t)
    middle.plot(clock, rate.flatten(1), color=COLOURS[0], alpha=0.2)
    middle.set(xlabel="common clock −log SNR", ylabel="rate of each entry", title="linear, both")
    image = right.imshow(rate[100].reshape(sde.shape[-2:]))
    figure.colorbar(image)
    right.set(title="rate at the middle of the clock, by pixel")
    save_figure(figure, out / "flows-drift.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    numbers = {}
    for name, draw in {"strength": strength, "terminal": terminal, "drift": drift}.items():
        if (options.runs / f"{name}.json").exists():
            numbers[name] = draw(options.runs, options.out)
    for name in ("glow", "steps"):
        if (options.runs / f"{name}.json").exists():
            bounds(options.runs, name, options.out)
    print(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
