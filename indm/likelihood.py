"""Likelihoods with error bars: the NLL of the probability-flow ODE and the NELBO, in nats and in bits per dimension.

The NELBO bounds the likelihood of the generative *SDE*; the ODE has a likelihood of its own. They agree at the exact
score; off it their difference can have either sign and is not a variational gap.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from indm.conditions import sees_condition
from indm.density import NLL_ERROR, START, check_solver, whitened_flow
from indm.dequantization import Uniform, from_data
from indm.gaussian import GaussianReference
from indm.model import all_rows, at, at_rows
from indm.objective import reconstruction_term
from indm.rng import randn_like
from indm.tensors import double, evaluation_mode, event_size, widest


@dataclass(frozen=True)
class LikelihoodReport:
    """Log-likelihoods of a batch, in nats of model units.

    Attributes:
        log_prob: (B,), with the reconstruction term: an estimate of a lower bound of log p(x).
        reconstruction: (B,), that term; ``log_prob + reconstruction`` is the number without it, no likelihood of x.
        log_q: (B,), log q(x|raw), see :func:`indm.dequantization.from_data`: −log_prob + log_q is of the raw data.
        solver_error: (B,), an estimate of the ODE solver's error of ``log_prob``, nats, which is not a bound
            (``docs/likelihood.md`` says how often it covers the true error).
        nfe: evaluations of the network, the mean over samples (each has its own steps) rounded up.
        settings: ε, the steps or the error that was asked for, divergence.
        dims: dimensions of one event.
        levels: grey levels of the data; None of continuous data, whose table has no bits/dim.

    Example: two samples of two dimensions, with 2 and 4 bits.

        >>> nats, none = math.log(2) * torch.tensor([2.0, 4.0], dtype=torch.float64), torch.zeros(2)
        >>> report = LikelihoodReport(-nats, none, none, none, nfe=20, settings={}, dims=2)
        >>> f"{report.bits_per_dim():.3f} ± {report.standard_error():.3f} bits/dim"
        '1.500 ± 0.500 bits/dim'
    """

    log_prob: Float[Tensor, " batch"]
    reconstruction: Float[Tensor, " batch"]
    log_q: Float[Tensor, " batch"]
    solver_error: Float[Tensor, " batch"]
    nfe: int
    settings: dict
    dims: int
    levels: int | None = None

    def nats(self) -> Float[Tensor, " batch"]:
        """−log p of the raw data, nats per sample."""
        return self.log_q - self.log_prob

    def bits_per_dim(self) -> float:
        """Mean over the batch of −log₂ p of the raw data, per dimension."""
        return self.nats().mean().item() / (self.dims * math.log(2))

    def standard_error(self) -> float:
        """Standard error over the batch of :meth:`bits_per_dim`."""
        if len(self.log_prob) < 2:
            raise ValueError("standard_error needs at least 2 samples, got 1")
        return (self.nats().std() / math.sqrt(len(self.log_prob))).item() / (self.dims * math.log(2))

    def __str__(self) -> str:
        """The mean of −log p over the batch with its standard error, as a small table."""
        n = len(self.log_prob)
        units = {"nats": 1.0} | ({"bits/dim": self.dims * math.log(2)} if self.levels else {})
        lines = [" " * 24 + "".join(f"{unit:>12}{'±':>10}" for unit in units)]
        rows = {"-log p": self.nats(), "without reconstruction": self.nats() - self.reconstruction}
        for name, nats in rows.items():
            mean, error = nats.mean().item(), nats.std().item() / math.sqrt(n) if n > 1 else math.nan
            lines.append(f"{name:24}" + "".join(f"{mean / u:12.4f}{error / u:10.4f}" for u in units.values()))
        error = self.solver_error.mean().item()
        in_bits = f", {error / units['bits/dim']:.1g} bits/dim" if self.levels else ""
        lines.append(f"{n} samples of {self.dims} dimensions, {self.nfe} evaluations of the network")
        return "\n".join([*lines, f"error of the ODE solver, estimated: {error:.1g} nats{in_bits}"])


def log_likelihood(
    model,
    x: Float[Tensor, "batch *event"],
    *,
    c: Any = None,
    probes: int = 1,
    exact: bool | None = None,
    nll_error: float = NLL_ERROR,
    steps: int | None = None,
    eps: float | None = None,
    reference: GaussianReference | None = None,
    log_q: Float[Tensor, " batch"] | None = None,
    generator: torch.Generator | None = None,
) -> LikelihoodReport:
    r"""log p(x) by the probability-flow ODE on the latent, from one draw of z_ε for each sample.

    .. math:: \log|\det \partial h/\partial x| + \log\pi(z_T) + \int_\epsilon^T \nabla\cdot(fz-\tfrac12 g^2 s)\,dt
              - \log q(z_\epsilon|z_0) + \log p(z_0|z_\epsilon)

    The ODE is solved over the clock −log SNR in equal steps, in the coordinate in which a Gaussian law of the latents
    is at rest (:class:`indm.gaussian.GaussianReference`). Of the divergence only its difference from that of the law is
    estimated, with the same probes. For latents of that law and their exact score nothing is left to solve.

    Args:
        model: an INDM.
        x: data in model units.
        c: the condition, of a model that has one, see :meth:`indm.INDM.given`: log p(x|c).
        probes: Rademacher probes for the divergence, the same all along the path.
        exact: compute the exact divergence, by d products in place of ``probes``; default: where that is cheaper
            (d ≤ ``probes``), in two dimensions, and for vectors of up to 16, of which a probe leaves nats of noise.
        nll_error: largest estimate of the solver's error of a sample, bits per dimension. A sample with a larger one is
            solved again in twice as many steps, up to 256; what is above it then says so in ``solver_error``.
        steps: this many steps instead (8 or more), whatever their error.
        eps: truncation, at least the SDE's own, which is the default.
        reference: the Gaussian law; default N(0, I). That of the data's latents takes fewer steps and leaves less noise
            (:func:`latent_reference`).
        log_q: log q(x|raw), the second result of ``model.from_data(raw)``; needed where grey levels get other noise
            than uniform, of which it is a constant.

    Raises:
        ValueError: an option out of range, or no ``log_q``.
        RuntimeError: the score is not finite.

    Example:

        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> report = log_likelihood(indm.build_model(tables, (2,)), torch.zeros(100, 2))  # latents N(0, I)
        >>> abs(report.bits_per_dim() - 0.5 * math.log2(2 * math.pi)) < 0.1
        True
    """
    check_solver(probes, steps, nll_error)
    log_q = constant_log_q(model, x) if log_q is None else log_q
    model = at(model, c, len(x))
    score = model.score
    with evaluation_mode(model), score.sde.truncated(eps) as sde:
        # Drawn before the flow's own probes, so that models compared at one seed share them.
        noise = randn_like(x, generator)
        flow, probe = whitened_flow(score, x, probes, exact, reference, generator)
        z, log_det = model.encode(x, generator=generator)
        reconstruction = reconstruction_term(score, z, noise)
        z_eps = sde.perturb(z, sde.endpoints(z)[START], noise)
        solution = flow.solve(z_eps, START, probe, nll_error, steps)
        log_prob = log_det + flow.log_prob(solution.state) - reconstruction
        settings: dict[str, Any] = {"nll_error": nll_error} | ({} if steps is None else {"steps": steps})
        divergence_by = "exact" if flow.exact else f"Hutchinson, {probes} Rademacher probe(s)"
        settings |= {"eps": sde.eps, "divergence": divergence_by}
        nfe = math.ceil(double(solution.nfe).mean().item())
    return LikelihoodReport(
        log_prob, reconstruction, log_q, solution.error, nfe, settings, event_size(x), model.scaling.levels
    )


def log_probability(
    model,
    raw: Num[Tensor, "batch *event"],
    *,
    c: Any = None,
    draws: int = 8,
    exact: bool | None = True,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    **solver: Any,
) -> LikelihoodReport:
    r"""The importance-weighted bound of log P(raw), from ``draws`` K of the noise of grey levels and of z_ε.

    .. math:: \log P(\text{raw}) \ge E \log \frac1K \sum_{k=1}^K \frac{p(x_k)}{q(x_k|\text{raw})}

    It rises with K. Of continuous data it is one of log p(raw).

    Args:
        model: an INDM.
        raw: data in data units.
        c: the condition, of a model that has one, see :meth:`indm.INDM.given`: log P(raw|c).
        draws: K.
        exact: the exact divergence, by d products for each evaluation. An estimate of it (False), as one of
            log|det|, adds noise to each log-weight; noise of variance v makes the bound up to v/2 nats too good.
        batch_size: draws at a time.
        **solver: ``probes``, ``nll_error``, ``steps``, ``eps`` and ``reference``, as in :func:`log_likelihood`.

    Returns:
        ``nats()`` are −log P(raw) of each image. ``log_prob`` and ``reconstruction`` are means over the draws, by their
        weights, and so is ``solver_error``: that of one draw, whose errors are taken to be alike.

    Raises:
        ValueError: an option out of range.
        RuntimeError: the score is not finite.

    Source: Burda et al. 2016, "Importance Weighted Autoencoders", https://arxiv.org/abs/1509.00519.

    Example:

        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> model = indm.build_model(tables, (1, 2, 2), indm.Scaling.images(256))
        >>> raw = torch.full((3, 1, 2, 2), 128)
        >>> log_probability(model, raw, draws=4).nats().shape
        torch.Size([3])
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}; 8 is usual")
    reports, c = [], all_rows(model, c, len(raw))
    for rows in torch.arange(len(raw)).repeat_interleave(draws).split(batch_size):
        part = at_rows(model, c, rows)
        with evaluation_mode(part):
            x, log_q = from_data(part, raw[rows], generator=generator)
        reports.append(log_likelihood(part, x, exact=exact, log_q=log_q, generator=generator, **solver))
    log_prob, reconstruction, log_q, error = (
        torch.cat([getattr(report, name) for report in reports]).unflatten(0, (len(raw), draws))
        for name in ("log_prob", "reconstruction", "log_q", "solver_error")
    )
    log_weights = log_prob - log_q
    bound, shares = log_weights.logsumexp(1) - math.log(draws), log_weights.softmax(1)
    log_prob, reconstruction, error = ((shares * values).sum(1) for values in (log_prob, reconstruction, error))
    nfe = math.ceil(sum(report.nfe for report in reports) / len(reports))
    settings = reports[0].settings | {"draws": draws}
    return LikelihoodReport(
        log_prob, reconstruction, log_prob - bound, error, nfe, settings, math.prod(raw.shape[1:]), model.scaling.levels
    )


def constant_log_q(model, x: Tensor) -> Float[Tensor, " batch"]:
    """log q(x|raw) of uniform noise, or of continuous data, which does not depend on the raw data, nats (B,).

    Raises:
        ValueError: the model has other noise.
    """
    noise = getattr(model, "dequantization", None)
    if not isinstance(noise, Uniform | None):
        raise ValueError(
            f"log_q must be given for {type(noise).__name__} noise: x, log_q = model.from_data(raw), then "
            "log_likelihood(model, x, log_q=log_q)"
        )
    return x.new_full((len(x),), -model.scaling.log_volume(x.shape[1:]), dtype=widest(x.device))


def latents_of(
    model, raw: Tensor, *, c: Any = None, batch_size: int = 256, generator: torch.Generator | None = None
) -> Float[Tensor, "n *event"]:
    """h(x) of data in data units (n, *event), encoded ``batch_size`` at a time; dequantized by ``generator``.

    ``c`` are their conditions, where the flow sees one.
    """
    latents, sees = [], sees_condition(model.flow)
    c = all_rows(model, c, len(raw)) if sees else None
    for rows in torch.arange(len(raw)).split(batch_size):
        part = at_rows(model, c, rows) if sees else model
        with evaluation_mode(part):
            x, _ = from_data(part, raw[rows], generator=generator)
            latents.append(part.flow.latent(x, generator=generator))
    return torch.cat(latents)


def latent_reference(
    model, raw: Tensor, *, c: Any = None, batch_size: int = 256, seed: int = 0, most: int = 10_000
) -> GaussianReference:
    """The Gaussian law of the latents of the first ``most`` samples: the control variate of their NELBO.

    ``c`` are their conditions, see :meth:`indm.INDM.given`: one for all, or a row for each of ``raw``.
    """
    generator = torch.Generator(model.scaling.scale.device).manual_seed(seed)
    options: dict[str, Any] = {"batch_size": batch_size, "generator": generator}
    c = all_rows(model, c, len(raw))
    return GaussianReference.fit(latents_of(model, raw[:most], c=None if c is None else c[:most], **options))
