"""The mode of a posterior: an ascent in latents from its best draw."""

import warnings
from typing import Any

import numpy as np
from scipy.optimize import minimize

from indm.checks import require
from indm.tables.columns import Array
from indm.tables.solve import bar_of

MODE_DRAWS, MODE_ODE_STEPS = 200, 24  # draws of which the best begins the ascent
# most steps of the ascent; gain of a step, relative above 1 nat, that ends it
MODE_STEPS, MODE_GAIN = 20, 1e-4
# nudge of the ascent, in deviations of draws; least deviation of latents
MODE_NUDGE, LEAST_SPREAD = 0.05, 1e-6
FARTHEST = 10.0  # size of a latent in the ascent, at most


def mode(posterior: Any, x: Any, random_state: Any) -> tuple[Array, float]:
    """See :meth:`indm.PosteriorEstimator.mode`."""
    posterior._check_box()
    rows, _ = posterior._observed(x)
    require(len(rows) == 1, "x", len(rows), "one observation")
    c = posterior._familiar(rows)
    posterior._check_continuous()
    density = posterior._density
    (draws,) = posterior._sample(MODE_DRAWS, c, random_state)  # of one x
    start = draws[density.score_samples(draws, c).argmax()]
    both = np.stack([start, _ascended(posterior, start, draws, c)])
    values = density.score_samples(both, c)
    return both[values.argmax()], float(values.max())


def _ascended(posterior: Any, start: Array, draws: Array, c: Array) -> Array:
    """θ (d,) of a local maximum, from ``start``; ``draws`` (n, d) have the scale of its steps."""
    density = posterior._density
    columns, varies = density.columns_, density.varies_
    at_c = density.standardised(c, 1)

    def latents(theta: Array) -> Array:
        return columns.latents(theta[:, varies], np.repeat(at_c, len(theta), axis=0))

    origin = latents(start[None])[0]
    spread = latents(draws).std(0).clip(LEAST_SPREAD)
    d = len(spread)
    nudges = MODE_NUDGE * np.concatenate([np.zeros((1, d)), np.eye(d), -np.eye(d)])

    def theta_of(u: Array) -> Array:
        theta = np.tile(start, (len(u), 1))
        theta[:, varies] = columns.rows(origin + spread * u, np.repeat(at_c, len(u), axis=0))
        return posterior.prior_.within(theta)

    def loss(u: Array) -> tuple[float, Array]:
        values = density.log_prob_in_steps(theta_of(u + nudges), c, MODE_ODE_STEPS)
        value, above, below = np.split(values, [1, 1 + d])
        return -value[0], (below - above) / (2 * MODE_NUDGE)

    low = (-FARTHEST - origin) / spread
    high = (FARTHEST - origin) / spread
    shown = posterior.estimator_.progress
    with warnings.catch_warnings(), bar_of(MODE_STEPS, "ascent to the mode", shown, "step") as bar:
        # few steps: the end is compared with the start
        warnings.simplefilter("ignore", RuntimeWarning)
        found = minimize(
            loss,
            np.zeros(d),
            method="L-BFGS-B",
            jac=True,
            bounds=[*zip(low.tolist(), high.tolist(), strict=True)],
            callback=lambda _: bar.update(),
            options={"maxiter": MODE_STEPS, "ftol": MODE_GAIN},
        )
    return theta_of(found.x[None])[0]
