"""Pictures of what estimators of tables find."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kstwo

from indm.files import atomic

LEVELS = np.linspace(0, 1, 101)  # levels at which the figure draws its curves
BAND = 0.95  # share of calibrated curves that stay in the band at all levels


def plot_calibration(calibration: Any, path: str | Path, names: Sequence[str] | None) -> None:
    """See :meth:`indm.tables.calibration.Calibration.plot`."""
    from matplotlib.figure import Figure  # imported here: it takes a second

    figure = Figure(figsize=(9, 5), layout="constrained")
    names = [f"θ{i}" for i in range(calibration.ranks.shape[1])] if names is None else names
    panels = {
        "expected coverage": {"TARP": calibration.tarp},
        "ranks": dict(zip(names, calibration.ranks.T, strict=True)),
    }
    width = kstwo.ppf(BAND, len(calibration.tarp))
    low, high = (LEVELS - width).clip(min=0), (LEVELS + width).clip(max=1)
    for axes, (title, curves) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        axes.fill_between(LEVELS, low, high, color="0.9", label="95 % of calibrated ones")
        axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
        for name, ranks in curves.items():
            axes.plot(LEVELS, calibration.below(ranks, LEVELS), label=name)
        axes.set(title=title, xlabel="level", ylabel="share of the pairs below", aspect="equal")
        axes.legend(frameon=False)
    atomic.whole(Path(path), lambda file: figure.savefig(file, format="png", dpi=120))
