"""Whether more steps bring samples nearer to the converged ones: trained models of every kind.

    python bench/sample_steps.py runs/digits runs/ddpmpp runs/ncsnpp-ve …      # and prints the
    table of all python bench/sample_steps.py

Errors are root mean squares over the entries of E[z_0|z_ε] from the same z_T, in model units, by
the default sampler; converged are ``--converged`` equal steps of Adams' method. A run has a row in
``bench/records/sample_steps.csv``, which is not made again.
"""

from pathlib import Path

import torch
from solver_error import Row, command, described

import indm
from indm.sampling import UniPC, follow_flow, solve_latent
from indm.score import denoise
from indm.workbench.recipes import recipe as recipes

STEPS = (12, 25, 50, 100, 200)
COLUMNS = {"model": "model"} | {str(n): f"{n} steps" for n in STEPS}


@torch.no_grad()
def rows_of(run: Path, images: int, converged: int) -> list[Row]:
    """The error of the default sampler in each number of steps, for ``images`` samples of a run."""
    model, recipe = indm.INDM.load(run).eval(), recipes.load(run)
    z = model.sde.prior_sample((images, *model.shape), generator=torch.Generator().manual_seed(0))
    z_eps, _ = follow_flow(model.score, z, model.sde.T, model.sde.eps, steps=converged)
    exact = denoise(model.score, z_eps, model.sde.endpoints(z)[0])
    errors = {
        str(n): f"{(solve_latent(model, z, UniPC(), n)[0] - exact).square().mean().sqrt():.2g}"
        for n in STEPS
    }
    about = {"model": described(run.name, recipe, ("net", "sde"), model.shape)}
    return [about | errors | {"images": images, "converged": converged, "torch": torch.__version__}]


if __name__ == "__main__":
    command(__doc__ or "", rows_of, COLUMNS, images=8, converged=1280, table="sample_steps.csv")
