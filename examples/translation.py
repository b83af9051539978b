"""Translate without pairs: two models, one of the digit 3 and one of the digit 8, joined at the end
of time.

python examples/translation.py             # two minutes on two cores
"""

from pathlib import Path

import tyro

import indm
from indm.workbench.data import load_data, stack
from indm.workbench.figures.sheets import save_grid
from indm.workbench.training.pairs import train_pair


def main(steps: int = 500, out: Path = Path("runs/example-translation")) -> None:
    """steps: of the optimizer, for each of the two models; out: the folder of the pair."""
    recipe = indm.recipe("digits-3-8", {"train.steps": steps})
    train_pair(recipe, out)
    threes, eights = (indm.INDM.load(out / side) for side in "ab")

    raw = stack(load_data(**recipe["data"]).test, 16)
    x = threes.scaling.centre(raw)
    there = indm.translate(threes, eights, x, steps=50)
    back = indm.translate(eights, threes, there, steps=50)
    save_grid(raw, 17, out / "threes.png")
    save_grid(eights.scaling.to_data(there), 17, out / "as-eights.png")
    print("largest error of the cycle, grey levels:", float(8.5 * (back - x).abs().max()))
    print(f"pictures in {out}")


if __name__ == "__main__":
    tyro.cli(main)
