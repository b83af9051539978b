"""The picture of the idea in docs/method.md: data, latent, and x_t of a learned diffusion in the plane.

indm train two-spirals --flow coupling --flow.depth 6 --flow.width 64 --train.flow_lr 3e-3 --train.flow_update_every 1 \
  --train.batch_size 512 --train.steps 3000 --train.seconds inf --out runs/idea
python -m research.idea_figure runs/idea --out docs/figures/idea.png
"""

import argparse
from pathlib import Path

import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from indm.diffusion import forward_path
from indm.workbench.data.base import load_data, stack
from indm.workbench.figures.plots import save_figure, styled
from indm.workbench.runs.folder import open_run

POINTS, CIRCLES, RADIUS = 2000, 50, 0.1
TIMES = (0.0, 0.05, 0.2, 1.0)


@styled
@torch.no_grad()
def idea(run: Path, out: Path) -> None:
    """x_t above z_t at a few times, in model units, each particle in one colour; then noise of one size around some."""
    model, recipe = open_run(run)
    x = model.scaling.to_model(stack(load_data(**recipe["data"]).test, POINTS))
    times = torch.tensor([max(t, model.sde.eps) for t in TIMES])
    x_t = forward_path(model, x, times, generator=torch.Generator().manual_seed(0))
    z_t = torch.stack([model.flow.latent(frame) for frame in x_t])
    angle = torch.linspace(0, 2 * torch.pi, 80)
    chosen = x[:, 0].argsort()[:: POINTS // CIRCLES]
    circles = z_t[0, chosen, None] + RADIUS * torch.stack([angle.cos(), angle.sin()], 1)
    curves = model.flow.inverse(circles.flatten(0, 1)).unflatten(0, circles.shape[:2])
    radius = x.norm(dim=1)
    figure = Figure(figsize=(7.5, 3.6))
    rows = (
        (x_t, curves, "x_t", "x", 1.5),
        (z_t, circles, "z_t", "z = h(x)", 3.0),
    )
    for panels, (frames, around, label, first, reach) in zip(figure.subplots(2, len(TIMES) + 1), rows, strict=True):
        for axes, t, frame in zip(panels, TIMES, frames, strict=False):
            axes.scatter(*frame.T.numpy(), c=radius.numpy(), s=1, cmap="viridis", linewidths=0)
            axes.set_title(f"t = {t:g}" if t else first)
        panels[-1].plot(*frames[0].T.numpy(), ".", color="0.85", markersize=1)
        panels[-1].add_collection(LineCollection(around.numpy(), array=radius[chosen].numpy(), linewidths=0.8))
        panels[-1].set_title("noise")
        panels[0].set_ylabel(label)
        for axes in panels:
            half = round(reach * 2 / 3)
            axes.set(xticks=(-half, 0, half), yticks=(-half, 0, half), aspect="equal")
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
            axes.tick_params(labelleft=axes is panels[0], labelsize=8)
    save_figure(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    idea(options.run, options.out)


if __name__ == "__main__":
    main()
