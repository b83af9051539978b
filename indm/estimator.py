"""A density estimator for tables of numbers that fits into scikit-learn: fit, score_samples, sample."""

import copy
import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from scipy.stats import qmc
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor, nn

from indm.columns import Columns, far_columns, moments, moments_of_most
from indm.conditions import Vector
from indm.flows.base import Identity
from indm.gaussian import GaussianReference
from indm.likelihood import START, WhitenedFlow
from indm.model import INDM
from indm.nets.mixture import MixtureMLP
from indm.objective import mle_loss
from indm.ode import rademacher
from indm.sampling import sample
from indm.score import ScoreModel
from indm.sde.linear import VPSDE
from indm.tensors import evaluation_mode, event_sum, expand_like
from indm.training.step import EMA, learning_rate_factor, optimizer_step

FEWEST_ROWS = 10  # of a table
FEW_ROWS = 2_000  # up to which several models are averaged
COMPONENTS = (1, 2, 3, 5, 8, 12, 20, 32)  # of a mixture that is tried
FLOORS, EM_STEPS = (1e-2, 1e-3, 1e-1), 50  # of its covariances; of its fit, at most
MIXTURE_ROWS, MIXTURE_SHARE = 5_000, 0.2  # to fit a mixture on; the share of the budget that may go to it
DRAWS_OF_MIXTURE = 8  # of the noise of discrete columns, to validate it
VALIDATION_ROWS = 4_096  # noised at every validation, at most
CHECK_EVERY = 50  # steps
PATIENCE, CUTS, CUT = 10, 1, 0.2  # checks without a better one until the rate is cut, how often, and by what
WARMUP, DECAY = 50, 0.3  # steps; the share of the budget in which the rate falls to 0
EMA_DECAY, BETAS, CLIP = 0.99, (0.9, 0.99), 1.0
EPS = 1e-4  # truncation of the diffusion
MOST_EXACT, PROBES = 40, 8  # columns up to which the divergence is exact; probes above
ROWS_AT_ONCE = 2_048
SOLVER_ERROR = 0.05  # nats of a row; its estimate is some ten times the true error
POINTS = ((1,), (4, 8, 16, 32), (4, 8, 16))  # of Gauss and Legendre in each of none, one or two discrete columns
CHANGE = 5e-3  # of a probability, relative, by twice as many points; its error is then mostly below 1e-3
ROUNDING = 8 * np.finfo(np.float64).eps  # by which the values of a constant column may differ, relative

Rows = tuple[np.ndarray, np.ndarray]  # of a table, and their conditions


class DensityEstimator(DensityMixin, BaseEstimator):
    r"""The density of a table of numbers: a mixture of Gaussians, and a diffusion model of what the mixture lacks.

    Columns are standardised and decorrelated, and made symmetric before, by a power of each, where validation says that
    it helps (the Jacobian is part of the density). A Gaussian mixture, chosen by validation, gives the score of the
    diffusion in closed form (:class:`~indm.nets.MixtureMLP`), and a network learns the rest by maximum likelihood until
    validation no longer improves. The density is that of the probability flow: it integrates to 1, and its ODE is
    solved for each row to 0.05 nats, by an estimate that is some ten times the true error. Of a small table further
    models are trained while time remains, each validated on other rows, and their densities averaged.

    With conditions c, numbers of each row that are given to ``fit`` and the other methods, the density is p(x|c): the
    columns are first freed of what is linear in c, and the network sees c. Of a mixture, which cannot follow c, one
    Gaussian is left.

    For up to 40 columns the divergence of the probability flow is exact. For more it is estimated by 8 probes, the same
    for all rows, which adds noise to log p.

    Fitting is deterministic for a given ``random_state`` where it ends by itself or by ``max_steps``. Where it ends by
    ``max_seconds``, the number of steps depends on the machine's speed.

    Args:
        discrete: columns of whole numbers, by index or name. They get uniform noise in [0, 1), and the density becomes
            a probability of them, the integral over the noise. For one or two columns ``score_samples`` is its log, to
            1e-3; for more, and where this does not converge, a lower bound of it: the mean of the log over the noise.
        n_models: models whose densities are averaged, at most: those that ``max_seconds`` leaves time for. By default 4
            for up to 2,000 rows, else 1.
        validation_fraction: share of the rows on which a model is validated, at most half; models have different ones.
        max_seconds: of the fit, at most.
        max_steps: of the optimizer, at most, for each model.
        max_components: of the mixture. By default 32, but 1 with conditions, which a mixture cannot follow.
        width, depth: of the network.
        learning_rate, batch_size, weight_decay: of AdamW.
        draws: points of the noise at which a row is evaluated where three or more columns are discrete.
        verbose: print what is chosen and how validation goes.
        random_state: of the split, the noise and the weights.

    Attributes:
        models_: the fitted :class:`~indm.INDM`, of the latents of the columns.
        columns_: the map from rows to latents, :class:`~indm.columns.Columns`, where c is standardised.
        n_conditions_: numbers of a condition; 0 without.
        discrete_: indices of the discrete columns.
        n_steps_: optimizer steps of each model until it was best.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:

        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(5.0, 2.0, (300, 2))
        >>> estimator = DensityEstimator(max_steps=20, n_models=1, random_state=0).fit(X)
        >>> entropy = 2 * (np.log(2.0) + 0.5 * np.log(2 * np.pi * np.e))
        >>> bool(abs(estimator.score(X) + entropy) < 0.1)  # nats of a row
        True
        >>> estimator.sample(3, random_state=0).shape
        (3, 2)
    """

    def __init__(  # checked by fit, as scikit-learn has it
        self,
        *,
        discrete=(),
        n_models=None,
        validation_fraction=0.1,
        max_seconds=60.0,
        max_steps=20_000,
        max_components=None,
        width=64,
        depth=2,
        learning_rate=3e-3,
        batch_size=256,
        weight_decay=0.01,
        draws=8,
        verbose=False,
        random_state=None,
    ):
        self.discrete = discrete
        self.n_models = n_models
        self.validation_fraction = validation_fraction
        self.max_seconds = max_seconds
        self.max_steps = max_steps
        self.max_components = max_components
        self.width = width
        self.depth = depth
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.draws = draws
        self.verbose = verbose
        self.random_state = random_state

    # ── scikit-learn's methods ──────────────────────────────────────────────────────────────────────────────────────

    def fit(self, X, y=None, *, c=None) -> "DensityEstimator":
        """Fit the density of the rows of ``X`` (n, columns), at ``c`` (n, k) where it is given; ``y`` is ignored.

        Raises:
            ValueError: an argument out of range; missing or infinite values; fewer than 10 rows; a constant column; a
                discrete column that is none or has other than whole numbers; another number of rows of ``c``.

        Warns:
            UserWarning: a row is so far from all others that it decides the deviation of a column.
        """
        started = perf_counter()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=FEWEST_ROWS)
        n_models = self._checked(len(X))
        self.discrete_ = self._indices()
        self._check_columns(X)
        c = self._fitted_conditions(c, len(X))
        numbers = check_random_state(self.random_state)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(numbers.randint(2**31 - 1))
            continuous = np.setdiff1d(np.arange(X.shape[1]), self.discrete_)
            choices = [continuous[:0], continuous] if len(continuous) else [continuous]
            noisy = self._noisy(X, numbers)
            tails = [np.zeros(X.shape[1], dtype=bool), *self._far(X, noisy)]
            maps = [Columns.fitted(noisy, c, skewed, far) for far in tails for skewed in choices]
            order, size = numbers.permutation(len(X)), max(1, round(self.validation_fraction * len(X)))
            self.models_, self.n_steps_ = [], []
            for i in range(n_models):
                is_valid = np.zeros(len(X), dtype=bool)
                is_valid[order[np.arange(i * size, (i + 1) * size) % len(X)]] = True
                parts = (X[~is_valid], c[~is_valid]), (X[is_valid], c[is_valid])
                fitting = self._fitted(*parts, maps, numbers, started + self.max_seconds)
                maps = [self.columns_]
                if fitting.in_time or i == 0:
                    self.models_.append(fitting.best_model.double())
                    self.n_steps_.append(fitting.best_step)
                if not fitting.in_time:
                    break
        return self

    def score_samples(self, X, c=None) -> np.ndarray:
        """log p of each row of ``X`` (at its own row of ``c``), nats, of the units of ``X``: (n,).

        No value depends on another row.

        With discrete columns it is the log of a probability of them times a density of the others, or a lower bound.

        Raises:
            ValueError: missing or infinite values; other than whole numbers in a discrete column; another number of
                columns, or of rows of ``c``.

        Warns:
            ConvergenceWarning: where the ODE's error is above 0.05 nats on average.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        self._check_whole(X)
        c = self._conditions(c, len(X))
        found, rows, before = np.zeros(len(X)), np.arange(len(X)), np.full(len(X), np.inf)
        for points, weight in self._noise_rules():
            many = np.repeat(X[rows], len(points), axis=0)
            many[:, self.discrete_] += np.tile(points, (len(rows), 1))
            log_density = self._log_density(many, np.repeat(c[rows], len(points), axis=0)).reshape(-1, len(points))
            integral = logsumexp(log_density, axis=1, b=weight)
            is_left = np.abs(integral - before) > CHANGE
            found[rows] = np.where(is_left, log_density @ weight, integral)  # the former is below the log by Jensen
            rows, before = rows[is_left], integral[is_left]
            if not len(rows):
                break
        return found

    def score(self, X, y=None, c=None) -> float:
        """The mean of :meth:`score_samples`; ``y`` is ignored."""
        return float(self.score_samples(X, c).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None, *, c=None) -> np.ndarray:
        """Rows drawn from the fitted density, (n_samples, columns), in the units of the table.

        ``c`` is one condition for all of them, (k,), or one for each, (n_samples, k).
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}")
        numbers = check_random_state(random_state)
        generator = torch.Generator().manual_seed(numbers.randint(2**31 - 1))
        c = self._conditions(c, n_samples)
        options: dict[str, Any] = {"sampler": "ode", "last_denoising": False, "batch_size": ROWS_AT_ONCE}
        chosen, latents = numbers.randint(len(self.models_), size=n_samples), np.zeros((n_samples, self.n_features_in_))
        for i, model in enumerate(self.models_):
            own = np.flatnonzero(chosen == i)
            if len(own):
                at = torch.from_numpy(c[own]) if self.n_conditions_ else None
                latents[own] = sample(model, len(own), c=at, generator=generator, **options).numpy()
        rows = self.columns_.rows(latents, c)
        rows[:, self.discrete_] = np.floor(rows[:, self.discrete_])
        return rows

    # ── The table ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _checked(self, rows: int) -> int:
        """The number of models.

        Raises:
            ValueError: an argument out of range.
        """
        optional = {} if self.max_components is None else {"max_components": 1}
        for name, least in (optional | dict(max_steps=0, width=1, depth=1, batch_size=1, draws=2)).items():
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        for name in ("max_seconds", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if not 0 < self.validation_fraction <= 0.5:
            raise ValueError(
                f"validation_fraction must be above 0 and at most 0.5, got {self.validation_fraction!r}; 0.1 is usual"
            )
        n_models = (4 if rows <= FEW_ROWS else 1) if self.n_models is None else self.n_models
        if n_models < 1:
            raise ValueError(f"n_models must be at least 1, or None for as many as suit the rows, got {n_models!r}")
        return n_models

    def _indices(self) -> np.ndarray:
        """The indices of the discrete columns."""
        names = list(getattr(self, "feature_names_in_", ()))
        indices = []
        for column in self.discrete:
            if isinstance(column, str) and column in names:
                indices.append(names.index(column))
            elif isinstance(column, int | np.integer) and 0 <= column < self.n_features_in_:
                indices.append(int(column))
            else:
                known = f"the names {', '.join(names)}, or " if names else ""
                raise ValueError(
                    f"discrete must hold columns of X ({known}indices 0 … {self.n_features_in_ - 1}), got {column!r}"
                )
        return np.array(sorted(set(indices)), dtype=int)

    def _name(self, i: int) -> str:
        """A column in words."""
        named = getattr(self, "feature_names_in_", None)
        return f"column {i}" if named is None else f"column {i} ({named[i]})"

    def _check_whole(self, X: np.ndarray) -> None:
        """ValueError for other than whole numbers in a discrete column."""
        for i in self.discrete_.tolist():
            broken = X[X[:, i] != np.floor(X[:, i]), i]
            if len(broken):
                raise ValueError(
                    f"discrete columns must hold whole numbers, got {broken[0]:g} in {self._name(i)}; multiply it, or "
                    "leave it out of discrete"
                )

    def _check_columns(self, X: np.ndarray) -> None:
        """ValueError for a constant column, and for a discrete one with other than whole numbers."""
        self._check_whole(X)
        for i in np.setdiff1d(np.arange(X.shape[1]), self.discrete_).tolist():
            low, high = X[:, i].min().item(), X[:, i].max().item()
            if high - low <= ROUNDING * max(abs(low), abs(high)):
                got = f"{low:g} in all rows of" if low == high else f"no more than rounding, {low!r} to {high!r}, in"
                raise ValueError(
                    f"X must vary in every column, got {got} {self._name(i)}, which has no density; drop it, or "
                    "declare it in discrete"
                )

    def _far(self, X: np.ndarray, noisy: np.ndarray) -> list[np.ndarray]:
        """Which columns have values far from all others, if any does; a warning names the farthest."""
        far = far_columns(noisy)
        if not far.any():
            return []
        centre, scale = moments_of_most(noisy)
        off = np.where(far, np.abs(noisy - centre) / scale, 0)
        row, i = divmod(int(off.argmax()), off.shape[1])
        warnings.warn(
            f"row {row} of X is far from the others: {X[row, i]:g} in {self._name(i)}, where most rows are within "
            f"{2 * scale[i]:.2g} of {centre[i]:.2g}; where it is an error, correct or drop the row",
            stacklevel=3,
        )
        return [far]

    def _fitted_conditions(self, c, rows: int) -> np.ndarray:
        """Standardised conditions (rows, k) that are to be fitted; without any, k is 0.

        Raises:
            ValueError: they are not finite numbers, or not one row for each of X.
        """
        table = np.zeros((rows, 0)) if c is None else check_array(c, dtype=np.float64, ensure_2d=False, input_name="c")
        table = table[:, None] if table.ndim == 1 else table
        if len(table) != rows:
            raise ValueError(f"c must have {rows} rows, one for each of X, got {len(table)}")
        self.n_conditions_ = table.shape[1]
        self._c_mean, std = moments(table)
        self._c_std = np.where(std > 1e-12 * np.abs(self._c_mean), std, 1.0)
        return (table - self._c_mean) / self._c_std

    def _conditions(self, c, rows: int) -> np.ndarray:
        """Standardised conditions (rows, k), of one for all rows or one for each; without any, k is 0.

        Raises:
            ValueError: there are none where the density was fitted with them, or some where it was fitted without, or
                they are not finite numbers, or not so many.
        """
        k = self.n_conditions_
        if (c is None) != (k == 0):
            wanted = f"{k} numbers for each row" if k else "left out"
            raise ValueError(f"c must be {wanted}, as it was in fit, got {'none' if c is None else 'some'}")
        if c is None:
            return np.zeros((rows, 0))
        table = check_array(np.atleast_1d(c), dtype=np.float64, ensure_2d=False, input_name="c")
        if table.ndim == 1:
            table = table[:, None] if k == 1 else table[None]
        if table.shape[1] != k:
            raise ValueError(f"c must have {k} columns, as in fit, got {table.shape[1]}")
        if len(table) not in (1, rows):
            raise ValueError(f"c must have {rows} rows, one for each of X, or one for all, got {len(table)}")
        return np.broadcast_to((table - self._c_mean) / self._c_std, (rows, k))

    def _noisy(self, X: np.ndarray, numbers: np.random.RandomState) -> np.ndarray:
        """``X`` with uniform noise in its discrete columns."""
        noise = np.zeros_like(X)
        noise[:, self.discrete_] = numbers.uniform(size=(len(X), len(self.discrete_)))
        return X + noise

    def _noise_rules(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Points of the noise (n, discrete columns) and their weights (n,), each set finer than that before."""
        k = len(self.discrete_)
        if k >= len(POINTS):
            yield qmc.LatinHypercube(k, scramble=False, rng=0).random(self.draws), np.full(self.draws, 1 / self.draws)
            return
        for n in POINTS[k]:
            node, weight = np.polynomial.legendre.leggauss(n)
            grid = [np.array(list(itertools.product(part, repeat=k))) for part in (0.5 + 0.5 * node, 0.5 * weight)]
            yield grid[0], grid[1].prod(1)

    # ── Models ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _fitted(
        self,
        training: Rows,
        validation: Rows,
        maps: list[Columns],
        numbers: np.random.RandomState,
        deadline: float,
    ) -> "_Fitting":
        """A model of the rows and conditions ``training``, by the best of ``maps``, which becomes ``columns_``."""
        (train, c), (valid, c_valid) = training, validation
        started, repeats = perf_counter(), max(1, VALIDATION_ROWS // len(valid))
        many, c_held = (np.repeat(part[:VALIDATION_ROWS], repeats, axis=0) for part in (valid, c_valid))
        held_rows = self._noisy(many, numbers)
        thinned = slice(None, None, max(1, repeats // DRAWS_OF_MIXTURE))
        self.columns_, mixture = self._start(
            (self._noisy(train[:MIXTURE_ROWS], numbers), c[:MIXTURE_ROWS]),
            (held_rows[thinned], c_held[thinned]),
            maps,
            numbers.randint(2**31 - 1),
            MIXTURE_SHARE * (deadline - started),
        )
        held, volume = self.columns_.latents(held_rows, c_held), self.columns_.log_volume(held_rows).mean()
        model = self._build(mixture.n_components, self.width, self.depth)
        law = mixture.weights_, mixture.means_, mixture.covariances_
        model.score.backbone.set_mixture(*map(torch.from_numpy, law))
        validation_set = torch.from_numpy(held).float(), torch.from_numpy(c_held).float()
        fitting = _Fitting(model, self.learning_rate, self.weight_decay, *validation_set)
        latents, c_train = torch.from_numpy(self.columns_.latents(train, c)).float(), torch.from_numpy(c).float()
        loader = _batches(len(train), self.batch_size)
        while fitting.step < self.max_steps and not fitting.is_over:
            spent = (perf_counter() - started) / max(deadline - started, 1e-9)
            if spent >= 1:
                fitting.in_time = False
                break
            rows = next(loader)
            x = self._redrawn(train[rows.numpy()], c[rows.numpy()]) if len(self.discrete_) else latents[rows]
            fitting.train(x, c_train[rows], min(1.0, (1 - spent) / DECAY))
        fitting.check()
        if self.verbose:
            first, best = (value + volume for value in (fitting.first, fitting.best))
            print(
                f"model {len(self.models_) + 1}: {mixture.n_components} Gaussians, validation {first:.4f} nats, "
                f"{best:.4f} at step {fitting.best_step} of {fitting.step}"
                + ("" if fitting.in_time else f"; ended by max_seconds {self.max_seconds:g}")
            )
        return fitting

    def _start(
        self, training: Rows, validation: Rows, maps: list[Columns], seed: int, seconds: float
    ) -> tuple[Columns, GaussianMixture]:
        """The best mixture that can be fitted in that time, and its map: the first but where another is clearly better.

        That is where its gain on the validation rows is more than its standard error.
        """
        started, found = perf_counter(), []
        for i, columns in enumerate(maps, 1):
            train, valid = columns.latents(*training), columns.latents(*validation)
            mixture = self._mixture(train, valid, seed, until=started + seconds * i / len(maps))
            found.append((columns, mixture, mixture.score_samples(valid) + columns.log_volume(validation[0])))
        best = found[0]
        for other in found[1:]:
            gain = other[2] - best[2]
            best = other if gain.mean() > gain.std() / math.sqrt(len(gain)) else best
        return best[:2]

    def _mixture(self, train: np.ndarray, valid: np.ndarray, seed: int, until: float) -> GaussianMixture:
        """The Gaussian mixture of the best validation, of those that can be fitted until then."""
        scored: list[tuple[float, GaussianMixture]] = []
        most = (1 if self.n_conditions_ else max(COMPONENTS)) if self.max_components is None else self.max_components
        for components in (k for k in COMPONENTS if k == 1 or k <= min(most, len(train) // 5)):
            for floor in FLOORS:
                if scored and perf_counter() > until:
                    break
                mixture = GaussianMixture(components, reg_covar=floor, max_iter=EM_STEPS, random_state=seed)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    mixture.fit(train)
                scored.append((mixture.score(valid), mixture))
        return max(scored, key=lambda pair: pair[0])[1]

    def _redrawn(self, X: np.ndarray, c: np.ndarray) -> Tensor:
        """Latents of rows with new noise in their discrete columns."""
        noisy = X.copy()
        noisy[:, self.discrete_] += torch.rand(len(X), len(self.discrete_)).numpy()
        return torch.from_numpy(self.columns_.latents(noisy, c)).float()

    def _build(self, components: int, width: int, depth: int) -> INDM:
        shape = (self.n_features_in_,)
        condition = Vector(self.n_conditions_) if self.n_conditions_ else None
        seen = condition.seen_shape if condition else ()
        backbone = MixtureMLP(shape, components, width, depth, condition=seen)
        return INDM(Identity(), ScoreModel(backbone, VPSDE(eps=EPS)), shape=shape, condition=condition)

    def _log_density(self, X: np.ndarray, c: np.ndarray) -> np.ndarray:
        """log of the mean density of the models at rows without discrete columns, nats (n,)."""
        latents = self.columns_.latents(X, c)
        parts_of = [torch.from_numpy(part).split(ROWS_AT_ONCE) for part in (latents, c)]
        found = [
            [_log_prob(_at(model, rows), part) for part, rows in zip(*parts_of, strict=True)] for model in self.models_
        ]
        errors = torch.stack([torch.cat([error for _, error in parts]) for parts in found])
        if errors.mean() > SOLVER_ERROR:
            warnings.warn(
                f"log p is off by about {errors.mean():.2g} nats on average, and {errors.max():.2g} at most, where the "
                "density is narrow; rows far from all that were fitted are the usual cause",
                ConvergenceWarning,
                stacklevel=3,
            )
        log_prob = torch.stack([torch.cat([value for value, _ in parts]) for parts in found])
        return (log_prob.logsumexp(0) - math.log(len(found))).numpy() + self.columns_.log_volume(X)

    # ── Pickles hold plain arrays ───────────────────────────────────────────────────────────────────────────────────

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "models_" in state:
            state = {**state, "models_": [_as_arrays(model) for model in state["models_"]]}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "models_" in state:
            self.models_ = [self._restored(*parts) for parts in state["models_"]]

    def _restored(self, size: tuple[int, int, int], arrays: dict[str, np.ndarray]) -> INDM:
        model = self._build(*size).double()
        model.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})
        return model.eval().requires_grad_(False)


@dataclass
class _Fitting:
    """A model in training: its average, its best validated state, and a rate that is cut where that no longer improves.

    Args:
        model: what is trained.
        learning_rate, weight_decay: of AdamW.
        held, c_held: latents on which it is validated, and their conditions.
    """

    model: INDM
    learning_rate: float
    weight_decay: float
    held: Tensor
    c_held: Tensor

    def __post_init__(self):
        groups = [{"name": "model", "params": list(self.model.parameters())}]
        self.optimizer = torch.optim.AdamW(
            groups, self.learning_rate, betas=BETAS, weight_decay=self.weight_decay, fused=True
        )
        self.ema = EMA(self.model, EMA_DECAY)
        self.step = self.best_step = self.since = self.cuts = 0
        self.in_time = True
        self.first = self.best = self.validate()
        self.best_model = copy.deepcopy(self.ema.model)

    @property
    def is_over(self) -> bool:
        return self.cuts > CUTS

    def train(self, x: Tensor, c: Tensor, factor: float) -> None:
        """One step at ``factor`` of the rate, and a check where it is due."""
        factor *= CUT**self.cuts * learning_rate_factor(self.step, 0.0, WARMUP, 0.0)
        self.optimizer.param_groups[0]["lr"] = self.learning_rate * factor
        self.step += 1
        step = optimizer_step(self.model, self.ema, self.optimizer, self.step, lambda: self._gradients(x, c), CLIP)
        if step["skipped"]:
            self.cut()
        if self.step % CHECK_EVERY == 0:
            self.check()

    def _gradients(self, x: Tensor, c: Tensor) -> dict[str, Tensor]:
        loss, _ = mle_loss(_at(self.model, c), x)
        loss.backward()
        return {}

    @torch.no_grad()
    def validate(self) -> float:
        """The lower bound of log p of the average, nats a row, by the same draws each time."""
        generator = torch.Generator().manual_seed(0)
        return -mle_loss(_at(self.ema.model, self.c_held), self.held, generator=generator)[1]["nelbo"].item()

    def check(self) -> None:
        value = self.validate()
        if value > self.best:
            self.best, self.best_step, self.since = value, self.step, 0
            self.best_model = copy.deepcopy(self.ema.model)
            return
        self.since += 1
        if self.since == PATIENCE:
            self.cut()

    def cut(self) -> None:
        """Lower the rate, and go back to the best state."""
        self.cuts, self.since = self.cuts + 1, 0
        self.model.load_state_dict(self.best_model.state_dict())
        self.ema.model.load_state_dict(self.best_model.state_dict())


def _at(model: Any, c: Tensor) -> Any:
    """``model`` at the conditions ``c`` (n, k); k may be 0."""
    return model.given(c) if c.shape[1] else model


def _as_arrays(model: INDM) -> tuple[tuple[int, int, int], dict[str, np.ndarray]]:
    """Components, width and depth of the fitted network, and the weights of its model."""
    net: Any = model.score.backbone
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    return (net.components, net.width, net.depth), weights


def _batches(rows: int, size: int) -> Iterator[Tensor]:
    """Indices of batches without end, of at most ``size`` rows; each pass has every row at most once."""
    size = min(size, rows)
    while True:
        yield from torch.randperm(rows)[: rows // size * size].split(size)


def _log_prob(model: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p of the probability flow at rows of latents, and an estimate of the solver's error, nats (B,)."""
    d = z.shape[1]
    exact = d <= MOST_EXACT
    flow = WhitenedFlow(model.score, GaussianReference.standard(z), (d,), exact)
    probe = z.new_zeros(len(z)) if exact else rademacher(z[:1], PROBES, torch.Generator().manual_seed(0))
    probe = probe if exact else probe.expand(len(z), -1, -1)
    with evaluation_mode(model):
        sde = model.sde
        log_alpha = sde.log_alpha(sde.endpoints(z)[START])
        solution = flow.solve(expand_like(log_alpha.exp(), z) * z, START, probe, SOLVER_ERROR / (d * math.log(2)), None)
        return event_sum(log_alpha, z) + flow.log_prob(solution.state), solution.error
