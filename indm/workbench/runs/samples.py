"""Samples drawn from a run, kept with how they were drawn."""

import contextlib
import json
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indm.checks import brief, counted, reason, require
from indm.files import atomic, untrusted
from indm.model import INDM
from indm.names import trust
from indm.sampling import Sampler, centre_prior, default_steps, make_sampler, sample, solve_latent
from indm.tensors import Batch, PerSample, evaluation_mode
from indm.workbench.data.arrays import names_of
from indm.workbench.data.base import stack
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import Drawing
from indm.workbench.recipes.recipe import Recipe
from indm.workbench.runs.folder import check_absent, data_of, open_run
from indm.workbench.runs.provenance import provenance, weights_hash

SAMPLES = "samples.npz"
# in data units, their grey levels (0: none), how they were drawn
Samples = tuple[Tensor, int, dict | None]
# samples of a class and together, and classes, that are drawn by default
IN_ROW, IN_ALL, MOST_ROWS = 8, 80, 40
CHECKED = 8  # samples that are solved again, in twice the steps
SAMPLE_FILES = ("samples.json", "samples.csv", SAMPLES, "samples.png")  # all of one drawing


def draw(
    run: Path,
    drawing: Drawing,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> Samples:
    """Samples in data units (n, *event), their grey levels (0: none), and their provenance: how
    they were drawn, from which weights and data.

    They are kept in ``samples.npz`` in ``out`` (default: the run folder), vectors also in
    ``samples.csv`` with names of columns. ``samples.json`` says what made them.

    Raises:
        ValueError: bad options, or samples in ``out``: only ``overwrite`` replaces them and their
            picture.
    """
    model, recipe = open_run(run)
    drawing = with_defaults(drawing, recipe)
    steps = drawing.steps or default_steps(model)
    with trust(drawing.sampler):  # the caller names it; it does not come from a file
        sampler = make_sampler(drawing.sampler, **drawing.sampler_options)
    settled: dict[str, Any] = {"steps": steps, "sampler_options": sampler.options()}
    drawing = replace(drawing, **settled, eps=model.sde.truncation(drawing.eps))
    device, data = model.scaling.scale.device, recipe.data.table()
    made_by = asdict(drawing) | {
        "steps": None if sampler.adaptive else steps,
        "device": device.type,
    }
    made_by |= {"weights_sha256": weights_hash(run), "data": data}
    # with the types that JSON gives back
    made_by, file = json.loads(json.dumps(made_by)), (out or run) / SAMPLES
    check_absent(file.parent, SAMPLE_FILES, overwrite)
    generator = torch.Generator(device).manual_seed(drawing.seed)
    torch.manual_seed(drawing.seed)  # the published flow draws its codes from it
    raw, c, changes = _drawn(run, model, drawing, sampler, generator, progress)
    record = {
        "options": {key: made_by[key] for key in asdict(drawing)},
        "change_in_twice_the_steps": changes,
        "provenance": provenance(drawing.seed, {str(run): made_by["weights_sha256"]}),
    }
    # a file of arrays can hold numbers alone
    text = np.frombuffer(json.dumps(made_by).encode(), np.uint8)
    arrays = {
        "samples": raw.numpy(),
        "levels": np.array(model.scaling.levels or 0),
        "provenance": text,
    }
    arrays |= {} if c is None else {"c": c.numpy()}
    parts = {file.with_suffix(".json"): atomic.json_into(record)}
    if raw.ndim == 2 and not model.scaling.levels:
        parts[file.with_suffix(".csv")] = atomic.table_into(
            column_names(data, raw.shape[1]), raw.tolist()
        )
    old = [file.parent / name for name in reversed(SAMPLE_FILES)]
    # samples.npz last: where it is, the others are
    atomic.together(parts | {file: atomic.arrays_into(arrays)}, old)
    return read_samples(file)


def with_defaults(drawing: Drawing, recipe: Recipe) -> Drawing:
    """The drawing with what it leaves to a run's recipe: how many samples, of which classes, at
    which guidance.
    """
    n, condition, guidance = drawing.n, drawing.condition, drawing.guidance
    if n is None and condition is None and 0 < len(recipe.labels) <= MOST_ROWS:
        condition = "all"
    if n is None:
        row = min(IN_ROW, max(2, IN_ALL // max(1, len(recipe.labels))))
        n = row if condition == "all" else 64
    if guidance is None:
        is_guided = recipe.condition is not None and drawing.condition != "none"
        guidance = recipe.sample.guidance if is_guided else 1.0
    return replace(drawing, n=n, condition=condition, guidance=guidance)


def _drawn(
    run: Path,
    model: INDM,
    drawing: Any,
    sampler: Sampler,
    generator: torch.Generator,
    progress: bool,
) -> tuple[Tensor, Tensor | None, list[float] | None]:
    """Samples in data units, their conditions, and how far the first are from those in twice the
    steps, where that says something of the steps.
    """
    c = conditions(run, model, drawing)
    n = drawing.n if c is None else len(c)
    if drawing.latent_mean:
        data = data_of(run, model)
        of_data = None if model.condition.is_none else data.rows(model.condition, "train")[:10_000]
        centre_prior(model, stack(data.train, 10_000), c=of_data, generator=generator)
    before = generator.get_state()
    options: dict[str, Any] = {
        "guidance": drawing.guidance,
        "steps": drawing.steps,
        "eps": drawing.eps,
        "temperature": drawing.temperature,
        "last_denoising": drawing.last_denoising,
        "batch_size": drawing.batch_size,
    }
    x = sample(model, n, c=c, sampler=sampler, generator=generator, progress=progress, **options)
    changes = None
    if not (sampler.stochastic or sampler.adaptive) and model.flow.has_log_det:
        z_T = model.sde.prior_sample(
            (min(n, drawing.batch_size), *model.shape),
            generator=generator.set_state(before),
            dtype=x.dtype,
        )
        checked = min(n, CHECKED)
        part = model.truncated(drawing.eps).given(
            c, rows=torch.arange(checked), guidance=drawing.guidance
        )
        options = {name: options[name] for name in ("temperature", "last_denoising")}
        steps = drawing.steps or default_steps(model)
        changes = change_in_twice_the_steps(
            part, x[:checked], z_T[:checked], sampler, steps, **options
        ).tolist()
    return model.scaling.to_data(x).cpu(), c, changes


def change_in_twice_the_steps(
    model,
    x: Batch,
    z_T: Batch,
    sampler: Sampler,
    steps: int,
    *,
    temperature: float = 1.0,
    last_denoising: bool = True,
) -> PerSample:
    """RMS distance of samples ``x``, made from z_T in ``steps`` without noise, from those in twice
    the steps, (B,).

    For a method of order p it is the error of the samples times 1 − 2⁻ᵖ, so 25 % too small at order
    2. The unit is a grey level (values beyond the first and the last count as these), or of
    continuous data a unit of the model.

    Raises:
        ValueError: a stochastic or adaptive sampler.
    """
    require(
        not (sampler.stochastic or sampler.adaptive),
        "sampler",
        sampler,
        "one of fixed steps without noise",
    )
    with evaluation_mode(model):
        finer = model.decode(
            temperature * solve_latent(model, z_T, sampler, 2 * steps, last_denoising)[0]
        )
    scale = model.scaling.scale
    shift = model.scaling.shift
    levels = model.scaling.levels
    if levels is not None:
        x, finer = ((part * scale + shift).clamp(0, levels) for part in (x, finer))
    return (x - finer).flatten(1).square().mean(1).sqrt()


def column_names(data: dict, columns: int) -> list[str]:
    """The names of the columns of vectors: those in the file of ``data``, or x1, x2, …"""
    with contextlib.suppress(ValueError):
        names = names_of(data)
        if len(names) == columns:
            return names
    return [f"x{i}" for i in range(1, columns + 1)]


def change_line(folder: Path, levels: int) -> str | None:
    """A line on the distance of the samples in ``folder`` from samples in twice the steps; None
    where it is unknown.

    ``levels`` are their grey levels, 0 for none.
    """
    record = untrusted.json_object(folder / "samples.json")
    changes, options = record.get("change_in_twice_the_steps"), record["options"]
    if not changes:
        return None
    unit = f"of {levels} grey levels" if levels else "deviations of a column"
    return (
        f"change in twice the steps: {statistics.fmean(changes):.2g} {unit} (RMS; {max(changes):.2g} at most), of "
        f"{counted(len(changes), 'sample')} in {2 * options['steps']} steps"
    )


def conditions(run: Path, model: Any, drawing: Any) -> Tensor | None:
    """The conditions at which samples are drawn, a row for each; None for a model without one, and
    for p(x).

    ``drawing`` has ``n`` and ``guidance``, ``condition`` and ``seed``, as :class:`Drawing` after
    :func:`with_defaults`.

    Raises:
        ValueError: ``drawing.condition`` is none of the model's.
    """
    condition, wanted = model.condition, drawing.condition
    if condition.is_none:
        if wanted is not None or drawing.guidance != 1:
            raise ValueError(
                f"condition and guidance are for a model of p(x|c), got {wanted} and {drawing.guidance:g}; "
                "train one with the condition classes"
            )
        return None
    if wanted == "none":
        return None
    if wanted == "all":
        if not condition.is_class:
            raise ValueError('condition "all" is for classes; give numbers, as in "[0.5, 1.2]"')
        return torch.arange(len(condition.labels)).repeat_interleave(drawing.n)
    if wanted is not None:
        value = recipes.value_of(wanted)
        if condition.is_class:
            names = (
                value if isinstance(value, list) and wanted not in condition.labels else [wanted]
            )
            value = [condition.number(str(name)) for name in names]
        return condition.rows(value, drawing.n)
    try:
        rows = data_of(run, model).rows(condition, "train")
    except ValueError as error:
        if not condition.is_class:
            raise
        print(
            f"every class is drawn as often as the others, as there are no data: {reason(error)}",
            file=sys.stderr,
        )
        rows = torch.arange(len(condition.labels))
    chosen = torch.randint(
        len(rows), (drawing.n,), generator=torch.Generator().manual_seed(drawing.seed)
    )
    return rows[chosen]


def read_samples(file: Path) -> Samples:
    """Samples that :func:`draw` kept, their grey levels (0: none), and their provenance (None:
    unknown).

    Raises:
        ValueError: naming the file, where it is damaged or holds something else.
    """
    try:
        has_provenance = "provenance" in (untrusted.array_names(file) or ())
        made_by = (
            json.loads(untrusted.array(file, "provenance").tobytes()) if has_provenance else None
        )
        samples, levels = untrusted.array(file, "samples"), untrusted.array(file, "levels")
        _check_samples(samples, levels, made_by)
        return torch.from_numpy(samples), int(levels), made_by
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} cannot be read as samples that 'indm sample' wrote: {reason(error)}"
        ) from error


def _check_samples(samples: np.ndarray, levels: np.ndarray, made_by: object) -> None:
    """ValueError unless these are samples, a number of grey levels, and a provenance."""
    if levels.shape != () or levels.dtype.kind not in "iu" or levels == 1 or levels < 0:
        raise ValueError(
            f"its levels must be one whole number, 2 or more, or 0 for none, got {brief(levels)}"
        )
    if levels > 0 and (
        samples.dtype.kind not in "iu"
        or samples.min(initial=0) < 0
        or samples.max(initial=0) >= levels
    ):
        raise ValueError(
            f"its samples must be whole numbers from 0 to {levels - 1}, the last of its levels"
        )
    if made_by is not None and not (
        isinstance(made_by, dict) and isinstance(made_by.get("weights_sha256"), str)
    ):
        raise ValueError('its provenance must be an object with a "weights_sha256"')
    json.dumps(made_by, allow_nan=False)  # check: it is written again beside results of the samples
