"""The network of a table at conditions: a mixture whose denoiser has a closed form, and MLPs that
learn the rest.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from indm.nets.base import Backbone
from indm.nets.embedding import seen
from indm.objective import constant_part, prior_term
from indm.sde.linear import LinearSDE
from indm.tables.components import Components
from indm.tables.layers import CONDITION_BLOCKS, ColumnMLP, SmoothMLP, adds_nothing
from indm.tensors import Batch, PerSample

# deviations of the noise at ε; a narrower component's density is over 0.01 nats off its bound
NARROWEST = 10


class MixtureMLP(Backbone):
    r"""The score of latents that follow a Gaussian mixture, plus two MLPs that start at zero.

    Noise keeps a mixture a mixture: with r = σ²/α², z_t/α_t follows
    :math:`\sum_k w_k N(m_k, Q_k\Lambda_kQ_k^T + rI)`. So with the mixture of :meth:`set_mixture`,
    at first N(0, I), the probability flow has the density of the mixture before any training.

    With a condition the mixture is one of latents and conditions together: m_k is then linear in c,
    and
    :math:`w_k \propto` its share of the density of c. The MLP sees c and the mixture's output. A
    :class:`~indm.tables.layers.ColumnMLP` of single columns adds to an MLP of all entries.

    Args:
        shape: the event shape, any number of axes.
        components: number of Gaussians; they are not trained.
        width, depth, fourier, dropout: of the MLP.
        condition: shape of what the MLP sees of a condition,
            :attr:`indm.conditions.Condition.seen_shape`; () for none.

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
        self.shape = tuple(shape)
        d = math.prod(shape)
        k = math.prod(condition) if condition else 0
        self.components, self.width, self.depth, self.fourier = components, width, depth, fourier
        self.dropout = dropout
        self.register_buffer("log_weight", torch.full((components,), -math.log(components)))
        self.register_buffer("mean", torch.zeros(components, d))
        self.register_buffer("variance", torch.ones(components, d))
        self.register_buffer("basis", torch.eye(d).repeat(components, 1, 1))
        self.register_buffer("slope", torch.zeros(components, k, d))  # slope of the mean in c
        # c @ c_root − c_mean is N(0, I) in a component
        self.register_buffer("c_root", torch.zeros(components, k, k))
        self.register_buffer("c_mean", torch.zeros(components, k))
        self.condition, self.takes_condition = tuple(condition), bool(condition)
        self.mlp = SmoothMLP(
            shape, width, depth, fourier, (d + k,), CONDITION_BLOCKS if condition else None, dropout
        )
        self.columns = ColumnMLP(d)
        self.register_buffer("unwhitening", torch.eye(d))
        self.register_buffer("column_mean", torch.zeros(d))
        self.register_buffer("column_slope", torch.zeros(k, d))

    def set_columns(self, unwhitening: Tensor, mean: Tensor, slope: Tensor) -> None:
        """Take the columns of latents: z @ ``unwhitening`` (d, d) + ``mean`` (d,) + c @ ``slope``
        (j, d), c the first j numbers that are seen of a condition.
        """
        self.unwhitening.copy_(unwhitening)
        self.column_mean.copy_(mean)
        self.column_slope[: len(slope)] = slope

    def set_mixture(self, weight: Tensor, mean: Tensor, covariance: Tensor) -> None:
        """Take the mixture of ``weight`` (K,), ``mean`` (K, d + j) and ``covariance`` (K, d + j, d
        + j).

        The last j columns are the first j numbers of what is seen of a condition; the mixture does
        not see the others.
        """
        d, j = self.mean.shape[1], mean.shape[1] - self.mean.shape[1]
        of_c, across = covariance[:, d:, d:], covariance[:, d:, :d]
        factor = torch.linalg.cholesky(of_c)
        root = torch.linalg.inv(factor).mT  # root @ root.mT is the inverse of the covariance of c
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
        """The output for inputs ``z`` at log noise levels ``level`` = log(σ/α), (B,), and
        conditions ``c``.
        """
        beyond, added = self.noise_parts(z, level, c)
        return beyond + added

    def noise_parts(
        self, z: Batch, level: PerSample, c: Tensor | None = None
    ) -> tuple[Batch, Batch]:
        """The output in two parts: what the mixture expects beyond N(0, I), and what the MLPs add."""
        y, r, at, components = self._components(z, level, c)
        slope = torch.einsum(
            "bk,bke,kde->bd", components.share(), components.offset / components.total, self.basis
        )
        noise = r.sqrt() * (slope - y / (1 + r))  # beyond that of N(0, I)
        context = noise if at is None else torch.cat([at, noise], 1)
        learned = self.columns(*self._columns(z, level, at), level) @ self.unwhitening.mT
        learned = learned + self.mlp(z, level, context).flatten(1)
        return noise.reshape(z.shape), (components.gate()[:, None] * learned).reshape(z.shape)

    @property
    def base(self) -> "MixtureLaw":
        """The mixture, to whose score the MLPs add."""
        return MixtureLaw(self)

    def with_divergence(
        self, z: Batch, level: PerSample, c: Tensor | None = None
    ) -> tuple[Batch, PerSample]:
        """The output without dropout, and its exact divergence in ``z`` (B,), in closed form;
        without gradients.
        """
        y, r, at, components = self._components(z, level, c)
        noise, jacobian = components.noise(y, r)
        context = noise if at is None else torch.cat([at, noise], 1)
        output, diagonal = self.mlp.with_diagonal(z, level, context, jacobian)
        of_columns, slope = self.columns.with_slope(*self._columns(z, level, at), level)
        diverging = diagonal.sum(1) + slope @ self.unwhitening.square().sum(0)
        learned, diverging = components.gated(
            output.flatten(1) + of_columns @ self.unwhitening.mT, diverging, r
        )
        divergence = jacobian.diagonal(dim1=1, dim2=2).sum(1) + diverging
        return (noise + learned).reshape(z.shape), divergence

    def _columns(self, z: Batch, level: PerSample, at: Tensor | None) -> tuple[Tensor, Tensor]:
        """Noised columns of unit scale, and their centres at what is seen of a condition, (B, d)
        each.
        """
        centre = self.column_mean.expand(len(z), -1)
        if at is not None:
            centre = self.column_mean + at @ self.column_slope
        scale = (1 + (2 * level).exp()).sqrt()[:, None]
        return z.flatten(1) @ self.unwhitening + centre / scale, centre

    @property
    def is_mixture(self) -> bool:
        """Whether the MLPs add nothing, as before any training, so that the density is the
        mixture's.
        """
        return adds_nothing(self.mlp) and adds_nothing(self.columns)

    def mixture_at(self, z: Batch, level: PerSample, c: Tensor | None = None) -> "Components":
        """The mixture's noised components at z_t/α_t, whose law is known in closed form."""
        return self._components(z, level, c)[3]

    def _components(
        self, z: Batch, level: PerSample, c: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, "Components"]:
        """z_t/α_t (B, d), (σ/α)² (B, 1), what is seen of c, flat, and the components there."""
        r = (2 * level).exp()[:, None]
        y = (1 + r).sqrt() * z.flatten(1)  # z_t/α_t
        centre, log_weight = torch.einsum("kd,kde->ke", self.mean, self.basis), self.log_weight
        at = seen(self, c, z)
        if at is not None:
            at = at.flatten(1)
            centre = centre + torch.einsum("bj,kje->bke", at, self.slope @ self.basis)
            log_weight = log_weight - 0.5 * (
                torch.einsum("bj,kji->bki", at, self.c_root) - self.c_mean
            ).square().sum(2)
        offset = torch.einsum("bd,kde->bke", y, self.basis) - centre
        total = self.variance + r[:, :, None]
        return y, r, at, Components(log_weight.expand(len(y), -1), offset, total, self.basis[None])


class MixtureLaw(NamedTuple):
    """The mixture of a network as the law of latents at conditions ``c``: see
    :attr:`indm.ScoreModel.base`.
    """

    network: MixtureMLP
    c: Tensor | None = None

    def given(self, c: Tensor) -> "MixtureLaw":
        """This law at a condition."""
        return self._replace(c=c)

    def log_prob(self, z: Batch) -> PerSample:
        """The log-density of latents, nats, (B,)."""
        clean = z.new_full((len(z),), -math.inf)  # r = 0
        return self.network.mixture_at(z, clean, self.c).log_prob()

    def denoising(self, sde: LinearSDE, z: Batch, eps: float) -> PerSample | None:
        """Score and reconstruction terms of −log p(z) by the exact score, on average over the
        noise, (B,); None at another truncation than the SDE's own.

        They are over 0.01 nats off for a component that is narrower than ten deviations of the
        noise at ε, so that is a ValueError.
        """
        if eps != sde.eps:
            return None
        limit = NARROWEST * math.exp(0.5 * sde.clock_span()[0])  # σ/α at ε is the root of e^clock
        narrow = self.network.variance.sqrt().amin(1)
        if narrow.min() < limit:
            raise ValueError(
                f"deviations of components must be above {NARROWEST} σ/α at ε, {limit:.2g}, got "
                f"{narrow.min():.2g} in component {int(narrow.argmin())}; take a smaller eps"
            )
        return -self.log_prob(z) - prior_term(sde, z) - constant_part(sde, z, eps)
