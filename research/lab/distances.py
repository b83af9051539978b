"""Distances of two sets of features, and generators whose streams share no numbers."""

import torch
from jaxtyping import Float
from torch import Tensor

from indm.tensors import double
from research.lab.statistics import jackknife


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


def frechet(a: Float[Tensor, "n k"], b: Float[Tensor, "m k"]) -> dict[str, float]:
    """The :func:`frechet_distance` of two sets of features as ``frechet``, with its jackknife error."""
    return jackknife(lambda *sets: {"frechet": frechet_distance(*sets)}, a, b)


def make_generator(like: Tensor, seed: int, stream: int) -> torch.Generator:
    """A generator on the device of ``like``; streams of one seed share no numbers."""
    return torch.Generator(like.device).manual_seed(seed + 1_000_003 * stream)
