"""The posterior of an epidemic's rates given its curve: an embedding compared with four summaries
made by hand.

python examples/epidemic.py               # three minutes on a laptop
"""

from pathlib import Path

import numpy as np
import tyro
from torch import nn

import indm

LOW, HIGH = [0.2, 0.05], [1.0, 0.4]  # ends of θ: rates of infection and of recovery, a day
# FIRST: infected at the start; SHARE: of the cases, that are reported
PEOPLE, DAYS, FIRST, SHARE = 2000, 40, 5, 0.5


def simulate(theta, rng):
    """Reported cases of each day (n, 40) in a chain-binomial SIR epidemic."""
    infection, recovery = theta.T
    susceptible, infected = np.full(len(theta), PEOPLE - FIRST), np.full(len(theta), FIRST)
    cases = np.zeros((len(theta), DAYS))
    for day in range(DAYS):
        new = rng.binomial(susceptible, 1 - np.exp(-infection * infected / PEOPLE))
        susceptible, infected = (
            susceptible - new,
            infected + new - rng.binomial(infected, 1 - np.exp(-recovery)),
        )
        cases[:, day] = rng.binomial(new, SHARE)
    return cases


def by_hand(cases):
    """Peak, its day, total, and growth from the first week to the second."""
    weeks = cases[:, :14].reshape(-1, 2, 7).sum(2)
    growth = np.log1p(weeks[:, 1]) - np.log1p(weeks[:, 0])
    return np.c_[np.log1p(cases.max(1)), cases.argmax(1), np.log1p(cases.sum(1)), growth]


def series_embedding(width=32):
    """A module (n, 1, 40) → (n, 8): convolutions of stride 2 until 5 days are left, then an MLP."""
    layers = []
    for channels in (1, width, width):
        layers += [nn.Conv1d(channels, width, 5, stride=2, padding=2), nn.SiLU()]
    head = nn.Linear(5 * width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 8)
    return nn.Sequential(*layers, nn.Flatten(), *head)


def logarithms(cases):
    """log(1 + cases) as one channel, (n, 1, 40)."""
    return np.log1p(cases)[:, None]


def main(steps: int = 4000, out: Path = Path("runs/example-epidemic")) -> None:
    """steps: of the optimizer, at most, for each part of a fit; out: the folder for series.png and
    by-hand.png.
    """
    rng = np.random.default_rng(0)
    theta, fresh = (rng.uniform(LOW, HIGH, (n, 2)) for n in (20_000, 500))
    cases, new = simulate(theta, rng), simulate(fresh, rng)
    out.mkdir(parents=True, exist_ok=True)
    for name, embedding, numbers_of in (
        ("series", series_embedding(), logarithms),
        ("by-hand", None, by_hand),
    ):
        posterior = indm.PosteriorEstimator(
            (LOW, HIGH), embedding, max_seconds=160, max_steps=steps, random_state=0
        )
        posterior.fit(theta, numbers_of(cases))
        found = posterior.calibration(fresh, numbers_of(new), 100)
        print(
            f"{name}: mean log p of fresh pairs {posterior.score(fresh, numbers_of(new)):.3f} nats\n{found}"
        )
        found.plot(out / f"{name}.png", ["infection", "recovery"])


if __name__ == "__main__":
    tyro.cli(main)
