"""Train a model of images x given small ones c, and draw several x for each c: clothes of
Fashion-MNIST, 28×28.

python examples/super_resolution.py        # 10 minutes on two cores
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

CHANGES = {
    "condition": "image",
    "net.multipliers": [1, 2],
    "train.objective": "fid",
    "train.seconds": float("inf"),
}


def blurred(raw: torch.Tensor) -> torch.Tensor:
    """Means of 4×4 pixels, at the size of the image, in [0, 1]."""
    return interpolate(avg_pool2d(raw / 255, 4), scale_factor=4)


def main(steps: int = 900, out: Path = Path("runs/example-super-resolution")) -> None:
    """steps: of the optimizer; out: the run folder."""
    clothes = load_data("fashion-mnist")  # 30 MB, if this machine does not have it
    data = as_data(TensorDataset(x := stack(clothes.train), blurred(x)), levels=256, c=True)
    indm.train(indm.recipe("fashion-mnist", CHANGES | {"train.steps": steps}), out, data=data)
    x = stack(clothes.test)[[int((clothes.labels["test"] == k).nonzero()[1, 0]) for k in range(10)]]
    model, c, generator = indm.INDM.load(out), blurred(x), torch.Generator().manual_seed(0)
    samples = torch.cat(
        [model.scaling.to_data(indm.sample(model, 10, c=c, generator=generator)) for _ in range(3)]
    )
    print(
        "RMS of the means of samples less c:",
        (blurred(samples) - c.repeat(3, 1, 1, 1)).square().mean().sqrt(),
    )
    panel = Panel(
        torch.cat([(255 * c).round().byte(), samples, x]), 10, rows=["c", *["sample"] * 3, "x"]
    )
    save_pixels(sheet([panel], 256), out / "super-resolution.png")


if __name__ == "__main__":
    tyro.cli(main)
