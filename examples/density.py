"""Train INDM on a density of the plane, and report its likelihood beside the entropy of the data.

python examples/density.py                 # two minutes on a laptop
"""

from pathlib import Path

import torch
import tyro

import indm
from indm.workbench.data import load_data, stack


def main(steps: int = 2000, out: Path = Path("runs/example-density")) -> None:
    """steps: of the optimizer; out: the run folder."""
    recipe = indm.recipe("eight-gaussians", {"train.steps": steps})
    indm.train(recipe, out)
    model = indm.INDM.load(out)

    data = load_data(**recipe["data"])
    found = indm.evaluate(model, stack(data.test, 2000), [indm.Bound(), indm.NLL(examples=200)])
    print(f"entropy of the data  {data.entropy:.3f} nats")
    for what, kind in (("NELBO of the model", "nelbo"), ("NLL of its ODE, 200 examples", "nll")):
        mean, error = found.mean(kind, "nats")
        print(f"{what}: {mean:.3f} ± {error:.3f} nats")

    x = indm.sample(model, 1000, steps=25, generator=torch.Generator().manual_seed(0))
    print("mean distance of samples from 0:", model.scaling.to_data(x).norm(dim=1).mean().item())


if __name__ == "__main__":
    tyro.cli(main)
