r"""The missing entries of x given the others, by a trained model of p(x): moment-matching posterior
sampling (MMPS).

Let y = A z_0 be the latents of the observed entries. Tweedie's formulas give the moments of z_0
given z_t,

.. math:: D = E[z_0|z_t] = \frac{z_t + \sigma_t^2 s_\theta(z_t, t)}{\alpha_t}, \qquad
          V = \mathrm{Cov}[z_0|z_t] = \frac{\sigma_t^2}{\alpha_t} \frac{\partial D}{\partial z_t},

and p(z_0|z_t) ≈ N(D, V) gives the mean of z_0 given y, too:

.. math:: E[z_0|z_t, y] = D + V A^\top (A V A^\top)^{-1} (y - A D).

A sampler then takes the score of p(z_t|y) that belongs to this mean. For Gaussian latents it is
exact; else it becomes exact as t → 0. A product with V is one reverse pass of the network.

Source: Rozet et al. 2024, "Learning Diffusion Priors from Observations by Expectation
Maximization", §4.2, https://arxiv.org/abs/2405.13712.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from indm.checks import check_counts, require
from indm.dequantization import from_data
from indm.linearization import Operator, gmres
from indm.protocols import Model
from indm.sampling import Sampler, default_steps, make_sampler, prior_batches, solve_latent
from indm.score import denoise
from indm.sde.linear import LinearSDE
from indm.tensors import (
    Batch,
    PerSample,
    evaluation_mode,
    expand_like,
    outside_inference,
    with_parts,
)

# noise in each step corrects what the approximation did in earlier ones
INPAINTING_SAMPLER = "sde-dpm++2m"
# residual that is left, as a share of y − A D; most products with V
RESIDUAL_TOLERANCE, MOST_PRODUCTS = 0.03, 8


class ObservedScore(nn.Module):
    r"""∇log p(z_t|y) = (α_t E[z_0|z_t, y] − z_t)/σ_t², called like the ``score`` of p(z_t); ``y``
    is observed where it is not ``missing``.
    """

    def __init__(self, score: nn.Module, y: Batch, missing: Tensor):
        super().__init__()
        self.score, self.y, self.missing = score, y, missing

    @property
    def sde(self) -> LinearSDE:
        """The linear SDE on the latent."""
        return self.score.sde

    def forward(self, z_t: Batch, t: PerSample) -> Batch:
        alpha, sigma = (expand_like(v, z_t) for v in (self.sde.alpha(t), self.sde.sigma(t)))
        with torch.enable_grad():
            z_t = z_t.detach().requires_grad_()
            D = denoise(self.score, z_t, t)

        def V(u: Tensor) -> Tensor:
            return sigma**2 / alpha * torch.autograd.grad(D, z_t, u, retain_graph=True)[0]

        def A(z: Tensor) -> Tensor:
            return torch.where(self.missing, 0.0, z)

        def AVA(u: Tensor) -> Tensor:
            return A(V(u))

        gap = A(self.y - D.detach())
        solution = gmres(
            Operator(AVA, AVA), gap, RESIDUAL_TOLERANCE * gap.flatten(1).norm(dim=1), MOST_PRODUCTS
        )
        return ((alpha * (D + V(solution)) - z_t) / sigma**2).detach()


@outside_inference
def inpaint(
    model: Model,
    observed: Shaped[Tensor, "..."],
    mask: Bool[Tensor, "..."],
    n: int,
    *,
    c: Any = None,
    guidance: float = 1.0,
    sampler: str | type[Sampler] | Sampler = INPAINTING_SAMPLER,
    steps: int | None = None,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Shaped[Tensor, "n *event"]:
    """Draw the missing entries of data given the others, by a model that was trained without
    missing ones.

    The flow must be one of each entry by itself, as that of images is by default, or the identity.
    Grey levels get the noise of the model, anew in each draw.

    Args:
        model: an INDM.
        observed: data in data units: an event, or (n, *event).
        mask: True where an entry is missing; it is broadcast against ``observed``.
        n: how many draws.
        c, guidance: as of :func:`indm.sample`.
        sampler: one with fixed steps; those without noise (``stochastic``) gave worse draws of
            digits.
        steps: time steps, each with up to 10 passes of the network; default: as of
            :func:`indm.sample`.
        batch_size: draws at a time.

    Returns:
        Data in data units, (n, *event), with the observed entries as they were.

    Raises:
        ValueError: a flow that mixes entries, data or a mask of another shape, observed values that
            are not finite or no grey levels, or a sampler that chooses its own steps.

    Source: see :mod:`indm.inpainting`.

    Example: the right half of an image, whose model here is N(0, I).

        >>> import indm
        >>> model = indm.build_model({"flow": "identity", "sde": "vp", "net": "zero"}, (1, 4, 4))
        >>> image, mask = torch.ones(1, 4, 4), torch.tensor([False, False, True, True])
        >>> draws = inpaint(model, image, mask, n=3)
        >>> draws.shape, bool((draws[..., :2] == 1).all()), bool((draws[..., 2:] == 1).any())
        (torch.Size([3, 1, 4, 4]), True, False)
    """
    steps = default_steps(model) if steps is None else steps
    check_counts(n=n, steps=steps)
    name = type(model.flow).__name__
    require(
        model.flow.is_elementwise,
        "flow",
        name,
        "one of each entry by itself",
        "elementwise and identity are",
    )
    sampler = make_sampler(sampler)
    require(
        not sampler.adaptive,
        "sampler",
        sampler,
        "one with fixed steps",
        f"{INPAINTING_SAMPLER!r} is the default",
    )
    raw, missing = _rows(observed, model, n), _rows(mask, model, n)
    raw = torch.where(missing, 0, raw)
    levels = model.scaling.levels
    if levels is not None and (
        raw.is_floating_point() or not 0 <= int(raw.min()) <= int(raw.max()) < levels
    ):
        raise ValueError(
            f"observed must be integers from 0 to {levels - 1}, got {raw.dtype} up to {raw.max()}"
        )
    largest = raw.abs().max().item()
    require(
        math.isfinite(largest),
        "observed",
        largest,
        "finite where mask is False",
        "mask such entries",
    )
    parts = []
    with evaluation_mode(model):
        batches = prior_batches(model, n, c, batch_size, generator, progress, guidance=guidance)
        for (part, z_T), rows in zip(batches, torch.arange(n).split(batch_size), strict=True):
            y = part.flow.latent(from_data(part, raw[rows], generator=generator)[0])
            given = with_parts(part, {"score": ObservedScore(part.score, y, missing[rows])})
            z, _ = solve_latent(given, z_T, sampler, steps, generator=generator, progress=progress)
            parts.append(
                torch.where(missing[rows], model.scaling.to_data(part.decode(z)), raw[rows])
            )
    return torch.cat(parts)


def _rows(given: Any, model: Any, n: int) -> Tensor:
    """An event for each of ``n`` draws."""
    return torch.as_tensor(given, device=model.scaling.scale.device).expand(n, *model.shape)
