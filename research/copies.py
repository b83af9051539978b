"""Whether a model repeats its training images: the nearest training image of each sample, and of
each test image.

Similarity is the correlation of the differences of neighbouring pixels: the largest over mirror
images and over shifts by up to one pixel, all cut to the part that every shift has. Brightness and
contrast do not change it, and smooth skies are not alike by their gradients. A copy has nearly 1.
So have some honest samples of plain data, and so test images are the measure: a sample is *near* if
a training image is as similar to it as one is to the nearest hundredth of the test images.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.nn import functional as F

SHIFT = 1  # pixels, at most
# shares of near samples: of a model without copies, and the largest that may ship
EXPECTED, MOST = 0.01, 0.05
SHOWN = {"median": 0.5, "hundredth": 1 - EXPECTED, "largest": 1.0}  # quantiles of similarity
AT_ONCE = 8192  # training images
Images = Num[Tensor, "n c h w"]


@dataclass(frozen=True)
class Nearest:
    """The nearest training image of each image: its similarity and its number."""

    similarity: Float[Tensor, " n"]
    number: Int[Tensor, " n"]


def nearest(images: Images, train: Images) -> Nearest:
    """Among the images of ``train``; see the module."""
    found = Nearest(
        torch.full((len(images),), -torch.inf), torch.zeros(len(images), dtype=torch.long)
    )
    seen = [unit(view) for view in views(images)]
    for first in range(0, len(train), AT_ONCE):
        part = unit(train[first : first + AT_ONCE, :, SHIFT:-SHIFT, SHIFT:-SHIFT])
        for view in seen:
            similarity, number = (view @ part.T).max(1)
            nearer = similarity > found.similarity
            found = Nearest(
                torch.where(nearer, similarity, found.similarity),
                torch.where(nearer, number + first, found.number),
            )
    return found


def views(images: Images) -> Iterator[Images]:
    """Images and their mirror images at all shifts, without a border of :data:`SHIFT` pixels."""
    height, width = (side - 2 * SHIFT for side in images.shape[2:])
    for mirrored in (images, images.flip(3)):
        for top in range(2 * SHIFT + 1):
            for left in range(2 * SHIFT + 1):
                yield mirrored[:, :, top : top + height, left : left + width]


def unit(images: Images) -> Float[Tensor, "n d"]:
    """Differences of neighbouring pixels as vectors of length 1, whose inner products are
    similarities; zeros for a plain image.
    """
    pixels = images.float()
    return F.normalize(torch.cat([pixels.diff(dim=dim).flatten(1) for dim in (2, 3)], 1), dim=1)


def check(samples: Nearest, test: Nearest) -> dict[str, float]:
    """The share of near samples; and the median, the upper hundredth and the largest similarity of
    both.
    """
    near = samples.similarity > test.similarity.quantile(1 - EXPECTED)
    numbers: dict[str, float] = {"near": near.double().mean().item()}
    for of, values in (("samples", samples.similarity), ("test", test.similarity)):
        for what, share in SHOWN.items():
            numbers[f"{of}_{what}"] = values.quantile(share).item()
    return {key: round(value, 4) for key, value in numbers.items()}
