"""Posteriors p(θ|x) of a simulator, from pairs of parameters θ and observations x."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_t
from sklearn.base import BaseEstimator, clone
from sklearn.covariance import OAS
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import nn

from indm.checks import require
from indm.ode import FEWEST_STEPS
from indm.tables import summaries
from indm.tables.calibration import Calibration
from indm.tables.columns import Array, are_near, moments_of_most, to_line
from indm.tables.estimator import DensityEstimator
from indm.tables.fit import check_count
from indm.tables.joint import JointConditional, JointDensityEstimator
from indm.tables.mixture import Mixture
from indm.tables.prior import Prior, array, finite
from indm.tables.solve import ROWS_AT_ONCE, averaged, bar_of

NUDGE = 1e-3  # step in a latent for derivatives of the columns
MODE_DRAWS, MODE_ODE_STEPS = 200, 24  # draws of which the best begins the ascent
# most steps of the ascent; gain of a step, relative above 1 nat, that ends it
MODE_STEPS, MODE_GAIN = 20, 1e-4
# nudge of the ascent, in deviations of draws; least deviation of latents
MODE_NUDGE, LEAST_SPREAD = 0.05, 1e-6
FARTHEST = 10.0  # size of a latent in the ascent, at most
START_DRAWS = 256  # draws of the posterior of one observation, for the first proposal
# rounds, and Gaussians of a proposal, at most; effective draws of each Gaussian
ROUNDS, MODES, ROWS_OF_MODE = 5, 4, 25
# candidates of a round, at least: of very few draws a first proposal would decide their law
FEWEST_CANDIDATES = 100
TAILS = 5.0  # degrees of freedom of proposals
VARIANCE_FLOOR = 1e-2  # variance that is added to a mixture
# and to the draws that it is fitted to, relative: scipy calls a covariance singular below 2e-10
LEAST_VARIANCE = 1e-6
POOR = 0.1  # effective draws, as a share of those asked for, below which there is a warning


class PosteriorEstimator(BaseEstimator):
    r"""The posterior p(θ|x) of a simulator, for every x, from pairs (θ, x): θ from the prior, x
    simulated at θ.

    It is a :class:`~indm.DensityEstimator` of θ at the condition x, with the prior, the mode,
    gradients, several observations of one θ, calibration, and a warning at an x unlike the
    simulated ones.

    Args:
        prior: of θ. A pair (low, high) of numbers or of arrays (d,) is the uniform law in that box
            (ends may be infinite). Of a ``torch.distributions.Distribution`` it is the support;
            where that is not a box, as for a Dirichlet law, torch's map from all vectors to it is
            used. Its density matters for several observations alone. None: all of the line.
        embedding: a module (n, *event) → (n, …) that turns standardised observations of any shape
            into numbers. A copy is trained with a first posterior; the estimator is then fitted to
            its output. Each of the two has half of ``max_seconds``, and ``n_models`` is 1.
        estimator: a :class:`~indm.DensityEstimator`, for which you may give its options; or a
            :class:`~indm.JointDensityEstimator`: one model of (θ, x), for x in which entries are
            missing (NaN), at random, in simulations or at the observation, and for p(x|θ), by
            :meth:`log_likelihood`. Where simulations have gaps, it takes the place of the former,
            with the options that both have.
        options: of :class:`~indm.DensityEstimator`, such as ``max_seconds`` and ``random_state``.
            scikit-learn's ``set_params`` and ``GridSearchCV`` know them as
            ``estimator__max_seconds`` and so on.

    Attributes:
        estimator_: the fitted :class:`~indm.DensityEstimator`, of θ at the condition x or at the
            embedding's output; or the :class:`~indm.JointDensityEstimator` of both.
        embedding_: the trained embedding with its scales, None without.

    Example: θ ~ N(0, 1) and x ~ N(θ, 1), so that p(θ|x) = N(x/2, 1/2).

        >>> rng = np.random.default_rng(0)
        >>> theta = rng.normal(size=(1000, 1))
        >>> x = theta + rng.normal(size=(1000, 1))
        >>> posterior = PosteriorEstimator(max_steps=0, random_state=0).fit(theta, x)
        >>> draws = posterior.sample(500, [1.0], random_state=0)
        >>> draws.shape, bool(abs(draws.mean() - 0.5) < 0.1)
        ((500, 1), True)
        >>> bool(abs(posterior.log_prob([0.5], [1.0])[0] + 0.5 * np.log(np.pi)) < 0.1)
        True
    """

    def __init__(
        self,
        prior: Any = None,
        embedding: nn.Module | None = None,
        *,
        estimator: DensityEstimator | JointDensityEstimator | None = None,
        **options: Any,
    ):
        if estimator is not None and options:
            raise ValueError(
                f"options belong to the estimator where one is given, got {', '.join(options)} beside it"
            )
        self.prior, self.embedding = prior, embedding
        self.estimator = DensityEstimator(**options) if estimator is None else estimator

    # ── Fit ───────────────────────────────────────────────────────────────────────────────────────

    def fit(self, theta: Any, x: Any) -> "PosteriorEstimator":
        """Fit to ``theta`` (n, d), drawn from the prior, and ``x`` (n, *event), simulated at each;
        arrays or tensors.

        Simulations that are NaN throughout have failed: they are left out, and a warning counts
        them.

        Raises:
            ValueError: theta outside of the prior's box; x that is not a vector, without an
                embedding, or infinite; gaps in x, or a joint estimator, beside an embedding; bounds
                beside a prior; what :meth:`indm.DensityEstimator.fit` raises.

        Warns:
            UserWarning: simulations have failed; x has gaps, so that a joint estimator is fitted.
        """
        if self.prior is not None and self.estimator.bounds is not None:
            raise ValueError("bounds must be left out where there is a prior, whose box they are")
        theta, x = (
            part[:, None] if part.ndim == 1 else part for part in (array(theta), array(x, None))
        )
        if len(x) != len(theta):
            raise ValueError(f"x must have a row for each of theta, {len(theta)}, got {len(x)}")
        theta, x = without_failed(theta, x)
        x = finite(x, "x", may_miss=True)
        if x.ndim > 2 and self.embedding is None:
            raise ValueError(
                f"x must be vectors where there is no embedding, got events of shape {x.shape[1:]}"
            )
        self._event, self.prior_ = (
            x.shape[1:],
            Prior(self.prior, theta.shape[1], self.estimator.discrete),
        )
        theta = self.prior_.within(self.prior_.numbers(theta))
        outside = np.argwhere((theta < self.prior_.low) | (theta > self.prior_.high))
        if len(outside):
            row, i = outside[0]
            box = f"where it is from {self.prior_.low[i]:g} to {self.prior_.high[i]:g}"
            got = f"{theta[row, i]:g} in row {row} of parameter {i}"
            raise ValueError(f"theta must be drawn from the prior, got {got}, {box}")
        self.estimator_ = self._chosen(bool(np.isnan(x).any()))
        self.estimator_.bounds = (
            self.estimator_.bounds if self.prior is None else self.prior_.bounds
        )
        self.embedding_ = None if self.embedding is None else self._embed(self.embedding, theta, x)
        c = self._numbers(x)
        self.estimator_.fit(theta, c=c)
        self.estimator_._order = None
        self._law_of_x = Familiar(c)
        u = self._latents(theta)
        self._prior_moments = u.mean(0), np.cov(u.T).reshape(u.shape[1], -1)
        return self

    def _chosen(self, has_gaps: bool) -> DensityEstimator | JointConditional:
        """A copy of the estimator to fit: of θ and x together if it was given or x has gaps."""
        is_given = isinstance(self.estimator, JointDensityEstimator)
        if not (is_given or has_gaps):
            return clone(self.estimator)
        if self.embedding is not None:
            gaps = (
                ""
                if is_given
                else "; fill the gaps (NaN) of x, and mark them in a channel of their own"
            )
            raise ValueError(
                f"embedding must be left out where the estimator is of θ and x together{gaps}"
            )
        options = self.estimator.get_params()
        if not is_given:
            warnings.warn(
                "x has gaps (NaN): a JointDensityEstimator of theta and x together is fitted",
                stacklevel=3,
            )
            default, known = DensityEstimator().get_params(), JointDensityEstimator().get_params()
            is_set = {
                name: not np.array_equal(value, default[name]) for name, value in options.items()
            }
            options = {name: options[name] for name in known if is_set.get(name)}
        return JointConditional(**options)

    @property
    def _is_joint(self) -> bool:
        return isinstance(self.estimator_, JointConditional)

    def _embed(self, embedding: nn.Module, theta: Array, x: Array) -> summaries.Embedded:
        """The trained embedding; the estimator then validates on the rows that it did not see, in
        the time left.
        """
        require(isinstance(embedding, nn.Module), "embedding", embedding, "a module")
        options, rng = self.estimator_, check_random_state(self.estimator_.random_state)
        options.n_models, options.max_seconds = 1, options.max_seconds / 2
        options._order = order = rng.permutation(len(theta))
        is_valid = np.isin(
            np.arange(len(theta)), order[: max(1, round(options.validation_fraction * len(theta)))]
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.randint(2**31 - 1))
            varying = to_line(theta, self.prior_.interval)[:, np.ptp(theta, axis=0) > 0]
            return summaries.trained(embedding, varying, x, is_valid, options)

    # ── One observation ───────────────────────────────────────────────────────────────────────────

    def sample(self, n: int, x: Any, *, random_state: Any = None) -> Array:
        """``n`` draws of p(θ|x): (n, d) for one x, also of shape (1, *event), and (m, n, d) for m
        of them.

        The same ``random_state`` gives the same draws.
        """
        rows, is_one = self._observed(x)
        draws = self.prior_.parameters(self._sample(n, self._familiar(rows), random_state))
        return draws[0] if is_one else draws

    def log_prob(self, theta: Any, x: Any) -> Array:
        """log p(θ|x), normalised, nats (n,), of ``theta`` (n, d) at one x or at one for each; −∞
        outside of the prior.

        Warns:
            ConvergenceWarning: as :meth:`indm.DensityEstimator.score_samples`.
        """
        theta, (rows, _) = self._parameters(theta), self._observed(x)
        return self.estimator_.score_samples(theta, self._familiar(rows)) - self.prior_.log_volume(
            theta
        )

    def score(self, theta: Any, x: Any) -> float:
        """The mean :meth:`log_prob` of pairs, nats, which scikit-learn's ``GridSearchCV`` makes as
        large as it can.
        """
        return float(self.log_prob(theta, x).mean())

    def grad_log_prob(self, theta: Any, x: Any, *, steps: int = FEWEST_STEPS) -> Array:
        """∂ log p(θ|x)/∂θ, (n, d), of ``theta`` (n, d) at one x or at one for each; NaN outside of
        the prior, and where x is outside of its bounds.

        The ODE of :meth:`log_prob`, in ``steps`` equal steps, is differentiated. Up to 40
        parameters the only error is due to the steps; above, it has the noise of 8 probes.

        Raises:
            ValueError: a discrete parameter; a prior whose support is not a box.

        Warns:
            RuntimeWarning: where log p in so many steps is off by more than 1e-3 bits a parameter.
        """
        self._check_box()
        theta, (rows, _) = self._parameters(theta), self._observed(x)
        return self._slope(theta, self._familiar(rows), steps)[1]

    def mode(self, x: Any, *, random_state: Any = 0) -> tuple[Array, float]:
        """θ (d,) of the highest log p(θ|x) that was found for one x, and that log p.

        The best of 200 draws begins an ascent of up to twenty steps to a local maximum (L-BFGS in
        the latents of θ, with gradients by differences). Where log p rises towards an end of the
        prior's box, it is next to it.

        Raises:
            ValueError: several x; a discrete parameter; a prior whose support is not a box.
        """
        self._check_box()
        rows, _ = self._observed(x)
        require(len(rows) == 1, "x", len(rows), "one observation")
        c = self._familiar(rows)
        draws = self._sample(MODE_DRAWS, c, random_state)[0]
        start = draws[self.estimator_.score_samples(draws, c).argmax()]
        both = np.stack([start, self._ascended(start, draws, c)])
        values = self.estimator_.score_samples(both, c)
        return both[values.argmax()], float(values.max())

    def _ascended(self, start: Array, draws: Array, c: Array) -> Array:
        """θ (d,) of a local maximum, from ``start``; ``draws`` (n, d) have the scale of its steps."""
        columns, at_c, varies = (
            self.estimator_.columns_,
            self.estimator_.standardised(c, 1),
            self.estimator_.varies_,
        )

        def latents(theta: Array) -> Array:
            return columns.latents(theta[:, varies], np.repeat(at_c, len(theta), axis=0))

        origin, spread = latents(start[None])[0], latents(draws).std(0).clip(LEAST_SPREAD)
        nudges = MODE_NUDGE * np.concatenate(
            [np.zeros((1, len(spread))), np.eye(len(spread)), -np.eye(len(spread))]
        )

        def theta_of(u: Array) -> Array:
            theta = np.tile(start, (len(u), 1))
            theta[:, varies] = columns.rows(origin + spread * u, np.repeat(at_c, len(u), axis=0))
            return self.prior_.within(theta)

        def loss(u: Array) -> tuple[float, Array]:
            value, *sides = np.split(self._log_prob(theta_of(u + nudges), c), [1, 1 + len(u)])
            return -value[0], (sides[1] - sides[0]) / (2 * MODE_NUDGE)

        ends = [((-side * FARTHEST - origin) / spread).tolist() for side in (1, -1)]
        options, shown = {"maxiter": MODE_STEPS, "ftol": MODE_GAIN}, self.estimator_.progress
        with (
            warnings.catch_warnings(),
            bar_of(MODE_STEPS, "ascent to the mode", shown, "step") as bar,
        ):
            # few steps: the end is compared with the start
            warnings.simplefilter("ignore", RuntimeWarning)
            kind: dict[str, Any] = {
                "jac": True,
                "method": "L-BFGS-B",
                "callback": lambda _: bar.update(),
            }
            box = list(zip(*ends, strict=True))
            found = minimize(loss, np.zeros(len(spread)), bounds=box, options=options, **kind)
        return theta_of(found.x[None])[0]

    @torch.no_grad()
    def _log_prob(self, theta: Array, c: Array) -> Array:
        """log p in the steps of an ascent, (n,)."""
        found = self.estimator_
        c, value = found.standardised(c, len(theta)), np.full(len(theta), -np.inf)
        rows = found.possible(theta, c)
        X = theta[rows][:, found.varies_]
        z = torch.from_numpy(found.columns_.latents(X, c[rows]))
        value[rows] = averaged(
            found.log_densities(z, c[rows], MODE_ODE_STEPS)
        ).numpy() + found.columns_.log_volume(X)
        return value

    def log_likelihood(self, x: Any, theta: Any) -> Array:
        """log p(x|θ), nats (n,), of one x or of one for each of ``theta`` (n, d); ValueError unless
        the estimator is of both.
        """
        theta, (rows, _) = self._parameters(theta), self._observed(x)
        if not self._is_joint:
            raise ValueError(
                "the likelihood of x needs one model of both: give estimator=JointDensityEstimator()"
            )
        return self.estimator_.log_likelihood(
            np.broadcast_to(rows, (len(theta), rows.shape[1])), theta
        )

    # ── Several observations of one θ ─────────────────────────────────────────────────────────────

    def log_prob_iid(self, theta: Any, xs: Any) -> Array:
        r"""log p(θ|x_1 … x_m) up to a constant, nats (n,), for m observations that are independent
        at one θ.

        .. math:: \sum_i \log p(\theta|x_i) - (m-1)\log p(\theta)

        The errors of m posteriors add up, unlike with one fitted to all m. ValueError where the
        prior has no density.
        """
        theta, (rows, _) = self._parameters(theta), self._observed(xs)
        return self._log_prob_iid(theta, self._familiar(rows)) - self.prior_.log_volume(theta)

    def _log_prob_iid(self, theta: Array, c: Array) -> Array:
        n, m = len(theta), len(c)
        each = self.estimator_.score_samples(
            np.repeat(theta, m, axis=0), np.tile(c, (n, 1))
        ).reshape(n, m)
        log_prior = self.prior_.log_prob(theta) if m > 1 else np.zeros(n)
        with np.errstate(invalid="ignore"):
            total = each.sum(1) - (m - 1) * log_prior
        return np.where(np.isfinite(each).all(1) & np.isfinite(log_prior), total, -np.inf)

    def sample_iid(self, n: int, xs: Any, *, random_state: Any = None) -> tuple[Array, float]:
        r"""``n`` draws (n, d) of p(θ|x_1 … x_m), and their effective number.

        Candidates are weighted by :meth:`log_prob_iid`, and draws resampled from them
        (:func:`resampled`), in one to five rounds of n candidates, each with one solution of the
        ODE for each observation. The first proposal is the product of Gaussians with the moments of
        each posterior and of the prior. A peak that no proposal found is missed. Errors of the m
        posteriors add up, without a sign of it in the effective number: of a normal simulator and
        4,000 pairs the mean was off by 0.2 deviations of the posterior at m = 50, and by 0.5 at
        200.

        Raises:
            ValueError: as :meth:`log_prob_iid`; a discrete parameter.

        Warns:
            UserWarning: where the effective number is below n/10.
        """
        rows, _ = self._observed(xs)
        c, rng = self._familiar(rows), check_random_state(random_state)
        self._check_continuous()
        first = self._product(c, rng)
        draws, effective = resampled(lambda u: self._log_target(u, c), first, n, rng)
        if effective < POOR * n:
            words = f"{n} draws of a posterior of {len(c)} observations are as good as {effective:.0f} independent ones"
            warnings.warn(
                f"{words}; the observations may disagree, or be far from all simulated ones",
                stacklevel=2,
            )
        return self.prior_.parameters(self._from_latents(draws)), effective

    def _log_target(self, u: Array, c: Array) -> Array:
        """The log density of latents that :meth:`_log_prob_iid` is of θ; −∞ so far out that θ is
        rounded to an end.
        """
        theta = self._from_latents(u)
        found = self._log_prob_iid(theta, c)
        inside = np.isfinite(found)
        found[inside] -= self.estimator_.columns_.log_volume(
            theta[np.ix_(inside, self.estimator_.varies_)]
        )
        return found

    def _product(self, c: Array, rng: np.random.RandomState) -> "Proposal":
        """The product of Gaussians with the moments of each posterior, over all but one of the
        prior's, in latents.
        """
        mean, covariance = self._prior_moments
        root = np.linalg.cholesky(covariance)  # below, the prior is N(0, I)
        draws = self._sample(START_DRAWS, c, rng)
        precision, pull = (1 - len(c)) * np.eye(len(mean)), np.zeros(len(mean))
        for u in (np.linalg.solve(root, (self._latents(theta) - mean).T) for theta in draws):
            inverse = np.linalg.inv(OAS().fit(u.T).covariance_)
            precision, pull = precision + inverse, pull + inverse @ u.mean(1)
        values, vectors = np.linalg.eigh(precision)
        inverse = vectors / values.clip(1.0) @ vectors.T  # at most as wide as the prior
        return Proposal(
            np.ones(1), (mean + root @ inverse @ pull)[None], (root @ inverse @ root.T)[None]
        )

    # ── Trust ─────────────────────────────────────────────────────────────────────────────────────

    def calibration(
        self, theta: Any, x: Any, n: int = 200, *, random_state: Any = 0
    ) -> Calibration:
        """Whether posteriors are as wide as they should be, by ``n`` draws at each of fresh pairs,
        some 300 or more.

        Distances for TARP are between latents of θ at x, which also show posteriors that ignore x.
        Pairs that were fitted look better calibrated than fresh ones.
        """
        theta, (rows, _) = self._parameters(theta), self._observed(x)
        if len(theta) != len(rows):
            raise ValueError(f"x must have a row for each of theta, {len(theta)}, got {len(rows)}")
        rng = check_random_state(random_state)
        c = self._numbers(rows)
        draws = self._sample(n, c, rng)
        c, flat = self.estimator_.standardised(c, len(c)), draws.reshape(len(theta) * n, -1)
        latents = (
            self._latents(theta, c),
            self._latents(flat, np.repeat(c, n, axis=0)).reshape(len(theta), n, -1),
        )
        theta, draws = self.prior_.parameters(theta), self.prior_.parameters(draws)
        return Calibration.of(theta, draws, latents=latents, seed=rng.randint(2**31 - 1))

    # ── Shapes ────────────────────────────────────────────────────────────────────────────────────

    @property
    def gains_(self) -> Sequence[tuple[float, float] | None]:
        """The estimator's gains, see :class:`indm.DensityEstimator`."""
        check_is_fitted(self, "estimator_")
        return self.estimator_.gains_

    @property
    def n_steps_(self) -> list[int]:
        """The estimator's steps, see :class:`indm.DensityEstimator`."""
        check_is_fitted(self, "estimator_")
        return np.ravel(self.estimator_.n_steps_).tolist()

    @property
    def ended_by_(self) -> str:
        """The reason why the estimator's fit ended, see :attr:`indm.DensityEstimator.ended_by_`."""
        check_is_fitted(self, "estimator_")
        return self.estimator_.ended_by_

    def _parameters(self, theta: Any) -> Array:
        """The prior's numbers of rows of θ, (n, k); one row may stand alone."""
        check_is_fitted(self, "estimator_")
        theta, d = array(theta), self.prior_.d
        theta = theta.reshape(-1, d) if theta.ndim == 1 and (d == 1 or len(theta) == d) else theta
        if theta.ndim != 2 or theta.shape[1] != d:
            raise ValueError(f"theta must have shape (n, {d}), got {theta.shape}")
        return self.prior_.within(self.prior_.numbers(theta))

    def _observed(self, x: Any) -> tuple[Array, bool]:
        """Rows of x, (m, *event), and whether it is one, with an axis of rows or without."""
        check_is_fitted(self, "estimator_")
        x = finite(x, "x", may_miss=True)
        if np.isnan(x).any() and not self._is_joint:
            joint = "fit with gaps in x, or with estimator=JointDensityEstimator()"
            raise ValueError(f"x must be finite numbers, got NaN after a fit without gaps; {joint}")
        if x.shape == self._event or (x.ndim < 2 and self._event == (1,)):
            x = x.reshape(-1, *self._event)
        if x.shape[1:] != self._event:
            raise ValueError(
                f"x must have shape {self._event}, or one axis more for several, got {x.shape}"
            )
        return x, len(x) == 1

    def _numbers(self, rows: Array) -> Array:
        """Numbers that the estimator is given for rows of x, (m, k)."""
        if self.embedding_ is None:
            return rows
        return self.embedding_.numbers(torch.from_numpy(rows).float().flatten(1))

    def _familiar(self, rows: Array) -> Array:
        """:meth:`_numbers`, with a warning where more of them are unlike the simulated ones than
        chance allows.
        """
        c = self._numbers(rows)
        self._law_of_x.check(c)
        return c

    # ── Latents ───────────────────────────────────────────────────────────────────────────────────

    def _sample(self, n: int, c: Array, random_state: Any) -> Array:
        """(m, n, d) at rows of c (m, k)."""
        check_count(n, "n")
        draws = self.estimator_.sample(n * len(c), random_state, c=np.repeat(c, n, axis=0))
        return draws.reshape(len(c), n, -1)

    def _latents(self, theta: Array, c: Array | None = None) -> Array:
        """Latents of the varying parameters at standardised conditions, by default at their mean."""
        c = np.zeros((len(theta), self.estimator_.n_conditions_)) if c is None else c
        theta = self.prior_.within(theta)
        theta[:, self.estimator_.discrete_] += 0.5
        return self.estimator_.columns_.latents(theta[:, self.estimator_.varies_], c)

    def _from_latents(self, u: Array) -> Array:
        theta = np.tile(self.estimator_.constant_, (len(u), 1))
        theta[:, self.estimator_.varies_] = self.estimator_.columns_.rows(
            u, np.zeros((len(u), self.estimator_.n_conditions_))
        )
        return theta

    def _check_continuous(self) -> None:
        if len(self.estimator_.discrete_):
            raise ValueError(
                "theta must have no discrete column for gradients, modes and several observations"
            )

    def _check_box(self) -> None:
        if self.prior_.map is not None:
            raise ValueError(
                "the prior must have a box as its support for gradients and modes; draws need none"
            )

    def _slope(self, theta: Array, c: Array, steps: int) -> tuple[Array, Array]:
        """log p, (n,), and its gradient in θ, (n, d)."""
        self._check_continuous()
        found = self.estimator_
        c, gradient = found.standardised(c, len(theta)), np.full(theta.shape, np.nan)
        value, rows = np.full(len(theta), -np.inf), found.possible(theta, c)
        X, c = theta[rows][:, self.estimator_.varies_], c[rows]
        stretch, bend = self._derivatives(X, c)
        log_p, slope = self._slope_of_latents(found.columns_.latents(X, c), c, steps)
        value[rows] = log_p + found.columns_.log_volume(X)
        gradient[np.ix_(rows, self.estimator_.varies_)] = (
            stretch * (slope @ found.columns_.whitening.T) + bend
        )
        gradient[:, ~self.estimator_.varies_] = 0.0
        return value, gradient

    def _slope_of_latents(self, latents: Array, c: Array, steps: int) -> tuple[Array, Array]:
        """log p of latents at standardised conditions, (n,), and its gradient in them, (n,
        columns).
        """
        values, slopes = [np.zeros(0)], [np.zeros((0, latents.shape[1]))]
        parts = (torch.from_numpy(np.array(part)).split(ROWS_AT_ONCE) for part in (latents, c))
        for z, rows in zip(*parts, strict=True):
            z = z.clone().requires_grad_()
            value = averaged(self.estimator_.log_densities(z, rows.numpy(), steps))
            (slope,) = torch.autograd.grad(value.sum(), z)
            values.append(value.detach().numpy())
            slopes.append(slope.numpy())
        return np.concatenate(values), np.concatenate(slopes)

    def _derivatives(self, X: Array, c: Array) -> tuple[Array, Array]:
        """y′ and ∂ log y′/∂θ of each varying column, (n, columns), y being its number before
        columns are whitened.
        """
        columns, d = self.estimator_.columns_, X.shape[1]
        unwhitening = np.linalg.inv(columns.whitening)
        z = columns.latents(X, c)
        # a step of y, in units of what c leaves of it
        spread = NUDGE * np.linalg.norm(unwhitening, axis=0)
        ends = [columns.rows(z + side * spread @ columns.whitening, c) for side in (1, -1)]
        width = ends[0] - ends[1]
        bend = np.zeros_like(X)
        for i in range(d):
            nudged = [np.where(np.arange(d) == i, end, X) for end in ends]
            bend[:, i] = (columns.log_volume(nudged[0]) - columns.log_volume(nudged[1])) / width[
                :, i
            ]
        return 2 * spread / width, bend


def without_failed(theta: Array, x: Array) -> tuple[Array, Array]:
    """The pairs whose x is not NaN throughout; a warning counts the others, ValueError where there
    is none.
    """
    failed = (x != x).reshape(len(x), -1).all(1)
    if failed.all():
        raise ValueError("x must be finite numbers, got NaN throughout in all simulations")
    if failed.any():
        warnings.warn(
            f"left out {failed.sum()} of {len(x)} simulations, whose x is NaN throughout",
            stacklevel=3,
        )
        theta, x = theta[~failed], x[~failed]
    return theta, x


class Familiar:
    """The farthest that simulated observations are from their centre, and a warning for what is
    farther, in Mahalanobis' distance of asinh((x − centre)/scale).
    """

    def __init__(self, c: Array):
        self.centre = np.nanmedian(c, axis=0)
        self.centre, scale = moments_of_most(np.where(np.isnan(c), self.centre, c))
        self.scale, self.rows, self.is_same = np.where(scale > 0, scale, 1.0), len(c), scale == 0
        self.law = OAS(assume_centered=True).fit(self._near(c))
        self.limit = self.distance(c).max()

    def _near(self, c: Array) -> Array:
        # what is missing is at the centre
        return np.nan_to_num(np.arcsinh((c - self.centre) / self.scale))

    def distance(self, c: Array) -> Array:
        """Distance of each row, (m,); infinite where an entry that was the same in all simulations
        differs.
        """
        differs = self.is_same & ~are_near(c, self.centre) & ~np.isnan(c)
        return np.where(differs.any(1), np.inf, np.sqrt(self.law.mahalanobis(self._near(c))))

    def check(self, c: Array) -> None:
        """A warning where more rows are beyond the limit than of rows from the simulator by chance."""
        distance = self.distance(c)
        beyond, expected = (distance > self.limit).sum(), len(c) / self.rows
        if beyond > expected + 3 * math.sqrt(expected):
            warnings.warn(
                f"x is unlike the simulated ones: {beyond} of {len(c)} {'is' if beyond == 1 else 'are'} farther from "
                f"their centre than all of {self.rows}, {distance.max():.3g} deviations where these have at most "
                f"{self.limit:.3g}; a posterior there is a guess",
                stacklevel=4,
            )


class Proposal:
    """A mixture of multivariate t laws of ``weight`` (K,), ``mean`` (K, d) and scale matrix
    ``covariance`` (K, d, d).
    """

    def __init__(self, weight: Array, mean: Array, covariance: Array):
        self.weight = weight
        self.laws = [multivariate_t(*law, df=TAILS) for law in zip(mean, covariance, strict=True)]

    @classmethod
    def fitted(cls, u: Array, weight: Array, rng: np.random.RandomState) -> "Proposal":
        """The proposal fitted to rows (n, d) with weights (n,)."""
        mean = weight @ u
        covariance = (u - mean).T @ ((u - mean) * weight[:, None])
        root = np.linalg.cholesky(
            covariance + LEAST_VARIANCE * (1 + np.trace(covariance)) * np.eye(len(mean))
        )
        v = np.linalg.solve(root, (u[rng.choice(len(u), len(u), p=weight)] - mean).T).T
        components = int(np.clip(effective_number(weight) / ROWS_OF_MODE, 1, MODES))
        law = Mixture.fitted(v, v[:, :0], components, VARIANCE_FLOOR, rng.randint(2**31 - 1))
        return cls(law.weight, mean + law.mean @ root.T, root @ law.covariance @ root.T)

    def draws(self, n: int, rng: np.random.RandomState) -> Array:
        """(n, d)."""
        counts = zip(self.laws, rng.multinomial(n, self.weight), strict=True)
        return np.concatenate(
            [law.rvs(k, random_state=rng).reshape(k, -1) for law, k in counts if k]
        )

    def log_prob(self, u: Array) -> Array:
        """Nats, (n,)."""
        each = np.stack([np.atleast_1d(law.logpdf(u)) for law in self.laws])
        return logsumexp(each, axis=0, b=self.weight[:, None])


def effective_number(weight: Array) -> float:
    """(Σw)²/Σw²: how many draws of equal weight are as good."""
    return float(weight.sum() ** 2 / np.square(weight).sum())


def resampled(
    log_target: Callable[[Array], Array], first: Proposal, n: int, rng: np.random.RandomState
) -> tuple[Array, float]:
    """``n`` draws (n, d) of a density ∝ exp ``log_target``, and their effective number.

    Each round has n candidates, at least 100. All so far are weighted by the target over the mean
    density of the proposals so far, to which the next proposal is fitted. It ends when they are as
    good as n draws, or after five rounds.

    Source: Cornuet et al. 2012, "Adaptive Multiple Importance Sampling",
    https://arxiv.org/abs/0907.1254.
    """
    laws, u, target = [first], np.zeros((0, len(first.laws[0].loc))), np.zeros(0)
    while True:
        fresh = laws[-1].draws(max(n, FEWEST_CANDIDATES), rng)
        u, target = np.concatenate([u, fresh]), np.append(target, log_target(fresh))
        log_weight = target - logsumexp([law.log_prob(u) for law in laws], axis=0)
        weight = np.exp(log_weight - logsumexp(log_weight))
        effective = effective_number(weight)
        if effective >= n or len(laws) == ROUNDS:
            return u[rng.choice(len(u), n, p=weight)], effective
        laws.append(Proposal.fitted(u, weight, rng))
