"""A straightforward version of what public code does: the yardstick of ``bench/performance.py``,
not product code.

Everything here works on an ordinary :class:`indm.INDM`, so that both sides of a ratio have the same
weights.
"""

import math

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from indm.flows import ResidualBlock
from indm.flows.base import magnitude
from indm.objective import constant_term, denoising_error, prior_term, reconstruction_term
from indm.objective import reconstruction as reconstruction_of
from indm.ode import rademacher
from indm.score import denoise
from indm.tensors import event_size, expand_like, squared_norm

# ── training ──────────────────────────────────────────────────────────────────────────────────────


def residual(block: ResidualBlock, x: Tensor) -> Tensor:
    """g(x), the constraint imposed anew."""
    return block.latent(x) - x


def plain_flow(flow, x: Tensor) -> tuple[Tensor, Tensor]:
    """h(x) and its log-determinant by autograd: 2 + Poisson(2) vector–Jacobian products for every
    block.
    """
    log_det = x.new_zeros(len(x))
    for part in getattr(flow, "flows", [flow]):
        if isinstance(part, ResidualBlock):
            x = x if x.requires_grad else x.detach().requires_grad_()
            g = residual(part, x)
            log_det = log_det + _autograd_log_det(g, x)
            x = x + g
        else:
            x, step = part(x)
            log_det = log_det + step
    return x, log_det


def _autograd_log_det(g: Tensor, x: Tensor) -> Tensor:
    """Residual Flows, eq. 8: the Neumann series by repeated products, the last of them with a
    graph.
    """
    v = torch.randn_like(x)
    terms = 2 + int(torch.poisson(torch.tensor(2.0)))
    survival = 1.0 - np.cumsum(
        [0.0] + [math.exp(-2.0) * 2.0**k / math.factorial(k) for k in range(terms)]
    )
    power = neumann = v
    for k in range(1, terms + 1):
        (power,) = torch.autograd.grad(g, x, power, retain_graph=True)
        neumann = neumann + (-1) ** k / (1.0 if k <= 2 else survival[k - 2]) * power
    (product,) = torch.autograd.grad(g, x, neumann, create_graph=True)
    return (product * v).flatten(1).sum(1)


def plain_linear_loss(model, x: Tensor) -> Tensor:
    """The likelihood-weighted denoising loss of a linear diffusion, one pass of the score."""
    return _score_term(model.score, x).mean() / event_size(x)


def _score_term(score, z: Tensor) -> Tensor:
    t, weight = score.sde.sample_time(len(z), importance=True)
    rate = (score.sde.diffusion(t) / score.sde.sigma(t)) ** 2
    return weight * rate * denoising_error(score, z, t, torch.randn_like(z))


def plain_mle_loss(model, x: Tensor) -> Tensor:
    """The NELBO by separate passes of the score: one at the drawn times, one at ε for the
    reconstruction.
    """
    z, log_det = plain_flow(model.flow, x)
    return _likelihood(model, z, log_det) / event_size(x)


def plain_fid_loss(model, x: Tensor) -> Tensor:
    """The NELBO for the flow, and one more pass at uniform times, with z as a constant, for the
    score.
    """
    z, log_det = plain_flow(model.flow, x)
    for p in model.score.parameters():
        p.requires_grad_(False)
    bound = _likelihood(model, z, log_det)
    for p in model.score.parameters():
        p.requires_grad_(True)
    t = _uniform_times(model.score.sde, z)
    return (
        bound + denoising_error(model.score, z.detach(), t, torch.randn_like(z)).mean()
    ) / event_size(x)


def _uniform_times(sde, z: Tensor) -> Tensor:
    return sde.eps + (sde.T - sde.eps) * torch.rand(len(z), device=z.device)


def _likelihood(model, z: Tensor, log_det: Tensor) -> Tensor:
    sde = model.score.sde
    score = _score_term(model.score, z)
    reconstruction = reconstruction_term(model.score, z, torch.randn_like(z))
    return (score + reconstruction + prior_term(sde, z) + constant_term(sde, z) - log_det).mean()


class PlainAdamW:
    """Adam with decoupled weight decay, gradient clipping and an average of the weights, parameter
    by parameter.
    """

    def __init__(
        self,
        parameters,
        lr: float = 1e-3,
        betas=(0.9, 0.99),
        weight_decay: float = 0.01,
        ema: float = 0.999,
    ):
        self.parameters = [p for p in parameters if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=lr,
            betas=betas,
            weight_decay=weight_decay,
            foreach=False,
            fused=False,
        )
        self.shadow, self.ema = [p.detach().clone() for p in self.parameters], ema

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=False)
        self.optimizer.step()
        with torch.no_grad():
            for s, p in zip(self.shadow, self.parameters, strict=True):
                s.sub_((1.0 - self.ema) * (s - p))


# ── likelihood ────────────────────────────────────────────────────────────────────────────────────


def _drift(score, y: Tensor, t: Tensor) -> Tensor:
    """f y − ½ g² s, the probability flow over t."""
    sde = score.sde
    return expand_like(sde.drift(t), y) * y - 0.5 * expand_like(sde.diffusion(t), y) ** 2 * score(
        y, t
    )


def plain_log_prob(
    model, x: Tensor, *, noise: Tensor, probe: Tensor, tol: float = 1e-5
) -> tuple[Tensor, int]:
    """SciPy's RK45 over t, the whole batch one system; drift and divergence evaluated apart.

    Args:
        noise: of z_ε.
        probe: Rademacher vector of the divergence.

    Returns:
        log p (B,) with the reconstruction term, and the evaluations of the field.
    """
    sde, score, shape = model.score.sde, model.score, x.shape
    with torch.no_grad():
        z, log_det = model.encode(x)
        eps, _ = sde.endpoints(z)
        reconstruction = reconstruction_of(model, z, noise)
        start = sde.perturb(z, eps, noise)

    def field(t: float, state: np.ndarray) -> np.ndarray:
        y = torch.from_numpy(state[: x.numel()].reshape(shape)).to(x)
        times = y.new_full((len(y),), t)
        with torch.no_grad():
            velocity = _drift(score, y, times)
        with torch.enable_grad():
            y = y.requires_grad_()
            (product,) = torch.autograd.grad((_drift(score, y, times) * probe).sum(), y)
        return np.concatenate(
            (velocity.cpu().numpy().ravel(), (product * probe).flatten(1).sum(1).cpu().numpy())
        )

    begin = np.concatenate((start.cpu().numpy().ravel(), np.zeros(len(x))))
    solution = solve_ivp(field, (sde.eps, sde.T), begin, method="RK45", rtol=tol, atol=tol)
    end = torch.from_numpy(solution.y[:, -1]).to(x)
    z_T, integral = end[: x.numel()].reshape(shape), end[x.numel() :]
    return log_det + sde.prior_log_prob(z_T) + integral - reconstruction, solution.nfev


def plain_nelbo(model, x: Tensor) -> Tensor:
    """The bound by implicit score matching, (B,): for each sample one time, uniform in log-SNR, and
    one probe.
    """
    sde, score = model.score.sde, model.score
    with torch.no_grad():
        z, log_det = model.encode(x)
        start, end = sde.clock_span()
        t = sde.time(-(start + (end - start) * torch.rand(len(z), device=z.device)))
        z_t = sde.perturb(z, t, torch.randn_like(z))
        reconstruction = reconstruction_term(score, z, torch.randn_like(z))
    probe = rademacher(z, 1)[:, 0]
    with torch.enable_grad():
        z_t = z_t.requires_grad_()
        s = score(z_t, t)
        (product,) = torch.autograd.grad((s * probe).sum(), z_t)
    divergence, s = (product * probe).flatten(1).sum(1), s.detach()
    integrand = sde.diffusion(t) ** 2 * (0.5 * squared_norm(s) + divergence) - event_size(
        z
    ) * sde.drift(t)
    weight = sde.log_snr_range() * (sde.sigma(t) / sde.diffusion(t)) ** 2
    return -log_det + weight * integrand + prior_term(sde, z) + reconstruction


# ── sampling ──────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def plain_ode_sample(model, z: Tensor, tol: float = 1e-5) -> tuple[Tensor, int]:
    """SciPy's RK45 over t from T to ε, one last denoising step, and the flow's inverse by plain
    fixed points.
    """
    sde, score, shape = model.score.sde, model.score, z.shape

    def field(t: float, state: np.ndarray) -> np.ndarray:
        y = torch.from_numpy(state.reshape(shape)).to(z)
        return _drift(score, y, y.new_full((len(y),), t)).cpu().numpy().ravel()

    solution = solve_ivp(
        field, (sde.T, sde.eps), z.cpu().numpy().ravel(), method="RK45", rtol=tol, atol=tol
    )
    z_eps = torch.from_numpy(solution.y[:, -1].reshape(shape)).to(z)
    eps, _ = sde.endpoints(z)
    return plain_inverse(model.flow, denoise(score, z_eps, eps))[0], solution.nfev


@torch.no_grad()
def plain_inverse(flow, z: Tensor, tol: float = 1e-5) -> tuple[Tensor, int]:
    """Block by block x ← z − g(x), the whole batch until its worst entry moves by at most ``tol``
    max(1, max|z|).
    """
    evaluations = 0
    for part in reversed(getattr(flow, "flows", [flow])):
        if not isinstance(part, ResidualBlock):
            z = part.inverse(z)
            continue
        x, scale = z, magnitude(z)
        for _ in range(1000):
            new = z - residual(part, x)
            change = ((new - x).flatten(1).abs().amax(1) / scale).max()
            x, evaluations = new, evaluations + 1
            if change <= tol:
                break
        z = x
    return z, evaluations
