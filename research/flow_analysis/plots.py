"""The flow analyses of several models in one figure."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from indm.flows.check import LARGEST
from indm.workbench.evaluation import plots
from indm.workbench.evaluation.plots import DATA_COLOUR, colours_of, say_empty, styled
from indm.workbench.evaluation.report import Sections

MOVES = 1e-6  # size of the displacement from which a flow does anything
DATA = "the data themselves"
Analyses = Mapping[str, dict]
Colours = Mapping[str, str]


@styled
def save_flow_figure(analyses: Analyses, path: Path, colours: Colours | None = None) -> None:
    """Singular values, the action by share and by frequency, and the accuracy of the class, as a PNG.

    Args:
        analyses: what :func:`research.flow_analysis.analysis.analyse` returned, by the name of the model.
        path: of the PNG.
        colours: of the models; by their order by default.
    """
    panels = [_singular_values, _shares]
    panels += [_probes] if any("probe" in analysis for analysis in analyses.values()) else []
    panels += [_spectra] if any("spectrum" in analysis for analysis in analyses.values()) else []
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(10, 4 * rows))
    drawn = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axes, panel in zip(drawn, panels, strict=False):
        panel(axes, analyses, colours or colours_of(analyses))
    for axes in drawn[len(panels) :]:
        axes.remove()
    plots.save_figure(figure, path)


def _singular_values(axes: Axes, analyses: Analyses, colours: Colours) -> None:
    axes.set(title="singular values of ∂h/∂x, a line for each example", xlabel="index, largest first")
    if not any("singular_values" in analysis for analysis in analyses.values()):
        return say_empty(axes, f"not computed: examples of more than {LARGEST} entries")
    for name, analysis in analyses.items():
        for i, values in enumerate(analysis.get("singular_values", [])):
            axes.plot(values, color=colours[name], alpha=0.4, label=None if i else name)
    axes.set(yscale="log", ylabel="singular value")


def _moving(analyses: Analyses) -> dict[str, dict]:
    """Those whose flow does anything."""
    return {name: analysis for name, analysis in analyses.items() if analysis["action"]["size"] > MOVES}


def _shares(axes: Axes, analyses: Analyses, colours: Colours) -> None:
    """Bars for each model whose flow moves anything, and for the data."""
    first = next(iter(analyses.values()))["action"]
    shares = [key for key in first if key != "size" and not key.startswith("x_")]
    bars = {name: [analysis["action"][key] for key in shares] for name, analysis in _moving(analyses).items()}
    bars[DATA] = [first[f"x_{key}"] for key in shares]
    for i, (name, heights) in enumerate(bars.items()):
        offset = (i - (len(bars) - 1) / 2) / (len(bars) + 1)
        places = [k + offset for k in range(len(shares))]
        axes.bar(places, heights, 1 / (len(bars) + 1), label=name, color=colours.get(name, DATA_COLOUR))
    axes.set(xticks=range(len(shares)), xticklabels=shares, ylabel="share of the energy")
    axes.set_title(f"where h(x) − x lies{_left_out(analyses)}")


def _left_out(analyses: Analyses) -> str:
    """The models that are not shown."""
    still = [name for name in analyses if name not in _moving(analyses)]
    return f"\n(no displacement: {', '.join(still)})" if still else ""


def _probes(axes: Axes, analyses: Analyses, colours: Colours) -> None:
    """The accuracy of the class over time, a line for each model that has it."""
    for name, analysis in analyses.items():
        if "probe" in analysis:
            lines = {key: [point[key] for point in analysis["probe"]] for key in analysis["probe"][0]}
            points = lines["clock"], lines["accuracy"], lines["standard_error"]
            axes.errorbar(*points, fmt=".-", label=name, color=colours[name])
    axes.set(title="class known from x_t by a linear probe", ylabel="accuracy", ylim=(0, 1.02))
    axes.set(xlabel="log-SNR clock, 0 at t = ε, 1 at t = T")


def _spectra(axes: Axes, analyses: Analyses, colours: Colours) -> None:
    """Energy by frequency, a line for each model and channel, dotted for the data."""
    for name, analysis in _moving(analyses).items():
        for i, energy in enumerate(analysis["spectrum"]["moved"]):
            axes.plot(analysis["spectrum"]["frequency"], energy, ".-", color=colours[name], label=None if i else name)
    lines = next(iter(analyses.values()))["spectrum"]
    for i, energy in enumerate(lines["x"]):
        axes.plot(lines["frequency"], energy, ":", color=DATA_COLOUR, label=None if i else DATA)
    axes.set(xlabel="frequency, cycles a pixel", yscale="log", ylabel="energy, model units²")
    axes.set_title(f"energy of h(x) − x by frequency, a line for each channel{_left_out(analyses)}")


def add_flow(sections: Sections) -> None:
    """What the flow does, of the runs of a page that have it measured."""
    if not sections.having("flow"):
        return
    sections.page.heading("What the flow does")
    analyses = {record.group: record.measurements["flow"] for record in sections.first("flow")}
    sections.draw(
        "flow",
        "Singular values of ∂h/∂x; where the displacement h(x) − x lies, as shares of its energy, which overlap; "
        "how well a linear probe knows the class from x_t; the energy of the displacement by frequency.",
        lambda path: save_flow_figure(analyses, path, sections.colours),
    )
