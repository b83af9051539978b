"""The posterior at several observations of one θ, from posteriors at each of them."""

import warnings
from typing import Any

import numpy as np
from sklearn.covariance import OAS
from sklearn.utils import check_random_state

from indm.tables.columns import Array
from indm.tables.resampling import Proposal, resampled

START_DRAWS = 256  # draws of the posterior of one observation, for the first proposal
WEIGHT_ERROR = 0.5  # largest estimated error of log p of one observation in a weight, nats
POOR = 0.1  # effective draws, as a share of those asked for, below which there is a warning


def log_prob_iid(posterior: Any, theta: Array, c: Array, tol: float | None = None) -> Array:
    """The log density of the prior's numbers ``theta`` (n, d) at all of c (m, k), up to a constant,
    nats (n,); ``tol`` is the ODE's error, see :meth:`indm.DensityEstimator.score_samples`.
    """
    n, m = len(theta), len(c)
    pairs = np.repeat(theta, m, axis=0), np.tile(c, (n, 1))
    each = posterior._density.score_samples(*pairs, tol=tol).reshape(n, m)
    log_prior = posterior.prior_.log_prob(theta) if m > 1 else np.zeros(n)
    with np.errstate(invalid="ignore"):
        total = each.sum(1) - (m - 1) * log_prior
    return np.where(np.isfinite(each).all(1) & np.isfinite(log_prior), total, -np.inf)


def sample_iid(posterior: Any, n: int, xs: Any, random_state: Any) -> tuple[Array, float]:
    """See :meth:`indm.PosteriorEstimator.sample_iid`."""
    rows, _ = posterior._observed(xs)
    c = posterior._familiar(rows)
    rng = check_random_state(random_state)
    posterior._check_continuous()
    density = posterior._density

    def log_target(u: Array) -> Array:
        """The log density of latents; −∞ so far out that θ is rounded to an end."""
        theta = posterior._from_latents(u)
        found = log_prob_iid(posterior, theta, c, WEIGHT_ERROR)
        inside = np.isfinite(found)
        varying = theta[np.ix_(inside, density.varies_)]
        found[inside] -= density.columns_.log_volume(varying)
        return found

    draws, effective = resampled(log_target, product(posterior, c, rng), n, rng)
    if effective < POOR * n:
        worth = f"as good as {effective:.0f} independent ones"
        warnings.warn(
            f"{n} draws of a posterior of {len(c)} observations are {worth}; the observations may "
            "disagree, or be far from all simulated ones",
            stacklevel=3,
        )
    return posterior.prior_.parameters(posterior._from_latents(draws)), effective


def product(posterior: Any, c: Array, rng: np.random.RandomState) -> Proposal:
    """The product of Gaussians with the moments of each posterior, over all but one of the prior's,
    in latents.
    """
    mean, covariance = posterior._prior_moments
    root = np.linalg.cholesky(covariance)  # below, the prior is N(0, I)
    precision = (1 - len(c)) * np.eye(len(mean))
    pull = np.zeros(len(mean))
    for theta in posterior._sample(START_DRAWS, c, rng):
        u = np.linalg.solve(root, (posterior._latents(theta) - mean).T)
        inverse = np.linalg.inv(OAS().fit(u.T).covariance_)
        precision = precision + inverse
        pull = pull + inverse @ u.mean(1)
    values, vectors = np.linalg.eigh(precision)
    inverse = vectors / values.clip(1.0) @ vectors.T  # at most as wide as the prior
    centre = mean + root @ inverse @ pull
    return Proposal(np.ones(1), centre[None], (root @ inverse @ root.T)[None])
