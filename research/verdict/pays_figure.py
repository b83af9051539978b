"""The picture of README's "Does a learned flow pay?", from records: bits/dim by budget, on each
data set.

python -m research.verdict.pays_figure
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from indm.workbench.figures.plots import COLOURS, METHODS, save_figure, styled
from research.lab.seeds import over_seeds
from research.records import RECORDS, Records
from research.verdict import pays

FIGURE = Path(__file__).parents[2] / "docs" / "figures" / "pays.png"
SHOWN = {  # models of the study: name in the legend and colour
    "linear": ("linear diffusion", METHODS["linear diffusion"]),
    "fixed curve": ("linear diffusion behind a fixed curve", COLOURS[5]),
    "spline": ("INDM (spline)", METHODS["INDM (spline)"]),
    "coupling": ("INDM (coupling)", METHODS["INDM (coupling)"]),
    "flow alone": ("flow alone (exact)", METHODS["flow alone"]),
}
TITLES = {
    "clothes-16": "clothes, 16×16",
    "cifar10-16": "CIFAR-10, 16×16",
    "emoji-32": "emoji, 32×32",
}


def budgets_of(table: Records, data: str) -> list[int]:
    return sorted({row["steps"] for row in table.at(data=data, noise="uniform").rows()})


def panel(axes: Axes, table: Records, data: str) -> None:
    """Means over seeds with two standard errors, by steps of linear diffusion that cost as much."""
    for model, (name, colour) in SHOWN.items():
        found = table.at(data=data, model=model, noise="uniform").rows()
        steps = sorted({row["steps"] for row in found})
        means, errors = np.array(
            [over_seeds([row["bits"] for row in found if row["steps"] == n]) for n in steps],
            dtype=float,
        ).T
        axes.errorbar(
            steps, means, yerr=2 * errors, fmt="o-", ms=4, capsize=2, color=colour, label=name
        )
    budgets = budgets_of(table, data)
    axes.set(xscale="log", xlabel="cost, steps of linear diffusion", title=TITLES[data])
    axes.set_xlim(budgets[0] / 1.2, budgets[-1] * 1.2)
    axes.set_xticks(budgets, [f"{n:,}" for n in budgets])
    axes.minorticks_off()


@styled
def main() -> None:
    table = Records(RECORDS / "verdict-pays.csv")
    # a single seed has no error bar and waits for others
    studies = [
        data for data in pays.STUDIES if len(table.at(data=data, model="flow alone").rows()) > 1
    ]
    widths = [4.6 if len(budgets_of(table, data)) > 1 else 2.6 for data in studies]
    figure = Figure(figsize=(sum(widths), 3.4))
    for axes, data in zip(
        np.atleast_1d(figure.subplots(1, len(studies), width_ratios=widths)), studies, strict=True
    ):
        panel(axes, table, data)
    figure.axes[0].set_ylabel("bits/dim of test images")
    save_figure(figure, FIGURE)


if __name__ == "__main__":
    main()
