"""Distances of translations from their true counterparts."""

from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from indm.tensors import double
from indm.workbench.data import Data, InMemory, stack
from research.lab.statistics import share_error

Images = Num[Tensor, "n *event"]
RECALL = (1, 5, 10)  # how many of the nearest may be the counterpart


def two_classes(a: Data, b: Data) -> Data:
    """The images of both data sets as one, of the classes A and B: what tells them apart can be
    learned from it.
    """
    parts: dict[str, Any] = {}
    labels: dict[str, Tensor] = {}
    for part in ("train", "valid", "test"):
        sets = [stack(getattr(data, part), 10_000) for data in (a, b)]
        parts[part] = InMemory(torch.cat(sets))
        labels[part] = torch.cat(
            [torch.full((len(images),), label) for label, images in enumerate(sets)]
        )
    order = torch.randperm(len(labels["train"]), generator=torch.Generator().manual_seed(0))
    parts["train"], labels["train"] = InMemory(parts["train"].tensor[order]), labels["train"][order]
    notes = [f"0: {note}" for note in a.notes] + [f"1: {note}" for note in b.notes]
    about: dict[str, Any] = {
        "scaling": a.scaling,
        "shape": a.shape,
        "labels": labels,
        "classes": ("A", "B"),
    }
    return Data(name=f"{a.name} and {b.name}", notes=notes, **about, **parts)


def rms_distance(a: Images, b: Images) -> Float[Tensor, " n"]:
    """Root mean square of the difference of each pair of images."""
    return (double(a) - double(b)).flatten(1).square().mean(1).sqrt()


def recall(
    result: Float[Tensor, "n features"], truth: Float[Tensor, "n features"]
) -> dict[str, float]:
    """``recall_K``, the share of rows of ``result`` whose row of ``truth`` is among the K nearest
    of all, and errors.

    Example: the second is nearer to the counterpart of the first.

        >>> recall(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [9.0]]))["recall_1"]
        0.5
    """
    return found_again(torch.cdist(double(result), double(truth)))


def found_again(apart: Num[Tensor, "n n"]) -> dict[str, float]:
    """``recall_K`` and its ``…_standard_error`` of a matrix of distances, whose counterparts are on
    the diagonal.
    """
    nearer, shares = others_as_near(apart), {}
    for k in RECALL:
        share = (nearer < k).double().mean().item()
        shares[f"recall_{k}"], shares[f"recall_{k}_standard_error"] = (
            share,
            share_error(share, len(apart)),
        )
    return shares


def others_as_near(apart: Num[Tensor, "n n"]) -> Int[Tensor, " n"]:
    """The number of other columns that are at most as far as the own one, for each row of a matrix
    of distances.

    Example:

        >>> others_as_near(torch.tensor([[1.0, 2.0], [3.0, 3.0]]))
        tensor([0, 1])
    """
    return (apart <= apart.diagonal()[:, None]).sum(1) - 1
