"""The picture of the idea in docs/method.md: data, latent, and x_t of a learned diffusion in the plane.

indm train two-spirals --flow coupling --flow.depth 6 --flow.width 64 --train.flow_lr 3e-3 --train.flow_update_every 1 \
  --train.terminal 1 --train.batch_size 512 --train.seconds 50 --out runs/idea
python -m research.idea_figure runs/idea --out docs/figures/idea.png
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from indm.data.base import stack
from indm.data.registry import load_data
from indm.diffusion import forward_path
from indm.evaluation.plots import save_figure, styled
from indm.runs.folder import open_run

POINTS, PATHS, MOMENTS = 2000, 5, 60
TIMES = (0.0, 0.05, 0.2, 1.0)


@styled
@torch.no_grad()
def idea(run: Path, out: Path) -> None:
    """x_t above z_t at a few times, in model units, each particle in one colour; on the right some paths."""
    model, recipe = open_run(run)
    x = model.scaling.to_model(stack(load_data(**recipe["data"]).test, POINTS))
    eps = model.sde.eps
    shown = torch.tensor([max(t, eps) for t in TIMES])
    moments = torch.linspace(eps, TIMES[2], MOMENTS)
    times, order = torch.cat([shown, moments]).unique(return_inverse=True)
    x_t = forward_path(model, x, times, generator=torch.Generator().manual_seed(0))
    z_t = torch.stack([model.flow.latent(frame) for frame in x_t])
    starts = x[:, 0].argsort()[:: POINTS // PATHS][:PATHS]
    figure = Figure(figsize=(7.5, 3.6))
    rows = ((x_t, "data space\nx_t = h⁻¹(z_t)", "data x", 1.5), (z_t, "latent space\nz_t", "latent z = h(x)", 3.0))
    for panels, (frames, label, first, reach) in zip(figure.subplots(2, len(TIMES) + 1), rows, strict=True):
        for axes, t, place in zip(panels, TIMES, order.tolist(), strict=False):
            axes.scatter(*frames[place].T.numpy(), c=x.norm(dim=1).numpy(), s=1, cmap="viridis", linewidths=0)
            axes.set_title(f"t = {t:g}" if t else first)
        panels[-1].plot(*frames[order[0]].T.numpy(), ".", color="0.85", markersize=1)
        for start in starts.tolist():
            panels[-1].plot(*frames[order[len(TIMES) :], start].T.numpy(), linewidth=0.8)
        panels[-1].set_title(f"paths to t = {TIMES[2]:g}")
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
