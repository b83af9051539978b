"""Gains of the curve of a box and of the columns' MLP, on laws that no benchmark has; see boxes.md.

python -m research.posteriors boxes      # trains what has no record yet; then `make records`
"""

import itertools
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np
from scipy.special import ndtr

from indm import DensityEstimator
from indm.tables import columns, fit
from research.lab.seeds import over_seeds
from research.markdown import in_table, with_error
from research.records import Records, made_by
from research.tables import command

Array = np.ndarray
PAIRS, FRESH = 10_000, 2_000
VARIANTS = ("quantile", "curve", "curve + columns")
MIX = np.array([[1, 0.5, 0, 0], [0, 1, -0.5, 0], [0.3, 0, 1, 0.5], [0, 0.2, 0, 1]])
WIDTH = 0.45  # deviation of the noise of "walls"


def walls(n: int, numbers: np.random.Generator) -> tuple[Array, Array]:
    """Six parameters in [−1, 2], each seen with noise of :data:`WIDTH`: posteriors are Gaussians cut at the walls."""
    theta = numbers.uniform(-1, 2, (n, 6))
    return theta, theta + WIDTH * numbers.normal(size=theta.shape)


def two_widths(n: int, numbers: np.random.Generator) -> tuple[Array, Array]:
    """Three parameters in [−5, 5], seen with noise that is wide or narrow."""
    theta, wide = numbers.uniform(-5, 5, (n, 3)), numbers.uniform(size=(n, 1)) < 0.6
    return theta, theta + np.where(wide, 0.9, 0.15) * numbers.normal(size=theta.shape)


def mixed(n: int, numbers: np.random.Generator) -> tuple[Array, Array]:
    """Four parameters in [0, 1], seen as sums with noise: correlated posteriors, cut at the walls."""
    theta = numbers.uniform(0, 1, (n, 4))
    return theta, theta @ MIX.T + 0.2 * numbers.normal(size=theta.shape)


def arcs(n: int, numbers: np.random.Generator) -> tuple[Array, Array]:
    """Two parameters in [−2, 2], whose posteriors are two thin arcs."""
    theta, angle = numbers.uniform(-2, 2, (n, 2)), numbers.uniform(-0.5, 0.5, n) * np.pi
    radius = 0.25 + 0.02 * numbers.normal(size=n)
    centre = np.stack([-np.abs(theta.sum(1)) / 1.5, theta[:, 0] ** 2 - theta[:, 1]], 1)
    return theta, centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def shapes(n: int, numbers: np.random.Generator) -> tuple[Array, Array]:
    """Four parameters in [−2, 2], of a Gaussian of which five points are seen: posteriors with several peaks."""
    theta, noise = numbers.uniform(-2, 2, (n, 4)), numbers.normal(size=(n, 5, 2))
    x = theta[:, :1] + (np.abs(theta[:, 2:3]) + 0.1) * noise[..., 0]
    y = theta[:, 1:2] + (theta[:, 3:] ** 2 + 0.1) * (0.6 * noise[..., 0] + 0.8 * noise[..., 1])
    return theta, np.stack([x, y], 2).reshape(n, -1)


LAWS: dict[str, tuple[Callable[..., tuple[Array, Array]], float, float]] = {
    "walls": (walls, -1, 2),
    "two widths": (two_widths, -5, 5),
    "mixed": (mixed, 0, 1),
    "arcs": (arcs, -2, 2),
    "shapes": (shapes, -2, 2),
}


def exact_of_walls(theta: Array, x: Array) -> Array:
    """log p(θ|x) of "walls", nats (n,)."""
    inside = ndtr((2 - x) / WIDTH) - ndtr((-1 - x) / WIDTH)
    return (-0.5 * ((theta - x) / WIDTH) ** 2 - 0.5 * math.log(2 * math.pi) - np.log(WIDTH * inside)).sum(1)


def trained(law: str, variant: str, seed: int, seconds: float) -> dict[str, Any]:
    """The record of one fit: mean log p of fresh pairs, and how far it is below the exact one of "walls"."""
    make, low, high = LAWS[law]
    numbers = np.random.default_rng([100, seed])
    theta, x = make(PAIRS, numbers)
    fresh = make(FRESH, numbers)
    with ExitStack() as stack:
        stack.enter_context(command.cpu_clock())
        if variant == "quantile":
            stack.enter_context(mock.patch.object(columns, "EDGES", ()))
        if variant != "curve + columns":
            stack.enter_context(mock.patch.object(fit.Training, "start_columns", lambda training: False))
        bounds = dict.fromkeys(range(theta.shape[1]), (low, high))
        fitted = DensityEstimator(bounds=bounds, max_seconds=seconds, random_state=seed).fit(theta, c=x)
        log_p = fitted.score_samples(fresh[0], fresh[1])
    gap = {"gap": round(float((exact_of_walls(*fresh) - log_p).mean()), 4)} if law == "walls" else {}
    return {
        "log_p": round(float(log_p.mean()), 4), **gap, "gain": [round(part, 4) for part in fitted.gains_[0]],
        "steps": fitted.ended_[0][0], "ended_by": fitted.ended_by_, "seconds": seconds,
    } | made_by(seed)  # fmt: skip


def markdown(table: Records) -> str:
    """Mean log p of fresh pairs over seeds, by law and variant."""
    rows = []
    for law in LAWS:
        found = [[row["log_p"] for row in table.at(law=law, variant=variant).rows()] for variant in VARIANTS]
        rows.append(
            (law, *(with_error(*over_seeds(values), ".3f") if values else "–" for values in found), len(found[0]))
        )
    return in_table("law", *VARIANTS, "seeds", rows=rows)


def main(arguments: list[str]) -> None:
    parser = command.parser("posteriors boxes", __doc__, 60.0, seeds=(0, 1))
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=list(LAWS))
    o = command.parsed(parser, arguments)
    made = Records(o.records / "posteriors-boxes.csv")
    for seed, law, variant in itertools.product(o.seeds, o.laws, VARIANTS):
        table = made.at(law=law, variant=variant, seed=seed)
        if not table.rows():
            print(table.kept(lambda c=(law, variant, seed): trained(*c, o.seconds)), flush=True)
    print(markdown(made))
