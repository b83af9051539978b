"""Fixed points of contractions, each sample with its own history, safeguard and stop."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from indm.tensors import expand_like


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
        contraction: (x (b, *event), rows (b,)) → (b, *event), where ``rows`` says which samples ``x`` are.
        x: starting points, (B, *event).
        tol: bound on max|contraction(x) − x| / scale.
        scale: (B,).
        memory: differences of iterates that are combined.
        patience: Banach's steps before that begins; an easy contraction needs no more of them.
        max_iterations: evaluations of the contraction for each sample.

    Returns:
        x, its residual and the number of evaluations, the last two (B,).

    Where a combination raises the residual's norm, that sample forgets its history and takes Banach's step from its
    best point: two evaluations make at least the progress of one Banach step.

    Source: Walker & Ni 2011, "Anderson Acceleration for Fixed-Point Iterations", https://doi.org/10.1137/10078356X.
    """
    solution, residual = x.clone(), torch.full_like(scale, math.inf)
    evaluations = torch.zeros(len(x), dtype=torch.long, device=x.device)
    rows = torch.arange(len(x), device=x.device)
    best_norm, best_image = residual.clone(), x
    old_x = old_f = torch.zeros_like(x.flatten(1))
    steps = old_x.new_zeros(len(x), 0, old_x.shape[1])  # differences of iterates, newest first
    changes = steps  # of contraction(x) − x between them
    for iteration in range(max_iterations):
        image = contraction(x, rows)
        f = (image - x).flatten(1)
        error = f.abs().amax(1) / scale[rows]
        active = error > tol  # a sample that is not a number never will be one
        if iteration + 1 == max_iterations or not bool(active.all()):
            solution[rows], residual[rows], evaluations[rows] = x, error, iteration + 1
            if not bool(active.any()):
                break
            rows, x, f, image, old_x, old_f, steps, changes, best_norm, best_image = (
                v[active] for v in (rows, x, f, image, old_x, old_f, steps, changes, best_norm, best_image)
            )
        norm = f.norm(dim=1)
        if iteration < patience:
            old_x, old_f, best_norm, best_image = x.flatten(1), f, norm, image
            x = image
            continue
        better = norm < best_norm
        steps = torch.cat((x.flatten(1)[:, None] - old_x[:, None], steps[:, : memory - 1]), 1)
        changes = torch.cat((f[:, None] - old_f[:, None], changes[:, : memory - 1]), 1)
        steps, changes = steps * better[:, None, None], changes * better[:, None, None]
        old_x, old_f = x.flatten(1), f
        best_norm = torch.where(better, norm, best_norm)
        best_image = torch.where(expand_like(better, image), image, best_image)
        x = (best_image.flatten(1) - _correction(steps, changes, f)).reshape(x.shape)
    return solution, residual, evaluations


def _correction(steps: Tensor, changes: Tensor, f: Tensor) -> Tensor:
    """Σ_i γ_i (steps_i + changes_i) with γ minimising ‖f − Σ_i γ_i changes_i‖, each sample apart; 0 without history."""
    gram = (changes @ changes.mT).double()
    ridge = 1e-10 * gram.diagonal(dim1=1, dim2=2).sum(1) + torch.finfo(f.dtype).tiny
    gram = gram + ridge[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=f.device)
    gamma = torch.linalg.solve(gram, (changes @ f[:, :, None]).double())
    return (gamma.to(f.dtype) * (steps + changes)).sum(1)
