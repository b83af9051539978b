"""Samples of two-dimensional densities whose entropy is known, one loader a density."""

import functools
from typing import Any

import torch

from indm.data.base import Data, InMemory, events_of_shape
from indm.data.densities import DENSITIES
from indm.scaling import Scaling


@events_of_shape(lambda _: (2,))
def load_density(
    name: str, /, *, samples: int = 100_000, valid_samples: int = 5000, test_samples: int = 20_000, seed: int = 0
) -> Data:
    """Samples of a density of :mod:`indm.data.densities`, drawn once; the test set does not depend on ``samples``.

    Args:
        samples: of the training split.
        valid_samples: of the validation split.
        test_samples: of the test split.
        seed: of all splits.
    """
    if min(samples, valid_samples, test_samples) < 1:
        raise ValueError(f"{name}: samples, valid_samples and test_samples must each be at least 1")
    density, generator = DENSITIES[name], torch.Generator().manual_seed(seed)
    counts = {"test": test_samples, "valid": valid_samples, "train": samples}
    parts: dict[str, Any] = {part: InMemory(density.sample(n, generator=generator)) for part, n in counts.items()}
    notes = [f"samples drawn with seed {seed}"]
    return Data(name=name, scaling=Scaling(), shape=(2,), entropy=density.entropy(), notes=notes, **parts)


load_checkerboard = functools.partial(load_density, "checkerboard")
load_eight_gaussians = functools.partial(load_density, "eight-gaussians")
load_two_spirals = functools.partial(load_density, "two-spirals")
load_rings = functools.partial(load_density, "rings")
load_pinwheel = functools.partial(load_density, "pinwheel")
