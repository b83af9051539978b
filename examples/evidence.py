"""The evidence of a measurement, with its error: a learned posterior as the proposal, and a
likelihood that is known.

python examples/evidence.py               # a minute on a laptop
"""

from pathlib import Path

import numpy as np
import tyro

import indm

LOW, HIGH = np.array([0.1, 0.5]), np.array([3.0, 2.0])  # ends of θ: rate and height of a decay
TIMES, NOISE = np.linspace(0.0, 2.0, 12), 0.1
TRUTH = np.array([[1.2, 1.3]])  # of the measurement, which a real one would not tell


def simulate(theta, rng):
    """Measurements (n, 12) at rows θ."""
    curves = theta[:, 1:] * np.exp(-theta[:, :1] * TIMES)
    return curves + NOISE * rng.normal(size=curves.shape)


def log_joint(theta, x):
    """log p(x|θ) + log p(θ) of rows θ, nats; −∞ outside of the prior's box."""
    curves = theta[:, 1:] * np.exp(-theta[:, :1] * TIMES)
    log_p = -0.5 * np.square((x - curves) / NOISE).sum(1) - len(TIMES) * np.log(
        NOISE * np.sqrt(2 * np.pi)
    )
    inside = ((theta >= LOW) & (theta <= HIGH)).all(1)
    return np.where(inside, log_p - np.log(HIGH - LOW).sum(), -np.inf)


def main(steps: int = 3000, out: Path = Path("runs/example-evidence")) -> None:
    """steps: of the optimizer, at most; out: the folder for weights.npz."""
    rng = np.random.default_rng(0)
    theta = rng.uniform(LOW, HIGH, (10_000, 2))
    posterior = indm.PosteriorEstimator(
        (LOW, HIGH), max_seconds=600, max_steps=steps, random_state=0
    ).fit(theta, simulate(theta, rng))

    seen = simulate(TRUTH, rng)[0]
    draws = posterior.sample(4000, seen, random_state=0)
    log_q = posterior.log_prob(draws, seen)
    found = indm.reweight(
        lambda rows: log_joint(rows, seen), draws=draws, log_q=log_q, solver_error=0.05
    )
    print(found)
    print("mean rate ", found.mean(draws[:, 0]))
    found.save(out / "weights.npz")

    middles = [
        low + (high - low) * (np.arange(400) + 0.5) / 400
        for low, high in zip(LOW, HIGH, strict=True)
    ]
    grid = np.stack(np.meshgrid(*middles), -1).reshape(-1, 2)
    p = np.exp(log_joint(grid, seen))
    print(
        f"by a grid   log Z {np.log(p.mean() * np.prod(HIGH - LOW)):.4f}, mean rate {p @ grid[:, 0] / p.sum():.4f}"
    )


if __name__ == "__main__":
    tyro.cli(main)
