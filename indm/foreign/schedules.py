r"""Families of schedules of steps, and the search for the schedule of given noise levels.

A family gives ᾱ_k of K steps from a few parameters. Each can be rescaled to zero terminal SNR: √ᾱ
then falls to 0 at the last step and keeps its first value.

Source: Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed",
https://arxiv.org/abs/2305.08891, for the rescaling; diffusers and denoising-diffusion-pytorch for
the families.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from indm.foreign.paths import Steps

MOST_BETA = 0.999  # the largest that the libraries allow
NO_SIGNAL = 1e-11  # ᾱ below which a step has no signal
DIGITS = 3  # of fitted parameters
EVALUATIONS = 50  # of a schedule, for a fit
MOST_USUAL, MOST_FITTED = 6, 2  # schedules that are tried
FAR = 100.0  # distance from a schedule that does not exist
# the default of the libraries, and Stable Diffusion's
USUAL_BETAS = ((1e-4, 0.02), (0.00085, 0.012))


@dataclass(frozen=True)
class Family:
    """Schedules of one formula.

    Attributes:
        alphas_bar: ᾱ at K steps from K and positive parameters, (K,).
        parameters: their names.
        usual: the values that libraries use, the default first.
        of_betas: whether the parameters are betas, which are larger where there are fewer steps.
    """

    alphas_bar: Callable[..., Tensor]
    parameters: tuple[str, ...]
    usual: tuple[tuple[float, ...], ...]
    of_betas: bool = False


def _of_betas(betas: Tensor) -> Tensor:
    return (1 - betas.clamp(0, MOST_BETA)).cumprod(0)


def _of_function(count: int, alpha_bar: Callable[[Tensor], Tensor]) -> Tensor:
    """ᾱ_k as the product of f((k + 1)/K)/f(k/K), none below 1 − MOST_BETA, for f = ``alpha_bar``."""
    values = alpha_bar(torch.linspace(0, 1, count + 1, dtype=torch.float64))
    return _of_betas(1 - values[1:] / values[:-1])


def _ramp(count: int) -> Tensor:
    return torch.linspace(0, 1, count, dtype=torch.float64)


def _linear(count: int, low: float, high: float) -> Tensor:
    return _of_betas(low + (high - low) * _ramp(count))


def _scaled_linear(count: int, low: float, high: float) -> Tensor:
    return _of_betas((low**0.5 + (high**0.5 - low**0.5) * _ramp(count)) ** 2)


def _sigmoid(count: int, low: float, high: float) -> Tensor:
    return _of_betas(low + (high - low) * (12 * _ramp(count) - 6).sigmoid())


def _squaredcos(count: int, offset: float) -> Tensor:
    return _of_function(count, lambda s: ((s + offset) / (1 + offset) * math.pi / 2).cos() ** 2)


def _sigmoid_of_bar(count: int, start: float, end: float) -> Tensor:
    last = torch.tensor(-end, dtype=torch.float64).sigmoid()
    return _of_function(count, lambda s: (start - (start + end) * s).sigmoid() - last)


def _laplace(count: int) -> Tensor:
    def alpha_bar(s: Tensor) -> Tensor:
        snr = (-0.5 * (0.5 - s).sign() * (1 - 2 * (0.5 - s).abs() + 1e-6).log()).exp()
        return (snr / (1 + snr)).sqrt()

    return _of_function(count, alpha_bar)


def _exp(count: int, rate: float) -> Tensor:
    return _of_function(count, lambda s: (-rate * s).exp())


FAMILIES: Mapping[str, Family] = {
    "linear": Family(_linear, ("beta_start", "beta_end"), USUAL_BETAS, of_betas=True),
    "scaled_linear": Family(_scaled_linear, ("beta_start", "beta_end"), USUAL_BETAS, of_betas=True),
    "sigmoid": Family(_sigmoid, ("beta_start", "beta_end"), USUAL_BETAS, of_betas=True),
    "squaredcos_cap_v2": Family(_squaredcos, ("offset",), ((0.008,),)),
    "sigmoid of ᾱ": Family(_sigmoid_of_bar, ("−start", "end"), ((3.0, 3.0),)),
    "laplace": Family(_laplace, (), ((),)),
    "exp": Family(_exp, ("rate",), ((12.0,),)),
}


def rescaled(alphas_bar: Tensor) -> Tensor:
    """The same schedule with zero terminal SNR."""
    root = alphas_bar.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def levels_of(
    family: str, count: int, parameters: Sequence[float], zero_snr: bool = False
) -> Tensor:
    """log(σ/α) of the steps of a schedule, except those without signal at the end."""
    bar = FAMILIES[family].alphas_bar(count, *parameters)
    bar = rescaled(bar) if zero_snr else bar
    bar = bar[bar > NO_SIGNAL]
    return 0.5 * ((1 - bar).log() - bar.log())


def schedule(family: str, count: int, parameters: Sequence[float], zero_snr: bool = False) -> Steps:
    """The steps of :func:`levels_of`.

    >>> schedule("linear", 1000, (1e-4, 0.02)).range, schedule("linear", 1000, (1e-4, 0.02), zero_snr=True).range
    ((0.0, 999.0), (0.0, 998.0))
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of zero terminal SNR
        return Steps((-2 * levels_of(family, count, parameters, zero_snr)).sigmoid())


def words(family: str, parameters: Sequence[float], zero_snr: bool = False) -> str:
    """The name of a schedule and the parameters that are not the default."""
    about = FAMILIES[family]
    text = family
    if tuple(parameters) != about.usual[0]:
        named = zip(about.parameters, parameters, strict=True)
        text += " with " + ", ".join(f"{name}={value:g}" for name, value in named)
    return f"{text}, rescaled to zero terminal SNR" if zero_snr else text


# of a schedule: family, numbers, whether it has zero terminal SNR
Parameters = tuple[str, tuple[float, ...], bool]


def usual(count: int) -> Iterator[Parameters]:
    """The schedules of the libraries, also with betas in proportion if ``count`` is not 1,000."""
    for name, family in FAMILIES.items():
        sizes = [1.0, 1000 / count] if family.of_betas and count != 1000 else [1.0]
        for parameters, size, zero_snr in itertools.product(family.usual, sizes, (False, True)):
            yield name, tuple(value * size for value in parameters), zero_snr


def schedules(count: int) -> Iterator[tuple[str, Steps]]:
    """The :func:`usual` schedules of ``count`` steps, in words."""
    for family, parameters, zero_snr in usual(count):
        yield words(family, parameters, zero_snr), schedule(family, count, parameters, zero_snr)


def nearest(
    steps: Tensor, levels: Tensor, weights: Tensor, count: int
) -> Iterator[tuple[str, Steps]]:
    """The schedules nearest to log(σ/α) = ``levels`` at ``steps`` k: some usual, then some fitted.

    The distance is a sum of squares with ``weights``. The fits are in the parameters of each
    family.
    """
    k, target, scale = (values.double().cpu().numpy() for values in (steps, levels, weights.sqrt()))

    def off(*about: Any) -> np.ndarray:
        found = levels_of(about[0], count, *about[1:]).numpy()
        rises = bool(np.isfinite(found).all()) and bool((np.diff(found) > 0).all())
        if len(found) < 2 or not rises:  # no schedule has these parameters
            return np.full(len(k), FAR) * scale
        return scale * (np.interp(k, np.arange(len(found)), found) - target)

    def distance(about: Parameters) -> float:
        return float(np.square(off(*about)).sum())

    adjusted: list[Parameters] = []
    for name, family in FAMILIES.items():
        for start, zero_snr in itertools.product(
            family.usual if family.parameters else (), (False, True)
        ):

            def of_logs(logs: np.ndarray, name=name, zero_snr=zero_snr) -> np.ndarray:
                return off(name, np.exp(logs), zero_snr)

            found = np.exp(least_squares(of_logs, np.log(start), max_nfev=EVALUATIONS).x)
            adjusted.append(
                (name, tuple(float(f"{value:.{DIGITS}g}") for value in found), zero_snr)
            )
    for known, most in ((usual(count), MOST_USUAL), (dict.fromkeys(adjusted), MOST_FITTED)):
        for about in sorted(known, key=distance)[:most]:
            yield words(*about), schedule(about[0], count, *about[1:])
