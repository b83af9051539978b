"""The figure of the law of x_T from the runs of the grid "terminal".

python -m research.which_flow.figures runs/flows --out research/figures
"""

import argparse
import json
from pathlib import Path

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

import indm
from indm.tensors import double
from indm.workbench.data.base import stack
from indm.workbench.data.registry import load_data
from indm.workbench.evaluation.plots import save_figure, styled
from indm.workbench.evaluation.sample_quality import sliced_wasserstein
from indm.workbench.runs.folder import open_run
from indm.workbench.training.penalties import normal_law
from research.which_flow.grids import GRIDS


def mmd(a: Float[Tensor, "n *event"], b: Float[Tensor, "m *event"]) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel −‖x − y‖ (the energy distance, halved); no bandwidth.

    Zero in the mean for two sets from one law, where it can be negative.

    Source: Gretton et al. 2012, lemma 6, https://jmlr.org/papers/v13/gretton12a.html; Sejdinovic et al. 2013 for the
    kernel, https://arxiv.org/abs/1207.6076.
    """
    a, b = double(a.flatten(1)), double(b.flatten(1))
    n, m = len(a), len(b)
    within = torch.cdist(a, a).sum() / (n * (n - 1)) + torch.cdist(b, b).sum() / (m * (m - 1))
    return (torch.cdist(a, b).mean() - 0.5 * within).item()


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    print(json.dumps(terminal(options.runs, options.out), indent=2))


if __name__ == "__main__":
    main()
