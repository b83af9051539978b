"""What else may be asked of a flow: to stay near an isometry, and to carry the prior to a chosen law of x_T.

The nonlinear diffusion x_t = h⁻¹(z_t) ends at x_T ~ h⁻¹#π. With an h that is everywhere an isometry it is a linear
diffusion up to a rigid motion; how far from one h may go is the strength of the nonlinearity.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from indm.flows import Flow
from indm.rng import for_rows, randn_like
from indm.sde.linear import LinearSDE
from indm.tensors import squared_norm

Batch = Float[Tensor, "batch *event"]
PerSample = Float[Tensor, " batch"]


def isometry_defect(flow: Flow, x: Batch, *, generator: torch.Generator | None = None) -> PerSample:
    """(log ‖J v‖²/‖v‖²)² with J = ∂h/∂x and one Gaussian v for each sample, (B,).

    0 for every v where and only where h keeps lengths; 1 where it changes them by a factor √e ≈ 1.65.
    """
    v = randn_like(x, generator)
    with torch.autocast(x.device.type, enabled=False):
        _, moved = torch.func.jvp(flow.latent, (x,), (v,))
    return (squared_norm(moved) / squared_norm(v)).log().square()


def terminal_nll(flow: Flow, sde: LinearSDE, x: Batch, *, generator: torch.Generator | None = None) -> PerSample:
    """−log density at ``x`` of x_T ~ h⁻¹#π in nats, (B,): its mean over a law is least where x_T has that law."""
    z, log_det = flow(x, generator=generator)
    return -sde.prior_log_prob(z) - log_det


def normal_law(x: Batch) -> Callable[[int], Batch]:
    """A sampler of the Gaussian with the mean and the covariance of the data ``x`` (n, *event)."""
    flat = x.flatten(1)
    mean, centred = flat.mean(0), flat - flat.mean(0)
    variance, basis = torch.linalg.eigh(centred.T @ centred / len(flat))
    factor = basis * variance.clamp_min(1e-6).sqrt()

    def draw(n: int) -> Tensor:
        noise = for_rows(n, lambda n: torch.randn(n, len(mean), dtype=x.dtype, device=x.device))
        return (mean + noise @ factor.T).reshape(n, *x.shape[1:])

    return draw
