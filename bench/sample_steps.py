"""Whether more steps bring samples nearer to the converged ones: trained models of every kind.

    python bench/sample_steps.py runs/digits runs/ddpmpp runs/ncsnpp-ve …      # a record each, never made again
    python bench/sample_steps.py --table

Errors are root mean squares over the entries of E[z_0|z_ε] from the same z_T, in model units, by the default sampler;
converged are ``--converged`` equal steps of Adams' method.
"""

import json
from pathlib import Path

import torch
from solver_error import command
from worth_cells import made_by

import indm
from indm.config import recipes
from indm.sampling import UniPC, follow_flow, solve_latent
from indm.score import denoise, law_score

STEPS = (12, 25, 50, 100, 200)
OUT = Path(__file__).parent / "records" / "sample-steps"


@torch.no_grad()
def record_of(run: Path, images: int, converged: int) -> dict:
    """The error of the default sampler in each number of steps, for ``images`` samples of a run."""
    model, recipe = indm.INDM.load(run).eval(), recipes.load(run)
    z = model.sde.prior_sample((images, *model.shape), generator=torch.Generator().manual_seed(0))
    z_eps, _ = follow_flow(model.score, z, model.sde.T, model.sde.eps, steps=converged)
    exact = denoise(law_score(model.score), z_eps, model.sde.endpoints(z)[0])
    errors = {n: (solve_latent(model, z, UniPC(), n)[0] - exact).square().mean().sqrt().item() for n in STEPS}
    parts = {"net": recipe["net"]["name"], "sde": recipe["sde"]["name"], "shape": list(model.shape)}
    return parts | {"images": images, "converged": converged, "errors": errors} | made_by(0)


def table(out: Path) -> str:
    lines = ["| model | " + " | ".join(f"{n} steps" for n in STEPS) + " |", "|---" * (len(STEPS) + 1) + "|"]
    for path in sorted(out.glob("*.json")):
        record = json.loads(path.read_text())
        name = f"{path.stem} ({record['net']}, {record['sde'].upper()}, {'×'.join(map(str, record['shape']))})"
        lines.append(f"| {name} | " + " | ".join(f"{value:.2g}" for value in record["errors"].values()) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    command(__doc__ or "", record_of, table, images=8, converged=1280, out=OUT)
