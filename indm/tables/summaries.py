"""Numbers that summarise an observation of any shape, by a network that is trained on the posterior's own bound."""

import copy
import itertools
import time
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from indm.checks import require
from indm.conditions import Numbers
from indm.flows.base import Identity
from indm.model import INDM
from indm.score import ScoreModel
from indm.sde.linear import VPSDE
from indm.tables.columns import Array, Columns
from indm.tables.estimator import DensityEstimator
from indm.tables.fit import EPS, Training, train
from indm.tables.networks import MixtureMLP

HELD_ROWS = 512  # rows of validation, at least, of which some are one row in other noise
EMBEDDED_AT_ONCE = 1_024
PLACES = 8  # places of a series, at most, that are left for the last layers


class SeriesEmbedding(nn.Sequential):
    """``size`` numbers of series (n, channels, length): convolutions of stride 2 until 8 places are left, then an MLP.

    Example: two channels of 40 days.

        >>> SeriesEmbedding((2, 40))(torch.zeros(3, 2, 40)).shape
        torch.Size([3, 8])
    """

    def __init__(self, event: tuple[int, int], size: int = 8, width: int = 32):
        channels, length = event
        layers: list[nn.Module] = []
        while length > PLACES or not layers:
            layers += [nn.Conv1d(channels, width, 5, stride=2, padding=2), nn.SiLU()]
            channels, length = width, (length + 1) // 2
        head = nn.Linear(width * length, 2 * width), nn.SiLU(), nn.Linear(2 * width, size)
        super().__init__(*layers, nn.Flatten(), *head)


class SetEmbedding(nn.Module):
    """``size`` numbers of sets (n, features, members), whatever the order of the members: an MLP of the mean over
    members of an MLP of each.

    Source: Zaheer et al. 2017, "Deep Sets", https://arxiv.org/abs/1703.06114.

    Example: the order of 30 members with two features each.

        >>> x = torch.randn(1, 2, 30, generator=torch.Generator().manual_seed(0))
        >>> embedding = SetEmbedding((2, 30))
        >>> torch.allclose(embedding(x), embedding(x.flip(2)), atol=1e-6)
        True
    """

    def __init__(self, event: tuple[int, int], size: int = 8, width: int = 64):
        super().__init__()
        sizes = event[0], width, width, width
        layers = [(nn.Conv1d(*pair, 1), nn.SiLU()) for pair in itertools.pairwise(sizes)]
        self.of_members = nn.Sequential(*itertools.chain(*layers))
        self.of_mean = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size))

    def forward(self, x: Tensor) -> Tensor:
        return self.of_mean(self.of_members(x).mean(2))


DATA_EMBEDDINGS = {"series": SeriesEmbedding, "set": SetEmbedding}


def made(name: str, x: Array) -> tuple[nn.Module, Array]:
    """The embedding of that name, for observations (n, channels, length), which are returned; or (n, length)."""
    require(name in DATA_EMBEDDINGS, "embedding", name, f"a module, or one of {', '.join(DATA_EMBEDDINGS)}")
    x = x[:, None] if x.ndim == 2 else x
    require(x.ndim == 3, "x", x.shape, f'of shape (n, length) or (n, channels, length) for embedding="{name}"')
    return DATA_EMBEDDINGS[name](x.shape[1:]), x


class Embedded(Numbers):
    """An observation of any shape, standardised along its first axis, that networks see through an embedding, and a
    one."""

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
        return torch.cat([self(rows.float())[:, :-1] for rows in c.split(EMBEDDED_AT_ONCE)]).double().numpy()


def trained(embedding: nn.Module | str, theta: Array, x: Array, is_valid: Array, options: DensityEstimator) -> Embedded:
    """A trained copy of ``embedding``, in a posterior that starts as N(0, I) and sees x through it alone.

    Args:
        embedding: (n, *event) → (n, …); or its name in ``DATA_EMBEDDINGS``.
        theta: varying parameters, as numbers of the whole line, (n, d).
        x: observations (n, *event).
        is_valid: the rows of validation, (n,), by which the best state is chosen.
        options: size of the network, its optimizer, and ``max_seconds``.
    """
    deadline = time.perf_counter() + options.max_seconds
    if isinstance(embedding, str):
        embedding, x = made(embedding, x)
    none = np.zeros((len(theta), 0))
    z = torch.from_numpy(Columns.fitted(theta, none, np.array([], dtype=int)).latents(theta, none)).float()
    observed = torch.from_numpy(x).float()
    condition, shape = Embedded(copy.deepcopy(embedding).float(), observed), z.shape[1:]
    net = MixtureMLP(shape, 1, options.width, options.depth, dropout=options.dropout, condition=condition.seen_shape)
    model = INDM(Identity(), ScoreModel(net, VPSDE(eps=EPS)), shape=shape, condition=condition)
    c, valid = observed.flatten(1), torch.from_numpy(is_valid)
    repeats = max(1, HELD_ROWS // int(is_valid.sum()))
    held, c_held = (part[valid].repeat_interleave(repeats, 0) for part in (z, c))
    size, rate = options.pace(is_large=False)
    fitting = Training(model, held, c_held, rate, options.weight_decay, repeats)
    z, c = z[~valid], c[~valid]
    for _ in train(fitting, lambda i: (z[i], c[i]), len(z), size, options.max_steps, deadline):
        pass
    return cast(Embedded, fitting.best.condition)
