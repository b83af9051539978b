"""The class of samplers, the grids of times between which they step, and how a sampler is made by
its name.
"""

import inspect
import itertools
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from indm.checks import as_tuples, check_arguments, require
from indm.names import BUILT_IN, find
from indm.ode import SAMPLED, SAMPLED_SMOOTH, Spacing
from indm.protocols import Model, Score
from indm.score import is_smooth
from indm.sde.linear import LinearSDE
from indm.tensors import Batch, PerSample

SAMPLER = "unipc"  # default sampler: the best in few steps
LEAST_WEIGHT = 0.1  # weight of the clock in :func:`steps_in_time`, at least
SAMPLERS = BUILT_IN["sampler"]  # the names of the samplers of this package; make_sampler makes one


class Sampler:
    """A rule that carries z_T ~ π to z_ε, by the generative SDE or by its probability flow.

    To write a one-step sampler, set ``order`` and define :meth:`step`. Constructor arguments are
    its options: make it a frozen dataclass, or keep each as an attribute of the same name. A
    sampler that remembers earlier steps, or chooses its own, defines :meth:`solve` instead:
    ``indm.sample(model, 8, sampler=Mine())``.

    Attributes:
        order: of convergence in the step size: of the solution for the probability flow, of moments
            for the SDE.
        stochastic: whether it draws noise: then its samples are not a function of z_T.
        adaptive: whether it chooses its own steps.
        evaluations_per_step: of the score.

    Example: Euler's rule for the probability flow.

        >>> from indm.tensors import expand_like
        >>> class Euler(Sampler):
        ...     order = 1
        ...     def step(self, score, z, t, s, generator=None):
        ...         f, g, delta = (expand_like(v, z) for v in (score.sde.drift(t), score.sde.diffusion(t), s - t))
        ...         return z + (f * z - 0.5 * g**2 * score(z, t)) * delta
        >>> make_sampler(Euler).order
        1
    """

    order: ClassVar[int]
    stochastic: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    evaluations_per_step: ClassVar[int] = 1

    def grid(self, sde: LinearSDE, steps: int) -> Tensor:
        """The times T = t_0 > … > t_steps = ε between which it steps, (steps + 1,) in float64."""
        return log_snr_grid(sde, steps)

    def step(self, score: Score, z: Batch, t: PerSample, s: PerSample, generator=None) -> Tensor:
        """z_s from z_t for s < t; ``score(z, t)`` is ∇log p_t, ``score.sde`` its SDE."""
        raise NotImplementedError(f"{type(self).__name__} must define step, or solve")

    def solve(
        self,
        score: Score,
        z: Batch,
        *,
        steps: int,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> tuple[Tensor, int]:
        """z_ε from z_T, and the evaluations of the score for one sample."""
        for t, s in intervals(self.grid(score.sde, steps), z, progress):
            z = self.step(score, z, t, s, generator)
        return z, steps * self.evaluations_per_step

    def options(self) -> dict[str, Any]:
        """Its constructor arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}


def default_steps(model: Model) -> int:
    """25, and 400 where the network may have ripples in t."""
    return SAMPLED_SMOOTH if is_smooth(model.score) else SAMPLED


def make_sampler(sampler: str | type[Sampler] | Sampler, **options: Any) -> Sampler:
    """A sampler from its name in :data:`SAMPLERS`, ``"package.module:Class"`` (see
    :func:`indm.trust`), its class with options, or itself.

    Raises:
        ValueError: an unknown name (with the nearest that exists), or an option that the sampler
            does not take.

    >>> make_sampler("pc", snr=0.1)
    PredictorCorrector(snr=0.1)
    """
    if isinstance(sampler, Sampler):
        if options:
            raise ValueError(
                f"{next(iter(options))} must be given to {type(sampler).__name__} where it is made"
            )
        return sampler
    kind = find("sampler", sampler)
    if not (isinstance(kind, type) and issubclass(kind, Sampler)):
        raise ValueError(f"sampler must be a subclass of indm.sampling.Sampler, got {sampler!r}")
    check_arguments(kind, options, table="sampler", what=f"sampler {sampler!r}")
    return kind(**as_tuples(options))


def log_snr_grid(sde: LinearSDE, steps: int) -> Tensor:
    """Times T = t_0 > … > t_steps = ε, equally spaced in log-SNR, (steps + 1,) in float64."""
    low, high = sde.log_snr(torch.tensor([sde.T, sde.eps], dtype=torch.float64))
    return _times(sde, torch.lerp(low, high, torch.linspace(0, 1, steps + 1, dtype=torch.float64)))


def _times(sde: LinearSDE, log_snr: Tensor) -> Tensor:
    """The times of log-SNRs, whose ends are T and ε exactly."""
    times = sde.time(log_snr)
    times[0], times[-1] = sde.T, sde.eps
    return times


def steps_in_time(sde: LinearSDE) -> Spacing:
    """Points on the clock −log SNR, equally spaced in a mean of t and the clock, which has a weight
    of 25 steps, at least 0.1.
    """

    def points(start: float, end: float, steps: int) -> list[float]:
        clock = torch.linspace(start, end, 10_001, dtype=torch.float64)
        t = sde.time(-clock)
        weight = min(1.0, max(LEAST_WEIGHT, SAMPLED_SMOOTH / steps))
        along = (1 - weight) * (t - t[0]) / (t[-1] - t[0]) + weight * (clock - start) / (
            end - start
        )
        return np.interp(np.linspace(0, 1, steps + 1), along.numpy(), clock.numpy()).tolist()

    return points


def time_grid(sde: LinearSDE, steps: int) -> Tensor:
    """Times T = t_0 > … > t_steps = ε of :func:`steps_in_time`, (steps + 1,) in float64."""
    end, start = sde.clock_span()
    return _times(sde, -torch.tensor(steps_in_time(sde)(start, end, steps), dtype=torch.float64))


def uniform_grid(sde: LinearSDE, steps: int) -> Tensor:
    """Times T = t_0 > … > t_steps = ε, equally spaced in t, (steps + 1,) in float64."""
    return torch.linspace(sde.T, sde.eps, steps + 1, dtype=torch.float64)


def intervals(grid: Tensor, z: Tensor, progress: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (t, s) of successive times of ``grid``, each (B,) like ``z``; with ``progress``, under
    a bar.
    """
    grid = grid.to(z.device, z.dtype)
    pairs = itertools.pairwise(grid)
    for t, s in tqdm(
        pairs, total=len(grid) - 1, desc="sampling", leave=False, disable=not progress
    ):
        yield t.expand(len(z)), s.expand(len(z))


def check_positive(name: str, value: object, usual: float, most: int = 1) -> None:
    """ValueError unless ``value`` is a positive, finite number, or a tuple of up to ``most`` of
    them.
    """
    numbers = value if isinstance(value, tuple) else (value,)
    positive = all(isinstance(number, int | float) and 0 < number < math.inf for number in numbers)
    require(
        1 <= len(numbers) <= most and positive,
        name,
        value,
        "positive and finite",
        f"{usual:g} is usual",
    )
