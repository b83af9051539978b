"""The network of a joint table: any columns given any others, from one mixture of all of them."""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from indm.nets.base import Backbone
from indm.nets.mlp import MLP
from indm.tables.components import Components
from indm.tables.layers import CONDITION_BLOCKS, ColumnMLP, SmoothMLP, adds_nothing
from indm.tensors import PerSample, zeroed


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
        values = c[:, : self.d]
        asked = c[:, self.d : 2 * self.d]
        law = self._law(c)
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
