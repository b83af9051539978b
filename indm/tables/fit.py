r"""Training of a table's network: until validation no longer improves, then at a falling rate.

The loss is the NELBO of latents that start as a mixture
(:class:`~indm.tables.networks.MixtureMLP`). Each row is noised twice, by n and by −n: at small
noise the two gradients are nearly of opposite signs, so that their mean has little noise. Noise
levels are drawn in proportion to the root mean square of the gradients there, which is measured as
training goes, and weighted so that the loss is still the NELBO on average.
"""

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from indm.flows.base import Flow
from indm.model import INDM
from indm.objective import drawn_error, half_square, in_pairs, noise_error
from indm.sde.linear import VPSDE
from indm.tables.mixture import bounded
from indm.tables.solve import SOLVER_ERROR, at, latent_log_prob, start_log_prob
from indm.training import (
    LEVELS,
    SLOWER,
    Descent,
    NetworkHealth,
    NoiseLevels,
)

VALIDATION_ROWS = 2_048  # noised at every validation, at most
# share of the seconds, at most, in which the MLP of all columns trains alone: of few rows, of many
ALONE = 0.5, 0.0
# shares of the seconds between which a fit that time ends should have stopped to gain
MARKS = 0.35, 0.7
FLOW_BATCH, FLOW_RATE, FLOW_DECAY, FLOW_CLIP = 256, 4e-3, 1e-4, 5.0  # the training of a flow
# share of the seconds that a flow may take; the rest is for the diffusion behind it
FLOW_SHARE = 0.75
EXACT_ROWS = 256  # validation rows at which densities of two kinds are compared
EMA_DECAY, BETAS, CLIP = 0.9995, (0.9, 0.99), 1.0
EPS = 1e-4  # truncation of the diffusion
MIXTURE_SHARE = 0.2  # share of the seconds that mixtures may take
STANDARD_SDE = VPSDE()  # whose prior is N(0, I)

INTERRUPT = "interrupt"

Gain = tuple[float, float]  # nats a row, and the standard error


def paired_error(
    model: Any, c: Tensor, z: Tensor, t: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """½‖n + σ s(α z + σ n)‖² on average over the noises n = ± ``noise``, (B,); and n + σ s of both,
    (2, B, d).
    """
    noise, z, t, c = in_pairs(noise, z, t, c)
    difference = noise_error(at(model, c).score, model.sde.kernel(t), z, t, noise)
    return half_square(difference).unflatten(0, (2, -1)).mean(0), difference.unflatten(0, (2, -1))


class Validated(Descent, ABC):
    """A model in training, its average, and its best validated state.

    Args:
        held: latents (m, d) on which it is validated.
        groups: how many neighbouring rows of ``held`` are one row of the table in different noise.

    Subclasses have the errors of the average at the validation rows, nats (m,), and the gradients
    of a batch.
    """

    held: Tensor
    groups: int
    alone = math.inf  # share of the seconds, at most, in which some parts wait
    kind = "diffusion"
    own_batch: int | None = None  # rows of its first batches, in place of those that the fit has
    share = 1.0  # share of the seconds that it may have, if it is the best of a race

    @property
    def is_silenced(self) -> bool:
        """Whether a network is dead at the lowest rate, too.

        Nothing is then known of what is left to find.
        """
        return False

    def begin(self) -> None:
        """Take the start as the best state so far."""
        self.best_step, self.ended = 0, ""  # "plateau", "max_steps", "max_seconds" or "interrupt"
        self.marks: list[Tensor] = []  # the lowest errors at the shares MARKS of the seconds
        self.start = self.lowest = self.last = self._errors()
        self.best: Any = copy.deepcopy(self.ema.model)

    @abstractmethod
    def _errors(self) -> Tensor: ...

    @abstractmethod
    def _gradients(self, *batch: Any) -> dict[str, Tensor]: ...

    def update(self, batch: tuple[Any, ...], factor: float) -> bool:
        """One step on ``batch`` at ``factor`` of the rate; whether it was skipped, as something was
        not finite.
        """
        return bool(self.advance(lambda: self._gradients(*batch), factor)["skipped"])

    def validate(self) -> bool:
        """Compare the average with the best so far at the validation rows; whether it is better."""
        self.last = self._errors()
        if not self.is_lower(self.last, self.lowest):
            return False
        self.lowest = self.last
        self.best_step = self.step
        self.best = copy.deepcopy(self.ema.model)
        return True

    def is_lower(self, errors: Tensor, others: Tensor) -> bool:
        """Whether errors at the validation rows are lower than others; no single far row decides it."""
        return bool(bounded((others - errors).numpy(), self.groups).mean() > 0)

    def gain(self, start: Tensor | None = None, end: Tensor | None = None) -> tuple[float, float]:
        """Gain of the best state over a start, by default its own, and the standard error of the
        gain, nats.
        """
        gains = (self.start if start is None else start) - (self.lowest if end is None else end)
        gains = gains.unflatten(0, (-1, self.groups)).mean(1)
        if len(gains) == 1:
            return gains.item(), math.inf
        return gains.mean().item(), (gains.std() / math.sqrt(len(gains))).item()

    def error_of_nothing(self) -> float:
        """The standard error of the gain of the last validated state, where none was better than
        the start.
        """
        return self.gain(end=self.last)[1]

    def exact(self) -> Tensor:
        """−log p of the best state at the first :data:`EXACT_ROWS` validation rows, nats, up to its
        solver's error.
        """
        return self.lowest[:: self.groups][:EXACT_ROWS]

    def start_columns(self) -> bool:
        """Train the parts that wait from here on, too; whether there were any."""
        return False

    def late_gain(self) -> tuple[float, float]:
        """The :meth:`gain` between the two :data:`MARKS`; 0 where time did not end the training."""
        if self.ended != "max_seconds" or len(self.marks) < 2:
            return 0.0, 0.0
        return self.gain(*self.marks)

    def revive(self) -> None:
        """Begin anew where what is trained has died."""

    def back(self) -> None:
        """Go on from the best state."""
        self.model.load_state_dict(self.best.state_dict())
        self.ema.model.load_state_dict(self.best.state_dict())


class FlowTraining(Validated):
    """A flow of latents in training by its own likelihood, with N(0, I) behind it.

    Args:
        flow: what is trained.
        held, groups: as in :class:`Validated`.
    """

    kind = "flow"
    own_batch = FLOW_BATCH
    share = FLOW_SHARE

    def __init__(self, flow: Flow, held: Tensor, groups: int = 1):
        group = {"name": "flow", "params": list(flow.parameters()), "weight_decay": FLOW_DECAY}
        optimizer = torch.optim.AdamW([group], FLOW_RATE, BETAS, fused=True)
        super().__init__(flow, optimizer, EMA_DECAY, FLOW_CLIP)
        self.held = held
        self.groups = groups
        self.begin()

    @torch.no_grad()
    def _errors(self) -> Tensor:
        return flow_nats(self.ema.model, self.held)

    def _gradients(self, z: Tensor, _: Tensor) -> dict[str, Tensor]:
        flow_nats(self.model, z).mean().backward()
        return {}


def flow_nats(flow: nn.Module, z: Tensor) -> Tensor:
    """−log p of latents by a flow with N(0, I) behind it, (B,)."""
    h, log_det = flow(z)
    return -STANDARD_SDE.prior_log_prob(h) - log_det


def shuffled_times(
    levels: NoiseLevels, n: int, generator: torch.Generator | None = None, uniform: bool = False
) -> tuple[Tensor, ...]:
    """Times of :meth:`NoiseLevels.draw`, their weights and their cells, each (n,), in random order."""
    drawn = levels.draw(n, generator, uniform)
    order = torch.randperm(n, generator=generator)
    return tuple(part[order] for part in drawn)


@dataclass(frozen=True)
class HeldDraws:
    """The noise by which a network is validated, the same each time, at each of m validation rows."""

    c: Tensor  # the network's condition, (m, k)
    t: Tensor  # times, (m,)
    weight: Tensor  # one of each time, (m,)
    noise: Tensor  # in the latents, (m, d)
    # index of the question that the row asks, (m,); 0 where a model answers only one
    question: Tensor


class Training(Validated):
    """A diffusion model of latents in training.

    Args:
        model: what is trained, an INDM whose network is a
            :class:`~indm.tables.networks.MixtureMLP`.
        held, c_held: latents (m, d) on which it is validated, and their conditions (m, k).
        learning_rate, weight_decay: of AdamW.
        groups: as in :class:`Validated`.
        base: −log p of the start at ``held``, so that errors are the bound of −log p; without it,
            up to a constant.
        alone: share of the seconds, at most, in which the MLP of all columns trains alone.
        revives: whether a network that is dead begins anew at a lower rate.

    A network can die if its target is nearly all noise, like behind a good flow, and its rate is too
    high: its output becomes a constant, its hidden layers get no gradients any more, and no rate
    revives it. ``health`` keeps the size and the spread of what the network adds to its start.
    """

    def __init__(
        self,
        model: INDM,
        held: Tensor,
        c_held: Tensor,
        learning_rate: float,
        weight_decay: float,
        groups: int = 1,
        base: Tensor | None = None,
        alone: float = ALONE[0],
        revives: bool = True,
    ):
        group = {"name": "model", "params": list(model.parameters()), "weight_decay": weight_decay}
        optimizer = torch.optim.AdamW([group], learning_rate, BETAS, fused=True)
        super().__init__(model, optimizer, EMA_DECAY, CLIP)
        self.held = held
        self.c_held = c_held
        self.groups = groups
        self.alone = alone
        self.revives = revives
        self.clock = NoiseLevels(model.sde)
        self._switch_columns(is_off=True)
        self.model.score.backbone.mlp.output.register_forward_pre_hook(self._keep)
        self.draws = self._held_draws()
        self.unlearned: Tensor | None = None
        self.health = NetworkHealth()
        self.first = copy.deepcopy(self.model.state_dict())
        self.offset = torch.zeros(()) if base is None else base - self._bounds()
        self.begin()

    def revive(self) -> None:
        """Begin anew at a third of the rate where the network is dead; the best state is kept.

        It takes no time of its own: patience goes on as if the network lived.
        """
        if self.revives and self.health.use_revival():
            self.model.load_state_dict(self.first)
            self.restart()
            self.rates = [SLOWER * rate for rate in self.rates]

    @property
    def is_silenced(self) -> bool:
        return self.health.is_silenced

    def leave_out_unheard(self) -> None:
        """Go back to the start where the gain is within two errors of 0: a state may be the best by
        noise alone.
        """
        if self.revives and not is_gain(*self.gain()):
            self.best.load_state_dict(self.first)
            self.lowest, self.best_step = self.start, 0

    def _held_draws(self) -> HeldDraws:
        generator, m = torch.Generator().manual_seed(0), len(self.held)
        t, weight, _ = shuffled_times(self.clock, m, generator, uniform=True)
        noise = torch.randn(self.held.shape, generator=generator)
        return HeldDraws(self.c_held, t, weight, noise, torch.zeros(m, dtype=torch.long))

    def _errors(self) -> Tensor:
        """The bound of −log p of the average: −log p of the start, plus how much more the average
        errs than it.
        """
        return self.offset + self._bounds()

    @torch.no_grad()
    def _bounds(self) -> Tensor:
        """The bound of −log p of the average at the validation rows, up to a constant, by the same
        draws each time.
        """
        at_rows = self.draws
        error, difference = paired_error(
            self._average(), at_rows.c, self.held, at_rows.t, at_rows.noise
        )
        self.unlearned = difference if self.unlearned is None else self.unlearned
        added = self.unlearned - difference  # by the network to its start
        size = self._largest(added.square().mean(0))
        spread = self._largest(0.25 * (added[0] - added[1]).square())
        self.health.record(size, spread)
        return at_rows.weight * error

    def _average(self) -> nn.Module:
        """The average as it is validated."""
        return self.ema.model

    def _largest(self, square: Tensor) -> float:
        """The root mean square of rows (m, d) at the noise level where it is largest."""
        levels = square.sum(1)[self.draws.t.argsort()].tensor_split(LEVELS)
        return max(level.mean().sqrt().item() for level in levels if len(level))

    def exact(self) -> Tensor:
        """By the ODE, of which the bound falls short the more the network has learned; for a model
        without a flow.
        """
        z, c = (part[:: self.groups][:EXACT_ROWS].double() for part in (self.held, self.draws.c))
        model = at(copy.deepcopy(self.best).double(), c)
        log_p, _ = latent_log_prob(model, z, SOLVER_ERROR)
        return -log_p.float()

    def _keep(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self.hidden = inputs[0].detach()

    def _gradients(self, *batch: Any) -> dict[str, Tensor]:
        z, c = batch
        self._denoising(self.model, z, c).backward()
        return {}

    def _denoising(self, model: Any, z: Tensor, c: Tensor, mask: Tensor | float = 1.0) -> Tensor:
        """The bound of −log p(z|c) by ``model``, up to a constant, for each column; noise is only
        where ``mask`` is 1.
        """
        t, weight, cell = shuffled_times(self.clock, len(z))
        error, difference = paired_error(model, c, z, t, mask * torch.randn_like(z))
        self.clock.measure(
            cell, gradient_square(difference.detach(), self.hidden.unflatten(0, (2, -1)))
        )
        return (weight * error).mean().div(z.shape[1])

    def _switch_columns(self, is_off: bool) -> None:
        for model in (self.model, self.ema.model):
            model.score.backbone.columns.is_off = is_off

    def start_columns(self) -> bool:
        """Train the MLP of single columns from here on, too; whether it was off.

        It soon learns what a column adds by itself. The MLP of all columns learns from the same
        errors and may then stay at zero, where it starts. So that one first trains alone.
        """
        was_off = self.model.score.backbone.columns.is_off
        self._switch_columns(is_off=False)
        return was_off


def is_gain(gain: float, error: float) -> bool:
    """Whether a gain counts: it is above two standard errors."""
    return gain > 2 * error


def gradient_square(difference: Tensor, hidden: Tensor) -> Tensor:
    """‖Σ d ⊗ h‖² over both noises, (B,), for errors d (2, B, d) and the last layer's inputs h (2,
    B, width).

    It is four times the squared gradient of :func:`paired_error` for that layer's weights.
    """
    return torch.einsum("ibd,jbd,ibw,jbw->b", difference, difference, hidden, hidden)


@torch.no_grad()
def bounds_of(model: INDM, z: Tensor, c: Tensor, pairs: int, generator: torch.Generator) -> Tensor:
    """Draws of the NELBO's negative at latents z (B, d) and c (B, k), each by a pair of noises,
    nats (B, pairs).
    """
    start = start_log_prob(at(model, c), z)
    h, c = (part.repeat_interleave(pairs, 0) for part in (model.flow(z)[0], c))
    t, weight, _ = (
        part.to(z)
        for part in shuffled_times(NoiseLevels(model.sde), len(h), generator, uniform=True)
    )
    noise = torch.randn(h.shape, generator=generator, dtype=h.dtype)
    change = weight * drawn_error(at(model, c).score, True, h, t, noise, pairs=True)[0]
    return start[:, None] - change.reshape(-1, pairs)
