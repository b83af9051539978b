"""A density estimator for tables of numbers that fits into scikit-learn: fit, score_samples,
sample.
"""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from indm.checks import counted, require
from indm.conditions import Vector
from indm.flows.base import Flow, Identity
from indm.flows.masked import MaskedFlow
from indm.model import INDM
from indm.sampling import sample
from indm.score import ScoreModel
from indm.sde.linear import VPSDE
from indm.tables import fit as fitting
from indm.tables import solve
from indm.tables.columns import (
    FAR,
    LARGEST_X,
    Columns,
    are_near,
    best_edges,
    far_columns,
    is_inside,
    moments,
    moments_of_most,
)
from indm.tables.encoding import (
    DATES,
    FEWEST_ROWS,
    NamedColumns,
    names_of,
    problems_of,
    warn_of_few_values,
)
from indm.tables.mixture import MIXTURE_SIZES, Mixture, best_mixture, bounded, with_one_gaussian
from indm.tables.networks import MixtureMLP

# rows up to which models are averaged: MODELS of them; as many as time allows
FEW_ROWS, MORE_ROWS = 500, 2_000
MODELS, SECONDS_OF_A_MODEL = 4, 15.0  # models, at most; seconds of each above FEW_ROWS
MIXTURE_ROWS = 5_000  # to fit a mixture on
DRAWS_OF_MIXTURE = 8  # draws of the noise of discrete columns that validate a mixture
# rows from which on a flow may be the start; from which on batches are large
FLOW_ROWS, MANY_ROWS = 2_000, 5_000
BATCH_SIZES, LEARNING_RATES = (128, 512), (4e-3, 6e-3)  # for few rows, and for many
# rows and seconds of a fit from which on a dead network begins anew
FEWEST_TO_REVIVE, LEAST_SECONDS = 50, 10.0
# factor of the learning rate behind a flow, where little but noise is left to fit
BEHIND_A_FLOW = 0.2


class Table(NamedTuple):
    """Rows (n, columns) and their conditions (n, k)."""

    X: np.ndarray
    c: np.ndarray

    def rows(self, chosen: Any) -> "Table":
        """Some rows, by a mask, indices or a slice."""
        return Table(self.X[chosen], self.c[chosen])


class Mixtures(NamedTuple):
    """The mixtures from which a fit may start."""

    columns: Columns  # their map to latents
    mixtures: list[Mixture]  # the best, and beside one of several components a single Gaussian
    value: float  # log p of the validation rows by the best, nats of a row


class Latents(NamedTuple):
    """The latents and conditions that train a model, and those that validate it."""

    columns: Columns
    n: int  # rows that train
    # their indices ↦ latents and conditions, in new noise
    batch: Callable[[Tensor], tuple[Tensor, Tensor]]
    held: Tensor  # latents of the validation rows, each in some draws of the noise
    c_held: Tensor
    draws: int
    deadline: float


class Fitted(NamedTuple):
    """A model that was fitted."""

    start: Mixtures
    mixture: Tensor  # −log p of the validation rows by the best mixture, nats
    training: fitting.Validated
    late: fitting.Gain  # in the last part of its seconds
    control: fitting.Gain = (0.0, 0.0)  # of the mixture behind a flow over the flow alone

    @property
    def flow(self) -> Flow:
        return self.training.best.flow

    @property
    def name(self) -> str:
        """The start that won: "flow", or how many Gaussians."""
        gaussians = counted(self.training.best.score.backbone.components, "Gaussian")
        return gaussians if self.flow.is_identity else "flow"

    @property
    def base(self) -> Tensor:
        """−log p of the validation rows by the best mixture, or by the flow with a mixture behind
        it, nats.
        """
        return self.mixture if self.flow.is_identity else self.training.start

    @property
    def gain(self) -> fitting.Gain | None:
        """What the network gained over its start, nats of a row.

        Without a gain it is 0 with the error of the last validation. It is None where that says
        nothing: where the network died, or where the mixture behind the flow found something and
        the network nothing more.
        """
        one = self.training
        if not one.step or one.best_step:
            return None if fitting.is_unknown(one) else one.gain(self.base)
        return (
            None
            if one.is_silenced or fitting.is_gain(*self.control)
            else (0.0, one.error_of_nothing())
        )

    def __str__(self) -> str:
        gain, error = self.training.gain(self.base)
        return (
            f"mixture of {len(self.start.mixtures[0].weight)}, validation {self.start.value:.4f} nats; "
            f"start {self.name}, {self.base.mean():.4f}, {gain:+.4f} ± {error:.4f} by the network, "
            f"at step {self.training.best_step} of {self.training.step}, ended by {self.training.ended}"
        )


class DensityEstimator(NamedColumns, DensityMixin, BaseEstimator):
    r"""The density of a table of numbers: a mixture of Gaussians or a flow, and a diffusion model
    of what it lacks.

    Columns are standardised and decorrelated, and made symmetric before, by a power of each, where
    validation says that it helps (the Jacobian is part of the density). A Gaussian mixture, chosen
    by validation, gives the score of the diffusion in closed form
    (:class:`~indm.tables.networks.MixtureMLP`), and a network learns the rest by maximum likelihood
    (:mod:`indm.tables.fit`) until validation no longer improves. Where the best mixture has several
    components, a fit from one Gaussian is trained, too, and the better of both goes on. From 2,000
    rows on a masked autoregressive flow (:class:`~indm.flows.MaskedFlow`) is a third start: trained
    by its own likelihood, it stays as it is, and the diffusion corrects what its latents are beyond
    a mixture. The density belongs to the probability flow: it integrates to 1, and its ODE is
    solved for each row to 0.05 nats, by an estimate that is two to
    ten times the true error on average; where the network adds nothing, it is the mixture's in
    closed form. Of a small table several models are trained, each validated on other rows, and
    their densities averaged.

    With conditions c, numbers of each row that are given to ``fit`` and the other methods, the
    density is p(x|c): the mixture is one of rows and conditions together, whose law at c has a
    closed form, and the network sees c. By default it is then one Gaussian: from several a fit
    starts better and ends worse.

    For up to 128 columns the divergence of the probability flow is exact. For more it is estimated
    by 8 probes, the same for all rows: log p is then off by a nat or more, and the density does not
    integrate to 1.

    Fitting is deterministic for a given ``random_state`` where ``max_seconds`` ends no part of it;
    else the number of steps depends on the machine's speed.

    Args:
        discrete: columns of whole numbers, by index or name. They get uniform noise in [0, 1), and
            the density becomes a probability of them, the integral over the noise. For one or two
            columns ``score_samples`` is its log, to 1e-3; for more, and where this does not
            converge, a lower bound of it: the mean of the log over the noise.
        bounds: the interval of a column, by index or name, such as ``{"age": (0, None)}``: no draw
            is outside, and the density has mass 1 inside. Rows must be strictly inside; discrete
            columns may equal a bound.
        n_models: models whose densities are averaged; each has its share of ``max_seconds``. By
            default 4 for up to 500 rows, one for each 15 seconds but at most 4 for up to 2,000,
            else 1.
        validation_fraction: share of the rows on which a model is validated, at most half; models
            have different ones.
        max_seconds: of the fit, at most, by the clock on the wall.
        max_steps: of the optimizer, at most, for each model.
        max_components: of the mixture, at most, beside one Gaussian of all rows. By default 50, but
            1 with conditions.
        flow: whether a masked autoregressive flow may be the start, too. By default from 2,000 rows
            on; never with conditions.
        width, depth, dropout: of the network.
        learning_rate, batch_size, weight_decay: of AdamW, at first: the batch grows, and then the
            rate falls. By default 4e-3 and 128, and from 5,000 rows without conditions on 6e-3 and
            512.
        draws: points of the noise at which a row is evaluated where three or more columns are
            discrete.
        verbose: print what is chosen and how validation goes.
        progress: show a bar with the time left on stderr while a call lasts longer than two
            seconds; of the fit, which ``max_seconds`` bounds, there is none.
        random_state: of the split, the noise and the weights.

    Attributes:
        models_: the fitted :class:`~indm.INDM`, of the latents of the columns.
        columns_: the map from rows to latents, :class:`~indm.tables.columns.Columns`, where c is
            standardised.
        n_conditions_: numbers of a condition; 0 without.
        discrete_: indices of the discrete columns.
        constant_: values of the columns that were the same in all rows, which are left out of the
            fit; else NaN.
        starts_: the start of each model that won the race: "flow", or how many Gaussians.
        gains_: what the network of each model gained over its start, nats a row, and the standard
            error of that. None where it is not known whether there is anything to gain: the network
            died at every rate that was tried (see ``learning_rate``), or behind a flow a mixture
            found something and the network nothing more.
        n_steps_: optimizer steps of each model until it was best.
        ended_: optimizer steps that were made of each model, and what ended them: "plateau",
            "max_steps" or "max_seconds".
        sampling_steps_, sampling_error_: steps in which rows are drawn, and the root mean square
            distance of latents, whose deviation is 1, from those in twice as many.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example: rows that are Gaussian, so that no network is needed.

        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(5.0, 2.0, (300, 2))
        >>> estimator = DensityEstimator(max_steps=0, random_state=0).fit(X)
        >>> entropy = 2 * (np.log(2.0) + 0.5 * np.log(2 * np.pi * np.e))
        >>> bool(abs(estimator.score(X) + entropy) < 0.1)  # nats of a row
        True
        >>> estimator.sample(3, random_state=0).shape
        (3, 2)
    """

    # order of the rows, the first of which validate; drawn by default
    _order: np.ndarray | None = None

    def __init__(  # checked by fit, as scikit-learn has it
        self,
        *,
        discrete=(),
        bounds=None,
        n_models=None,
        validation_fraction=0.1,
        max_seconds=60.0,
        max_steps=20_000,
        max_components=None,
        flow=None,
        width=64,
        depth=2,
        dropout=0.1,
        learning_rate=None,
        batch_size=None,
        weight_decay=0.01,
        draws=8,
        verbose=False,
        progress=True,
        random_state=None,
    ):
        self.discrete, self.bounds, self.n_models = discrete, bounds, n_models
        self.validation_fraction = validation_fraction
        self.max_seconds, self.max_steps, self.max_components = (
            max_seconds,
            max_steps,
            max_components,
        )
        self.flow, self.width, self.depth, self.dropout = flow, width, depth, dropout
        self.learning_rate, self.batch_size, self.weight_decay = (
            learning_rate,
            batch_size,
            weight_decay,
        )
        self.draws, self.verbose, self.progress, self.random_state = (
            draws,
            verbose,
            progress,
            random_state,
        )

    # ── scikit-learn's methods ────────────────────────────────────────────────────────────────────

    def fit(self, X, y=None, *, c=None) -> "DensityEstimator":
        """Fit the density of the rows of ``X`` (n, columns), at ``c`` (n, k) where it is given;
        ``y`` is ignored.

        Raises:
            ValueError: an argument out of range; missing or infinite values; fewer than 10 rows; no
                column that varies; an unknown column in ``discrete``, or one with other than whole
                numbers; a value outside of its bounds; another number of rows of ``c``.

        Warns:
            UserWarning: a row is so far from all others that it decides the deviation of a column;
                a column is constant and left out; a column of few values is not among ``discrete``;
                the network found nothing that the mixture lacks.
        """
        began = time.perf_counter(), time.process_time()
        X = self._numbers(X, ensure_min_samples=FEWEST_ROWS)
        n_models = self._checked(len(X))
        self.discrete_ = np.unique(self._indices(self.discrete, "discrete")).astype(int)
        self._check_whole(X)
        X = self._varying(X)
        self._check_bounds(X)
        c = self._fitted_conditions(c, len(X))
        rng = check_random_state(self.random_state)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.randint(2**31 - 1))
            continuous = np.setdiff1d(np.arange(X.shape[1]), self._whole)
            choices = [continuous[:0], continuous] if len(continuous) else [continuous]
            noisy = self._noisy(X, rng)
            tails = [np.zeros(X.shape[1], dtype=bool), *self._far(X, noisy)]
            box = self._interval, best_edges(noisy, c, self._interval)
            maps = [
                Columns.fitted(noisy, c, skewed, far, *box) for far in tails for skewed in choices
            ]
            order, size = rng.permutation(len(X)), max(1, round(self.validation_fraction * len(X)))
            order = order if self._order is None else self._order
            table = Table(X, c)
            fits: list[Fitted] = []
            for i in range(n_models):
                shuffled = table.rows(np.roll(order, -i * size))
                valid, train = (shuffled.rows(part) for part in (slice(size), slice(size, None)))
                until = began[0] + self.max_seconds * (i + 1) / n_models
                fits.append(self._fitted(train, valid, maps, rng, until))
                maps = [fits[-1].start.columns]
                if self.verbose:
                    print(f"model {i + 1}: {fits[-1]}")
                if fits[-1].training.ended == fitting.INTERRUPT:
                    break
        (self.columns_,), trainings = maps, [found.training for found in fits]
        self.models_, self.n_steps_ = (
            [one.best.double() for one in trainings],
            [one.best_step for one in trainings],
        )
        self.ended_, self.starts_ = (
            [(one.step, one.ended) for one in trainings],
            [found.name for found in fits],
        )
        self.gains_ = [found.gain for found in fits]
        beyond, late = (
            [found.training.gain(found.mixture) for found in fits],
            [found.late for found in fits],
        )
        fitting.warn_of_fit(self, beyond, self.ended_, late, began)
        fitting.warn_of_silence(trainings)
        c, seed = c[np.linspace(0, len(c) - 1, solve.DRAWN).astype(int)], rng.randint(2**31 - 1)
        self.sampling_steps_, self.sampling_error_ = solve.steps_for_draws(
            lambda steps: self._latents(c, steps, np.random.RandomState(seed))
        )
        return self

    def score_samples(self, X, c=None, *, tol: float | None = None) -> np.ndarray:
        """log p of each row of ``X`` (at its own row of ``c``), nats, of the units of ``X``: (n,).

        Values do not depend on other rows, up to rounding. Outside of the bounds, and where a
        constant column differs, log p is −∞.

        With discrete columns it is the log of a probability of them times a density of the others,
        or a lower bound.

        ``tol`` is the largest estimate of the ODE's error of a row, nats, by default 0.05. It takes
        less time where it is larger.

        Raises:
            ValueError: missing or infinite values; other than whole numbers in a discrete column;
                another number of columns, or of rows of ``c``.

        Warns:
            ConvergenceWarning: where the ODE's error is above ``tol`` on average, or the ODE of a
            row has no solution.
        """
        check_is_fitted(self)
        X = self._numbers(X, reset=False)
        self._check_whole(X)
        c = self.standardised(c, len(X))
        found, rows = np.full(len(X), -np.inf), self.possible(X, c)
        X, c = X[rows][:, self.varies_], c[rows]
        tol, errors = (
            solve.SOLVER_ERROR if tol is None else tol,
            [torch.zeros(len(self.models_), 0)],
        )

        def log_density(chosen: np.ndarray, points: np.ndarray) -> np.ndarray:
            many = np.repeat(X[chosen], len(points), axis=0)
            many[:, self._whole] += np.tile(points, (len(chosen), 1))
            value, error = self._log_density(many, np.repeat(c[chosen], len(points), axis=0), tol)
            errors.append(error)
            return value.reshape(-1, len(points))

        with solve.bar_of(len(rows), "log p", self.progress) as bar:
            found[rows] = solve.integrated(
                log_density, len(rows), len(self._whole), self.draws, bar
            )
        solve.warn_above(tol, torch.cat(errors, 1), stacklevel=3)
        return found

    def score(self, X, y=None, c=None) -> float:
        """The mean of :meth:`score_samples`; ``y`` is ignored."""
        return float(self.score_samples(X, c).mean())

    def score_bound(
        self, X, c=None, *, pairs: int = 16, random_state: Any = None
    ) -> tuple[float, float]:
        r"""A lower bound of the mean log p of rows, and the standard error of its noise, nats of a
        row; without an ODE.

        It is the NELBO, by so many ``pairs`` of noises n and −n for each row, at most 2,048: −log p
        of the start, which has a closed form, and what the network changes of the bound
        (:func:`indm.mle_loss`). Each pair has its own noise in the discrete columns, which the
        error counts. It takes a tenth of the time of
        :meth:`score`, and belongs to the diffusion, whose density may differ a little from the
        ODE's. Single rows have too much noise. Of several models it is the mean of their bounds,
        which is below the bound of their average.

        Example: where no network is trained, it is the mean log p.

            >>> X = np.random.default_rng(0).normal(5.0, 2.0, (300, 2))
            >>> density = DensityEstimator(max_steps=0, n_models=1, random_state=0).fit(X)
            >>> bound, error = density.score_bound(X)
            >>> bool(abs(bound - density.score(X)) < 1e-6), error
            (True, 0.0)
        """
        check_is_fitted(self)
        fitting.check_count(pairs, "pairs", 2)
        require(pairs <= solve.ROWS_AT_ONCE, "pairs", pairs, f"at most {solve.ROWS_AT_ONCE}")
        X = self._numbers(X, reset=False)
        self._check_whole(X)
        c = self.standardised(c, len(X))
        if len(self.possible(X, c)) < len(X):
            return -math.inf, 0.0
        rng = check_random_state(random_state)
        generator = torch.Generator().manual_seed(rng.randint(2**31 - 1))
        each, size = [], max(1, solve.ROWS_AT_ONCE // pairs)
        draws = pairs if len(self._whole) else 1  # of the noise in the discrete columns
        for rows, at_c in zip(solve.batched(X, size), solve.batched(c, size), strict=True):
            noisy = self._noisy(np.repeat(rows[:, self.varies_], draws, axis=0), rng)
            repeated = np.repeat(at_c, draws, axis=0)
            z, c_of_rows = (
                torch.from_numpy(self.columns_.latents(noisy, repeated)),
                torch.from_numpy(repeated),
            )
            n = pairs // draws
            bounds = torch.stack(
                [fitting.bounds_of(model, z, c_of_rows, n, generator) for model in self.models_]
            )
            values = bounds.mean(0).numpy() + self.columns_.log_volume(noisy)[:, None]
            each.append(values.reshape(len(rows), pairs))
        values = np.concatenate(each)
        return float(values.mean()), float(
            np.sqrt(values.var(1, ddof=1).sum() / pairs) / len(values)
        )

    def sample(
        self, n_samples: int = 1, random_state: Any = None, *, c=None, steps: int | None = None
    ) -> np.ndarray:
        """Rows drawn from the fitted density, (n_samples, columns), in the units of the table.

        ``c`` is one condition for all of them, (k,), or one for each, (n_samples, k). ``steps`` of
        the sampler are by default ``sampling_steps_``, in which draws are off by
        ``sampling_error_``.
        """
        check_is_fitted(self)
        fitting.check_count(n_samples, "n_samples")
        c = self.standardised(c, n_samples)
        latents = self._latents(
            c, self.sampling_steps_ if steps is None else steps, check_random_state(random_state)
        )
        rows = np.tile(self.constant_, (n_samples, 1))
        rows[:, self.varies_] = self.columns_.rows(latents, c)
        rows[:, self.discrete_] = np.floor(rows[:, self.discrete_])
        return rows

    # ── The table ─────────────────────────────────────────────────────────────────────────────────

    def _numbers(self, X: Any, reset: bool = True, **options: Any) -> np.ndarray:
        """Rows as numbers; where scikit-learn finds others in a data frame, an error names all such
        columns.
        """
        X = self._table(X, reset)
        try:
            found = validate_data(self, X, dtype=np.float64, reset=reset, **options)
        except (TypeError, ValueError) as error:
            wrong = [
                f"{kind} in column {i} ({X.columns[i]})"
                for i, kind in enumerate(problems_of(X))
                if kind
            ]
            if wrong:
                takes = f"JointDensityEstimator takes categories and missing entries (NaN); {DATES}"
                raise ValueError(f"X must hold numbers, got {', '.join(wrong)}: {takes}") from error
            raise
        if np.abs(found).max() > LARGEST_X:
            raise ValueError(
                f"X must hold numbers of at most {LARGEST_X:g}, got {np.abs(found).max():g}"
            )
        return found

    def _checked(self, rows: int) -> int:
        """The number of models; ValueError where an argument is out of range."""
        fitting.check_options(self)
        if self.n_models is None:  # few rows are soon overfitted, many take time
            in_time = max(1, int(min(MODELS, self.max_seconds / SECONDS_OF_A_MODEL)))
            return MODELS if rows <= FEW_ROWS else in_time if rows <= MORE_ROWS else 1
        require(
            self.n_models >= 1,
            "n_models",
            self.n_models,
            "at least 1, or None for as suits the rows",
        )
        return self.n_models

    def _check_whole(self, X: np.ndarray) -> None:
        """ValueError for other than whole numbers in a discrete column."""
        for i in self.discrete_.tolist():
            broken = X[X[:, i] != np.floor(X[:, i]), i]
            if len(broken):
                got = f"{broken[0]:g} in {self._name(i)}; multiply it, or leave it out of discrete"
                raise ValueError(f"discrete columns must hold whole numbers, got {got}")

    def _varying(self, X: np.ndarray) -> np.ndarray:
        """The columns of ``X`` that are not constant, or discrete; a warning names the others.

        Raises:
            ValueError: there are none.
        """
        same = are_near(X.min(0), X.max(0))
        same[self.discrete_] = False
        self.constant_, self.varies_ = np.where(same, X[0], np.nan), ~same
        self._whole = np.flatnonzero(np.isin(np.flatnonzero(~same), self.discrete_))
        named = ", ".join(f"{self._name(i)}, {X[0, i]:g}" for i in np.flatnonzero(same))
        if same.all():
            raise ValueError(f"X must vary in a column, got the same value in all rows of {named}")
        if same.any():
            warnings.warn(
                f"left out of the density, as all rows have the same value: {named}", stacklevel=3
            )
        numbers = np.setdiff1d(np.flatnonzero(~same), self.discrete_)
        warn_of_few_values({self._name(i): X[:, i] for i in numbers}, stacklevel=4)
        return X[:, ~same]

    def _check_bounds(self, X: np.ndarray) -> None:
        """Read ``bounds`` as an interval of each varying column.

        Raises:
            ValueError: a pair that is not an interval; a value outside of it, or on its end in a
                column that is not discrete.
        """
        interval = np.array([[-np.inf], [np.inf]]).repeat(self.n_features_in_, 1)
        for column, pair in dict(self.bounds or {}).items():
            i = self._index(column, "bounds")
            low, high = self._interval_of(i, pair)
            interval[:, i] = low, high + (i in self.discrete_)
        self._interval = interval[:, self.varies_]
        low, high = self._interval
        broken = np.argwhere((low > X) | (high < X) | ~self._inside(X))
        if len(broken):
            row, i = broken[0]
            named = self._name(np.flatnonzero(self.varies_)[i])
            raise ValueError(
                f"X must be inside of its bounds, got {X[row, i]:g} in row {row} of {named}, whose bounds are "
                f"{low[i]:g} and {high[i]:g}; widen them, or declare a column of whole numbers in discrete"
            )

    def _inside(self, X: np.ndarray) -> np.ndarray:
        """Mask of the entries of varying columns inside their interval; whole numbers may equal its
        lower end.
        """
        return is_inside(X, self._interval, np.isin(np.arange(X.shape[1]), self._whole))

    def possible(self, X: np.ndarray, c: np.ndarray) -> np.ndarray:
        """The indices of rows inside of the bounds whose constant columns have their values, at any
        ``c``.
        """
        near = are_near(X, self.constant_) | self.varies_
        return np.flatnonzero(near.all(1) & self._inside(X[:, self.varies_]).all(1))

    @property
    def ended_by_(self) -> str:
        """The end of the fit: "time" if ``max_seconds`` ended a model, "steps" for ``max_steps``,
        else "plateau".
        """
        return fitting.ended_by([ended for _, ended in self.ended_])

    def _far(self, X: np.ndarray, noisy: np.ndarray) -> list[np.ndarray]:
        """Columns with values far from all others, a list of one mask or none; a warning names the
        farthest value.
        """
        far = far_columns(noisy) & ~np.isfinite(self._interval).any(0)
        if not far.any():
            return []
        centre, scale = moments_of_most(noisy)
        off = np.where(far, np.abs(noisy - centre) / scale, 0)
        row, i = divmod(int(off.argmax()), off.shape[1])
        named = self._name(np.flatnonzero(self.varies_)[i])
        warnings.warn(
            f"row {row} of X is far from the others: {X[row, i]:g} in {named}, where most rows are within "
            f"{2 * scale[i]:.4g} of {centre[i]:.4g}; where it is an error, correct or drop the row",
            stacklevel=3,
        )
        return [far]

    def _fitted_conditions(self, c, rows: int) -> np.ndarray:
        """Standardised conditions (rows, k) that are to be fitted; without any, k is 0.

        Raises:
            ValueError: they are not finite numbers, or not one row for each of X.
        """
        table = (
            np.zeros((rows, 0))
            if c is None
            else check_array(c, dtype=np.float64, ensure_2d=False, input_name="c")
        )
        table = table[:, None] if table.ndim == 1 else table
        if len(table) != rows:
            raise ValueError(f"c must have {rows} rows, one for each of X, got {len(table)}")
        self.n_conditions_, self._c_names = table.shape[1], names_of(c)
        centre, scale = moments_of_most(table)
        self._c_far = (np.abs(table - centre) > scale * max(FAR, math.sqrt(rows))).any(0)
        self._c_mean, std = np.where(self._c_far, (centre, scale), moments(table))
        self._c_std = np.where(std > 1e-12 * np.abs(self._c_mean), std, 1.0)
        return self._standardised(table)

    def standardised(self, c, rows: int) -> np.ndarray:
        """Standardised conditions (rows, k), of one for all rows or one for each; without any, k is
        0.

        Raises:
            ValueError: there are none where the density was fitted with them, or some where it was
                fitted without, or they are not finite numbers, or not so many.
        """
        k = self.n_conditions_
        if (c is None) != (k == 0):
            wanted = f"{k} numbers for each row" if k else "left out"
            got = "none" if c is None else "some; fit takes it by fit(X, c=c)"
            raise ValueError(f"c must be {wanted}, as it was in fit, got {got}")
        if c is None:
            return np.zeros((rows, 0))
        names = names_of(c)
        if names and self._c_names and names != self._c_names:
            raise ValueError(
                f"c must have the columns {self._c_names} in this order, as in fit, got {names}"
            )
        table = check_array(np.atleast_1d(c), dtype=np.float64, ensure_2d=False, input_name="c")
        if table.ndim == 1:
            table = table[:, None] if k == 1 else table[None]
        if table.shape[1] != k:
            raise ValueError(f"c must have {k} columns, as in fit, got {table.shape[1]}")
        if len(table) not in (1, rows):
            raise ValueError(
                f"c must have {rows} rows, one for each of X, or one for all, got {len(table)}"
            )
        return np.broadcast_to(self._standardised(table), (rows, k))

    def _standardised(self, c: np.ndarray) -> np.ndarray:
        """Conditions of unit scale, and asinh of those where one row has the leverage of all
        others.
        """
        u = (c - self._c_mean) / self._c_std
        return np.where(self._c_far, np.arcsinh(u), u)

    def _noisy(self, X: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
        """``X`` with uniform noise in its discrete columns."""
        noise = np.zeros_like(X)
        # not 0, which may be a bound
        noise[:, self._whole] = 1 - rng.uniform(size=(len(X), len(self._whole)))
        return X + noise

    # ── Models ────────────────────────────────────────────────────────────────────────────────────

    def _fitted(
        self,
        train: Table,
        valid: Table,
        maps: list[Columns],
        rng: np.random.RandomState,
        deadline: float,
    ) -> Fitted:
        """A model of some rows, by the best of ``maps``, validated on others; both are in random
        order.

        It starts from the best mixture, from one Gaussian or from a flow: a race tells which ends
        best.
        """
        repeats = max(1, fitting.VALIDATION_ROWS // len(valid.X))
        most = min(len(valid.X), fitting.VALIDATION_ROWS)
        held, first = (
            part._replace(X=self._noisy(part.X, rng))
            for part in (
                valid.rows(np.repeat(np.arange(most), repeats)),
                train.rows(slice(MIXTURE_ROWS)),
            )
        )
        start = self._start(first, held, maps, rng.randint(2**31 - 1), deadline, repeats)
        data = self._latents_of(start.columns, train, held, repeats, deadline)
        trainings = self._trainings(Identity(), start.mixtures, data)
        is_wanted = data.n >= FLOW_ROWS if self.flow is None else self.flow
        may_flow = is_wanted and self.max_steps and not self.n_conditions_
        flowing = (
            [fitting.FlowTraining(MaskedFlow(data.held.shape[1:]), data.held, repeats)]
            if may_flow
            else []
        )
        best = self._race([*trainings, *flowing], data, self.max_steps)
        late, mixture, control = best.late_gain(), trainings[0].start, (0.0, 0.0)
        if best in flowing:
            best, control = self._corrected(flowing[0], data, rng.randint(2**31 - 1))
        return Fitted(start, mixture, best, max(late, best.late_gain()), control)

    def _latents_of(
        self, columns: Columns, train: Table, held: Table, draws: int, deadline: float
    ) -> Latents:
        """The latents of rows that train, and of rows that validate, which have their noise
        already.
        """
        c = torch.from_numpy(train.c).float()
        if not len(self._whole):  # otherwise a batch has noise of its own
            latents = torch.from_numpy(columns.latents(*train)).float()

        def batch(i: Tensor) -> tuple[Tensor, Tensor]:
            if not len(self._whole):
                return latents[i], c[i]
            noisy = train.rows(i.numpy())
            noisy.X[:, self._whole] += (
                1 - torch.rand(len(i), len(self._whole), dtype=torch.float64).numpy()
            )
            return torch.from_numpy(columns.latents(*noisy)).float(), c[i]

        z, c_held = (torch.from_numpy(part).float() for part in (columns.latents(*held), held.c))
        return Latents(columns, len(train.X), batch, z, c_held, draws, deadline)

    def _trainings(
        self, flow: Flow, mixtures: Sequence[Mixture], data: Latents
    ) -> list[fitting.Training]:
        """Trainings behind ``flow`` that start from mixtures of its latents."""
        models = [self._build(mixture, flow, data.columns) for mixture in mixtures]
        starts = [solve.start_log_prob(solve.at(model, data.c_held), data.held) for model in models]
        with torch.no_grad():
            h, _ = flow(data.held)
        is_large = self._is_large(data.n)
        rate, alone = (
            self.pace(is_large)[1] * (1 if flow.is_identity else BEHIND_A_FLOW),
            fitting.ALONE[is_large],
        )
        revives = data.n >= FEWEST_TO_REVIVE and self.max_seconds >= LEAST_SECONDS
        return [
            fitting.Training(
                model, h, data.c_held, rate, self.weight_decay, data.draws, -start, alone, revives
            )
            for model, start in zip(models, starts, strict=True)
        ]

    def _race(self, trainings: Sequence[fitting.One], data: Latents, max_steps: int) -> fitting.One:
        """The best of trainings on the same rows, in the time that is left."""
        size, _ = self.pace(self._is_large(data.n))
        return fitting.race(trainings, data.batch, data.n, size, max_steps, data.deadline)

    def _is_large(self, rows: int) -> bool:
        """Whether a fit to so many rows has large batches."""
        return rows >= MANY_ROWS and not self.n_conditions_

    def pace(self, is_large: bool) -> tuple[int, float]:
        """The batch size and the learning rate of a fit to many rows, or to few."""
        return self.batch_size or BATCH_SIZES[is_large], self.learning_rate or LEARNING_RATES[
            is_large
        ]

    def _corrected(
        self, flowing: fitting.FlowTraining, data: Latents, seed: int
    ) -> tuple[fitting.Training, fitting.Gain]:
        """A model behind the trained flow, which stays as it is; it starts from a mixture of the
        flow's latents.

        Also the gain of that mixture over the flow alone.
        """
        flow, is_over = flowing.best, flowing.ended == fitting.INTERRUPT

        @torch.no_grad()
        def latents(z: Tensor) -> Tensor:
            return torch.cat([flow.latent(part) for part in z.split(solve.ROWS_AT_ONCE)])

        def behind(i: Tensor) -> tuple[Tensor, Tensor]:
            z, c = data.batch(i)
            return latents(z), c

        first, _ = data.batch(torch.randperm(data.n)[:MIXTURE_ROWS])
        train, held = (
            Table(latents(z).double().numpy(), np.zeros((len(z), 0))) for z in (first, data.held)
        )
        until = time.perf_counter() + fitting.MIXTURE_SHARE * (data.deadline - time.perf_counter())
        mixture = best_mixture(
            train, held, 1 if is_over else self._most_components(), seed, until, data.draws
        )
        trainings = self._trainings(
            flow, with_one_gaussian(mixture, train, held, seed, data.draws), data
        )
        best = self._race(trainings, data._replace(batch=behind), 0 if is_over else self.max_steps)
        best.leave_out_unheard()
        best.ended = fitting.INTERRUPT if is_over else best.ended
        return best, flowing.gain(flowing.lowest, trainings[0].start)

    def _most_components(self) -> int:
        """The largest number of components of a mixture."""
        return (
            (1 if self.n_conditions_ else max(MIXTURE_SIZES))
            if self.max_components is None
            else self.max_components
        )

    def _start(
        self,
        train: Table,
        held: Table,
        maps: list[Columns],
        seed: int,
        deadline: float,
        repeats: int,
    ) -> Mixtures:
        """The best mixture that a share of the time allows, of the latents by one of ``maps``.

        The map is the first, but where the gain of another on the validation rows is more than its
        standard error. Each of these rows stands ``repeats`` times, in other noise.
        """
        now, draws = time.perf_counter(), min(repeats, DRAWS_OF_MIXTURE)
        few, found = held.rows(np.arange(len(held.X)) % repeats < draws), []
        for i, columns in enumerate(maps, 1):
            z, valid = (table._replace(X=columns.latents(*table)) for table in (train, few))
            until = now + fitting.MIXTURE_SHARE * (deadline - now) * i / len(maps)
            mixture = best_mixture(z, valid, self._most_components(), seed, until, draws)
            found.append(
                (columns, mixture, z, valid, mixture.log_prob(*valid) + columns.log_volume(few.X))
            )
        best, *others = found
        for other in others:
            gain = bounded(other[-1] - best[-1], draws)
            best = other if gain.mean() > gain.std() / math.sqrt(len(gain)) else best
        columns, mixture, z, valid, value = best
        return Mixtures(columns, with_one_gaussian(mixture, z, valid, seed, draws), value.mean())

    def _build(self, mixture: Mixture, flow: Flow, columns: Columns) -> INDM:
        """An untrained model behind ``flow`` whose network has the mixture, and the columns if they
        are its latents.
        """
        shape = (int(self.varies_.sum()),)
        condition = Vector(self.n_conditions_) if self.n_conditions_ else None
        seen = condition.seen_shape if condition else ()
        size = len(mixture.weight), self.width, self.depth
        backbone = MixtureMLP(shape, *size, dropout=self.dropout, condition=seen)
        backbone.set_mixture(
            *map(torch.from_numpy, (mixture.weight, mixture.mean, mixture.covariance))
        )
        if flow.is_identity:
            of_columns = np.linalg.inv(columns.whitening), columns.mean, columns.slope
            backbone.set_columns(*map(torch.from_numpy, of_columns))
        narrowest = np.linalg.eigvalsh(mixture.covariance).min()
        # with noise of a hundredth of that variance, at most
        sde = VPSDE(eps=min(fitting.EPS, narrowest / 10))
        return INDM(flow, ScoreModel(backbone, sde), shape=shape, condition=condition)

    def log_densities(self, z: Tensor, c: np.ndarray, steps: int) -> Iterator[Tensor]:
        """log p of latents z (n, d) at standardised c, nats (n,), by each model, with gradients, in
        so many steps.
        """
        for model in self.models_:
            yield solve.log_prob_in_steps(solve.at(model, torch.from_numpy(c)), z, steps)

    def _latents(self, c: np.ndarray, steps: int, rng: np.random.RandomState) -> np.ndarray:
        """A draw at each row of ``c``, from one of the models."""
        chosen = rng.randint(len(self.models_), size=len(c))
        generator = torch.Generator().manual_seed(rng.randint(2**31 - 1))
        latents = np.zeros((len(c), self.varies_.sum()))
        with solve.bar_of(len(c), "draws", self.progress) as bar:
            for i, model in enumerate(self.models_):
                single, own = copy.deepcopy(model).float(), np.flatnonzero(chosen == i)
                for rows in solve.batched(own, solve.ROWS_AT_ONCE):
                    at_c = torch.from_numpy(c[rows]).float() if self.n_conditions_ else None
                    latents[rows] = sample(
                        single, len(rows), c=at_c, steps=steps, generator=generator, **solve.DRAWING
                    )
                    bar.update(len(rows))
        return latents

    def _log_density(self, X: np.ndarray, c: np.ndarray, tol: float) -> tuple[np.ndarray, Tensor]:
        """log of the mean density of the models at rows without discrete columns, nats (n,), and
        the errors of each model's ODE, (k, n).
        """
        latents = self.columns_.latents(X, c)
        parts = list(
            zip(
                *(torch.from_numpy(part).split(solve.ROWS_AT_ONCE) for part in (latents, c)),
                strict=True,
            )
        )
        each = [
            [solve.latent_log_prob(solve.at(model, rows), z, tol) for z, rows in parts]
            for model in self.models_
        ]
        log_prob, errors = ([torch.cat([pair[i] for pair in of]) for of in each] for i in (0, 1))
        return solve.averaged(log_prob).numpy() + self.columns_.log_volume(X), torch.stack(errors)
