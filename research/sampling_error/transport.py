"""How far the probability flow carries data."""

from pathlib import Path

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from indm.conditions import at_data
from indm.rng import randn_like
from indm.tensors import Batch, evaluation_mode
from indm.workbench.data.base import stack
from indm.workbench.evaluation.records import Setup
from indm.workbench.evaluation.sample_quality import encode_ode
from indm.workbench.evaluation.statistics import FOLDS, jackknife
from indm.workbench.runs.folder import open_model

LARGEST_ASSIGNMENT = 2000  # samples whose optimal transport is solved exactly


def transport(model, x: Batch, *, generator: torch.Generator | None = None, progress: bool = True) -> dict:
    """How far the probability flow carries data, beside the least that any map of the same two sets could.

    x_0 → z_0 = h(x_0) → z_ε ~ q(·|z_0) → z_T by the ODE → x_T = h⁻¹(z_T).

    Args:
        model: an INDM.
        x: data in model units, 20 to 2000 of them.

    Returns:
        ``nfe``, and for ``data`` (x_0 → x_T) and ``latent`` (z_0 → z_T) what :func:`transport_cost` does.

    Raises:
        ValueError: too few or too many samples, or a flow that draws its map anew in every call.
    """
    model.flow.check_one_map("transport along it")
    if not 2 * FOLDS <= len(x) <= LARGEST_ASSIGNMENT:
        raise ValueError(f"x must hold {2 * FOLDS} to {LARGEST_ASSIGNMENT} samples, got {len(x)}; 1000 is usual")
    with evaluation_mode(model):
        z = model.flow.latent(x)
        z_T, nfe = encode_ode(
            model, model.sde.perturb(z, model.sde.endpoints(z)[0], randn_like(z, generator)), progress=progress
        )
        x_T = model.decode(z_T)
    return {"nfe": nfe, "data": transport_cost(x, x_T), "latent": transport_cost(z, z_T)}


def transport_cost(start: Batch, end: Float[Tensor, "batch *event"]) -> dict:
    """Mean squared distance of paired samples and of their optimal pairing, in squared units of the samples.

    The optimum is exact for the two sets, so it is never above the cost; in many dimensions a few samples lie so far
    apart that little remains to be gained, and ``ratio`` is near 1 for any map: compare at one number of samples.

    Returns:
        ``cost``, ``optimal``, ``excess`` (cost − optimal) and ``ratio`` (cost/optimal), each with its
        ``…_standard_error``; ``cost_per_dimension``, …, divided by ``dims``; ``samples``.
    """
    start, end = (samples.flatten(1).cpu().double() for samples in (start, end))

    def costs(a: Tensor, b: Tensor) -> dict[str, float]:
        table = torch.cdist(a, b).square().numpy()
        cost, optimal = float(table.diagonal().mean()), float(table[linear_sum_assignment(table)].mean())
        return {"cost": cost, "optimal": optimal, "excess": cost - optimal, "ratio": cost / optimal}

    numbers = {"samples": len(start), "dims": start.shape[1]} | jackknife(costs, start, end)
    for name in ("cost", "optimal", "excess"):
        for key in (name, f"{name}_standard_error"):
            numbers[key.replace(name, f"{name}_per_dimension")] = numbers[key] / numbers["dims"]
    return numbers


def transport_of_run(run: Path, setup: Setup) -> dict:
    """The cost of the probability flow on the data space beside the least cost."""
    n = min(setup.options.examples, LARGEST_ASSIGNMENT)
    model = at_data(open_model(run), setup.data, "test", n)
    device = model.scaling.scale.device
    generator = torch.Generator(device).manual_seed(setup.options.seed)
    raw = stack(setup.data.test, n).to(device)
    with torch.no_grad():  # noise of grey levels may be learned
        x = model.from_data(raw, generator=generator)[0]
    return transport(model, x, generator=generator, progress=setup.progress)
