"""The model of a table: it starts from the best mixture, from one Gaussian or from a flow, and a
race tells which of them ends best.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from indm.checks import counted
from indm.conditions import Vector
from indm.flows.base import Flow, Identity
from indm.flows.masked import MaskedFlow
from indm.model import INDM
from indm.score import ScoreModel
from indm.sde.linear import VPSDE
from indm.tables import fit as fitting
from indm.tables import solve
from indm.tables.columns import Array, Columns
from indm.tables.mixture import MIXTURE_SIZES, Mixture, best_mixture, bounded, with_one_gaussian
from indm.tables.networks import MixtureMLP
from indm.tables.race import One, race
from indm.tables.report import is_unknown
from indm.tables.rows import Table, noisy

MIXTURE_ROWS = 5_000  # to fit a mixture on
DRAWS_OF_MIXTURE = 8  # draws of the noise of discrete columns that validate a mixture
# rows from which on a flow may be the start; from which on batches are large
FLOW_ROWS, MANY_ROWS = 2_000, 5_000
BATCH_SIZES, LEARNING_RATES = (128, 512), (4e-3, 6e-3)  # for few rows, and for many
# rows and seconds of a fit from which on a dead network begins anew
FEWEST_TO_REVIVE, LEAST_SECONDS = 50, 10.0
# factor of the learning rate behind a flow, where little but noise is left to fit
BEHIND_A_FLOW = 0.2


def pace(options: Any, is_large: bool) -> tuple[int, float]:
    """The batch size and the learning rate of a fit to many rows, or to few."""
    size = options.batch_size or BATCH_SIZES[is_large]
    return size, options.learning_rate or LEARNING_RATES[is_large]


class Mixtures(NamedTuple):
    """The mixtures from which a fit may start."""

    columns: Columns  # their map to latents
    mixtures: list[Mixture]  # the best, and a single Gaussian if that has several components
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
            return None if is_unknown(one) else one.gain(self.base)
        if one.is_silenced or fitting.is_gain(*self.control):
            return None
        return 0.0, one.error_of_nothing()

    def __str__(self) -> str:
        gain, error = self.training.gain(self.base)
        return (
            f"mixture of {len(self.start.mixtures[0].weight)}, validation {self.start.value:.4f} nats; "
            f"start {self.name}, {self.base.mean():.4f}, {gain:+.4f} ± {error:.4f} by the network, "
            f"at step {self.training.best_step} of {self.training.step}, ended by {self.training.ended}"
        )


@dataclass(frozen=True)
class Fits:
    """Fits of single models to rows of a table, of its columns that vary.

    Args:
        options: the estimator.
        whole: indices of the columns of whole numbers, which get noise.
        n_conditions: numbers of a condition.
    """

    options: Any
    whole: Array
    n_conditions: int = 0

    def fitted(
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
        held = self._with_noise(valid.rows(np.repeat(np.arange(most), repeats)), rng)
        first = self._with_noise(train.rows(slice(MIXTURE_ROWS)), rng)
        start = self.start(first, held, maps, rng.randint(2**31 - 1), deadline, repeats)
        data = self._latents_of(start.columns, train, held, repeats, deadline)
        trainings = self.trainings(Identity(), start.mixtures, data)
        flowing = []
        if self._may_flow(data.n):
            flow = MaskedFlow(data.held.shape[1:])
            flowing.append(fitting.FlowTraining(flow, data.held, repeats))
        best = self.race([*trainings, *flowing], data, self.options.max_steps)
        late = best.late_gain()
        control = 0.0, 0.0
        if best in flowing:
            best, control = self.corrected(flowing[0], data, rng.randint(2**31 - 1))
        mixture = trainings[0].start
        return Fitted(start, mixture, best, max(late, best.late_gain()), control)

    def _with_noise(self, table: Table, rng: np.random.RandomState) -> Table:
        return table._replace(X=noisy(table.X, self.whole, rng))

    def _may_flow(self, rows: int) -> bool:
        """Whether a flow is a start, too."""
        flow = self.options.flow
        is_wanted = rows >= FLOW_ROWS if flow is None else flow
        return bool(is_wanted and self.options.max_steps and not self.n_conditions)

    def _latents_of(
        self, columns: Columns, train: Table, held: Table, draws: int, deadline: float
    ) -> Latents:
        """The latents of rows that train, and of rows that validate, which have their noise
        already.
        """
        c = torch.from_numpy(train.c).float()
        if not len(self.whole):  # otherwise a batch has noise of its own
            latents = torch.from_numpy(columns.latents(*train)).float()

        def batch(i: Tensor) -> tuple[Tensor, Tensor]:
            if not len(self.whole):
                return latents[i], c[i]
            rows = train.rows(i.numpy())
            noise = torch.rand(len(i), len(self.whole), dtype=torch.float64)
            rows.X[:, self.whole] += 1 - noise.numpy()
            return torch.from_numpy(columns.latents(*rows)).float(), c[i]

        z, c_held = (torch.from_numpy(part).float() for part in (columns.latents(*held), held.c))
        return Latents(columns, len(train.X), batch, z, c_held, draws, deadline)

    def trainings(
        self, flow: Flow, mixtures: Sequence[Mixture], data: Latents
    ) -> list[fitting.Training]:
        """Trainings behind ``flow`` that start from mixtures of its latents."""
        models = [self._build(mixture, flow, data.columns) for mixture in mixtures]
        starts = [solve.start_log_prob(solve.at(model, data.c_held), data.held) for model in models]
        with torch.no_grad():
            h, _ = flow(data.held)
        is_large = self._is_large(data.n)
        _, rate = pace(self.options, is_large)
        if not flow.is_identity:
            rate = rate * BEHIND_A_FLOW
        return [
            fitting.Training(
                model,
                h,
                data.c_held,
                rate,
                self.options.weight_decay,
                data.draws,
                base=-start,
                alone=fitting.ALONE[is_large],
                revives=data.n >= FEWEST_TO_REVIVE and self.options.max_seconds >= LEAST_SECONDS,
            )
            for model, start in zip(models, starts, strict=True)
        ]

    def race(self, trainings: Sequence[One], data: Latents, max_steps: int) -> One:
        """The best of trainings on the same rows, in the time that is left."""
        size, _ = pace(self.options, self._is_large(data.n))
        return race(trainings, data.batch, data.n, size, max_steps, data.deadline)

    def _is_large(self, rows: int) -> bool:
        """Whether a fit to so many rows has large batches."""
        return rows >= MANY_ROWS and not self.n_conditions

    def corrected(
        self, flowing: fitting.FlowTraining, data: Latents, seed: int
    ) -> tuple[fitting.Training, fitting.Gain]:
        """A model behind the trained flow, which stays as it is; it starts from a mixture of the
        flow's latents.

        Also the gain of that mixture over the flow alone.
        """
        flow = flowing.best
        is_over = flowing.ended == fitting.INTERRUPT

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
        most = 1 if is_over else self._most_components()
        mixture = best_mixture(train, held, most, seed, until, data.draws)
        mixtures = with_one_gaussian(mixture, train, held, seed, data.draws)
        steps = 0 if is_over else self.options.max_steps
        trainings = self.trainings(flow, mixtures, data)
        best = self.race(trainings, data._replace(batch=behind), steps)
        best.leave_out_unheard()
        best.ended = fitting.INTERRUPT if is_over else best.ended
        return best, flowing.gain(flowing.lowest, trainings[0].start)

    def _most_components(self) -> int:
        """The largest number of components of a mixture."""
        if self.options.max_components is not None:
            return self.options.max_components
        return 1 if self.n_conditions else max(MIXTURE_SIZES)

    def start(
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
        now = time.perf_counter()
        draws = min(repeats, DRAWS_OF_MIXTURE)
        few = held.rows(np.arange(len(held.X)) % repeats < draws)
        found = []
        for i, columns in enumerate(maps, 1):
            z, valid = (table._replace(X=columns.latents(*table)) for table in (train, few))
            until = now + fitting.MIXTURE_SHARE * (deadline - now) * i / len(maps)
            mixture = best_mixture(z, valid, self._most_components(), seed, until, draws)
            log_p = mixture.log_prob(*valid) + columns.log_volume(few.X)
            found.append((columns, mixture, z, valid, log_p))
        best, *others = found
        for other in others:
            gain = bounded(other[-1] - best[-1], draws)
            if gain.mean() > gain.std() / math.sqrt(len(gain)):
                best = other
        columns, mixture, z, valid, value = best
        return Mixtures(columns, with_one_gaussian(mixture, z, valid, seed, draws), value.mean())

    def _build(self, mixture: Mixture, flow: Flow, columns: Columns) -> INDM:
        """An untrained model behind ``flow`` whose network has the mixture, and the columns if they
        are its latents.
        """
        options, shape = self.options, (mixture.d,)
        condition = Vector(self.n_conditions) if self.n_conditions else None
        backbone = MixtureMLP(
            shape,
            len(mixture.weight),
            options.width,
            options.depth,
            dropout=options.dropout,
            condition=condition.seen_shape if condition else (),
        )
        law = mixture.weight, mixture.mean, mixture.covariance
        backbone.set_mixture(*map(torch.from_numpy, law))
        if flow.is_identity:
            of_columns = np.linalg.inv(columns.whitening), columns.mean, columns.slope
            backbone.set_columns(*map(torch.from_numpy, of_columns))
        narrowest = np.linalg.eigvalsh(mixture.covariance).min()
        # with noise of a hundredth of that variance, at most
        sde = VPSDE(eps=min(fitting.EPS, narrowest / 10))
        return INDM(flow, ScoreModel(backbone, sde), shape=shape, condition=condition)
