"""Samples of a run, written with a record of how they were drawn."""

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

from indm.checks import counted, reason
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
# defaults: samples of a class, samples of all classes, and most classes
IN_ROW, IN_ALL, MOST_ROWS = 8, 80, 40
CHECKED = 8  # samples that are solved again, in twice the steps
MOST_CENTRED = 10_000  # training examples of the mean latent
SAMPLE_FILES = ("samples.json", "samples.csv", SAMPLES, "samples.png")  # all of one drawing


def draw(
    run: Path,
    drawing: Drawing,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> Samples:
    """Draw samples in data units (n, *event); also their grey levels (0: none) and provenance.

    They are written to ``samples.npz`` in ``out`` (default: the run folder), and vectors also to
    ``samples.csv`` with names of columns. ``samples.json`` records how they were drawn.

    Raises:
        ValueError: bad options, or there are samples in ``out`` without ``overwrite``, which
            replaces them and their picture.
    """
    model, recipe = open_run(run)
    drawing = with_defaults(drawing, recipe)
    steps = drawing.steps or default_steps(model)
    with trust(drawing.sampler):  # named by the caller, not by a file
        sampler = make_sampler(drawing.sampler, **drawing.sampler_options)
    settled: dict[str, Any] = {"steps": steps, "sampler_options": sampler.options()}
    drawing = replace(drawing, **settled, eps=model.sde.checked_truncation(drawing.eps))
    device, data = model.scaling.scale.device, recipe.data.table()
    made_by = asdict(drawing)
    made_by["steps"] = None if sampler.adaptive else steps
    made_by |= {"device": device.type, "weights_sha256": weights_hash(run), "data": data}
    made_by = json.loads(json.dumps(made_by))  # with the types that JSON gives back
    file = (out or run) / SAMPLES
    check_absent(file.parent, SAMPLE_FILES, overwrite)
    generator = torch.Generator(device).manual_seed(drawing.seed)
    torch.manual_seed(drawing.seed)  # for the codes of the published flow
    raw, c, changes = _drawn(run, model, drawing, sampler, generator, progress)
    record = {
        "options": {key: made_by[key] for key in asdict(drawing)},
        "change_in_twice_the_steps": changes,
        "provenance": provenance(drawing.seed, {str(run): made_by["weights_sha256"]}),
    }
    text = np.frombuffer(json.dumps(made_by).encode(), np.uint8)  # arrays have numbers only
    levels = np.array(model.scaling.levels or 0)
    arrays = {"samples": raw.numpy(), "levels": levels, "provenance": text}
    arrays |= {} if c is None else {"c": c.numpy()}
    parts = {file.with_suffix(".json"): atomic.json_into(record)}
    if raw.ndim == 2 and not model.scaling.levels:
        names = column_names(data, raw.shape[1])
        parts[file.with_suffix(".csv")] = atomic.table_into(names, raw.tolist())
    old = [file.parent / name for name in reversed(SAMPLE_FILES)]
    # samples.npz last: where it is, the others are
    atomic.together(parts | {file: atomic.arrays_into(arrays)}, old)
    return read_samples(file)


def with_defaults(drawing: Drawing, recipe: Recipe) -> Drawing:
    """The drawing with defaults from a run's recipe: how many samples, of which classes, guidance."""
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
    """Samples in data units, their conditions, and the change of the first in twice the steps."""
    c = conditions(run, model, drawing)
    n = drawing.n if c is None else len(c)
    if drawing.latent_mean:
        data = data_of(run, model)
        of_data = None
        if not model.condition.is_none:
            of_data = data.rows(model.condition, "train")[:MOST_CENTRED]
        centre_prior(model, stack(data.train, MOST_CENTRED), c=of_data, generator=generator)
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
    """RMS distance of samples ``x`` from those in twice the steps, (B,).

    ``x`` is made from z_T in ``steps`` without noise. For a method of order p the distance is the
    error of the samples times 1 − 2⁻ᵖ, so 25 % too small at order 2. The unit is a grey level, with
    values cut to the range of levels, or for continuous data a unit of the model.
    """
    with evaluation_mode(model):
        z, _ = solve_latent(model, z_T, sampler, 2 * steps, last_denoising)
        finer = model.decode(temperature * z)
    scaling = model.scaling
    levels = scaling.levels
    if levels is not None:
        x, finer = ((part * scaling.scale + scaling.shift).clamp(0, levels) for part in (x, finer))
    return (x - finer).flatten(1).square().mean(1).sqrt()


def column_names(data: dict, columns: int) -> list[str]:
    """The names of the columns of vectors, from the file of ``data``, or x1, x2, …"""
    with contextlib.suppress(ValueError):
        names = names_of(data)
        if len(names) == columns:
            return names
    return [f"x{i}" for i in range(1, columns + 1)]


def change_line(folder: Path, levels: int) -> str | None:
    """A line on the change of the samples in ``folder`` in twice the steps; None if it is unknown.

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
    """The condition of each sample; None for a model without conditions, and for p(x).

    Raises:
        ValueError: ``drawing.condition`` does not fit the model.
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
    if wanted == "all" and condition.is_class:
        return torch.arange(len(condition.labels)).repeat_interleave(drawing.n)
    if wanted is not None:
        value = recipes.value_of(wanted)
        if condition.is_class:
            is_list = isinstance(value, list) and wanted not in condition.labels
            value = [condition.number(str(name)) for name in (value if is_list else [wanted])]
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
    generator = torch.Generator().manual_seed(drawing.seed)
    return rows[torch.randint(len(rows), (drawing.n,), generator=generator)]


def read_samples(file: Path) -> Samples:
    """Samples of :func:`draw`, their grey levels (0: none), and their provenance (None: unknown).

    Raises:
        ValueError: the file is damaged or has something else.
    """
    arrays = untrusted.arrays(file)
    try:
        made_by = json.loads(arrays["provenance"].tobytes()) if "provenance" in arrays else None
        return torch.from_numpy(arrays["samples"]), int(arrays["levels"]), made_by
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{file} cannot be read as samples: {reason(error)}") from error
