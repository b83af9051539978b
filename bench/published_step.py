"""Seconds and peak memory of a training step of a published recipe, on generated images of its
size.

    python bench/published_step.py cifar10-vp-nll --batch 4

Two steps, of which the second is timed: both parts, flow and score, by the recipe's objective, and
the optimizer.
"""

import argparse
import time

import torch

from indm import build_model
from indm.model import count_parameters
from indm.objective import mle_loss
from indm.scaling import Scaling
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.devices import peak_memory_mib


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    recipe = recipes.resolve(recipes.load(options.recipe))
    shape = (3, 32, 32) if recipe["data"]["name"] == "cifar10" else (3, 64, 64)
    scaling = Scaling.images(256, recipe["data"].get("centered", True))
    model = build_model(recipes.model_tables(recipe), shape, scaling).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    raw = torch.randint(0, 256, (options.batch, *shape), dtype=torch.uint8)
    for _ in range(2):
        started = time.perf_counter()
        loss, _ = mle_loss(model, scaling.to_model(raw))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - started
    parameters = {
        name: count_parameters(part)
        for name, part in (("score", model.score), ("flow", model.flow))
    }
    print(
        f"{options.recipe}, batch {options.batch}: {seconds:.1f} s a step, {peak_memory_mib():.0f} MiB peak"
    )
    print(", ".join(f"{count:,} parameters of the {name}" for name, count in parameters.items()))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
