r"""The log-determinant and the inverse of x ↦ x + g(x) for contractions g, Lip(g) < 1.

An estimator of log|det(I + J)| for the Jacobian J of g takes the products with J and Jᵀ at a batch
of points and returns one number a sample. Both its *value* and its *gradient* are exact, or unbiased
estimates. Products act on stacks (K·B, *event).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from indm.tensors import double, event_size, expand_like

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExactLogDet:
    """log|det(I + J)| by the dense Jacobian, with d products and a d × d determinant a sample.

    Example: of the map x ↦ x + x A, whose determinant is 2 · 3.

        >>> A = torch.tensor([[1.0, 0.5], [0.0, 2.0]])
        >>> values = ExactLogDet()(lambda v: v @ A, lambda u: u @ A.T, torch.randn(3, 2))
        >>> torch.allclose(values, torch.full((3,), math.log(6.0)))
        True
    """

    def rows(self, n: int, generator: torch.Generator | None, device: torch.device) -> slice:
        """All samples, see :meth:`PowerSeries.rows`."""
        return slice(0, n, 1)

    def __call__(
        self, jvp: Product, vjp: Product, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        batch, d = len(x), event_size(x)
        basis = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:])
        columns = jvp(basis.expand(d, *x.shape).reshape(d * batch, *x.shape[1:]))
        jacobian = columns.reshape(d, batch, d).permute(1, 2, 0)
        return torch.linalg.slogdet(torch.eye(d, dtype=x.dtype, device=x.device) + jacobian)[1]


@dataclass(frozen=True)
class PowerSeries:
    r"""An unbiased estimate of log|det(I + J)| by its power series.

    It uses Hutchinson probes, Russian roulette and the Neumann gradient.

    .. math:: \log|\det(I+J)| = \sum_{k\ge1} \tfrac{(-1)^{k+1}}{k} \mathrm{tr} J^k, \qquad
              \partial \log|\det(I+J)| = \mathrm{tr}\Big(\sum_{k\ge0} (-J)^k \, \partial J\Big)

    Args:
        exact_terms: number of terms that are always summed.
        further_terms: mean of the Poisson number of further terms, each divided by its probability
            of being reached. With 0 the series is cut after ``exact_terms``, with an error of at
            most d·Lⁿ⁺¹/((n+1)(1−L)) for a Lipschitz constant L.
        probes: Rademacher vectors for each sample.
        share: one sample in ``share``, drawn at random, gets an estimate, multiplied by ``share``;
            the others get 0.

    The powers (Jᵀ)ᵏv serve both the value and the gradient, and only one product with J carries a
    graph.

    Source: Chen et al. 2019, "Residual Flows", eqs. 6 and 8, https://arxiv.org/abs/1906.02735.

    Example: x ↦ 1.5 x. Every probe gives the trace, and 30 terms are nearly the whole series.

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
        """The samples that get an estimate; multiply it by the step of this slice."""
        share = max(1, min(self.share, n))
        first = (
            int(torch.randint(share, (), generator=generator, device=device)) if share > 1 else 0
        )
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

    def __call__(
        self, jvp: Product, vjp: Product, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
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


# ── Fixed points: each sample has its own history, its own safeguard and its own stop


@torch.no_grad()
def fixed_point(
    contraction: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    tol: float,
    scale: Tensor,
    *,
    memory: int = 8,
    patience: int = 5,
    max_iterations: int = 1000,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve x = contraction(x) by Anderson's acceleration, each sample by itself.

    Args:
        contraction: (x (b, *event), rows (b,)) → (b, *event), where ``rows`` are the indices of
            these samples.
        x: starting points, (B, *event).
        tol, scale: a sample is solved when max|contraction(x) − x| / scale is at most ``tol``;
            scale (B,).
        memory: differences of iterates that are combined.
        patience: Banach steps before the acceleration begins; an easy contraction converges within
            them.
        max_iterations: evaluations of the contraction for each sample.

    Returns:
        x, its residual and the number of evaluations, the last two (B,).

    A sample forgets its history and takes a Banach step if a combination raises its residual's
    norm.

    Source: Walker & Ni 2011, "Anderson Acceleration for Fixed-Point Iterations",
    https://doi.org/10.1137/10078356X.
    """
    solution, residual = x.clone(), torch.full_like(scale, math.inf)
    evaluations = torch.zeros(len(x), dtype=torch.long, device=x.device)
    active = _Active.start(x)
    for iteration in range(max_iterations if len(x) else 0):
        image = contraction(active.x, active.rows)
        f = (image - active.x).flatten(1)
        error = f.abs().amax(1) / scale[active.rows]
        # False for a sample that is not a number, which would never be solved
        unsolved = error > tol
        if iteration + 1 == max_iterations or not bool(unsolved.all()):
            solution[active.rows] = active.x
            residual[active.rows] = error
            evaluations[active.rows] = iteration + 1
            if not bool(unsolved.any()):
                break
            active.keep(unsolved)
            image, f = image[unsolved], f[unsolved]
        if iteration < patience:
            active.banach_step(image, f)
        else:
            active.anderson_step(image, f, memory)
    return solution, residual, evaluations


@dataclass
class _Active:
    """The samples that are not solved yet, with their history.

    Attributes:
        rows: their indices, (b,).
        x: the current iterates, (b, *event).
        old_x, old_f: the iterates before and contraction(x) − x there, flat, (b, d).
        steps, changes: differences of iterates and of contraction(x) − x between them, newest
            first, (b, memory, d).
        best_image: contraction(x) at the last point that has not raised the norm of contraction(x)
            − x.
    """

    rows: Tensor
    x: Tensor
    old_x: Tensor
    old_f: Tensor
    steps: Tensor
    changes: Tensor
    best_image: Tensor

    @classmethod
    def start(cls, x: Tensor) -> "_Active":
        flat = torch.zeros_like(x.flatten(1))
        none = flat.new_zeros(len(x), 0, flat.shape[1])
        return cls(torch.arange(len(x), device=x.device), x, flat, flat, none, none, x)

    def keep(self, mask: Tensor) -> None:
        """Keep only the samples where ``mask`` (b,) is true."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[mask])

    def banach_step(self, image: Tensor, f: Tensor) -> None:
        """x ← contraction(x), which is ``image``; ``f`` is image − x, flat."""
        self.old_x, self.old_f, self.best_image = self.x.flatten(1), f, image
        self.x = image

    def anderson_step(self, image: Tensor, f: Tensor, memory: int) -> None:
        """x ← the combination of past images with the least residual, if that has helped so far."""
        flat, has_history = self.x.flatten(1), self.changes.flatten(1).any(1)
        # a Banach step counts, whatever the norm
        better = (f.norm(dim=1) < self.old_f.norm(dim=1)) | ~has_history
        steps = torch.cat((flat[:, None] - self.old_x[:, None], self.steps[:, : memory - 1]), 1)
        changes = torch.cat((f[:, None] - self.old_f[:, None], self.changes[:, : memory - 1]), 1)
        self.steps, self.changes = steps * better[:, None, None], changes * better[:, None, None]
        self.old_x, self.old_f = flat, f
        self.best_image = torch.where(expand_like(better, image), image, self.best_image)
        self.x = (self.best_image.flatten(1) - _correction(self.steps, self.changes, f)).reshape(
            self.x.shape
        )


def _correction(steps: Tensor, changes: Tensor, f: Tensor) -> Tensor:
    """Σ_i γ_i (steps_i + changes_i), γ minimising ‖f − Σ_i γ_i changes_i‖; 0 without history."""
    gram = double(changes @ changes.mT)
    ridge = 1e-10 * gram.diagonal(dim1=1, dim2=2).sum(1) + torch.finfo(f.dtype).tiny
    gram = gram + ridge[:, None, None] * torch.eye(
        gram.shape[1], dtype=gram.dtype, device=gram.device
    )
    gamma = torch.linalg.solve(gram, double(changes @ f[:, :, None]))
    return (gamma.to(f) * (steps + changes)).sum(1)
