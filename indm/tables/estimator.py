"""A density estimator for tables of numbers that fits into scikit-learn: fit, score_samples,
sample.
"""

import copy
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from indm.sampling import sample
from indm.tables import solve
from indm.tables.bound import score_bound
from indm.tables.columns import (
    Array,
    Columns,
    are_near,
    best_edges,
    is_inside,
)
from indm.tables.density import LatentDensity, TableDensity
from indm.tables.fit import INTERRUPT
from indm.tables.named import DATES, FEWEST_ROWS, problems_of, warn_of_few_values
from indm.tables.report import ended_by, warn_of_fit, warn_of_silence
from indm.tables.rows import Conditions, Table, far_mask, noisy
from indm.tables.start import Fits, Fitted

# rows up to which models are averaged: MODELS of them; as many as time allows
FEW_ROWS, MORE_ROWS = 500, 2_000
MODELS, SECONDS_OF_A_MODEL = 4, 15.0  # models, at most; seconds of each above FEW_ROWS


@dataclass(kw_only=True, eq=False, repr=False)
class DensityEstimator(TableDensity, LatentDensity):
    r"""The density of a table of numbers: a Gaussian mixture or a flow, and a diffusion model of
    what it lacks.

    The columns are standardised and decorrelated. If validation says that it helps, a power makes
    each of them symmetric first; the Jacobian is part of the density. Validation chooses a Gaussian
    mixture, which gives the score of the diffusion in closed form
    (:class:`~indm.tables.networks.MixtureMLP`). A network learns the rest by maximum likelihood
    until validation no longer improves (:mod:`indm.tables.race`). If the best mixture has several
    components, a second fit starts from one Gaussian. From 2,000 rows on a third one starts from a
    masked autoregressive flow (:class:`~indm.flows.MaskedFlow`), which is trained by its own
    likelihood; then the flow stays as it is, and the diffusion corrects what a mixture of its
    latents lacks. The best fit is kept. For a small table several models are trained, each
    validated on different rows, and their densities are averaged.

    The density is that of the probability flow: it integrates to 1. Its ODE is solved for each row
    to an estimated error of 0.05 nats, which is two to ten times the true error on average. Where
    the network adds nothing, the density is the mixture's, in closed form.

    With conditions c, numbers of each row that are given to ``fit`` and to the other methods, the
    density is p(x|c). The mixture is then one of rows and conditions together, whose law at c has a
    closed form, and the network sees c. It has one Gaussian by default: from several, a fit starts
    better and ends worse.

    For up to 128 columns the divergence of the probability flow is exact. For more, 8 probes
    estimate it, the same for all rows: log p is then off by a nat or more, and the density does not
    integrate to 1.

    A fit is deterministic for a given ``random_state`` if ``max_seconds`` ends no part of it.
    Otherwise the number of steps depends on the machine's speed.

    Args:
        discrete: columns of whole numbers, by index or name. They get uniform noise in [0, 1), and
            the density becomes a probability of them, the integral over the noise. For one or two
            columns ``score_samples`` is the log of that, to 1e-3. For more, and where this does not
            converge, it is a lower bound: the mean of the log over the noise.
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
        max_components: of the mixture, at most, not counting one Gaussian of all rows. By default
            50, and 1 with conditions.
        flow: whether a masked autoregressive flow may be the start, too. By default from 2,000 rows
            on; never with conditions.
        width, depth, dropout: of the network.
        learning_rate, batch_size, weight_decay: of AdamW at the start; the batch grows, and then
            the rate falls. The defaults are 4e-3 and 128, and from 5,000 rows without conditions on
            6e-3 and 512.
        draws: points of the noise at which a row is evaluated where three or more columns are
            discrete.
        verbose: print what is chosen and how validation goes.
        progress: show a bar with the time left on stderr while a call lasts longer than two
            seconds. The fit shows none: ``max_seconds`` bounds it.
        random_state: of the split, the noise and the weights.

    Attributes:
        models_: the fitted :class:`~indm.INDM`, of the latents of the columns.
        columns_: the map from rows to latents, :class:`~indm.tables.columns.Columns`, where c is
            standardised.
        n_conditions_: numbers of a condition; 0 without.
        discrete_: indices of the discrete columns.
        constant_: values of the columns that were the same in all rows, which the fit leaves out;
            NaN for the others.
        starts_: the start of each model that won the race: "flow", or how many Gaussians.
        gains_: what the network of each model gained over its start, nats a row, and the standard
            error of that. None if it is not known whether there is anything to gain: the network
            died at every rate that was tried (see ``learning_rate``), or, behind a flow, a mixture
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

    n_models: int | None = None
    flow: bool | None = None

    # ── scikit-learn's methods ────────────────────────────────────────────────────────────────────

    def fit(self, X, y=None, *, c=None, order: Array | None = None) -> "DensityEstimator":
        """Fit the density of the rows of ``X`` (n, columns), at ``c`` (n, k) where it is given;
        ``y`` is ignored.

        The first rows in ``order``, (n,), validate. By default the order is drawn.

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
        n_models = self._models_for(len(X))
        self.discrete_ = np.unique(self._indices(self.discrete, "discrete")).astype(int)
        self._check_whole(X)
        X = self._varying(X)
        self._check_bounds(X)
        self._conditions, c = Conditions.fitted(c, len(X))
        self.n_conditions_ = c.shape[1]
        rng = check_random_state(self.random_state)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.randint(2**31 - 1))
            maps = self._maps(X, c, rng)
            drawn = rng.permutation(len(X))
            rows = Table(X, c).rows(drawn if order is None else order)
            fits = self._fits(rows, n_models, maps, rng, began[0])
        self._keep(fits)
        beyond = [found.training.gain(found.mixture) for found in fits]
        warn_of_fit(self, beyond, self.ended_, [found.late for found in fits], began)
        warn_of_silence([found.training for found in fits])
        c = c[np.linspace(0, len(c) - 1, solve.DRAWN).astype(int)]
        seed = rng.randint(2**31 - 1)
        self.sampling_steps_, self.sampling_error_ = solve.steps_for_draws(
            lambda steps: self._latents(c, steps, np.random.RandomState(seed))
        )
        return self

    def _maps(self, X: Array, c: Array, rng: np.random.RandomState) -> list[Columns]:
        """The maps to latents that are tried: with powers or without, with asinh or without."""
        continuous = np.setdiff1d(np.arange(X.shape[1]), self._whole)
        choices = [continuous[:0], continuous] if len(continuous) else [continuous]
        x = noisy(X, self._whole, rng)
        names = [self._name(i) for i in np.flatnonzero(self.varies_)]
        far = far_mask(X, x, self._interval, names)
        none = np.zeros_like(far)
        tails = [none, far] if far.any() else [none]
        box = self._interval, best_edges(x, c, self._interval)
        return [Columns.fitted(x, c, skewed, far, *box) for far in tails for skewed in choices]

    def _fits(
        self,
        table: Table,
        n_models: int,
        maps: list[Columns],
        rng: np.random.RandomState,
        began: float,
    ) -> list[Fitted]:
        """Models that are validated on different rows, each in its share of the seconds."""
        size = self._held_rows(len(table.X))
        start = Fits(self, self._whole, self.n_conditions_)
        order = np.arange(len(table.X))
        fits: list[Fitted] = []
        for i in range(n_models):
            shuffled = table.rows(np.roll(order, -i * size))
            valid, train = shuffled.rows(slice(size)), shuffled.rows(slice(size, None))
            until = began + self.max_seconds * (i + 1) / n_models
            fits.append(start.fitted(train, valid, maps, rng, until))
            maps = [fits[-1].start.columns]
            if self.verbose:
                print(f"model {i + 1}: {fits[-1]}")
            if fits[-1].training.ended == INTERRUPT:
                break
        return fits

    def _keep(self, fits: list[Fitted]) -> None:
        trainings = [found.training for found in fits]
        self.columns_ = fits[0].start.columns
        self.models_ = [one.best.double() for one in trainings]
        self.n_steps_ = [one.best_step for one in trainings]
        self.ended_ = [(one.step, one.ended) for one in trainings]
        self.starts_ = [found.name for found in fits]
        self.gains_ = [found.gain for found in fits]

    def score_samples(self, X, c=None, *, tol: float | None = None) -> Array:
        """log p of each row of ``X`` (at its own row of ``c``), nats, of the units of ``X``: (n,).

        Values do not depend on other rows, up to rounding. Outside of the bounds, and where a
        constant column differs, log p is −∞.

        With discrete columns it is the log of a probability of them times a density of the others,
        or a lower bound.

        ``tol`` is the largest estimated error of the ODE for a row, nats, by default 0.05. A larger
        one takes less time.

        Raises:
            ValueError: missing or infinite values; other than whole numbers in a discrete column;
                another number of columns, or of rows of ``c``.

        Warns:
            ConvergenceWarning: where the ODE's error is above ``tol`` on average, or the ODE of a
            row has no solution.
        """
        check_is_fitted(self)
        X = self._read(X)
        c = self.standardised(c, len(X))
        found = np.full(len(X), -np.inf)
        rows = self.possible(X, c)
        X, c = X[rows][:, self.varies_], c[rows]
        tol = solve.SOLVER_ERROR if tol is None else tol
        errors = [torch.zeros(len(self.models_), 0)]

        def log_density(chosen: Array, points: Array) -> Array:
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

        The bound is −NELBO: log p of the start, which has a closed form, and what the network
        changes (:func:`indm.mle_loss`), by ``pairs`` of noises n and −n for each row, at most
        2,048. Each pair has its own noise in the discrete columns, which the error counts. It takes
        a tenth of the time of :meth:`score`. It belongs to the diffusion, whose density may differ
        a little from the ODE's, and for single rows it has too much noise. For several models it is
        the mean of their bounds, which is below the bound of their average.

        Example: where no network is trained, it is the mean log p.

            >>> X = np.random.default_rng(0).normal(5.0, 2.0, (300, 2))
            >>> density = DensityEstimator(max_steps=0, n_models=1, random_state=0).fit(X)
            >>> bound, error = density.score_bound(X)
            >>> bool(abs(bound - density.score(X)) < 1e-6), error
            (True, 0.0)
        """
        return score_bound(self, X, c, pairs, random_state)

    def sample(
        self, n_samples: int = 1, random_state: Any = None, *, c=None, steps: int | None = None
    ) -> Array:
        """Rows drawn from the fitted density, (n_samples, columns), in the units of the table.

        ``c`` is one condition for all of them, (k,), or one for each, (n_samples, k). ``steps`` of
        the sampler are by default ``sampling_steps_``, in which draws are off by
        ``sampling_error_``.
        """
        check_is_fitted(self)
        c = self.standardised(c, n_samples)
        steps = self.sampling_steps_ if steps is None else steps
        latents = self._latents(c, steps, check_random_state(random_state))
        rows = np.tile(self.constant_, (n_samples, 1))
        rows[:, self.varies_] = self.columns_.rows(latents, c)
        rows[:, self.discrete_] = np.floor(rows[:, self.discrete_])
        return rows

    # ── The table ─────────────────────────────────────────────────────────────────────────────────

    def _numbers(self, X: Any, reset: bool = True, **options: Any) -> Array:
        """Rows as numbers; where scikit-learn finds others in a data frame, an error names all such
        columns.
        """
        X = self._table(X, reset)
        try:
            return validate_data(self, X, dtype=np.float64, reset=reset, **options)
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

    def _models_for(self, rows: int) -> int:
        """The number of models for so many rows."""
        if self.n_models is not None:
            return self.n_models
        if rows <= FEW_ROWS:  # few rows are soon overfitted, many take time
            return MODELS
        in_time = max(1, int(min(MODELS, self.max_seconds / SECONDS_OF_A_MODEL)))
        return in_time if rows <= MORE_ROWS else 1

    def _read(self, X: Any) -> Array:
        """Rows of a table like the fitted one, as numbers."""
        X = self._numbers(X, reset=False)
        self._check_whole(X)
        return X

    def _check_whole(self, X: Array) -> None:
        """ValueError for other than whole numbers in a discrete column."""
        for i in self.discrete_.tolist():
            broken = X[X[:, i] != np.floor(X[:, i]), i]
            if len(broken):
                got = f"{broken[0]:g} in {self._name(i)}; multiply it, or leave it out of discrete"
                raise ValueError(f"discrete columns must hold whole numbers, got {got}")

    def _varying(self, X: Array) -> Array:
        """The columns of ``X`` that are not constant, or discrete; a warning names the others."""
        same = are_near(X.min(0), X.max(0))
        same[self.discrete_] = False
        self.constant_ = np.where(same, X[0], np.nan)
        self._whole = np.flatnonzero(np.isin(np.flatnonzero(~same), self.discrete_))
        named = ", ".join(f"{self._name(i)}, {X[0, i]:g}" for i in np.flatnonzero(same))
        if same.any():
            warnings.warn(
                f"left out of the density, as all rows have the same value: {named}", stacklevel=3
            )
        numbers = np.setdiff1d(np.flatnonzero(~same), self.discrete_)
        warn_of_few_values({self._name(i): X[:, i] for i in numbers}, stacklevel=4)
        return X[:, ~same]

    def _check_bounds(self, X: Array) -> None:
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

    def _inside(self, X: Array) -> Array:
        """Mask of the entries of varying columns inside their interval; whole numbers may equal its
        lower end.
        """
        return is_inside(X, self._interval, np.isin(np.arange(X.shape[1]), self._whole))

    def possible(self, X: Array, c: Array) -> Array:
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
        return ended_by([ended for _, ended in self.ended_])

    def standardised(self, c, rows: int) -> Array:
        """Standardised conditions (rows, k), of one for all rows or one for each; see
        :meth:`Conditions.standardised`.
        """
        return self._conditions.standardised(c, rows)

    # ── Models ────────────────────────────────────────────────────────────────────────────────────

    def log_densities(self, z: Tensor, c: Array, steps: int) -> Iterator[Tensor]:
        """log p of latents z (n, d) at standardised c, nats (n,), by each model, with gradients, in
        so many steps.
        """
        for model in self.models_:
            yield solve.log_prob_in_steps(solve.at(model, torch.from_numpy(c)), z, steps)

    def _latents(self, c: Array, steps: int, rng: np.random.RandomState) -> Array:
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

    def _log_density(self, X: Array, c: Array, tol: float) -> tuple[Array, Tensor]:
        """log of the mean density of the models at rows without discrete columns, nats (n,), and
        the errors of each model's ODE, (k, n).
        """
        latents = torch.from_numpy(self.columns_.latents(X, c))
        parts = zip(
            latents.split(solve.ROWS_AT_ONCE),
            torch.from_numpy(c).split(solve.ROWS_AT_ONCE),
            strict=True,
        )
        rows = [*parts]
        values, errors = [], []
        for model in self.models_:
            each = [solve.latent_log_prob(solve.at(model, at_c), z, tol) for z, at_c in rows]
            values.append(torch.cat([value for value, _ in each]))
            errors.append(torch.cat([error for _, error in each]))
        log_p = solve.averaged(values).numpy() + self.columns_.log_volume(X)
        return log_p, torch.stack(errors)
