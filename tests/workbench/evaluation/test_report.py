"""The report: the page, its pictures, what is known of runs and kept, and all of it on tiny runs."""

import io
import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from browsers import NARROW, WIDE, keep, overflow
from matplotlib.figure import Figure
from pages import Reader, assert_alone, tables_of
from PIL import Image
from solvers import solve_roughly
from torch.distributions import MultivariateNormal

import indm
from indm.flows import Identity
from indm.model import build_model
from indm.scaling import Scaling
from indm.workbench.data.base import stack
from indm.workbench.data.densities import Density
from indm.workbench.data.registry import load_data
from indm.workbench.evaluation import figures, plots, records, sample_quality, sheets
from indm.workbench.evaluation import report as writer
from indm.workbench.evaluation.compare import best_model, conclusions, convention_rows, likelihood_rows, with_error
from indm.workbench.evaluation.extractor import Extractor, train_extractor
from indm.workbench.evaluation.methods import costs_of
from indm.workbench.evaluation.page import Line, Page, View
from indm.workbench.evaluation.records import Measurement, Record, Setup, differences_of, folders_of, groups_of, measure
from indm.workbench.evaluation.report import report
from indm.workbench.evaluation.results import evaluate_run, read_evaluation
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import ReportOptions
from indm.workbench.runs.folder import end_of, open_run
from indm.workbench.runs.provenance import weights_hash
from indm.workbench.training import costs
from indm.workbench.training.loop import train

DIGITS = {
    "data": {"name": "digits"},
    "flow": {"name": "coupling", "depth": 1, "width": 4},
    "sde": {"name": "vp"},
    "net": {"name": "mlp", "width": 16, "depth": 1, "fourier": 0},
    "train": {"steps": 8, "batch_size": 64, "validate_examples": 20, "log_every": 2, "validate_every": 4,
              "snapshot_every": 8, "lr": 3e-3, "flow_lr": 3e-3, "ema": 0.5},
    "evaluate": {"examples": 60, "nll_examples": 4, "times": 2, "steps": 8},
}  # fmt: skip
PLANE = DIGITS | {
    "data": {"name": "eight-gaussians", "samples": 2000},
    "flow": {"name": "residual", "blocks": [1], "width": 4},
    "net": {"name": "mlp", "width": 8, "depth": 1},
}
OLD_RUN = Path(__file__).parents[1] / "fixtures" / "runs" / "indm"
NASTY = "<b>&\"'x"
MANY = 8  # steps from which on the quick report has the stochastic samplers alone
QUICK = ReportOptions(examples=20, steps=(2, 3, MANY), samplers=("unipc", "euler-maruyama"))


def change(recipe, table, **options):
    return recipe | {table: recipe.get(table, {}) | options}


@pytest.fixture(scope="module", autouse=True)
def trusting():
    with indm.trust("own_model"):
        yield


# ── The page ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_page_holds_everything_and_escapes_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    page = Page(f"title {NASTY}")
    page.heading(f"heading {NASTY}", level=3)
    page.heading(f"heading {NASTY}")  # a second of this name
    page.text(f"text {NASTY}")
    page.conclude([f"so {NASTY}", "and more"])
    page.table([("", f"head {NASTY}"), (f"cell {NASTY}", "opposite")])
    page.picture(tmp_path / "a.png", f"caption {NASTY}")
    page.write(tmp_path / "index.html")

    text = (tmp_path / "index.html").read_text("utf-8")
    reader = assert_alone(text)
    assert text.startswith("<!doctype html>") and ("meta", {"charset": "utf-8"}) in reader.elements
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in reader.elements
    found = {"title": "title", "h1": "title", "h3": "heading", "h2": "heading", "figcaption": "caption", "th": "head"}
    assert {tag: "".join(reader.text(tag)) for tag in found} == {tag: f"{word} {NASTY}" for tag, word in found.items()}
    assert reader.text("p") == [f"so {NASTY}", "and more", f"text {NASTY}"]
    assert reader.text("a") == [f"heading {NASTY}"] * 2 and reader.text("td") == [f"cell {NASTY}", "opposite"]
    assert [a["href"] for tag, a in Reader(text).elements if tag == "a"] == ["#heading-b-x", "#heading-b-x-2"]
    classes = [attributes["class"] for tag, attributes in reader.elements if tag == "td"]
    assert classes == [f"cell {NASTY}", "opposite"] and ".opposite" in "".join(reader.text("style"))
    assert [a["alt"] for tag, a in reader.elements if tag == "img"] == [f"caption {NASTY}"]
    assert reader.images() == [(tmp_path / "a.png").read_bytes()]
    order = [text.index(f">{word} ") for word in ("title", "so", "heading", "text", "head", "cell", "caption")]
    assert order == sorted(order)


# ── Pictures ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ellipses_are_the_images_of_circles_that_just_fit():
    axis = torch.tensor([-1.0, -0.5, 0.0, 0.5])
    points = torch.cartesian_prod(axis, axis)
    matrices = torch.randn(16, 2, 2)
    axes = Figure().subplots()
    plots.ellipses(axes, points, matrices, "G")
    assert len(axes.lines) == 16
    largest, reached = torch.linalg.svdvals(matrices)[:, 0].max().item(), 0.0
    for line, point, matrix in zip(axes.lines, points, matrices, strict=True):
        offsets = np.asarray(line.get_xydata()) - point.numpy()
        radii = np.linalg.norm(np.linalg.solve(matrix.numpy(), offsets.T), axis=0)
        assert radii == pytest.approx(0.25 / largest, rel=1e-3)  # half the distance of neighbours, for the largest
        angles = np.unwrap(np.arctan2(*np.linalg.solve(matrix.numpy(), offsets.T)[::-1]))
        assert abs(angles[-1] - angles[0]) == pytest.approx(2 * math.pi, rel=1e-3)  # closed
        reached = max(reached, np.linalg.norm(offsets, axis=1).max())
    assert reached == pytest.approx(0.25, rel=0.01) and reached <= 0.25 + 1e-6
    assert axes.get_title() == f"G, largest {largest:.2g}"


def test_arrows_stand_at_their_points_and_name_the_largest():
    axes = Figure().subplots()
    plots.arrows(axes, torch.zeros(1, 2), torch.tensor([[0.0, 1234.0]]), "f")
    assert axes.get_title() == "f, largest 1200"
    points, vectors = torch.randn(9, 2), torch.randn(9, 2)
    axes = Figure().subplots()
    plots.arrows(axes, points, vectors, "f")
    (arrows,) = axes.collections
    assert np.allclose(arrows.get_offsets(), points)
    assert np.allclose(np.stack([arrows.U, arrows.V], 1), vectors) and arrows.angles == "xy"
    assert axes.get_title() == f"f, largest {max(math.hypot(*v) for v in vectors.tolist()):.2g}"


class OneGaussian(Density):
    mean = torch.tensor([0.3, -0.6])

    def log_prob(self, x):
        return MultivariateNormal(self.mean, 0.01 * torch.eye(2)).log_prob(x)


@pytest.mark.parametrize("scaling", [None, Scaling(torch.tensor([0.5, -0.5]), torch.tensor([0.5, 0.25]))])
def test_background_has_the_density_where_it_is(scaling):
    axes, extent = Figure().subplots(), (-1.5, 2.0, -2.5, 2.0)
    plots.background(axes, OneGaussian(), extent, scaling)
    (image,) = axes.images
    values, (x0, x1, y0, y1) = np.asarray(image.get_array()), extent
    assert tuple(image.get_extent()) == extent and image.origin == "lower"
    row, column = np.unravel_index(values.argmax(), values.shape)
    size = np.array(values.shape[::-1])
    found = np.array([x0, y0]) + (np.array([column, row]) + 0.5) * np.array([x1 - x0, y1 - y0]) / size
    shift, scale = (0, np.ones(2)) if scaling is None else (scaling.shift.numpy(), scaling.scale.numpy())
    assert found == pytest.approx((OneGaussian.mean.numpy() - shift) / scale, abs=0.025)
    mass = values.mean() * (x1 - x0) * (y1 - y0) * scale.prod()
    assert mass == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_grid_places_enlarged_images_by_rows(channels):
    images = torch.randint(0, 17, (5, channels, 8, 12))
    picture = sheets.grid(images, 17, columns=3)
    assert picture.shape == (6 + 2 * 70, 6 + 3 * 102, 3)  # eight times as large, and lines of six pixels
    inside = np.zeros(picture.shape[:2], dtype=bool)
    for i, image in enumerate(images.double().numpy() / 16):
        top, left = 6 + 70 * (i // 3), 6 + 102 * (i % 3)
        inside[top : top + 64, left : left + 96] = True
        shown = np.broadcast_to(image if channels == 3 else image.mean(0, keepdims=True), (3, 8, 12)).transpose(1, 2, 0)
        assert np.abs(picture[top : top + 64, left : left + 96] - 255 * shown.repeat(8, 0).repeat(8, 1)).max() <= 0.5
    outside = picture[~inside]
    assert set(np.unique(outside)) <= {0, 153}  # the sixth image is missing
    assert sheets.time_words([1e-5, 0.5, 1.0, 0.25]) == ["t = 1e-05", "0.5", "1", "0.25"]
    assert sheets.grid(torch.zeros(4, 1, 64, 64), 2).shape == (146, 146, 3)  # large enough as they are


def test_a_sheet_has_its_words_inside_and_its_images_exact():
    """Words are ink on white paper that does not touch the edges, and names that are long are broken."""
    images = torch.randint(0, 2, (6, 1, 8, 8))
    words = {"title": "a/very/long/folder/" * 6 + "$1$_$2$", "rows": ("source", "a longer word")}
    words["tops"] = ("t = 1e-05",) * 3
    paper = sheets.sheet([sheets.Panel(images, 3, **words), sheets.Panel("not drawn yet", 3, "second")], 2, across=2)
    edges = np.concatenate([paper[0], paper[-1], paper[:, 0], paper[:, -1]])
    assert (edges == 255).all()
    room = 4 + math.ceil(sheets.FONT.getlength("t = 1e-05"))
    exact = sheets.grid(images, 2, 3, sheets.enlargement(images.shape, room))
    places = [
        (top, left)
        for top in range(len(paper) - len(exact) + 1)
        for left in range(0, paper.shape[1] // 2)
        if (paper[top, left : left + 9] == exact[0, :9]).all()
        and np.array_equal(paper[top : top + len(exact), left : left + exact.shape[1]], exact)
    ]
    ((top, left),) = places
    ink = (paper != 255).any(-1)
    height = len(exact)
    for row in (0, 1):  # a word beside each row
        assert ink[top + row * height // 2 : top + (row + 1) * height // 2, : left - 2].any()
    assert not ink[top:, left - 2 : left].any()
    for column in range(3):
        assert ink[top - sheets.LINE : top, left + column * exact.shape[1] // 3 :][:, : exact.shape[1] // 3].any()
    assert ink[: top - 3 * sheets.LINE, : left + exact.shape[1]].any()  # the title needs several lines
    right = paper[:, left + exact.shape[1] + 2 :]
    assert (right[top + 20 : -20] != 255).any()  # why there are no images


def test_labels_of_a_figure_lie_inside_it_and_inside_their_panels():
    figure = Figure(figsize=(8, 6))
    names = ["runs/2026-11-26/a long name of a run/with/parts", "b" * 150, "$x$"]
    for axes in figure.subplots(1, 2):
        for name in names:
            axes.plot([1, 2], [1.2, 1.9], label=name)
        axes.set(title=names[0] + names[1][:60], xlabel=names[0] * 2, ylabel=names[0], yscale="log")
    plots.finish(figure)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert ["".join(text.get_text().split()) for text in legend.get_texts()] == ["".join(n.split()) for n in names]
    titles = [axes.title for axes in figure.axes]
    labels = [axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    for text in (*titles, *legend.get_texts(), *labels):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    left, right = (text.get_window_extent() for text in titles)
    assert left.x1 < right.x0


def test_an_empty_panel_says_why():
    axes = Figure().subplots()
    plots.draw_lines(axes, View("x", "x", "y", [Line("a", [], "red")]))
    assert axes.texts[0].get_text().replace("\n", " ") == "no validation was logged in training"


def test_a_picture_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.png"
    figure = Figure(figsize=(2, 1))
    figure.subplots()
    plots.save_figure(figure, path)
    assert Image.open(path).size == (240, 120)
    before = path.read_bytes()

    class Broken(Figure):
        def savefig(self, file, **_):
            file.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        figure = Broken()
        figure.subplots()
        plots.save_figure(figure, path)
    assert path.read_bytes() == before


# ── Figures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_slerp_runs_along_the_great_circle_at_constant_speed():
    a, b = torch.randn(2, 6, 1, 3, 4, dtype=torch.float64)
    assert torch.allclose(figures.slerp(a, b, 0.0), a) and torch.allclose(figures.slerp(a, b, 1.0), b)
    a, b = (v / v.flatten(1).norm(dim=1)[:, None, None, None] for v in (a, b))

    def angle(u, v):
        return (u * v).flatten(1).sum(1).arccos()

    for share in (0.2, 0.5, 0.9):
        c = figures.slerp(a, b, share)
        assert c.flatten(1).norm(dim=1).numpy() == pytest.approx(1)
        assert torch.allclose(angle(a, c), share * angle(a, b))
        assert torch.allclose(angle(c, b), (1 - share) * angle(a, b))
    assert torch.allclose(figures.slerp(a, a, 0.3), a, atol=1e-5)


@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_clock_is_equally_spaced_in_log_snr(sde):
    model = build_model(recipes.model_of(PLANE | {"sde": {"name": sde}}), shape=(2,))
    times = figures.clock(model, 6).double()
    steps = model.sde.log_snr(times).diff()
    assert times[0].item() == pytest.approx(model.sde.eps) and times[-1].item() == pytest.approx(1)
    assert (steps < 0).all() and steps.numpy() == pytest.approx(steps.mean().item(), rel=1e-3)


def test_strips_where_the_paths_are_known():
    """With the score of N(0, I), no flow and VP the probability flow rests, and noised N(0, I) stays N(0, I)."""
    model = build_model(recipes.model_of(DIGITS | {"flow": {"name": "identity"}}), shape=(1, 8, 8)).eval()
    x = torch.randn(24, 1, 8, 8)
    with torch.no_grad():
        forward, flow = figures.forward_strip(model, x), figures.flow_strip(model, x)
        way = figures.interpolation_strip(model, x)
    assert len(forward) == len(flow) == len(way) == figures.FRAMES
    assert torch.allclose(forward[0], x, atol=0.03)
    assert forward.flatten(1).std(1).numpy() == pytest.approx(1, abs=0.06)
    correlation = [torch.corrcoef(torch.stack([frame.flatten(), x.flatten()]))[0, 1].item() for frame in forward]
    alpha = model.sde.alpha(figures.clock(model, figures.FRAMES)).tolist()
    assert correlation == pytest.approx(alpha, abs=0.06)
    assert torch.allclose(flow, flow[:1].expand_as(flow), atol=2e-3) and torch.allclose(flow[0], x, atol=0.03)
    for frame, share in zip(way, torch.linspace(0, 1, figures.FRAMES).tolist(), strict=True):
        assert torch.allclose(frame, figures.slerp(x, x.roll(-1, 0), share), atol=5e-3)


def bars(axes):
    """x, y and half the error bar of each line."""
    found = {}
    for container in axes.containers:
        line, _, (verticals,) = container.lines
        halves = [(segment[1, 1] - segment[0, 1]) / 2 for segment in verticals.get_segments()]
        found[container.get_label()] = (*map(list, line.get_data()), halves)
    return found


def record(folder, group, **measured):
    return Record(folder, group, {}, {"unit": "nats", "entropy_nats": None}, 0, measured)


def test_views_are_means_over_seeds_and_figures_show_them(tmp_path):
    def quality(values):
        rows = [("data", None, 0, 0.1), ("unipc", 5, 6, values[0]), ("unipc", 10, 11, values[1]),
                ("euler-maruyama", 5, 6, values[2]), ("euler-maruyama", 10, 11, values[3])]  # fmt: skip
        return [
            {"sampler": sampler, "steps": steps, "nfe": nfe, "frechet": None, "sliced_wasserstein": value,
             "sliced_wasserstein_standard_error": 0.01}
            for sampler, steps, nfe, value in rows
        ]  # fmt: skip

    two = [record(tmp_path, "a", quality=quality(v)) for v in ([0.5, 0.2, 0.9, 0.6], [0.7, 0.4, 0.8, 0.3])]
    one = [record(tmp_path, "b", quality=quality([1.0, 0.8, 2.0, 1.5]))]
    colours = plots.colours_of(["a", "b"])
    views = figures.quality_views([two, one], colours)
    distance = "sliced Wasserstein distance"
    assert [view.name for view in views] == [f"{distance}, unipc", f"{distance}, euler-maruyama"] and views[0].log
    assert views[0].lines[-1] == Line("training data", [(6, 0.1, 0.0), (11, 0.1, 0.0)], reference=True)
    left, right = plots.lines_figure(views, 2).axes
    x, y, error = bars(left)["a"]
    assert x == [6, 11] and y == pytest.approx([0.6, 0.3]) and error == pytest.approx([0.1, 0.1])
    assert bars(right)["a"][1] == pytest.approx([0.85, 0.45]) and bars(right)["a"][2] == pytest.approx([0.05, 0.15])
    assert bars(right)["b"][1] == [2.0, 1.5] and bars(right)["b"][2] == pytest.approx([0.01, 0.01])
    assert [list(line.get_ydata()) for line in left.lines if line.get_linestyle() == "--"] == [[0.1, 0.1]]
    assert left.get_ylabel() == f"{distance} to test data" and not right.get_ylabel()

    rows = [{"step": 4, "gap": 0.3, "standard_error": 0.1}, {"step": 6, "gap": -0.2, "standard_error": 0.05}]
    (axes,) = plots.lines_figure([figures.gap_view([record(tmp_path, "b", gap=rows)], colours)], 1).axes
    x, y, error = bars(axes)["b"]
    assert (x, y) == ([4, 6], [0.3, -0.2]) and error == pytest.approx([0.1, 0.05]) and axes.get_title() == ""
    assert not (axes.get_xticks() % 1).any()  # of steps
    lines = [container.lines[0] for panel in (left, right, axes) for container in panel.containers]
    assert [line.get_color() for line in lines] == [colours[name] for name in "ababb"]  # a model has one colour


def test_a_chart_leaves_out_what_is_not_finite(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    page = Page("x")
    points = [(1, 2.0, math.nan), (2, math.inf, 0.1), (3, 4.0, 0.5)]
    page.chart([View("v", "x", "y", [Line("a", points, "#123456")])], tmp_path / "a.png", "c")
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', page.parts[0])
    line = {"name": "a", "points": [[1, 2.0, 0.0], [3, 4.0, 0.5]], "colour": "#123456", "reference": False}
    assert json.loads(data) == [{"name": "v", "x": "x", "y": "y", "lines": [line], "log": False}]


def test_curves_show_every_validation_and_name_a_group_once(tmp_path):
    found = []
    for i in range(3):
        folder = tmp_path / str(i)
        folder.mkdir()
        lines = [{"step": s, "seconds": s / 2 + i, "valid_nelbo": 10 * i - s, "unit": "nats"} for s in (3, 6)]
        written = [lines[0], {"step": 5, "seconds": 3.0, "loss": 1.0}, lines[1]]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
        found.append(record(folder, "a" if i < 2 else "b"))
    found.append(record(tmp_path / "none", "c"))
    colours = plots.colours_of("abc")
    views = figures.curve_views(found, colours)
    assert [line.name for line in views[0].lines] == ["a", "a", "b", "c (nothing was validated)"]
    steps, seconds = plots.lines_figure(views, 2).axes
    assert [list(line.get_xdata()) for line in steps.lines] == [[3, 6]] * 3 + [[]]
    assert [list(line.get_xdata()) for line in seconds.lines[:3]] == [[1.5 + i, 3 + i] for i in range(3)]
    assert [list(line.get_ydata()) for line in seconds.lines[:3]] == [[10 * i - 3, 10 * i - 6] for i in range(3)]
    assert [line.get_color() for line in steps.lines] == [colours[name] for name in "aabc"]
    assert not (steps.get_xticks() % 1).any() and (seconds.get_xticks() % 1).any()
    assert steps.get_ylabel() == "validation NELBO (nats)" and seconds.get_xlabel() == "training time (s)"
    measured = figures.curve_views([replace(found[0], cost=0.25)], colours)  # a step's seconds are measured apart
    assert [[x for x, *_ in view.lines[0].points] for view in measured] == [[3, 6], [0.75, 1.5]]


# ── The conclusion ──────────────────────────────────────────────────────────────────────────────────────────────────


def concluded(group, nelbo, seed=0):
    """A record with a NELBO in nats."""
    values = {"nats": nelbo, "nats_standard_error": 0.02}
    evaluation = {"unit": "nats", "split": "test", "entropy_nats": None, "nelbo": {"with_reconstruction": values}}
    return Record(Path(group, str(seed)), group, {}, evaluation, 0, {})


def judged_as(difference, verdict, p_holm=None, seeds=1):
    return {"nelbo": {"difference": difference, "standard_error": 0.01, "seeds": seeds, "p_holm": p_holm,
                      "verdict": verdict}}  # fmt: skip


def test_a_conclusion_says_what_is_best_by_how_much_and_with_what_verdict():
    linear, indm, flow = concluded("linear", 2.0), concluded("indm", 1.5), concluded("flow", 3.0)
    untested = {"indm": judged_as(-0.5, "untested"), "flow": judged_as(1.0, "untested")}
    assert best_model([linear, indm, flow], untested) == (
        "indm has the lowest NELBO on the test data, 1.500 ± 0.020 nats. linear has 0.5000 ± 0.0100 more: no verdict "
        "on methods, since that needs several seeds of each."
    )
    better = {"linear": judged_as(0.5, "worse", 0.004, 3), "flow": judged_as(1.5, "worse", 0.004, 3)}
    assert best_model([indm, flow, linear], better).endswith(
        "linear has 0.5000 ± 0.0100 more: the difference is larger than chance explains (Holm's p = 0.004, 3 seeds)."
    )
    undecided = {"indm": judged_as(-0.5, "undecided", 0.2, 3)}
    assert "more: undecided, since the difference may be chance" in best_model([linear, indm], undecided)
    seeds = [concluded("indm", nelbo, seed=i) for i, nelbo in enumerate((1.4, 1.6))]
    assert best_model(seeds, {}) == (
        "indm has the lowest NELBO on the test data, 1.500 ± 0.100 nats; there is no other model to compare it with."
    )
    assert "linear has 2.000 ± 0.020; the two cannot be compared in pairs" in best_model([linear, indm], {})
    for records_, row in (([linear, indm], {"indm": 0.2}), ([indm, linear], {"linear": -0.2})):  # of a few seeds alone
        opposite = {name: judged_as(difference, "undecided", 0.2, 2) for name, difference in row.items()}
        assert "linear has 0.2000 ± 0.0100 less over pairs of equal seeds: undecided" in best_model(records_, opposite)
    diverged = concluded("first", math.nan)  # in a seed that has no partner
    assert "linear has 2.000 ± 0.020; the two" in best_model([diverged, indm, linear], better)
    assert best_model([concluded("indm", math.nan)], {}) == "No model has a finite NELBO."


# ── Records ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def written(folder, recipe):
    """A run folder that holds a recipe and something that stands for the model."""
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(recipes.to_toml(recipes.resolve(recipe)))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_groups_are_seeds_of_one_recipe(tmp_path):
    seeds = [written(tmp_path / "indm" / str(i), change(PLANE, "train", seed=i)) for i in range(3)]
    alone = written(tmp_path / "linear", PLANE | {"flow": {"name": "identity"}})
    same = [written(tmp_path / side / "run", change(PLANE, "train", lr=lr)) for side, lr in (("a", 0.1), ("b", 0.2))]
    both = written(tmp_path / "indm" / "longer", change(change(PLANE, "train", seed=1), "train", steps=9))
    watched = change(change(PLANE, "train", seed=7, log_every=1, snapshot_every=3), "evaluate", examples=30)
    seeds.append(written(tmp_path / "indm" / "3", watched))  # the same model, seen otherwise
    order = [seeds[0], alone, seeds[1], *same, both, *seeds[2:]]
    found = groups_of(order)
    assert list(found) == order
    assert [found[folder] for folder in seeds] == ["0"] * 4  # as their folder also holds a run of another method
    assert {*groups_of([run for run in order if run != both]).values()} >= {"indm", "linear"}
    assert found[alone] == "linear" and found[both] == "longer"
    assert [found[folder] for folder in same] == ["run", str(same[1])]
    grouped = records.by_group([record(folder, group) for folder, group in found.items()])
    assert [f.folder for f in grouped["0"]] == seeds and list(grouped)[:2] == ["0", "linear"]


def test_bounds_are_in_the_unit_of_the_run(tmp_path):
    assert with_error(0.12345, 0.01) == "0.123 ± 0.010" and with_error(0.12345, math.nan, 2) == "0.12"
    bits = {"bits_per_dim": 2.5, "bits_per_dim_standard_error": 0.1, "nats": 111.0, "nats_standard_error": 4.0}
    for unit, wanted in (("bits/dim", (2.5, 0.1)), ("nats", (111.0, 4.0))):
        evaluation = {"unit": unit, "entropy_nats": None, "nelbo": {"with_reconstruction": bits}}
        f = Record(tmp_path, "a", {}, evaluation, 0, {})
        assert f.unit == unit and f.bound() == wanted and f.bound("nll") is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"examples": 19}, "examples must be at least 20"),
        ({"steps": ()}, "steps must be one or more"),
        ({"steps": (5, 0)}, "steps must be one or more numbers of at least 1"),
        ({"steps": (200, 1000)}, "steps must be a list with one below 200"),
        ({"samplers": ()}, "samplers must be one or more of"),
        ({"samplers": ("unipc", "dmp++")}, "sampler must be one of"),
    ],
)
def test_options_that_cannot_be_measured(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        ReportOptions(**options)


def test_a_measurement_is_kept_until_options_or_weights_change(tmp_path, monkeypatch):
    run, calls = written(tmp_path / "run", PLANE), []

    def quality(run, setup):
        calls.append(setup.options)
        return [{"sampler": "data", "steps": None, "value": 0.1 * len(calls)}]

    monkeypatch.setattr(records, "MEASUREMENTS", {"quality": Measurement(quality, lambda model: True)})
    data = load_data(**PLANE["data"])

    def found(extractor=None, **options):
        return measure(run, "quality", Setup(data, extractor, ReportOptions(**options), progress=False))[0]["value"]

    kept = run / "measurements" / "quality.json"
    kept.parent.mkdir()
    kept.write_text("{}")  # nothing that could be used
    assert found() == found() == 0.1 and len(calls) == 1
    assert json.loads(kept.read_text())["result"] == [{"sampler": "data", "steps": None, "value": 0.1}]
    changes = ({"examples": 40}, {"steps": (3,)}, {"samplers": ("heun",)}, {"seed": 1})
    for number, options in enumerate(changes, start=2):
        assert found(**options) == found(**options) == 0.1 * number and len(calls) == number
    os.utime(run / "model.safetensors", ns=(1, 1))  # the same weights, copied
    assert found(seed=1) == 0.5
    (run / "model.safetensors").write_bytes(b"trained on")
    assert found(seed=1) == found(seed=1) == pytest.approx(0.6)
    extractor = Extractor((1, 8, 8), 17, 10)
    for number, weights in ((7, "a"), (8, "b")):  # Fréchet distances of another extractor are other numbers
        extractor.provenance = {"weights_sha256": weights}
        assert found(extractor, seed=1) == found(extractor, seed=1) == pytest.approx(0.1 * number)


def test_a_measurement_of_an_earlier_version_is_made_again(tmp_path, monkeypatch):
    run = written(tmp_path / "run", PLANE)
    made = {name: replace(m, make=lambda run, setup: ["new"]) for name, m in records.MEASUREMENTS.items()}
    made["own"] = Measurement(lambda run, setup: setup.options.seed, lambda model: True)
    setup = Setup(load_data(**PLANE["data"]), None, ReportOptions(seed=3), False, made)
    (run / "measurements").mkdir()
    for name in ("gap", "quality"):
        kept = {"options": setup.dependencies(run) | {"version": 1}, "result": ["old"]}
        (run / "measurements" / f"{name}.json").write_text(json.dumps(kept))
    assert [measure(run, name, setup) for name in ("gap", "quality", "own")] == [["new"], ["old"], 3]
    assert json.loads((run / "measurements" / "gap.json").read_text())["options"]["version"] == 3
    again = replace(setup, measurements={"gap": replace(made["gap"], make=lambda run, setup: {})})
    assert measure(run, "gap", again) == ["new"]  # as stored


@pytest.mark.long
def test_snapshots_are_the_averaged_model_of_their_step_and_show_its_gap(tmp_path):
    """Also the end, which is not a multiple of the snapshots; in nats of points."""
    run, recipe = tmp_path / "run", PLANE | {"flow": {"name": "coupling", "depth": 1, "width": 4}}
    train(change(recipe, "train", steps=7, snapshot_every=3), run, progress=False)
    train(change(recipe, "train", steps=3, snapshot_every=0), tmp_path / "three", progress=False)
    folders = {3: run / "snapshots" / "3", 6: run / "snapshots" / "6", 7: run}
    assert sorted((run / "snapshots").iterdir()) == list(folders.values())[:2]
    assert not (tmp_path / "three" / "snapshots").exists()
    (run / "snapshots" / "notes").write_text("mine")
    weights = [(f / "model.safetensors").read_bytes() for f in (tmp_path / "three", *folders.values())]
    assert weights[0] == weights[1] and len({*weights}) == 3

    data = load_data(**PLANE["data"])
    rows = measure(run, "gap", Setup(data, None, ReportOptions(examples=20, seed=3), progress=False))
    assert [row["step"] for row in rows] == [3, 6, 7] and len({row["gap"] for row in rows}) == 3
    for row in rows[::2]:
        model = indm.INDM.load(folders[row["step"]])
        reported, nats = indm.evaluate(model, stack(data.test, 20), times=16, seed=3, progress=False)
        values = [reported[kind]["with_reconstruction"]["nats"] for kind in ("nelbo", "nll")]
        assert (row["nelbo"], row["nll"]) == pytest.approx(values)
        assert row["gap"] == pytest.approx(values[0] - values[1], abs=1e-9)
        each = (nats["nelbo"] - nats["nll"]).numpy()
        assert row["standard_error"] == pytest.approx(each.std(ddof=1) / math.sqrt(20)) and row["images"] == 20


def test_the_error_of_a_gap_is_over_groups(tmp_path):
    """Of groups of equal size it is that of their means; of a single group nobody knows it."""
    run, plain = tmp_path / "run", load_data(**PLANE["data"])
    train(PLANE, run, progress=False)
    found = []
    for size in (4, 20):
        data = replace(plain, groups={"test": torch.arange(len(plain.test)) // size})
        found += measure(run, "gap", Setup(data, None, ReportOptions(examples=20, seed=size), progress=False))
    _, nats = indm.evaluate(indm.INDM.load(run), stack(plain.test, 20), each=True, times=16, seed=4, progress=False)
    means = (nats["nelbo"] - nats["nll"]).reshape(5, 4).mean(1)
    assert found[0]["standard_error"] == pytest.approx((means.std() / math.sqrt(5)).item())
    assert found[1]["standard_error"] is None
    assert figures.gap_view([record(tmp_path, "b", gap=found[1:])], {"b": "red"}).lines[0].points[0][2] == 0


def test_the_end_of_a_run_is_known_or_that_is_said(tmp_path):
    with pytest.raises(ValueError, match="has not come to an end"):
        end_of(tmp_path)
    (tmp_path / "conversion.json").write_text('{"step": 123}')
    assert end_of(tmp_path) == {"steps": 123}
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match="has not come to an end"):
        end_of(tmp_path)


def test_a_damaged_evaluation_is_made_anew_and_a_run_without_a_log_is_reported(tmp_path):
    """As a released checkpoint that was converted is."""
    run, data = tmp_path / "run", load_data(**PLANE["data"])
    train(PLANE, run, progress=False)
    (run / "metrics.jsonl").unlink()
    (run / "evaluation.json").write_text("{}")
    f = records.record_of(run, "a", Setup(data, None, ReportOptions(examples=20, steps=(2,)), progress=False), [])
    assert f.evaluation == json.loads((run / "evaluation.json").read_text())
    assert likelihood_rows([f])[1][4:6] == ("–", "–")


def test_baselines_are_rows_and_the_worst_seed_says_whether_it_learned(tmp_path):
    """Of a group of two seeds and a run that was evaluated before there were baselines."""

    def record(group, seed, value, baselines=True):
        folder = tmp_path / f"{group}-{seed}"
        train(change(DIGITS, "train", steps=2, seed=seed, snapshot_every=0), folder, progress=False)
        numbers = {"nats": value * 64 * math.log(2), "bits_per_dim": value, "bits_per_dim_standard_error": 0.1}
        less = {"bits_per_dim": value - 2.5, "bits_per_dim_standard_error": 0.01}
        rows = {"gaussian": {"name": "a Gaussian", "bits_per_dim": 2.5, "bits_per_dim_standard_error": 0.02}}
        rows["gaussian"]["nelbo_difference"] = less
        evaluation = {"unit": "bits/dim", "entropy_nats": 7.0, "data": {"name": "digits"}, "data_changed": False}
        evaluation |= {kind: {"with_reconstruction": numbers} for kind in ("nelbo", "nll")}
        evaluation |= {"baselines": rows} if baselines else {}
        return Record(folder, group, recipes.load(folder), evaluation, 1, {})

    known = [record("a", 0, 2.0), record("a", 1, 3.0), record("b", 0, 2.2), record("c", 0, 2.1, baselines=False)]
    first, second = conclusions(known)
    assert first.startswith("a, the worst of 2 seeds: The model (3.00 bits/dim) is worse than a Gaussian (2.50)")
    assert first.endswith(f"Go on with: indm train {tmp_path / 'a-1'} --resume --train.steps 2000")
    assert second == "b: The model (2.20 bits/dim) is better than a Gaussian (2.50)."
    *_, baseline, entropy = likelihood_rows(known[::-1])
    assert baseline == ("baseline: a Gaussian", "", "examples", "", "", "", "2.500 ± 0.020", "")
    assert entropy[0] == "entropy of the data"


def test_the_report_says_how_likelihoods_were_computed():
    evaluation = json.loads((OLD_RUN / "evaluation.json").read_text()) | {"unit": "bits/dim"}
    record = Record(OLD_RUN, "a", recipes.load(OLD_RUN), evaluation, 1, {})
    _, nelbo, nll = convention_rows([record])
    assert nelbo == ("a, NELBO", "uniform, 17 grey levels", "1e-05", "16", "", "", "4", "0.2771", "")
    probe = "Hutchinson, 1 Rademacher probe(s)"
    assert nll == ("a, NLL (ODE)", "uniform, 17 grey levels", "1e-05", "8", "", probe, "34", "0.0074", "")
    for how, said in (({"nll_error": 1e-3}, "to 0.001"), ({"nll_error": 1e-3, "steps": 24}, "24 steps")):
        evaluation["nll"] |= how
        assert convention_rows([record])[2][4] == said
    evaluation["iw"] = evaluation["nll"] | {"draws": 8}
    evaluation["images"]["iw"] = 3
    assert convention_rows([record])[3][3::5] == ("3", "8")


def test_a_run_that_was_trained_on_is_evaluated_and_measured_anew(tmp_path, monkeypatch):
    solve_roughly(monkeypatch)
    run, data = tmp_path / "run", load_data(**PLANE["data"])

    def known():
        setup = Setup(data, None, ReportOptions(examples=20, steps=(2,)), progress=False)
        f = records.record_of(run, "a", setup, ["quality"])
        nats = f.evaluation["nelbo"]["with_reconstruction"]["nats"]
        return nats, f.measurements["quality"][1]["sliced_wasserstein"], f.curve[-1]["step"]

    train(PLANE, run, progress=False)
    first = known()
    assert known() == first
    train(change(PLANE, "train", steps=60), run, resume=True, progress=False)
    second = known()
    assert second[0] < first[0] and second[1] != first[1] and (first[2], second[2]) == (8, 60)
    assert second[0] == pytest.approx(evaluate_run(run, progress=False)["nelbo"]["with_reconstruction"]["nats"])


# ── The report ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Stopped(Exception):
    """Ends a report on the way."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A report on two seeds of a tiny INDM, a linear model of a nasty name and a model of another kind; it was stopped
    once."""
    base = tmp_path_factory.mktemp("report")
    data, out = load_data(name="digits"), base / "out"
    train_extractor(data, epochs=1, most=256, progress=False).save(out)
    for seed in (0, 1):
        train(change(DIGITS, "train", seed=seed), base / "indm" / str(seed), progress=False)
    train(DIGITS | {"flow": {"name": "identity"}}, base / NASTY, progress=False)
    train(change(DIGITS, "train", objective="own_model:likelihood"), base / "own", progress=False)
    folders = [base / "indm" / "0", base / "indm" / "1", base / NASTY, base / "own"]

    def stopped(run, *_):
        if run == folders[1]:
            raise Stopped
        return made.make(run, *_)

    made = records.MEASUREMENTS["gap"]
    seconds = {"indm": 0.2, NASTY: 0.21, "own": 0.1}

    def interleaved_seconds(trainers, threads, **_):
        return {run: [seconds.get(run.name, seconds["indm"])] for run in trainers}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "interleaved_seconds", interleaved_seconds)
        patch.setattr("indm.workbench.recipes.options.MANY_STEPS", MANY)
        patch.setattr(plots, "DPI", 80)
        solve_roughly(patch)
        patch.setitem(records.MEASUREMENTS, "gap", replace(made, make=stopped))
        with pytest.raises(Stopped):
            report(folders, out, QUICK, progress=False)
        assert not (out / "index.html").exists()
        kept = {p: p.stat().st_mtime_ns for p in base.rglob("*") if p.parent.name == "measurements"}
        patch.setitem(records.MEASUREMENTS, "gap", made)
        assert report(folders, out, QUICK, progress=False) == out / "index.html"
    return base, folders, kept


def test_report_is_one_page_with_every_picture(digits):
    base, _, _ = digits
    text = (base / "out" / "index.html").read_text("utf-8")
    reader = assert_alone(text)
    names = ["curves", "gap", "samples", "quality", "paths", "flow-paths", "interpolation"]
    assert sorted(p.name for p in (base / "out").glob("*.png")) == sorted(f"{name}.png" for name in names)
    assert reader.images("zoomable") == [(base / "out" / f"{name}.png").read_bytes() for name in names]
    assert len(reader.images()) == len(names)
    for data in reader.images("zoomable"):
        image = Image.open(io.BytesIO(data))
        image.load()
        assert image.format == "PNG" and min(image.size) > 300 and len(set(image.convert("L").tobytes())) > 10
    assert NASTY in reader.text("td") and "b" not in {tag for tag, _ in reader.elements}
    first, *_ = reader.text("p")
    assert " has the lowest NELBO on the test data, " in first
    assert first.endswith(("several seeds of each.", "no verdict, since their budgets are not known to be equal."))
    assert "Samples" in reader.text("a") and "How they were computed" in reader.text("h3")
    assert "Hutchinson, 1 Rademacher probe(s)" in reader.text("td")
    accuracy = json.loads((base / "out" / "extractor.json").read_text())["provenance"]["test_accuracy"]
    assert ": The model (" in text and "baseline: a Gaussian with full covariance" in reader.text("td")
    assert f"of test accuracy {accuracy:.3f}" in text and "which of two models is better, not which method" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_report_fits_into_its_window(digits, visit, window, scheme):
    page = visit((digits[0] / "out" / "index.html").as_uri(), viewport=window, color_scheme=scheme, offline=True)
    page.locator("figure.chart svg circle").first.wait_for()
    assert overflow(page) == 0
    assert not page.locator("img:visible, svg, nav, p").evaluate_all(
        "all => all.filter(one => !one.closest('.table') && one.getBoundingClientRect().right > innerWidth)"
    )
    keep(page, f"report-{scheme}")


def test_report_json_holds_what_was_measured(digits):
    base, folders, _ = digits
    stored = json.loads((base / "out" / "report.json").read_text())
    assert stored["options"] == json.loads(json.dumps(vars(QUICK)))
    assert list(stored["runs"]) == [str(folder) for folder in folders]
    weights = {str(folder): weights_hash(folder) for folder in folders}
    assert stored["provenance"]["weights_sha256"] == weights and stored["provenance"]["seed"] == 0
    for folder in folders:
        found = stored["runs"][str(folder)]
        names = {"quality"} if folder.name == "own" else {"quality", "gap"}
        assert found.keys() == names | {"group", "evaluation"}
        for name in names:
            assert found[name] == json.loads((folder / "measurements" / f"{name}.json").read_text())["result"]
        assert found["evaluation"] == json.loads((folder / "evaluation.json").read_text())
        for row in found.get("gap", ()):  # in bits/dim, as the evaluation
            bits = found["evaluation"]["nelbo"]["with_reconstruction"]["bits_per_dim"]
            assert row["nelbo"] == pytest.approx(bits, rel=0.5)
            assert row["gap"] == pytest.approx(row["nelbo"] - row["nll"])
    assert [found["group"] for found in stored["runs"].values()] == ["indm", "indm", NASTY, "own"]


def test_report_says_what_was_spent_and_what_is_not_comparable(digits):
    """By costs that were measured for the report; the report of equal steps has them all comparable."""
    base, folders, _ = digits
    text = " ".join("".join(assert_alone((base / "out" / "index.html").read_text("utf-8")).text("p")).split())
    assert f"measured interleaved ({NASTY}, own: after the trainings), that of indm being 1." in text
    why = "as the budgets differ by more than 10%: 8 steps × 0.5 = 4 against 8;"
    assert f"own and indm are not comparable, {why}" in text
    assert f"{NASTY} and indm are not comparable" not in text
    stored = json.loads((base / "out" / "report.json").read_text())
    assert stored["costs"]["by_method"] == pytest.approx({"indm": 1, NASTY: 1.05, "own": 0.5})
    gathered = [
        Record(run, run.parent.name if run in folders[:2] else run.name, {}, read_evaluation(run), 0, {})
        for run in folders
    ]
    assert differences_of(gathered, costs_of(folders_of(gathered), "steps"))["own"]["nelbo"]["verdict"] == "untested"


def test_report_tables_are_means_over_seeds(digits):
    base, folders, _ = digits
    stored = list(json.loads((base / "out" / "report.json").read_text())["runs"].values())
    differences, likelihood, how, quality = tables_of((base / "out" / "index.html").read_text("utf-8"))

    assert how[0][-2:] == ["estimator noise", "K"] and how[1][1].startswith("uniform")
    nelbos = []
    for folder in folders:
        with np.load(folder / "evaluation.npz") as arrays:
            nelbos.append(arrays["nelbo"] / (64 * math.log(2)))
    means = [v.mean() for v in nelbos]
    assert [row[:3] for row in likelihood[1:]] == [
        ["indm", "2", "seeds"], [NASTY, "1", "examples"], ["own", "1", "examples"],
        ["baseline: uniform noise", "", "examples"], ["baseline: a Gaussian with full covariance", "", "examples"],
        ["baseline: PNG, header included", "", "examples"],
    ]  # fmt: skip
    assert likelihood[1][6] == f"{np.mean(means[:2]):.3f} ± {np.std(means[:2], ddof=1) / math.sqrt(2):.3f}"
    assert likelihood[2][6] == f"{means[2]:.3f} ± {nelbos[2].std(ddof=1) / math.sqrt(60):.3f}"
    assert likelihood[3][7] == "–" and [row[4] for row in likelihood[1:4]] == ["8"] * 3
    parameters = sum(p.numel() for p in indm.INDM.load(folders[0]).parameters())
    assert likelihood[1][3] == f"{parameters:,}"

    each = nelbos[2] - nelbos[0]  # the one pair of equal seeds
    cells = ["1 (without a partner: 1)", "8 steps × 1.05 = 8 against 8", "–", "–", "untested"]
    assert differences[1][:2] == [NASTY, "NELBO"] and differences[1][3:] == cells
    assert differences[3][4:] == ["8 steps × 0.5 = 4 against 8", "–", "–", "not comparable"]
    assert differences[1][2] == f"{each.mean():.4f} ± {each.std(ddof=1) / math.sqrt(60):.4f}"
    assert [row[:2] for row in differences[2:]] == [[NASTY, "NLL (ODE)"], ["own", "NELBO"]]

    assert [row[1:3] for row in quality[1:7]] == [["data", ""], ["unipc", "2"], ["unipc", "3"], ["euler-maruyama", "2"],
                                                  ["euler-maruyama", "3"], ["data", ""]]  # fmt: skip
    assert [row[0] for row in quality if row[0] == "training data"] == ["training data"] * 2
    assert len(quality) == 1 + 7 + 5 + 1 and quality[7][1:3] == ["euler-maruyama", str(MANY)]
    pair = [found["quality"][2] for found in stored[:2]]
    assert (pair[0]["sampler"], pair[0]["steps"]) == ("unipc", 3)
    for cell, key in ((quality[3][5], "frechet"), (quality[3][6], "sliced_wasserstein")):
        a, b = (row[key] for row in pair)
        assert cell == f"{(a + b) / 2:.3f} ± {abs(a - b) / 2:.3f}"
    assert quality[-1][0] == "own" and quality[-1][6].startswith(f"{stored[3]['quality'][0]['sliced_wasserstein']:.3f}")


def test_a_report_goes_on_where_it_was_stopped_and_repeats_itself(digits, monkeypatch):
    base, folders, kept = digits
    assert kept and len(kept) == 2 + 1 and all(p.stat().st_mtime_ns == time for p, time in kept.items())
    before = {p: p.stat().st_mtime_ns for folder in folders for p in folder.rglob("*") if p.is_file()}
    numbers, drawn = (base / "out" / "report.json").read_bytes(), []

    def never(*_):
        raise AssertionError("measured again")

    for name, measurement in records.MEASUREMENTS.items():
        monkeypatch.setitem(records.MEASUREMENTS, name, replace(measurement, make=never))
    monkeypatch.setattr(writer.Sections, "add_all", lambda self: drawn.extend(r.group for r in self.records))
    monkeypatch.setattr(Page, "write", lambda self, path: None)
    report(folders, base / "out", QUICK, progress=False)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (base / "out" / "report.json").read_bytes() == numbers and drawn == ["indm", "indm", NASTY, "own"]


def test_interpolation_ends_at_the_images_for_any_flow_and_score(digits):
    _, folders, _ = digits
    model, data = open_run(folders[0])[0], load_data(name="digits")
    assert not isinstance(model.flow, Identity)
    raw = stack(data.test, 3)
    with torch.no_grad():
        x = model.scaling.to_model(raw, generator=torch.Generator().manual_seed(0))
        frames = figures.interpolation_strip(model, x)
    assert torch.allclose(frames[0], x, atol=0.02) and torch.allclose(frames[-1], x.roll(-1, 0), atol=0.02)
    assert not torch.allclose(frames[4], x, atol=0.2)


def test_report_refuses_what_it_cannot_compare(digits, tmp_path):
    base, folders, _ = digits
    other = written(tmp_path / "other", change(DIGITS, "data", limit=100))
    empty = tmp_path / "empty"
    empty.mkdir()
    np.save(tmp_path / "few.npy", np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32))
    few = {"name": "array", "path": str(tmp_path / "few.npy")}
    for given, error, complaint in (
        ([], ValueError, "at least one run"),
        ([folders[0], folders[0]], ValueError, "run folders must differ, got .* twice"),
        ([folders[3]], ValueError, "at least one run of an INDM, got only Normals"),
        ([folders[0], other], ValueError, "runs of different data"),
        ([folders[0], empty], FileNotFoundError, "is no run folder"),
        ([written(tmp_path / "few", PLANE | {"data": few})], ValueError, "at least 20 test examples"),
    ):
        with pytest.raises(error, match=complaint):
            report(given, tmp_path / "out", QUICK, progress=False)
    assert not (tmp_path / "out").exists()

    page, twin = (base / "out" / "index.html").read_bytes(), tmp_path / "twin"
    shutil.copytree(folders[2], twin)
    evaluate_run(twin, {"examples": 50, "nll_examples": 0}, progress=False)
    said = r"twin and .* were evaluated on different examples: 50 for the NELBO of the test split of digits"
    with pytest.raises(ValueError, match=said):
        report([folders[0], twin], base / "out", QUICK, overwrite=True, progress=False)
    before = {p: p.stat().st_mtime_ns for p in (base / "out").iterdir()}
    for runs_of, options in ((folders[:2], QUICK), (folders, replace(QUICK, seed=1))):
        with pytest.raises(ValueError, match="out holds another report: add --overwrite"):
            report(runs_of, base / "out", options, progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    with pytest.raises(ValueError, match="mine holds another report"):
        report(folders, tmp_path / "mine", QUICK, progress=False)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (base / "out" / "index.html").read_bytes() == page
    assert (tmp_path / "mine" / "index.html").read_text() == "mine"


@pytest.mark.long
def test_report_of_classes_has_likelihoods_and_samples_by_class(tmp_path, monkeypatch):
    """With a flow that sees the class; every measurement is made."""
    monkeypatch.setattr(plots, "DPI", 40)
    solve_roughly(monkeypatch)
    run = tmp_path / "of-classes"
    train(DIGITS | {"condition": {"name": "classes", "flow": True}}, run, progress=False)
    train_extractor(load_data(name="digits"), epochs=1, most=256, progress=False).save(tmp_path / "out")
    sheets_of = captured_sheets(monkeypatch)
    page = report([run], tmp_path / "out", ReportOptions(20, (2,), ("unipc",)), progress=False)

    evaluation = read_evaluation(run)
    _, _, by_class, *_ = tables_of(page.read_text("utf-8"))
    assert by_class[0] == ["class", "examples", "of-classes, bits/dim"]
    assert [row[:2] for row in by_class[1:]] == [[k, str(v["images"])] for k, v in evaluation["classes"].items()]
    own, bits = evaluation["classes"]["3"], 64 * math.log(2)
    (row,) = [row for row in by_class if row[0] == "3"]
    assert row[2] == f"{own['nats'] / bits:.3f} ± {own['nats_standard_error'] / bits:.3f}"
    text = page.read_text("utf-8")
    assert "of-classes: log p(x|c) at the c of each example." in text
    assert "Of models of p(x|c) the samples are at the c of the data in the same positions." in text

    real, drawn = sheets_of["classes.png"]
    data, model = load_data(name="digits"), indm.INDM.load(run)
    assert [panel.rows for panel in (real, drawn)] == [tuple("0123456789")] * 2 and real.columns == drawn.columns == 8
    assert torch.equal(real.images[24:32], stack(data.of_class("3").test, 8))
    z_T = sample_quality.prior_draws(model, 80, 0)
    x, _ = sample_quality.solve(model, z_T, "heun", 25, c=torch.arange(80) // 8)
    assert torch.equal(drawn.images, model.scaling.to_data(x))
    _, beside = sheets_of["samples.png"]
    x, _ = sample_quality.solve(model, z_T[:25], "heun", 25, c=data.labels["test"][:25])
    assert torch.equal(beside.images, model.scaling.to_data(x))


def captured_sheets(monkeypatch):
    """The panels of every sheet that is drawn after this, by the picture's name."""
    kept, last, sheet, save = {}, [], sheets.sheet, plots.save_pixels

    def drawn(panels, *args, **options):
        last[:] = panels
        return sheet(panels, *args, **options)

    def saved(pixels, path):
        kept[path.name] = list(last)
        save(pixels, path)

    monkeypatch.setattr(sheets, "sheet", drawn)
    monkeypatch.setattr(plots, "save_pixels", saved)
    return kept


@pytest.mark.long
def test_report_of_the_plane_shows_density_drift_and_volatility(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "PARTICLES", 200)
    monkeypatch.setattr(plots, "DPI", 40)
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run"]  # of one name, which is no path of a picture
    for folder, flow in zip(folders, (PLANE["flow"], {"name": "identity"}), strict=True):
        train(PLANE | {"flow": flow}, folder, progress=False)
    kept, write = [], plots.save_figure

    def saved(figure, path):
        kept.append((path.name, figure))
        write(figure, path)

    monkeypatch.setattr(plots, "save_figure", saved)
    page = report(folders, tmp_path / "out", ReportOptions(20, (2,), ("unipc",)), progress=False)

    text = page.read_text("utf-8")
    reader = assert_alone(text)
    assert len(reader.images("zoomable")) == 4 + 2 == len(list((tmp_path / "out").glob("*.png")))
    assert len(set(reader.images())) == len(reader.images()) == 4 + 2
    linear = next(figure for name, figure in kept if name.startswith("plane-") and name.endswith("b-run.png"))
    panels = np.array(linear.axes).reshape(4, 5)
    assert len(panels[0, 0].images) == 1 and len(panels[0, 0].lines[0].get_xdata()) == figures.PARTICLES
    model = indm.INDM.load(folders[1])
    for column, t in enumerate(figures.clock(model, 5)):
        (arrows,) = panels[2, column].collections  # f_φ(x, t) = f(t) x and G_φ = g(t) I where there is no flow
        field = np.stack([arrows.U, arrows.V], 1)
        assert np.allclose(field, model.sde.drift(t[None].float()).item() * np.asarray(arrows.get_offsets()), atol=1e-4)
        assert panels[3, column].get_title().endswith(f"largest {model.sde.diffusion(t[None].float()).item():.2g}")
        for line in panels[3, column].lines:
            radius = np.linalg.norm(line.get_xydata() - line.get_xydata()[:-1].mean(0), axis=1)
            assert radius == pytest.approx(radius.mean(), rel=0.02)
    x = model.scaling.to_model(stack(load_data(**PLANE["data"]).test, figures.PARTICLES))
    assert np.allclose(panels[0, 0].lines[0].get_xydata(), x, atol=0.05)

    _, likelihood, *_ = tables_of(text)
    entropy = indm.workbench.data.densities.DENSITIES["eight-gaussians"].entropy()
    assert likelihood[-1][0] == "entropy of the data" and likelihood[-1][6] == f"{entropy:.3f}"
