"""The report of :func:`indm.evaluate`: its numbers by measure, their differences, and all of it as
text.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from indm.checks import require
from indm.evaluation.statistics import mean_and_error
from indm.files import atomic, untrusted
from indm.ode import MOST_SOLVED

TITLES = {"nelbo": "NELBO", "nll": "NLL (ODE)", "iw": "IW-NLL", "ancestral": "NELBO of few steps"}
# settings that belong to a kind's name
NUMBERS = {"iw": ("draws", "K = "), "ancestral": ("steps", "N = ")}
KEY_ENDS = ("", "_standard_error", "_estimator_noise")  # endings of the keys of one number
Row = tuple[str, ...]
InUnits = dict[str, Any]  # numbers by unit, "nats" or "bits_per_dim", and an ending


@dataclass(frozen=True)
class Measured:
    """The numbers of one measure.

    Attributes:
        settings: options of the estimates.
        with_reconstruction: mean, standard error and the estimator's noise, in nats and bits/dim.
        without_reconstruction: the same without the reconstruction term; None for importance
            weights, which contain it.
        nfe: evaluations of the network for a draw by the solver of an ODE; 0 without one.
        solver_error: its mean in nats and bits/dim, and the largest of an example in bits/dim; None
            without an ODE.
        unconverged: examples whose error is above ``nll_error`` bits/dim.
        terms: of the NELBO, which sum to it; None for others.
        by_noise_level: its score term in equal parts of the log-SNR clock, with the ``noise`` σ/α
            at their ends.
        rungs: solves by their ``steps``, where the mean NLL is corrected; empty elsewhere.
        certain: how many estimates were solved finely because their coarse error was unusually
            large.
        added_error: the error that the correction adds to the mean; None without one.
    """

    settings: dict[str, Any]
    with_reconstruction: InUnits
    without_reconstruction: InUnits | None = None
    nfe: float = 0.0
    solver_error: InUnits | None = None
    unconverged: int | None = None
    terms: dict[str, InUnits] | None = None
    by_noise_level: list[dict[str, Any]] = field(default_factory=list)
    rungs: list[dict[str, Any]] = field(default_factory=list)
    certain: int = 0
    added_error: InUnits | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Numbers and settings of an evaluation; JSON can hold them (``dataclasses.asdict``).

    Attributes:
        images: how many examples, by the kind of a measure.
        unit: of the table, "nats" or "bits/dim".
        dims: entries of an example.
        network: the verdict on the network of another library; None for others.
        codes: a remark on a flow that draws codes; None for others.
        groups: how many groups of examples; None where examples are independent.
        interrupted: whether Ctrl-C ended it.
        nelbo, nll, iw, ancestral: numbers of each measure; None where it was not asked for.
    """

    images: dict[str, int]
    unit: str
    dims: int
    dequantization: str
    eps: float
    repeats: int
    seed: int
    examples_sha256: str
    network: str | None = None
    codes: str | None = None
    groups: int | None = None
    interrupted: bool = False
    nelbo: Measured | None = None
    nll: Measured | None = None
    iw: Measured | None = None
    ancestral: Measured | None = None

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "Report":
        """From the content of ``evaluation.json``, which may have further entries."""
        known = {f.name: content[f.name] for f in fields(cls) if f.name in content}
        return cls(**known | {kind: Measured(**known[kind]) for kind in TITLES if known.get(kind)})

    @property
    def measured(self) -> dict[str, Measured]:
        """The numbers of each measure that was asked for, by its kind."""
        return {kind: numbers for kind in TITLES if (numbers := getattr(self, kind)) is not None}

    @property
    def key(self) -> str:
        """The key of numbers in the unit of the report."""
        return number_key(self.unit)

    @property
    def nats_of_unit(self) -> float:
        return self.dims * math.log(2) if self.unit == "bits/dim" else 1.0


@dataclass(frozen=True)
class Likelihoods:
    """The estimates of :func:`indm.evaluate`; ``print`` shows them as a table.

    Attributes:
        report: means with their errors, settings and findings.
        nats: of each example, means over repeats: by kind, and all but "iw" with the suffix
            ``_without_reconstruction``; "nll" and "iw" also with ``_solver_error``, the largest
            over repeats. Where the mean NLL was corrected, "nll" is "nll_coarse", in few steps, and
            for each rung l "nll_rung_l" are the differences of finer and coarser solves, of the
            estimates "nll_rung_l_estimates" (example · repeats + repeat); "nll_certain" are the
            differences for estimates whose coarse error was unusually large.
            "nelbo_by_noise_level", (N, 8), are the parts of the score term; "groups" are the
            examples' groups, if any.

    >>> row = Measured({}, {"bits_per_dim": 2.45, "bits_per_dim_standard_error": 0.01})
    >>> settings = {"dequantization": "uniform", "eps": 1e-5, "repeats": 2, "seed": 0, "examples_sha256": ""}
    >>> Likelihoods(Report(images={"nelbo": 10}, unit="bits/dim", dims=64, nelbo=row, **settings), {}).mean()
    (2.45, 0.01)
    """

    report: Report
    nats: dict[str, Tensor]

    def mean(self, kind: str = "nelbo", unit: str = "bits_per_dim") -> tuple[float, float | None]:
        """A likelihood of raw data in bits/dim or nats, and its standard error; None of a single
        group.
        """
        row = self.report.measured[kind].with_reconstruction
        return row[unit], row[f"{unit}_standard_error"]

    def __str__(self) -> str:
        return "\n".join([table(likelihood_rows(self.report)), *notes(self.report)])

    def save(self, folder: str | Path, **more: Any) -> None:
        """Write ``evaluation.json``, with ``more`` entries, and ``evaluation.npz`` into a folder."""
        report, arrays = (Path(folder) / f"evaluation.{kind}" for kind in ("json", "npz"))
        write_arrays = atomic.arrays_into(
            {name: values.cpu().numpy() for name, values in self.nats.items()}
        )
        # The report is removed first and written last, so that arrays beside a report are of the
        # same evaluation.
        atomic.together(
            {arrays: write_arrays, report: atomic.json_into(asdict(self.report) | more)}, [report]
        )

    @classmethod
    def load(cls, folder: str | Path) -> "Likelihoods":
        """Read the files that :meth:`save` wrote into a folder; ValueError if they cannot be read."""
        arrays = untrusted.arrays(Path(folder) / "evaluation.npz")
        nats = {name: torch.from_numpy(values) for name, values in arrays.items()}
        return cls(Report.read(untrusted.json_object(Path(folder) / "evaluation.json")), nats)

    def __sub__(self, other: "Likelihoods") -> dict[str, tuple[float, float]]:
        """Mean difference of each likelihood that both have, and its standard error, paired over
        examples or groups of them, in their unit; ValueError for different examples, seeds or
        units.
        """
        for key in ("unit", "dims", "seed", "repeats", "examples_sha256"):
            own, others = (getattr(one.report, key) for one in (self, other))
            require(
                own == others,
                f"{key} of other",
                others,
                f"{own!r}, as in the evaluation that it is taken from",
            )
        paired, groups = {}, self.nats.get("groups")
        for kind in [kind for kind in self.report.measured if kind in other.report.measured]:
            a, b = (one.per_example(kind) for one in (self, other))
            require(len(a) == len(b), f"examples of other, {kind}", len(b), f"{len(a)}, as here")
            mean, error = mean_and_error(a - b, None if groups is None else groups[: len(a)])
            paired[kind] = mean, math.hypot(error, self.added_error(other, kind))
        return paired

    def per_example(self, kind: str = "nelbo") -> Float[Tensor, " n"]:
        """A likelihood of every example in the unit of the report; a coarse one with the mean of
        the finest rung.
        """
        if kind in self.nats:
            return self.nats[kind] / self.report.nats_of_unit
        coarse = self.nats[f"{kind}_coarse"]
        return (coarse + self.mean(kind, "nats")[0] - coarse.mean()) / self.report.nats_of_unit

    def added_error(self, other: "Likelihoods", kind: str) -> float:
        """The error that corrections of coarse solves add to the mean difference of two
        evaluations, in their unit: smaller than of independent ones where both corrected the same
        draws at the same rungs.
        """
        numbers, nats = zip(
            *((one.report.measured[kind], one.nats) for one in (self, other)), strict=True
        )
        variance = sum(number.added_error["nats"] ** 2 for number in numbers if number.added_error)
        steps = [[rung["steps"] for rung in number.rungs] for number in numbers]
        for rung in range(1, len(steps[0]) if steps[0] == steps[1] else 0):
            n, name = numbers[0].rungs[0]["estimates"], f"{kind}_rung_{rung}"
            one_of, other_of = (values[f"{name}_estimates"].numpy() for values in nats)
            of_both = np.intersect1d(one_of, other_of, return_indices=True)[1:]
            if len(of_both[0]) > 1:
                usual, sizes = (
                    [n - number.certain for number in numbers],
                    [len(values[name]) for values in nats],
                )
                differences = [
                    values[name].numpy()[rows] for values, rows in zip(nats, of_both, strict=True)
                ]
                each = (
                    math.prod(usual)
                    / n**2
                    * len(of_both[0])
                    / math.prod(sizes)
                    * (1 - max(sizes) / max(usual))
                )
                variance -= 2 * each * np.cov(differences[0], differences[1])[0, 1]
        return math.sqrt(max(variance, 0.0)) / self.report.nats_of_unit


# ── Text ──────────────────────────────────────────────────────────────────────────────────────────


def likelihood_rows(report: Report) -> list[Row]:
    """The table: each likelihood with and without the reconstruction term, its number of examples,
    and a header.
    """
    rows: list[Row] = [
        ("", "examples", report.unit, "± standard error", "estimator noise", "solver error")
    ]
    for kind, numbers in report.measured.items():
        name, count = TITLES[kind], str(report.images[kind])
        if kind in NUMBERS:
            setting, letter = NUMBERS[kind]
            name += f", {letter}{numbers.settings[setting]}"
        # the NELBO has none
        error = f"{numbers.solver_error[report.key]:.1g}" if numbers.solver_error else ""
        remark = " without reconstruction (no likelihood)"
        for label, values in (
            (name, numbers.with_reconstruction),
            (name + remark, numbers.without_reconstruction),
        ):
            if values is not None:
                rows.append(
                    (label, count, *(shown(values[report.key + end]) for end in KEY_ENDS), error)
                )
    return rows


def notes(report: Report) -> list[str]:
    """The lines below the table: settings of the numbers, and warnings."""
    lines = [f"ε = {report.eps:g}"]
    if report.groups == 1:
        lines.append(
            "standard errors are unknown: all examples are of one group, such as one photograph"
        )
    elif report.groups:
        lines.append(f"standard errors are over {report.groups} groups of examples that are alike")
    lines.append(f"dequantization: {report.dequantization}")
    nats = {
        kind: numbers.with_reconstruction[report.key] for kind, numbers in report.measured.items()
    }
    if nats.get("nll", -math.inf) > nats.get("nelbo", math.inf):
        lines.append(
            "The NELBO bounds the law of the SDE; the NLL is of that of the ODE, and may lie above it."
        )
    if report.interrupted:
        lines.append("interrupted: these are the examples and measures that were done")
    lines += [f"network: {report.network}"] if report.network else []
    lines += correction(report) + unconverged(report)
    return lines + ([f"codes: {report.codes}"] if report.codes else [])


def level_table(report: Report) -> list[str]:
    """Lines of text: the NELBO's score term by noise level, and its other terms; none without a
    NELBO.
    """
    if report.nelbo is None or report.nelbo.terms is None:
        return []
    keys = [report.key + end for end in KEY_ENDS[:2]]
    rows: list[Row] = [("score term of the NELBO, σ/α", report.unit, "± standard error")]
    for level in report.nelbo.by_noise_level:
        rows.append(
            (
                " to ".join(f"{end:.3g}" for end in level["noise"]),
                *(shown(level[key]) for key in keys),
            )
        )
    terms = [
        f"{name} {' ± '.join(shown(row[key]) for key in keys)}"
        for name, row in report.nelbo.terms.items()
    ]
    return [table(rows), f"terms of the NELBO: {', '.join(terms)}"]


def correction(report: Report) -> list[str]:
    """A line on the mean NLL where it is corrected by fine solves of a few estimates; else no line."""
    if report.nll is None or report.nll.added_error is None:
        return []
    first, *finer = report.nll.rungs
    counts = [
        f"{rung['estimates']} of them in {rung['steps'] or 'as many as nll_error needs'}"
        for rung in finer
    ]
    counts = [f"{first['estimates']} estimates in {first['steps']} steps", *counts]
    return [
        f"NLL: {', '.join(counts)}, which adds ± {report.nll.added_error[report.key]:.1g} to the mean"
    ]


def unconverged(report: Report) -> list[str]:
    """A line for each likelihood whose solver may be wrong by more than was asked for."""
    lines = []
    for kind, numbers in report.measured.items():
        if numbers.unconverged and numbers.solver_error:
            steps = numbers.settings.get("steps") or MOST_SOLVED
            rungs = numbers.rungs
            of = (
                f"{rungs[-1]['estimates']} estimates"
                if rungs
                else f"{report.images[kind]} examples"
            )
            lines.append(
                f"The {TITLES[kind]} has not converged: the solver's error may be above "
                f"{numbers.settings['nll_error']:g} bits/dim in {numbers.unconverged} of {of}, up to "
                f"{numbers.solver_error['largest_bits_per_dim']:.1g} bits/dim, in {steps} steps; take more steps, such "
                f"as {2 * steps}, or a larger nll_error."
            )
    return lines


def shown(number: float | None) -> str:
    """A number with four digits, or "unknown"."""
    return "unknown" if number is None else f"{number:.4f}"


def number_key(unit: str) -> str:
    """The key of numbers in a unit."""
    return "bits_per_dim" if unit == "bits/dim" else "nats"


def table(rows: Sequence[Row]) -> str:
    """Rows of cells as lines of text, columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
