"""Train on data of your own: any map-style torch Dataset, here a table of two features that is made on the spot.

python examples/own_data.py
"""

import math
from pathlib import Path

import torch
import tyro
from torch.utils.data import Dataset

import indm


class Spiral(Dataset):
    """Points on a noisy spiral. Items may also be tuples: the first entry is the example."""

    def __init__(self, n: int = 5000, noise: float = 0.05, seed: int = 0):
        self.n, self.noise, self.seed = n, noise, seed
        angle = 3 * math.pi * torch.rand(n, generator=(generator := torch.Generator().manual_seed(seed))).sqrt()
        points = torch.stack([angle * angle.cos(), angle * angle.sin()], dim=1) / 3
        self.points = points + noise * torch.randn(n, 2, generator=generator)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.points[index]


def main(steps: int = 1000, out: Path = Path("runs/example-own-data")) -> None:
    """steps: of the optimizer; out: the run folder."""
    recipe = indm.recipe("eight-gaussians", {"train.steps": steps})  # its flow, SDE, network and rates
    indm.train(recipe, out, data=Spiral())
    fresh = Spiral(500, seed=1).points
    nll, error = indm.evaluate(indm.INDM.load(out), fresh, [indm.NLL()]).mean("nll", "nats")
    gaussian = torch.distributions.MultivariateNormal(fresh.mean(0), fresh.T.cov())
    print(f"log-likelihood of 500 new points: {-nll:.2f} ± {error:.2f} nats; of the best Gaussian: ", end="")
    print(f"{gaussian.log_prob(fresh).mean():.2f}")


if __name__ == "__main__":
    tyro.cli(main)
