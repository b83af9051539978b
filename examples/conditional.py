"""Train a model of p(x|c) on pairs (x, c), sample it at a condition, and ask by Bayes which
condition a point is of.

python examples/conditional.py
"""

from pathlib import Path

import torch
import tyro
from torch.utils.data import TensorDataset

import indm


def circle(n: int = 4000) -> TensorDataset:
    """Points x on a noisy circle, and how far around it they lie: c from 0 to 1."""
    c = torch.rand(n, 1, generator=torch.Generator().manual_seed(0))
    angle = 2 * torch.pi * c
    return TensorDataset(torch.cat([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(n, 2), c)


def main(steps: int = 1000, out: Path = Path("runs/example-conditional")) -> None:
    """steps: of the optimizer; out: the run folder."""
    changes = {"train.steps": steps, "condition": "vector", "condition.flow": True}
    indm.train(indm.recipe("eight-gaussians", changes), out, data=circle())
    model = indm.INDM.load(out)
    samples = indm.sample(model, 500, c=[0.25])  # one condition for all, or a row for each
    print("mean of x at c = 0.25:", model.scaling.to_data(samples).mean(0))
    where = torch.tensor([[0.0], [0.25], [0.5], [0.75]])
    top, _ = model.from_data(torch.tensor([[0.0, 1.0]]).expand(4, 2))
    with torch.no_grad():
        print("p(c|x) of the top, of four c:", model.log_prob(top, c=where).softmax(0))


if __name__ == "__main__":
    tyro.cli(main)
