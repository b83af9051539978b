"""Likelihoods with error bars: the NLL of the probability-flow ODE and the NELBO, in nats and in bits per dimension.

The NELBO bounds the likelihood of the generative *SDE*; the ODE has a likelihood of its own. They agree at the exact
score; off it their difference can have either sign and is not a variational gap.
"""

import dataclasses
import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from indm.flows.residual import check_contractions
from indm.gaussian import GaussianReference
from indm.objective import nelbo, randn_like, reconstruction_term
from indm.ode import adams, basis, integrate, rademacher, value_and_divergence
from indm.score import probability_flow
from indm.sde import event_size, event_sum, expand_like


@dataclass(frozen=True)
class LikelihoodReport:
    """Log-likelihoods of a batch, in nats of model units.

    Attributes:
        log_prob: (B,), with the reconstruction term: an estimate of a lower bound of log p(x).
        reconstruction: (B,), that term; ``log_prob + reconstruction`` is the number without it, no likelihood of x.
        nfe: evaluations of the ODE's field, the mean over samples (each has its own steps) rounded up.
        settings: ε, tolerances, divergence.
        log_scale: Σ log of the data scaling over one event, nats.
        dims: dimensions of one event.
    """

    log_prob: Float[Tensor, " batch"]
    reconstruction: Float[Tensor, " batch"]
    nfe: int
    settings: dict = dataclasses.field(default_factory=dict)
    log_scale: float = 0.0
    dims: int = 1

    def nats(self) -> Float[Tensor, " batch"]:
        """−log p of the raw data, nats per sample."""
        return self.log_scale - self.log_prob

    def bits_per_dim(self) -> float:
        """Mean over the batch of −log₂ p of the raw data, per dimension."""
        return self.nats().mean().item() / (self.dims * math.log(2))

    def standard_error(self) -> float:
        """Standard error over the batch of :meth:`bits_per_dim`."""
        if len(self.log_prob) < 2:
            raise ValueError("standard_error needs at least 2 samples, got 1")
        return (self.nats().std() / math.sqrt(len(self.log_prob))).item() / (self.dims * math.log(2))


@contextmanager
def evaluation_mode(model):
    """Evaluation mode without gradients; the model's own mode is put back at the end."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


def log_likelihood(
    model,
    x: Float[Tensor, "batch *event"],
    *,
    probes: int = 1,
    exact: bool | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    steps: int | None = None,
    eps: float | None = None,
    reference: GaussianReference | None = None,
    generator: torch.Generator | None = None,
) -> LikelihoodReport:
    r"""log p(x) by the probability-flow ODE on the latent, from one draw of z_ε for each sample.

    .. math:: \log|\det \partial h/\partial x| + \log\pi(z_T) + \int_\epsilon^T \nabla\cdot(fz-\tfrac12 g^2 s)\,dt
              - \log q(z_\epsilon|z_0) + \log p(z_0|z_\epsilon)

    Args:
        model: an INDM.
        x: data in model units.
        probes: Rademacher probes for the divergence, fixed along the path.
        exact: exact divergence (d products in place of ``probes``); default: where that is cheaper, d ≤ ``probes``,
            and in two dimensions.
        rtol, atol: tolerances of the adaptive solver.
        steps: solve in so many equal steps instead, without control of the error: a third of the time at 24.
        eps: truncation, at least the SDE's own, which is the default.
        reference: a Gaussian law of the latents, whose probability flow is then solved exactly; default N(0, I).

    The ODE is integrated over the clock −log SNR in the coordinate of :func:`indm.score.probability_flow`, and its
    divergence per dimension, so that ``atol`` is in nats per dimension; every sample has its own steps.
    """
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, or None for the adaptive solver, got {steps}; 24 is usual")
    _check_tolerances(rtol, atol)
    score = model.score
    with evaluation_mode(model), score.sde.truncated(eps) as sde:
        exact = event_size(x) <= max(2, probes) if exact is None else exact
        # Drawn before the flow's own probes, so that models compared at one seed share them.
        noise = randn_like(x, generator)
        probe = x.new_zeros(len(x)) if exact else rademacher(x, probes, generator)
        z, log_det = model.encode(x, generator=generator)
        d, (eps, T) = event_size(z), sde.endpoints(z)
        reconstruction = reconstruction_term(score, z, noise)

        def field(clock: Tensor, state: tuple[Tensor, ...], probe: Tensor) -> tuple[Tensor, ...]:
            probe = basis(state[0]) if exact else probe
            velocity, divergence = value_and_divergence(probability_flow(score, clock), state[0], probe)
            return velocity, divergence / d

        spreads, span = [sde.spread(t) for t in (eps, T)], sde.clock_span()
        state = (sde.perturb(z, eps, noise) / expand_like(spreads[0], z), torch.zeros_like(log_det))
        if steps is None:
            (w, integral), evaluations = integrate(field, state, *span, context=(probe,), rtol=rtol, atol=atol)
            nfe = math.ceil(evaluations.double().mean().item())
            settings = {"rtol": rtol, "atol": atol}
        else:
            law = GaussianReference.standard(z) if reference is None else reference
            (w, integral), nfe = _whitened_adams(field, state, probe, law, span, steps)
            settings = {"steps": steps}
        growth = d * integral + event_sum((spreads[1] / spreads[0]).log(), z)
        log_prob = log_det + sde.prior_log_prob(expand_like(spreads[1], z) * w) + growth - reconstruction
        settings |= {
            "eps": sde.eps,
            "divergence": "exact" if exact else f"Hutchinson, {probes} Rademacher probe(s)",
        }
    return LikelihoodReport(log_prob, reconstruction, nfe, settings, model.scaling.log_scale(x.shape[1:]), d)


def _check_tolerances(rtol: float, atol: float) -> None:
    for name, tolerance in {"rtol": rtol, "atol": atol}.items():
        if not 0 < tolerance < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {tolerance}; 1e-4 is usual")


def _whitened_adams(field, state, probe: Tensor, law: GaussianReference, span: tuple[float, float], steps: int):
    """:func:`indm.ode.adams` for the state (w, integral), in the coordinate in which ``law`` rests."""
    w, integral = state

    def whitened(clock: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        here = law.colour(state[0], clock).reshape(w.shape)
        velocity, divergence = field(clock, (here,), probe)
        return law.whitened_velocity(state[0], here, velocity, clock), divergence

    begin, end = (torch.full_like(integral, clock) for clock in span)
    (v, integral), nfe = adams(whitened, (law.whiten(w, begin), integral), *span, steps=steps)
    return (law.colour(v, end).reshape(w.shape), integral), nfe


def evaluate(
    model,
    raw: Tensor,
    *,
    nll_images: int | None = None,
    repeats: int = 2,
    times: int = 4,
    probes: int = 1,
    exact: bool | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    steps: int | None = None,
    eps: float | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
    distributed: bool = False,
) -> tuple[dict, dict[str, Tensor]]:
    """NELBO and NLL of raw data, each with and without reconstruction, with standard errors.

    Args:
        model: an INDM.
        raw: (N, *event) in data units (grey levels, vectors).
        nll_images: how many of them (the first ones) get the NLL; default all, 0 skips it.
        repeats: independent draws of all randomness (dequantization, times, noise, probes) for each sample; at
            least 2, which is what tells estimator noise from the spread of the data.
        times: score evaluations for each NELBO draw.
        probes, exact, rtol, atol, steps, eps: see :func:`log_likelihood`.
        batch_size: samples at a time.
        seed: of the generator behind every draw; models evaluated with one seed share dequantization, times and
            noise, so that their paired differences are sharper than the error of either.
        distributed: every process of ``torch.distributed`` calls this with the same model and data, takes its share of
            the batches, and returns the whole, which does not depend on how many they are. The model is a bare module,
            not wrapped for data parallel training: a solver then takes as many steps as its batch needs, and no
            process waits for another before the end.

    Returns:
        A JSON-able report, and per-sample nats of the raw data, mean over repeats: ``nelbo``, ``nll`` and both with
        suffix ``_without_reconstruction``.
    """
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2, got {repeats}: one draw cannot show its own noise")
    if len(raw) < 2:
        raise ValueError(f"raw must hold at least 2 samples for a standard error, got {len(raw)}")
    nll_images = len(raw) if nll_images is None else min(nll_images, len(raw))
    if nll_images < 0 or nll_images == 1:
        raise ValueError(f"nll_images must be 0 (no NLL) or at least 2 for a standard error, got {nll_images}")
    _check_tolerances(rtol, atol)
    check_contractions(model.flow)
    device, eps = model.scaling.scale.device, model.score.sde.truncation(eps)
    generator = torch.Generator(device)
    jobs = [("nelbo", batch) for batch in raw.split(batch_size)]
    jobs += [("nll", batch) for batch in raw[:nll_images].split(batch_size) if len(batch)]
    reference = latent_reference(model, raw, batch_size=batch_size, seed=seed)
    solver = {"probes": probes, "exact": exact, "rtol": rtol, "atol": atol, "steps": steps, "reference": reference}
    log_scale = model.scaling.log_scale(raw.shape[1:])

    def draw(kind: str, batch: Tensor, number: int) -> dict:
        generator.manual_seed(seed + 1_000_003 * number)
        x = model.scaling.to_model(batch.to(device), generator=generator)
        if kind == "nelbo":
            found, solved = nelbo(model, x, times=times, reference=reference, generator=generator), {}
            total = found.total
        else:
            found = log_likelihood(model, x, **solver, generator=generator)
            total, solved = -found.log_prob, {"nfe": found.nfe, "settings": found.settings}
        nats = {kind: total, f"{kind}_without_reconstruction": total - found.reconstruction}
        return {"nats": {name: (values + log_scale).double().cpu() for name, values in nats.items()}, **solved}

    rank, processes = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    mine, found = range(rank, len(jobs), processes), {}
    bar = tqdm(total=repeats * len(mine), desc="likelihood", disable=not progress)
    with evaluation_mode(model), model.score.sde.truncated(eps), bar:
        for index in mine:
            bar.set_description(jobs[index][0].upper())
            for number in range(index * repeats, (index + 1) * repeats):
                found[number] = draw(*jobs[index], number)
                bar.update()
    if distributed:
        parts = [None] * processes
        dist.all_gather_object(parts, found)
        found = {number: result for part in parts for number, result in part.items()}
    draws: dict[str, list[Tensor]] = {}
    for _, result in sorted(found.items()):
        for name, nats in result["nats"].items():
            draws.setdefault(name, []).append(nats)
    solved = [result for result in found.values() if "nfe" in result]

    dims = math.prod(raw.shape[1:])
    samples = {name: _per_repeat(parts, repeats) for name, parts in draws.items()}
    levels = model.scaling.levels
    report = {
        "images": {"nelbo": len(raw), "nll": nll_images},
        "dims": dims,
        "dequantization": f"uniform, {levels} grey levels" if levels else "none (continuous data)",
        "eps": eps,
        "repeats": repeats,
        "seed": seed,
        "nelbo": {"times": times} | _summary(samples, "nelbo", dims),
    }
    if not model.flow.one_map:
        report["codes"] = "one draw for each estimate: the flow's own likelihood is a bound"
    if nll_images:
        nfe = sum(result["nfe"] for result in solved) / len(solved)
        report["nll"] = solved[0]["settings"] | {"nfe": nfe} | _summary(samples, "nll", dims)
    return report, {name: values.mean(0) for name, values in samples.items()}


def latent_reference(
    model, raw: Tensor, *, batch_size: int = 256, seed: int = 0, most: int = 10_000
) -> GaussianReference:
    """The Gaussian law of (up to ``most`` of) these samples' latents: the control variate of their NELBO."""
    device, latents = model.scaling.scale.device, []
    generator = torch.Generator(device).manual_seed(seed)
    with evaluation_mode(model):
        for batch in raw[:most].split(batch_size):
            x = model.scaling.to_model(batch.to(device), generator=generator)
            latents.append(model.flow.latent(x, generator=generator))
    return GaussianReference.fit(torch.cat(latents))


def _per_repeat(parts: list[Tensor], repeats: int) -> Tensor:
    """[batch 0 repeat 0, batch 0 repeat 1, …] to (repeats, N)."""
    return torch.stack([torch.cat(parts[r::repeats]) for r in range(repeats)])


def _summary(samples: dict[str, Tensor], name: str, dims: int) -> dict:
    return {
        "with_reconstruction": mean_and_errors(samples[name], dims),
        "without_reconstruction": mean_and_errors(samples[f"{name}_without_reconstruction"], dims),
    }


def mean_and_errors(draws: Float[Tensor, "repeats n"], dims: int) -> dict[str, float]:
    """Mean over samples with its standard error and the part of that error that is estimator noise.

    ``estimator_noise`` is the standard error that would remain if the images themselves were given: the root of the
    mean within-image variance over (repeats · n). Where draws are stratified over the batch (the times of the NELBO)
    the mean is sharper than that says.
    """
    repeats, n = draws.shape
    nats = draws.mean().item()
    error = (draws.mean(0).std() / math.sqrt(n)).item()
    noise = math.sqrt(draws.var(0).mean().item() / (repeats * n))
    bits = dims * math.log(2)
    return {
        "nats": nats,
        "nats_standard_error": error,
        "nats_estimator_noise": noise,
        "bits_per_dim": nats / bits,
        "bits_per_dim_standard_error": error / bits,
        "bits_per_dim_estimator_noise": noise / bits,
    }
