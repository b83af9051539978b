"""Batches of examples translated by one route, with what else is asked for, and kept until a translation is whole."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from indm.config.options import TranslationOptions
from indm.files import atomic
from indm.tensors import double
from indm.translation import Arrival, Route


@dataclass(frozen=True)
class Translated:
    """One example translated, in data units.

    Attributes:
        result: the example on the other side.
        frames: the pictures of the way, (frames, C, H, W); None where they are not asked for.
        returned: the result carried back; None where it is not asked for.
        cycle_error: absolute difference of the way back from where the route began, before rounding and before a
            bridge's noise is taken away.
        cycle_error_rounded: the largest after rounding.
        written_cycle_error: the largest difference from the source, where the way back begins at the result as written.
        solver_error: the largest difference of the result from that of a rougher solution.
    """

    result: Tensor
    frames: Tensor | None = None
    returned: Tensor | None = None
    cycle_error: Tensor | None = None
    cycle_error_rounded: Tensor | None = None
    written_cycle_error: Tensor | None = None
    solver_error: Tensor | None = None


class BatchTranslator:
    """Translates batches by one route; ``nfe`` is the most evaluations that one example took, ``times`` are those of
    its frames."""

    def __init__(self, route: Route, options: TranslationOptions):
        self.route, self.options, self.nfe = route, options, 0
        self.times = route.times(options.strip) if options.strip else []
        device = route.models[0].scaling.scale.device
        self.generator = torch.Generator(device).manual_seed(options.seed)

    def words(self) -> list[str]:
        """Where each frame is: its time, and whether the route goes up there or down."""
        legs = [leg for leg in self.route.legs for _ in range(self.options.strip)]
        return [
            f"t = {t:.2g}, {'up' if leg.start < leg.end else 'down'}" for t, leg in zip(self.times, legs, strict=True)
        ]

    def each(self, raw: Tensor) -> list[Translated | RuntimeError]:
        """As a call; where that fails, each example alone, and the error of those that fail."""
        try:
            return [*self(raw)]
        except RuntimeError as error:
            return [error] if len(raw) == 1 else [self.each(one)[0] for one in raw.split(1)]

    def __call__(self, raw: Tensor) -> list[Translated]:
        """The translations of (B, *event) in data units.

        Raises:
            RuntimeError: an inverse did not converge.
        """
        source, target = self.route.models
        seed, noise = self.options.seed, self.generator.clone_state()
        there = self.route.translate(raw, seed, frames=self.options.strip, generator=self.generator)
        columns = {"result": target.scaling.to_data(there.x).cpu()}
        if self.options.cycle:
            x, way_back = self.route.source(raw, seed), self.route.back()
            back = way_back.follow(there.end)
            columns["returned"] = source.scaling.to_data(back.x).cpu()
            scale = source.scaling.scale
            columns["cycle_error"] = ((back.end - x) * scale).abs().cpu()
            grey = [double(source.scaling.to_data(end)) for end in (back.end, x)]
            columns["cycle_error_rounded"] = _largest(grey[0] - grey[1])
            if self.options.errors:
                again = way_back.translate(columns["result"], seed).x
                columns["written_cycle_error"] = _largest((again - source.scaling.centre(raw).to(x)) * scale)
        if self.options.errors:
            rough = self.route.rougher().translate(raw, seed, generator=noise)
            columns["solver_error"] = _largest((there.x - rough.x) * target.scaling.scale)
        if self.options.strip and raw.ndim == 4:
            columns["frames"] = self._frames(there)
        self.nfe = max(self.nfe, there.nfe)
        return _each_of(columns)

    def _frames(self, there: Arrival) -> Tensor:
        """(B, frames, *event) in data units."""
        by_leg = there.frames.split(self.options.strip, 1)
        parts = [leg.model.scaling.to_data(f) for leg, f in zip(self.route.legs, by_leg, strict=True)]
        return torch.cat(parts, 1).cpu()


class KeptBatches:
    """Translates batches and keeps each on disk until all are done, so that a translation that was interrupted goes on.

    Args:
        translate: what makes a batch.
        folder: where batches lie.
        made_by: what else decides the results, as JSON.
        resume: take the batches that lie there.

    ``seconds`` are those in which batches were made, also before an interruption.

    Raises:
        ValueError: to resume, and ``folder`` is not there.
    """

    def __init__(self, translate: BatchTranslator, folder: Path, made_by: Mapping, resume: bool):
        if resume and not folder.exists():
            raise ValueError(f"resume: {folder.parent} holds no interrupted translation; leave out --resume")
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.translate, self.folder = translate, folder
        self.made_by = json.loads(json.dumps(made_by))  # as it is read again
        self.count, self.seconds = 0, 0.0

    def each(self, raw: Tensor) -> list[Translated | RuntimeError]:
        """The translations of the next batch, or the errors of those that fail.

        Raises:
            ValueError: what lies there was made from other images or in another way.
            OSError: the batch cannot be kept.
        """
        path = self.folder / f"{self.count:06d}.safetensors"
        made_by = self.made_by | {"images": hashlib.sha256(raw.numpy().data).hexdigest()}
        if not path.exists():
            self._make(path, raw, made_by)
        self.count += 1
        return self._read(path, made_by)

    def remove(self) -> None:
        """Everything is done."""
        shutil.rmtree(self.folder)

    def _make(self, path: Path, raw: Tensor, made_by: dict) -> None:
        started = time.perf_counter()
        ones = self.translate.each(raw)
        seconds = time.perf_counter() - started
        failed = {i: str(one) for i, one in enumerate(ones) if isinstance(one, RuntimeError)}
        about = {"made_by": made_by, "nfe": self.translate.nfe, "seconds": seconds, "n": len(ones), "failed": failed}
        rows = [vars(one) for one in ones if isinstance(one, Translated)]
        names = [name for name, value in rows[0].items() if value is not None] if rows else []
        columns = {name: torch.stack([row[name] for row in rows]) for name in names}
        state = columns | {"noise": self.translate.generator.get_state()}
        atomic.whole(path, atomic.weights_into(state, about=json.dumps(about)))

    def _read(self, path: Path, made_by: dict) -> list[Translated | RuntimeError]:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        differing = [name for name, value in made_by.items() if about["made_by"].get(name) != value]
        if differing:
            cure = "give the same, or --overwrite in place of --resume to start anew"
            raise ValueError(f"resume: {self.folder.parent} was begun with other {', '.join(differing)}; {cure}")
        self.translate.generator.set_state(columns.pop("noise"))
        self.translate.nfe = about["nfe"]
        self.seconds += about["seconds"]
        done, failed = iter(_each_of(columns)), about["failed"]
        return [RuntimeError(failed[str(i)]) if str(i) in failed else next(done) for i in range(about["n"])]


def _each_of(columns: Mapping[str, Tensor]) -> list[Translated]:
    """Examples by the columns of a batch."""
    return [Translated(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _largest(difference: Tensor) -> Tensor:
    """Of each example, (B,)."""
    return difference.abs().flatten(1).amax(1).cpu()
