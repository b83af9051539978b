"""Figures of a report: curves over training and over sampling steps, samples, paths as strips, the plane."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Num
from matplotlib.figure import Figure
from torch import Tensor

from indm.conditions import at, at_data, rows_of_data
from indm.diffusion import NonlinearDiffusion, forward_path, probability_flow_path
from indm.sampling import log_snr_grid
from indm.workbench.data.base import Data, stack
from indm.workbench.data.densities import DENSITIES
from indm.workbench.evaluation import plots, sample_quality, sheets
from indm.workbench.evaluation.page import Line, Point, View
from indm.workbench.evaluation.plots import Colours, Limits, styled
from indm.workbench.evaluation.records import Record, by_group
from indm.workbench.evaluation.statistics import over_seeds
from indm.workbench.runs.folder import open_model

FRAMES = 9  # of a path; one more than a multiple of 4
STRIPS = 4  # paths of a group that are shown
PARTICLES = 1000
CLASSES, COLUMNS = 20, 8  # of samples by class: rows, at most, and images in a row
FIELD = 13  # points along a side of the plane
AXES = {"step": "optimizer step", "seconds": "training time (s)", "spent": "optimizer steps × cost of a step"}
DISTANCES = {"sliced_wasserstein": "sliced Wasserstein distance", "frechet": "Fréchet distance"}
Measured = dict[str, list[list[dict]]]  # by group the rows of each seed


# ── Lines ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def curve_views(
    records: Sequence[Record],
    colours: Colours,
    against: Sequence[str] = ("step", "seconds"),
    costs: Mapping[str, float] | None = None,
) -> list[View]:
    """Validation NELBO of each run, a view for each key of :data:`AXES`; "spent" is steps times the group's cost."""
    views = []
    for key in against:
        lines = []
        for name, group in by_group(records).items():
            label = name if any(record.curve for record in group) else f"{name} (nothing was validated)"
            cost = (costs or {}).get(name)
            for record in group:
                rows = [row | ({} if cost is None else {"spent": row["step"] * cost}) for row in record.curve]
                points = [(row[key], row["valid_nelbo"], 0.0) for row in rows if key in row]
                lines.append(Line(label, points, colours[name]))
        views.append(View(AXES[key], AXES[key], f"validation NELBO ({records[0].unit})", lines))
    return views


def gap_view(records: Sequence[Record], colours: Colours) -> View:
    """NELBO − NLL over steps."""
    lines = []
    for record in records:
        points = [(row["step"], row["gap"], row["standard_error"] or 0.0) for row in record.measurements["gap"]]
        lines.append(Line(record.group, points, colours[record.group]))
    steps = [step for line in lines for step, *_ in line.points]
    lines.append(Line("zero", [(min(steps), 0.0, 0.0), (max(steps), 0.0, 0.0)], reference=True))
    return View(AXES["step"], AXES["step"], f"NELBO − NLL of the ODE ({records[0].unit})", lines)


def quality_views(groups: Sequence[Sequence[Record]], colours: Colours) -> list[View]:
    """Distances to the test data over evaluations, a view for each distance and sampler, those of training data as a
    reference."""
    measured = {group[0].group: [record.measurements["quality"] for record in group] for group in groups}
    (training, *_, last), *_ = next(iter(measured.values()))
    floors = {key: training[key] for key in DISTANCES if last[key] is not None}  # Fréchet's needs labels
    return [
        view
        for key, floor in floors.items()
        for view in sampler_views(measured, key, f"{DISTANCES[key]} to test data", colours, floor, DISTANCES[key])
    ]


def sampler_views(
    measured: Measured, key: str, y: str, colours: Colours, floor: float | None = None, title: str = ""
) -> list[View]:
    """A number of each sampler over evaluations, a line for each group; a view for each sampler."""
    samplers = dict.fromkeys(row["sampler"] for seeds in measured.values() for row in seeds[0])
    views = []
    for sampler in (name for name in samplers if name != "data"):
        lines = [
            Line(name, points, colours[name])
            for name, seeds in measured.items()
            if (points := _points_of(seeds, sampler, key))
        ]
        if floor is not None:
            places = [x for line in lines for x, *_ in line.points]
            lines.append(Line("training data", [(min(places), floor, 0.0), (max(places), floor, 0.0)], reference=True))
        name = f"{title}, {sampler}" if title else sampler
        views.append(View(name, "evaluations of the network", y, lines, log=True))
    return views


def _points_of(seeds: list[list[dict]], sampler: str, key: str) -> list[Point]:
    """(evaluations, mean over seeds, its error) of a sampler."""
    points = []
    for same in zip(*([row for row in rows if row["sampler"] == sampler] for rows in seeds), strict=True):
        points.append((same[0]["nfe"], *over_seeds([row[key] for row in same], same[0][f"{key}_standard_error"])))
    return points


# ── Samples ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def samples_figure(records: Sequence[Record], data: Data, path: Path, colours: Colours) -> None:
    """Data, and samples of the first model of each group; those of a model of p(x|c) at the c of the data."""
    n = sheets.SIDE**2 if len(data.shape) == 3 else PARTICLES
    panels: dict[str, Tensor | str] = {"data": stack(data.test, n)}
    for group, runs in by_group(records).items():
        model = open_model(runs[0].folder)
        panels[group] = _samples(model, n, rows_of_data(model, data, "test", n))
    plots.save_pixels(sheets.samples_picture(panels, data.scaling.levels or 256, colours, _limits(data)), path)


def _limits(data: Data) -> Limits:
    """The range of the first two entries of points, with a margin; None for images and single numbers."""
    if len(data.shape) != 1 or data.shape[0] < 2:
        return None
    points = stack(data.test, PARTICLES).float()
    low, high = points.amin(0)[:2] - 0.3, points.amax(0)[:2] + 0.3
    return (low[0].item(), high[0].item()), (low[1].item(), high[1].item())


def classes_figure(groups: Sequence[Sequence[Record]], data: Data, path: Path, colours: Colours) -> None:
    """Data, and samples of the first model of each group, a row for each of the first :data:`CLASSES` classes."""
    models = {group[0].group: cast(Any, open_model(group[0].folder)) for group in groups}
    condition = next(iter(models.values())).condition
    labels = condition.labels[:CLASSES]
    is_image = len(data.shape) == 3
    each = COLUMNS if is_image else PARTICLES // 4
    wanted = torch.arange(len(labels)).repeat_interleave(each)
    columns = {"data": _of_classes(data, condition.rows_of(data, "test"), len(labels), each)}
    for name, model in models.items():
        c = model.condition.rows([labels[number] for number in wanted.tolist()])
        columns[name] = list(_samples(model, len(c), c).split(each))
    if is_image:
        panels = [sheets.Panel(torch.cat(rows), each, name, labels) for name, rows in columns.items()]
        plots.save_pixels(sheets.sheet(panels, data.scaling.levels or 256), path)
    else:
        plots.save_figure(plots.points_by_class(columns, labels, colours, _limits(data)), path)


def _of_classes(data: Data, classes: Tensor, count: int, each: int) -> list[Tensor]:
    """The first ``each`` test examples of each of ``count`` classes; missing images are black."""
    none, rows = stack(data.test, 1)[:0], []
    for number in range(count):
        chosen = (classes == number).nonzero().flatten()[:each].tolist()
        x = torch.cat([none, *(data.test[i][None] for i in chosen)])
        missing = each - len(x) if len(data.shape) == 3 else 0
        rows.append(torch.cat([x, x.new_zeros(missing, *data.shape)]))
    return rows


def _samples(model, n: int, c: Tensor | None = None) -> Tensor:
    """Samples in data units: of a diffusion by Heun in 25 steps, of another model as it draws them; one for each row of
    ``c`` where there are any."""
    n = n if c is None else len(c)
    if model.is_diffusion:
        x, _ = sample_quality.solve(model, sample_quality.prior_draws(model, n, 0), "heun", 25, c=c)
    else:
        x = model.sample(n, generator=sample_quality.make_generator(model.scaling.scale, 0, 0))
    return model.scaling.to_data(x).cpu()


# ── Paths of images ─────────────────────────────────────────────────────────────────────────────────────────────────


def clock(model, frames: int) -> Float[Tensor, " frames"]:
    """Times from ε to T, equally spaced on the log-SNR clock."""
    return log_snr_grid(model.sde, frames - 1).flip(0)


def forward_strip(model, x: Tensor, c: Tensor | None = None) -> Num[Tensor, "frames n *event"]:
    """x_t along one Brownian path."""
    generator = torch.Generator(x.device).manual_seed(0)
    return forward_path(at(model, c, len(x)), x, clock(model, FRAMES), generator=generator)


def flow_strip(model, x: Tensor, c: Tensor | None = None) -> Num[Tensor, "frames n *event"]:
    """x_t along the probability flow."""
    model = at(model, c, len(x))
    eps, _ = model.sde.endpoints(x)
    generator = torch.Generator(x.device).manual_seed(1)
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    start = NonlinearDiffusion(model).perturb(x, eps, noise)
    return probability_flow_path(model, start, clock(model, FRAMES))


def interpolation_strip(model, x: Tensor, c: Tensor | None = None) -> Num[Tensor, "frames n *event"]:
    """From each x to its successor, through z_T; decoded at the c of the first where there is one."""
    z = codes(model, x, c)
    return between(model, z, z.roll(-1, 0), FRAMES, c)


def codes(model, x: Tensor, c: Tensor | None = None) -> Num[Tensor, "n *event"]:
    """z_T of data x along the probability flow; the sampler "ode" leads back from there."""
    here = at(model, c, len(x))
    return sample_quality.encode_ode(here, here.flow.latent(x).detach())[0]


def between(model, start: Tensor, end: Tensor, frames: int, c: Tensor | None = None) -> Num[Tensor, "frames n *event"]:
    """Data decoded from z_T on the great circle from ``start`` to ``end``, ends among them.

    ``c`` has a row for each of ``start``; of a model without a condition it is None.
    """
    z = torch.stack([slerp(start, end, share) for share in torch.linspace(0, 1, frames).tolist()])
    c = None if c is None else c.repeat(frames, *(1 for _ in c.shape[1:]))
    return sample_quality.solve(model, z.flatten(0, 1), "ode", c=c)[0].reshape(z.shape)


def slerp(a: Num[Tensor, "n *event"], b: Num[Tensor, "n *event"], share: float) -> Num[Tensor, "n *event"]:
    """On the great circle from a to b, lengths interpolated by the same weights."""
    flat = [v.flatten(1) for v in (a, b)]
    angle = torch.nn.functional.cosine_similarity(flat[0], flat[1]).clamp(-1 + 1e-6, 1 - 1e-6).arccos()[:, None]
    left, right = ((angle * s).sin() / angle.sin() for s in (1 - share, share))
    return (left * flat[0] + right * flat[1]).reshape(a.shape)


@dataclass(frozen=True)
class Strip:
    """A path of images, shown frame by frame.

    Attributes:
        caption: of the figure.
        frames: (model, x, c) → (frames, B, *event), in model units; c is None for a model without a condition.
        labels: model → a word above each frame.
        at_c: what the caption says of models of p(x|c).
    """

    caption: str
    frames: Callable[..., Tensor]
    labels: Callable[..., Sequence[str]]
    at_c: str = "x_t is at the c of x"


def times(model) -> list[str]:
    """The times of the frames of a path."""
    return sheets.time_words(clock(model, FRAMES).tolist())


def shares(model, frames: int = FRAMES) -> list[str]:
    """How far each frame of an interpolation is from x to x′, in per cent."""
    return ["x", *(f"{share:.0%}" for share in torch.linspace(0, 1, frames).tolist()[1:-1]), "x′"]


PATHS = {
    "paths": Strip("x_t along one Brownian path, at times equally spaced on the log-SNR clock from ε to T.",
                   forward_strip, times),
    "flow-paths": Strip("x_t along the probability flow, at the same times: encoded to T, each frame decoded by h⁻¹.",
                        flow_strip, times),
    "interpolation": Strip("From x to x′ through z_T: both encoded, interpolated on the sphere, decoded.",
                           interpolation_strip, shares,
                           "all of a row is decoded at the c of x, x′ too"),
}  # fmt: skip


def strip_panels(records: Sequence[Record], data: Data, strip: Strip) -> list[sheets.Panel]:
    """A panel for each record, a row for each image, a column for each time."""
    panels = []
    for record in records:
        model = open_model(record.folder)
        raw = stack(data.test, STRIPS).to(model.scaling.scale.device)
        with torch.no_grad():
            x = model.from_data(raw, generator=torch.Generator(raw.device).manual_seed(0))[0]
            frames = strip.frames(model, x, rows_of_data(model, data, "test", len(x)))
        rows = model.scaling.to_data(frames.transpose(0, 1).flatten(0, 1)).cpu()
        panels.append(sheets.Panel(rows, FRAMES, record.group, tops=strip.labels(model)))
    return panels


# ── The plane ───────────────────────────────────────────────────────────────────────────────────────────────────────


@styled
def plane_figure(record: Record, data: Data, path: Path, colours: Colours) -> None:
    """A model of the plane: density and samples, particles forward and backward, drift and volatility.

    Particles go along the forward diffusion from the test data, at their c, and along the probability flow from draws
    of the prior. Drift and volatility are at the c of the first example.
    """
    whole = open_model(record.folder).cpu()
    model = at_data(whole, data, "test", PARTICLES)
    times, x = clock(model, FRAMES), model.from_data(stack(data.test, PARTICLES))[0]
    start = model.decode(sample_quality.prior_draws(model, len(x), 0)).detach()
    particles = {
        "forward": forward_path(model, x, times, generator=torch.Generator().manual_seed(0)),
        "generative": probability_flow_path(model, start, times.flip(0)).flip(0),
    }
    diffusion = NonlinearDiffusion(at(whole, rows_of_data(whole, data, "test", 1), FIELD**2))
    colour, reach = colours[record.group], 1.2 * x.abs().max().item()  # half a side of a square around the data
    side, every = (-2 * reach, 2 * reach), FRAMES // 4
    figure = Figure(figsize=(12, 10.4))
    panels = figure.subplots(4, 5, sharex="row", sharey="row")
    if data.name in DENSITIES:
        plots.background(panels[0, 0], DENSITIES[data.name], side * 2, model.scaling)
    for column, t in enumerate(times[::every].tolist()):
        for row, (direction, clouds) in enumerate(particles.items()):
            title = f"{direction}, t = {t:.2g}"
            plots.dots(panels[row, column], clouds[::every][column], title, colour, (side, side))
        now = torch.full((FIELD**2,), t)
        axis = torch.linspace(-reach, reach, FIELD)
        grid = torch.cartesian_prod(axis, axis)
        plots.arrows(panels[2, column], grid, diffusion.drift(grid, now), f"f_φ, t = {t:.2g}", colour)
        plots.ellipses(panels[3, column], grid, diffusion.dense_diffusion(grid, now), f"G_φ, t = {t:.2g}", colour)
    for number, row in enumerate(panels):
        below = number % 2 == 1  # two rows have the same range
        for axes in row:
            axes.tick_params(labelleft=axes is row[0], labelbottom=below)
            axes.set(xlabel="x₁ (model units)" if below else "", ylabel="x₂ (model units)" if axes is row[0] else "")
    plots.save_figure(figure, path)
