"""How near translations come to their true counterparts, where these are known: images of the same names."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Num
from torch import Tensor

from indm.data.images import SUFFIXES
from indm.evaluation.statistics import mean_and_error, share_error
from indm.evaluation.translation_metrics import structural_similarity
from indm.evaluation.translation_sources import found_in, image_reader
from indm.model import INDM
from indm.tensors import double

RECALL = (1, 5, 10)  # of how many that are nearest the counterpart must be one
Images = Num[Tensor, "n channels height width"]


def check_truth(sources: Sequence[Path], folder: Path) -> None:
    """ValueError where ``folder`` does not have an image of each name in ``sources``, and one alone."""
    files = [(file, name) for source in sources for file, name in found_in(source)]
    if not all(file.suffix.lower() in SUFFIXES for file, _ in files):
        raise ValueError("truth needs image files, whose names are those of their counterparts; arrays have none")
    there = _images(folder)
    missing = [name for _, name in files if name not in there]
    if missing:
        raise ValueError(
            f"truth must have an image of each name; '{folder}' has none for {len(missing)} of {len(files)}, such as "
            f"{missing[0]!r}"
        )


def truth_of(names: Sequence[str], folder: Path, model: INDM, data: dict, grey: bool = False) -> Images:
    """The counterparts of results called ``names``, brought to the shape of ``model`` as its training images are.

    A result that kept its suffix, because another has its name, has the counterpart of the name without it.
    """
    there = _images(folder)
    files = [there[name] if name in there else there[str(Path(name).with_suffix(""))] for name in names]
    return torch.stack([image_reader(file, model, data, grey)().pixels for file in files])


def _images(folder: Path) -> dict[str, Path]:
    """The images in a folder by their names without suffix; a ValueError where two have one name."""
    images = [(file, name) for file, name in found_in(folder) if file.suffix.lower() in SUFFIXES]
    by_name = {name: file for file, name in images}
    twice = [name for file, name in images if by_name[name] != file]
    if twice:
        raise ValueError(f"truth must have one image of each name; '{folder}' has two of {twice[0]!r}")
    return by_name


def against_truth(
    source: Images, result: Images, truth: Images, features: Callable[[Tensor], Tensor], levels: int
) -> dict[str, dict[str, float]]:
    """Results, and their sources as they are, against the true counterparts, row by row.

    Args:
        source, result, truth: grey levels.
        features: of images, (n, F), which say how alike two are.
        levels: number of grey levels.

    Returns:
        For "result" and "source": means over images, each with its ``…_standard_error``. ``distance``: root mean square
        in grey levels; ``ssim`` (with torchmetrics); ``features``: distance of features; ``recall_K``: the share whose
        counterpart is among the K of all n that are nearest by features; ``chance_K`` = K/n is that of guessing.
    """
    seen = features(truth)
    found = {}
    for name, images in (("result", result), ("source", source)):
        apart = torch.cdist(double(features(images)), double(seen))
        own, similar = apart.diagonal(), structural_similarity(images, truth, levels)
        numbers = {
            "distance": (double(images) - double(truth)).flatten(1).square().mean(1).sqrt(),
            "features": own,
            **({} if similar is None else {"ssim": similar}),
        }
        line = {}
        for key, values in numbers.items():
            line[key], line[f"{key}_standard_error"] = mean_and_error(values)
        nearer = others_as_near(apart)
        for k in RECALL:
            share = (nearer < k).double().mean().item()
            line[f"recall_{k}"], line[f"recall_{k}_standard_error"] = share, share_error(share, len(own))
            line[f"chance_{k}"] = min(1.0, k / len(own))
        found[name] = line
    return found


def others_as_near(apart: Num[Tensor, "n n"]) -> Num[Tensor, " n"]:
    """Of each row of a matrix of distances, how many other columns are at most as far as its own.

    Example:

        >>> others_as_near(torch.tensor([[1.0, 2.0], [3.0, 3.0]]))
        tensor([0, 1])
    """
    return (apart <= apart.diagonal()[:, None]).sum(1) - 1


def truth_rows(found: Mapping[str, Mapping[str, float]]) -> list[tuple[str, ...]]:
    """What :func:`against_truth` found, as rows of a table."""
    keys = [key for key in ("features", "distance", "ssim", *(f"recall_{k}" for k in RECALL)) if key in found["result"]]
    titles = {"features": "feature distance", "distance": "distance, levels", "ssim": "SSIM"}
    head = ("to the true counterpart", *(titles.get(key, key.replace("_", " at ")) for key in keys))
    rows = [
        (name, *(f"{found[key][k]:.3g} ± {found[key][f'{k}_standard_error']:.1g}" for k in keys))
        for name, key in (("results", "result"), ("sources as they are", "source"))
    ]
    guess = [
        "guessing",
        *(f"{found['result'][k.replace('recall', 'chance')]:.3g}" if "recall" in k else "" for k in keys),
    ]
    return [head, *rows, tuple(guess)]
