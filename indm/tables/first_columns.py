"""A joint density as p(X|c) of its first columns X at all others, c: for a posterior."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from indm.tables import solve
from indm.tables.answers import unasked_log_prob
from indm.tables.columns import Array, Columns
from indm.tables.density import LatentDensity
from indm.tables.joint import JointDensityEstimator
from indm.tables.joint_fit import asked_model, chain_log_prob, hidden
from indm.tables.questions import Questions, middle_latents


class FirstColumns(LatentDensity):
    """p(X|c) of the first ``d`` columns of a fitted joint density, any entry of c may be NaN."""

    def __init__(self, joint: JointDensityEstimator, d: int):
        encoding = joint.encoding_
        self.joint = joint
        self.d = d
        self.encoding = encoding
        self.n_conditions_ = len(encoding.columns) - d
        whole = [i for i in range(d) if encoding.columns[i].is_whole]
        self.discrete_ = np.array(whole, dtype=int)
        constants = [column.constant for column in encoding.columns[:d]]
        self.constant_ = np.array([np.nan if value is None else value for value in constants])
        varying = np.flatnonzero(self.varies_)
        self.columns_ = Columns.joined(
            [encoding.map_of(i) for i in varying.tolist()], self.n_conditions_
        )

    def score_samples(self, X: Array, c: Any = None, *, tol: float | None = None) -> Array:
        rows = self._joined(X, c)
        asked, given = self._masks(len(rows))
        tol = solve.SOLVER_ERROR if tol is None else tol
        return self.joint._answers.log_prob(rows, asked, given, tol)

    def log_likelihood(self, c: Array, X: Array) -> Array:
        """log p(c|X) of what each row of c (n, k) has, nats (n,), at rows of X (n, d); −∞ outside
        of the bounds.
        """
        rows = self._joined(X, c)
        asked, given = self._masks(len(rows))
        return self.joint._answers.log_prob(rows, given, asked, solve.SOLVER_ERROR)

    def sample(
        self, n_samples: int = 1, random_state: Any = None, *, c: Any = None, steps: Any = None
    ) -> Array:
        rows = self._joined(np.full((n_samples, self.d), np.nan), c)
        answers = self.joint._answers
        answers.check_possible(rows)
        encoded = self.encoding.encoded(rows)
        questions = Questions.posed(self.encoding, *self._masks(n_samples), encoded)
        steps = self.joint.sampling_steps_ if steps is None else steps
        drawn = answers.drawn(encoded, questions, steps, check_random_state(random_state))
        return self.encoding.table(*drawn)[:, : self.d].astype(float)

    def standardised(self, c: Any, rows: int) -> Array:
        return np.broadcast_to(c, (rows, self.n_conditions_))

    def possible(self, X: Array, c: Array) -> Array:
        """The indices of rows that have a density at their c: both are inside of the bounds,
        constant columns of X have their values, and no entry of X is a spike.
        """
        rows = self._joined(X, c)
        asked, _ = self._masks(len(rows))
        x, _ = self.encoding.encoded(rows)
        is_same = np.isfinite(self.joint._answers.constant_log_prob(rows, asked))
        is_spike = np.isnan(x[:, self.encoding.numbers < self.d]).any(1)
        return np.flatnonzero(is_same & ~is_spike & self.encoding.is_possible(x).all(1))

    def log_densities(self, z: Tensor, c: Array, steps: int) -> Iterator[Tensor]:
        """log p of latents (n, columns) at rows of c, nats (n,), with gradients, in so many steps of
        the ODE.

        Of columns of X with spikes it is the density of the other values.
        """
        x, codes = self.encoding.encoded(self._joined(np.full((len(z), self.d), np.nan), c))
        codes[:, self.encoding.categories < self.d] = 0  # latents are numbers, not spikes
        questions = Questions.posed(self.encoding, *self._masks(len(x)), (x, codes))
        is_asked, is_given, numbers = questions.masks()
        model = asked_model(self.joint.model_, is_asked, is_given)
        net, index = model.score.backbone, torch.from_numpy(numbers)
        given = middle_latents(self.encoding, x).double()
        one_hot = torch.from_numpy(self.encoding.one_hot(codes))
        with torch.no_grad():
            log_share = chain_log_prob(net, given, one_hot, questions, index)
        known = questions.asked_codes | questions.given_codes
        at = net.condition(given, hidden(one_hot, net, known), index)
        asked = torch.from_numpy(questions.asked)
        rows = z.new_zeros(x.shape).masked_scatter(asked, z)
        value = solve.log_prob_in_steps(model.given(at), rows, steps)
        yield log_share + value - unasked_log_prob(model.sde, ~asked)

    def _masks(self, n: int) -> tuple[Array, Array]:
        """Masks of the asked and of the given columns, (n, columns) each."""
        asked = np.tile(np.arange(len(self.encoding.columns)) < self.d, (n, 1))
        return asked, ~asked

    def _joined(self, X: Array, c: Any) -> Array:
        return np.concatenate([X, self.standardised(c, len(X))], 1)
