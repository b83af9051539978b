"""Questions of rows of a table: which columns are asked, and which are given."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indm.tables.columns import Array
from indm.tables.encoding import Encoding

# shares of the questions that ask for all columns, and that leave none out
ALL_ASKED, NONE_ABSENT = 0.25, 0.5
# shares of a posterior's questions of X at all entries of c, and at some of them
AT_ALL, AT_SOME = 0.5, 0.25

# columns of a table, generator ↦ masks of the columns that are asked and given, (columns,) each
Question = Callable[[int, np.random.RandomState], tuple[Array, Array]]


@dataclass(frozen=True)
class Questions:
    """Masks of numbers (n, d) that rows are ``asked`` and ``given``, and the same of columns of
    categories (n, J).
    """

    asked: Array
    given: Array
    asked_codes: Array
    given_codes: Array

    @classmethod
    def posed(
        cls, encoding: Encoding, asked: Array, given: Array, rows: tuple[Array, Array]
    ) -> "Questions":
        """Questions by masks of the table's columns (n, columns); encoded ``rows`` have what is
        given.
        """
        no_number, no_code = lacking(*rows)
        numbers, categories = encoding.numbers, encoding.categories
        return cls(
            asked[:, numbers],
            given[:, numbers] & ~no_number,
            asked[:, categories],
            given[:, categories] & ~no_code,
        )

    def answered_by(self, rows: tuple[Array, Array]) -> "Questions":
        """These questions without what encoded ``rows`` lack of what is asked."""
        no_number, no_code = lacking(*rows)
        return replace(self, asked=self.asked & ~no_number, asked_codes=self.asked_codes & ~no_code)

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
        asked, given = np.split(both[first], 2, axis=1)
        return torch.from_numpy(asked), torch.from_numpy(given), index.reshape(-1)


def lacking(x: Array, codes: Array) -> tuple[Array, Array]:
    """Masks of the numbers (n, d) and of the codes (n, J) that encoded rows lack."""
    return np.isnan(x), codes < 0


def random_question(columns: int, rng: np.random.RandomState) -> tuple[Array, Array]:
    """Masks of columns that are asked and given, (columns,) each: any columns given any others."""
    if rng.uniform() < ALL_ASKED:
        return np.ones(columns, dtype=bool), np.zeros(columns, dtype=bool)
    absent = rng.uniform(size=columns) < (0 if rng.uniform() < NONE_ABSENT else rng.uniform())
    given = ~absent & (rng.uniform(size=columns) < rng.uniform())
    asked = ~absent & ~given
    asked[rng.randint(columns)] |= not asked.any()
    return asked, given & ~asked


@dataclass(frozen=True)
class FirstAsked:
    """Questions that mostly ask for the first ``d`` columns, at all others or at some of them."""

    d: int

    def __call__(self, columns: int, rng: np.random.RandomState) -> tuple[Array, Array]:
        kind = rng.uniform()
        if kind > AT_ALL + AT_SOME:
            return random_question(columns, rng)
        asked = np.arange(columns) < self.d
        drawn = rng.uniform(size=columns)
        absent = 0 if kind < AT_ALL else rng.uniform()
        return asked, ~asked & (drawn > absent)


def noise(encoding: Encoding, x: Array, asked: Array | bool, rng: np.random.RandomState) -> Array:
    """Noise of whole numbers: uniform where they are asked, and 1/2 elsewhere."""
    drawn = np.where(asked, 1 - rng.uniform(size=x.shape), 0.5)
    return np.where(encoding.whole, drawn, 0.0)


def middle_latents(encoding: Encoding, x: Array) -> Tensor:
    """Latents of numbers, whole ones in the middle of their bin, 0 where there are none."""
    z = encoding.latents(x + 0.5 * encoding.whole)
    return torch.from_numpy(np.nan_to_num(z)).float()


def noised_latents(
    encoding: Encoding, middle: Tensor, x: Array, asked: Array, rng: np.random.RandomState
) -> Tensor:
    """Latents ``middle`` of x with noise in the whole numbers that are asked."""
    if not encoding.whole.any():
        return middle
    noisy = encoding.latents(x + noise(encoding, x, asked, rng))
    return torch.from_numpy(np.nan_to_num(noisy)).float()
