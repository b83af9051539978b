"""The features of a reference, computed once and kept in the cache without a pickle."""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from indm.evaluation.features import Features
from indm.files import atomic, untrusted
from indm.files.plain import cache_folder

REFERENCE = "reference"


def features_file(dependencies: list) -> Path:
    """Where the features of a reference are kept, by what they depend on: its pixels, the extractor, the library."""
    name = hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "features" / f"{name}.safetensors"


@contextmanager
def kept_features(file: Path, features: Features, images: int) -> Iterator[Path]:
    """A temporary folder as torch-fidelity's cache, with the features of the reference that ``file`` holds.

    If it holds none, those that torch-fidelity puts into the folder are written to it at the end. torch-fidelity's own
    cache is pickles, and whoever can write there could have code run; this folder holds only what this process puts
    there.
    """
    stored = _read_features(file, features, images)
    with tempfile.TemporaryDirectory(prefix="indm-") as folder:
        for name, values in stored.items():
            torch.save(values, Path(folder) / f"{name}.pt")
        yield Path(folder)
        if not stored:
            new = {path.stem: untrusted.checkpoint(path) for path in Path(folder).glob(f"{_prefix(features)}*.pt")}
            with contextlib.suppress(OSError):  # without a cache it only takes longer
                file.parent.mkdir(parents=True, exist_ok=True)
                atomic.whole(file, atomic.weights_into(new))


def _read_features(file: Path, features: Features, images: int) -> dict[str, Tensor]:
    """The features of this number of images in ``file``; none where it holds others, or is damaged."""
    try:
        stored = untrusted.weights(file)
    except ValueError:
        return {}
    begins = _prefix(features)
    fits = all(
        name.startswith(begins) and "/" not in name
        and values.ndim == 2 and len(values) == images and bool(values.isfinite().all())
        for name, values in stored.items()
    )  # fmt: skip
    return stored if fits else {}


def _prefix(features: Features) -> str:
    """How the names begin that torch-fidelity gives to the features of the reference."""
    return f"{REFERENCE}-{features.name}-features-"
