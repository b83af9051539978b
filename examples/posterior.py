"""From a simulator to a posterior and a test of its calibration: the pitch and damping of a noisy
tone.

python examples/posterior.py               # two minutes on a laptop
"""

from pathlib import Path

import numpy as np
import tyro
from torch import nn

import indm

LOW, HIGH = [1.0, 0.0], [4.0, 3.0]  # ends of θ: periods in a unit of time, and damping


def simulate(theta, rng):
    """A tone of 64 samples for each row of θ, with a random phase and noise."""
    pitch, damping, phase = (
        part[:, None] for part in (*theta.T, rng.uniform(0, 2 * np.pi, len(theta)))
    )
    time, noise = np.linspace(0, 1, 64), 0.2 * rng.normal(size=(len(theta), 64))
    return np.exp(-damping * time) * np.sin(2 * np.pi * pitch * time + phase) + noise


def main(steps: int = 3000, out: Path = Path("runs/example-posterior")) -> None:
    """steps: of the optimizer, at most, for embedding and estimator each; out: the folder for
    calibration.png.
    """
    rng = np.random.default_rng(0)
    theta, fresh, true = (rng.uniform(LOW, HIGH, (n, 2)) for n in (20_000, 300, 1))
    embedding = nn.Sequential(
        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 6)
    )
    posterior = indm.PosteriorEstimator(
        (LOW, HIGH), embedding, max_seconds=120, max_steps=steps, random_state=0
    )
    posterior.fit(theta, simulate(theta, rng))

    draws = posterior.sample(1000, simulate(true, rng)[0], random_state=0)
    print(
        "pitch and damping",
        true[0].round(2),
        "posterior",
        draws.mean(0).round(2),
        "±",
        draws.std(0).round(2),
    )
    print(found := posterior.calibration(fresh, simulate(fresh, rng), 100))
    out.mkdir(parents=True, exist_ok=True)
    found.plot(out / "calibration.png", ["pitch", "damping"])


if __name__ == "__main__":
    tyro.cli(main)
