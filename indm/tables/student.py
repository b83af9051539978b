"""A student of a density estimator: a network that gives log p in one pass, fitted to the log p of the ODE."""

import itertools
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor, nn
from torch.nn import functional as F

from indm.nets.embedding import with_waves
from indm.training import Descent, course, learning_rate_factor

LABELLED, LABEL_SHARE = 1_024, 0.5  # latents at once; share of the seconds that may go to their log p
SPREAD, SPREAD_SHARE = 0.5, 0.2  # deviation of the noise on a share of the draws, so that rare rows are seen, too
KNOWN = 0.99  # share of the pairs that are as near to another one as what the student knows
USUALLY_UNKNOWN = 0.05  # share of rows that it may not know without a warning
HELD_SHARE = 0.2  # share of the other draws, which are compared and not fitted
NETWORK_WIDTH, HIDDEN = 128, 3
FREQUENCIES = 0.25, 0.5, 1.0  # frequencies of the waves of each number, in half turns; its deviation is 1
BATCH_ROWS, RATE, DECAY = 512, 2e-3, 0.7
KINK = 0.3  # nats, above which an error counts linearly

Array = np.ndarray
LogDensity = Callable[[Array, Array], Array]  # latents (n, d) and conditions (n, k) ↦ nats (n,)


class Student(nn.Module):
    r"""log p of latents: the log p of a base, and a network that has learned what the teacher has beyond the base.

    It is fitted by regression to the teacher's log p at draws of the teacher, some with noise. Latents and conditions
    that are as near to a fitted draw as most draws are to each other are known to it. Held-out draws give its
    difference from the teacher, and its mass :math:`E_p[\tilde p/p]`, which is near 1.

    Attributes:
        difference: mean and 95 % quantile of \|student − teacher\| at held-out draws, nats.
        mass, mass_error: the integral of the density, on average over the conditions, and its standard error.
        pairs: latents at which the teacher's log p was computed.
        places, reach: latents and conditions that were fitted, and the distance up to which they make others known.
    """

    difference = (math.nan, math.nan)
    mass, mass_error, pairs, reach = math.nan, math.nan, 0, 0.0
    places: KDTree

    def __init__(self, d: int, k: int):
        super().__init__()
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        sizes = [(1 + 2 * len(FREQUENCIES)) * (d + k), *[NETWORK_WIDTH] * HIDDEN, 1]
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, v: Tensor) -> Tensor:
        """log p of the teacher minus the log p of the base, nats (B,), at rows of latents and conditions (B, d + k)."""
        return self.centre + self.scale * self.layers(with_waves(v, FREQUENCIES))[:, 0]

    @torch.no_grad()
    def log_prob(self, z: Array, c: Array, base: Array) -> Array:
        """log p of latents (n, d) at conditions (n, k), where the base has ``base`` (n,)."""
        parts = torch.from_numpy(np.concatenate([z, c], 1)).float().split(2**16)
        return base + np.concatenate([self(part).double().numpy() for part in parts])

    def knows(self, z: Array, c: Array) -> Array:
        """Mask of the latents (n, d) at conditions (n, k) that are near those that it was fitted to."""
        return self.places.query(np.concatenate([z, c], 1))[0] <= self.reach

    @classmethod
    def taught(
        cls,
        draw: Callable[[Array, np.random.RandomState], Array],
        teacher: LogDensity,
        base: LogDensity,
        c: Array,
        rng: np.random.RandomState,
        *,
        max_pairs: int,
        max_steps: int,
        max_seconds: float,
    ) -> "Student":
        """A student of ``teacher``, from draws by ``draw`` at rows of ``c`` (n, k), with the limits of ``distill``."""
        started = time.perf_counter()
        parts: list[tuple[Array, ...]] = []
        until = started + LABEL_SHARE * max_seconds
        while not parts or (len(parts) * LABELLED < max_pairs and time.perf_counter() < until):
            at = c[rng.randint(len(c), size=LABELLED)]
            z, chance = draw(at, rng), rng.uniform(size=LABELLED)
            z += SPREAD * (chance < SPREAD_SHARE)[:, None] * rng.normal(size=z.shape)
            parts.append((z, at, base(z, at), teacher(z, at), chance > 1 - HELD_SHARE * (1 - SPREAD_SHARE)))
        z, at, start, target, is_held = map(np.concatenate, zip(*parts, strict=True))
        found = cls(z.shape[1], at.shape[1])
        inputs, beyond = torch.from_numpy(np.concatenate([z, at], 1)).float(), torch.from_numpy(target - start).float()
        is_fitted = torch.from_numpy(~is_held)
        found.fit(inputs[is_fitted], beyond[is_fitted], max_steps, started + max_seconds, rng)
        found.places = KDTree(inputs[is_fitted].numpy())
        found.reach = float(np.quantile(found.places.query(found.places.data, 2)[0][:, 1], KNOWN))
        off = found.log_prob(z[is_held], at[is_held], start[is_held]) - target[is_held]
        off, ratio = np.where(found.knows(z[is_held], at[is_held]), [off, np.exp(off)], [[0.0], [1.0]])
        found.difference = float(np.abs(off).mean()), float(np.quantile(np.abs(off), 0.95))
        found.mass, found.mass_error = float(ratio.mean()), float(ratio.std() / math.sqrt(len(ratio)))
        found.pairs = len(z)
        return found

    def fit(self, v: Tensor, beyond: Tensor, steps: int, deadline: float, rng: np.random.RandomState) -> None:
        """Regression of ``beyond`` (n,) on inputs ``v`` (n, d + k), until ``deadline`` at the latest."""
        self.centre.copy_(beyond.median())
        self.scale.copy_(beyond.std())
        generator = torch.Generator().manual_seed(rng.randint(2**31 - 1))

        def gradients() -> dict[str, Tensor]:
            i = torch.randint(len(v), (BATCH_ROWS,), generator=generator)
            F.smooth_l1_loss(self(v[i]), beyond[i], beta=KINK).backward()
            return {}

        group = {"name": "student", "params": list(self.parameters())}
        descent = Descent(self, torch.optim.AdamW([group], RATE, fused=True))
        for progress in course(steps, deadline):
            descent.advance(gradients, learning_rate_factor(descent.step, progress, 0, DECAY))
