"""A joint density of a table's columns, of numbers, categories and missing entries: any columns
given any others.
"""

import copy
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from indm.conditions import Vector
from indm.flows.base import Identity
from indm.model import INDM
from indm.sampling import sample
from indm.score import ScoreModel
from indm.sde.linear import VPSDE
from indm.tables import fit as fitting
from indm.tables import solve
from indm.tables.columns import FAR, Array, Columns, are_near, moments_of_most
from indm.tables.encoding import (
    FEWEST_ROWS,
    Encoding,
    NamedColumns,
    are_missing,
    fitted_column,
    is_frame,
    warn_of_few_values,
)
from indm.tables.mixture import LAW_ENTRIES, JointMixture, best_joint_mixture
from indm.tables.networks import MaskedMixtureMLP
from indm.tensors import with_parts

JOINT_MIXTURE_ROWS = 5_000, 2_000  # on which a mixture is fitted, without and with missing entries
QUESTIONS = 8  # questions of a training batch, at most
# rows drawn for ranges before the draw is given up, or 100 for each row asked for
MOST_DRAWN = 50_000
HELD_QUESTIONS = 64  # questions by which a model is validated
# shares of the questions that ask for all columns, and that leave none out
ALL_ASKED, NONE_ABSENT = 0.25, 0.5

# shares of a posterior's questions of X at all entries of c, and at some of them
AT_ALL, AT_SOME = 0.5, 0.25


@dataclass(frozen=True)
class Questions:
    """Masks of numbers (n, d) that rows are ``asked`` and ``given``, and the same of columns of
    categories (n, J).
    """

    asked: Array
    given: Array
    asked_codes: Array
    given_codes: Array

    def __getitem__(self, rows: Any) -> "Questions":
        parts = self.asked, self.given, self.asked_codes, self.given_codes
        return Questions(*(part[rows] for part in parts))

    def masks(self) -> tuple[Tensor, Tensor, Array]:
        """The distinct masks of asked and of given numbers, (U, d) each, and which of them each row
        has, (n,).
        """
        both = np.concatenate([self.asked, self.given], 1)
        # many times faster than by rows
        key = both @ np.random.RandomState(0).uniform(size=both.shape[1])
        _, first, index = np.unique(key, return_index=True, return_inverse=True)
        both = both[first]
        asked, given = np.split(both, 2, axis=1)
        return torch.from_numpy(asked), torch.from_numpy(given), index.reshape(-1)


@dataclass(eq=False)
class JointTraining(fitting.Training):
    """A training of a :class:`MaskedMixtureMLP` on questions of all kinds; ``questions`` and
    ``one_hot`` are of ``held``.
    """

    questions: Questions = field(kw_only=True)
    one_hot: Tensor = field(kw_only=True)

    def _held_draws(self) -> fitting.HeldDraws:
        asked, given, index = self.questions.masks()
        self.asked_average = asked_model(self.ema.model, asked, given)
        net = self.asked_average.score.backbone
        question = torch.from_numpy(index)
        known = self.questions.asked_codes | self.questions.given_codes
        drawn = super()._held_draws()
        return replace(
            drawn,
            c=net.condition(self.held, hidden(self.one_hot, net, known), question),
            question=question,
            noise=torch.from_numpy(self.questions.asked) * drawn.noise,
        )

    @torch.no_grad()
    def _bounds(self) -> Tensor:
        """With −log p of the categories that are asked."""
        net = self.asked_average.score.backbone
        return super()._bounds() - chain_log_prob(
            net, self.held, self.one_hot, self.questions, self.draws.question
        )

    def _average(self) -> INDM:
        return self.asked_average

    def _gradients(self, z: Tensor, one_hot: Tensor, questions: Questions) -> dict[str, Tensor]:
        asked, given, index = questions.masks()
        model = asked_model(self.model, asked, given)
        net = model.score.backbone
        which = torch.from_numpy(index)
        known = questions.asked_codes | questions.given_codes
        loss = z.new_zeros(())
        if net.d:
            c = net.condition(z, hidden(one_hot, net, known), which)
            loss = self._denoising(model, z, c, torch.from_numpy(questions.asked))
        if net.m:
            rank = np.cumsum(questions.asked_codes, 1)
            before = rank <= np.floor(torch.rand(len(z), 1).numpy() * rank[:, -1:])
            now = questions.given_codes | questions.asked_codes & before
            c = net.condition(z, hidden(one_hot, net, now), which)
            wanted = hidden(one_hot, net, questions.asked_codes & ~now)
            loss = loss - (wanted * net.category_log_prob(c)).sum(1).mean() / known.shape[1]
        loss.backward()
        return {}


def asked_model(model: INDM, asked: Tensor, given: Tensor) -> INDM:
    """``model`` with its network bound to questions, see :meth:`MaskedMixtureMLP.asked`."""
    net = model.score.backbone.asked(asked, given)
    return with_parts(model, {"score": with_parts(model.score, {"backbone": net})})


def hidden(one_hot: Tensor, net: MaskedMixtureMLP, known: Array) -> Tensor:
    """``one_hot`` (n, m) with zeros where a column of categories is not ``known`` (n, J)."""
    return one_hot * torch.from_numpy(np.repeat(known, net.categories, axis=1))


def lacking(x: Array, codes: Array) -> tuple[Array, Array]:
    """Masks of the numbers (n, d) and of the codes (n, J) that encoded rows lack."""
    return np.isnan(x), codes < 0


def chain_log_prob(
    net: MaskedMixtureMLP, z: Tensor, one_hot: Tensor, questions: Questions, index: Tensor
) -> Tensor:
    """log p of the asked categories given numbers and categories, (n,): one column after another."""
    total, known = z.new_zeros(len(z)), questions.given_codes.copy()
    for j in range(known.shape[1]):
        asked = questions.asked_codes[:, j]
        if asked.any():
            c = net.condition(z, hidden(one_hot, net, known), index)
            only = np.zeros_like(known)
            only[:, j] = asked
            total = total + (hidden(one_hot, net, only) * net.category_log_prob(c)).sum(1)
            known[:, j] |= asked
    return total


class JointDensityEstimator(NamedColumns, DensityMixin, BaseEstimator):
    r"""One density of a table that answers any question: columns given others, missing entries,
    categories.

    A network is trained on questions at random: each asks for some columns of a row, gives others
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
            batch_size, weight_decay, draws, verbose, progress, random_state: as of
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
        sampling_steps_, sampling_error_: as of :class:`DensityEstimator`.
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

    def __init__(  # checked by fit, as scikit-learn has it
        self,
        *,
        categories=(),
        discrete=(),
        bounds=None,
        spikes=None,
        validation_fraction=0.1,
        max_seconds=60.0,
        max_steps=20_000,
        max_components=20,
        width=128,
        depth=2,
        dropout=0.1,
        learning_rate=2e-3,
        batch_size=256,
        weight_decay=0.01,
        draws=8,
        verbose=False,
        progress=True,
        random_state=None,
    ):
        self.categories, self.discrete, self.bounds, self.spikes = (
            categories,
            discrete,
            bounds,
            spikes,
        )
        self.validation_fraction = validation_fraction
        self.max_seconds, self.max_steps, self.max_components = (
            max_seconds,
            max_steps,
            max_components,
        )
        self.width, self.depth, self.dropout = width, depth, dropout
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

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.string = tags.input_tags.categorical = True
        return tags

    # ── Fit ───────────────────────────────────────────────────────────────────────────────────────

    def fit(self, X, y=None) -> "JointDensityEstimator":
        """Fit the density of the rows of ``X`` (n, columns); ``y`` is ignored.

        Missing entries are NaN or None. They are left out of each question, which is right where
        that an entry is missing does not depend on what it would have been.

        Raises:
            ValueError: an argument out of range; an infinite value; fewer than 10 rows; no column
                that varies; dates or identifiers as a column; a value outside of its bounds, or on
                one.

        Warns:
            UserWarning: a column is left out, or a number is far from others; the network found
            nothing.
        """
        fitting.check_options(self)
        began = time.perf_counter(), time.process_time()
        deadline = began[0] + self.max_seconds
        self._kinds = X.dtypes if is_frame(X) else None
        categorical = {
            i
            for i, kind in enumerate(() if self._kinds is None else self._kinds)
            if kind == "category"
        }
        # columns are named below
        X = self._validated(X, ensure_min_samples=FEWEST_ROWS, ensure_all_finite=False)
        rng = check_random_state(self.random_state)
        self.gaps_ = np.unique(are_missing(X), axis=0, return_counts=True)
        self.encoding_ = self._encoding(X, categorical, rng)
        x, codes = self.encoding_.encoded(X)
        self.encoding_ = self.encoding_.given_others(
            x + self._noise(x, np.ones(x.shape, bool), rng), codes
        )
        self._warn_of_far_rows(x)
        order, held = rng.permutation(len(x)), max(1, round(self.validation_fraction * len(x)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.randint(2**31 - 1))
            trainings = self._trainings(x, codes, order, held, rng, deadline)
            x, codes = x[order[held:]], codes[order[held:]]
            middle, one_hot = (
                self._latents(x),
                torch.from_numpy(self.encoding_.one_hot(codes)).float(),
            )

            def batch(i: Tensor) -> tuple[Tensor, Tensor, Questions]:
                rows, questions = self._asked(x, codes, i.numpy(), rng)
                return (
                    self._noised(middle[rows], x[rows], questions.asked, rng),
                    one_hot[rows],
                    questions,
                )

            best = fitting.race(trainings, batch, len(x), self.batch_size, self.max_steps, deadline)
        self.ended_ = best.step, best.ended
        self.gain_ = gain, error = best.gain(trainings[0].start)
        has_gained = fitting.is_gain(gain, error)
        self.model_, self.n_steps_ = (
            (best if has_gained else trainings[0]).best.double(),
            best.best_step * has_gained,
        )
        if not has_gained:
            self.model_.score.backbone.forget()  # so that log p has a closed form
        if self.verbose:
            print(
                f"{gain:+.4f} ± {error:.4f} nats of a question by the network, ended by {best.ended}"
            )
        fitting.warn_of_fit(self, [self.gain_], [self.ended_], [best.late_gain()], began)
        seed = rng.randint(2**31 - 1)
        shape = solve.DRAWN, X.shape[1]
        nothing = self.encoding_.encoded(np.full(shape, np.nan))
        everything = self._posed(np.ones(shape, bool), np.zeros(shape, bool), nothing)

        def draws(steps: int) -> Array:
            return self._drawn(nothing, everything, steps, np.random.RandomState(seed))[0]

        self.sampling_steps_, self.sampling_error_ = (
            solve.steps_for_draws(draws) if x.shape[1] else (1, 0.0)
        )
        return self

    @property
    def ended_by_(self) -> str:
        """The reason why the fit ended, see :attr:`DensityEstimator.ended_by_`."""
        return fitting.ended_by([self.ended_[1]])

    def _validated(self, X, reset: bool = True, **options: Any) -> Array:
        """Rows as an array, in which columns of a frame keep their kinds."""
        X = self._table(X, reset)
        X = X.astype(object) if is_frame(X) else X
        return validate_data(
            self, X, dtype=None, reset=reset, **{"ensure_all_finite": "allow-nan"} | options
        )

    def _encoding(self, X: Array, categorical: set[int], rng: np.random.RandomState) -> Encoding:
        """Kind and map of each column; those in ``categorical`` are of categories, too."""
        categories = categorical | set(self._indices(self.categories, "categories"))
        whole = set(self._indices(self.discrete, "discrete"))
        bounds = {
            self._index(column, "bounds"): pair for column, pair in dict(self.bounds or {}).items()
        }
        spikes = {
            self._index(column, "spikes"): value
            for column, value in dict(self.spikes or {}).items()
        }
        columns, problems = [], []
        for i in range(X.shape[1]):
            interval, own = (
                self._interval_of(i, bounds.get(i, (None, None))),
                np.atleast_1d(spikes.get(i, ())).tolist(),
            )
            kind = {"is_category": i in categories, "is_whole": i in whole}
            try:
                columns.append(
                    fitted_column(
                        X[:, i], self._name(i), rng, **kind, interval=interval, spikes=own
                    )
                )
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError(".\n".join(problems))
        if all(column.is_out for column in columns):
            raise ValueError("X must vary in a column, got one value or none in each")
        gaps = [
            f" ({share:.0%} of the rows have none)" if share else ""
            for share in are_missing(X).mean(0)
        ]
        values = [
            f"{column.name}, {column.constant}{gap}"
            for column, gap in zip(columns, gaps, strict=True)
        ]
        constant = ", ".join(
            text
            for text, column in zip(values, columns, strict=True)
            if column.constant is not None
        )
        absent = ", ".join(column.name for column in columns if column.is_absent)
        for named, why in (
            (constant, "all have the same value"),
            (absent, "fewer than two rows have an entry"),
        ):
            if named:
                warnings.warn(f"left out of the density, as {why}: {named}", stacklevel=3)
        plain = [i for i, c in enumerate(columns) if c.is_number and not (c.is_whole or c.values)]
        warn_of_few_values(
            {columns[i].name: X[~are_missing(X[:, i]), i].astype(float) for i in plain},
            stacklevel=4,
        )
        for column in columns:
            if not column.is_number and len(column.values) > len(X) / 2:
                many = f"{column.name} has {len(column.values)} categories in {len(X)} rows"
                warnings.warn(
                    f"{many}: leave out a column of names, and turn strings into numbers",
                    stacklevel=3,
                )
        return Encoding(tuple(columns))

    def _warn_of_far_rows(self, x: Array) -> None:
        """Warn of the number that is farthest from most rows of its column, if it is far, in
        latents where the map is plain.
        """
        bends = np.array([self.encoding_.map_of(i).far[0] for i in self.encoding_.numbers])
        values = np.where(bends, x, self._latents(x).numpy())
        off = np.zeros(x.shape)
        for j in range(x.shape[1]):
            there = np.flatnonzero(~np.isnan(x[:, j]))
            centre, scale = moments_of_most(values[there, j : j + 1])
            off[there, j] = np.abs(values[there, j] - centre) / np.where(scale > 0, scale, np.inf)
        if (off > FAR).any():
            row, farthest = np.unravel_index(off.argmax(), off.shape)
            named = self._name(self.encoding_.numbers[farthest])
            far = f"{x[row, farthest]:g} in {named}; where it is an error, correct or drop the row"
            warnings.warn(f"row {row} of X is far from the others: {far}", stacklevel=3)

    def _trainings(
        self,
        x: Array,
        codes: Array,
        order: Array,
        held: int,
        rng: np.random.RandomState,
        deadline: float,
    ) -> list[JointTraining]:
        """Trainings that start from the best mixture and from one Gaussian; the first ``held`` rows
        of ``order`` validate them.
        """
        encoding = self.encoding_
        train_rows, valid = order[held:], order[:held]
        train_rows = train_rows[: JOINT_MIXTURE_ROWS[int(np.isnan(x).any())]]
        everything = np.ones(x.shape, dtype=bool)
        z = encoding.latents(x + self._noise(x, everything, rng))
        one_hot = encoding.one_hot(codes)
        until = time.perf_counter() + fitting.MIXTURE_SHARE * (deadline - time.perf_counter())
        fitted, held_rows = (
            (z[rows], one_hot[rows]) for rows in (train_rows, valid[: fitting.VALIDATION_ROWS])
        )
        seed = rng.randint(2**31 - 1)
        laws = [
            best_joint_mixture(fitted, held_rows, encoding.sizes, self.max_components, seed, until)
        ]
        if len(laws[0].weight) > 1:
            laws.append(best_joint_mixture(fitted, held_rows, encoding.sizes, 1, seed, math.inf))
        repeats = max(1, fitting.VALIDATION_ROWS // held)
        rows = np.repeat(valid[: fitting.VALIDATION_ROWS], repeats)
        questions = [self._random_question(rng) for _ in range(HELD_QUESTIONS)]
        chosen = np.arange(len(rows)) % HELD_QUESTIONS
        asked, given = (np.stack([pair[i] for pair in questions])[chosen] for i in (0, 1))
        asked_of = self._questions(asked, given, (x[rows], codes[rows]))
        latents = self._noised(self._latents(x[rows]), x[rows], asked_of.asked, rng)
        held_codes = torch.from_numpy(one_hot[rows]).float()
        c = latents.new_zeros(len(rows), 0)  # made of the questions
        rates = self.learning_rate, self.weight_decay
        return [
            JointTraining(
                self._model(law),
                latents,
                c,
                *rates,
                repeats,
                questions=asked_of,
                one_hot=held_codes,
            )
            for law in laws
        ]

    def _model(self, law: JointMixture) -> INDM:
        """An untrained model whose network has the mixture."""
        sizes = self.encoding_.sizes
        shape, options = (law.mean.shape[1],), {"dropout": self.dropout}
        with warnings.catch_warnings():
            # a table without numbers
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            net = MaskedMixtureMLP(shape, sizes, len(law.weight), self.width, self.depth, **options)
        net.set_mixture(
            *map(torch.from_numpy, (law.weight, law.mean, law.covariance, law.log_share))
        )
        known = shape if law.mean.shape[1] else None  # a table of categories alone has no event
        return INDM(
            Identity(),
            ScoreModel(net, VPSDE(eps=fitting.EPS)),
            shape=known,
            condition=Vector(net.size),
        )

    def _random_question(self, rng: np.random.RandomState) -> tuple[Array, Array]:
        """Masks of columns of the table that are asked and given, (columns,)."""
        n = len(self.encoding_.columns)
        if rng.uniform() < ALL_ASKED:
            return np.ones(n, dtype=bool), np.zeros(n, dtype=bool)
        absent = rng.uniform(size=n) < (0 if rng.uniform() < NONE_ABSENT else rng.uniform())
        given = ~absent & (rng.uniform(size=n) < rng.uniform())
        asked = ~absent & ~given
        asked[rng.randint(n)] |= not asked.any()
        return asked, given & ~asked

    def _asked(
        self, x: Array, codes: Array, rows: Array, rng: np.random.RandomState
    ) -> tuple[Array, Questions]:
        """Rows of a batch and what they are asked: some questions, each of rows that have the
        columns it needs.
        """
        taken, asked, given = [], [], []
        columns = np.concatenate([self.encoding_.numbers, self.encoding_.categories])

        def lacks(chosen: Any) -> Array:
            return np.concatenate(lacking(x[chosen], codes[chosen]), 1)

        for part in np.array_split(rows, min(QUESTIONS, len(rows))):
            a, g = self._random_question(rng)
            needed = (a | g)[columns]
            # other rows of this question must lack the same columns
            first = lacks(part[:1])[:, needed]
            if (lacks(part)[:, needed] != first).any():
                part = rng.choice(
                    np.flatnonzero((lacks(slice(None))[:, needed] == first).all(1)), len(part)
                )
            taken.append(part)
            asked.append(np.tile(a, (len(part), 1)))
            given.append(np.tile(g, (len(part), 1)))
        chosen = np.concatenate(taken)
        return chosen, self._questions(
            np.concatenate(asked), np.concatenate(given), (x[chosen], codes[chosen])
        )

    # ── Rows and questions ────────────────────────────────────────────────────────────────────────

    def _posed(self, asked: Array, given: Array, rows: tuple[Array, Array]) -> Questions:
        """Masks of numbers and categories from masks of columns (n, columns); ``rows`` have what is
        given.
        """
        numbers, categories, (no_number, no_code) = (
            self.encoding_.numbers,
            self.encoding_.categories,
            lacking(*rows),
        )
        known = given[:, numbers] & ~no_number, given[:, categories] & ~no_code
        return Questions(asked[:, numbers], known[0], asked[:, categories], known[1])

    def _questions(self, asked: Array, given: Array, rows: tuple[Array, Array]) -> Questions:
        """:meth:`_posed`, without what ``rows`` lack of what is asked: they have the answers."""
        found, (no_number, no_code) = self._posed(asked, given, rows), lacking(*rows)
        return replace(
            found, asked=found.asked & ~no_number, asked_codes=found.asked_codes & ~no_code
        )

    def _noise(self, x: Array, asked: Array, rng: np.random.RandomState) -> Array:
        """Noise of whole numbers: uniform where they are asked, and 1/2 elsewhere."""
        noise = np.where(asked, 1 - rng.uniform(size=x.shape), 0.5)
        return np.where(self.encoding_.whole, noise, 0.0)

    def _latents(self, x: Array) -> Tensor:
        """Latents of numbers, whole ones in the middle of their bin, 0 where there are none."""
        z = self.encoding_.latents(x + 0.5 * self.encoding_.whole)
        return torch.from_numpy(np.nan_to_num(z)).float()

    def _noised(self, middle: Tensor, x: Array, asked: Array, rng: np.random.RandomState) -> Tensor:
        """Latents ``middle`` with noise in the whole numbers that are asked."""
        if not self.encoding_.whole.any():
            return middle
        noisy = self.encoding_.latents(x + self._noise(x, asked, rng))
        return torch.from_numpy(np.nan_to_num(noisy)).float()

    # ── Answers ───────────────────────────────────────────────────────────────────────────────────

    def score_samples(
        self, X, *, given: Sequence[Any] | Array = (), tol: float = solve.SOLVER_ERROR
    ) -> np.ndarray:
        """log p of what each row of ``X`` has, nats, of the units of ``X``: (n,).

        Of a row with missing entries it is the marginal of the others. Columns that are ``given``,
        by index or name, or by a mask (n, columns), are conditioned on. It is −∞ where a number,
        asked or given, is outside of its bounds, and where an asked column that was constant
        differs. ``tol`` is the solver's error of a row, nats.

        It is the log of probabilities of categories, spikes and whole numbers times a density of
        the others; for three and more whole numbers it is a lower bound, as of
        :class:`DensityEstimator`.

        Raises:
            ValueError: an infinite value; an unknown category; other than whole numbers in a
                discrete column; a mask of another shape.

        Warns:
            ConvergenceWarning: where the ODE's error is above ``tol`` on average.
        """
        check_is_fitted(self)
        X, table = self._validated(X, reset=False), X
        if np.ndim(given) == 2:
            is_given = np.asarray(given, dtype=bool)
            if is_given.shape != X.shape:
                raise ValueError(
                    f"a mask of given entries must have the shape {X.shape} of X, got {is_given.shape}"
                )
            is_given = is_given[:, self._places(given if is_frame(given) else table)]
        else:
            is_given = np.zeros(X.shape, dtype=bool)
            is_given[:, self._indices(given, "given")] = True
        return self._score(X, ~is_given, is_given, tol)

    def score(self, X, y=None) -> float:
        """The mean of :meth:`score_samples`; ``y`` is ignored."""
        return float(self.score_samples(X).mean())

    def log_prob_cells(self, X, *, tol: float = solve.SOLVER_ERROR) -> np.ndarray:
        """log p of each entry of ``X`` given the others of its row, nats, (n, columns); NaN where
        there is none.

        A low value marks an odd entry; compare it with others of its column, as densities have the
        column's unit. An entry that is impossible, or more than :data:`FAR` deviations from most of
        its column, is not given to the others.

        Raises, warns: as :meth:`score_samples`.
        """
        check_is_fitted(self)
        X, table = self._validated(X, reset=False), X
        there, found = ~are_missing(X), np.full(X.shape, np.nan)
        scored = there & [not column.is_absent for column in self.encoding_.columns]
        # column by column, so that few questions are in a batch
        columns, rows = np.nonzero(scored.T)
        asked = np.eye(X.shape[1], dtype=bool)[columns]
        own = np.arange(X.shape[1])[self._places(table)]  # where ``table`` has each column
        found[rows, own[columns]] = self._score(
            X[rows], asked, (there & self._is_near(X))[rows] & ~asked, tol
        )
        return found

    def _is_near(self, X: Array) -> Array:
        """Mask of the entries but numbers out of bounds, or farther than :data:`FAR` from most, (n,
        columns).
        """
        x, _ = self.encoding_.encoded(X)
        found, i = np.ones(X.shape, dtype=bool), self.encoding_.numbers
        with np.errstate(all="ignore"):
            z = self.encoding_.latents(x + 0.5 * self.encoding_.whole)
        found[:, i] = np.isnan(x) | self.encoding_.is_possible(x) & (np.abs(z) <= FAR)
        return found

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

    def conditional(self, given: Mapping[Any, Any]) -> "Conditional":
        """The density of all other columns at what is ``given``, by index or name: ``{"age": 30}``.

        A pair is a range of numbers, ends included: ``{"age": (30, 40), "income": (None, 1e5)}``.
        Several categories are a set: ``{"city": ["Oslo", "Berlin"]}``. Both take draws only.
        ValueError for what is unknown, impossible, or out of bounds.
        """
        check_is_fitted(self)
        if not hasattr(given, "items"):
            raise ValueError(
                f'given must be values of columns, such as {{"age": 30}}, got {given!r}'
            )
        row, ranges = np.full((1, self.n_features_in_), np.nan, dtype=object), {}  # type: tuple[Array, dict[int, Any]]
        for column, value in given.items():
            i = self._index(column, "given")
            kind = self.encoding_.columns[i]
            if (
                np.ndim(value)
                and not kind.is_number
                and any(not isinstance(own, float) for own in kind.values)
            ):
                ranges[i] = np.array(value, dtype=object)
                kind.encoded(ranges[i])
            elif np.ndim(value):
                ranges[i] = self._interval_of(i, value, "a range in given")
                kind.check_range(*ranges[i])
            else:
                row[0, i] = value
        self._check_possible(row)
        return Conditional(self, row[0], ranges)

    def impute(self, X, n: int | None = None, random_state: Any = None):
        """``X`` with draws given the rest of its row in place of missing entries: one table, or a
        list of ``n``.

        A data frame keeps its index. A number more than :data:`FAR` deviations from most of its
        column is kept, but says nothing of the missing entries. ValueError as of
        :meth:`score_samples`, and for a value outside of its bounds.
        """
        check_is_fitted(self)
        fitting.check_count(1 if n is None else n, "n")
        index = X.index if is_frame(X) else None
        X = self._validated(X, reset=False)
        self._check_possible(X)
        rng = check_random_state(random_state)
        known = self._is_near(X)
        copies = n or 1
        filled = self._filled(np.tile(X, (copies, 1)), rng, None, np.tile(known, (copies, 1)))
        tables = [self._as_fitted(table, index) for table in np.split(filled, copies)]
        return tables[0] if n is None else tables

    def _check_possible(self, X: Array) -> None:
        """ValueError for a number outside of its bounds: given it, the others have no density."""
        x, _ = self.encoding_.encoded(X)
        outside = np.argwhere(~self.encoding_.is_possible(x))
        if len(outside):
            row, j = outside[0]
            column = self.encoding_.columns[self.encoding_.numbers[j]]
            raise ValueError(
                f"{column.name} must be inside of its bounds, got {x[row, j]:g} in row {row}"
            )

    def _score(self, X: Array, asked: Array, given: Array, tol: float) -> Array:
        """log p of asked columns of rows ``X`` given others, masks (n, columns) each."""
        found = self._constant_log_prob(X, asked)
        x, codes = self.encoding_.encoded(X)
        questions = self._questions(asked, given, (x, codes))
        is_counted = questions.asked | questions.given
        found += np.where((self.encoding_.is_possible(x) | ~is_counted).all(1), 0.0, -np.inf)
        rows = np.flatnonzero(np.isfinite(found))
        whole, errors = questions.asked & self.encoding_.whole, [torch.zeros(0)]
        with solve.bar_of(len(rows), "log p", self.progress) as bar:
            for mask in np.unique(whole[rows], axis=0):
                own = rows[(whole[rows] == mask).all(1)]

                def log_density(
                    chosen: Array, points: Array, own: Array = own, mask: Array = mask
                ) -> Array:
                    picked = np.repeat(own[chosen], len(points))
                    noise = np.tile(0.5 * self.encoding_.whole, (len(picked), 1))
                    noise[:, mask] = np.tile(points, (len(chosen), 1))
                    value, error = self._log_density(
                        x[picked], noise, codes[picked], questions[picked], tol
                    )
                    errors.append(error)
                    return value.reshape(len(chosen), -1)

                found[own] += solve.integrated(
                    log_density, len(own), int(mask.sum()), self.draws, bar
                )
        solve.warn_above(tol, torch.cat(errors), stacklevel=4)
        return found

    def _constant_log_prob(self, X: Array, asked: Array) -> Array:
        """0 where the asked constant columns have their value or none, else −∞, (n,)."""
        found = np.zeros(len(X))
        for i, column in enumerate(self.encoding_.columns):
            if (value := column.constant) is not None:
                rows = np.flatnonzero(~are_missing(X[:, i]) & asked[:, i])
                entries = X[rows, i]
                same = (
                    are_near(entries.astype(float), value)
                    if isinstance(value, float)
                    else entries == value
                )
                found[rows[~same]] = -np.inf
        return found

    def _log_density(
        self, x: Array, noise: Array, codes: Array, questions: Questions, tol: float
    ) -> tuple[Array, Tensor]:
        """log p of the numbers x + noise and the codes that are asked, (n,), and the errors of the
        ODE, (n,).
        """
        z = torch.from_numpy(np.nan_to_num(self.encoding_.latents(x + noise)))
        volume = np.where(
            questions.asked, np.nan_to_num(self.encoding_.log_volume(x + noise)), 0.0
        ).sum(1)
        one_hot = torch.from_numpy(self.encoding_.one_hot(codes))
        found, errors = (
            torch.zeros(len(x), dtype=torch.double),
            torch.zeros(len(x), dtype=torch.double),
        )
        for rows, index, model in self._parts(self.model_, questions):
            net = model.score.backbone
            own = questions[rows]
            with torch.no_grad():
                found[rows] = chain_log_prob(net, z[rows], one_hot[rows], own, index)
            solved = np.flatnonzero(own.asked.any(1))
            if len(solved):
                known = own.asked_codes[solved] | own.given_codes[solved]
                c = net.condition(
                    z[rows][solved], hidden(one_hot[rows][solved], net, known), index[solved]
                )
                asked = torch.from_numpy(own.asked[solved])
                value, error = solve.latent_log_prob(model.given(c), asked * z[rows][solved], tol)
                found[rows[solved]] += value - unasked_log_prob(self.model_.sde, ~asked)
                errors[rows[solved]] = error
        return found.numpy() + volume, errors

    def _parts(self, model: INDM, questions: Questions) -> Iterator[tuple[Array, Tensor, INDM]]:
        """Parts of the rows with few questions each: their indices, the question of each, and
        ``model`` bound to these questions.
        """
        asked, given, index = questions.masks()
        net: MaskedMixtureMLP = model.score.backbone
        entries = net.components * max(1, net.d) ** 2  # of the laws of a question
        most = int(max(1, min(solve.ROWS_AT_ONCE, LAW_ENTRIES / entries)))
        order = np.argsort(index, kind="stable")
        for begin in range(0, len(order), most):
            rows = order[begin : begin + most]
            needed, local = np.unique(index[rows], return_inverse=True)
            bound = asked_model(model, asked[needed], given[needed])
            yield rows, torch.from_numpy(local.reshape(-1)), bound

    def _filled(
        self, X: Array, rng: np.random.RandomState, steps: int | None, known: Array | bool = True
    ) -> Array:
        """Rows (n, columns) with draws in place of missing entries, given the others that are
        ``known``.
        """
        x, codes = self.encoding_.encoded(X)
        is_there = ~are_missing(X)
        questions = self._posed(~is_there, is_there & known, (x, codes))
        table = self.encoding_.table(*self._drawn((x, codes), questions, steps, rng))
        absent = [column.is_absent for column in self.encoding_.columns]
        found = np.where(is_there, X.astype(object), table)
        # it may have entries of any kind
        return found if is_there[:, absent].any() else found.astype(table.dtype)

    def _drawn(
        self,
        rows: tuple[Array, Array],
        questions: Questions,
        steps: int | None,
        rng: np.random.RandomState,
    ) -> tuple[Array, Array]:
        """Latents, NaN where a spike was drawn, and codes of asked columns, given ``rows``; NaN and
        −1 in others.
        """
        model = copy.deepcopy(self.model_).float()
        x = rows[0]
        codes = rows[1].copy()
        steps = self.sampling_steps_ if steps is None else steps
        z = self._latents(x)
        known = questions.given_codes.copy()
        for j in range(known.shape[1]):
            asked = np.flatnonzero(questions.asked_codes[:, j])
            for part, index, bound in self._parts(model, questions[asked]):
                net = bound.score.backbone
                chosen = asked[part]
                one_hot = torch.from_numpy(self.encoding_.one_hot(codes[chosen])).float()
                c = net.condition(z[chosen], hidden(one_hot, net, known[chosen]), index)
                with torch.no_grad():
                    log_prob = net.category_log_prob(c).split(net.categories, 1)[j]
                gumbel = rng.gumbel(size=log_prob.shape)
                codes[chosen, j] = (log_prob.double().numpy() + gumbel).argmax(1)
            known[asked, j] = True
        spiked = np.zeros(x.shape, dtype=bool)  # entries whose codes give their values
        for j, i in enumerate(self.encoding_.categories):
            spiked[:, self.encoding_.numbers == i] = codes[:, j : j + 1] > 0
        questions = replace(questions, asked=questions.asked & ~spiked)
        generator = torch.Generator().manual_seed(rng.randint(2**31 - 1))
        one_hot, found = (
            torch.from_numpy(self.encoding_.one_hot(codes)).float(),
            np.full(z.shape, np.nan),
        )
        with_numbers = np.flatnonzero(questions.asked.any(1))
        with solve.bar_of(len(with_numbers), "draws", self.progress) as bar:
            for local, index, bound in self._parts(model, questions[with_numbers]):
                net = bound.score.backbone
                part = with_numbers[local]
                c = net.condition(z[part], hidden(one_hot[part], net, known[part]), index)
                drawn = sample(
                    bound, len(part), c=c, steps=steps, generator=generator, **solve.DRAWING
                ).numpy()
                found[part] = np.where(questions.asked[part], drawn, np.nan)
                bar.update(len(part))
        return found, np.where(questions.asked_codes, codes, -1)

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


@dataclass(frozen=True)
class Conditional:
    """The density of a table's columns at fixed values of others, from
    :meth:`JointDensityEstimator.conditional`.

    ``row`` has the given values, and NaN in other columns; ``ranges`` low and high, or categories,
    of columns by index.
    """

    estimator: JointDensityEstimator
    row: Array
    ranges: Mapping[int, Any]

    @property
    def _is_given(self) -> Array:
        return ~are_missing(self.row)

    def score_samples(self, X) -> np.ndarray:
        """log p of rows ``X`` (n, columns), nats (n,), whose given columns are replaced; ValueError
        where a range is given.
        """
        if self.ranges:
            raise ValueError(
                "score_samples needs values in given, not ranges, which draws alone take"
            )
        X = self.estimator._validated(X, reset=False).astype(object)
        given = np.tile(self._is_given, (len(X), 1))
        X[:, self._is_given] = self.row[self._is_given]
        return self.estimator._score(X, ~given, given, solve.SOLVER_ERROR)

    def sample(
        self,
        n_samples: int = 1,
        random_state: Any = None,
        *,
        steps: int | None = None,
        gaps: bool = False,
    ) -> Any:
        """Whole rows, (n_samples, columns), with the given values in their columns; ``gaps`` are
        only in others.

        Rows outside of ranges are rejected. ValueError where too few of 50,000 draws, or of 100 for
        each row, are inside.
        """
        fitting.check_count(n_samples, "n_samples")
        rng, n = check_random_state(random_state), n_samples
        found, drawn = self._drawn(n, rng, steps), n
        with solve.bar_of(n, "draws in the ranges", self.estimator.progress) as bar:
            while len(found) < n:
                if drawn >= max(MOST_DRAWN, 100 * n):
                    few = f"{len(found)} of {drawn:,} draws in them, too few for n_samples={n}"
                    raise ValueError(f"given has ranges with {few}; widen them, or draw fewer rows")
                more = min(
                    solve.ROWS_AT_ONCE,
                    math.ceil(1.2 * drawn * (n - len(found)) / max(len(found), 0.1)),
                )
                found, drawn = np.concatenate([found, self._drawn(more, rng, steps)]), drawn + more
                bar.update(len(found) - bar.n)
        found = found[:n]
        if gaps:
            masks, counts = self.estimator.gaps_
            missing = masks[rng.choice(len(masks), n, p=counts / counts.sum())]
            found[missing & ~self._is_given] = np.nan
        return self.estimator._as_fitted(found)

    def _drawn(self, n: int, rng: np.random.RandomState, steps: int | None) -> Array:
        """The rows inside all ranges among ``n`` draws."""
        rows = self.estimator._filled(np.tile(self.row, (n, 1)), rng, steps)
        inside = np.ones(n, dtype=bool)
        for i, allowed in self.ranges.items():
            if isinstance(allowed, tuple):
                inside &= (allowed[0] <= rows[:, i].astype(float)) & (
                    rows[:, i].astype(float) <= allowed[1]
                )
            else:
                inside &= np.isin(rows[:, i], allowed)
        return rows[inside]


def unasked_log_prob(sde: VPSDE, unasked: Tensor) -> Tensor:
    """Log density of the columns that are not asked, each N(0, 1), at the value 0, (n,)."""
    (log_alpha,) = sde.log_alpha(sde.endpoints(torch.zeros(1, dtype=torch.double))[0]).unbind()
    return unasked.sum(1) * (log_alpha - 0.5 * math.log(2 * math.pi))


class JointConditional(JointDensityEstimator):
    """p(X|c) of one joint density of rows X and conditions c, for a posterior: any entry of c may
    be NaN.

    It has what :class:`~indm.PosteriorEstimator` needs of a :class:`~indm.DensityEstimator`, and
    the methods of a :class:`~indm.JointDensityEstimator` of tables that have X's columns, then c's.
    """

    def fit(self, X: Array, y: Any = None, *, c: Array) -> "JointConditional":
        self._d, self.n_conditions_ = X.shape[1], c.shape[1]
        super().fit(np.concatenate([X, c], 1))
        maps = [self.encoding_.map_of(i) for i, varies in enumerate(self.varies_) if varies]
        names = "centre", "scale", "power", "far", "mean", "edge", "interval", "reach"
        stacked = {
            name: np.concatenate([getattr(part, name) for part in maps], -1) for name in names
        }
        slope, whitening = (
            np.zeros((self.n_conditions_, len(maps))),
            np.diag([part.whitening[0, 0] for part in maps]),
        )
        self.columns_ = Columns(**stacked, slope=slope, whitening=whitening)
        self.gains_ = [self.gain_]
        return self

    def _random_question(self, rng: np.random.RandomState) -> tuple[Array, Array]:
        kind, asked = rng.uniform(), np.arange(self._d + self.n_conditions_) < self._d
        if kind > AT_ALL + AT_SOME:
            return super()._random_question(rng)
        return asked, ~asked & (
            rng.uniform(size=len(asked)) > (0 if kind < AT_ALL else rng.uniform())
        )

    # ── Under the names of DensityEstimator ───────────────────────────────────────────────────────

    @property
    def discrete_(self) -> Array:
        return np.array(
            [i for i in range(self._d) if self.encoding_.columns[i].is_whole], dtype=int
        )

    @property
    def constant_(self) -> Array:
        found = [self.encoding_.columns[i].constant for i in range(self._d)]
        return np.array([np.nan if value is None else value for value in found])

    @property
    def varies_(self) -> Array:
        return np.isnan(self.constant_)

    def score_samples(self, X: Array, c: Array, *, tol: float = solve.SOLVER_ERROR) -> Array:
        rows = self._joined(X, c)
        asked, given = self._masks(len(rows))
        return self._score(rows, asked, given, tol)

    def sample(
        self, n_samples: int = 1, random_state: Any = None, *, c: Array, steps: int | None = None
    ) -> Array:
        rows = self._joined(np.full((n_samples, self._d), np.nan), c)
        self._check_possible(rows)
        x, codes = self.encoding_.encoded(rows)
        questions = self._posed(*self._masks(len(x)), (x, codes))
        drawn = self._drawn((x, codes), questions, steps, check_random_state(random_state))
        return self.encoding_.table(*drawn)[:, : self._d].astype(float)

    def log_likelihood(self, c: Array, X: Array) -> Array:
        """log p(c|X) of what each row of c (n, k) has, nats (n,), at rows of X (n, d); −∞ outside
        of the bounds.
        """
        rows = self._joined(X, c)
        asked, given = self._masks(len(rows))
        return self._score(rows, given, asked, solve.SOLVER_ERROR)

    def standardised(self, c: Array, rows: int) -> Array:
        """Rows of c for ``rows`` of X, of one for all or one for each."""
        return np.broadcast_to(c, (rows, self.n_conditions_))

    def possible(self, X: Array, c: Array) -> Array:
        """The indices of rows that have a density at their c: both are inside of the bounds,
        constant columns of X have their values, and no entry of X is a spike.
        """
        rows = self._joined(X, c)
        asked, _ = self._masks(len(rows))
        x, _ = self.encoding_.encoded(rows)
        is_same = np.isfinite(self._constant_log_prob(rows, asked))
        is_spike = np.isnan(x[:, self.encoding_.numbers < self._d]).any(1)
        return np.flatnonzero(is_same & ~is_spike & self.encoding_.is_possible(x).all(1))

    def log_densities(self, z: Tensor, c: Array, steps: int) -> Iterator[Tensor]:
        """log p of latents (n, d) at rows of c, nats (n,), with gradients, in so many steps of the
        ODE.

        Of columns of X with spikes it is the density of the other values.
        """
        x, codes = self.encoding_.encoded(self._joined(np.full((len(z), self._d), np.nan), c))
        codes[:, self.encoding_.categories < self._d] = 0  # latents are numbers, not spikes
        questions = self._posed(*self._masks(len(x)), (x, codes))
        is_asked, is_given, numbers = questions.masks()
        model = asked_model(self.model_, is_asked, is_given)
        net = model.score.backbone
        index, given = torch.from_numpy(numbers), self._latents(x).double()
        one_hot = torch.from_numpy(self.encoding_.one_hot(codes))
        with torch.no_grad():
            log_share = chain_log_prob(net, given, one_hot, questions, index)
        known = questions.asked_codes | questions.given_codes
        at = net.condition(given, hidden(one_hot, net, known), index)
        rows = z.new_zeros(x.shape).masked_scatter(torch.from_numpy(questions.asked), z)
        value = solve.log_prob_in_steps(model.given(at), rows, steps)
        yield (
            log_share
            + value
            - unasked_log_prob(self.model_.sde, ~torch.from_numpy(questions.asked))
        )

    def _masks(self, n: int) -> tuple[Array, Array]:
        """Masks of the asked and of the given columns, (n, columns) each."""
        asked = np.tile(np.arange(self._d + self.n_conditions_) < self._d, (n, 1))
        return asked, ~asked

    def _joined(self, X: Array, c: Array) -> Array:
        return np.concatenate([X, self.standardised(c, len(X))], 1)
