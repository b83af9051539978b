"""The length of each grey level in the latent of a learned spline, beside how often the level occurs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from indm.model import INDM
from indm.workbench.data.base import load_data, stack
from indm.workbench.runs.folder import recipe_of

GROUPS = (range(1), range(1, 16), range(16, 240), range(240, 255), range(255, 256))  # of levels


@torch.no_grad()
def lengths(model: INDM, levels: int) -> np.ndarray:
    """Share of the latent's interval that each grey level has, (levels,); the mean over channels and pixels."""
    edges = torch.arange(levels + 1.0).view(-1, *(1 for _ in model.shape)).expand(-1, *model.shape)
    z, _ = model.flow((edges - model.scaling.shift) / model.scaling.scale)
    found = z.flatten(1).double().mean(1).diff().numpy()
    return found / found.sum()


def frequencies(images: torch.Tensor, levels: int) -> np.ndarray:
    """Share of the grey values of images that each level has, (levels,)."""
    return np.bincount(images.flatten().long().numpy(), minlength=levels) / images.numel()


def rows(run: Path) -> list[dict[str, Any]]:
    """Of each group of levels: how often it occurs, and its share of the latent."""
    data, model = load_data(**recipe_of(run)["data"]), INDM.load(run)
    levels = int(model.scaling.levels or 0)
    often, long = frequencies(stack(data.train), levels), lengths(model, levels)
    return [
        {"levels": name(group), "frequency": often[group].sum(), "length": long[group].sum()}
        for group in map(list, GROUPS)
    ]


def name(group: list[int]) -> str:
    """The levels of a group, in words.

    >>> name([0]), name([1, 2, 3])
    ('0', '1 to 3')
    """
    return str(group[0]) if len(group) == 1 else f"{group[0]} to {group[-1]}"
