"""Bring a network of your own: any torch module ``forward(z, level)`` that returns z's shape.

python examples/own_network.py
indm sample runs/example-own-network --trust own_network       # in this folder; --trust as the
class is yours
"""

from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

import indm


class Convolutions(nn.Module):
    """Three convolutions that see the log noise level as one more channel. Options are attributes
    of the same name.
    """

    def __init__(self, shape: tuple[int, ...], width: int = 32):
        super().__init__()
        self.shape, self.width = shape, width
        self.layers = nn.Sequential(
            nn.Conv2d(shape[0] + 1, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
        )
        self.last = nn.Conv2d(width, shape[0], 3, padding=1)

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        seen = level[:, None, None, None].expand(-1, 1, *z.shape[2:])
        return self.last(self.layers(torch.cat([z, seen], dim=1)))


def main(steps: int = 300, out: Path = Path("runs/example-own-network")) -> None:
    """steps: of the optimizer; out: the run folder."""
    net = Convolutions((1, 8, 8))
    summary = indm.train(indm.recipe("digits", {"train.steps": steps}), out, model=net)
    print(f"validation NELBO {summary['valid_nelbo']:.3f} {summary['unit']}")


if __name__ == "__main__":
    tyro.cli(main)
