"""Answers of a fitted joint density: log p and draws of any columns of rows, given others."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indm.model import INDM
from indm.sampling import sample
from indm.tables import solve
from indm.tables.columns import FAR, Array, are_near
from indm.tables.encoding import Encoding, are_missing
from indm.tables.joint_fit import asked_model, chain_log_prob, hidden
from indm.tables.masked import MaskedMixtureMLP
from indm.tables.mixture import LAW_ENTRIES
from indm.tables.questions import Questions, middle_latents


@dataclass(frozen=True)
class Answers:
    """log p and draws of columns of a table's rows, given other columns.

    Args:
        encoding: of the columns.
        model: of the latents of numbers.
        draws: points of the noise where three or more whole numbers are asked.
        progress: whether calls that last show a bar.
    """

    encoding: Encoding
    model: INDM
    draws: int
    progress: bool

    def parts(self, model: INDM, questions: Questions) -> Iterator[tuple[Array, Tensor, INDM]]:
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

    def filled(
        self, X: Array, rng: np.random.RandomState, steps: int, known: Array | bool = True
    ) -> Array:
        """Rows (n, columns) with draws in place of missing entries, given the others that are
        ``known``.
        """
        x, codes = self.encoding.encoded(X)
        is_there = ~are_missing(X)
        questions = Questions.posed(self.encoding, ~is_there, is_there & known, (x, codes))
        table = self.encoding.table(*self.drawn((x, codes), questions, steps, rng))
        absent = [column.is_absent for column in self.encoding.columns]
        found = np.where(is_there, X.astype(object), table)
        # it may have entries of any kind
        return found if is_there[:, absent].any() else found.astype(table.dtype)

    def drawn(
        self,
        rows: tuple[Array, Array],
        questions: Questions,
        steps: int,
        rng: np.random.RandomState,
    ) -> tuple[Array, Array]:
        """Latents, NaN where a spike was drawn, and codes of asked columns, given ``rows``; NaN and
        −1 in others.
        """
        model = copy.deepcopy(self.model).float()
        x = rows[0]
        codes = rows[1].copy()
        z = middle_latents(self.encoding, x)
        known = questions.given_codes.copy()
        for j in range(known.shape[1]):
            asked = np.flatnonzero(questions.asked_codes[:, j])
            for part, index, bound in self.parts(model, questions[asked]):
                net = bound.score.backbone
                chosen = asked[part]
                one_hot = torch.from_numpy(self.encoding.one_hot(codes[chosen])).float()
                c = net.condition(z[chosen], hidden(one_hot, net, known[chosen]), index)
                with torch.no_grad():
                    log_prob = net.category_log_prob(c).split(net.categories, 1)[j]
                gumbel = rng.gumbel(size=log_prob.shape)
                codes[chosen, j] = (log_prob.double().numpy() + gumbel).argmax(1)
            known[asked, j] = True
        spiked = np.zeros(x.shape, dtype=bool)  # entries whose codes give their values
        for j, i in enumerate(self.encoding.categories):
            spiked[:, self.encoding.numbers == i] = codes[:, j : j + 1] > 0
        questions = replace(questions, asked=questions.asked & ~spiked)
        generator = torch.Generator().manual_seed(rng.randint(2**31 - 1))
        one_hot = torch.from_numpy(self.encoding.one_hot(codes)).float()
        found = np.full(z.shape, np.nan)
        with_numbers = np.flatnonzero(questions.asked.any(1))
        with solve.bar_of(len(with_numbers), "draws", self.progress) as bar:
            for local, index, bound in self.parts(model, questions[with_numbers]):
                net = bound.score.backbone
                part = with_numbers[local]
                c = net.condition(z[part], hidden(one_hot[part], net, known[part]), index)
                drawn = sample(
                    bound, len(part), c=c, steps=steps, generator=generator, **solve.DRAWING
                ).numpy()
                found[part] = np.where(questions.asked[part], drawn, np.nan)
                bar.update(len(part))
        return found, np.where(questions.asked_codes, codes, -1)

    def check_possible(self, X: Array) -> None:
        """ValueError for a number outside of its bounds: given it, the others have no density."""
        x, _ = self.encoding.encoded(X)
        outside = np.argwhere(~self.encoding.is_possible(x))
        if len(outside):
            row, j = outside[0]
            column = self.encoding.columns[self.encoding.numbers[j]]
            raise ValueError(
                f"{column.name} must be inside of its bounds, got {x[row, j]:g} in row {row}"
            )

    def log_prob(self, X: Array, asked: Array, given: Array, tol: float) -> Array:
        """log p of asked columns of rows ``X`` given others, masks (n, columns) each."""
        found = self.constant_log_prob(X, asked)
        x, codes = self.encoding.encoded(X)
        rows_of = x, codes
        questions = Questions.posed(self.encoding, asked, given, rows_of).answered_by(rows_of)
        is_counted = questions.asked | questions.given
        found += np.where((self.encoding.is_possible(x) | ~is_counted).all(1), 0.0, -np.inf)
        rows = np.flatnonzero(np.isfinite(found))
        whole = questions.asked & self.encoding.whole
        errors = [torch.zeros(0)]
        with solve.bar_of(len(rows), "log p", self.progress) as bar:
            for mask in np.unique(whole[rows], axis=0):
                own = rows[(whole[rows] == mask).all(1)]

                def log_density(
                    chosen: Array, points: Array, own: Array = own, mask: Array = mask
                ) -> Array:
                    picked = np.repeat(own[chosen], len(points))
                    noise = np.tile(0.5 * self.encoding.whole, (len(picked), 1))
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

    def constant_log_prob(self, X: Array, asked: Array) -> Array:
        """0 where the asked constant columns have their value or none, else −∞, (n,)."""
        found = np.zeros(len(X))
        for i, column in enumerate(self.encoding.columns):
            value = column.constant
            if value is not None:
                rows = np.flatnonzero(~are_missing(X[:, i]) & asked[:, i])
                entries = X[rows, i]
                is_number = isinstance(value, float)
                same = are_near(entries.astype(float), value) if is_number else entries == value
                found[rows[~same]] = -np.inf
        return found

    def _log_density(
        self, x: Array, noise: Array, codes: Array, questions: Questions, tol: float
    ) -> tuple[Array, Tensor]:
        """log p of the numbers x + noise and the codes that are asked, (n,), and the errors of the
        ODE, (n,).
        """
        z = torch.from_numpy(np.nan_to_num(self.encoding.latents(x + noise)))
        volume = np.where(
            questions.asked, np.nan_to_num(self.encoding.log_volume(x + noise)), 0.0
        ).sum(1)
        one_hot = torch.from_numpy(self.encoding.one_hot(codes))
        found = torch.zeros(len(x), dtype=torch.double)
        errors = torch.zeros(len(x), dtype=torch.double)
        for rows, index, model in self.parts(self.model, questions):
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
                found[rows[solved]] += value - unasked_log_prob(self.model.sde, ~asked)
                errors[rows[solved]] = error
        return found.numpy() + volume, errors

    def near(self, X: Array) -> Array:
        """Mask of the entries but numbers out of bounds, or farther than :data:`FAR` from most, (n,
        columns).
        """
        x, _ = self.encoding.encoded(X)
        found = np.ones(X.shape, dtype=bool)
        numbers = self.encoding.numbers
        with np.errstate(all="ignore"):
            z = self.encoding.latents(x + 0.5 * self.encoding.whole)
        found[:, numbers] = np.isnan(x) | self.encoding.is_possible(x) & (np.abs(z) <= FAR)
        return found


def unasked_log_prob(sde: Any, unasked: Tensor) -> Tensor:
    """Log density of the columns that are not asked, each N(0, 1), at the value 0, (n,)."""
    (log_alpha,) = sde.log_alpha(sde.endpoints(torch.zeros(1, dtype=torch.double))[0]).unbind()
    return unasked.sum(1) * (log_alpha - 0.5 * math.log(2 * math.pi))
