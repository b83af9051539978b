"""From draws of the prior to data: samples, their log p, and the error of their steps."""

import math
import operator
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from indm.checks import check_counts, require
from indm.gaussian import GaussianReference
from indm.likelihood import NLL_ERROR, decode_with_log_prob, latents_of, warn_unsolved
from indm.ode import SAMPLED, SAMPLED_SMOOTH
from indm.protocols import Model
from indm.sampling.base import SAMPLER, Sampler, default_steps, make_sampler
from indm.score import denoise, is_smooth
from indm.tensors import Batch, evaluation_mode, expand_like


def sample(
    model: Model,
    shape_or_n: int | tuple[int, ...],
    *,
    c: Any = None,
    guidance: float = 1.0,
    sampler: str | type[Sampler] | Sampler = SAMPLER,
    steps: int | None = None,
    eps: float | None = None,
    temperature: float = 1.0,
    last_denoising: bool = True,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Draw samples: prior → reverse process on the latent → h_φ⁻¹.

    Args:
        shape_or_n: how many (the model then knows its event shape), or the whole shape with the
            batch axis.
        c: the condition, of a model that has one, see :meth:`indm.INDM.given`; None samples p(x),
            if that is known.
        guidance: w of :class:`indm.score.GivenScore`: above 1 samples are more typical of c and
            less diverse, at two evaluations each. Only 1, which is the model, has a likelihood.
        sampler: a name in :data:`SAMPLERS`, or a :class:`Sampler`, such as
            ``PredictorCorrector(snr=0.1)``.
        steps: time steps ("ode" takes as many as its tolerance needs); default: 25, and 400 where
            the network may have ripples in t.
        eps: truncation at which the reverse process ends; default: the SDE's own, which is also the
            least.
        temperature: factor on the latent before it is decoded; 1.0 samples the model.
        last_denoising: z_0 is E[z_0 | z_ε] at the end; else it is z_ε/α_ε.
        batch_size: samples at a time.

    Returns:
        x in model units, (n, *event); ``model.scaling.to_data`` gives grey levels.

    Raises:
        ValueError: an unknown sampler, or a number out of range.
        RuntimeError: the flow's inverse did not converge.

    Warns:
        RuntimeWarning: the network does not declare itself smooth in t (``is_smooth``), and steps
        are 25 or fewer.

    Example:

        >>> import indm
        >>> model = indm.build_model({"flow": "identity", "sde": "vp", "net": "zero"}, (2,))  # its density is N(0, I)
        >>> sample(model, 8, sampler="heun", steps=10).shape
        torch.Size([8, 2])
    """
    steps = default_steps(model) if steps is None else steps
    check_counts(steps=steps)
    require(
        0 < temperature < math.inf,
        "temperature",
        temperature,
        "positive and finite",
        "1 samples the model",
    )
    sampler = make_sampler(sampler)
    if steps <= SAMPLED_SMOOTH and not sampler.adaptive and not is_smooth(model.score):
        words = f"the network may have ripples in t, and {steps} steps may be too few; leave steps out for {SAMPLED}"
        warnings.warn(words, RuntimeWarning, stacklevel=2)
    model, parts = model.truncated(eps), []
    with evaluation_mode(model):
        for part, z_T in prior_batches(
            model, shape_or_n, c, batch_size, generator, progress, guidance=guidance
        ):
            z, _ = solve_latent(
                part, z_T, sampler, steps, last_denoising, generator=generator, progress=progress
            )
            parts.append(part.decode(temperature * z))
    return torch.cat(parts)


def sample_with_log_prob(
    model: Model,
    shape_or_n: int | tuple[int, ...],
    *,
    c: Any = None,
    eps: float | None = None,
    nll_error: float = NLL_ERROR,
    probes: int = 1,
    exact: bool | None = None,
    steps: int | None = None,
    reference: GaussianReference | None = None,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """The samples of ``sample(…, sampler="ode", last_denoising=False)`` and their log p(x), from
    one solve of the ODE.

    Args:
        model, shape_or_n, c, eps, batch_size: as of :func:`sample`.
        nll_error, probes, exact, steps, reference: of the solver, as in :func:`indm.nll`.

    Returns:
        x in model units, (n, *event), and log p(x) in nats, (n,), which is :meth:`INDM.log_prob`.

    Raises:
        ValueError: a number out of range, or a flow without a density.
        RuntimeError: the score is not finite, or the flow's inverse did not converge.

    Warns:
        RuntimeWarning: where the solver states an error above ``nll_error``.

    Example: the normalising constant of a density from samples of a model near it.

        >>> import indm
        >>> tables = {"flow": "identity", "sde": "vp", "net": "zero"}
        >>> x, log_prob = sample_with_log_prob(indm.build_model(tables, (2,)), 1000)
        >>> weights = (-x.square().sum(1) - log_prob).exp()  # exp(−‖x‖²) integrates to π
        >>> abs(weights.mean().item() - math.pi) < 0.3
        True
    """
    model, parts = model.truncated(eps), []
    solver: dict[str, Any] = {
        "probes": probes,
        "exact": exact,
        "steps": steps,
        "reference": reference,
    }
    with evaluation_mode(model):
        for part, z_T in prior_batches(model, shape_or_n, c, batch_size, generator, progress):
            parts.append(
                decode_with_log_prob(part, z_T, nll_error=nll_error, generator=generator, **solver)
            )
    samples, log_probs, errors = map(torch.cat, zip(*parts, strict=True))
    advice = "in as many steps as are tried; a larger nll_error accepts it"
    if steps is not None:
        advice = f"in {steps} steps; steps={2 * steps} makes it smaller"
    warn_unsolved(errors, samples, nll_error, f"of some samples {advice}")
    return samples, log_probs


def prior_batches(
    model: Model,
    shape_or_n: Any,
    c: Any,
    batch_size: int,
    generator,
    progress: bool,
    *,
    guidance: float = 1,
) -> Iterator[tuple[Any, Batch]]:
    """Batches of z_T ~ π: the model at the conditions of its samples, and z_T."""
    shape = (
        tuple(shape_or_n)
        if isinstance(shape_or_n, tuple | list)
        else (operator.index(shape_or_n), *model.shape)
    )
    check_counts(shape_or_n=shape[0])
    c, batches = model.rows(c, shape[0]), torch.arange(shape[0]).split(batch_size)
    for rows in tqdm(batches, desc="batches", disable=not progress or len(batches) == 1):
        part, size = model.given(c, rows=rows, guidance=guidance), (len(rows), *shape[1:])
        yield (
            part,
            model.sde.prior_sample(size, generator=generator, dtype=model.scaling.scale.dtype),
        )


def solve_latent(
    model: Model,
    z_T: Batch,
    sampler: Sampler,
    steps: int | None = None,
    last_denoising: bool = True,
    *,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> tuple[Batch, int]:
    """z_0 from z_T by a sampler: z_ε/α_ε or, with ``last_denoising``, E[z_0|z_ε]; and the
    evaluations of the score.

    A model that has a condition, and was not given any, samples p(x), if it knows that.
    """
    model = model.given(None, len(z_T))
    with evaluation_mode(model):
        options: dict[str, Any] = {"steps": steps, "generator": generator, "progress": progress}
        z, nfe = sampler.solve(model.score, z_T, **options)
        eps = model.sde.endpoints(z)[0]
        if not last_denoising:
            return z / expand_like(model.sde.alpha(eps), z), nfe
        return denoise(model.score, z, eps), nfe + 1


def centre_prior(
    model: Model,
    raw: Tensor,
    *,
    c: Any = None,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> None:
    """Put the mean of the prior of ``model`` where the diffusion takes the mean of data: α_T times
    the mean of h(x).

    ``raw`` are data in data units, (n, *event), and ``c`` their conditions, where the flow sees
    one.
    """
    mean = latents_of(model, raw, c=c, batch_size=batch_size, generator=generator).mean(
        0, keepdim=True
    )
    with torch.no_grad():
        model.sde.prior_mean = (
            expand_like(model.sde.alpha(model.sde.endpoints(mean)[1]), mean) * mean
        )[0]
