"""The memory of a training step on a GPU, by recipe: computed on any machine, and measured on this one.

    python bench/memory.py                       # the table of docs/gpu.md: nothing of that size is made
    python bench/memory.py --measure             # also the peak of real steps, where they fit

Weights are counted five times: themselves, their gradients, Adam's two averages, the moving average. Activations are
what the forward pass keeps for the backward pass, with the casts of autocast on a GPU (:mod:`indm.training.memory`).
"""

import argparse
import gc
from collections.abc import Mapping

import torch
from timing import peak_mib, reset_peak

from indm.config import parts, recipes
from indm.config.checks import arguments_of
from indm.config.recipes import Recipe
from indm.data.base import Data, as_data
from indm.data.registry import event_shape
from indm.runs.devices import device
from indm.training.devices import make_accelerator
from indm.training.memory import COPIES, TooLarge, weights_and_kept
from indm.training.trainer import Trainer

RECIPES = (
    "eight-gaussians", "digits", "fashion-mnist-16", "fashion-mnist", "emoji-32", "emoji-64", "cifar10-vp-nll",
    "celeba64-vp-nll",
)  # fmt: skip
MIB = 2**20


def shape_of(recipe: Recipe) -> tuple[int, ...]:
    """The shape of a recipe's events, without its files."""
    data = dict(recipe["data"])
    nowhere = {"path": ""} if "path" in arguments_of(parts.find("data", data["name"])) else {}
    return event_shape(**nowhere | data)  # type: ignore[return-value]


def noise(recipe: Recipe) -> Data:
    """Data in the place of a recipe's: two batches of noise."""
    shape, n = shape_of(recipe), 3 * recipe["train"]["batch_size"]
    return as_data(torch.randn(n, *shape) if len(shape) == 1 else torch.randint(0, 256, (n, *shape), dtype=torch.uint8))


def measured(recipe: Recipe) -> float | None:
    """MiB that a trainer and a cycle of its steps add at their peak; None where there are not as many."""
    gc.collect()
    reset_peak()
    before = peak_mib()
    try:
        trainer = Trainer(recipe, noise(recipe), make_accelerator(recipes.options_of(recipe, "train")))
        batches = trainer.batches()
        for _ in range(1 + trainer.options.flow_update_every):
            float(trainer.train_step(batches)["skipped"])  # waits for the device
        return peak_mib() - before
    except (TooLarge, torch.OutOfMemoryError, MemoryError):
        return None


def row(name: str, measure: bool, changes: Mapping[str, object] | None = None) -> dict:
    """Parameters, and MiB of weights, of activations in float32 and in bfloat16, and of a whole step in bfloat16."""
    recipe = recipes.recipe(name, changes or {})
    shape, batch = shape_of(recipe), recipe["train"]["batch_size"] // recipe["train"]["accumulate"]
    weights, float32 = weights_and_kept(recipe, shape, batch)
    _, bfloat16 = weights_and_kept(recipe, shape, batch, "cuda")
    return {
        "recipe": name,
        "event": "×".join(map(str, shape)),
        "batch": batch,
        "parameters": weights // COPIES // 4,
        "weights_mib": weights / MIB,
        "float32_mib": float32 / MIB,
        "bfloat16_mib": bfloat16 / MIB,
        "step_mib": (weights + bfloat16) / MIB,
        "measured_mib": measured(recipe) if measure else None,
    }


def markdown(rows: list[dict]) -> str:
    lines = [
        "| recipe | event | batch | parameters | weights × 5 | activations, fp32 | in bf16 | step, bf16 | measured |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        sizes = [r[f"{key}_mib"] for key in ("weights", "float32", "bfloat16", "step", "measured")]
        cells = ["" if size is None else f"{size:,.0f} MiB" for size in sizes]
        lines.append(f"| {r['recipe']} | {r['event']} | {r['batch']} | {r['parameters']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--measure", action="store_true", help=f"also on this machine's {device()}")
    o = parser.parse_args()
    print(markdown([row(name, o.measure) for name in o.recipes]))


if __name__ == "__main__":
    main()
