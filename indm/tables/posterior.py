"""Posteriors p(θ|x) of a simulator, from pairs of parameters θ and observations x."""

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from torch import nn

from indm.ode import FEWEST_STEPS
from indm.tables.ascent import mode
from indm.tables.calibration import Calibration, calibrated
from indm.tables.columns import Array
from indm.tables.density import ConditionalDensity, LatentDensity
from indm.tables.estimator import DensityEstimator
from indm.tables.familiar import Familiar
from indm.tables.first_columns import FirstColumns
from indm.tables.gradients import log_prob_with_gradient
from indm.tables.iid import log_prob_iid, sample_iid
from indm.tables.joint import JointDensityEstimator
from indm.tables.prior import Prior, array, finite
from indm.tables.questions import FirstAsked
from indm.tables.summaries import embedded


class PosteriorEstimator(ConditionalDensity):
    r"""The posterior p(θ|x) of a simulator, for every x, from pairs (θ, x): θ from the prior, x
    simulated at θ.

    It is a :class:`~indm.DensityEstimator` of θ at the condition x, with the prior, the mode,
    gradients, several observations of one θ, calibration, and a warning at an x unlike the
    simulated ones.

    Args:
        prior: of θ. A pair (low, high) of numbers or of arrays (d,) is the uniform law in that box
            (ends may be infinite). For a ``torch.distributions.Distribution`` its support is used,
            and torch's map from all vectors to the support if that is not a box, like a Dirichlet
            law's. Its density matters only for several observations. None: all of the line.
        embedding: a module (n, *event) → (n, …) that turns standardised observations of any shape
            into numbers. A copy is trained with a first posterior, and the estimator is fitted to
            its output. Each of the two has half of ``max_seconds``; ``n_models`` is 1.
        estimator: a :class:`~indm.DensityEstimator`, for which you may give its options; or a
            :class:`~indm.JointDensityEstimator`, which is one model of (θ, x). It allows random
            missing entries (NaN) of x, in simulations and in the observation, and has p(x|θ), see
            :meth:`log_likelihood`. If simulations have gaps, it replaces a DensityEstimator, with
            the options that both have.
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
            names = ", ".join(options)
            raise ValueError(f"options belong to the estimator where one is given, got {names}")
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
                embedding, or infinite; gaps in x, or a joint estimator, with an embedding; bounds
                with a prior; what :meth:`indm.DensityEstimator.fit` raises.

        Warns:
            UserWarning: simulations have failed; x has gaps, so that a joint estimator is fitted.
        """
        if self.prior is not None and self.estimator.bounds is not None:
            raise ValueError("bounds must be left out where there is a prior, whose box they are")
        theta, x = self._pairs(theta, x)
        self._event = x.shape[1:]
        self.prior_ = Prior(self.prior, theta.shape[1], self.estimator.discrete)
        theta = self.prior_.drawn(theta)
        self.estimator_ = self._chosen(bool(np.isnan(x).any()))
        if self.prior is not None:
            self.estimator_.bounds = self.prior_.bounds
        self._density = self._fitted(theta, x)
        self.gains_ = self.estimator_.gains_
        self.n_steps_ = np.ravel(self.estimator_.n_steps_).tolist()
        self._law_of_x = Familiar(self._numbers(x))
        u = self._latents(theta)
        self._prior_moments = u.mean(0), np.cov(u.T).reshape(u.shape[1], -1)
        return self

    def _pairs(self, theta: Any, x: Any) -> tuple[Array, Array]:
        """The simulations that have not failed, as arrays with a row each."""
        theta, x = array(theta), array(x, None)
        theta = theta[:, None] if theta.ndim == 1 else theta
        x = x[:, None] if x.ndim == 1 else x
        theta, x = without_failed(theta, x)
        return theta, finite(x, "x", may_miss=True)

    def _fitted(self, theta: Array, x: Array) -> LatentDensity:
        """Fit the embedding and the estimator; the density of θ at what is seen of x."""
        self.embedding_, estimator = None, self.estimator_
        if isinstance(estimator, JointDensityEstimator):
            d = theta.shape[1]
            estimator.fit(np.concatenate([theta, x], 1), question=FirstAsked(d))
            return FirstColumns(estimator, d)
        order = None
        if self.embedding is not None:
            self.embedding_, order = embedded(self.embedding, estimator, theta, x, self.prior_)
        return estimator.fit(theta, c=self._numbers(x), order=order)

    def _chosen(self, has_gaps: bool) -> DensityEstimator | JointDensityEstimator:
        """A copy of the estimator to fit: of θ and x together if it was given or x has gaps."""
        is_joint = isinstance(self.estimator, JointDensityEstimator)
        if self.embedding is not None and (is_joint or has_gaps):
            gaps = "; fill the gaps (NaN) of x, and mark them in a channel of their own"
            raise ValueError(
                "embedding must be left out where the estimator is of θ and x together"
                + ("" if is_joint else gaps)
            )
        if is_joint or not has_gaps:
            return clone(self.estimator)
        warnings.warn(
            "x has gaps (NaN): a JointDensityEstimator of theta and x together is fitted",
            stacklevel=3,
        )
        default, known = DensityEstimator().get_params(), JointDensityEstimator().get_params()
        changed = {
            name: value
            for name, value in self.estimator.get_params().items()
            if name in known and not np.array_equal(value, default[name])
        }
        return JointDensityEstimator(**changed)

    @property
    def ended_by_(self) -> str:
        """The reason why the estimator's fit ended, see :attr:`indm.DensityEstimator.ended_by_`."""
        return self.estimator_.ended_by_

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
        return self.score_samples(theta, x)

    def score_samples(self, theta: Any, x: Any) -> Array:
        """:meth:`log_prob`, under scikit-learn's name."""
        theta = self._parameters(theta)
        rows, _ = self._observed(x)
        log_p = self._density.score_samples(theta, self._familiar(rows))
        return log_p - self.prior_.log_volume(theta)

    def score(self, theta: Any, x: Any) -> float:
        """The mean :meth:`log_prob` of pairs, nats, which scikit-learn's ``GridSearchCV`` makes as
        large as it can.
        """
        return float(self.log_prob(theta, x).mean())

    def grad_log_prob(self, theta: Any, x: Any, *, steps: int = FEWEST_STEPS) -> Array:
        """∂ log p(θ|x)/∂θ, (n, d), of ``theta`` (n, d) at one x or at one for each; NaN outside of
        the prior, and where x is outside of its bounds.

        It is the exact derivative of the ODE of :meth:`log_prob` in ``steps`` equal steps, for up to
        40 parameters. For more it has the noise of 8 probes.

        Raises:
            ValueError: a discrete parameter; a prior whose support is not a box.

        Warns:
            RuntimeWarning: where log p in so many steps is off by more than 1e-3 bits a parameter.
        """
        self._check_box()
        theta = self._parameters(theta)
        rows, _ = self._observed(x)
        c = self._familiar(rows)
        self._check_continuous()
        return log_prob_with_gradient(self._density, theta, c, steps)[1]

    def mode(self, x: Any, *, random_state: Any = 0) -> tuple[Array, float]:
        """θ (d,) of the highest log p(θ|x) that was found for one x, and that log p.

        An ascent of up to twenty steps leads from the best of 200 draws to a local maximum (L-BFGS
        in the latents of θ, with gradients by differences). If log p rises towards an end of the
        prior's box, the mode is next to that end.

        Raises:
            ValueError: several x; a discrete parameter; a prior whose support is not a box.
        """
        return mode(self, x, random_state)

    def log_likelihood(self, x: Any, theta: Any) -> Array:
        """log p(x|θ), nats (n,), of one x or of one for each of ``theta`` (n, d); ValueError unless
        the estimator is of both.
        """
        theta = self._parameters(theta)
        rows, _ = self._observed(x)
        if not isinstance(self._density, FirstColumns):
            name = type(self._density).__name__
            raise ValueError(
                f"log_likelihood needs an estimator of θ and x, such as JointDensityEstimator, got {name}"
            )
        return self._density.log_likelihood(
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
        theta = self._parameters(theta)
        rows, _ = self._observed(xs)
        return log_prob_iid(self, theta, self._familiar(rows)) - self.prior_.log_volume(theta)

    def sample_iid(self, n: int, xs: Any, *, random_state: Any = None) -> tuple[Array, float]:
        r"""``n`` draws (n, d) of p(θ|x_1 … x_m), and their effective number.

        Candidates are weighted by :meth:`log_prob_iid`, and draws resampled from them
        (:func:`indm.tables.resampling.resampled`). The first proposal is the product of Gaussians
        with the moments of each posterior and of the prior. A peak that no proposal found is
        missed.

        There are one to five rounds of n candidates, and one solution of the ODE for each candidate
        and observation, with an error of at most 0.5 nats. For five parameters, 1,000 draws and 20
        observations a round took 23 seconds on one core.

        Errors of the m posteriors add up, without a sign of it in the effective number: of a normal
        simulator and 4,000 pairs the mean was off by 0.2 deviations of the posterior at m = 50, and
        by 0.5 at 200.

        Raises:
            ValueError: as :meth:`log_prob_iid`; a discrete parameter.

        Warns:
            UserWarning: where the effective number is below n/10.
        """
        return sample_iid(self, n, xs, random_state)

    # ── Trust ─────────────────────────────────────────────────────────────────────────────────────

    def calibration(
        self, theta: Any, x: Any, n: int = 200, *, random_state: Any = 0
    ) -> Calibration:
        """Whether posteriors are as wide as they should be, by ``n`` draws at each of fresh pairs,
        some 300 or more.

        Distances for TARP are between latents of θ at x, which also show posteriors that ignore x.
        Pairs that were fitted look better calibrated than fresh ones.
        """
        return calibrated(self, theta, x, n, random_state)

    # ── Shapes ────────────────────────────────────────────────────────────────────────────────────

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
        draws = self._density.sample(n * len(c), random_state, c=np.repeat(c, n, axis=0))
        return draws.reshape(len(c), n, draws.shape[1])

    def _latents(self, theta: Array, c: Array | None = None) -> Array:
        """Latents of the varying parameters at standardised conditions, by default at their mean."""
        density = self._density
        c = np.zeros((len(theta), density.n_conditions_)) if c is None else c
        theta = self.prior_.within(theta)
        theta[:, density.discrete_] += 0.5
        return density.columns_.latents(theta[:, density.varies_], c)

    def _from_latents(self, u: Array) -> Array:
        density = self._density
        theta = np.tile(density.constant_, (len(u), 1))
        at_mean = np.zeros((len(u), density.n_conditions_))
        theta[:, density.varies_] = density.columns_.rows(u, at_mean)
        return theta

    def _check_continuous(self) -> None:
        if len(self._density.discrete_):
            raise ValueError(
                "theta must have no discrete column for gradients, modes and several observations"
            )

    def _check_box(self) -> None:
        if self.prior_.map is not None:
            raise ValueError(
                "the prior must have a box as its support for gradients and modes; draws need none"
            )


def without_failed(theta: Array, x: Array) -> tuple[Array, Array]:
    """The pairs whose x is not NaN throughout; a warning counts the others."""
    failed = (x != x).reshape(len(x), -1).all(1)
    if failed.any():
        warnings.warn(
            f"left out {failed.sum()} of {len(x)} simulations, whose x is NaN throughout",
            stacklevel=3,
        )
        theta, x = theta[~failed], x[~failed]
    return theta, x
