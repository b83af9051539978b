"""Whether the mean NLL from few fine solves is as near to the mean of all as it states, and what it
costs.

    python bench/multilevel.py digits-pretrained runs/table …       # solves and keeps the values;
    writes the table python bench/multilevel.py

All levels are solved once for ``--examples`` test examples of a run and kept in
``bench/records/multilevel.npz``. From these values 200 random choices of subsets are drawn.
Reported: in how many of them the intervals of 90 and 99 % hold the mean of the finest values, the
largest error, and evaluations an example, all levels and the pilot counted; also the evaluations of
1,000 examples drawn from the kept ones, whose mean may get an error of 0.001.
"""

import argparse
import csv
import math
from pathlib import Path

import numpy as np
import torch

from indm.evaluation.mean_nll import (
    DOUBLINGS,
    ERROR_SHARE,
    Corrected,
    RepeatableDraws,
    corrected,
    first_steps,
)
from indm.likelihood import latent_reference
from indm.workbench.data.base import stack
from indm.workbench.runs.folder import data_of, open_model, recipe_of, run_folder

VALUES = Path(__file__).parent / "records" / "multilevel.npz"
CHOICES = 200
# examples, drawn from the kept ones, and the error that may be added to their mean, bits/dim
MANY, SMALL = 1_000, 1e-3


def draws_of(name: str, examples: int) -> RepeatableDraws:
    """One draw of each of the first test examples of a run."""
    run = run_folder(Path(name))
    model, recipe = open_model(run), recipe_of(run)
    raw = stack(data_of(run, model, recipe["data"]).test, examples)
    return RepeatableDraws(
        model, raw, None, latent_reference(model, raw), 64, 1, range(10_000), {"eps": model.sde.eps}
    )


def solved(name: str, examples: int) -> dict[str, np.ndarray]:
    """Values at every level, their stated errors and costs."""
    draws = draws_of(name, examples)
    raw, first = draws.raw, first_steps(draws.model.score)
    steps = [*(first * 2**k for k in range(DOUBLINGS + 1)), None]
    values, stated, costs = [], [], []
    for n in steps:
        parts = [draws.solve(part, [n]) for part in torch.arange(len(raw)).split(64)]
        values.append(torch.cat([nats[0] for nats, _, _ in parts]))
        stated.append(torch.cat([error for _, error, _ in parts]))
        costs.append(sum(spent for _, _, spent in parts) / len(raw))
    unit = math.log(2) * math.prod(raw.shape[1:])
    return {"values": torch.stack(values).numpy() / unit, "stated": torch.stack(stated).numpy() / unit,
            "costs": np.array(costs), "first": np.array(first)}  # fmt: skip


def chosen(
    kept: dict[str, np.ndarray], examples: torch.Tensor, mean_error: float, seed: int
) -> tuple[Corrected, float]:
    """The correction of the coarse mean of ``examples`` of the kept ones, and evaluations of each,
    all told.
    """
    values, stated, costs = (torch.from_numpy(kept[key]) for key in ("values", "stated", "costs"))
    values, stated, first = values[:, examples], stated[:, examples], int(kept["first"])
    level = {
        steps: i for i, steps in enumerate([*(first * 2**k for k in range(DOUBLINGS + 1)), None])
    }

    def looked_up(estimates, steps):
        spent = sum(int(costs[level[s]] * len(estimates)) for s in steps)
        return (
            values[[level[s] for s in steps]][:, estimates],
            stated[level[steps[-1]]][estimates],
            spent,
        )

    found = corrected(values[0], stated[0], first, costs[0].item(), mean_error, seed, looked_up)
    return found, costs[0].item() + found.evaluations / len(examples)


def row(name: str, kept: dict[str, np.ndarray]) -> dict[str, object]:
    """Coverage, largest error (bits/dim) and cost over random choices of the subsets."""
    values = torch.from_numpy(kept["values"])
    n = values.shape[1]
    error, shift = (values[-1].std() / math.sqrt(n)).item(), (values[-1] - values[0]).mean().item()
    errors, spent, inside = [], [], {0.9: 0, 0.99: 0}
    for seed in range(CHOICES):
        found, evaluations = chosen(kept, torch.arange(n), ERROR_SHARE * error, seed)
        errors.append(found.correction.value - shift)
        spent.append(evaluations)
        for share in inside:
            low, high = found.correction.interval(share)
            inside[share] += low <= shift <= high
    many = torch.randint(n, (MANY,), generator=torch.Generator().manual_seed(0))
    return {
        "model": name,
        "examples": n,
        "standard_error": f"{error:.4f}",
        "in_90": inside[0.9],
        "in_99": inside[0.99],
        "largest_error": f"{max(errors, key=abs):+.5f}",
        "evaluations": f"{np.mean(spent):.0f}",
        "each": f"{kept['costs'][-1]:.0f}",
        "evaluations_of_many": f"{np.mean([chosen(kept, many, SMALL, seed)[1] for seed in range(20)]):.0f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", help="run folders, or models that come with the package")
    parser.add_argument("--examples", type=int, default=256)
    options = parser.parse_args()
    kept = dict(np.load(VALUES)) if VALUES.exists() else {}
    for name in options.runs:
        kept |= {
            f"{Path(name).name}/{key}": value
            for key, value in solved(name, options.examples).items()
        }
        np.savez_compressed(VALUES, **kept)
    names = dict.fromkeys(key.split("/")[0] for key in kept)
    rows = [
        row(name, {k.split("/")[1]: v for k, v in kept.items() if k.startswith(f"{name}/")})
        for name in names
    ]
    with VALUES.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for line in rows:
        print(*line.values(), sep=", ")


if __name__ == "__main__":
    main()
