"""The picture of docs/likelihood.md: stated and true errors, from records.

    python -m research.likelihood_figures

Errors, left: the table of :func:`research.speed.solver_error`. Right: bounds above the entropy
under learned noise, of the flow whose bound of most draws is lowest (discrete_laws.md).
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from indm.workbench.figures.plots import COLOURS, DATA_COLOUR, save_figure, styled
from research.records import RECORDS, Records
from research.speed import BENCH

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
LIMITS = (5e-6, 0.6)
KINDS = {"nelbo": "NELBO", "nll": "NLL (ODE)", "iw-32": "IW-NLL, 32 draws"}
LAWS = ("markov-17", "mixture-17", "independent-17", "independent-256", "markov-256", "mixture-256")
NELBO, NLL, WEIGHTED = COLOURS[3:6]  # colours that are not those of methods


def solver(axes: Axes) -> None:
    """Stated over true errors, a point for each trained model."""
    rows = Records(BENCH / "solver_error.csv").rows()
    for solve, style in (
        ("default", {"color": DATA_COLOUR}),
        ("24 steps", {"mfc": "none", "mec": DATA_COLOUR}),
    ):
        found = [row for row in rows if row["solve"] == solve]
        axes.loglog(
            [row["error"] for row in found],
            [row["stated"] for row in found],
            "o",
            label=solve,
            **style,
        )
    axes.fill_between(LIMITS, LIMITS, LIMITS[1], color="0.93", linewidth=0)
    axes.text(7e-6, 0.25, "stated error covers the true one", fontsize="small")
    axes.set(
        xlim=LIMITS, ylim=LIMITS, xlabel="true error, bits/dim", ylabel="stated error, bits/dim"
    )
    axes.set_title("error of the ODE solver")


def bounds(axes: Axes) -> None:
    """Bounds minus the entropy, with two standard errors, for each law."""
    made = Records(RECORDS / "discrete_laws.csv").at(noise="variational")
    for place, law in enumerate(LAWS):
        found = [row["bound_minus_entropy_bits_per_dim"] for row in made.at(law=law).rows()]
        best = min(found, key=lambda bounds: bounds["iw-32"][0])
        for shift, (colour, (kind, name)) in enumerate(
            zip((NELBO, NLL, WEIGHTED), KINDS.items(), strict=True)
        ):
            mean, error = best[kind]
            at = place + 0.2 * (shift - 1)
            axes.errorbar(mean, at, xerr=2 * error, fmt="o", markersize=4, color=colour, label=name)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(LAWS)), [law.replace("-", ", ") + " levels" for law in LAWS])
    axes.set(xlabel="bits/dim, ± 2 errors", title="bound − entropy of the data")
    axes.invert_yaxis()


@styled
def main() -> None:
    figure = Figure(figsize=(9, 3.6))
    left, right = figure.subplots(1, 2)
    solver(left)
    bounds(right)
    save_figure(figure, FIGURES / "errors.png")


if __name__ == "__main__":
    main()
