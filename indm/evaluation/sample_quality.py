"""How far samples are from data, over samplers and steps."""

import itertools
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from indm.conditions import all_rows, at_rows, rows_of_data
from indm.data.base import Data, stack
from indm.evaluation.distances import frechet_distance, sliced_wasserstein
from indm.evaluation.extractor import Extractor
from indm.evaluation.statistics import jackknife
from indm.sampling import FLOW_TOLERANCE, Sampler, follow_flow, make_sampler, solve_latent
from indm.scaling import Scaling
from indm.tensors import Batch, evaluation_mode

PROJECTIONS = 200  # of the sliced Wasserstein distance
CHUNKS = 5  # sets of training data, at most, that show the spread of a floor
STEPS = (5, 10, 20, 50, 100)


def distances(raw: Tensor, reference: Tensor, scaling: Scaling, extractor: Extractor | None = None) -> dict:
    """Distances of two sets in data units, each with its jackknife standard error.

    Returns:
        ``images``: of the first set. ``sliced_wasserstein``: in units of ``scaling``, along 200 fixed directions.
        ``frechet``: of the extractor's features, None without one.
    """

    def sliced(*sets: Tensor) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        return {"sliced_wasserstein": sliced_wasserstein(*sets, projections=PROJECTIONS, generator=generator)}

    def frechet(*sets: Tensor) -> dict[str, float]:
        return {"frechet": frechet_distance(*sets)}

    units = [(samples.cpu().float() - scaling.shift.cpu()) / scaling.scale.cpu() for samples in (raw, reference)]
    numbers = {"images": len(raw)} | jackknife(sliced, *units)
    if extractor is None:
        return numbers | {"frechet": None, "frechet_standard_error": None}
    return numbers | jackknife(frechet, *(extractor.features(samples) for samples in (raw, reference)))


def floor(data: Data, images: int, extractor: Extractor | None = None) -> dict:
    """The :func:`distances` of training data from as many test data: what a perfect model would get.

    They are means over up to 5 disjoint sets of training data (``sets``), with the standard error of one set, and
    ``…_spread``, the standard deviation over sets, None for one set.
    """
    test = stack(data.test, images)
    chunks = [part for part in stack(data.train, CHUNKS * images).split(images) if len(part) == images]
    rows = [distances(part, test, data.scaling, extractor) for part in chunks]
    numbers: dict[str, Any] = {"images": images, "sets": len(rows)}
    for key in ("sliced_wasserstein", "frechet"):
        values = None if rows[0][key] is None else torch.tensor([row[key] for row in rows], dtype=torch.float64)
        numbers[key] = None if values is None else values.mean().item()
        numbers[f"{key}_standard_error"] = rows[0][f"{key}_standard_error"]
        numbers[f"{key}_spread"] = None if values is None or len(rows) == 1 else values.std().item()
    return numbers


def solve(
    model,
    z_T: Batch,
    sampler: str | Sampler,
    steps: int | None = None,
    *,
    c: Any = None,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> tuple[Batch, int]:
    """x in model units from given z_T, by a sampler, the last denoising and h⁻¹, as :func:`indm.sample` does it.

    ``c`` are the conditions, as :func:`indm.sample` takes them. A flow with codes has the same codes
    in every call, so that samples of the same z_T can be compared.

    Returns:
        x, and the evaluations of the score for one sample (the most that one took), that of the denoising included.
    """
    sampler, parts, nfe, codes = make_sampler(sampler), [], 0, make_generator(z_T, 0, 3)
    c = all_rows(model, c, len(z_T))
    with evaluation_mode(model):
        for rows, start in zip(torch.arange(len(z_T)).split(batch_size), z_T.split(batch_size), strict=True):
            here = at_rows(model, c, rows)
            z, count = solve_latent(here, start, sampler, steps, generator=generator, progress=progress)
            parts.append(here.decode(z, generator=codes))
            nfe = max(nfe, count)
    return torch.cat(parts), nfe


def encode_ode(model, z_eps: Batch, *, tol: float = FLOW_TOLERANCE, progress: bool = False) -> tuple[Batch, int]:
    """z_T from z_ε by the probability flow on the latent: the way back of the sampler "ode"; and its evaluations."""
    model = at_rows(model, None, torch.arange(len(z_eps)))
    with evaluation_mode(model):
        return follow_flow(model.score, z_eps, model.sde.eps, model.sde.T, tol=tol, progress=progress)


def prior_draws(model, n: int, seed: int) -> Batch:
    """z_T from the prior, the same for every use of one seed."""
    generator = make_generator(model.scaling.scale, seed, 0)
    return model.sde.prior_sample((n, *model.shape), generator=generator, dtype=model.scaling.scale.dtype)


def make_generator(like: Tensor, seed: int, stream: int) -> torch.Generator:
    """On the device of ``like``; streams of one seed share no numbers."""
    return torch.Generator(like.device).manual_seed(seed + 1_000_003 * stream)


def quality(
    model,
    data: Data,
    extractor: Extractor | None = None,
    *,
    samplers: Sequence[str] = ("unipc", "heun", "euler-maruyama"),
    steps: Sequence[int] = STEPS,
    images: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> list[dict]:
    """Distances of samples to the test split, in data units, for samplers and numbers of steps from the same z_T.

    Samples of a model of p(x|c) are drawn at the c of the test split.

    Args:
        model: an INDM.
        data: whose test split they are compared with, in ``data.scaling``'s units, common to all models of the data.
        extractor: of features, for images; None for vectors.
        images: samples, at most as many as the test and the training split hold.

    Returns:
        Rows ``sampler``, ``steps``, ``nfe`` (evaluations of the score, that of the last denoising included),
        ``seconds`` and those of :func:`distances`; the first row is the :func:`floor`, sampler "data".

    Raises:
        ValueError: an unknown sampler, or one that cannot take the model's SDE.
    """
    for sampler in samplers:
        make_sampler(sampler).check(model.sde)
    images = count_images(data, images)
    test, z_T = stack(data.test, images), prior_draws(model, images, seed)
    c = rows_of_data(model, data, "test", images)
    rows = [{"sampler": "data", "steps": None, "nfe": 0, "seconds": 0.0} | floor(data, images, extractor)]
    for sampler, count in tqdm(list(itertools.product(samplers, steps)), desc="quality", disable=not progress):
        generator, start = make_generator(z_T, seed, 1), time.perf_counter()
        x, nfe = solve(model, z_T, sampler, count, c=c, generator=generator, progress=progress)
        raw = model.scaling.to_data(x).cpu()
        row = {"sampler": sampler, "steps": count, "nfe": nfe, "seconds": time.perf_counter() - start}
        rows.append(row | distances(raw, test, data.scaling, extractor))
    return rows


def count_images(data: Data, images: int) -> int:
    """``images``, or as many as there are to compare."""
    return min(images, len(data.test), len(data.train))
