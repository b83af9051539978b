"""The likelihood of held-out data under a model, with error bars."""

import math

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from indm.likelihood import _check_tolerances, latent_reference, log_likelihood
from indm.objective import nelbo
from indm.tensors import evaluation_mode


def evaluate(
    model,
    raw: Tensor,
    *,
    nll_examples: int | None = None,
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
        nll_examples: how many of them (the first ones) get the NLL; default all, 0 skips it.
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
    nll_examples = len(raw) if nll_examples is None else min(nll_examples, len(raw))
    if nll_examples < 0 or nll_examples == 1:
        raise ValueError(f"nll_examples must be 0 (no NLL) or at least 2 for a standard error, got {nll_examples}")
    _check_tolerances(rtol, atol)
    model.flow.check()
    device, eps = model.scaling.scale.device, model.score.sde.truncation(eps)
    generator = torch.Generator(device)
    jobs = [("nelbo", batch) for batch in raw.split(batch_size)]
    jobs += [("nll", batch) for batch in raw[:nll_examples].split(batch_size) if len(batch)]
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
        "images": {"nelbo": len(raw), "nll": nll_examples},
        "dims": dims,
        "dequantization": f"uniform, {levels} grey levels" if levels else "none (continuous data)",
        "eps": eps,
        "repeats": repeats,
        "seed": seed,
        "nelbo": {"times": times} | _summary(samples, "nelbo", dims),
    }
    if not model.flow.one_map:
        report["codes"] = "one draw for each estimate: the flow's own likelihood is a bound"
    if nll_examples:
        nfe = sum(result["nfe"] for result in solved) / len(solved)
        report["nll"] = solved[0]["settings"] | {"nfe": nfe} | _summary(samples, "nll", dims)
    return report, {name: values.mean(0) for name, values in samples.items()}


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
