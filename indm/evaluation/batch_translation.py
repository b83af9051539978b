"""Batches of examples translated by one route, with what else is asked for, and kept until a translation is whole."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from indm.config.options import TranslationOptions
from indm.files import atomic, untrusted
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
    """Translates batches and keeps each on disk, so that a translation that was interrupted goes on.

    A batch that was made of the same examples in the same way is not made again. One with an example that failed is not
    kept.

    Args:
        translate: what makes a batch.
        folder: where batches lie.
        made_by: what decides the results beside the examples, as JSON.

    ``n`` examples took ``seconds``, those of kept batches included.
    """

    def __init__(self, translate: BatchTranslator, folder: Path, made_by: Mapping):
        self.translate, self.folder, self.made_by = translate, folder, json.dumps(made_by)
        self.n, self.seconds = 0, 0.0

    def each(self, raw: Tensor) -> list[Translated | RuntimeError]:
        """The translations of the next batch, or the errors of those that fail.

        Raises:
            OSError: the batch cannot be kept.
        """
        path = self.folder / f"{self._name(raw)}.safetensors"
        self.n += len(raw)
        if path.exists():
            return [*self._read(path)]
        started = time.perf_counter()
        ones = self.translate.each(raw)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        if all(isinstance(one, Translated) for one in ones):
            self._write(path, ones, seconds)
        return ones

    def _name(self, raw: Tensor) -> str:
        """A hash of all that decides the batch; the noise that is still to be drawn depends on the batches before."""
        noise = self.translate.generator.get_state()
        return hashlib.sha256(self.made_by.encode() + noise.numpy().tobytes() + raw.numpy().tobytes()).hexdigest()

    def _write(self, path: Path, ones: Sequence[Translated | RuntimeError], seconds: float) -> None:
        names = [name for name, value in vars(ones[0]).items() if value is not None]
        columns = {name: torch.stack([getattr(one, name) for one in ones]) for name in names}
        state = {
            "noise": self.translate.generator.get_state(),
            "nfe": torch.tensor(self.translate.nfe),
            "seconds": torch.tensor(seconds, dtype=torch.float64),
        }
        atomic.whole(path, atomic.weights_into(columns | state))

    def _read(self, path: Path) -> list[Translated]:
        columns = {name: tensor.clone() for name, tensor in untrusted.weights(path).items()}  # no file is held open
        self.translate.generator.set_state(columns.pop("noise"))
        self.translate.nfe = max(self.translate.nfe, int(columns.pop("nfe")))
        self.seconds += columns.pop("seconds").item()
        return _each_of(columns)


def _each_of(columns: Mapping[str, Tensor]) -> list[Translated]:
    """Examples by the columns of a batch."""
    return [Translated(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _largest(difference: Tensor) -> Tensor:
    """Of each example, (B,)."""
    return difference.abs().flatten(1).amax(1).cpu()
