"""The picture of stated and true errors in docs/likelihood.md, from records.

    python -m research.errors_figure

Left: the table of :func:`research.speed.solver_error`. Right: bounds above the entropy under learned noise, of the
flow that :func:`research.discrete_laws.best_cell` takes.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from indm.workbench.figures.plots import save_figure, styled
from research.discrete_laws import DRAWS, LAWS, best_cell, read
from research.records import RECORDS, Records
from research.speed import BENCH

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "errors.png"
LIMITS = (5e-6, 0.6)
KINDS = {"nelbo": "NELBO", "nll": "NLL (ODE)", f"iw-{DRAWS[-1]}": f"IW-NLL, {DRAWS[-1]} draws"}


def solver(axes: Axes) -> None:
    """Stated over true errors, a point for each trained model."""
    rows = Records(BENCH / "solver_error.csv").rows()
    for solve, style in (("default", {"color": "C0"}), ("24 steps", {"mfc": "none", "mec": "C0"})):
        found = [row for row in rows if row["solve"] == solve]
        axes.loglog([row["error"] for row in found], [row["stated"] for row in found], "o", label=solve, **style)
    axes.fill_between(LIMITS, LIMITS, LIMITS[1], color="0.93", linewidth=0)
    axes.text(7e-6, 0.25, "stated error covers the true one", fontsize="small")
    axes.set(xlim=LIMITS, ylim=LIMITS, xlabel="true error, bits/dim", ylabel="stated error, bits/dim")
    axes.set_title("error of the ODE solver")


def bounds(axes: Axes) -> None:
    """Bounds minus the entropy, with two standard errors, for each law."""
    made = read(Records(RECORDS / "discrete_laws.csv"))
    for place, law in enumerate(LAWS):
        best = made[best_cell(made, law, "variational")]["bound_minus_entropy_bits_per_dim"]
        for shift, (kind, name) in enumerate(KINDS.items()):
            mean, error = best[kind]
            at = place + 0.2 * (shift - 1)
            axes.errorbar(mean, at, xerr=2 * error, fmt="o", markersize=4, color=f"C{shift}", label=name)
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
    save_figure(figure, FIGURE)


if __name__ == "__main__":
    main()
