"""A mean with its error, as reports, tables and files hold it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Number:
    """A mean over examples and what is known of its error, all in one unit.

    Attributes:
        mean: over examples.
        standard_error: of the mean, by the spread over examples or groups of them; None where it is
            unknown, as for a single group.
        estimator_noise: the part of that error that would remain if the examples were fixed; None
            where it is unknown.
        solver_error: the mean error that the solver of an ODE states; None without an ODE.

    >>> nats = Number(2.0, 0.1)
    >>> print(nats, "nats;", nats / (4 * math.log(2)), "bits/dim")
    2.0000 ± 0.1000 nats; 0.7213 ± 0.0361 bits/dim
    """

    mean: float
    standard_error: float | None = None
    estimator_noise: float | None = None
    solver_error: float | None = None

    def __truediv__(self, unit: float) -> "Number":
        """The same number in a unit that is ``unit`` times as large."""
        return Number(
            self.mean / unit,
            None if self.standard_error is None else self.standard_error / unit,
            None if self.estimator_noise is None else self.estimator_noise / unit,
            None if self.solver_error is None else self.solver_error / unit,
        )

    def __add__(self, shift: float) -> "Number":
        """The number with a constant added to its mean."""
        return replace(self, mean=self.mean + shift)

    def __str__(self) -> str:
        return f"{shown(self.mean)} ± {shown(self.standard_error)}"

    def cells(self) -> tuple[str, str, str, str]:
        """The cells of a table's row, in the order of the attributes; empty where there is none."""
        noise = "" if self.estimator_noise is None else shown(self.estimator_noise)
        solver = "" if self.solver_error is None else f"{self.solver_error:.1g}"
        return shown(self.mean), shown(self.standard_error), noise, solver

    def content(self, dims: int) -> dict[str, float | None]:
        """The entries of a JSON file, in nats and in bits/dim of events of ``dims`` entries.

        The solver's error is left out, as several numbers share it.
        """
        entries: dict[str, float | None] = {}
        for key, number in (("nats", self), ("bits_per_dim", self / (dims * math.log(2)))):
            entries[key] = number.mean
            entries[f"{key}_standard_error"] = number.standard_error
            if number.estimator_noise is not None:
                entries[f"{key}_estimator_noise"] = number.estimator_noise
        return entries

    @classmethod
    def read(cls, content: Mapping[str, Any], key: str = "nats") -> "Number":
        """From entries of :meth:`content`, in the unit ``key``, "nats" or "bits_per_dim"."""
        error, noise = f"{key}_standard_error", f"{key}_estimator_noise"
        return cls(content[key], content.get(error), content.get(noise))


def shown(value: float | None) -> str:
    """A value with four digits, or "unknown"."""
    return "unknown" if value is None else f"{value:.4f}"
