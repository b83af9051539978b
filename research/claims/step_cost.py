"""What a training step of INDM costs over that of its linear twin, both of the recipe, taking turns in one process.

python -m research.claims.step_cost digits fashion-mnist-16
"""

import math
import sys

import torch

import indm
from research.claims.costs import ROUNDS, log_cost_of, seconds_per_step
from research.claims.plan import Plan


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    for data in names:
        with indm.trust(__package__):
            measured = seconds_per_step(Plan(data=(data,)), data, rounds=ROUNDS)
        log_cost, error = log_cost_of(measured)
        own, linear = (1e3 * min(measured[variant]) for variant in ("indm", "linear"))
        print(
            f"{data}: {math.exp(log_cost):.3f} ± {math.exp(log_cost) * error:.3f} ({own:.0f} ms over {linear:.0f} ms)"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
