"""Train a diffusion behind a spline and a linear diffusion on digits, and compare them on the same
test images.

python examples/images.py                  # four minutes on two cores
"""

from pathlib import Path

import tyro

import indm
from indm.workbench.evaluation.compare import compare
from indm.workbench.evaluation.results import evaluate_run
from indm.workbench.recipes.options import Drawing
from indm.workbench.runs.samples import draw

# the recipe's flow is one spline of grey levels
VARIANTS = {"spline": {}, "linear": {"flow": "identity"}}


def main(steps: int = 600, out: Path = Path("runs/example-images")) -> None:
    """steps: of the optimizer, for each of the two; out: a folder for both runs."""
    for name, changes in VARIANTS.items():
        budget: dict[str, object] = {"train.steps": steps, "evaluate.nll_examples": 16}
        indm.train(indm.recipe("digits", budget | changes), out / name)
        evaluate_run(out / name)
        samples, levels, _ = draw(out / name, Drawing(n=64))
        print(f"{name}: {len(samples)} samples of {levels} grey levels in {out / name}/samples.npz")
    print(compare([out / name for name in VARIANTS], out))  # and comparison.png


if __name__ == "__main__":
    tyro.cli(main)
