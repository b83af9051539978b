"""Speed of recipes on this machine, by precision: steps, samples and likelihoods a second, and the
memory of each.

    python bench/speed.py                               # in every precision
    python bench/speed.py --how float32 --recipes digits

On noise images, so that no data are needed. "compiled" is bfloat16 with the network under
torch.compile. In bfloat16, sampling and NLL are under autocast, as ``indm sample`` and
``indm evaluate`` are not: it is what they would take. The NLL is in 64 steps, the fewest that are
usual.
"""

import argparse
import json
import statistics
from collections.abc import Mapping

import torch
from memory import noise
from timing import peak_mib, reset_peak, seconds

import indm
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.devices import device
from indm.workbench.training.costs import TIMED_ROUNDS, interleaved_seconds, trainer_of

HOW = {"float32": ("no", False), "bfloat16": ("bf16", False), "compiled": ("bf16", True)}
RECIPES = ("fashion-mnist", "folder")


def speed(
    name: str,
    how: str,
    *,
    images: int = 128,
    steps: int = 64,
    changes: Mapping[str, object] | None = None,
) -> dict:
    """Steps, samples and NLLs a second, and MiB at the peak of each, of a recipe in a precision of
    :data:`HOW`.

    Args:
        images: at a time, samples and likelihoods.
        steps: of the solver of the NLL.
        changes: of the recipe.
    """
    precision, compiled = HOW[how]
    recipe = recipes.recipe(name, {"train.mixed_precision": precision, **(changes or {})})
    trainer = trainer_of(recipe, data=noise(recipe))
    model = trainer.model
    if compiled:
        model.score.backbone.compile(dynamic=False)  # sizes that vary fail in torch 2.13
    result = {"recipe": name, "how": how, "batch": recipe.train.batch_size}

    def measured(what: str, count: int, times: list[float]) -> None:
        result[f"{what}_per_second"] = count / statistics.median(times)
        result[f"{what}_mib"] = peak_mib()
        reset_peak()

    reset_peak()
    threads = torch.get_num_threads()
    measured(
        "steps",
        1,
        interleaved_seconds({how: trainer}, {how: threads}, rounds=TIMED_ROUNDS, progress=False)[
            how
        ],
    )
    raw = torch.randint(0, 256, (images, *model.shape), dtype=torch.uint8, device=device())
    with torch.autocast(torch.device(device()).type, torch.bfloat16, enabled=precision == "bf16"):
        measured("samples", images, seconds({"": lambda: indm.sample(model, images)}, 2)[""].clock)
        measured("nlls", images, seconds({"": lambda: nll(model, raw, steps)}, 2)[""].clock)
    return result


def nll(model: indm.INDM, raw: torch.Tensor, steps: int) -> indm.LikelihoodReport:
    x, log_q = model.from_data(raw)
    return indm.nll(model, x, log_q=log_q, steps=steps)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--how", nargs="+", choices=list(HOW), default=list(HOW))
    o = parser.parse_args()
    for name in o.recipes:
        for how in o.how:
            print(json.dumps(speed(name, how)), flush=True)


if __name__ == "__main__":
    main()
