"""The flow analyses of several models in one figure."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from indm.evaluation import plots

MOVES = 1e-6  # size of the displacement from which a flow does anything


def save_flow_figure(analyses: dict[str, dict], path: Path) -> None:
    """Singular values, the action by share and by frequency, and the accuracy of the class, as a PNG.

    Args:
        analyses: what :func:`indm.evaluation.flow_analysis.analyse` returned, by the name of the model.
        path: of the PNG.
    """
    panels = [_singular_values, _shares]
    panels += [_probes] if any("probe" in analysis for analysis in analyses.values()) else []
    panels += [_spectra] if any("spectrum" in analysis for analysis in analyses.values()) else []
    figure = Figure(figsize=(4.75 * len(panels), 4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        panel(axes, analyses)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    plots.save_figure(figure, path)


def _singular_values(axes: Axes, analyses: dict[str, dict]) -> None:
    for number, (name, analysis) in enumerate(analyses.items()):
        for i, values in enumerate(analysis.get("singular_values", [])):
            axes.plot(values, color=f"C{number}", alpha=0.4, label=None if i else name)
    axes.set(title="singular values of ∂h/∂x, one line a sample", xlabel="index", yscale="log")


def _shares(axes: Axes, analyses: dict[str, dict]) -> None:
    """Bars for each model whose flow moves anything, and for the data."""
    actions = {name: analysis["action"] for name, analysis in analyses.items()}
    first = next(iter(actions.values()))
    shares = [key for key in first if key != "size" and not key.startswith("x_")]
    bars = {name: [a[key] for key in shares] for name, a in actions.items() if a["size"] > MOVES}
    bars["the data themselves"] = [first[f"x_{key}"] for key in shares]
    for i, (name, heights) in enumerate(bars.items()):
        offset = (i - (len(bars) - 1) / 2) / (len(bars) + 1)
        axes.bar([k + offset for k in range(len(shares))], heights, 1 / (len(bars) + 1), label=name)
    axes.set(title="shares of the energy of h(x) − x", xticks=range(len(shares)), xticklabels=shares)


def _probes(axes: Axes, analyses: dict[str, dict]) -> None:
    """The accuracy of the class over time, a line for each model that has it."""
    for name, analysis in analyses.items():
        if "probe" in analysis:
            lines = {key: [point[key] for point in analysis["probe"]] for key in analysis["probe"][0]}
            axes.errorbar(lines["clock"], lines["accuracy"], lines["standard_error"], fmt=".-", label=name)
    axes.set(title="class known from x_t, linear probe", xlabel="log-SNR clock, 0 at ε, 1 at T", ylabel="accuracy")


def _spectra(axes: Axes, analyses: dict[str, dict]) -> None:
    """Energy by frequency, a line for each model and channel, dotted for the data."""
    for number, (name, analysis) in enumerate(analyses.items()):
        lines = analysis["spectrum"]
        if analysis["action"]["size"] > MOVES:
            for i, energy in enumerate(lines["moved"]):
                axes.plot(lines["frequency"], energy, ".-", color=f"C{number}", label=None if i else name)
    for i, energy in enumerate(lines["x"]):
        axes.plot(lines["frequency"], energy, ":", color="black", label=None if i else "the data themselves")
    axes.set(title="energy moved, by frequency and channel", xlabel="cycles a pixel", yscale="log")
