"""A model of another library as a proposal: a mixture of scikit-learn, audited, then weighted to
two rings.

python examples/proposal.py               # half a minute on a laptop
"""

from pathlib import Path

import numpy as np
import tyro
from sklearn.mixture import GaussianMixture

import indm

CENTRES = np.array([[-4.0, 0.0], [4.0, 0.0]])
RADII = (np.arange(40_000) + 0.5) / 10_000
MASS = 2 * np.pi * RADII * np.exp(-8 * np.square(RADII - 2)) / 10_000  # of a ring, at each radius


def log_target(x):
    """log Σ exp(−8 (r − 2)²) of rows (n, 2), r their distances from two centres."""
    r = np.linalg.norm(x[:, None] - CENTRES, axis=2)
    return np.logaddexp(*(-8 * np.square(r - 2)).T)


def draws(n, rng):
    """n draws of the rings, exact up to the grid of radii."""
    radius, angle = rng.choice(RADII, n, p=MASS / MASS.sum()), rng.uniform(0, 2 * np.pi, n)
    return CENTRES[rng.integers(2, size=n)] + radius[:, None] * np.stack(
        [np.cos(angle), np.sin(angle)], 1
    )


def main(steps: int = 100, out: Path = Path("runs/example-proposal")) -> None:
    """steps: of the mixtures' EM algorithm; out: the folder for their weights."""
    # a number would draw the same rows each time
    rng, state = np.random.default_rng(0), np.random.RandomState(0)
    data, fresh = draws(5000, rng), draws(1000, rng)
    for name, rows in {"two rings": data, "right ring": data[data[:, 0] > 0]}.items():
        mixture = GaussianMixture(24, max_iter=steps, reg_covar=1e-2, random_state=state).fit(rows)

        def sample(n, q=mixture):
            # scikit-learn's are in the order of the components
            return rng.permutation(q.sample(n)[0])

        given = {"draws": sample(10_000), "log_q": mixture.score_samples, "progress": False}
        print(f"fitted to {name}; audit: {indm.audit(mixture.score_samples, sample).verdict}")
        print(found := indm.reweight(log_target, **given))
        print("mean of x₁", found.mean(lambda x: x[:, 0]))
        found = indm.reweight(log_target, target_draws=fresh, **given)
        print(f"with draws of the target: {found.verdict}\n")
        found.save(out / f"{name}.npz")
    print(f"by quadrature: log Z {np.log(2 * MASS.sum()):.4f}, mean of x₁ 0")


if __name__ == "__main__":
    tyro.cli(main)
