"""The requests behind the buttons of ``indm app``: pictures and words computed with a run."""

import functools
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from indm.conditions import Classes, sees_condition
from indm.evaluation.statistics import mean_and_error
from indm.gaussian import GaussianReference
from indm.likelihood import latent_reference, nll
from indm.model import INDM
from indm.objective import nelbo
from indm.sampling import sample
from indm.tensors import evaluation_mode
from indm.translation import check_pair
from indm.workbench.data.base import Examples, stack
from indm.workbench.data.images import read_example
from indm.workbench.figures import sheets
from indm.workbench.runs.folder import data_of, open_run, recipe_of
from indm.workbench.training.pairs import SIDES, is_bridge, is_pair, noise_of
from indm.workbench.translation.routes import TranslationRuns

NELBO_TIMES = 16  # evaluations of the network for each draw of the NELBO
REFERENCE_IMAGES = 512  # at most, of the law of latents
FRAMES = 5  # pictures of each leg of a translation
WAYS = ("A to B", "B to A")
Picture = np.ndarray  # (height, width, 3) bytes


@dataclass(frozen=True)
class Source:
    """A chosen image: an uploaded file, else a test image by its number."""

    file: str | None
    number: float | None = None


@dataclass(frozen=True)
class Side:
    """A model with its test images."""

    run: Path
    model: INDM  # a model of images (1 or 3, H, W) in grey levels
    data: dict  # the [data] table, which says how images are cut and resized
    test: Examples | None  # None if they are not there, as for a model from the hub
    absent: str = ""  # why they are not there
    guidance: float = 1.0  # initial guidance of samples

    @classmethod
    def opened(cls, run: Path) -> "Side":
        """The model of a run folder with its test images."""
        model, recipe = open_run(run)
        shape, condition = tuple(model.shape), model.condition
        is_of_images = len(shape) == 3 and shape[0] in (1, 3) and model.scaling.levels is not None
        if not is_of_images or not (condition.is_none or condition.is_class):
            got = f"{run} has events of shape {shape} and the condition {type(condition).__name__}"
            raise ValueError(
                f"indm app needs a model of images in grey levels, without a condition or of classes, {got}"
            )
        table = recipe.data.table()
        return cls(run, model, table, None, guidance=recipe.sample.guidance).with_data(table)

    def with_data(self, table: dict) -> "Side":
        """The same model with the images of another ``[data]`` table."""
        try:
            return replace(self, data=table, test=data_of(self.run, self.model, table).test)
        except (ValueError, OSError) as error:
            return replace(self, data=table, absent=str(error))

    @property
    def name(self) -> str:
        """The name of its folder, after the name of its pair if there is one."""
        folder = self.run.resolve()
        return f"{folder.parent.name}/{folder.name}" if is_pair(folder.parent) else folder.name

    def read(self, source: Source) -> tuple[Tensor, str]:
        """An image as this model sees it, (C, H, W) in its grey levels, and a note on it."""
        if source.file is None:
            if self.test is None or source.number is None:
                why = f"; there are no test images: {self.absent}" if self.absent else ""
                raise ValueError(f"upload an image first{why}")
            return self.test[int(source.number)], f"test image {source.number:g}"
        file = Path(source.file)
        try:
            example = read_example(file, self.model.shape, self.levels, self.data)
        except (ValueError, OSError) as error:  # without the folder of uploads
            raise ValueError(str(error).replace(f"{file.parent}{os.sep}", "")) from error
        return example.pixels, example.note

    def generator(self, seed: float) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(int(seed))

    @property
    def device(self) -> torch.device:
        return self.model.scaling.scale.device

    @property
    def levels(self) -> int:
        return cast(int, self.model.scaling.levels)

    @functools.cached_property
    def reference(self) -> GaussianReference | None:
        """A law of the latents of test images, which makes likelihoods less noisy, if there are any."""
        if self.test is None or sees_condition(self.model.flow):
            return None
        return latent_reference(self.model, stack(self.test, REFERENCE_IMAGES).to(self.device))

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, if there are any."""
        condition = self.model.condition
        return condition.labels if isinstance(condition, Classes) else ()

    @property
    def knows_marginal(self) -> bool:
        """Whether a model of p(x|c) is also one of p(x), and can be guided."""
        return self.model.condition.drop > 0


def open_sides(folders: Sequence[Path]) -> list[Side]:
    """The models of one or two runs, or of a pair."""
    if len(folders) == 1 and is_pair(folders[0]):
        folders = [folders[0] / side for side in SIDES]
    if not 1 <= len(folders) <= 2:
        raise ValueError(f"indm app takes one run or two, got {len(folders)}")
    return [Side.opened(folder) for folder in folders]


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError at the first evaluation of a network after so many seconds."""
    end = time.monotonic() + seconds

    def check(module: torch.nn.Module, inputs: tuple) -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"stopped after {seconds:g} seconds; take fewer steps or images")

    hook = register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()


def preview(side: Side, source: Source) -> Picture:
    """An image as the model sees it."""
    return sheets.grid(side.read(source)[0][None], side.levels)


def samples(
    side: Side,
    n: int,
    steps: int,
    sampler: str,
    seed: float,
    temperature: float,
    c: str | None,
    guidance: float,
) -> Picture:
    """A grid of samples; the arguments go to :func:`indm.sample`."""
    options: Any = {"steps": steps, "temperature": temperature, "guidance": guidance}
    generator = side.generator(seed)
    x = sample(side.model, n, c=c or None, sampler=sampler, generator=generator, **options)
    return sheets.grid(side.model.scaling.to_data(x).cpu(), side.levels)


def likelihood(side: Side, source: Source, draws: int, seed: float, c: str | None) -> str:
    """−log₂ P of an image for each dimension, as a table in Markdown."""
    model, (image, note) = side.model, side.read(source)
    raw, generator = torch.stack([image] * draws).to(side.device), side.generator(seed)
    with evaluation_mode(model):
        x, log_q = model.from_data(raw, generator=generator)
        more: dict[str, Any] = {"c": c or None, "log_q": log_q, "reference": side.reference}
        more["generator"] = generator
        bound = nelbo(model, x, times=NELBO_TIMES, **more).nats
        report = nll(model, x, **more)
    unit = math.log(2) * image.numel()
    solver_error = f"{report.solver_error.max().item() / unit:.1g}"
    lines = ["| | bits/dim | ± | solver error |", "|---|---|---|---|"]
    for name, nats, error in (("NELBO", bound, "–"), ("NLL (ODE)", report.nats, solver_error)):
        mean, deviation = mean_and_error(nats.double().cpu() / unit)
        lines.append(f"| **{name}** | {mean:.3f} | {deviation:.3f} | {error} |")
    given, size = f" given {c}" if c else "", "×".join(map(str, model.shape))
    said = f"The image{given}: {note or 'as it was uploaded'}, {size}. "
    lines += ["", f"{said}±: standard error over {draws} draws, of this image alone."]
    return "\n".join(lines)


@dataclass(frozen=True)
class Ends:
    """A and B of a translation, each with its model and images, and the runs between them."""

    sides: tuple[Side, Side]  # the same side twice for one model of classes
    runs: TranslationRuns

    @property
    def within_one(self) -> bool:
        """Whether A and B are conditions of one model."""
        return self.sides[0] is self.sides[1]

    @property
    def guides(self) -> bool:
        """Whether a translation can be guided: by one model of A and B whose flow sees no class."""
        return self.within_one and not sees_condition(self.sides[0].model.flow)

    def translate(
        self,
        source: Source,
        way: str,
        c: tuple[str | None, str | None],
        strength: float,
        steps: int,
        guidance: float = 1.0,
    ) -> tuple[Picture, Picture]:
        """Source and result side by side, and the way between them, a row for each leg."""
        a, b = self.sides
        runs = replace(self.runs, classes=(c[0] or None, c[1] or None))
        first, last = (a, b) if way == WAYS[0] else (b, a)
        runs = runs if way == WAYS[0] else runs.backward()
        guidance = guidance if self.guides else 1.0
        route = runs.route(strength=strength, steps=steps, guidance=guidance)
        raw = first.read(source)[0][None].to(first.device)
        arrival = route.translate(raw, frames=FRAMES)
        shown = torch.cat([raw.cpu(), last.model.scaling.to_data(arrival.x).cpu()])
        rows = []
        for leg, frames in zip(route.legs, arrival.frames[0].split(FRAMES), strict=True):
            shown_frames = leg.model.scaling.to_data(frames).cpu()
            rows.append(sheets.strip(shown_frames, leg.times(FRAMES)))
        pair = sheets.Panel(shown, 2, tops=("source", "result"))
        return sheets.sheet([pair], first.levels), sheets.sheet(rows, first.levels, 1)


def ends_of(sides: Sequence[Side]) -> Ends | None:
    """The translation between two models, two classes of one, or the ends of a bridge, if any."""
    if len(sides) == 2:
        a, b = sides
        check_pair(a.model, b.model)
    elif sides[0].labels:
        a = b = sides[0]
    else:
        (a,), recipe = sides, recipe_of(sides[0].run)
        if recipe.data_b is None or not is_bridge(recipe):
            return None
        b = a.with_data(recipe.data_b.table())
        return Ends(
            (a, b), TranslationRuns((a.run,), (a.model,), a.data, b.data, noise=noise_of(recipe))
        )
    return Ends((a, b), TranslationRuns((a.run, b.run), (a.model, b.model), a.data, b.data))
