"""Linear maps by their products: h linearised at x, its second derivatives, and a solver for
[∂h/∂x] y = v.

No Jacobian is formed, so a product costs as much as a gradient of h.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from indm.flows.base import Flow
from indm.tensors import Batch, PerSample

Map = Callable[[Tensor], Tensor]

KRYLOV_DIRECTIONS = 256  # directions that the Krylov solver keeps
CYCLES = 4  # cycles of KRYLOV_DIRECTIONS directions each, before it gives up


@dataclass(frozen=True)
class Operator:
    """A linear map of each sample by its products: ``A @ v`` and ``A.mT @ u``, all (B, *event)."""

    product: Map
    transposed: Map

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.product(v.detach())

    @property
    def mT(self) -> "Operator":
        """The transpose."""
        return Operator(self.transposed, self.product)


def linearize(h: Map, x: Batch) -> tuple[Batch, Operator]:
    """h(x) and ∂h(x)/∂x, from one evaluation of h.

    u ↦ Aᵀu is linear, and its own reverse pass is v ↦ A v: both products go through one graph.
    """
    # the fused attentions cannot be differentiated twice
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        x = x.detach().requires_grad_()
        z = h(x)
        u = torch.zeros_like(z, requires_grad=True)
        (pulled,) = torch.autograd.grad(z, x, u, create_graph=True)
    return z.detach(), Operator(
        lambda v: torch.autograd.grad(pulled, u, v, retain_graph=True)[0],
        lambda v: torch.autograd.grad(z, x, v, retain_graph=True)[0],
    )


class _LayerNormFromParts(TorchFunctionMode):
    """torch's own has a wrong second derivative in forward mode,
    https://github.com/pytorch/pytorch/issues/196700.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (_layer_norm if func is F.layer_norm else func)(*args, **(kwargs or {}))


def _layer_norm(x: Tensor, normalized_shape, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt() * weight + bias


def second_derivative(h: Map, x: Batch, v: Batch) -> Batch:
    """D²h(x)[v, v], by forward mode over forward mode."""
    # Without gradients torch takes a fused slope of SiLU, which it cannot differentiate.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _LayerNormFromParts():
        return torch.func.jvp(lambda x: torch.func.jvp(h, (x,), (v,))[1], (x,), (v,))[1].detach()


def solve(A: Operator, b: Batch, tol: float, guess: Operator | None = None) -> Batch:
    """y with ‖A y − b‖ ≤ ``tol`` ‖b‖ in every sample, by GMRES from y = ``guess`` @ b (or 0);
    RuntimeError names others.
    """
    y = torch.zeros_like(b) if guess is None else guess @ b
    scale = b.flatten(1).norm(dim=1)
    for cycle in range(CYCLES + 1):
        r = b - A @ y
        residual = r.flatten(1).norm(dim=1)
        converged = residual <= tol * scale
        if bool(converged.all()):
            return y
        if cycle < CYCLES:
            y = y + gmres(A, r, tol * scale)
    failed = (~converged).nonzero().flatten()
    shown = ", ".join(str(i) for i in failed[:10].tolist()) + (", …" if len(failed) > 10 else "")
    raise RuntimeError(
        f"J = [∂h/∂x]⁻¹ did not reach tol={tol:g} for {len(failed)} of {len(b)} samples (indices {shown}; largest "
        f"relative residual {(residual / scale)[failed].max().item():.2g}); allow a larger tol or compute in float64"
    )


def gmres(A: Operator, r: Batch, goal: PerSample, most: int = KRYLOV_DIRECTIONS) -> Batch:
    """y that minimises ‖A y − r‖ over a growing Krylov space, each sample up to its ``goal``, by
    ``most`` products at most.

    The images q of the directions p are kept orthonormal, so that a step is one projection. The
    next direction is the residual where that has just fallen, else the last image.

    Source: Jiránek & Rozložník 2010, "Adaptive version of Simpler GMRES",
    https://doi.org/10.1007/s11075-009-9311-3.
    """
    shape, r = r.shape, r.flatten(1)
    memory, tiny = min(r.shape[1], most), torch.finfo(r.dtype).tiny
    P, Q = (r.new_empty(len(r), memory, r.shape[1]) for _ in range(2))
    y, direction, norm = torch.zeros_like(r), r, r.norm(dim=1, keepdim=True)
    for k in range(memory):
        active = norm > goal[:, None]  # a sample that is not a number never will be one
        if not bool(active.any()):
            break
        p = direction / direction.norm(dim=1, keepdim=True).clamp_min(tiny)
        q = (A @ p.reshape(shape)).flatten(1)
        for _ in range(2):  # once more, against rounding
            along = torch.einsum("bkd,bd->bk", Q[:, :k], q)
            p, q = (v - torch.einsum("bk,bkd->bd", along, V[:, :k]) for v, V in ((p, P), (q, Q)))
        length = q.norm(dim=1, keepdim=True).clamp_min(tiny)
        P[:, k], Q[:, k] = p / length, q / length
        step = active * (Q[:, k] * r).sum(1, keepdim=True)
        y, r = y + step * P[:, k], r - step * Q[:, k]
        before, norm = norm, r.norm(dim=1, keepdim=True)
        direction = torch.where(norm <= 0.9 * before, r, Q[:, k])
    return y.reshape(shape)


def inverse_linearization(flow: Flow, z: Batch) -> Operator | None:
    """∂h⁻¹(z)/∂z where the inverse is a formula, which autograd can differentiate; else None."""
    if not flow.inverse_is_formula:
        return None
    return linearize(lambda z: flow.solve_inverse(z)[0], z)[1]
