"""Tables of the final trainings: the tested family, and differences of the described measures in pairs of one seed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from indm.workbench.evaluation.statistics import Difference, over_seeds, paired
from indm.workbench.figures.plots import styled
from research.markdown import in_table, with_error
from research.records import RECORDS, Records, Row
from research.verdict.family import Member, family
from research.verdict.final import CHOSEN, FAMILY, TABLE

FIGURE = RECORDS.parent / "figures" / "verdict-measures.png"
MARGIN, LEVEL = 0.01, 0.05  # bits/dim that count, and of the tests
OTHERS = ("linear", "spline")  # what INDM is compared with
Runs = dict[str, list[Row]]


def runs_of(table: Records, data: str, measure: str = "bound") -> Runs:
    """The rows of each variant that have the measure, those of one seed in one place; whole seeds alone."""
    return table.at(data=data).of_common_seeds("variant", CHOSEN, measure)


# ── The family ───────────────────────────────────────────────────────────────────────────────────────────────────────


def bits(runs: list[Row]) -> np.ndarray:
    """The bounds of the test images, bits/dim, (seeds, N)."""
    report = runs[0]["bound"]["with_reconstruction"]
    return np.array([row["nelbo_nats"] for row in runs]) * (report["bits_per_dim"] / report["nats"])


def judged(table: Records) -> list[Row]:
    """The tested differences, each with ``low`` and ``high`` of its 95 % interval and the ``word`` of the design."""
    made: dict[Member, tuple[np.ndarray, np.ndarray]] = {}
    for data, variant, other in FAMILY:
        runs = runs_of(table, data)
        if runs[variant]:
            made[data, variant, other] = bits(runs[variant]), bits(runs[other])
    rows = [row | interval(row) for row in family(FAMILY, made)]
    return [row | {"word": word(row)} for row in rows]


def interval(row: Row) -> Row:
    half = student.ppf(0.975, row["seeds"] - 1) * row["standard_error"] if row["seeds"] > 1 else math.inf
    return {"low": row["difference"] - half, "high": row["difference"] + half}


def word(row: Row) -> str:
    """The name that the design gives to a difference of INDM."""
    if row["p_holm"] is None:
        return "untested"
    if row["p_holm"] <= LEVEL and abs(row["difference"]) >= MARGIN:
        return "gain" if row["difference"] < 0 else "loss"
    return "no difference" if row["low"] > -MARGIN and row["high"] < MARGIN else "undecided"


def family_table(table: Records) -> str:
    rows = [
        (
            row["data"],
            f"INDM − {row['baseline']}",
            row["seeds"],
            f"{row['difference']:+.4f} ± {row['standard_error']:.4f}",
            f"{row['low']:+.4f} to {row['high']:+.4f}" if row["seeds"] > 1 else "",
            "" if row["p_holm"] is None else f"{row['p_holm']:.2g}",
            row["word"],
        )
        for row in judged(table)
    ]
    return in_table("data", "difference", "seeds", "bits/dim", "95 % interval", "Holm's p", "is called", rows=rows)


# ── The described measures ───────────────────────────────────────────────────────────────────────────────────────────


def few(sampler: str, evaluations: int, measure: str, control: bool = False) -> Callable[[Row], float]:
    """In few steps; as a ``control``, of linear diffusion with a latent as small as that of the spline."""

    def found(row: Row) -> float:
        shrunk = control and row["variant"] == "linear"
        rows = row["few_steps_shrunk" if shrunk else "few_steps"]
        (of,) = (r for r in rows if (r["sampler"], r["evaluations"]) == (sampler, evaluations))
        return of[measure]

    return found


def at_noise(measure: str, noise: float, part: str) -> Callable[[Row], float]:
    def found(row: Row) -> float:
        (of,) = (r for r in row[measure] if math.isclose(r["noise"], noise))
        return of[part]

    return found


def above(part: str) -> Callable[[Row], float]:
    """The share of the energy of ``moved`` or ``x`` above a quarter cycle a pixel, NaN where there is none."""

    def found(row: Row) -> float:
        frequency, energy = (np.array(row["displacement"][key]) for key in ("frequency", part))
        return energy[:, frequency > 0.25].sum() / energy.sum() if energy.sum() else math.nan

    return found


def beyond(noise: float) -> Callable[[Row], float]:
    """The drift beyond the linear one, over the drift."""
    of, whole = (at_noise("behaviour", noise, part) for part in ("drift_beyond_linear", "drift"))
    return lambda row: of(row) / whole(row)


MEASURES: dict[str, tuple[str, Callable[[Row], float]]] = {
    "NELBO − NLL, bits/dim": (".4f", lambda row: row["gap"]["bits_per_dim"]),
    "NLL, bits/dim": (".4f", lambda row: row["gap"]["nll_bits_per_dim"]),
    **{f"Fréchet, {n} of UniPC": (".1f", few("unipc", n, "frechet")) for n in (2, 4, 8, 16, 32)},
    **{f"Fréchet, {n} of Euler–Maruyama": (".1f", few("euler-maruyama", n, "frechet")) for n in (2, 4, 8, 16, 32)},
    **{
        f"Fréchet, {n} of Euler–Maruyama, linear's latent at 0.7": (".1f", few("euler-maruyama", n, "frechet", True))
        for n in (8, 16, 32)
    },
    **{f"mean square from converged, {n} of UniPC": (".5f", few("unipc", n, "squared")) for n in (4, 8, 16)},
    "error by the prior, nats": (".5f", lambda row: row["theorem"]["prior_kl"]),
    "error by discretization, mean square": (".6f", lambda row: row["theorem"]["discretization_squared"]),
    "error by estimation, Fréchet": (".1f", lambda row: row["theorem"]["estimation_frechet"]),
    "x_T, KL from N(0, I), nats a dimension": (".3f", lambda row: row["prior_distance"]["exact_kl"]),
    "x_T, of a fitted Gaussian": (".4f", lambda row: row["prior_distance"]["kl"]),
    "x_T, excess kurtosis": (".2f", lambda row: row["prior_distance"]["kurtosis"]),
    **{f"volatility at σ/α = {n:g}": (".3f", at_noise("behaviour", n, "volatility")) for n in (0.1, 1.0, 5.0)},
    **{f"anisotropy at σ/α = {n:g}": (".3f", at_noise("behaviour", n, "anisotropy")) for n in (0.1, 1.0, 5.0)},
    **{f"drift beyond linear at σ/α = {n:g}, share": (".2f", beyond(n)) for n in (0.1, 1.0, 5.0)},
    "displacement, share of ‖x‖": (".3f", lambda row: row["displacement"]["size"]),
    "displacement that all images share": (".3f", lambda row: row["displacement"]["constant"]),
    "displacement above a quarter cycle": (".3f", above("moved")),
    "images above a quarter cycle": (".3f", above("x")),
    **{f"class probe at σ/α = {n:g}": (".3f", at_noise("class_probe", n, "accuracy")) for n in (0.1, 0.5, 1.0, 2.0)},
    **{
        f"class probe at σ/α = {n:g} of the latent's deviation": (".3f", at_noise("class_control", n, "accuracy"))
        for n in (0.1, 0.5, 1.0, 2.0)
    },
}


def described(difference: Difference, values: list[float]) -> bool:
    """Whether it exceeds twice its standard error and has one sign in all seeds."""
    one_sign = min(values) > 0 or max(values) < 0
    return one_sign and abs(difference.difference) > 2 * difference.standard_error


def measure_table(table: Records, data: str) -> str:
    """Means over seeds, and differences in pairs; bold ones are called a difference.

    A measure that a row lacks, as one that was made before it was designed, is left out.
    """
    runs, rows = runs_of(table, data, "class_probe"), []
    for name, (form, function) in MEASURES.items():
        try:
            values = {variant: [float(function(row)) for row in own] for variant, own in runs.items()}
        except KeyError:
            continue
        means = [shown(*over_seeds(own), form) for own in values.values()]
        rows.append((name, *means, *(cell(values["indm"], values[other], form) for other in OTHERS)))
    return in_table("measure", "linear", "spline", "INDM", "INDM − linear", "INDM − spline", rows=rows)


def cell(a: list[float], b: list[float], form: str) -> str:
    """The mean difference in pairs, bold where it is called one; nothing where it is not defined."""
    return called(paired(a, b), [x - y for x, y in zip(a, b, strict=True)], form)


def called(difference: Difference, values: list[float], form: str) -> str:
    """The difference with its error, bold where :func:`described` by its ``values`` in several seeds."""
    found = shown(difference.difference, difference.standard_error, f"+{form}")
    return f"**{found}**" if len(values) > 1 and described(difference, values) else found


def shown(mean: float, error: float, form: str) -> str:
    return "" if math.isnan(mean) else with_error(mean, error, form)


def curve_table(table: Records, data: str) -> str:
    """The bound of validation images at equal steps while the rate is constant: the flow of INDM enters later."""
    runs = runs_of(table, data)
    steps = [n for n, _ in runs["spline"][0]["curve"]]
    rows = []
    for place, n in enumerate(steps):
        values = {name: [row["curve"][place][1] for row in runs[name]] for name in OTHERS}
        means = [with_error(*over_seeds(own), ".3f") for own in values.values()]
        rows.append((f"{n:,}", *means, cell(values["spline"], values["linear"], ".3f")))
    return in_table("steps", *OTHERS, "spline − linear", rows=rows)


def part_table(table: Records, data: str) -> str:
    """The bound of the test images by part, bits/dim: the score's term by level of noise, and the log-determinant."""
    runs = runs_of(table, data)
    levels = [part["noise"] for part in runs["linear"][0]["bound"]["by_level"]]
    titles = [f"score, σ/α {low:.3g} to {high:.3g}" for low, high in levels]
    parts: dict[str, Callable[[Row], float]] = {
        title: lambda row, place=place: row["bound"]["by_level"][place]["bits_per_dim"]
        for place, title in enumerate(titles)
    }
    parts |= {"log-determinant": lambda row: row["bound"]["terms"]["flow"]["bits_per_dim"]}
    parts |= {"NELBO": lambda row: row["bound"]["with_reconstruction"]["bits_per_dim"]}
    rows, pairs = [], (("spline", "linear"), ("indm", "linear"), ("indm", "spline"))
    for title, function in parts.items():
        values = {name: [function(row) for row in own] for name, own in runs.items()}
        means = [f"{over_seeds(own)[0]:.4f}" for own in values.values()]
        rows.append((title, *means, *(cell(values[one], values[other], ".4f") for one, other in pairs)))
    titles = "part", "linear", "spline", "INDM", "spline − linear", "INDM − linear", "INDM − spline"
    return in_table(*titles, rows=rows)


@styled
def figure(table: Records = TABLE, data: str = "cifar10-16", path: Path = FIGURE) -> None:
    """Fréchet distance by evaluations, displacement by frequency, and the class probe by noise; one curve a variant."""
    from matplotlib.figure import Figure

    runs = runs_of(table, data, "class_probe")
    drawing = Figure(figsize=(11, 3.2), layout="constrained")
    few_steps, frequency, probe = drawing.subplots(1, 3)
    for place, (name, own) in enumerate(runs.items()):
        colour: dict[str, Any] = {"color": f"C{place}"}
        for sampler, style in {"unipc": "-", "euler-maruyama": "--"}.items():
            points = np.array([[r["frechet"] for r in row["few_steps"] if r["sampler"] == sampler] for row in own])
            few_steps.plot((2, 4, 8, 16, 32), points.mean(0), style, marker=".", label=f"{name}, {sampler}", **colour)
        x, moved = (np.array([np.sum(row["displacement"][k], 0) for row in own]).mean(0) for k in ("x", "moved"))
        if moved.any():
            frequency.plot(own[0]["displacement"]["frequency"], moved / moved.sum(), label=name, **colour)
        else:
            frequency.plot(own[0]["displacement"]["frequency"], x / x.sum(), "k:", label="the images")
        accuracy = np.array([[r["accuracy"] for r in row["class_probe"]] for row in own])
        probe.plot([r["noise"] for r in own[0]["class_probe"]], accuracy.mean(0), marker=".", label=name, **colour)
    few_steps.set(xlabel="evaluations", ylabel="Fréchet distance", xscale="log", yscale="log")
    few_steps.set_xticks([2, 4, 8, 16, 32], ["2", "4", "8", "16", "32"])
    frequency.set(xlabel="cycles a pixel", ylabel="share of the displacement", yscale="log")
    probe.set(xlabel="σ/α of z_t", ylabel="accuracy of a linear probe", xscale="log")
    for axes in (few_steps, frequency, probe):
        axes.minorticks_off()
        axes.legend(fontsize=6, handlelength=3, loc="lower left" if axes is few_steps else "upper right")
    drawing.savefig(path, dpi=110)
