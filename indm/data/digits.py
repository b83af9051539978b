"""The handwritten digits that scikit-learn bundles."""

import numpy as np
import torch

from indm.data.base import Data, events_of_shape, pooled
from indm.data.splits import describe_split, renumbered, selected
from indm.scaling import Scaling


@events_of_shape(lambda _: (1, 8, 8))
def load_digits(
    *,
    seed: int = 0,
    centered: bool = True,
    limit: int | None = None,
    label: int | list[int] | None = None,
    negative: bool = False,
) -> Data:
    """The 1797 handwritten digits that scikit-learn bundles: 1×8×8, 17 grey levels; 180 valid, 360 test, stratified.

    Args:
        seed: of the split.
        centered: whether the model sees grey levels in [−1, 1]; else in [0, 1].
        limit: training examples to keep, the first ones; all by default.
        label: keeps the images of this class alone, or of these, in the same splits.
        negative: whether they are their negatives, 16 − x: the truth of a translation that is known.
    """
    from sklearn.datasets import load_digits as bundled
    from sklearn.model_selection import train_test_split

    images, labels = bundled(return_X_y=True)
    rest, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=seed, stratify=labels)
    train, valid = train_test_split(rest, test_size=180, random_state=seed, stratify=labels[rest])
    parts = {"train": torch.from_numpy(train), "valid": torch.from_numpy(valid), "test": torch.from_numpy(test)}
    parts = selected(parts, torch.from_numpy(labels), label, limit)
    pool = torch.from_numpy(images.astype(np.uint8)).reshape(-1, 1, 8, 8)
    pool = 16 - pool if negative else pool
    notes = ["scikit-learn's bundled digits", describe_split(parts, seed, "within classes ")]
    numbers, classes = renumbered(torch.from_numpy(labels), tuple(map(str, range(10))), label)
    fields = pooled(pool, parts, numbers)
    return Data(name="digits", scaling=Scaling.images(17, centered), classes=classes, notes=notes, **fields)
