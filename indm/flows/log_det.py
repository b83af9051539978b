r"""Estimators of log|det(I + J)| for a residual map x ↦ x + g(x) with Jacobian J of g and Lip(g) < 1.

Each takes the two products with J at a batch of points and returns one number a sample. Both its *value* and its
*gradient* are those of the log-determinant, or unbiased estimates of them. Products act on stacks (K·B, *event).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from indm.tensors import event_size

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExactLogDet:
    """The dense Jacobian, column by column: d products and a d × d determinant a sample, for small d.

    Example: of the map x ↦ x + x A, whose determinant is 2 · 3.

        >>> A = torch.tensor([[1.0, 0.5], [0.0, 2.0]])
        >>> values = ExactLogDet()(lambda v: v @ A, lambda u: u @ A.T, torch.randn(3, 2))
        >>> torch.allclose(values, torch.full((3,), math.log(6.0)))
        True
    """

    def rows(self, n: int, generator: torch.Generator | None, device: torch.device) -> slice:
        """All samples, see :meth:`PowerSeries.rows`."""
        return slice(0, n, 1)

    def __call__(self, jvp: Product, vjp: Product, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        batch, d = len(x), event_size(x)
        basis = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:])
        columns = jvp(basis.expand(d, *x.shape).reshape(d * batch, *x.shape[1:]))
        jacobian = columns.reshape(d, batch, d).permute(1, 2, 0)
        return torch.linalg.slogdet(torch.eye(d, dtype=x.dtype, device=x.device) + jacobian)[1]


@dataclass(frozen=True)
class PowerSeries:
    r"""Hutchinson probes of the power series, cut by Russian roulette, with the Neumann gradient.

    .. math:: \log|\det(I+J)| = \sum_{k\ge1} \tfrac{(-1)^{k+1}}{k} \mathrm{tr} J^k, \qquad
              \partial \log|\det(I+J)| = \mathrm{tr}\Big(\sum_{k\ge0} (-J)^k \, \partial J\Big)

    Args:
        exact_terms: number of terms that are always summed.
        further_terms: mean of the Poisson number of further terms, each divided by its probability of being
            reached: unbiased. With 0 the series is cut after ``exact_terms``: deterministic given the probes, with
            an error of at most d·Lⁿ⁺¹/((n+1)(1−L)) for a Lipschitz constant L.
        probes: Rademacher vectors for each sample.
        share: only one sample in ``share``, drawn at random, gets an estimate, multiplied by ``share``; the others get
            0. Unbiased for every sample.

    The powers (Jᵀ)ᵏv serve both the value and the gradient, and only one product with J carries a graph.

    Source: Chen et al. 2019, "Residual Flows", eqs. 6 and 8, https://arxiv.org/abs/1906.02735.

    Example: of x ↦ 1.5 x, for which every probe gives the trace, and 30 terms of the series nearly its sum.

        >>> series, x = PowerSeries(exact_terms=30, further_terms=0.0), torch.randn(5, 3)
        >>> values = series(lambda v: 0.5 * v, lambda u: 0.5 * u, x)
        >>> torch.allclose(values, torch.full((5,), 3 * math.log(1.5)), atol=1e-5)
        True
    """

    exact_terms: int = 2
    further_terms: float = 2.0
    probes: int = 1
    share: int = 1

    def rows(self, n: int, generator: torch.Generator | None, device: torch.device) -> slice:
        """Which of ``n`` samples get an estimate, multiplied by the step of the slice for the others."""
        share = min(self.share, n)
        first = int(torch.randint(share, (), generator=generator, device=device)) if share > 1 else 0
        return slice(first, n, share)

    def coefficients(self, generator: torch.Generator | None = None, device=None) -> list[float]:
        """1/P(term k is reached) for k = 1, 2, … up to the number of terms of this draw."""
        mean = torch.tensor(self.further_terms, device=device)
        further = int(torch.poisson(mean, generator=generator)) if self.further_terms > 0 else 0
        probability, survival, reached = math.exp(-self.further_terms), 1.0, []
        for n in range(further):
            survival -= probability
            probability *= self.further_terms / (n + 1)
            reached.append(1.0 / survival)
        return [1.0] * self.exact_terms + reached

    def __call__(self, jvp: Product, vjp: Product, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        shape = (len(x), self.probes, *x.shape[1:])
        bits = torch.randint(0, 2, shape, generator=generator, device=x.device, dtype=torch.int8)
        v = (2 * bits - 1).to(x.dtype).transpose(0, 1).flatten(0, 1)
        with torch.no_grad():
            power, value, neumann = v, v.new_zeros(len(v)), v.clone()
            for k, coefficient in enumerate(self.coefficients(generator, x.device), start=1):
                power = -vjp(power)
                value = value - coefficient / k * _dot(power, v)
                neumann = neumann + coefficient * power
        if torch.is_grad_enabled():
            gradient = _dot(neumann, jvp(v))
            value = value + gradient - gradient.detach()
        return value.reshape(self.probes, len(x)).mean(0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
