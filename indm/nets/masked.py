"""The score of some columns of a table given others, for any choice of them: a joint mixture, and a masked MLP."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from indm.nets.mixture import CONDITION_BLOCKS, Components, SmoothMLP, adds_nothing
from indm.nets.mlp import MLP
from indm.tensors import PerSample


class Laws(NamedTuple):
    """The mixtures of asked columns given others, for U questions and K components each.

    At given values g, component k is N(mean + slopeᵀ g, basis diag(variance) basisᵀ), and its weight is proportional to
    exp(log_weight − ½‖g @ root − centre‖²). Columns that are not asked are N(0, 1) and independent.
    """

    log_weight: Tensor  # (U, K)
    mean: Tensor  # (U, K, d)
    variance: Tensor  # (U, K, d)
    basis: Tensor  # (U, K, d, d)
    slope: Tensor  # (U, K, d, d)
    root: Tensor  # (U, K, d, d)
    centre: Tensor  # (U, K, d)


class MaskedMixtureMLP(nn.Module):
    r"""The score of the asked columns of rows, given other columns; what is neither asked nor given is left out.

    Events are whole rows (d,). Columns that are not asked are N(0, 1), independent of all else, so their density is
    known and can be divided out. A mixture over all columns gives the law of the asked ones given others in closed
    form, and an MLP that sees the noised columns, the given ones and which they are learns what the mixture lacks.

    Rows may have categories, too. Within a component they are independent of each other and of the numbers.
    A second MLP learns their probabilities given numbers and other categories, beyond those of the mixture.

    Args:
        shape: (d,), the columns of numbers.
        categories: how many values each column of categories has.
        components: K, of the mixture, which is not trained.
        width, depth, dropout: of the MLPs.

    What a row is asked is its condition c, of ``size`` numbers made by :meth:`condition`, with a one after them.

    Example: x₂ = x₁ + noise of deviation 1; at x₁ = 2 the noised x₂ is N(2α, α² + σ²).

        >>> from indm import ScoreModel, VPSDE
        >>> net = MaskedMixtureMLP((2,))
        >>> net.set_mixture(torch.ones(1), torch.zeros(1, 2), torch.tensor([[[1.0, 1.0], [1.0, 2.0]]]))
        >>> net.set_questions(torch.tensor([[False, True]]), torch.tensor([[True, False]]))
        >>> c = net.condition(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 0), torch.tensor([0]))
        >>> score, z_t, t = ScoreModel(net, VPSDE()), torch.randn(1, 2), torch.tensor([0.2])
        >>> found = score(z_t, t, torch.cat([c, torch.ones(1, 1)], 1))
        >>> torch.allclose(found[:, 1], 2 * score.sde.alpha(t) - z_t[:, 1], atol=1e-4)
        True
    """

    is_smooth = True  # in the level, by its embedding

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
        uniform = torch.cat([torch.zeros(0), *(torch.full((n,), -math.log(n)) for n in self.categories)])
        self.register_buffer("log_share", uniform.repeat(components, 1))  # of the categories in each component
        self.mlp = SmoothMLP(shape, width, depth, 2, (4 * d + self.m,), CONDITION_BLOCKS, dropout)
        if self.m:
            self.classifier = MLP((self.m,), width, depth, 0, (2 * d + self.m,), CONDITION_BLOCKS, dropout)
        everything = torch.ones(1, d, dtype=torch.bool)
        self.set_questions(everything, ~everything)

    def set_mixture(self, weight: Tensor, mean: Tensor, covariance: Tensor, log_share: Tensor | None = None) -> None:
        """Take the mixture of ``weight`` (K,), ``mean`` (K, d), ``covariance`` (K, d, d), ``log_share`` (K, m)."""
        self.weight.copy_(weight)
        self.mean.copy_(mean)
        self.covariance.copy_(covariance)
        if log_share is not None:
            self.log_share.copy_(log_share)

    def set_questions(self, asked: Tensor, given: Tensor) -> None:
        """Take the questions to which the last number of a condition points: masks of columns, (U, d) each."""
        self.asked, self.given = asked.to(self.mean), given.to(self.mean)
        self.laws = Laws(*(part.to(self.mean) for part in laws(self.weight, self.mean, self.covariance, asked, given)))

    def _apply(self, fn, recurse: bool = True) -> "MaskedMixtureMLP":
        """With the questions, which are not saved."""
        super()._apply(fn, recurse)
        self.asked, self.given, self.laws = fn(self.asked), fn(self.given), Laws(*map(fn, self.laws))
        return self

    def condition(self, values: Tensor, categories: Tensor, index: Tensor) -> Tensor:
        """The condition of rows: z (n, d), of which the given ones count; one-hot categories (n, m), zeros where they
        are not given; and the index (n,) of each row's question in :meth:`set_questions`.
        """
        asked, given = self.asked[index], self.given[index]
        values = torch.where(given > 0, values, torch.zeros_like(values))
        return torch.cat([values, asked, given, categories, index[:, None].to(values)], 1).to(self.mean)

    def forward(self, z: Tensor, level: PerSample, c: Tensor) -> Tensor:
        """The output for inputs ``z`` at log noise levels ``level`` = log(σ/α), (B,), and conditions ``c``."""
        y, r, asked, components = self._components(z, level, c)
        weighted = components.share()[:, :, None] * components.offset / components.total
        slope = self._along_each(weighted, components.basis.mT).sum(1)  # −∇ log p of y
        noise = asked * r.sqrt() * (slope - y / (1 + r))  # beyond that of N(0, I)
        return noise + asked * self.mlp(asked * z, level, torch.cat([c[:, : 3 * self.d + self.m], noise], 1))

    def with_divergence(self, z: Tensor, level: PerSample, c: Tensor) -> tuple[Tensor, PerSample]:
        """The output without dropout, and its exact divergence in ``z`` (B,), in closed form; without gradients."""
        y, r, asked, components = self._components(z, level, c)
        noise, jacobian = components.noise(y, r)
        noise, jacobian = asked * noise, asked[:, :, None] * jacobian
        context = torch.cat([c[:, : 3 * self.d + self.m], noise], 1)
        output, diagonal = self.mlp.with_diagonal(asked * z, level, context, jacobian.mT)
        return noise + asked * output, (jacobian.diagonal(dim1=1, dim2=2) + asked * diagonal).sum(1)

    @property
    def is_mixture(self) -> bool:
        """Whether the network adds nothing to the mixture's score, as before any training."""
        return adds_nothing(self.mlp)

    def mixture_log_prob(self, z: Tensor, level: PerSample, c: Tensor) -> PerSample:
        """log of the mixture's density of z_t/α_t, in which columns that are not asked are N(0, 1), in closed form."""
        return self._components(z, level, c)[3].log_prob()

    def _components(self, z: Tensor, level: PerSample, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Components]:
        """z_t/α_t (B, d), (σ/α)² (B, 1), which columns are asked (B, d), and the components there."""
        values, asked, law = c[:, : self.d], c[:, self.d : 2 * self.d], self._law(c)
        r = (2 * level).exp()[:, None]
        y = (1 + r).sqrt() * z  # z_t/α_t
        offset = self._along(y, law.basis) - self._along_each(law.mean + self._along(values, law.slope), law.basis)
        total = law.variance + r[:, :, None]
        return y, r, asked, Components(self._log_weight(c, law), offset, total, law.basis)

    def category_log_prob(self, c: Tensor) -> Tensor:
        """log of the probability of each category given the numbers and categories that ``c`` gives, (B, m)."""
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
        """rows (B, d) times the matrices (1 or B, K, d, d): (B, K, d)."""
        if len(matrix) == 1:
            return torch.einsum("bd,kde->bke", rows, matrix[0])
        return torch.einsum("bd,bkde->bke", rows, matrix)

    @staticmethod
    def _along_each(rows: Tensor, matrix: Tensor) -> Tensor:
        """rows (B, K, d) of each component times its matrix (1 or B, K, d, d): (B, K, d)."""
        if len(matrix) == 1:
            return torch.einsum("bkd,kde->bke", rows, matrix[0])
        return torch.einsum("bkd,bkde->bke", rows, matrix)


def laws(weight: Tensor, mean: Tensor, covariance: Tensor, asked: Tensor, given: Tensor) -> Laws:
    """The :class:`Laws` of a mixture of K components for masks ``asked`` and ``given`` (U, d), in double precision."""
    weight, mean, covariance = weight.double(), mean.double(), covariance.double()
    a, g = asked.double()[:, None], given.double()[:, None]
    of_given = covariance * (g[..., :, None] * g[..., None, :]) + torch.diag_embed(1 - g)
    across = covariance * (g[..., :, None] * a[..., None, :])
    factor = torch.linalg.cholesky(of_given)
    slope = torch.cholesky_solve(across, factor)
    rest = covariance * (a[..., :, None] * a[..., None, :]) - across.mT @ slope + torch.diag_embed(1 - a)
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
