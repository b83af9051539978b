"""The conditional of a joint density under the names of DensityEstimator: entries of c may be missing."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from indm.likelihood import log_prob
from indm.tables.columns import Columns
from indm.tables.estimator import SOLVER_ERROR
from indm.tables.joint import JointDensityEstimator, unasked_log_prob

AT_ALL, AT_SOME = 0.5, 0.25  # shares of the questions that ask for X at all entries of c, and at some of them

Array = np.ndarray


class JointConditional(JointDensityEstimator):
    """p(X|c) of one joint density of rows X and conditions c, for a posterior: any entry of c may be NaN.

    It has what :class:`~indm.PosteriorEstimator` needs of a :class:`~indm.DensityEstimator`, and the methods of a
    :class:`~indm.JointDensityEstimator` of tables that have X's columns, then c's. Most questions of its
    training ask for X at c.
    """

    def fit(self, X: Array, y: Any = None, *, c: Array) -> "JointConditional":
        self._d, self.n_conditions_ = X.shape[1], c.shape[1]
        super().fit(np.concatenate([X, c], 1))
        maps = [self.encoding_.map_of(i) for i, varies in enumerate(self.varies_) if varies]
        names = "centre", "scale", "power", "far", "mean", "edge", "interval", "reach"
        stacked = {name: np.concatenate([getattr(part, name) for part in maps], -1) for name in names}
        slope, whitening = np.zeros((self.n_conditions_, len(maps))), np.diag([part.whitening[0, 0] for part in maps])
        self.columns_ = Columns(**stacked, slope=slope, whitening=whitening)
        self.gains_ = [self.gain_]
        return self

    def _random_question(self, numbers: np.random.RandomState) -> tuple[Array, Array]:
        kind, asked = numbers.uniform(), np.arange(self._d + self.n_conditions_) < self._d
        if kind > AT_ALL + AT_SOME:
            return super()._random_question(numbers)
        return asked, ~asked & (numbers.uniform(size=len(asked)) > (0 if kind < AT_ALL else numbers.uniform()))

    # ── Under the names of DensityEstimator ─────────────────────────────────────────────────────────────────────────

    @property
    def discrete_(self) -> Array:
        return np.array([i for i in range(self._d) if self.encoding_.columns[i].is_whole], dtype=int)

    @property
    def constant_(self) -> Array:
        found = [self.encoding_.columns[i].constant for i in range(self._d)]
        return np.array([np.nan if value is None else value for value in found])

    @property
    def varies_(self) -> Array:
        return np.isnan(self.constant_)

    def score_samples(self, X: Array, c: Array, *, tol: float = SOLVER_ERROR) -> Array:
        rows = self._joined(X, c)
        asked, given = self._masks(len(rows))
        return self._score(rows, asked, given, tol)

    def sample(self, n_samples: int = 1, random_state: Any = None, *, c: Array, steps: int | None = None) -> Array:
        x, codes = self.encoding_.encoded(self._joined(np.full((n_samples, self._d), np.nan), c))
        questions = self._posed(*self._masks(len(x)), (x, codes))
        drawn = self._drawn((x, codes), questions, steps, check_random_state(random_state))
        return self.encoding_.table(*drawn)[:, : self._d].astype(float)

    def log_likelihood(self, c: Array, X: Array) -> Array:
        """log p(c|X) of what each row of c (n, k) has, nats (n,), at rows of X (n, d)."""
        rows = self._joined(X, c)
        asked, given = self._masks(len(rows))
        return self._score(rows, given, asked, SOLVER_ERROR)

    def standardised(self, c: Array, rows: int) -> Array:
        """Rows of c for ``rows`` of X, of one for all or one for each."""
        return np.broadcast_to(c, (rows, self.n_conditions_))

    def possible(self, X: Array) -> Array:
        """The indices of rows inside of the bounds whose constant columns have their values."""
        x, _ = self.encoding_.encoded(self._joined(X, np.full((1, self.n_conditions_), np.nan)))
        same = np.isfinite(self._constant_log_prob(X, np.ones(X.shape, dtype=bool)))
        return np.flatnonzero(same & self.encoding_.is_possible(x).all(1))

    def log_densities(self, z: Tensor, c: Array, steps: int) -> Iterator[Tensor]:
        """log p of latents (n, d) at rows of c, nats (n,), with gradients, in so many steps of the ODE."""
        x, codes = self.encoding_.encoded(self._joined(np.full((len(z), self._d), np.nan), c))
        net, questions = self.model_.score.backbone, self._posed(*self._masks(len(x)), (x, codes))
        is_asked, is_given, index = questions.masks()
        net.set_questions(is_asked, is_given)
        at = net.condition(self._latents(x).double(), torch.zeros(len(z), net.m), torch.from_numpy(index))
        rows = z.new_zeros(x.shape).masked_scatter(torch.from_numpy(questions.asked), z)
        value = log_prob(self.model_.given(at), rows, steps=steps, exact=True)
        yield value - unasked_log_prob(self.model_.sde, ~torch.from_numpy(questions.asked))

    def _masks(self, n: int) -> tuple[Array, Array]:
        """Masks of the asked and of the given columns, (n, columns) each."""
        asked = np.tile(np.arange(self._d + self.n_conditions_) < self._d, (n, 1))
        return asked, ~asked

    def _joined(self, X: Array, c: Array) -> Array:
        return np.concatenate([X, self.standardised(c, len(X))], 1)
