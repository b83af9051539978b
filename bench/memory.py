"""The memory of a training step on this machine's device, by recipe: the estimate, and the peak of
real steps.

    python bench/memory.py

Weights are counted five times: themselves, their gradients, Adam's two averages, the moving
average. Activations are what the forward pass keeps for the backward pass.
"""

import argparse
import copy
import gc
import sys
from contextlib import suppress

import torch
from accelerate import Accelerator
from timing import peak_mib, reset_peak
from torch import Tensor, nn

from indm.conditions import given
from indm.workbench.data.base import Data, as_data
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.recipe import Recipe
from indm.workbench.training.costs import trainer_of

RECIPES = (
    "eight-gaussians", "digits", "fashion-mnist-16", "fashion-mnist", "folder", "cifar10-vp-nll",
    "celeba64-vp-nll",
)  # fmt: skip
IMAGES = {
    "digits": (1, 8),
    "fashion-mnist": (1, 28),
    "folder": (3, 32),
    "cifar10": (3, 32),
    "celeba": (3, 64),
}
MIB = 2**20
COPIES = 5  # copies of the weights


def shape_of(recipe: Recipe) -> tuple[int, ...]:
    """The shape of a recipe's events, without its files: of images, or of points on the plane."""
    data = recipe["data"]
    if data["name"] not in IMAGES:
        return (2,)
    channels, side = IMAGES[data["name"]]
    return channels, data.get("size", side), data.get("size", side)


def noise(recipe: Recipe) -> Data:
    """Data in the place of a recipe's: two batches of noise."""
    shape, n = shape_of(recipe), 3 * recipe["train"]["batch_size"]
    return as_data(
        torch.randn(n, *shape)
        if len(shape) == 1
        else torch.randint(0, 256, (n, *shape), dtype=torch.uint8)
    )


def memory_of_step(model: nn.Module, batch: int, accelerator: Accelerator) -> tuple[int, int]:
    """The least bytes of all copies of the weights, and of what a pass of ``batch`` examples keeps
    for the way back.

    One example's bytes count ``batch`` times: what three keep more than two (a batch norm needs
    two) as they pass the dequantization, the flow (without its log-determinant) and the score
    network. Scratch memory comes on top.
    """
    weights = COPIES * sum(parameter.nbytes for parameter in model.parameters())
    with accelerator.autocast(), torch.random.fork_rng():
        two, three = (_kept(copy.deepcopy(model).train(), n) for n in (2, 3))
    return weights, two + (batch - 2) * (three - two)


def _kept(model: nn.Module, n: int) -> int:
    """The bytes of the tensors, weights apart, that ``n`` examples leave for the backward pass."""
    storages = {parameter.untyped_storage()._cdata: 0 for parameter in model.parameters()}
    held = []  # so that no other storage gets the address of one

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storages.setdefault(storage._cdata, storage.nbytes()):
            held.append(storage)
        return tensor

    device = next(model.parameters()).device
    x, t = torch.zeros(n, *model.shape, device=device), torch.ones(n, device=device)
    with suppress(Exception), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # What fails here fails in the first step, with its own message.
        flow = (
            model.flow
            if model.condition is None
            else given(model.flow, model.condition.absent(n).to(device))
        )
        if model.dequantization is not None:
            model.dequantization(x)
        model.score.backbone(flow.latent(x), t)
    return sum(storages.values())


def row(name: str) -> dict:
    """Parameters, and MiB of weights, of activations, and of what making a trainer and its steps
    add at their peak.
    """
    recipe = recipes.recipe(name)
    gc.collect()
    reset_peak()
    before = peak_mib()
    trainer = trainer_of(recipe, data=noise(recipe))
    own = trainer.parts.batches
    weights, kept = memory_of_step(trainer.model, own.size_of_a_pass, trainer.accelerator)
    batches = trainer.batches()
    for _ in range(1 + trainer.schedule.flow_update_every):
        float(trainer.train_step(batches)["skipped"])  # waits for the device
    return {
        "recipe": name,
        "event": "×".join(map(str, own.data.shape)),
        "batch": own.size_of_a_pass,
        "parameters": weights // COPIES // 4,
        "weights_mib": weights / MIB,
        "activations_mib": kept / MIB,
        "peak_mib": peak_mib() - before,
    }


def markdown(rows: list[dict]) -> str:
    lines = [
        "| recipe | event | batch | parameters | weights × 5 | activations | measured peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        sizes = [r[f"{key}_mib"] for key in ("weights", "activations", "peak")]
        cells = [f"{size:,.0f} MiB" for size in sizes]
        lines.append(
            f"| {r['recipe']} | {r['event']} | {r['batch']} | {r['parameters']:,} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    o = parser.parse_args()
    rows = []
    for name in o.recipes:
        try:
            rows.append(row(name))
        except (torch.OutOfMemoryError, MemoryError) as error:
            print(f"{name}: {error}", file=sys.stderr)
    print(markdown(rows))


if __name__ == "__main__":
    main()
