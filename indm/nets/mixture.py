"""A Gaussian mixture's denoiser in closed form, and an MLP that learns what the mixture lacks: for tables."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from indm.nets.mlp import MLP
from indm.tensors import Batch, PerSample


class MixtureMLP(nn.Module):
    r"""The score of latents that follow a Gaussian mixture, plus an :class:`~indm.nets.MLP` that starts at zero.

    Noise keeps a mixture a mixture: with r = σ²/α², z_t/α_t follows :math:`\sum_k w_k N(m_k, Q_k\Lambda_kQ_k^T + rI)`.
    So with the mixture of :meth:`set_mixture` the probability flow has the density of the mixture before any training.
    At first the mixture is N(0, I), and the output 0.

    Args:
        shape: the event shape, any number of axes.
        components: number of Gaussians; they are not trained.
        width, depth, fourier: of the MLP.
        condition: shape of what the MLP sees of a condition, :attr:`indm.conditions.Condition.seen_shape`; () for none.

    Example: the score of N(0, 4I) plus noise, which is −z_t/(4α² + σ²).

        >>> from indm import ScoreModel, VPSDE
        >>> net = MixtureMLP((2,))
        >>> net.set_mixture(torch.ones(1), torch.zeros(1, 2), 4 * torch.eye(2)[None])
        >>> score, z_t, t = ScoreModel(net, VPSDE()), torch.randn(5, 2), torch.full((5,), 0.2)
        >>> variance = 4 * score.sde.alpha(t) ** 2 + score.sde.sigma(t) ** 2
        >>> torch.allclose(score(z_t, t), -z_t / variance[:, None], atol=1e-4)
        True
    """

    is_smooth = True  # in the level, by its embedding

    def __init__(
        self,
        shape,
        components: int = 1,
        width: int = 64,
        depth: int = 2,
        fourier: int = 2,
        condition: tuple[int, ...] = (),
    ):
        super().__init__()
        self.shape, d = tuple(shape), math.prod(shape)
        self.components, self.width, self.depth, self.fourier = components, width, depth, fourier
        self.register_buffer("log_weight", torch.full((components,), -math.log(components)))
        self.register_buffer("mean", torch.zeros(components, d))
        self.register_buffer("variance", torch.ones(components, d))
        self.register_buffer("basis", torch.eye(d).repeat(components, 1, 1))
        self.condition = tuple(condition)
        self.mlp = MLP(shape, width, depth, fourier, self.condition)

    def set_mixture(self, weight: Tensor, mean: Tensor, covariance: Tensor) -> None:
        """Take the mixture of ``weight`` (K,), ``mean`` (K, d) and ``covariance`` (K, d, d)."""
        variance, basis = torch.linalg.eigh(covariance)
        new: Mapping[str, Tensor] = {"log_weight": weight.log(), "mean": mean, "variance": variance, "basis": basis}
        for name, value in new.items():
            self.get_buffer(name).copy_(value)

    def forward(self, z: Batch, level: PerSample, c: Tensor | None = None) -> Batch:
        """The output for inputs ``z`` at log noise levels ``level`` = log(σ/α), (B,), and conditions ``c``."""
        r = (2 * level).exp()[:, None]
        y = (1 + r).sqrt() * z.flatten(1)  # z_t/α_t
        offset = torch.einsum("bd,kde->bke", y, self.basis) - torch.einsum("kd,kde->ke", self.mean, self.basis)
        total = self.variance + r[:, :, None]
        share = (self.log_weight - 0.5 * (offset.square() / total + total.log()).sum(2)).softmax(1)
        slope = torch.einsum("bk,bke,kde->bd", share, offset / total, self.basis)  # −∇ log p of y
        noise = r.sqrt() * (slope - y / (1 + r))  # beyond that of N(0, I)
        return noise.reshape(z.shape) + self.mlp(z, level, c)
