"""What several tests do with flows: move their parameters, and form their Jacobian."""

import math

import torch
from torch import nn

from indm.flows import InvertibleLinear


def perturb(flow, scale=0.4):
    """Random parameters: far from the identity, with every constraint of a residual flow active.

    The weights of free networks move by what keeps their outputs of the order of one.
    """
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in flow.modules():
            free = isinstance(module, nn.Linear | nn.Conv2d | InvertibleLinear)
            for parameter in module.parameters(recurse=False):
                fan_in = 9 * parameter[0].numel() if free and parameter.ndim > 1 else 1
                parameter.add_(
                    scale / math.sqrt(fan_in) * torch.randn(parameter.shape, generator=generator)
                )
    return flow


def batched_jacobian(flow, x):
    """∂h(x)/∂x of each sample, by reverse-mode autograd: (B, d, d)."""
    x = x.clone().requires_grad_()
    z = flow(x)[0].flatten(1)
    d = z.shape[1]
    rows = torch.eye(d, dtype=x.dtype)[:, None, :].expand(d, len(x), d)
    (jacobian,) = torch.autograd.grad(z, x, rows, is_grads_batched=True)
    return jacobian.flatten(2).transpose(0, 1)


def slopes(loss, parameters, direction, step=1e-6):
    """The slope of ``loss()`` along a direction of its parameters, by autograd and by a central
    difference.

    The step is small as splines have no second derivative at their knots.
    """
    gradients = torch.autograd.grad(loss(), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)).item()

    @torch.no_grad()
    def moved(step):
        for p, d in zip(parameters, direction, strict=True):
            p.add_(d, alpha=step)
        value = loss().item()
        for p, d in zip(parameters, direction, strict=True):
            p.sub_(d, alpha=step)
        return value

    return slope, (moved(step) - moved(-step)) / (2 * step)
