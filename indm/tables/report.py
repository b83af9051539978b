"""What a fit says of itself: how it ended, and warnings."""

import time
import warnings
from collections.abc import Sequence
from typing import Any

from indm.checks import counted
from indm.tables.fit import INTERRUPT, MARKS, Gain, Validated, is_gain
from indm.training import REVIVALS, SLOWER

LATE_GAIN = 0.05  # nats a row, above which a fit that time ended has stopped too early


def ended_by(each: Sequence[str]) -> str:
    """ "interrupt", "time", "steps" or "plateau" of what ended trainings."""
    names = {INTERRUPT: INTERRUPT, "max_seconds": "time", "max_steps": "steps"}
    return next((short for name, short in names.items() if name in each), "plateau")


def warn_of_fit(
    estimator: Any,
    gains: Sequence[Gain],
    ended: Sequence[tuple[int, str]],
    late: Sequence[Gain],
    began: tuple,
) -> None:
    """UserWarnings where a fit was interrupted, no network gained over its mixture, or time ended
    one that gained.
    """
    if ended[-1][1] == INTERRUPT:
        warnings.warn("the fit was interrupted: the best density so far is kept", stacklevel=3)
    elif estimator.max_steps and not any(is_gain(*gain) for gain in gains):
        warnings.warn(no_gain(*gains[0], *ended[0]), stacklevel=3)
    warn_of_time(max(late), began, stacklevel=4)


def warn_of_silence(trainings: Sequence[Validated], stacklevel: int = 3) -> None:
    """UserWarning where a network died at every rate that was tried, so that its gain is not known."""
    silenced = [one for one in trainings if is_unknown(one)]
    if silenced:
        rate = silenced[0].rates[0]
        tried = " and ".join(f"{value:.2g}" for value in (rate * SLOWER**-REVIVALS, rate))
        warnings.warn(
            f"the network died at each of {REVIVALS + 1} learning rates between {tried}, so its gain is not known and "
            "what is left in the data neither: give a lower learning_rate or a larger batch_size",
            stacklevel=stacklevel,
        )


def is_unknown(training: Validated) -> bool:
    """Whether a network that died has left open what it could have gained."""
    return training.is_silenced and not is_gain(*training.gain())


def warn_of_time(
    late_gain: tuple[float, float], began: tuple[float, float], stacklevel: int
) -> None:
    """UserWarning where a fit that time ended still gained, by
    :meth:`indm.tables.fit.Training.late_gain`.

    ``began`` is when the fit did, on the wall's and the processor's clock.
    """
    gain, error = late_gain
    if gain > LATE_GAIN and is_gain(gain, error):
        wall, processor = time.perf_counter() - began[0], time.process_time() - began[1]
        shared = f". Its {wall:.0f} seconds had {processor:.0f} of processor time: other processes slowed it down"
        warnings.warn(
            f"max_seconds ended the fit while it still gained, {gain:.2g} ± {error:.2g} nats a row of validation "
            f"between {MARKS[0]:.0%} and {MARKS[1]:.0%} of the time: raise it"
            + shared
            * (processor < wall / 2),
            stacklevel=stacklevel,
        )


def no_gain(gain: float, error: float, steps: int, ended: str) -> str:
    """The words of a warning that the network gained nothing in so many steps, ended by ``ended``."""
    if not steps:
        return f"{ended} ended the fit before its first step: the density is its mixture of Gaussians; raise {ended}"
    return (
        f"the network found nothing that its mixture of Gaussians lacks ({gain:.2g} nats a row of validation, within "
        f"two errors of {error:.2g}; {counted(steps, 'step')}, ended by {ended}); if the table is not such a mixture, "
        "give it more rows, max_seconds or max_steps, or another learning_rate"
    )
