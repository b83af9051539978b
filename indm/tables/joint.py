"""A joint density of a table's columns, of numbers, categories and missing entries: any columns
given any others.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from indm.tables import solve
from indm.tables.answers import Answers
from indm.tables.columns import Array
from indm.tables.conditional import Conditional, conditional
from indm.tables.density import TableDensity
from indm.tables.encoding import are_missing
from indm.tables.fit import is_gain
from indm.tables.imputing import imputed, log_prob_cells
from indm.tables.joint_fit import JointFit, JointTraining
from indm.tables.kinds import Declared, fitted_encoding, warn_of_far_numbers
from indm.tables.named import FEWEST_ROWS, is_frame
from indm.tables.questions import Question, Questions, noise, random_question
from indm.tables.report import ended_by, warn_of_fit


@dataclass(kw_only=True, eq=False, repr=False)
class JointDensityEstimator(TableDensity):
    r"""One density of a table that answers any question: columns given others, missing entries,
    categories.

    A network is trained on random questions: each asks for some columns of a row, gives others
    and leaves the rest out. It starts from a Gaussian mixture of all columns. Numbers follow a
    diffusion whose probability flow has a density that integrates to 1 for every question.
    Categories follow the chain rule, one column after another.

    For one fixed question of numbers alone :class:`DensityEstimator` is somewhat better at equal
    cost. Answers to different questions need not agree exactly.

    Args:
        categories: columns of categories, by index or name. Columns of strings, of booleans and of
            pandas' categories are such without this.
        discrete: columns of whole numbers, see :class:`DensityEstimator`.
        bounds: the interval of a column, such as ``{"age": (0, None)}``, see
            :class:`DensityEstimator`.
        spikes: values that many rows of a column have exactly, such as ``{"rain": 0}`` or
            ``{"rain": (0, 99)}``. They have probabilities, and the other values a density.
        validation_fraction, max_seconds, max_steps, width, depth, dropout, learning_rate,
            batch_size, weight_decay, draws, verbose, progress, random_state: see
            :class:`DensityEstimator`.
        max_components: of the mixture.

    Attributes:
        encoding_: what each column is, :class:`~indm.tables.encoding.Encoding`.
        gaps_: the masks of missing entries that rows had, (u, columns), and in how many rows each
            was, (u,).
        model_: the fitted :class:`~indm.INDM` of the latents of numbers.
        gain_: what the network gained over the mixture, nats of a question, and its standard error.
            If the gain is within two errors, the density is the mixture's, and log p has a closed
            form.
        n_steps_: optimizer steps until it was best, 0 for the mixture.
        ended_: optimizer steps that were made, and what ended them: "plateau", "max_steps" or
            "max_seconds".
        sampling_steps_, sampling_error_: see :class:`DensityEstimator`.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example: rows that are Gaussian, so that no network is needed.

        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=300)
        >>> X = np.stack([x, x + 0.5 * rng.normal(size=300)], 1)
        >>> X[::5, 1] = np.nan
        >>> estimator = JointDensityEstimator(max_steps=0, max_components=1, random_state=0).fit(X)
        >>> at_two = estimator.conditional({0: 2.0}).sample(200, random_state=0)
        >>> bool(abs(at_two[:, 1].mean() - 2) < 0.2)
        True
        >>> bool(np.isfinite(estimator.impute(X)).all())
        True
    """

    categories: Any = ()
    spikes: Any = None
    max_components: int = 20
    width: int = 128
    learning_rate: float = 2e-3
    batch_size: int = 256

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.string = tags.input_tags.categorical = True
        return tags

    # ── Fit ───────────────────────────────────────────────────────────────────────────────────────

    def fit(self, X, y=None, *, question: Question = random_question) -> "JointDensityEstimator":
        """Fit the density of the rows of ``X`` (n, columns); ``y`` is ignored.

        Missing entries are NaN or None. They are left out of each question. This is right if the
        reason why an entry is missing does not depend on its value. ``question`` makes the
        questions of training: by default any columns given any others.

        Raises:
            ValueError: an argument out of range; an infinite value; fewer than 10 rows; no column
                that varies; dates or identifiers as a column; a value outside of its bounds, or on
                one.

        Warns:
            UserWarning: a column is left out, or a number is far from others; the network found
            nothing.
        """
        began = time.perf_counter(), time.process_time()
        rng = check_random_state(self.random_state)
        x, codes = self._encoded(X, rng)
        order = rng.permutation(len(x))
        held = self._held_rows(len(x))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.randint(2**31 - 1))
            rows = JointFit(self, self.encoding_, x, codes, order, held, question, rng)
            best, first = rows.raced(began[0] + self.max_seconds)
        self._keep(best, first)
        warn_of_fit(self, [self.gain_], [self.ended_], [best.late_gain()], began)
        self.sampling_steps_, self.sampling_error_ = self._steps(rng.randint(2**31 - 1))
        return self

    def _encoded(self, X: Any, rng: np.random.RandomState) -> tuple[Array, Array]:
        """Read the columns' kinds; the rows as numbers and codes."""
        self._kinds = X.dtypes if is_frame(X) else None
        kinds = () if self._kinds is None else self._kinds
        categorical = [i for i, kind in enumerate(kinds) if kind == "category"]
        # columns are named below
        X = self._validated(X, ensure_min_samples=FEWEST_ROWS, ensure_all_finite=False)
        self.gaps_ = np.unique(are_missing(X), axis=0, return_counts=True)
        plain = fitted_encoding(X, self._declared(X.shape[1], categorical), rng)
        x, codes = plain.encoded(X)
        self.encoding_ = plain.given_others(x + noise(plain, x, True, rng), codes)
        warn_of_far_numbers(self.encoding_, x)
        return x, codes

    def _declared(self, columns: int, categorical: list[int]) -> list[Declared]:
        """What the options say of each column; ``categorical`` ones are of categories, too."""
        categories = {*categorical, *self._indices(self.categories, "categories")}
        whole = self._indices(self.discrete, "discrete")
        bounds = {self._index(i, "bounds"): pair for i, pair in dict(self.bounds or {}).items()}
        spikes = {self._index(i, "spikes"): own for i, own in dict(self.spikes or {}).items()}
        return [
            Declared(
                self._name(i),
                is_category=i in categories,
                is_whole=i in whole,
                interval=self._interval_of(i, bounds.get(i, (None, None))),
                spikes=np.atleast_1d(spikes.get(i, ())).tolist(),
            )
            for i in range(columns)
        ]

    def _keep(self, best: JointTraining, first: JointTraining) -> None:
        """Keep the best model, or the mixture where the network has no gain that counts."""
        self.ended_ = best.step, best.ended
        self.gain_ = gain, error = best.gain(first.start)
        self.gains_ = [self.gain_]
        has_gained = is_gain(gain, error)
        self.model_ = (best if has_gained else first).best.double()
        self.n_steps_ = best.best_step * has_gained
        if not has_gained:
            self.model_.score.backbone.forget()  # so that log p has a closed form
        if self.verbose:
            gained = f"{gain:+.4f} ± {error:.4f} nats of a question by the network"
            print(f"{gained}, ended by {best.ended}")

    def _steps(self, seed: int) -> tuple[int, float]:
        """The steps in which rows are drawn, and the error of that."""
        answers = self._answers
        if not len(answers.encoding.numbers):
            return 1, 0.0
        shape = solve.DRAWN, len(answers.encoding.columns)
        rows = answers.encoding.encoded(np.full(shape, np.nan))
        masks = np.ones(shape, dtype=bool), np.zeros(shape, dtype=bool)
        questions = Questions.posed(answers.encoding, *masks, rows)

        def draws(steps: int) -> Array:
            return answers.drawn(rows, questions, steps, np.random.RandomState(seed))[0]

        return solve.steps_for_draws(draws)

    @property
    def _answers(self) -> Answers:
        return Answers(self.encoding_, self.model_, self.draws, self.progress)

    @property
    def ended_by_(self) -> str:
        """The reason why the fit ended, see :attr:`DensityEstimator.ended_by_`."""
        return ended_by([self.ended_[1]])

    def _validated(self, X, reset: bool = True, **options: Any) -> Array:
        """Rows as an array, in which columns of a frame keep their kinds."""
        X = self._table(X, reset)
        X = X.astype(object) if is_frame(X) else X
        return validate_data(
            self, X, dtype=None, reset=reset, **{"ensure_all_finite": "allow-nan"} | options
        )

    # ── Answers ───────────────────────────────────────────────────────────────────────────────────────

    def score_samples(
        self, X, *, given: Sequence[Any] | Array = (), tol: float = solve.SOLVER_ERROR
    ) -> np.ndarray:
        """log p of what each row of ``X`` has, nats, of the units of ``X``: (n,).

        Of a row with missing entries it is the marginal of the others. Columns that are ``given``,
        by index or name, or by a mask (n, columns), are conditioned on. It is −∞ where a number,
        asked or given, is outside of its bounds, and where an asked column that was constant
        differs. ``tol`` is the solver's error of a row, nats.

        It is the log of probabilities of categories, spikes and whole numbers times a density of
        the others; for three and more whole numbers it is a lower bound, see
        :class:`DensityEstimator`.

        Raises:
            ValueError: an infinite value; an unknown category; other than whole numbers in a
                discrete column; a mask of another shape.

        Warns:
            ConvergenceWarning: where the ODE's error is above ``tol`` on average.
        """
        check_is_fitted(self)
        table = X
        X = self._validated(X, reset=False)
        if np.ndim(given) == 2:
            is_given = np.broadcast_to(np.asarray(given, dtype=bool), X.shape)
            is_given = is_given[:, self._places(given if is_frame(given) else table)]
        else:
            is_given = np.zeros(X.shape, dtype=bool)
            is_given[:, self._indices(given, "given")] = True
        return self._answers.log_prob(X, ~is_given, is_given, tol)

    def log_prob_cells(self, X, *, tol: float = solve.SOLVER_ERROR) -> np.ndarray:
        """log p of each entry of ``X`` given the others of its row, nats, (n, columns); NaN where
        there is none.

        A low value marks an odd entry; compare it with others of its column, as densities have the
        column's unit. An entry that is impossible, or more than ten deviations from most of its
        column, is not given to the others.

        Raises, warns: as :meth:`score_samples`.
        """
        return log_prob_cells(self, X, tol)

    def sample(
        self,
        n_samples: int = 1,
        random_state: Any = None,
        *,
        steps: int | None = None,
        gaps: bool = False,
    ) -> Any:
        """Rows drawn from the density, (n_samples, columns): a data frame where ``fit`` got one.

        ``steps`` of the sampler are by default ``sampling_steps_``. With ``gaps`` each row lacks
        the entries that a row of the fitted table lacked, drawn at random.
        """
        return self.conditional({}).sample(n_samples, random_state, steps=steps, gaps=gaps)

    def conditional(self, given: Mapping[Any, Any]) -> Conditional:
        """The density of all other columns at what is ``given``, by index or name: ``{"age": 30}``.

        A pair is a range of numbers, ends included: ``{"age": (30, 40), "income": (None, 1e5)}``.
        Several categories are a set: ``{"city": ["Oslo", "Berlin"]}``. Both take draws only.
        ValueError for what is unknown, impossible, or out of bounds.
        """
        return conditional(self, given)

    def impute(self, X, n: int | None = None, random_state: Any = None):
        """``X`` with draws given the rest of its row in place of missing entries: one table, or a
        list of ``n``.

        A data frame keeps its index. A number more than ten deviations from most of its column is
        kept, but is not given to the draws. Raises what :meth:`score_samples` raises, and ValueError
        for a value outside of its bounds.
        """
        return imputed(self, X, n, random_state)

    def _as_fitted(self, rows: Array, index: Any = None):
        """Rows as an array, or as a data frame of the kinds of columns that ``fit`` got; but
        fractions stay floats.
        """
        if self._kinds is None:
            return rows
        import pandas

        columns = zip(self._kinds, self.encoding_.columns, strict=True)
        kept = {
            i: kind
            for i, (kind, column) in enumerate(columns)
            if column.is_whole
            or not column.is_number
            or not pandas.api.types.is_integer_dtype(kind)
        }
        return (
            pandas.DataFrame(rows, index)
            .infer_objects()
            .astype(kept)
            .set_axis(self._kinds.index, axis=1)
        )
