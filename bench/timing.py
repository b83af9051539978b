"""Timing side by side: candidates take turns, so that whatever else the machine does falls on all
of them alike.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from indm.workbench.runs.devices import device, peak_memory_mib

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Times:
    """Seconds of a candidate in each round: by the clock, and of all of this process's threads."""

    clock: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.clock)

    def per(self, n: int) -> "Times":
        """Times of one of ``n`` equal parts of a candidate."""
        return Times([t / n for t in self.clock], [t / n for t in self.cpu])

    def __str__(self) -> str:
        """Median, and smallest and largest over rounds, by the clock; median of the threads."""
        low, high, cpu = min(self.clock), max(self.clock), statistics.median(self.cpu)
        return f"{self.median:.3g} s ({low:.3g} to {high:.3g}; CPU {cpu:.3g} s)"


def seconds(candidates: dict[Key, Callable[[], object]], rounds: int = 5) -> dict[Key, Times]:
    """Seconds of every candidate in every round, after one round that does not count."""
    times = {name: Times() for name in candidates}
    for i in range(rounds + 1):
        for name, candidate in candidates.items():
            started, worked = time.perf_counter(), time.process_time()
            candidate()
            if on_gpu():
                torch.cuda.synchronize()
            if i > 0:
                times[name].clock.append(time.perf_counter() - started)
                times[name].cpu.append(time.process_time() - worked)
    return times


def ratio(numerator: Times, denominator: Times) -> tuple[float, float, float]:
    """Median, smallest and largest over rounds of the ratio of two candidates by the clock."""
    ratios = [a / b for a, b in zip(numerator.clock, denominator.clock, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def shown(values: tuple[float, float, float]) -> str:
    return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


def row(what: str, baseline: str, ours: str, result: str, target: str, note: str = "") -> dict:
    """A line of the table that ``bench/performance.py`` writes."""
    return {
        "what": what,
        "baseline": baseline,
        "ours": ours,
        "ratio": result,
        "target": target,
        "note": note,
    }


def on_gpu() -> bool:
    return device().startswith("cuda")


def reset_peak() -> None:
    """Restart the count of :func:`peak_mib`."""
    if on_gpu():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Peak memory of this process so far: of the device if there is one, else resident."""
    if on_gpu():
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory_mib()


def in_new_process(arguments: list[str]) -> list[float]:
    """The numbers that ``python ARGUMENTS`` prints as its last line: what was allocated before must
    not count.
    """
    result = subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, text=True
    )
    return [float(number) for number in result.stdout.splitlines()[-1].split()]
