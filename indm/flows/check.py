"""The Jacobian of a flow, and whether its log-determinant and its inverse are right."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor

from indm.flows.base import TOLERANCE, Flow, magnitude
from indm.tensors import Batch, double, evaluation_mode, float64_device

LARGEST = 1024  # dimensions up to which the Jacobian is formed
PERTURBATION = 0.1  # of the parameters: at its start a flow may be the identity, whose log|det| anyone gets right
PRECISION = 1e-6  # of log|det| in double precision, relative to the sum of the absolute logs of the singular values


def check_flow(flow: Flow, x: Batch, *, seed: int = 0) -> None:
    """Compare log|det ∂h/∂x| with the Jacobian by autograd, and h⁻¹(h(x)) with x, in double precision.

    The flow is looked at in evaluation mode, as it is and with its parameters moved at random; it is left as it was.
    A log-determinant that differs from call to call is an estimate and is not compared, and neither is one of more
    than 1024 dimensions.

    Args:
        flow: any :class:`~indm.flows.Flow`.
        x: examples in model units, (B, *event); two are enough.
        seed: of the random moves.

    Raises:
        ValueError: the log-determinant or the inverse is wrong; it says by how much.

    Example:

        >>> from indm.flows import CouplingFlow
        >>> check_flow(CouplingFlow((3,)), torch.randn(2, 3))
    """
    twin, x = copy.deepcopy(flow).to(float64_device(x.device), torch.float64), double(x)
    with evaluation_mode(twin), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _check(twin, x)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(PERTURBATION * torch.randn_like(parameter))
        _check(twin, x)


def _check(flow: Flow, x: Tensor) -> None:
    name = type(flow).__name__
    z, log_det = flow(x)
    if x[0].numel() <= LARGEST and torch.equal(flow(x)[1], log_det):
        logs = singular_values(flow, x).log()
        error = (log_det - logs.sum(1)).abs()
        worst = int(error.argmax())
        if not bool((error <= PRECISION * (1 + logs.abs().sum(1))).all()):
            raise ValueError(
                f"flow {name} gives log|det ∂z/∂x| = {log_det[worst] + 0.0:.6g} nats where its Jacobian has "
                f"{logs[worst].sum():.6g}; log_det is the sum of the logs of what it scales by, one number a sample"
            )
    again, _, _, converged = flow.solve_inverse(z, tol=TOLERANCE)
    missed = (flow.latent(again) - z).flatten(1).abs().amax(1) / magnitude(z)
    if not bool((missed[converged] <= TOLERANCE).all()) or not bool(converged.all()):
        raise ValueError(f"flow {name} does not invert itself: h(h⁻¹(z)) is off from z by {missed.max():.2g}")


def singular_values(flow: Flow, x: Batch) -> Float[Tensor, "batch d"]:
    """Singular values of ∂h/∂x at each sample, falling. 1 everywhere is an isometry; the product is |det ∂h/∂x|.

    Raises:
        ValueError: above 1024 dimensions.
    """
    if x[0].numel() > LARGEST:
        raise ValueError(f"x must have at most {LARGEST} dimensions for a dense Jacobian, got {x[0].numel()}")
    return torch.linalg.svdvals(torch.stack([_jacobian(flow, sample) for sample in x]))


def _jacobian(flow: Flow, sample: Tensor) -> Float[Tensor, "d d"]:
    d = sample.numel()
    with torch.enable_grad():
        x = sample[None].detach().requires_grad_()
        rows = torch.eye(d, dtype=x.dtype, device=x.device)[:, None]
        (jacobian,) = torch.autograd.grad(flow.latent(x).flatten(1), x, rows, is_grads_batched=True)
    return jacobian.reshape(d, d)
