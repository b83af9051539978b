"""The networks of tables: mixtures whose denoisers have a closed form, each with an MLP that learns
the rest.
"""

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm.nets.base import Backbone
from indm.nets.embedding import EmbeddingBlock, seen
from indm.nets.mlp import MLP
from indm.objective import constant_part, prior_term
from indm.sde.linear import LinearSDE
from indm.tables.columns import FAR
from indm.tensors import Batch, PerSample, zeroed

Pushed = tuple[Tensor, Tensor]  # a value (B, width), and its tangents (B, directions, width)

CONDITION_BLOCKS = 2  # residual blocks of the embedding of c
# variance of the noise in which a row is compared with the mixture: narrow components are no wall
BLUR = 0.25
# deviations of the noise at ε; a narrower component's density is over 0.01 nats off its bound
NARROWEST = 10


class SmoothMLP(MLP):
    """An :class:`~indm.nets.MLP` that is smoother in the level, so that its ODE needs a third fewer
    evaluations.
    """

    shortest_period = 4.0

    def with_diagonal(
        self, z: Batch, level: PerSample, c: Tensor, slope: Float[Tensor, "batch d last"]
    ) -> Pushed:
        """The output, and ∂output_i/∂z_i (B, d), where the last numbers of c change by slope_i with
        z_i.

        It is for evaluation: without dropout and gradients.
        """
        d, last = slope.shape[1:]
        features, embedding = self.features(z), self.embedding(level)
        sin, cos = (
            self.omega[:, None] * wave
            for wave in features[:, d:].unflatten(1, (2, self.fourier, d)).unbind(1)
        )
        # each of its own entry of z
        d_features = torch.cat([torch.ones_like(features[:, None, :d]), cos, -sin], 1)
        weight = self.input.weight.unflatten(1, (-1, d))
        h = self.input(features) + self.condition_input(c)
        d_h = torch.einsum("bfi,wfi->biw", d_features, weight).add_(
            slope @ self.condition_input.weight[:, -last:].mT
        )
        gates: list[Tensor | None] = [None] * self.depth
        if self.condition_blocks is not None:
            first, *layers, out = list(self.condition_embedding.mlp)[1:]
            code, d_code = pushed(layers, first(c), slope @ first.weight[:, -last:].mT)
            embedding = embedding + out(code)
            gates = [d_code @ (block.level.weight @ out.weight).mT for block in self.blocks]
        for block, d_gates in zip(self.blocks, gates, strict=True):
            h, d_h = pushed_block(block, h, d_h, embedding, d_gates)
        h, d_h = pushed((nn.SiLU(),), h, d_h)
        return self.output(h).reshape(z.shape), (d_h * self.output.weight).sum(2)


def pushed_block(
    block: Any, h: Tensor, d_h: Tensor, embedding: Tensor, d_gates: Tensor | None
) -> Pushed:
    """:func:`pushed` of a block of an MLP; ``d_gates`` (B, directions, 2 · width) are tangents of
    scale and shift.
    """
    scale, shift = block.level(embedding).chunk(2, dim=1)
    inner, d_inner = pushed((block.norm, block.inner), h, d_h)
    hidden = torch.addcmul(shift, 1 + scale, inner)
    d_hidden = d_inner.mul_(1 + scale[:, None])
    if d_gates is not None:
        d_scale, d_shift = d_gates.chunk(2, dim=2)
        d_hidden.addcmul_(d_scale, inner[:, None]).add_(d_shift)
    more, d_more = pushed((nn.SiLU(), block.outer), hidden, d_hidden)
    return h + more, d_more.add_(d_h)


def pushed(layers: Iterable[nn.Module], x: Tensor, dx: Tensor) -> Pushed:
    """Output of ``layers`` without dropout at x (B, n), and its tangents along dx (B, directions,
    n).

    A SiLU overwrites dx, so that large tensors are reused.
    """
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x, dx = layer(x), dx @ layer.weight.mT
        elif isinstance(layer, nn.SiLU):
            gate = x.sigmoid()
            x, dx = x * gate, dx.mul_((gate + x * gate * (1 - gate))[:, None])
        elif isinstance(layer, nn.LayerNorm):
            offset = x - x.mean(1, keepdim=True)
            scale = (offset.square().mean(1, keepdim=True) + layer.eps).rsqrt()
            normal = scale * offset
            # directions that it removes
            fixed = torch.stack([torch.ones_like(x), normal], 1) / math.sqrt(x.shape[1])
            dx = torch.baddbmm(dx, dx @ fixed.mT, fixed, alpha=-1).mul_(
                (scale * layer.weight)[:, None]
            )
            x = normal * layer.weight + layer.bias
        elif isinstance(layer, EmbeddingBlock):
            more, d_more = pushed(layer.mlp, x, dx)
            x, dx = x + more, d_more.add_(dx)
    return x, dx


class ColumnMLP(nn.Module):
    """One small MLP, shared by all columns, adds to a number's noise what its own column explains;
    it starts at zero.

    It sees the noised number, the level, the centre of the column's law given what is known, and
    some numbers for each column. From few rows of many columns it learns what an MLP of all columns
    together does not.

    Args:
        d: columns.
        width: of its two hidden layers.
        fourier: it also sees the sines and cosines that :class:`~indm.nets.MLP` does.
    """

    CODE = 8  # numbers for each column
    is_off = False  # then it adds 0, at no cost

    def __init__(self, d: int, width: int = 32, fourier: int = 2):
        super().__init__()
        self.register_buffer("omega", math.pi / 2 * 2.0 ** torch.arange(fourier), persistent=False)
        # periods of waves in the level
        periods = torch.tensor([32.0, 16.0, 8.0, SmoothMLP.shortest_period])
        self.register_buffer("level_omega", 2 * math.pi / periods, persistent=False)
        self.level = nn.Linear(2 * len(periods), width)
        self.code = nn.Parameter(0.3 * torch.randn(d, self.CODE))
        self.input = nn.Linear(2 * (1 + 2 * fourier) + self.CODE, width)
        self.layers = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.output = zeroed(nn.Linear(width, 1))

    def forward(self, u: Tensor, centre: Tensor, level: PerSample) -> Tensor:
        """The noise that is added, (B, d), at noised columns of unit scale and their centres, (B,
        d) each.
        """
        if self.is_off:
            return torch.zeros_like(u)
        return self.output(self.layers(self._first(u, centre, level)))[..., 0]

    def with_slope(self, u: Tensor, centre: Tensor, level: PerSample) -> tuple[Tensor, Tensor]:
        """:meth:`forward`, and its derivative in u, (B, d); without gradients."""
        if self.is_off:
            return torch.zeros_like(u), torch.zeros_like(u)
        angle = u[..., None] * self.omega
        d_waves = torch.cat(
            [torch.ones_like(u)[..., None], self.omega * angle.cos(), -self.omega * angle.sin()], 2
        )
        h, d_h = (
            self._first(u, centre, level),
            d_waves @ self.input.weight[:, : d_waves.shape[2]].mT,
        )
        noise, slope = pushed(
            (*self.layers, self.output), h.flatten(0, 1), d_h.flatten(0, 1)[:, None]
        )
        return noise.reshape(u.shape), slope.reshape(u.shape)

    def _first(self, u: Tensor, centre: Tensor, level: PerSample) -> Float[Tensor, "batch d width"]:
        """The first layer's output."""
        seen = [self._waves(u), self._waves(centre), self.code.expand(len(u), -1, -1)]
        phase = level[:, None] * self.level_omega
        return (
            self.input(torch.cat(seen, 2))
            + self.level(torch.cat([phase.sin(), phase.cos()], 1))[:, None]
        )

    def _waves(self, u: Tensor) -> Float[Tensor, "batch d waves"]:
        angle = u[..., None] * self.omega
        return torch.cat([u[..., None], angle.sin(), angle.cos()], 2)


class MixtureMLP(Backbone):
    r"""The score of latents that follow a Gaussian mixture, plus two MLPs that start at zero.

    Noise keeps a mixture a mixture: with r = σ²/α², z_t/α_t follows
    :math:`\sum_k w_k N(m_k, Q_k\Lambda_kQ_k^T + rI)`. So with the mixture of :meth:`set_mixture`,
    at first N(0, I), the probability flow has the density of the mixture before any training.

    With a condition the mixture is one of latents and conditions together: m_k is then linear in c,
    and
    :math:`w_k \propto` its share of the density of c. The MLP sees the mixture's output beside c. Beside an
    :class:`~indm.nets.MLP` of all entries there is a :class:`ColumnMLP`.

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
        self.shape, d, k = tuple(shape), math.prod(shape), math.prod(condition) if condition else 0
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
        return (noise + learned).reshape(z.shape), jacobian.diagonal(dim1=1, dim2=2).sum(
            1
        ) + diverging

    def _columns(self, z: Batch, level: PerSample, at: Tensor | None) -> tuple[Tensor, Tensor]:
        """Noised columns of unit scale, and their centres at what is seen of a condition, (B, d)
        each.
        """
        centre = (
            self.column_mean.expand(len(z), -1)
            if at is None
            else self.column_mean + at @ self.column_slope
        )
        return z.flatten(1) @ self.unwhitening + centre / (1 + (2 * level).exp()).sqrt()[
            :, None
        ], centre

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
        if (at := seen(self, c, z)) is not None:
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
        noise, (B,); None at another truncation than the SDE's own. ValueError for a component that
        is narrow beside the noise at ε.
        """
        if eps != sde.eps:
            return None
        limit = NARROWEST * math.exp(0.5 * sde.clock_span()[0])  # σ/α at ε is the root of e^clock
        narrow = self.network.variance.sqrt().amin(1)
        if (deviation := narrow.min().item()) < limit:
            got = f"{deviation:.2g} in component {int(narrow.argmin())}; take a smaller eps"
            raise ValueError(
                f"deviations of components must be above {NARROWEST} σ/α at ε, {limit:.2g}, got {got}"
            )
        return -self.log_prob(z) - prior_term(sde, z) - constant_part(sde, z, eps)


class Components(NamedTuple):
    """Noised components N(y − Q offset, Q diag(total) Qᵀ) at rows y, of a mixture of K; Q may be
    one for all rows.
    """

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

    def gate(self) -> PerSample:
        """The share of what is learned that counts, (B,): 1 near the mixture, and 0 from √d +
        :data:`FAR` deviations from each component on, with noise of variance :data:`BLUR`. Nothing
        is trained so far away, where slopes of the MLPs would grow.
        """
        closed, _, _ = self._closed()
        return 1 - closed.square() * (3 - 2 * closed)

    def gated(
        self, learned: Float[Tensor, "batch d"], divergence: PerSample, r: Tensor
    ) -> tuple[Tensor, PerSample]:
        """:meth:`gate` times a ``learned`` field at y/√(1 + r), and the divergence of that from the
        field's own.
        """
        closed, nearest, span = self._closed()
        rows, gate = torch.arange(len(closed), device=closed.device), self.gate()
        scaled = (self.offset / (self.total + BLUR))[rows, nearest]
        outward = torch.einsum(
            "bd,bde,be->b", learned, self.basis.expand(len(rows), -1, -1, -1)[rows, nearest], scaled
        )
        fall = 12 * closed * (1 - closed) / span * (1 + r[:, 0]).sqrt()
        return gate[:, None] * learned, gate * divergence - fall * outward

    def _closed(self) -> tuple[PerSample, Tensor, float]:
        """Position of the gate from open to closed, 0 to 1; the nearest component; the length of
        the way in squared distances.
        """
        root = math.sqrt(self.offset.shape[2])
        least, most = (root + FAR / 2) ** 2, (root + FAR) ** 2
        square, nearest = (self.offset.square() / (self.total + BLUR)).sum(2).min(1)
        return ((square - least) / (most - least)).clamp(0, 1), nearest, most - least

    def noise(
        self, y: Float[Tensor, "batch d"], r: Float[Tensor, "batch 1"]
    ) -> tuple[Tensor, Tensor]:
        """The noise beyond the noise of N(0, I) at rows y, (B, d), and its Jacobian in y/√(1 + r),
        (B, d, d).
        """
        share = self.share()
        scaled, weight = self.offset / self.total, share[:, :, None] / self.total
        if len(self.basis) == 1:
            (basis,) = self.basis
            each = torch.einsum("bke,kde->bkd", scaled, basis)
            mean = weight.flatten(1) @ torch.einsum("kde,kfe->kedf", basis, basis).flatten(
                0, 1
            ).flatten(1)
            mean = mean.unflatten(1, basis.shape[1:])
        else:
            each = torch.einsum("bke,bkde->bkd", scaled, self.basis)
            mean = torch.einsum("bkde,bkfe->bdf", self.basis * weight[:, :, None], self.basis)
        slope = torch.einsum("bk,bkd->bd", share, each)  # −∇ log p of y
        spread = each - slope[:, None]
        jacobian = mean - (share[:, :, None] * spread).mT @ spread
        jacobian.diagonal(dim1=1, dim2=2).sub_(1 / (1 + r))
        return r.sqrt() * (slope - y / (1 + r)), (r * (1 + r)).sqrt()[:, :, None] * jacobian


def adds_nothing(mlp: MLP | ColumnMLP) -> bool:
    """Whether the output of ``mlp`` is 0 for any input, as before any training."""
    return not any(bool(parameter.any()) for parameter in mlp.output.parameters())


class Laws(NamedTuple):
    """The mixtures of asked columns given others, for U questions and K components each.

    At given values g, component k is N(mean + slopeᵀ g, basis diag(variance) basisᵀ), and its
    weight is proportional to exp(log_weight − ½‖g @ root − centre‖²). Columns that are not asked
    are N(0, 1) and independent.
    """

    log_weight: Tensor  # (U, K)
    mean: Tensor  # (U, K, d)
    variance: Tensor  # (U, K, d)
    basis: Tensor  # (U, K, d, d)
    slope: Tensor  # (U, K, d, d)
    root: Tensor  # (U, K, d, d)
    centre: Tensor  # (U, K, d)


class MaskedMixtureMLP(Backbone):
    r"""The score of the asked columns of rows, given other columns; what is neither asked nor given
    is left out.

    Events are whole rows (d,). Columns that are not asked are N(0, 1), independent of all else. A
    mixture over all columns gives the law of the asked ones given others in closed form, and an MLP
    learns what the mixture lacks.

    Categories of a row are independent within a component. A second MLP learns their probabilities
    given numbers and other categories, beyond the mixture's.

    Args:
        shape: (d,), the columns of numbers.
        categories: how many values each column of categories has.
        components: K, of the mixture, which is not trained.
        width, depth, dropout: of the MLPs.

    What a row is asked is its condition c, of ``size`` numbers made by :meth:`condition`, with a
    one after them.
    """

    is_smooth = True  # in the level, by its embedding
    takes_condition = True

    def __init__(
        self,
        shape,
        categories: tuple[int, ...] = (),
        components: int = 1,
        width: int = 64,
        depth: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.shape, (d,) = tuple(shape), tuple(shape)
        self.categories, self.components = tuple(categories), components
        self.width, self.depth, self.dropout = width, depth, dropout
        self.d, self.m = d, sum(self.categories)
        self.size = 3 * d + self.m + 1
        self.register_buffer("weight", torch.full((components,), 1 / components))
        self.register_buffer("mean", torch.zeros(components, d))
        self.register_buffer("covariance", torch.eye(d).repeat(components, 1, 1))
        uniform = torch.cat(
            [torch.zeros(0), *(torch.full((n,), -math.log(n)) for n in self.categories)]
        )
        # categories' log shares in each component
        self.register_buffer("log_share", uniform.repeat(components, 1))
        self.mlp = SmoothMLP(shape, width, depth, 2, (4 * d + self.m,), CONDITION_BLOCKS, dropout)
        self.columns = ColumnMLP(d)
        if self.m:
            self.classifier = MLP(
                (self.m,), width, depth, 0, (2 * d + self.m,), CONDITION_BLOCKS, dropout
            )
        everything = torch.ones(1, d, dtype=torch.bool)
        self._pose(everything, ~everything)

    def set_mixture(
        self, weight: Tensor, mean: Tensor, covariance: Tensor, log_share: Tensor | None = None
    ) -> None:
        """Take the mixture of ``weight`` (K,), ``mean`` (K, d), ``covariance`` (K, d, d),
        ``log_share`` (K, m).
        """
        self.weight.copy_(weight)
        self.mean.copy_(mean)
        self.covariance.copy_(covariance)
        if log_share is not None:
            self.log_share.copy_(log_share)
        everything = torch.ones(1, self.d, dtype=torch.bool)
        self._pose(everything, ~everything)

    def asked(self, asked: Tensor, given: Tensor) -> "MaskedMixtureMLP":
        """This network bound to questions, masks of columns (U, d) each: a view that shares all
        weights.

        The last number of a condition is the index of a question. Without a view the network
        answers one question, the law of all columns with none given.
        """
        view = copy.copy(self)
        view._pose(asked, given)
        return view

    def _pose(self, asked: Tensor, given: Tensor) -> None:
        found = laws(self.weight, self.mean, self.covariance, asked, given)
        self.is_asked = asked.to(self.mean)
        self.is_given = given.to(self.mean)
        self.laws = Laws(*(part.to(self.mean) for part in found))

    def _apply(self, fn, recurse: bool = True) -> "MaskedMixtureMLP":
        """Move the questions along, which are not saved and so are not buffers."""
        super()._apply(fn, recurse)
        self.is_asked = fn(self.is_asked)
        self.is_given = fn(self.is_given)
        self.laws = Laws(*map(fn, self.laws))
        return self

    def condition(self, values: Tensor, categories: Tensor, index: Tensor) -> Tensor:
        """The condition of rows: z (n, d), of which the given ones count; one-hot categories (n,
        m), zeros where they are not given; and the index (n,) of each row's question among those
        that the network is :meth:`asked`.
        """
        asked, given = self.is_asked[index], self.is_given[index]
        values = torch.where(given > 0, values, torch.zeros_like(values))
        return torch.cat([values, asked, given, categories, index[:, None].to(values)], 1).to(
            self.mean
        )

    def forward(self, z: Tensor, level: PerSample, c: Tensor) -> Tensor:
        """The output for inputs ``z`` at log noise levels ``level`` = log(σ/α), (B,), and
        conditions ``c``.
        """
        z = c[:, self.d : 2 * self.d] * z
        y, r, asked, components = self._components(z, level, c)
        weighted = components.share()[:, :, None] * components.offset / components.total
        slope = self._along(weighted, components.basis.mT).sum(1)  # −∇ log p of y
        noise = asked * r.sqrt() * (slope - y / (1 + r))  # beyond that of N(0, I)
        context = torch.cat([c[:, : 3 * self.d + self.m], noise], 1)
        learned = self.mlp(z, level, context) + self.columns(z, self._centre(c), level)
        return noise + components.gate()[:, None] * asked * learned

    def with_divergence(self, z: Tensor, level: PerSample, c: Tensor) -> tuple[Tensor, PerSample]:
        """The output without dropout, and its exact divergence in ``z`` (B,), in closed form;
        without gradients.
        """
        z = c[:, self.d : 2 * self.d] * z
        y, r, asked, components = self._components(z, level, c)
        noise, jacobian = components.noise(y, r)
        noise, jacobian = asked * noise, asked[:, :, None] * jacobian
        context = torch.cat([c[:, : 3 * self.d + self.m], noise], 1)
        output, diagonal = self.mlp.with_diagonal(z, level, context, jacobian.mT)
        of_columns, slope = self.columns.with_slope(z, self._centre(c), level)
        diverging = (asked * (diagonal + slope)).sum(1)
        learned, diverging = components.gated(asked * (output + of_columns), diverging, r)
        return noise + learned, jacobian.diagonal(dim1=1, dim2=2).sum(1) + diverging

    @property
    def is_mixture(self) -> bool:
        """Whether the MLPs add nothing to the mixture's score, as before any training."""
        return adds_nothing(self.mlp) and adds_nothing(self.columns)

    def forget(self) -> None:
        """Let the MLPs add nothing to the mixture, its score and its probabilities of categories,
        as at the start.
        """
        for part in (self.mlp, self.columns, *([self.classifier] if self.m else [])):
            zeroed(part.output)

    def _centre(self, c: Tensor) -> Tensor:
        """The mixture's mean of each column given those that ``c`` gives, (B, d)."""
        law = self._law(c)
        means = law.mean + self._along(c[:, : self.d], law.slope)
        return torch.einsum("bk,bkd->bd", self._log_weight(c, law).softmax(1), means)

    def mixture_at(self, z: Tensor, level: PerSample, c: Tensor) -> Components:
        """The mixture's noised components at z_t/α_t, in which columns that are not asked are N(0,
        1).
        """
        return self._components(z, level, c)[3]

    def _components(
        self, z: Tensor, level: PerSample, c: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Components]:
        """z_t/α_t (B, d), (σ/α)² (B, 1), which columns are asked (B, d), and the components there."""
        values, asked, law = c[:, : self.d], c[:, self.d : 2 * self.d], self._law(c)
        r = (2 * level).exp()[:, None]
        y = (1 + r).sqrt() * z  # z_t/α_t
        offset = self._along(y, law.basis) - self._along(
            law.mean + self._along(values, law.slope), law.basis
        )
        total = law.variance + r[:, :, None]
        return y, r, asked, Components(self._log_weight(c, law), offset, total, law.basis)

    def category_log_prob(self, c: Tensor) -> Tensor:
        """log of the probability of each category given the numbers and categories that ``c``
        gives, (B, m).
        """
        weight = self._log_weight(c, self._law(c)).log_softmax(1)
        start = (weight[:, :, None] + self.log_share).logsumexp(1)
        seen = torch.cat([c[:, : self.d], c[:, 2 * self.d : 3 * self.d + self.m]], 1)
        logits = start + self.classifier(start, start.new_zeros(len(start)), seen)
        return torch.cat([part.log_softmax(1) for part in logits.split(self.categories, 1)], 1)

    def _law(self, c: Tensor) -> Laws:
        if len(self.laws.mean) == 1:
            return self.laws
        index = c[:, self.size - 1].long()
        return Laws(*(part[index] for part in self.laws))

    def _log_weight(self, c: Tensor, law: Laws) -> Tensor:
        """log of the weight of each component at what is given, up to a constant, (B, K)."""
        values, categories = c[:, : self.d], c[:, 3 * self.d : 3 * self.d + self.m]
        square = (self._along(values, law.root) - law.centre).square().sum(2)
        return law.log_weight - 0.5 * square + categories @ self.log_share.mT

    @staticmethod
    def _along(rows: Tensor, matrix: Tensor) -> Tensor:
        """rows (B, d), or (B, K, d) of each component, times its matrix (1 or B, K, d, d): (B, K,
        d).
        """
        of_rows = "bd" if rows.ndim == 2 else "bkd"
        if len(matrix) == 1:
            return torch.einsum(f"{of_rows},kde->bke", rows, matrix[0])
        return torch.einsum(f"{of_rows},bkde->bke", rows, matrix)


def laws(weight: Tensor, mean: Tensor, covariance: Tensor, asked: Tensor, given: Tensor) -> Laws:
    """The :class:`Laws` of a mixture of K components for masks ``asked`` and ``given`` (U, d), in
    double precision.
    """
    weight, mean, covariance = weight.double(), mean.double(), covariance.double()
    a, g = asked.double()[:, None], given.double()[:, None]
    of_given = covariance * (g[..., :, None] * g[..., None, :]) + torch.diag_embed(1 - g)
    across = covariance * (g[..., :, None] * a[..., None, :])
    factor = torch.linalg.cholesky(of_given)
    slope = torch.cholesky_solve(across, factor)
    rest = (
        covariance * (a[..., :, None] * a[..., None, :])
        - across.mT @ slope
        + torch.diag_embed(1 - a)
    )
    variance, basis = torch.linalg.eigh(rest)
    identity = torch.eye(mean.shape[1], dtype=torch.double).expand_as(factor)
    root = torch.linalg.solve_triangular(factor, identity, upper=False).mT
    known = mean * g
    return Laws(
        weight.log() + root.diagonal(dim1=-2, dim2=-1).log().sum(-1),
        mean * a - torch.einsum("ukd,ukde->uke", known, slope),
        variance,
        basis,
        slope,
        root,
        torch.einsum("ukd,ukde->uke", known, root),
    )
