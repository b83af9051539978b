"""What a step costs: processor seconds of one thread."""

import statistics
import time
from collections.abc import Callable, Sequence


def seconds_a_step(step: Callable[[int], object], count: int) -> float:
    """The mean over ``count`` steps, each of which is given its number."""
    started = time.process_time()
    for number in range(count):
        step(number)
    return (time.process_time() - started) / count


def relative_cost(ratios: Sequence[float]) -> dict[str, float]:
    """The median of ratios of seconds as ``cost``, and the standard error of their mean as ``error``."""
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    return {"cost": round(statistics.median(ratios), 3), "error": round(error, 3)}
