"""Numbers that summarise an observation of any shape, by a network trained on the posterior's own
bound.
"""

import copy
import time
from typing import Any, cast

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor, nn

from indm.conditions import Numbers
from indm.flows.base import Identity
from indm.model import INDM
from indm.score import ScoreModel
from indm.sde.linear import VPSDE
from indm.tables.columns import Array, Columns, to_line
from indm.tables.estimator import DensityEstimator
from indm.tables.fit import EPS, Training
from indm.tables.networks import MixtureMLP
from indm.tables.prior import Prior
from indm.tables.race import train
from indm.tables.start import pace

HELD_ROWS = 512  # rows of validation, at least, of which some are one row in other noise
EMBEDDED_AT_ONCE = 1_024


class Embedded(Numbers):
    """An observation of any shape, standardised along its first axis; networks see the output of an
    embedding and a one.
    """

    def __init__(self, embedding: nn.Module, x: Tensor):
        super().__init__(x.shape[1], 0.0, False)
        self.embedding, self._event = embedding, tuple(x.shape[1:])
        self.fit(x)
        self.size = self.numbers(x[:2].flatten(1)).shape[1]

    @property
    def event(self) -> tuple[int, ...]:
        return self._event

    @property
    def seen_shape(self) -> tuple[int, ...]:
        return (self.size + 1,)

    @classmethod
    def of_data(cls, c: Tensor, labels: Any) -> dict[str, Any]:
        raise NotImplementedError("an embedding is made for its data")

    def rows(self, c: Any, n: int | None = None) -> Tensor:
        return super().rows(torch.as_tensor(c).reshape(-1, *self.event), n).flatten(1)

    def forward(self, c: Tensor) -> Tensor:
        seen = self.embedding(super().forward(c.unflatten(1, self.event))[:, :-1]).flatten(1)
        return torch.cat([seen, torch.ones_like(seen[:, :1])], 1)

    @torch.no_grad()
    def numbers(self, c: Tensor) -> Array:
        """The output of the embedding at flat rows c, (n, size)."""
        self.eval()
        return (
            torch.cat([self(rows.float())[:, :-1] for rows in c.split(EMBEDDED_AT_ONCE)])
            .double()
            .numpy()
        )


def embedded(
    embedding: nn.Module, options: DensityEstimator, theta: Array, x: Array, prior: Prior
) -> tuple[Embedded, Array]:
    """The trained embedding, in half of the seconds of ``options``, which keep the other half; and
    the order of the rows, of which the first, that validate, did not train it.
    """
    rng = check_random_state(options.random_state)
    options.n_models = 1
    options.max_seconds = options.max_seconds / 2
    order = rng.permutation(len(theta))
    held = max(1, round(options.validation_fraction * len(theta)))
    is_valid = np.isin(np.arange(len(theta)), order[:held])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.randint(2**31 - 1))
        varying = to_line(theta, prior.interval)[:, np.ptp(theta, axis=0) > 0]
        return trained(embedding, varying, x, is_valid, options), order


def trained(
    embedding: nn.Module, theta: Array, x: Array, is_valid: Array, options: DensityEstimator
) -> Embedded:
    """A trained copy of ``embedding``, in a posterior that starts as N(0, I) and sees x through it
    alone.

    Args:
        embedding: (n, *event) → (n, …).
        theta: varying parameters, as numbers of the whole line, (n, d).
        x: observations (n, *event).
        is_valid: the rows of validation, (n,), by which the best state is chosen.
        options: size of the network, its optimizer, and ``max_seconds``.
    """
    deadline = time.perf_counter() + options.max_seconds
    none = np.zeros((len(theta), 0))
    z = torch.from_numpy(
        Columns.fitted(theta, none, np.array([], dtype=int)).latents(theta, none)
    ).float()
    observed = torch.from_numpy(x).float()
    condition, shape = Embedded(copy.deepcopy(embedding).float(), observed), z.shape[1:]
    net = MixtureMLP(
        shape,
        1,
        options.width,
        options.depth,
        dropout=options.dropout,
        condition=condition.seen_shape,
    )
    model = INDM(Identity(), ScoreModel(net, VPSDE(eps=EPS)), shape=shape, condition=condition)
    c, valid = observed.flatten(1), torch.from_numpy(is_valid)
    repeats = max(1, HELD_ROWS // int(is_valid.sum()))
    held, c_held = (part[valid].repeat_interleave(repeats, 0) for part in (z, c))
    size, rate = pace(options, is_large=False)
    fitting = Training(model, held, c_held, rate, options.weight_decay, repeats)
    z, c = z[~valid], c[~valid]
    for _ in train(fitting, lambda i: (z[i], c[i]), len(z), size, options.max_steps, deadline):
        pass
    return cast(Embedded, fitting.best.condition)
