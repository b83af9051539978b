"""What a page says of the sampling error of runs: tables, a chart and a sentence."""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, cast

from indm.sampling import make_sampler
from indm.workbench.evaluation.compare import Rows, distance_cell, with_error
from indm.workbench.evaluation.figures import Measured, sampler_views
from indm.workbench.evaluation.page import View
from indm.workbench.evaluation.plots import Colours
from indm.workbench.evaluation.records import Record
from indm.workbench.evaluation.report import Sections
from indm.workbench.evaluation.statistics import over_seeds


def add_errors(sections: Sections) -> None:
    """What few steps lose, the transport, and the sampling error by parts, of the runs of a page."""
    sections.page.heading("What few steps lose")
    sections.page.text(
        "The samples of few steps against those of the converged solver through the same noise: of the probability "
        "flow from the same z_T, of a stochastic sampler along the same Brownian path. The loss has no noise of "
        "the data, and is never negative."
    )
    sections.page.table(loss_rows(sections.having("errors")))
    views = loss_views(sections.having("errors"), sections.colours)
    sections.chart(
        "loss",
        "Root mean square over entries, in model units, over evaluations of the network, both on logarithmic axes: "
        "lower is better. Bars are one standard error.",
        views,
        columns=len(views),
    )
    if sections.having("transport"):
        sections.page.heading("Transport along the probability flow")
        sections.page.table(transport_rows(sections.having("transport")))
    sections.page.heading("The sampling error by parts")
    sections.page.table(error_rows(sections.having("errors")))


def best_sampler(records: Sequence[Record]) -> str:
    """The sampler and the model that lose least in the fewest steps that were measured, and the next sampler with that
    model; "" where nothing was measured."""
    rows_of: dict[str, list[list[dict]]] = {}
    for record in records:
        if "errors" in record.measurements:
            rows_of.setdefault(record.group, []).append(record.measurements["errors"]["discretization"])
    steps = min((row["steps"] for seeds in rows_of.values() for row in seeds[0]), default=0)
    losses, evaluations = {}, {}
    for name, seeds in rows_of.items():
        for same in zip(*seeds, strict=True):
            if same[0]["steps"] == steps:
                error = same[0]["rms_standard_error"]
                losses[name, same[0]["sampler"]] = over_seeds([row["rms"] for row in same], error)
                evaluations[same[0]["sampler"]] = same[0]["nfe"]
    if not losses:
        return ""
    (group, sampler), (value, error) = min(losses.items(), key=lambda item: item[1][0])
    sentence = (
        f"In {steps} steps ({evaluations[sampler]} evaluations of the network) {sampler} with {group} loses least: "
        f"{with_error(value, error)} from the converged samples, root mean square in model units"
    )
    others = {name: loss for (model, name), loss in losses.items() if model == group and name != sampler}
    if others:
        name = min(others, key=lambda other: others[other][0])
        sentence += f"; {name} loses {with_error(*others[name])} with the same model"
    models = {name: loss for (name, of), loss in losses.items() if of == sampler and name != group}
    if models:
        name = min(models, key=lambda other: models[other][0])
        sentence += f", and {name} {with_error(*models[name])} with the same sampler"
    return f"{sentence}. These differences are not tested."


def transport_rows(groups: list[list[Record]]) -> Rows:
    """Two rows for each group, on the data space and on the latent."""
    rows: Rows = [("", "space", "E‖x_T − x_0‖² / d", "optimal / d", "cost / optimal", "samples")]
    for group in groups:
        for space in ("data", "latent"):
            costs = [record.measurements["transport"][space] for record in group]
            cells = [
                with_error(*over_seeds([cost[key] for cost in costs], costs[0][f"{key}_standard_error"]))
                for key in ("cost_per_dimension", "optimal_per_dimension", "ratio")
            ]
            rows.append((group[0].group, space, *cells, str(costs[0]["samples"])))
    return rows


def error_rows(groups: list[list[Record]]) -> Rows:
    """Prior, discretization and estimation error; see :func:`research.sampling_error.errors.sampling_errors`."""
    rows: Rows = [("", "term", "measured as", "value")]
    for group in groups:
        for term, what, values, alone in error_terms([record.measurements["errors"] for record in group]):
            rows.append((group[0].group, term, what, with_error(*over_seeds(values, alone), digits=4)))
    return rows


def loss_rows(groups: list[list[Record]]) -> Rows:
    """What few steps lose: one row for each group, sampler and number of steps."""
    rows: Rows = [("", "sampler", "steps", "evaluations", "RMS, model units", "Fréchet", "sliced Wasserstein")]
    for group in groups:
        for same in zip(*(record.measurements["errors"]["discretization"] for record in group), strict=True):
            row = same[0]
            numbers = (distance_cell(same, key) for key in ("rms", "frechet", "sliced_wasserstein"))
            rows.append((group[0].group, row["sampler"], str(row["steps"]), str(row["nfe"]), *numbers))
    return rows


def error_terms(seeds: list[dict]) -> list[tuple[str, str, list[float], float]]:
    """Term, what it is, its value for each seed, and the standard error of one (NaN: none)."""
    first = seeds[0]
    solvers = [row["sampler"] for row in first["discretization"] if not make_sampler(row["sampler"]).stochastic]

    def values(*keys: str | int) -> list[float]:
        return [functools.reduce(operator.getitem, keys, cast(Any, seed)) for seed in seeds]

    terms = [
        ("prior", "KL(law of z_T ‖ π), nats: at most", values("prior", "kl_above"), math.nan),
        ("prior", "KL(law of z_T ‖ π), nats: at least", values("prior", "kl_below"), math.nan),
        ("prior", "√(E‖z_0‖²/d) of the latents, model units (of N(0, I): 1)", values("prior", "latent_rms"),
         first["prior"]["latent_rms_standard_error"]),
        ("prior", "converged samples from π to those from true z_T of the same noise, RMS, model units",
         values("prior", "rms"), first["prior"]["rms_standard_error"]),
    ]  # fmt: skip
    for i, row in enumerate(first["discretization"]):
        if row["sampler"] in solvers[:1]:
            what = f"{row['steps']} steps of {row['sampler']} to converged, RMS, model units"
            terms.append(("discretization", what, values("discretization", i, "rms"), row["rms_standard_error"]))
    estimation = first["estimation"]
    for key, name in (("sliced_wasserstein", "sliced Wasserstein"), ("frechet", "Fréchet")):
        if estimation["samples"][key] is not None:
            for part, of in (("samples", "converged samples from true z_T"), ("floor", "training data")):
                error = estimation[part][f"{key}_standard_error"]
                terms.append(("estimation", f"{name}, {of} to test data", values("estimation", part, key), error))
    for part, key, error, what in (
        ("kl", "nats", "standard_error", "½∫g²E‖s_θ − ∇log p_t‖² dt by the bound, nats"),
        ("curve", "integral", "integral_standard_error", "the same, measured where the true score is resolved, nats"),
    ):
        if part in estimation:
            terms.append(("estimation", what, values("estimation", part, key), estimation[part][error]))
    return terms


def losses_of(groups: Sequence[Sequence[Record]]) -> Measured:
    """What few steps lose."""
    return {group[0].group: [record.measurements["errors"]["discretization"] for record in group] for group in groups}


def loss_views(groups: Sequence[Sequence[Record]], colours: Colours) -> list[View]:
    """What few steps lose over evaluations, a view for each sampler."""
    return sampler_views(losses_of(groups), "rms", "loss, RMS (model units)", colours)
