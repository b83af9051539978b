r"""Inpainting: the missing entries of x given the observed ones, by a trained model of p(x).

The method is moment-matching posterior sampling (MMPS).

Let y = A z_0 be the latents of the observed entries. Tweedie's formulas give the moments of z_0
given z_t,

.. math:: D = E[z_0|z_t] = \frac{z_t + \sigma_t^2 s_\theta(z_t, t)}{\alpha_t}, \qquad
          V = \mathrm{Cov}[z_0|z_t] = \frac{\sigma_t^2}{\alpha_t} \frac{\partial D}{\partial z_t},

and p(z_0|z_t) ≈ N(D, V) gives the mean of z_0 given y, too:

.. math:: E[z_0|z_t, y] = D + V A^\top (A V A^\top)^{-1} (y - A D).

The score of p(z_t|y) follows from this mean, and a sampler uses it. It is exact for Gaussian
latents, and becomes exact for others as t → 0. A product with V is one reverse pass of the network.

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
# the residual of the solution, as a fraction of y − A D; most products with V
RESIDUAL_TOLERANCE, MOST_PRODUCTS = 0.03, 8


class ObservedScore(nn.Module):
    r"""∇log p(z_t|y) = (α_t E[z_0|z_t, y] − z_t)/σ_t², called like the ``score`` of p(z_t).

    Entries of ``y`` are observed where ``missing`` is False.
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
    """Draw missing entries of data given the observed ones, by a model of complete data.

    The flow must be elementwise, like the default one of images, or the identity. Each draw adds
    new dequantization noise to observed grey levels.

    Args:
        model: an INDM.
        observed: data in data units: an event, or (n, *event).
        mask: True where an entry is missing; it is broadcast to the draws.
        n: how many draws.
        c, guidance: see :func:`indm.sample`.
        sampler: those without noise (``stochastic``) gave worse digits, and "ode" is slow.
        steps: time steps, each with up to 10 passes of the network; default: as in
            :func:`indm.sample`.
        batch_size: draws at a time.

    Returns:
        Data in data units, (n, *event), with the observed entries as they were.

    Raises:
        ValueError: a flow that mixes entries, or observed values that are not finite or no grey
            levels.

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
    require(model.flow.is_elementwise, "flow", type(model.flow).__name__, "elementwise or identity")
    sampler = make_sampler(sampler)
    raw, missing = _rows(model, observed, mask, n)
    draws = []
    with evaluation_mode(model):
        batches = prior_batches(model, n, c, batch_size, generator, progress, guidance=guidance)
        for (part, z_T), rows in zip(batches, torch.arange(n).split(batch_size), strict=True):
            y = part.flow.latent(from_data(part, raw[rows], generator=generator)[0])
            given = with_parts(part, {"score": ObservedScore(part.score, y, missing[rows])})
            z, _ = solve_latent(given, z_T, sampler, steps, generator=generator, progress=progress)
            drawn = model.scaling.to_data(part.decode(z))
            draws.append(torch.where(missing[rows], drawn, raw[rows]))
    return torch.cat(draws)


def _rows(model: Any, observed: Any, mask: Any, n: int) -> tuple[Tensor, Tensor]:
    """The data of each draw, 0 where missing, and where they are missing; both (n, *event)."""
    device, shape = model.scaling.scale.device, (n, *model.shape)
    missing = torch.as_tensor(mask, device=device).expand(shape)
    raw = torch.where(missing, 0, torch.as_tensor(observed, device=device).expand(shape))
    largest, levels = raw.abs().max().item(), model.scaling.levels
    require(math.isfinite(largest), "observed", largest, "finite where mask is False")
    if levels is not None:
        is_grey = not raw.is_floating_point() and int(raw.min()) >= 0 and largest < levels
        got = f"{raw.dtype} from {raw.min()} to {raw.max()}"
        require(is_grey, "observed", got, f"integers from 0 to {levels - 1}")
    return raw, missing
