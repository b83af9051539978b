"""Laws of small discrete images whose probabilities and entropy are known exactly.

Images are raw grey levels 0 … levels − 1 of shape (C, H, W); their entries are taken in the order of their memory.
"""

import math
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from indm.scaling import Scaling
from indm.workbench.data.base import Data, InMemory

MOST_STATES = 2**20  # images that are enumerated, at most


class DiscreteLaw(ABC):
    """A law of images with ``shape`` (C, H, W) and grey levels 0 … ``levels`` − 1."""

    shape: tuple[int, ...]
    levels: int

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` independent images, (n, *shape) uint8."""

    @abstractmethod
    def log_prob(self, raw: Tensor) -> Tensor:
        """log P of images (n, *shape), in nats, (n,) float64; −inf where they cannot be."""

    @property
    @abstractmethod
    def entropy(self) -> float:
        """E[−log P], in nats of one image."""

    @property
    def size(self) -> int:
        """Entries of one image."""
        return math.prod(self.shape)

    def atoms(self) -> list[Tensor]:
        """The levels that each entry can have."""
        return [torch.arange(self.levels)] * self.size

    def support(self) -> Tensor:
        """All images of positive probability, (states, *shape)."""
        atoms = self.atoms()
        states = math.prod(map(len, atoms))
        if states > MOST_STATES:
            raise ValueError(f"the law must have at most {MOST_STATES:,} states, got {states:,}")
        images = self._images(torch.cartesian_prod(*atoms))
        return images[self.log_prob(images).isfinite()]

    def excess(self, nats: Tensor, raw: Tensor) -> Tensor:
        """The distance of bounds ``nats`` (n,) from −log P of ``raw``, in bits of an entry, (n,) float64."""
        return (nats.double() + self.log_prob(raw)) / (self.size * math.log(2))

    def data(self, train: int = 200_000, valid: int = 1000, seed: int = 0) -> Data:
        """Draws of the law as data to train on; the test split is as large as the validation split."""
        generator = torch.Generator().manual_seed(seed)
        counts = {"train": train, "valid": valid, "test": valid}
        parts = {part: InMemory(self.sample(n, generator)) for part, n in counts.items()}
        scaling = Scaling.images(self.levels)
        return Data(name="discrete", scaling=scaling, shape=self.shape, entropy=self.entropy, **parts)

    def bits_per_dim(self, nats: float) -> float:
        """Nats of an image as bits of an entry."""
        return nats / (self.size * math.log(2))

    def _images(self, entries: Tensor) -> Tensor:
        return entries.to(torch.uint8).reshape(-1, *self.shape)


class Independent(DiscreteLaw):
    """Independent entries.

    Args:
        probabilities: (entries, levels), or (levels,) where all entries have one law.
        shape: of an image.
    """

    def __init__(self, probabilities: Tensor, shape: tuple[int, ...]):
        self.shape, self.levels = shape, probabilities.shape[-1]
        self.probabilities = normalised(probabilities).expand(self.size, -1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        columns = [torch.multinomial(p, n, replacement=True, generator=generator) for p in self.probabilities]
        return self._images(torch.stack(columns, 1))

    def log_prob(self, raw: Tensor) -> Tensor:
        entries = raw.flatten(1).long()
        return self.probabilities.log()[torch.arange(self.size), entries].sum(1)

    @property
    def entropy(self) -> float:
        return entropies(self.probabilities).sum().item()

    def atoms(self) -> list[Tensor]:
        return [p.nonzero()[:, 0] for p in self.probabilities]


class Markov(DiscreteLaw):
    """A Markov chain along the entries.

    Args:
        start: (levels,), the law of the first entry.
        transition: (levels, levels), row i the law of an entry after one of level i.
        shape: of an image.
    """

    def __init__(self, start: Tensor, transition: Tensor, shape: tuple[int, ...]):
        self.shape, self.levels = shape, len(start)
        self.start, self.transition = normalised(start), normalised(transition)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        entries = [torch.multinomial(self.start, n, replacement=True, generator=generator)]
        for _ in range(self.size - 1):
            entries.append(torch.multinomial(self.transition[entries[-1]], 1, generator=generator)[:, 0])
        return self._images(torch.stack(entries, 1))

    def log_prob(self, raw: Tensor) -> Tensor:
        entries = raw.flatten(1).long()
        steps = self.transition.log()[entries[:, :-1], entries[:, 1:]]
        return self.start.log()[entries[:, 0]] + steps.sum(1)

    @property
    def entropy(self) -> float:
        """The entropy of the first entry, and of each further one given its predecessor with the law ``marginal``."""
        total, marginal = entropies(self.start), self.start
        for _ in range(self.size - 1):
            total = total + marginal @ entropies(self.transition)
            marginal = marginal @ self.transition
        return total.item()


class Mixture(DiscreteLaw):
    """A mixture of laws with independent entries; its entropy comes from a sum over all its states.

    Args:
        weights: (K,).
        parts: K laws of one shape.
    """

    def __init__(self, weights: Tensor, parts: list[Independent]):
        self.weights, self.parts = normalised(weights), parts
        self.shape, self.levels = parts[0].shape, parts[0].levels

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        images = torch.stack([part.sample(n, generator) for part in self.parts])
        return images[which, torch.arange(n)]

    def log_prob(self, raw: Tensor) -> Tensor:
        return torch.stack(
            [w.log() + part.log_prob(raw) for w, part in zip(self.weights, self.parts, strict=True)]
        ).logsumexp(0)

    def atoms(self) -> list[Tensor]:
        return [torch.cat(levels).unique() for levels in zip(*(part.atoms() for part in self.parts), strict=True)]

    @cached_property
    def entropy(self) -> float:  # type: ignore[override]
        log_prob = self.log_prob(self.support())
        return -(log_prob.exp() * log_prob).sum().item()


def normalised(weights: Tensor) -> Tensor:
    """Weights in float64 that sum to 1 along the last axis."""
    weights = weights.double()
    return weights / weights.sum(-1, keepdim=True)


def entropies(probabilities: Tensor) -> Tensor:
    """−Σ p log p along the last axis, nats."""
    return -torch.xlogy(probabilities, probabilities).sum(-1)


def bell(levels: int, centre: float, width: float) -> Tensor:
    """Probabilities of levels under a normal law of the line cut into bins: centre and width in levels."""
    normal = torch.distributions.Normal(torch.tensor(centre).double(), width)
    edges = torch.arange(levels + 1).double()
    return normalised(normal.cdf(edges).diff())


def random_walk(levels: int, width: float, back: float = 0.9) -> Tensor:
    """(levels, levels): from level i to a bell around a level that is ``back`` times as far from the middle."""
    middle = levels / 2
    return torch.stack([bell(levels, middle + back * (i + 0.5 - middle), width) for i in range(levels)])
