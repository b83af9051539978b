"""Distances between two sets of samples."""

import torch
from jaxtyping import Float
from torch import Tensor

from indm.tensors import double

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


def mmd(a: Samples, b: Float[Tensor, "m *event"]) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel −‖x − y‖ (the energy distance, halved); no bandwidth.

    Zero in the mean for two sets from one law, where it can be negative.

    Source: Gretton et al. 2012, lemma 6, https://jmlr.org/papers/v13/gretton12a.html; Sejdinovic et al. 2013 for the
    kernel, https://arxiv.org/abs/1207.6076.
    """
    a, b = double(a.flatten(1)), double(b.flatten(1))
    n, m = len(a), len(b)
    within = torch.cdist(a, a).sum() / (n * (n - 1)) + torch.cdist(b, b).sum() / (m * (m - 1))
    return (torch.cdist(a, b).mean() - 0.5 * within).item()


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
