"""How far samples are from data: distances of two sets, and those of a model's samples over samplers and steps."""

import itertools
import time
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from indm.conditions import all_rows, at_rows, rows_of_data
from indm.sampling import FLOW_TOLERANCE, Sampler, follow_flow, make_sampler, solve_latent
from indm.scaling import Scaling
from indm.tensors import Batch, double, evaluation_mode
from indm.workbench.data.base import Data, stack
from indm.workbench.evaluation.extractor import Extractor
from indm.workbench.evaluation.statistics import jackknife

PROJECTIONS = 200  # of the sliced Wasserstein distance
CHUNKS = 5  # sets of training data, at most, that show the spread of a floor
STEPS = (5, 10, 20, 50, 100)
Samples = Float[Tensor, "n *event"]


def sliced_wasserstein(
    a: Samples, b: Float[Tensor, "m *event"], *, projections: int = 500, generator: torch.Generator | None = None
) -> float:
    """Root of the mean squared Wasserstein-2 distance of the two sets along random unit directions, in data units.

    Zero for equal sets; of the order of n^(−1/2) for two sets of n from one law.

    Source: Bonneel et al. 2015, "Sliced and Radon Wasserstein Barycenters", https://doi.org/10.1007/s10851-014-0506-3.
    """
    a, b = a.flatten(1), b.flatten(1)
    directions = torch.randn(a.shape[1], projections, dtype=a.dtype, device=a.device, generator=generator)
    directions = directions / directions.norm(dim=0)
    levels = (torch.arange(max(len(a), len(b)), dtype=a.dtype, device=a.device) + 0.5) / max(len(a), len(b))
    quantiles = [_quantiles((samples @ directions).sort(0).values, levels) for samples in (a, b)]
    return (quantiles[0] - quantiles[1]).square().mean().sqrt().item()


def _quantiles(ordered: Tensor, levels: Tensor) -> Tensor:
    """The quantiles of the columns of sorted samples: the inverse of the empirical distribution function."""
    return ordered[(levels * len(ordered)).long().clamp(max=len(ordered) - 1)]


def kernel_distance(a: Float[Tensor, "n k"], b: Float[Tensor, "m k"]) -> float:
    """Unbiased squared maximum mean discrepancy of features with the kernel (x·y/k + 1)³; zero in the mean for one law.

    Source: Bińkowski et al. 2018, "Demystifying MMD GANs", §4, https://arxiv.org/abs/1801.01401.
    """
    a, b = double(a), double(b)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within = sum((k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (kernel(a, a), kernel(b, b)))
    return (within - 2 * kernel(a, b).mean()).item()


def frechet_distance(a: Float[Tensor, "n k"], b: Float[Tensor, "m k"]) -> float:
    r"""Squared Fréchet (Wasserstein-2) distance of the Gaussians with the moments of two sets of features.

    .. math:: \|\mu_a - \mu_b\|^2 + \mathrm{tr}\,\Sigma_a + \mathrm{tr}\,\Sigma_b
              - 2\,\mathrm{tr}\,(\Sigma_a^{1/2}\,\Sigma_b\,\Sigma_a^{1/2})^{1/2}

    in squared units of the features, in float64. It is biased up for few samples: compare sets of one size, and with
    the distance of two such sets of data.

    Raises:
        ValueError: fewer than 2 samples in a set.

    Source: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", eq. 6,
    https://arxiv.org/abs/1706.08500.
    """
    for name, samples in (("a", a), ("b", b)):
        if len(samples) < 2:
            raise ValueError(f"{name} must hold at least 2 samples for a covariance, got {len(samples)}")
    a, b = double(a), double(b)
    covariances = [torch.cov(samples.T).reshape(a.shape[1], a.shape[1]) for samples in (a, b)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    traces = covariances[0].trace() + covariances[1].trace()
    return ((a.mean(0) - b.mean(0)).square().sum() + traces - 2 * cross).clamp_min(0).item()


def distances(raw: Tensor, reference: Tensor, scaling: Scaling, extractor: Extractor | None = None) -> dict:
    """Distances of two sets in data units, each with its jackknife standard error.

    Returns:
        ``images``: of the first set. ``sliced_wasserstein``: in units of ``scaling``, along 200 fixed directions.
        ``frechet``: of the extractor's features, None without one.
    """

    def sliced(*sets: Tensor) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        return {"sliced_wasserstein": sliced_wasserstein(*sets, projections=PROJECTIONS, generator=generator)}

    units = [(samples.cpu().float() - scaling.shift.cpu()) / scaling.scale.cpu() for samples in (raw, reference)]
    numbers = {"images": len(raw)} | jackknife(sliced, *units)
    if extractor is None:
        return numbers | {"frechet": None, "frechet_standard_error": None}
    features = [extractor.features(samples) for samples in (raw, reference)]
    return numbers | jackknife(lambda *sets: {"frechet": frechet_distance(*sets)}, *features)


def floor(data: Data, images: int, extractor: Extractor | None = None) -> dict:
    """The :func:`distances` of training data from as many test data: what a perfect model would get.

    They are means over up to 5 disjoint sets of training data (``sets``), with the standard error of one set.
    """
    test = stack(data.test, images)
    chunks = [part for part in stack(data.train, CHUNKS * images).split(images) if len(part) == images]
    rows = [distances(part, test, data.scaling, extractor) for part in chunks]
    means = rows[0] | {"sets": len(rows)}
    for key in ("sliced_wasserstein", "frechet"):
        if rows[0][key] is not None:
            means[key] = torch.tensor([row[key] for row in rows], dtype=torch.float64).mean().item()
    return means


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
    """x in model units from z_T, by a sampler, the last denoising and h⁻¹, as :func:`indm.sample` does it.

    ``c`` are the conditions, as :func:`indm.sample` takes them.

    Returns:
        x, and the evaluations of the score for one sample (the most that one took), that of the denoising included.
    """
    sampler, parts, nfe = make_sampler(sampler), [], 0
    c = all_rows(model, c, len(z_T))
    with evaluation_mode(model):
        for rows, start in zip(torch.arange(len(z_T)).split(batch_size), z_T.split(batch_size), strict=True):
            here = at_rows(model, c, rows)
            z, count = solve_latent(here, start, sampler, steps, generator=generator, progress=progress)
            parts.append(here.decode(z))
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
