"""A small classifier of the data's own labels; its features compare images where Inception's weights are not available.

Its Fréchet distances compare models of one data set with one extractor; they are no FID. ``provenance`` says which
extractor it was, and belongs beside every number made with it.
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float, Num
from safetensors.torch import load, save
from torch import Tensor, nn
from tqdm.auto import tqdm

from indm.data.base import Data, InMemory, stack
from indm.data.batches import loader
from indm.data.raw import MIN_SIZE
from indm.evaluation.statistics import share_error
from indm.files import atomic, untrusted
from indm.files.memory import check_memory
from indm.messages import reason
from indm.tensors import evaluation_mode

WEIGHTS, DESCRIPTION = "extractor.safetensors", "extractor.json"
BATCH = 128
POOLED = 4  # side of the map of features before the last two layers
SHIFT = 1  # pixels by which training images are moved at random


class Extractor(nn.Module):
    """Grey levels (B, C, H, W) → features (B, 64) → logits (B, classes): three convolutions and two linear layers.

    Args:
        shape: (C, H, W) of one image, at least 8 pixels high and wide.
        levels: number of grey levels.
        classes: number of labels.

    ``provenance``, of a trained one: the SHA-256 of the weights, the data, counts, epochs, seed and test accuracy with
    its standard error.
    """

    size = 64

    def __init__(self, shape: Sequence[int], levels: int, classes: int):
        super().__init__()
        if len(shape) != 3 or min(shape[1:]) < MIN_SIZE:
            raise ValueError(f"shape must be (C, H, W) with H and W at least {MIN_SIZE}, got {tuple(shape)}")
        self.shape, self.levels, self.classes = tuple(shape), levels, classes
        self.provenance: dict = {}
        self.body = nn.Sequential(
            *_convolution(shape[0], 16),
            *_convolution(16, 32),
            nn.MaxPool2d(2),
            *_convolution(32, 64),
            nn.AdaptiveAvgPool2d(POOLED),
            nn.Flatten(),
            nn.Linear(64 * POOLED**2, self.size),
            nn.SiLU(),
        )
        self.head = nn.Linear(self.size, classes)

    def forward(self, raw: Num[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return self.head(self._features(raw))

    def features(self, raw: Num[Tensor, "n *event"], *, batch_size: int = 512) -> Float[Tensor, "n features"]:
        """The inputs of the last layer, (n, 64) on the CPU, for grey levels as ``model.scaling.to_data`` gives them.

        Raises:
            ValueError: images of another shape.
        """
        if tuple(raw.shape[1:]) != self.shape:
            raise ValueError(f"raw must be n images of shape {self.shape}, got a tensor of shape {tuple(raw.shape)}")
        with evaluation_mode(self):
            return torch.cat([self._features(part.to(self.head.weight.device)).cpu() for part in raw.split(batch_size)])

    def _features(self, raw: Tensor) -> Tensor:
        return self.body(2 * raw.to(self.head.weight.dtype) / (self.levels - 1) - 1)

    def save(self, folder: str | Path) -> None:
        """Write ``extractor.safetensors`` and ``extractor.json``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        description = {"shape": list(self.shape), "levels": self.levels, "classes": self.classes}
        atomic.whole(folder / WEIGHTS, lambda beside: beside.write_bytes(_weights(self)))
        atomic.json_object(folder / DESCRIPTION, description | {"provenance": self.provenance})

    @classmethod
    def load(cls, folder: str | Path) -> "Extractor":
        """Read what :meth:`save` wrote, in evaluation mode.

        Raises:
            ValueError: a file is missing, unreadable or does not fit the other.
        """
        folder = Path(folder)
        for name in (DESCRIPTION, WEIGHTS):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} holds no saved extractor: there is no file {name} in it")
        try:
            description = untrusted.json_object(folder / DESCRIPTION)
            sizes = {key: description[key] for key in ("shape", "levels", "classes")}
            check_memory((folder / WEIGHTS).stat().st_size)
            weights = (folder / WEIGHTS).read_bytes()
            state = load(weights)
            extractor = untrusted.build_described(functools.partial(cls, **sizes), sizes, state)
            extractor.load_state_dict(state)
            extractor.provenance = description["provenance"]
            saved = extractor.provenance["weights_sha256"]
        except Exception as error:  # what is damaged, or described by a stranger, surfaces as almost anything
            raise ValueError(f"the extractor in {folder} cannot be read: {reason(error)}") from error
        if hashlib.sha256(weights).hexdigest() != saved:
            raise ValueError(f"the weights in {folder} are not those that its {DESCRIPTION} names; train it anew")
        return extractor.eval()


def _convolution(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU()]


def _weights(extractor: Extractor) -> bytes:
    """The weights as safetensors; equal weights are equal bytes."""
    return save({name: value.cpu().contiguous() for name, value in extractor.state_dict().items()})


def train_extractor(
    data: Data, *, epochs: int = 10, most: int = 20_000, seed: int = 0, progress: bool = True
) -> Extractor:
    """Train an extractor on the labels of ``data.train`` and score it on ``data.test``; on the CPU.

    Args:
        data: images with labels.
        epochs: passes over the training images, whose number decides the time it takes.
        most: training images used, the first ones.
        seed: of the initial weights, the order and the shifts; on one machine it decides the weights to the bit.

    Returns:
        The extractor in evaluation mode, its ``provenance`` filled.

    Raises:
        ValueError: data without labels or without grey levels.
    """
    _check(data)
    raw, labels = stack(data.train, most), data.labels["train"][:most]
    generator, steps = torch.Generator().manual_seed(seed), epochs * math.ceil(len(raw) / BATCH)
    bar = tqdm(total=steps, desc="extractor", disable=not progress)
    with bar, torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        extractor = Extractor(data.shape, cast(int, data.scaling.levels), int(labels.max()) + 1)
        optimizer = torch.optim.AdamW(extractor.parameters(), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
        for epoch in range(epochs):
            for index in loader(InMemory(torch.arange(len(raw))), BATCH, shuffle=True, seed=seed, epoch=epoch):
                logits = extractor(shifted(raw[index], generator))
                loss = nn.functional.cross_entropy(logits, labels[index], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    extractor.eval()
    accuracy, error = _accuracy(extractor, stack(data.test), data.labels["test"])
    extractor.provenance = {
        "weights_sha256": hashlib.sha256(_weights(extractor)).hexdigest(),
        "data": _data(data),
        "train_images": len(raw),
        "test_images": len(data.test),
        "test_accuracy": accuracy,
        "test_accuracy_standard_error": error,
        "epochs": epochs,
        "seed": seed,
    }
    return extractor


def shifted(raw: Num[Tensor, "batch c h w"], generator: torch.Generator) -> Num[Tensor, "batch c h w"]:
    """A batch moved by up to one pixel each way, the border repeated."""
    down, right = torch.randint(2 * SHIFT + 1, (2,), generator=generator).tolist()
    height, width = raw.shape[2:]
    padded = nn.functional.pad(raw.float(), (SHIFT,) * 4, mode="replicate")
    return padded[..., down : down + height, right : right + width]


def load_or_train(folder: str | Path, data: Data, *, progress: bool = True) -> Extractor:
    """The extractor of these data saved in ``folder``; where there is none, it is trained with the defaults and saved.

    Raises:
        ValueError: ``folder`` holds an extractor of other data, or what cannot be read.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).exists():
        extractor = train_extractor(data, progress=progress)
        extractor.save(folder)
        return extractor
    extractor = Extractor.load(folder)
    if extractor.provenance["data"] != _data(data):
        raise ValueError(
            f"folder {folder} holds an extractor of {extractor.provenance['data']}, not of {_data(data)}; use another"
        )
    return extractor


def _data(data: Data) -> dict:
    return {"name": data.name, "shape": list(data.shape), "levels": data.scaling.levels, "notes": data.notes}


def _check(data: Data) -> None:
    if not data.labels or data.scaling.levels is None or len(data.shape) != 3:
        raise ValueError(f"data must be images with grey levels and labels to train an extractor, got {data.name!r}")


def _accuracy(extractor: Extractor, raw: Tensor, labels: Tensor) -> tuple[float, float]:
    """The share of labels that are predicted, and its standard error."""
    correct = extractor.head(extractor.features(raw)).argmax(1) == labels
    accuracy = correct.double().mean().item()
    return accuracy, share_error(accuracy, len(labels))
