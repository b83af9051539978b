"""The fit of a joint density: trainings of a network on questions of all kinds, from mixtures."""

import math
import time
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from indm.conditions import Vector
from indm.flows.base import Identity
from indm.model import INDM
from indm.score import ScoreModel
from indm.sde.linear import VPSDE
from indm.tables import fit as fitting
from indm.tables.columns import Array
from indm.tables.encoding import Encoding
from indm.tables.masked import MaskedMixtureMLP
from indm.tables.mixture import JointMixture, best_joint_mixture
from indm.tables.questions import (
    Question,
    Questions,
    lacking,
    middle_latents,
    noise,
    noised_latents,
)
from indm.tables.race import race
from indm.tensors import with_parts

JOINT_MIXTURE_ROWS = 5_000, 2_000  # on which a mixture is fitted, without and with missing entries
QUESTIONS = 8  # questions of a training batch, at most
HELD_QUESTIONS = 64  # questions by which a model is validated


@dataclass(frozen=True)
class JointFit:
    """Encoded rows to which a joint density is fitted.

    Args:
        options: the estimator.
        encoding: of its columns.
        x, codes: the rows, (n, d) and (n, J).
        order: of the rows, (n,); the first ``held`` of them validate.
        question: makes the questions of training.
        rng: of questions and noise.
    """

    options: Any
    encoding: Encoding
    x: Array
    codes: Array
    order: Array
    held: int
    question: Question
    rng: np.random.RandomState

    def raced(self, deadline: float) -> tuple["JointTraining", "JointTraining"]:
        """The best training, and the one from the best mixture, whose start is that mixture."""
        trainings = self._trainings(deadline)
        rows = self.order[self.held :]
        x, codes = self.x[rows], self.codes[rows]
        middle = middle_latents(self.encoding, x)
        one_hot = torch.from_numpy(self.encoding.one_hot(codes)).float()

        def batch(i: Tensor) -> tuple[Tensor, Tensor, Questions]:
            rows, questions = self._asked(x, codes, i.numpy())
            asked = questions.asked
            z = noised_latents(self.encoding, middle[rows], x[rows], asked, self.rng)
            return z, one_hot[rows], questions

        size, steps = self.options.batch_size, self.options.max_steps
        return race(trainings, batch, len(x), size, steps, deadline), trainings[0]

    def _trainings(self, deadline: float) -> list["JointTraining"]:
        """Trainings that start from the best mixture and from one Gaussian."""
        valid = self.order[: self.held][: fitting.VALIDATION_ROWS]
        one_hot = self.encoding.one_hot(self.codes)
        laws = self._mixtures(one_hot, valid, deadline)
        repeats = max(1, fitting.VALIDATION_ROWS // self.held)
        rows = np.repeat(valid, repeats)
        x, codes = self.x[rows], self.codes[rows]
        questions = [self._random_question() for _ in range(HELD_QUESTIONS)]
        chosen = np.arange(len(rows)) % HELD_QUESTIONS
        asked, given = (np.stack([pair[i] for pair in questions])[chosen] for i in (0, 1))
        posed = self._posed(asked, given, x, codes)
        middle = middle_latents(self.encoding, x)
        latents = noised_latents(self.encoding, middle, x, posed.asked, self.rng)
        return [
            JointTraining(
                self._model(law),
                latents,
                latents.new_zeros(len(rows), 0),  # c is made of the questions
                self.options.learning_rate,
                self.options.weight_decay,
                repeats,
                questions=posed,
                one_hot=torch.from_numpy(one_hot[rows]).float(),
            )
            for law in laws
        ]

    def _mixtures(self, one_hot: Array, valid: Array, deadline: float) -> list[JointMixture]:
        """The best mixture that a share of the time allows, and with one of several components a
        single Gaussian.
        """
        most_rows = JOINT_MIXTURE_ROWS[int(np.isnan(self.x).any())]
        train = self.order[self.held :][:most_rows]
        z = self.encoding.latents(self.x + noise(self.encoding, self.x, True, self.rng))
        now = time.perf_counter()
        until = now + fitting.MIXTURE_SHARE * (deadline - now)
        fitted = z[train], one_hot[train]
        held = z[valid], one_hot[valid]
        sizes, most = self.encoding.sizes, self.options.max_components
        seed = self.rng.randint(2**31 - 1)
        best = best_joint_mixture(fitted, held, sizes, most, seed, until)
        if len(best.weight) == 1:
            return [best]
        return [best, best_joint_mixture(fitted, held, sizes, 1, seed, math.inf)]

    def _model(self, law: JointMixture) -> INDM:
        """An untrained model whose network has the mixture."""
        d, options = law.mean.shape[1], self.options
        with warnings.catch_warnings():
            # a table without numbers
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            net = MaskedMixtureMLP(
                (d,),
                self.encoding.sizes,
                len(law.weight),
                options.width,
                options.depth,
                dropout=options.dropout,
            )
        parts = law.weight, law.mean, law.covariance, law.log_share
        net.set_mixture(*map(torch.from_numpy, parts))
        score = ScoreModel(net, VPSDE(eps=fitting.EPS))
        known = (d,) if d else None  # a table of categories alone has no event
        return INDM(Identity(), score, shape=known, condition=Vector(net.size))

    def _random_question(self) -> tuple[Array, Array]:
        return self.question(len(self.encoding.columns), self.rng)

    def _posed(self, asked: Array, given: Array, x: Array, codes: Array) -> Questions:
        """Questions to which rows have the answers."""
        rows = x, codes
        return Questions.posed(self.encoding, asked, given, rows).answered_by(rows)

    def _asked(self, x: Array, codes: Array, rows: Array) -> tuple[Array, Questions]:
        """Rows of a batch and what they are asked: some questions, each of rows that have the
        columns it needs.
        """
        taken, asked, given = [], [], []
        columns = np.concatenate([self.encoding.numbers, self.encoding.categories])

        def lacks(chosen: Any) -> Array:
            return np.concatenate(lacking(x[chosen], codes[chosen]), 1)

        for part in np.array_split(rows, min(QUESTIONS, len(rows))):
            a, g = self._random_question()
            needed = (a | g)[columns]
            # other rows of this question must lack the same columns
            first = lacks(part[:1])[:, needed]
            if (lacks(part)[:, needed] != first).any():
                alike = (lacks(slice(None))[:, needed] == first).all(1)
                part = self.rng.choice(np.flatnonzero(alike), len(part))
            taken.append(part)
            asked.append(np.tile(a, (len(part), 1)))
            given.append(np.tile(g, (len(part), 1)))
        chosen = np.concatenate(taken)
        masks = np.concatenate(asked), np.concatenate(given)
        return chosen, self._posed(*masks, x[chosen], codes[chosen])


class JointTraining(fitting.Training):
    """A training of a :class:`MaskedMixtureMLP` on questions of all kinds; ``questions`` and
    ``one_hot`` are of ``held``.
    """

    def __init__(self, *args: Any, questions: Questions, one_hot: Tensor):
        self.questions = questions
        self.one_hot = one_hot
        super().__init__(*args)

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

    def _average(self) -> nn.Module:
        return self.asked_average

    def _gradients(self, *batch: Any) -> dict[str, Tensor]:
        z, one_hot, questions = batch
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


def asked_model(model: Any, asked: Tensor, given: Tensor) -> INDM:
    """``model`` with its network bound to questions, see :meth:`MaskedMixtureMLP.asked`."""
    net = model.score.backbone.asked(asked, given)
    return with_parts(model, {"score": with_parts(model.score, {"backbone": net})})


def hidden(one_hot: Tensor, net: MaskedMixtureMLP, known: Array) -> Tensor:
    """``one_hot`` (n, m) with zeros where a column of categories is not ``known`` (n, J)."""
    return one_hot * torch.from_numpy(np.repeat(known, net.categories, axis=1))


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
