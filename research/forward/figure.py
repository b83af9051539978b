"""The picture of README.md: each forward process in the plane, by trainings of a minute.

python -m research.forward.figure --runs runs/forward --out docs/figures
"""

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import indm
from indm.diffusion import path_length
from indm.evaluation.plots import save_figure
from indm.evaluation.style import COLOURS, styled
from indm.runs.folder import open_model
from indm.sampling import log_snr_grid
from research.forward.fading import Fade, FadingDiffusion, fading_path
from research.forward.model import ForwardINDM
from research.forward.study import PARTS, as_forward, ways_of

ROWS = {
    "linear": {"flow": "identity"},
    "learned SDE": {"flow": "identity", "sde": PARTS["learned"]},
    "coded": {"flow": "identity", "sde": PARTS["coded"]},
    "learned mean": {"flow": "identity", "sde": PARTS["learned-mean"]},
    "affine": {"flow": "identity", "sde": PARTS["affine"]},
    "flow": {"flow": "coupling"},
    "flow that fades": {"flow": "coupling"},
}
POINTS, WAYS, PLACES = 800, 40, (0.0, 0.35, 0.5, 0.65, 1.0)


def trained(runs: Path, name: str, steps: int):
    changes = {"train.steps": steps, "train.seconds": math.inf, "train.flow_update_every": 1} | ROWS[name]
    if name in ("coded", "learned mean", "affine"):
        changes["train.objective"] = "research.forward.objective:mle"
    run = runs / name.replace(" ", "-")
    if not (run / "summary.json").exists():
        indm.train(indm.recipe("eight-gaussians", changes), run, resume=run.exists())
    return as_forward(open_model(run))


@styled
@torch.no_grad()
def draw(models: dict[str, ForwardINDM], out: Path) -> None:
    density = indm.data.densities.DENSITIES["eight-gaussians"]
    raw = density.sample(POINTS, generator=torch.Generator().manual_seed(0))
    figure = Figure(figsize=(2.2 * (len(PLACES) + 1), 2.2 * len(models)))
    panels = figure.subplots(len(models), len(PLACES) + 1, sharex=True, sharey=True)
    for row, (name, model) in zip(panels, models.items(), strict=True):
        x = model.scaling.to_model(raw)
        colour = (torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi) * 8).round().long() % 8
        fade = Fade(1.0) if name == "flow that fades" else None
        start, end = model.sde.clock_span()
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(x.shape, generator=generator)
        for axes, place in zip(row, PLACES, strict=False):
            t = model.sde.time(torch.tensor(-(start + place * (end - start)), dtype=torch.float64)).clamp(
                model.sde.eps, 1
            )
            x_t = noised(model, x, t.to(x).expand(POINTS), noise, fade)
            axes.scatter(*x_t.T, s=1.5, c=[COLOURS[i % len(COLOURS)] for i in colour.tolist()], linewidths=0)
            axes.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
            if name == "linear":
                axes.set_title(f"{place:.0%} of the clock")
        row[0].set_ylabel(name)
        times = log_snr_grid(model.sde, 48).flip(0)
        ways = ways_of(model, x[:WAYS]) if fade is None else fading_path(model.along_flow(), x[:WAYS], times, fade)
        row[-1].plot(*ways.permute(2, 0, 1).numpy(), linewidth=0.6, color=COLOURS[0], alpha=0.7)
        row[-1].set_title(f"ways of data, length {path_length(ways).mean():.2f}")
    save_figure(figure, out / "forward-processes.png")


def noised(model: ForwardINDM, x: Tensor, t: Tensor, noise: Tensor, fade: Fade | None) -> Tensor:
    """x_t given x_0 = x."""
    process, sde, z = model.process, model.sde, model.flow.latent(x)
    if process.seen_shape:
        sde = process.sde_at(sde, process.encoded(z, torch.Generator().manual_seed(2))[0])
    z_t = process.at(sde, z, t, noise).z_t
    return model.decode(z_t) if fade is None else FadingDiffusion(model.along_flow(), fade).decode(z_t, t)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/forward"))
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("--steps", type=int, default=600)
    o = parser.parse_args()
    with indm.trust("research"):
        draw({name: trained(o.runs, name, o.steps) for name in ROWS}, o.out)


if __name__ == "__main__":
    main()
