"""CIFAR-10."""

from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR10

from indm.data.base import Data, events_of_shape, pooled
from indm.data.downloads import download_root, from_torchvision
from indm.data.splits import describe_split, split
from indm.scaling import Scaling


@events_of_shape(lambda _: (3, 32, 32))
def load_cifar10(
    *,
    root: str | Path | None = None,
    download: bool = True,
    valid: int = 5000,
    seed: int = 0,
    limit: int | None = None,
    centered: bool = True,
    flip: bool = True,
) -> Data:
    """CIFAR-10 by torchvision: 3×32×32, 256 levels, the standard 10,000 test images; ``valid`` of the 50,000 others.

    Args:
        root: folder of the files; by default $INDM_DATA, or ~/.cache/indm.
        download: whether to fetch files that are missing.
        valid: images of the validation split.
        seed: of the split into training and validation.
        limit: training examples to keep, the first ones; all by default.
        centered: whether the model sees grey levels in [−1, 1]; else in [0, 1].
        flip: whether training flips images horizontally at random.
    """
    home = str(download_root(root))
    train, test = (from_torchvision("cifar10", CIFAR10, home, train=t, download=download) for t in (True, False))
    n = len(train.data)
    parts = split(n, valid=valid, seed=seed, limit=limit) | {"test": torch.arange(n, n + len(test.data))}
    pool = torch.from_numpy(np.concatenate([train.data, test.data])).permute(0, 3, 1, 2).contiguous()
    fields = pooled(pool, parts, torch.tensor(train.targets + test.targets))
    notes = ["torchvision's CIFAR-10", describe_split(parts, seed)]
    return Data(name="cifar10", scaling=Scaling.images(256, centered), flip=flip, notes=notes, **fields)
