"""Standard data sets of images: digits, CIFAR-10, CelebA and Fashion-MNIST."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from indm.checks import reason, require
from indm.files import cache_folder
from indm.scaling import Scaling
from indm.workbench.data.base import SPLITS, Data, Loader, describe_split, split
from indm.workbench.data.examples import InMemory, check_size, height_and_width, words_of
from indm.workbench.data.images import ImageFiles, data_of_images

CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def select(
    parts: Mapping[str, Tensor], labels: Tensor, label: int | list[int] | None
) -> dict[str, Tensor]:
    """The indices in ``parts`` of examples of one class, of several or of all (None)."""
    if label is None:
        return dict(parts)
    wanted = torch.as_tensor(label)
    fits = bool(torch.isin(wanted, labels).all()) and wanted.numel() > 0
    require(fits, "label", label, f"of {labels.unique().tolist()}, one or a list")
    return {part: index[torch.isin(labels[index], wanted)] for part, index in parts.items()}


def pooled(
    pool: Tensor,
    parts: Mapping[str, Tensor],
    labels: Tensor,
    classes: tuple[str, ...] = (),
    label: int | list[int] | None = None,
) -> dict[str, Any]:
    """The fields of :class:`Data` for all examples in one tensor and the indices of each split.

    If a list ``label`` keeps some classes, they are counted in its order.
    """
    if isinstance(label, list | tuple):
        number = torch.full((len(classes),), -1)
        number[list(label)] = torch.arange(len(label))
        labels, classes = number[labels], tuple(classes[i] for i in label)
    sets = {part: InMemory(pool[index]) for part, index in parts.items()}
    by_part = {part: labels[index] for part, index in parts.items()}
    return sets | {"shape": tuple(pool.shape[1:]), "labels": by_part, "classes": classes}


@dataclass(frozen=True, kw_only=True)
class Digits(Loader):
    """The 1797 handwritten digits of scikit-learn: 1×8×8, 17 grey levels.

    180 are for validation and 360 for the test, stratified.
    """

    seed: int = 0
    """Of the split."""
    label: int | list[int] | None = None
    """Keep only the images of this class, or of these classes, in the same splits."""

    def data(self) -> Data:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        rest, test = train_test_split(
            np.arange(len(labels)), test_size=360, random_state=self.seed, stratify=labels
        )
        train, valid = train_test_split(
            rest, test_size=180, random_state=self.seed, stratify=labels[rest]
        )
        numbers, indices = torch.from_numpy(labels), map(torch.from_numpy, (train, valid, test))
        parts = select(dict(zip(SPLITS, indices, strict=True)), numbers, self.label)
        parts["train"] = parts["train"][: self.limit]
        pool = torch.from_numpy(images.astype(np.uint8)).reshape(-1, 1, 8, 8)
        how = describe_split(parts, self.seed, "within classes ")
        notes = ["scikit-learn's bundled digits", how]
        fields = pooled(pool, parts, numbers, tuple(map(str, range(10))), self.label)
        scaling = Scaling.images(17, self.centered)
        return Data(name="digits", scaling=scaling, flip=self.flip, notes=notes, **fields)


@dataclass(frozen=True, kw_only=True)
class Downloaded(Loader):
    """A data set that torchvision downloads."""

    root: str | Path | None = None
    """Folder of the files; by default $INDM_DATA, or ~/.cache/indm."""
    download: bool = True
    """Whether to fetch files that are missing."""

    @property
    def home(self) -> Path:
        """The folder ``root``, or where downloads are cached."""
        return Path(self.root).expanduser() if self.root else cache_folder()


@dataclass(frozen=True, kw_only=True)
class CIFAR10(Downloaded):
    """CIFAR-10 by torchvision: 3×32×32, 256 levels; ``valid`` of the 50,000 images are held out."""

    valid: int = 5000
    """Images of the validation split."""
    seed: int = 0
    """Of the split into training and validation."""
    flip: bool = True

    def data(self) -> Data:
        pool, labels, n, source = self.read()
        parts = split(n, valid=self.valid, seed=self.seed, limit=self.limit) | {
            "test": torch.arange(n, len(pool))
        }
        notes = [source, describe_split(parts, self.seed)]
        scaling, fields = Scaling.images(256, self.centered), pooled(pool, parts, labels)
        return Data(name="cifar10", scaling=scaling, flip=self.flip, notes=notes, **fields)

    def read(self) -> tuple[Tensor, Tensor, int, str]:
        """Images (N, 3, 32, 32), labels (N,), how many are for training, and the source."""
        from torchvision import datasets as torchvision

        train, test = (
            from_torchvision("cifar10", torchvision.CIFAR10, self.home, self.download, train=part)
            for part in (True, False)
        )
        images = torch.from_numpy(np.concatenate([train.data, test.data]))
        labels = torch.tensor(train.targets + test.targets)
        pool = images.permute(0, 3, 1, 2).contiguous()
        return pool, labels, len(train.data), "torchvision's CIFAR-10"


@dataclass(frozen=True, kw_only=True)
class CelebA(Downloaded):
    """CelebA by torchvision in its standard splits, centre-cropped and resized; read from disk."""

    size: int | str | list[int] = 64
    """Side in pixels, or height x width: "24x48" or [24, 48]."""
    crop: int = 140
    """Shorter side of the centre crop, which has the aspect ratio of ``size``."""
    flip: bool = True

    def data(self) -> Data:
        from torchvision import datasets as torchvision

        check_size(self.crop)
        sides = height_and_width(self.size)
        sets: dict[str, Any] = {}
        for part in SPLITS:
            dataset = from_torchvision(
                "celeba", torchvision.CelebA, self.home, self.download, split=part
            )
            files = [
                Path(dataset.root, dataset.base_folder, "img_align_celeba", name)
                for name in dataset.filename
            ]
            limit = self.limit if part == "train" else None
            sets[part] = ImageFiles(files[:limit], (3, *sides), crop=self.crop)
        resized = f"centre crop {self.crop}, then bilinear resize to {words_of(sides)}"
        notes = ["torchvision's CelebA, standard splits", resized]
        return data_of_images("celeba", sets, self.centered, self.flip, notes=notes)


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(Downloaded):
    """Fashion-MNIST by torchvision: 1×28×28, 256 levels, in its standard test split.

    ``valid`` of the 60,000 other images are held out.
    """

    size: int | str | list[int] = 28
    """Side in pixels, or height x width as "16x24"; below 28 (often 16) images are resized, bilinear
    and antialiased, and rounded to grey levels.
    """
    valid: int = 5000
    """Images of the validation split."""
    seed: int = 0
    """Of the split into training and validation."""
    label: int | list[int] | None = None
    """Keep only the images of this class, or of these classes, in the same splits: 0 T-shirt,
    1 trouser, 2 pullover, 3 dress, 4 coat, 5 sandal, 6 shirt, 7 sneaker, 8 bag, 9 ankle boot.
    """

    def data(self) -> Data:
        sides = height_and_width(self.size)
        if max(sides) > 28:
            raise ValueError(f"size must be at most the 28 of Fashion-MNIST, got {words_of(sides)}")
        from torchvision import datasets as torchvision

        train, test = (
            from_torchvision(
                "fashion-mnist", torchvision.FashionMNIST, self.home, self.download, train=part
            )
            for part in (True, False)
        )
        n = len(train.data)
        pool = torch.cat([train.data, test.data])[:, None]
        numbers = torch.cat([train.targets, test.targets])
        parts = split(n, valid=self.valid, seed=self.seed) | {"test": torch.arange(n, len(pool))}
        parts = select(parts, numbers, self.label)
        parts["train"] = parts["train"][: self.limit]
        notes = ["torchvision's Fashion-MNIST", describe_split(parts, self.seed)]
        if min(sides) < 28:
            resized = (
                F.interpolate(x.float(), sides, mode="bilinear", antialias=True)
                for x in pool.split(4096)
            )
            pool = torch.cat([x.round().clamp(0, 255).byte() for x in resized])
            notes += [f"resized from 28 to {words_of(sides)} (bilinear, antialiased, rounded)"]
        fields = pooled(pool, parts, numbers, CLASSES, self.label)
        scaling = Scaling.images(256, self.centered)
        return Data(name="fashion-mnist", scaling=scaling, flip=self.flip, notes=notes, **fields)


def from_torchvision(
    name: str, kind: Callable[..., Any], home: Path, download: bool, **part: Any
) -> Any:
    """A data set of torchvision; ValueError if it is not there or cannot be downloaded."""
    try:
        return kind(str(home), download=download, **part)
    except (RuntimeError, OSError, ImportError) as error:
        cause = reason(error).removesuffix(". You can use download=True to download it")
        raise ValueError(
            f"{name} could not be loaded ({cause}); data.root or $INDM_DATA names another folder "
            f"than {home}, and data.download = true downloads them"
        ) from error
