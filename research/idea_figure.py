"""The pictures of the idea in docs/method.md and README: data, latent, and noise of a learned diffusion in the plane.

indm train two-spirals --flow coupling --flow.depth 6 --flow.width 64 --train.flow_lr 3e-3 --train.flow_update_every 1 \
  --train.batch_size 512 --train.steps 3000 --train.seconds inf --out runs/idea
indm train eight-gaussians --train.steps 4000 --train.seconds inf
indm evaluate runs/eight-gaussians --examples 5000 --nll-examples 5000
python -m research.idea_figure runs/idea --out docs/figures/idea.png
python -m research.idea_figure runs/idea --density runs/eight-gaussians --out docs/figures/first.png
"""

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from indm import INDM, forward_path, nll
from indm.workbench.data.base import load_data, stack
from indm.workbench.evaluation.results import read_evaluation
from indm.workbench.figures.plots import DATA_COLOUR, save_figure, styled
from indm.workbench.runs.folder import open_run

POINTS, CIRCLES, RADIUS, SIDE, REACH, DRAWS = 2000, 50, 0.1, 160, 1.4, 4
TIMES = (0.0, 0.05, 0.2, 1.0)


def noise_of(run: Path) -> tuple[INDM, Tensor, Tensor, Tensor, Tensor]:
    """The model, test points x in model units, some of them, circles of noise around their latents, and these in x."""
    model, recipe = open_run(run)
    x = model.scaling.to_model(stack(load_data(**recipe["data"]).test, POINTS))
    angle = torch.linspace(0, 2 * torch.pi, 80)
    chosen = x[:, 0].argsort()[:: POINTS // CIRCLES]
    circles = model.flow.latent(x)[chosen, None] + RADIUS * torch.stack([angle.cos(), angle.sin()], 1)
    return model, x, chosen, circles, model.flow.inverse(circles.flatten(0, 1)).unflatten(0, circles.shape[:2])


def around(axes: Axes, points: Tensor, curves: Tensor, colour: Tensor) -> None:
    """Grey points, and curves of noise around some of them."""
    axes.plot(*points.T.numpy(), ".", color="0.85", markersize=1)
    axes.add_collection(LineCollection(curves.numpy(), array=colour.numpy(), linewidths=0.8))


def within(axes: Axes, reach: float) -> None:
    half = round(reach * 2 / 3)
    limits = {"xlim": (-reach, reach), "ylim": (-reach, reach)}
    axes.set(xticks=(-half, 0, half), yticks=(-half, 0, half), aspect="equal", **limits)


@styled
@torch.no_grad()
def idea(run: Path, out: Path) -> None:
    """x_t above z_t at a few times, in model units, each particle in one colour; then noise of one size around some."""
    model, x, chosen, circles, curves = noise_of(run)
    times = torch.tensor([max(t, model.sde.eps) for t in TIMES])
    x_t = forward_path(model, x, times, generator=torch.Generator().manual_seed(0))
    z_t = torch.stack([model.flow.latent(frame) for frame in x_t])
    radius = x.norm(dim=1)
    figure = Figure(figsize=(7.5, 3.6))
    rows = (
        (x_t, curves, "x_t", "x", 1.5),
        (z_t, circles, "z_t", "z = h(x)", 3.0),
    )
    for panels, (frames, noise, label, first, reach) in zip(figure.subplots(2, len(TIMES) + 1), rows, strict=True):
        for axes, t, frame in zip(panels, TIMES, frames, strict=False):
            axes.scatter(*frame.T.numpy(), c=radius.numpy(), s=1, cmap="viridis", linewidths=0)
            axes.set_title(f"t = {t:g}" if t else first)
        around(panels[-1], frames[0], noise, radius[chosen])
        panels[-1].set_title("noise")
        panels[0].set_ylabel(label)
        for axes in panels:
            within(axes, reach)
            axes.tick_params(labelleft=axes is panels[0], labelsize=8)
    save_figure(figure, out)


@styled
@torch.no_grad()
def first(spirals: Path, gaussians: Path, out: Path) -> None:
    """Data with noise that follows them and their latent; data of known entropy and the density of a model of them."""
    model, x, chosen, circles, curves = noise_of(spirals)
    figure = Figure(figsize=(10, 2.5))
    data, latent, truth, learned = figure.subplots(1, 4)
    radius = x.norm(dim=1)[chosen]
    for axes, points, noise, reach, title in (
        (data, x, curves, 1.1, "data x: noise\nfollows the arms"),
        (latent, model.flow.latent(x), circles, 2.7, "latent z: noise\nis round"),
    ):
        around(axes, points, noise, radius)
        within(axes, reach)
        axes.set_title(title)
    model, recipe = open_run(gaussians)
    law = load_data(**recipe["data"])
    truth.plot(*stack(law.test, POINTS).T.numpy(), ".", color=DATA_COLOUR, markersize=1)
    truth.set_title(f"data, entropy\n{law.entropy:.3f} nats")
    side = torch.linspace(-REACH, REACH, SIDE)
    points, log_q = model.from_data(torch.cartesian_prod(side, side))
    draws = [-nll(model, points, log_q=log_q, steps=48).nats for _ in range(DRAWS)]
    density = torch.stack(draws).exp().mean(0).reshape(SIDE, SIDE)
    learned.pcolormesh(side, side, density.T.numpy(), vmin=0, vmax=density.quantile(0.995).item())
    found = read_evaluation(gaussians)["nll"]["with_reconstruction"]
    learned.set_title(f"model, −log p\n{found['nats']:.3f} ± {found['nats_standard_error']:.3f}")
    for axes in (truth, learned):
        within(axes, REACH)
    for axes in (data, latent, truth, learned):
        axes.set(xticks=(), yticks=())
        axes.spines[:].set_visible(False)
    save_figure(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--density", type=Path, help="an evaluated run, of data of known entropy: draw README's picture"
    )
    o = parser.parse_args()
    first(o.run, o.density, o.out) if o.density else idea(o.run, o.out)


if __name__ == "__main__":
    main()
