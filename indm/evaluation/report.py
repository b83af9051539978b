"""The report of :func:`indm.evaluate`: its numbers by measure, their differences, and all of it as
text.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from indm.checks import require
from indm.evaluation.statistics import mean_and_error
from indm.files import atomic, untrusted
from indm.number import Number, shown
from indm.ode import MOST_SOLVED

# the package's own measures, whose entries a file has in any case
KINDS = ("nelbo", "nll", "iw", "ancestral")
NO_LIKELIHOOD = " without reconstruction (no likelihood)"
Row = tuple[str, ...]


@dataclass(frozen=True)
class Level:
    """The part of the NELBO's score term, nats, between two noise levels σ/α."""

    noise: tuple[float, float]
    number: Number


@dataclass(frozen=True)
class Solves:
    """The solves of ``estimates`` in ``steps`` (None: as many as ``nll_error`` needs), by ``nfe``
    evaluations each.

    ``mean_bits_per_dim`` and ``deviation_bits_per_dim`` are of their differences from the solves in
    fewer steps; None for the fewest.
    """

    steps: int | None
    estimates: int
    nfe: float
    mean_bits_per_dim: float | None = None
    deviation_bits_per_dim: float | None = None

    def content(self) -> dict[str, Any]:
        """The entries of a JSON file."""
        entries = asdict(self)
        if self.mean_bits_per_dim is None:
            del entries["mean_bits_per_dim"], entries["deviation_bits_per_dim"]
        return entries


@dataclass(frozen=True)
class Correction:
    """What corrects the mean NLL of solves in few steps, see :mod:`indm.evaluation.mean_nll`.

    Attributes:
        solves: by their steps, the fewest first.
        certain: how many estimates were solved finely because their coarse error was unusually
            large.
        added_error: the error that the correction adds to the mean, nats.
        degrees: of freedom of ``added_error``.
    """

    solves: list[Solves]
    certain: int
    added_error: float
    degrees: float


@dataclass(frozen=True)
class Measured:
    """The numbers of one measure, in nats.

    Attributes:
        title: the name of the measure in tables.
        settings: options of the estimates.
        with_reconstruction: the mean with its errors.
        without_reconstruction: the same without the reconstruction term; None for importance
            weights, which contain it.
        nfe: evaluations of the network for a draw by the solver of an ODE; 0 without one.
        largest_bits_per_dim: the largest error of an example that the solver states, bits/dim; None
            without an ODE.
        unconverged: examples whose error is above the ``nll_error`` that was asked for, bits/dim.
        terms: of the NELBO, which sum to it; None for others.
        by_noise_level: its score term in equal parts of the log-SNR clock.
        correction: of an NLL in few steps; None for others.
    """

    title: str
    settings: dict[str, Any]
    with_reconstruction: Number
    without_reconstruction: Number | None = None
    nfe: float = 0.0
    largest_bits_per_dim: float | None = None
    unconverged: int | None = None
    terms: dict[str, Number] | None = None
    by_noise_level: list[Level] = field(default_factory=list)
    correction: Correction | None = None

    def content(self, dims: int) -> dict[str, Any]:
        """The entries of a JSON file, in nats and in bits/dim."""
        bits, without, correction = dims * math.log(2), self.without_reconstruction, self.correction
        entries: dict[str, Any] = {
            "title": self.title,
            "settings": self.settings,
            "with_reconstruction": self.with_reconstruction.content(dims),
            "without_reconstruction": without and without.content(dims),
            "nfe": self.nfe,
            "solver_error": None,
            "unconverged": self.unconverged,
            "terms": None,
            "by_noise_level": [
                {"noise": list(level.noise)} | level.number.content(dims)
                for level in self.by_noise_level
            ],
            "rungs": [],
            "certain": 0,
            "added_error": None,
        }
        error = self.with_reconstruction.solver_error
        if error is not None:
            entries["solver_error"] = {
                "nats": error,
                "bits_per_dim": error / bits,
                "largest_bits_per_dim": self.largest_bits_per_dim,
            }
        if self.terms is not None:
            entries["terms"] = {name: term.content(dims) for name, term in self.terms.items()}
        if correction is not None:
            added, degrees = correction.added_error, correction.degrees
            entries["rungs"] = [solves.content() for solves in correction.solves]
            entries["certain"] = correction.certain
            entries["added_error"] = {
                "nats": added,
                "bits_per_dim": added / bits,
                "degrees": degrees if math.isfinite(degrees) else None,
            }
        return entries

    @classmethod
    def read(cls, content: Mapping[str, Any], kind: str) -> "Measured":
        """From entries of :meth:`content` under the key ``kind``."""

        error = content.get("solver_error") or {}
        terms, added = content.get("terms"), content.get("added_error")
        without = content.get("without_reconstruction")

        def number(row: Mapping[str, Any]) -> Number:
            return replace(Number.read(row), solver_error=error.get("nats"))

        return cls(
            title=content.get("title", kind.upper()),
            settings=content["settings"],
            with_reconstruction=number(content["with_reconstruction"]),
            without_reconstruction=without and number(without),
            nfe=content.get("nfe", 0.0),
            largest_bits_per_dim=error.get("largest_bits_per_dim"),
            unconverged=content.get("unconverged"),
            terms=terms and {name: Number.read(row) for name, row in terms.items()},
            by_noise_level=[
                Level(tuple(row["noise"]), Number.read(row))
                for row in content.get("by_noise_level", [])
            ],
            correction=added
            and Correction(
                [Solves(**solves) for solves in content["rungs"]],
                content["certain"],
                added["nats"],
                math.inf if added["degrees"] is None else added["degrees"],
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """Numbers and settings of an evaluation; :meth:`content` has them for a JSON file.

    Attributes:
        measured: the numbers of each measure, by its kind.
        images: how many examples, by the kind of a measure.
        unit: of the table, "nats" or "bits/dim".
        dims: entries of an example.
        network: the verdict on the network of another library; None for others.
        codes: a remark on a flow that draws codes; None for others.
        groups: how many groups of examples; None where examples are independent.
        interrupted: whether Ctrl-C ended it.
    """

    measured: dict[str, Measured]
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

    @property
    def nelbo(self) -> Measured | None:
        """The numbers of :class:`indm.Bound`; None where it was not asked for."""
        return self.measured.get("nelbo")

    @property
    def nll(self) -> Measured | None:
        """The numbers of :class:`indm.NLL`; None where it was not asked for."""
        return self.measured.get("nll")

    @property
    def iw(self) -> Measured | None:
        """The numbers of :class:`indm.WeightedNLL`; None where it was not asked for."""
        return self.measured.get("iw")

    @property
    def ancestral(self) -> Measured | None:
        """The numbers of :class:`indm.SamplerBound`; None where it was not asked for."""
        return self.measured.get("ancestral")

    @classmethod
    def own_entries(cls) -> list[str]:
        """The entries of :meth:`content` besides the numbers of measures."""
        return [f.name for f in fields(cls) if f.name != "measured"]

    def content(self) -> dict[str, Any]:
        """The entries of ``evaluation.json``: settings, and the numbers of each measure by kind."""
        settings = {name: vars(self)[name] for name in self.own_entries()}
        numbers = {kind: measured.content(self.dims) for kind, measured in self.measured.items()}
        return settings | dict.fromkeys(KINDS) | numbers

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "Report":
        """From the content of ``evaluation.json``, which may have further entries."""
        known = {f.name: content[f.name] for f in fields(cls) if f.name in content}
        measured = {
            kind: Measured.read(content[kind], kind)
            for kind in content["images"]
            if content.get(kind)
        }
        return cls(**known | {"measured": measured})

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

    >>> rows = {"nelbo": Measured("NELBO", {}, Number(2.45, 0.01))}
    >>> settings = {"dequantization": "none", "eps": 1e-5, "repeats": 2, "seed": 0, "examples_sha256": ""}
    >>> found = Likelihoods(Report(measured=rows, images={"nelbo": 10}, unit="nats", dims=64, **settings), {})
    >>> found.mean("nelbo", "nats")
    (2.45, 0.01)
    """

    report: Report
    nats: dict[str, Tensor]

    def mean(self, kind: str = "nelbo", unit: str = "bits_per_dim") -> tuple[float, float | None]:
        """A likelihood of raw data in "bits_per_dim" or "nats", and its standard error; None for a
        single group.
        """
        bits = self.report.dims * math.log(2)
        number = self.report.measured[kind].with_reconstruction
        number = number / {"nats": 1.0, "bits_per_dim": bits}[unit]
        return number.mean, number.standard_error

    def __str__(self) -> str:
        return "\n".join([table(likelihood_rows(self.report)), *notes(self.report)])

    def save(self, folder: str | Path, **more: Any) -> None:
        """Write ``evaluation.json``, with ``more`` entries, and ``evaluation.npz`` into a folder."""
        report, arrays = (Path(folder) / f"evaluation.{kind}" for kind in ("json", "npz"))
        values = {name: values.cpu().numpy() for name, values in self.nats.items()}
        writes = {
            arrays: atomic.arrays_into(values),
            report: atomic.json_into(self.report.content() | more),
        }
        # The report is removed first and written last, so that arrays next to a report belong to
        # the same evaluation.
        atomic.together(writes, [report])

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
        own, others = vars(self.report), vars(other.report)
        for key in ("unit", "dims", "seed", "repeats", "examples_sha256"):
            wanted = f"{own[key]!r}, as in the evaluation that it is taken from"
            require(own[key] == others[key], f"{key} of other", others[key], wanted)
        paired, groups = {}, self.nats.get("groups")
        for kind in [kind for kind in self.report.measured if kind in other.report.measured]:
            a, b = self.per_example(kind), other.per_example(kind)
            require(len(a) == len(b), f"examples of {kind} in other", len(b), str(len(a)))
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
        evaluations, in their unit: smaller than for independent ones where both corrected the same
        draws at the same rungs.
        """
        one = self.report.measured[kind].correction
        two = other.report.measured[kind].correction
        variance = (one.added_error**2 if one else 0.0) + (two.added_error**2 if two else 0.0)
        if one and two and [s.steps for s in one.solves] == [s.steps for s in two.solves]:
            n = one.solves[0].estimates
            usual = n - one.certain, n - two.certain
            for rung in range(1, len(one.solves)):
                name = f"{kind}_rung_{rung}"
                variance -= 2 * covariance(self.nats, other.nats, name, usual, n)
        return math.sqrt(max(variance, 0.0)) / self.report.nats_of_unit


def covariance(
    nats: Mapping[str, Tensor],
    others: Mapping[str, Tensor],
    name: str,
    usual: tuple[int, int],
    n: int,
) -> float:
    """The covariance of the corrections of two means at one rung, which share estimates.

    ``usual`` counts the estimates, of ``n``, that each rung's subset was drawn from.
    """
    estimates, of_others = nats[f"{name}_estimates"].numpy(), others[f"{name}_estimates"].numpy()
    _, rows, other_rows = np.intersect1d(estimates, of_others, return_indices=True)
    if len(rows) < 2:
        return 0.0
    differences, of_other = nats[name].numpy(), others[name].numpy()
    share = math.prod(usual) / n**2
    of_both = len(rows) / (len(differences) * len(of_other))
    drawn_from_few = 1 - max(len(differences), len(of_other)) / max(usual)
    each = np.cov(differences[rows], of_other[other_rows])[0, 1]
    return share * of_both * drawn_from_few * each


# ── Text ──────────────────────────────────────────────────────────────────────────────────────────


def likelihood_rows(report: Report) -> list[Row]:
    """The table: a header, and each likelihood with and without the reconstruction term and its
    number of examples.
    """
    header = ("examples", report.unit, "± standard error", "estimator noise", "solver error")
    rows: list[Row] = [("", *header)]
    for kind, numbers in report.measured.items():
        count, without = str(report.images[kind]), numbers.without_reconstruction
        whole = numbers.with_reconstruction / report.nats_of_unit
        rows.append((numbers.title, count, *whole.cells()))
        if without is not None:
            cells = (without / report.nats_of_unit).cells()
            rows.append((numbers.title + NO_LIKELIHOOD, count, *cells))
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
    nelbo, nll = report.nelbo, report.nll
    if nelbo and nll and nll.with_reconstruction.mean > nelbo.with_reconstruction.mean:
        lines.append(
            "The NELBO bounds the law of the SDE; the NLL is of that of the ODE, and may lie above it."
        )
    if report.interrupted:
        lines.append("interrupted: these are the examples and measures that were done")
    if report.network:
        lines.append(f"network: {report.network}")
    lines += corrections(report) + unconverged(report)
    if report.codes:
        lines.append(f"codes: {report.codes}")
    return lines


def level_table(report: Report) -> list[str]:
    """Lines of text: the NELBO's score term by noise level, and its other terms; none without a
    NELBO.
    """
    if report.nelbo is None or report.nelbo.terms is None:
        return []
    rows: list[Row] = [("score term of the NELBO, σ/α", report.unit, "± standard error")]
    for level in report.nelbo.by_noise_level:
        number = level.number / report.nats_of_unit
        ends = " to ".join(f"{end:.3g}" for end in level.noise)
        rows.append((ends, shown(number.mean), shown(number.standard_error)))
    terms = [f"{name} {term / report.nats_of_unit}" for name, term in report.nelbo.terms.items()]
    return [table(rows), f"terms of the NELBO: {', '.join(terms)}"]


def corrections(report: Report) -> list[str]:
    """A line for each mean that is corrected by fine solves of a few estimates."""
    lines = []
    for kind, numbers in report.measured.items():
        if numbers.correction is None:
            continue
        first, *finer = numbers.correction.solves
        counts = [f"{first.estimates} estimates in {first.steps} steps"]
        for solves in finer:
            steps = solves.steps or "as many as nll_error needs"
            counts.append(f"{solves.estimates} of them in {steps}")
        added = numbers.correction.added_error / report.nats_of_unit
        lines.append(f"{kind.upper()}: {', '.join(counts)}, which adds ± {added:.1g} to the mean")
    return lines


def unconverged(report: Report) -> list[str]:
    """A line for each likelihood whose solver may be wrong by more than was asked for."""
    lines = []
    for kind, numbers in report.measured.items():
        if not numbers.unconverged:
            continue
        steps = numbers.settings.get("steps") or MOST_SOLVED
        correction = numbers.correction
        of = f"{report.images[kind]} examples"
        if correction is not None:
            of = f"{correction.solves[-1].estimates} estimates"
        lines.append(
            f"The {numbers.title} has not converged: the solver's error may be above "
            f"{numbers.settings['nll_error']:g} bits/dim in {numbers.unconverged} of {of}, up to "
            f"{numbers.largest_bits_per_dim:.1g} bits/dim, in {steps} steps; take more steps, such as "
            f"{2 * steps}, or a larger nll_error."
        )
    return lines


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
