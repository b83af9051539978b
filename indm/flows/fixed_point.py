"""Fixed points of contractions; each sample has its own history, its own safeguard and its own stop."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from indm.tensors import double, expand_like


@torch.no_grad()
def solve(
    contraction: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    tol: float,
    scale: Tensor,
    *,
    memory: int = 8,
    patience: int = 5,
    max_iterations: int = 1000,
) -> tuple[Tensor, Tensor, Tensor]:
    """x = contraction(x) by Anderson's acceleration, each sample until its residual is at most ``tol``.

    Args:
        contraction: (x (b, *event), rows (b,)) → (b, *event), where ``rows`` are the indices of these samples.
        x: starting points, (B, *event).
        tol, scale: bound on max|contraction(x) − x| / scale, scale (B,).
        memory: differences of iterates that are combined.
        patience: Banach steps before the acceleration begins; an easy contraction converges within them.
        max_iterations: evaluations of the contraction for each sample.

    Returns:
        x, its residual and the number of evaluations, the last two (B,).

    Where a combination raises the residual's norm, that sample forgets its history and takes the Banach step from the
    point before, whatever the norm there: two evaluations make at least the progress of one Banach step.

    Source: Walker & Ni 2011, "Anderson Acceleration for Fixed-Point Iterations", https://doi.org/10.1137/10078356X.
    """
    solution, residual = x.clone(), torch.full_like(scale, math.inf)
    evaluations = torch.zeros(len(x), dtype=torch.long, device=x.device)
    active = _Active.start(x)
    for iteration in range(max_iterations):
        image = contraction(active.x, active.rows)
        f = (image - active.x).flatten(1)
        error = f.abs().amax(1) / scale[active.rows]
        unsolved = error > tol  # False for a sample that is not a number, which would never be solved
        if iteration + 1 == max_iterations or not bool(unsolved.all()):
            solution[active.rows], residual[active.rows], evaluations[active.rows] = active.x, error, iteration + 1
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
        steps, changes: differences of iterates and of contraction(x) − x between them, newest first, (b, memory, d).
        best_image: contraction(x) at the last point that has not raised the norm of contraction(x) − x.
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
        """Only the samples where ``mask`` (b,) is true."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[mask])

    def banach_step(self, image: Tensor, f: Tensor) -> None:
        """x ← contraction(x), which is ``image``; ``f`` is image − x, flat."""
        self.old_x, self.old_f, self.best_image = self.x.flatten(1), f, image
        self.x = image

    def anderson_step(self, image: Tensor, f: Tensor, memory: int) -> None:
        """x ← the combination of past images with the least combined residual, where that has helped so far."""
        flat, has_history = self.x.flatten(1), self.changes.flatten(1).any(1)
        better = (f.norm(dim=1) < self.old_f.norm(dim=1)) | ~has_history  # a Banach step counts, whatever the norm
        steps = torch.cat((flat[:, None] - self.old_x[:, None], self.steps[:, : memory - 1]), 1)
        changes = torch.cat((f[:, None] - self.old_f[:, None], self.changes[:, : memory - 1]), 1)
        self.steps, self.changes = steps * better[:, None, None], changes * better[:, None, None]
        self.old_x, self.old_f = flat, f
        self.best_image = torch.where(expand_like(better, image), image, self.best_image)
        self.x = (self.best_image.flatten(1) - _correction(self.steps, self.changes, f)).reshape(self.x.shape)


def _correction(steps: Tensor, changes: Tensor, f: Tensor) -> Tensor:
    """Σ_i γ_i (steps_i + changes_i) with γ minimising ‖f − Σ_i γ_i changes_i‖ for each sample; 0 without history."""
    gram = double(changes @ changes.mT)
    ridge = 1e-10 * gram.diagonal(dim1=1, dim2=2).sum(1) + torch.finfo(f.dtype).tiny
    gram = gram + ridge[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    gamma = torch.linalg.solve(gram, double(changes @ f[:, :, None]))
    return (gamma.to(f) * (steps + changes)).sum(1)
