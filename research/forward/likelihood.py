"""The likelihood by the probability flow, as :func:`indm.log_likelihood`, of a model with a forward process."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Num
from torch import Tensor

import indm
from indm.dequantization import constant_log_q, from_data
from indm.gaussian import GaussianReference
from indm.likelihood import NLL_ERROR, START, check_solver, whitened_flow
from indm.rng import randn_like
from indm.tensors import double, evaluation_mode, event_size
from research.forward.model import ForwardINDM, check_truncation
from research.forward.objective import reconstruction_term
from research.forward.scores import encoded, flow_score


def log_likelihood(
    model: ForwardINDM,
    x: Float[Tensor, "batch *event"],
    *,
    probes: int = 1,
    exact: bool | None = None,
    nll_error: float = NLL_ERROR,
    steps: int | None = None,
    eps: float | None = None,
    reference: GaussianReference | None = None,
    log_q: Float[Tensor, " batch"] | None = None,
    generator: torch.Generator | None = None,
) -> indm.LikelihoodReport:
    """log p(x) from one draw of z_ε, and of a code where there is one: then it is a bound. Arguments as there."""
    check_solver(probes, steps, nll_error)
    check_truncation(model, eps)
    log_q = constant_log_q(model, x) if log_q is None else log_q
    model = model.truncated(eps)
    with evaluation_mode(model):
        noise = randn_like(x, generator)
        flow, probe = whitened_flow(model.score, x, probes, exact, reference, generator)
        z, log_det = model.encode(x, generator=generator)
        score, _, code_cost = encoded(model.score, model.process, z, generator)
        flow, sde = replace(flow, score=flow_score(score)), score.sde
        reconstruction = reconstruction_term(score, z, noise)
        z_eps = sde.perturb(z, sde.endpoints(z)[START], noise)
        solution = flow.solve(z_eps, START, probe, nll_error, steps)
        log_prob = log_det - code_cost + flow.log_prob(solution.state) - reconstruction
        settings = {"nll_error": nll_error, "steps": steps, "eps": sde.eps, "exact": flow.exact}
        nfe = math.ceil(double(solution.nfe).mean().item())
    return indm.LikelihoodReport(
        log_prob, reconstruction, log_q, solution.error, nfe, settings, event_size(x), model.scaling.levels
    )


def log_probability(
    model: ForwardINDM,
    raw: Num[Tensor, "batch *event"],
    *,
    draws: int = 8,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    **solver,
) -> Float[Tensor, " batch"]:
    """The importance-weighted bound of log P(raw) from ``draws`` of noise, z_ε and code, nats, (B,)."""
    weights = []
    for rows in torch.arange(len(raw)).repeat_interleave(draws).split(batch_size):
        with evaluation_mode(model):
            x, log_q = from_data(model, raw[rows], generator=generator)
        options = {"exact": True, "log_q": log_q, "generator": generator} | solver
        weights.append(-log_likelihood(model, x, **options).nats())
    return torch.cat(weights).unflatten(0, (len(raw), draws)).logsumexp(1) - math.log(draws)
