"""Truncated normal noise of grey levels, a part outside the package: it lowers no bound (research/flow_gain/README.md).

indm train digits --dequantization research.noise:TruncatedNormal --trust research
"""

import math

import torch

from indm.dequantization import Dequantization
from indm.tensors import Batch, PerSample, rand_like


class TruncatedNormal(Dequantization):
    """u = ½ + n/(2τ) with n ~ N(0, 1) truncated to |n| ≤ τ: no edges are left to learn.

    Args:
        tau: τ, half a level in standard deviations of the noise.

    Source: Zheng et al. 2023, "Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs", §4.1,
    https://arxiv.org/abs/2305.03935.

    Example: E[1/q(u)] is 1, the length of (0, 1), as for every density on it.

        >>> u, log_q = TruncatedNormal(tau=3.0)(torch.zeros(100_000, 1))
        >>> abs((-log_q).exp().mean().item() - 1) < 0.05  # of a mean whose deviation is 0.006
        True
    """

    def __init__(self, tau: float = 3.0):
        super().__init__()
        if not 0 < tau <= 4:  # beyond, single precision has too few numbers for the tails
            raise ValueError(f"tau must be in (0, 4] standard deviations, got {tau}; 3 is usual")
        self.tau = tau

    @property
    def in_words(self) -> str:
        return f"truncated normal, τ = {self.tau:g}"

    def forward(self, centre: Batch, *, generator: torch.Generator | None = None) -> tuple[Batch, PerSample]:
        mass = math.erf(self.tau / math.sqrt(2))
        n = math.sqrt(2) * torch.erfinv(mass * (2 * rand_like(centre, generator) - 1))
        log_density = -0.5 * n**2 + math.log(2 * self.tau / mass) - 0.5 * math.log(2 * math.pi)
        return (0.5 + n / (2 * self.tau)).clamp(0, 1), log_density.flatten(1).sum(1)
