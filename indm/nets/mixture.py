"""A Gaussian mixture's denoiser in closed form, and an MLP that learns what the mixture lacks: for tables."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm.nets.embedding import seen
from indm.nets.mlp import MLP
from indm.tensors import Batch, PerSample

CONDITION_BLOCKS = 2  # of the embedding of c


class SmoothMLP(MLP):
    """An :class:`~indm.nets.MLP` that is smoother in the level, so that its ODE needs a third fewer evaluations."""

    shortest_period = 4.0


class MixtureMLP(nn.Module):
    r"""The score of latents that follow a Gaussian mixture, plus an :class:`~indm.nets.MLP` that starts at zero.

    Noise keeps a mixture a mixture: with r = σ²/α², z_t/α_t follows :math:`\sum_k w_k N(m_k, Q_k\Lambda_kQ_k^T + rI)`.
    So with the mixture of :meth:`set_mixture` the probability flow has the density of the mixture before any training.
    At first the mixture is N(0, I), and the output 0.

    With a condition the mixture is one of latents and conditions together, whose law of z at c is again a mixture:
    m_k is then linear in c, and :math:`w_k \propto` its share of the density of c. The MLP sees the mixture's output
    beside c, so that it can undo what a narrow component is wrong about.

    Args:
        shape: the event shape, any number of axes.
        components: number of Gaussians; they are not trained.
        width, depth, fourier, dropout: of the MLP.
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
        dropout: float = 0.0,
        condition: tuple[int, ...] = (),
    ):
        super().__init__()
        self.shape, d, k = tuple(shape), math.prod(shape), math.prod(condition) if condition else 0
        self.components, self.width, self.depth, self.fourier = components, width, depth, fourier
        self.dropout = dropout
        self.register_buffer("log_weight", torch.full((components,), -math.log(components)))
        self.register_buffer("mean", torch.zeros(components, d))
        self.register_buffer("variance", torch.ones(components, d))
        self.register_buffer("basis", torch.eye(d).repeat(components, 1, 1))
        self.register_buffer("slope", torch.zeros(components, k, d))  # of the mean in c
        self.register_buffer("c_root", torch.zeros(components, k, k))  # c @ c_root − c_mean is N(0, I) in a component
        self.register_buffer("c_mean", torch.zeros(components, k))
        self.condition = tuple(condition)
        self.mlp = SmoothMLP(shape, width, depth, fourier, (d + k,), CONDITION_BLOCKS if condition else None, dropout)

    def set_mixture(self, weight: Tensor, mean: Tensor, covariance: Tensor) -> None:
        """Take the mixture of ``weight`` (K,), ``mean`` (K, d + j) and ``covariance`` (K, d + j, d + j).

        The last j columns are the first j numbers of what is seen of a condition; the mixture does not see the others.
        """
        d, j = self.mean.shape[1], mean.shape[1] - self.mean.shape[1]
        of_c, across = covariance[:, d:, d:], covariance[:, d:, :d]
        factor = torch.linalg.cholesky(of_c)
        root = torch.linalg.inv(factor).mT  # of the inverse of the covariance of c
        slope = torch.cholesky_solve(across, factor) if j else across
        variance, basis = torch.linalg.eigh(covariance[:, :d, :d] - across.mT @ slope)
        new: Mapping[str, Tensor] = {
            "log_weight": weight.log() + root.diagonal(dim1=1, dim2=2).log().sum(1),
            "mean": mean[:, :d] - torch.einsum("kj,kjd->kd", mean[:, d:], slope),
            "variance": variance,
            "basis": basis,
        }
        for name, value in new.items():
            self.get_buffer(name).copy_(value)
        self.slope[:, :j], self.c_root[:, :j, :j] = slope, root
        self.c_mean[:, :j] = torch.einsum("kj,kji->ki", mean[:, d:], root)

    def forward(self, z: Batch, level: PerSample, c: Tensor | None = None) -> Batch:
        """The output for inputs ``z`` at log noise levels ``level`` = log(σ/α), (B,), and conditions ``c``."""
        y, r, at, components = self._components(z, level, c)
        slope = torch.einsum("bk,bke,kde->bd", components.share(), components.offset / components.total, self.basis)
        noise = r.sqrt() * (slope - y / (1 + r))  # beyond that of N(0, I)
        context = noise if at is None else torch.cat([at, noise], 1)
        return noise.reshape(z.shape) + self.mlp(z, level, context)

    def with_divergence(self, z: Batch, level: PerSample, c: Tensor | None = None) -> tuple[Batch, PerSample]:
        """The output without dropout, and its exact divergence in ``z`` (B,), in closed form; without gradients."""
        y, r, at, components = self._components(z, level, c)
        noise, jacobian = components.noise(y, r)
        context = noise if at is None else torch.cat([at, noise], 1)
        output, diagonal = self.mlp.with_diagonal(z, level, context, jacobian)
        return noise.reshape(z.shape) + output, (jacobian.diagonal(dim1=1, dim2=2) + diagonal).sum(1)

    @property
    def is_mixture(self) -> bool:
        """Whether the MLP adds nothing, as before any training, so that the density is the mixture's."""
        return adds_nothing(self.mlp)

    def mixture_log_prob(self, z: Batch, level: PerSample, c: Tensor | None = None) -> PerSample:
        """log of the mixture's density of z_t/α_t, nats, in closed form."""
        return self._components(z, level, c)[3].log_prob()

    def _components(
        self, z: Batch, level: PerSample, c: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, "Components"]:
        """z_t/α_t (B, d), (σ/α)² (B, 1), what is seen of c, flat, and the components there."""
        r = (2 * level).exp()[:, None]
        y = (1 + r).sqrt() * z.flatten(1)  # z_t/α_t
        centre, log_weight = torch.einsum("kd,kde->ke", self.mean, self.basis), self.log_weight
        if (at := seen(self, c, z)) is not None:
            at = at.flatten(1)
            centre = centre + torch.einsum("bj,kje->bke", at, self.slope @ self.basis)
            log_weight = log_weight - 0.5 * (torch.einsum("bj,kji->bki", at, self.c_root) - self.c_mean).square().sum(2)
        offset = torch.einsum("bd,kde->bke", y, self.basis) - centre
        total = self.variance + r[:, :, None]
        return y, r, at, Components(log_weight.expand(len(y), -1), offset, total, self.basis[None])


class Components(NamedTuple):
    """Noised components N(y − Q offset, Q diag(total) Qᵀ) at rows y, of a mixture of K; Q may be one for all rows."""

    log_weight: Tensor  # (B, K), of the components, up to a constant
    offset: Tensor  # (B, K, d)
    total: Tensor  # (B, K, d)
    basis: Tensor  # (1 or B, K, d, d)

    def log_joint(self) -> Tensor:
        """log of weight times density in each component, up to one constant, (B, K)."""
        return self.log_weight - 0.5 * (self.offset.square() / self.total + self.total.log()).sum(2)

    def share(self) -> Tensor:
        """The probability that a row is of a component, (B, K)."""
        return self.log_joint().softmax(1)

    def log_prob(self) -> PerSample:
        """log of the density of y, nats."""
        constant = 0.5 * self.offset.shape[2] * math.log(2 * math.pi)
        return self.log_joint().logsumexp(1) - self.log_weight.logsumexp(1) - constant

    def noise(self, y: Float[Tensor, "batch d"], r: Float[Tensor, "batch 1"]) -> tuple[Tensor, Tensor]:
        """The noise beyond that of N(0, I) at rows y, (B, d), and its Jacobian in y/√(1 + r), (B, d, d)."""
        share = self.share()
        scaled, weight = self.offset / self.total, share[:, :, None] / self.total
        if len(self.basis) == 1:
            (basis,) = self.basis
            each = torch.einsum("bke,kde->bkd", scaled, basis)
            mean = weight.flatten(1) @ torch.einsum("kde,kfe->kedf", basis, basis).flatten(0, 1).flatten(1)
            mean = mean.unflatten(1, basis.shape[1:])
        else:
            each = torch.einsum("bke,bkde->bkd", scaled, self.basis)
            mean = torch.einsum("bkde,bkfe->bdf", self.basis * weight[:, :, None], self.basis)
        slope = torch.einsum("bk,bkd->bd", share, each)  # −∇ log p of y
        spread = each - slope[:, None]
        jacobian = mean - (share[:, :, None] * spread).mT @ spread
        jacobian.diagonal(dim1=1, dim2=2).sub_(1 / (1 + r))
        return r.sqrt() * (slope - y / (1 + r)), (r * (1 + r)).sqrt()[:, :, None] * jacobian


def adds_nothing(mlp: MLP) -> bool:
    """Whether the output of ``mlp`` is 0 for any input, as before any training."""
    return not any(bool(parameter.any()) for parameter in mlp.output.parameters())
