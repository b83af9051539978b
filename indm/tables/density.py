"""What the estimators of tables share: the contracts of a density, and the options of its fit."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from torch import Tensor

from indm.checks import require
from indm.tables.columns import Array, Columns
from indm.tables.named import NamedColumns
from indm.tables.solve import averaged


class ConditionalDensity(BaseEstimator, ABC):
    """A density p(X|c) that an estimator learns from rows X, and from what c it is given with them.

    The names are scikit-learn's. What c is, each subclass says in the arguments that follow: rows
    of numbers, columns of X itself, or the observations of a simulator.

    Attributes:
        gains_: what each network gained over its start, nats a row, and the standard error of that;
            None where it is not known.

    Example: the three estimators have these methods.

        >>> from indm import DensityEstimator, JointDensityEstimator, PosteriorEstimator
        >>> estimators = DensityEstimator, JointDensityEstimator, PosteriorEstimator
        >>> all(issubclass(estimator, ConditionalDensity) for estimator in estimators)
        True
    """

    gains_: Sequence[tuple[float, float] | None]

    @abstractmethod
    def fit(self, X: Any, /, *args: Any, **kwargs: Any) -> "ConditionalDensity":
        """Fit the density of rows ``X`` (n, columns)."""

    @abstractmethod
    def score_samples(self, X: Any, /, *args: Any, **kwargs: Any) -> Array:
        """log p of each row of ``X``, nats, of the units of ``X``: (n,)."""

    @abstractmethod
    def sample(self, n_samples: int, /, *args: Any, **kwargs: Any) -> Any:
        """Rows drawn from the density."""

    @property
    @abstractmethod
    def ended_by_(self) -> str:
        """The end of the fit: "time" if ``max_seconds`` ended it, "steps" for ``max_steps``,
        "interrupt", or "plateau".
        """


class LatentDensity(ABC):
    """p(X|c) of rows X of numbers (n, d) at rows c (n, k), whose log p has gradients in latents of
    X: what a posterior is made of.

    Attributes:
        columns_: the map of the columns that vary to latents.
        constant_: values of the columns of X that never vary; NaN of the others.
        discrete_: indices of X's columns of whole numbers.
        n_conditions_: k.
    """

    columns_: Columns
    constant_: Array
    discrete_: Array
    n_conditions_: int

    @property
    def varies_(self) -> Array:
        """Mask of the columns of X that vary, (d,)."""
        return np.isnan(self.constant_)

    @abstractmethod
    def score_samples(self, X: Any, c: Any = None, *, tol: float | None = None) -> Array:
        """log p of each row of X at its own c, nats, (n,)."""

    @abstractmethod
    def sample(
        self, n_samples: int = 1, random_state: Any = None, *, c: Any = None, steps: Any = None
    ) -> Array:
        """Rows of X, (n_samples, d), at one c for all or at one for each."""

    @abstractmethod
    def standardised(self, c: Any, rows: int) -> Array:
        """Conditions as the methods below take them, (rows, k), of one for all rows or one for
        each.
        """

    @abstractmethod
    def possible(self, X: Array, c: Array) -> Array:
        """The indices of the rows that have a density at their standardised c."""

    @abstractmethod
    def log_densities(self, z: Tensor, c: Array, steps: int) -> Iterator[Tensor]:
        """log p of latents z (n, columns) at standardised c, nats (n,), by each model, with
        gradients, in so many steps of the ODE.
        """

    @torch.no_grad()
    def log_prob_in_steps(self, X: Array, c: Any, steps: int) -> Array:
        """log p of rows X in so many steps of the ODE, nats (n,); −∞ where X is impossible."""
        value, c = np.full(len(X), -np.inf), self.standardised(c, len(X))
        rows = self.possible(X, c)
        varying = X[rows][:, self.varies_]
        z = torch.from_numpy(self.columns_.latents(varying, c[rows]))
        log_p = averaged(self.log_densities(z, c[rows], steps)).numpy()
        value[rows] = log_p + self.columns_.log_volume(varying)
        return value


@dataclass(kw_only=True, eq=False, repr=False)
class TableDensity(NamedColumns, DensityMixin, ConditionalDensity):
    """A density of a table's columns: the options of a fit, which ``fit`` checks, as scikit-learn
    has it.
    """

    discrete: Any = ()
    bounds: Any = None
    validation_fraction: float = 0.1
    max_seconds: float = 60.0
    max_steps: int = 20_000
    max_components: Any = None
    width: int = 64
    depth: int = 2
    dropout: float = 0.1
    learning_rate: Any = None
    batch_size: Any = None
    weight_decay: float = 0.01
    draws: int = 8
    verbose: bool = False
    progress: bool = True
    random_state: Any = None

    def _held_rows(self, rows: int) -> int:
        """How many of the rows validate a model."""
        held = self.validation_fraction
        wanted = "above 0 and at most 0.5"
        require(0 < held <= 0.5, "validation_fraction", held, wanted, "0.1 is usual")
        return max(1, round(held * rows))

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of :meth:`score_samples`, nats of a row; ``y`` is ignored."""
        return float(self.score_samples(X).mean())
