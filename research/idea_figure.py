"""The pictures of the idea in docs/method.md: noise and samples of linear and of learned diffusion.

indm train two-spirals --flow coupling --flow.depth 6 --flow.width 64 --train.flow_lr 3e-3 --train.flow_update_every 1 \
  --train.batch_size 512 --train.steps 3000 --train.seconds inf --out runs/idea
indm train two-spirals --train.batch_size 512 --train.steps 4000 --train.seconds inf --out runs/linear
indm train eight-gaussians --train.steps 4000 --train.seconds inf
indm evaluate runs/eight-gaussians --examples 5000 --nll-examples 5000
python -m research.idea_figure still runs/linear runs/idea --out docs/figures/idea.png
python -m research.idea_figure density runs/eight-gaussians --out docs/figures/density.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from indm import INDM, forward_path, sample
from indm.workbench.data.base import load_data, stack
from indm.workbench.evaluation.results import read_evaluation
from indm.workbench.figures.plots import DATA_COLOUR, save_figure, styled
from indm.workbench.runs.folder import open_run

POINTS, CIRCLES, RADIUS, SIDE, REACH = 2000, 50, 0.1, 160, 1.4
TIMES, STEPS = (0.0, 0.05, 0.2, 1.0), 10
NAMES = ("linear diffusion", "INDM")


def opened(*runs: Path) -> tuple[list[INDM], Tensor]:
    """Models, and test points in their units."""
    found = [open_run(run) for run in runs]
    x = found[0][0].scaling.to_model(stack(load_data(**found[0][1]["data"]).test, POINTS))
    return [model for model, _ in found], x


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def noised(model: INDM, x: Tensor, times: Sequence[float]) -> Tensor:
    """x_t in model units, (times, n, 2)."""
    return forward_path(
        model, x, torch.tensor([max(t, model.sde.eps) for t in times]), generator=seeded()
    )


def noise_of(model: INDM, x: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Circles of noise around the latents of some points, and these curves in the data space."""
    angle = torch.linspace(0, 2 * torch.pi, 80)
    circles = model.flow.latent(x)[chosen, None] + RADIUS * torch.stack(
        [angle.cos(), angle.sin()], 1
    )
    return circles, model.flow.inverse(circles.flatten(0, 1)).unflatten(0, circles.shape[:2])


def around(axes: Axes, points: Tensor, curves: Tensor, colour: Tensor) -> None:
    """Grey points, and curves of noise around some of them."""
    axes.plot(*points.T.numpy(), ".", color="0.85", markersize=1)
    axes.add_collection(LineCollection(curves.numpy(), array=colour.numpy(), linewidths=0.8))


def scattered(axes: Axes, points: Tensor, colour: Tensor | None = None) -> None:
    """Points, each in the colour of its place in the data, or black."""
    looks = {"c": DATA_COLOUR} if colour is None else {"c": colour.numpy(), "cmap": "viridis"}
    axes.scatter(*points.T.numpy(), s=1, linewidths=0, **looks)


def bare(axes: Axes, reach: float) -> None:
    axes.set(xticks=(), yticks=(), aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
    axes.spines[:].set_visible(False)


@styled
@torch.no_grad()
def still(linear: Path, learned: Path, out: Path) -> None:
    """x_t at a few times, noise of one size around some points, and samples; of an INDM also its latents."""
    models, x = opened(linear, learned)
    chosen, radius = x[:, 0].argsort()[:: POINTS // CIRCLES], x.norm(dim=1)
    figure = Figure(figsize=(8, 4))
    panels = figure.subplots(3, len(TIMES) + 2)
    for row, model, name in zip(panels, models, NAMES, strict=False):
        frames = noised(model, x, TIMES)
        for axes, frame in zip(row, frames, strict=False):
            scattered(axes, frame, radius)
        around(row[-2], frames[0], noise_of(model, x, chosen)[1], radius[chosen])
        scattered(row[-1], sample(model, POINTS, steps=STEPS, generator=seeded()))
        row[0].set_ylabel(f"{name}\nx_t")
    for axes, frame in zip(panels[2], frames, strict=False):
        scattered(axes, models[1].flow.latent(frame), radius)
    around(
        panels[2, -2], models[1].flow.latent(x), noise_of(models[1], x, chosen)[0], radius[chosen]
    )
    panels[2, 0].set_ylabel("INDM\nz_t = h(x_t)")
    titles = (*(f"t = {t:g}" for t in TIMES), "noise", f"samples,\n{STEPS} steps")
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title)
    for axes in panels.flat:
        bare(axes, 3.0 if axes in panels[2] else 1.5)
    save_figure(figure, out)


@styled
@torch.no_grad()
def density(run: Path, out: Path) -> None:
    """Data of known entropy, and the density of a model of them."""
    figure = Figure(figsize=(5, 2.6))
    truth, learned = figure.subplots(1, 2)
    model, recipe = open_run(run)
    law = load_data(**recipe["data"])
    scattered(truth, stack(law.test, POINTS))
    truth.set_title(f"data, entropy\n{law.entropy:.3f} nats")
    side = torch.linspace(-REACH, REACH, SIDE)
    x = model.scaling.to_model(torch.cartesian_prod(side, side))
    p = model.log_prob(x, steps=48, exact=True).exp().reshape(SIDE, SIDE)
    learned.pcolormesh(side, side, p.T.numpy(), vmin=0, vmax=p.quantile(0.995).item())
    found = read_evaluation(run)["nll"]["with_reconstruction"]
    learned.set_title(f"model, −log p\n{found['nats']:.3f} ± {found['nats_standard_error']:.3f}")
    for axes in (truth, learned):
        bare(axes, REACH)
    save_figure(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    pictures = {made.__name__: made for made in (still, density)}
    parser.add_argument("picture", choices=pictures)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args()
    pictures[o.picture](*o.runs, o.out)


if __name__ == "__main__":
    main()
