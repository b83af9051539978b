"""Random flows of every kind under the exact score of Gaussian latents."""

import torch
from closed_form import gaussian
from flow_tools import perturb

from indm.flows import ActNorm, Compose, CouplingFlow, Identity, InvertibleLinear, ResidualFlow
from indm.model import INDM

FLOWS = {
    "identity": (Identity, (3,)),
    "actnorm": (lambda: ActNorm(3), (3,)),
    "linear": (lambda: InvertibleLinear(3, "rotation"), (3,)),
    "affine": (lambda: CouplingFlow((3,), depth=2, width=8, transform="affine"), (3,)),
    "spline": (lambda: CouplingFlow((3,), depth=2, width=8), (3,)),
    "spline-images": (lambda: CouplingFlow((1, 4, 4), scales=2, depth=1, width=8), (1, 4, 4)),
    "residual": (lambda: ResidualFlow((3,), (2,), 16, 2.0), (3,)),
    "residual-images": (lambda: ResidualFlow((1, 4, 4), (1, 1), 8, 2.0), (1, 4, 4)),
    "composed": (
        lambda: Compose(
            [
                ActNorm(3),
                ResidualFlow((3,), (1,), 8),
                CouplingFlow((3,), depth=1, transform="affine"),
            ]
        ),
        (3,),
    ),
}


def make(name, sde="vp"):
    """A random flow in float64 under the exact score of Gaussian latents, and three points at times
    of their own.
    """
    build, shape = FLOWS[name]
    torch.manual_seed(3)
    flow = perturb(build()).double().eval()
    model = INDM(flow, gaussian(sde, shape), shape=shape)
    x = 0.7 * torch.randn(3, *shape, dtype=torch.float64)
    return model, x, torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64)


def close(actual, expected, rtol=1e-8, atol=1e-8):
    torch.testing.assert_close(
        actual.detach(), expected.detach().reshape(actual.shape), rtol=rtol, atol=atol
    )
