"""Train a model of images x given small ones c, and draw several x for each c.

python examples/super_resolution.py
"""

from pathlib import Path

import torch
import tyro
from torch.nn.functional import avg_pool2d, interpolate
from torch.utils.data import TensorDataset

import indm
from indm.workbench.data import as_data, load_data, stack
from indm.workbench.figures.plots import save_pixels
from indm.workbench.figures.sheets import Panel, sheet


def blurred(raw: torch.Tensor) -> torch.Tensor:
    """Means of 4×4 pixels, at the size of the image, in [0, 1]."""
    return interpolate(avg_pool2d(raw / 16, 4), scale_factor=4)


def main(steps: int = 1500, out: Path = Path("runs/example-super-resolution")) -> None:
    """steps: of the optimizer; out: the run folder."""
    digits = stack(load_data("digits").train)
    data = as_data(TensorDataset(digits, blurred(digits)), levels=17, c=True)
    indm.train(indm.recipe("digits", {"train.steps": steps, "condition": "image"}), out, data=data)
    model, x = indm.INDM.load(out), stack(load_data("digits").test, 8)
    c = blurred(x)
    samples = torch.cat([model.scaling.to_data(indm.sample(model, 8, c=c)) for _ in range(4)])
    print("RMS of the means of samples less c:", (blurred(samples) - c.repeat(4, 1, 1, 1)).square().mean().sqrt())
    rows = torch.cat([(16 * c).round(), samples, x])
    names = ["c", *(f"sample {i}" for i in range(1, 5)), "x"]
    save_pixels(sheet([Panel(rows, columns=8, rows=names)], levels=17), out / "super-resolution.png")


if __name__ == "__main__":
    tyro.cli(main)
