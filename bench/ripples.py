"""Samples of networks that may have ripples in t: error and cost of the samplers, beside SciPy's
RK45.

    python bench/ripples.py runs/ddpmpp …      # and prints the table of all
    python bench/ripples.py

Errors compare E[z_0|z_ε] with ``--converged`` steps of Adams' method from the same z_T, in grey
levels of 256: root mean squares over the entries of a sample, the mean over samples and the
largest. Methods run one after another in one process; seconds are of its CPU time. RK45 solves
dz/dt of the whole batch as one vector, as the authors' code does.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import solve_ivp
from solver_error import Row, command, described
from torch import Tensor

from indm.sampling import AdaptiveODE, UniPC, follow_flow, log_snr_grid, solve_latent
from indm.score import denoise
from indm.tensors import expand_like
from indm.workbench.runs.folder import open_model, recipe_of, run_folder

COLUMNS = {
    name: name for name in ("model", "sampler", "evaluations", "error", "largest", "cpu_seconds")
}


class OnTheClock(UniPC):
    """UniPC in equal steps of log-SNR."""

    def times(self, score, steps: int) -> Tensor:
        return log_snr_grid(score.sde, steps)


def rk45(score, z: Tensor, tol: float) -> tuple[Tensor, int]:
    """z_ε by RK45 with rtol = atol = ``tol``, and evaluations."""
    sde = score.sde

    def field(t: float, flat: np.ndarray) -> np.ndarray:
        y, times = torch.from_numpy(flat).to(z).reshape(z.shape), z.new_full((len(z),), t)
        drift, diffusion = (expand_like(part(times), y) for part in (sde.drift, sde.diffusion))
        return (drift * y - 0.5 * diffusion**2 * score(y, times)).double().numpy().ravel()

    start = z.double().numpy().ravel()
    found = solve_ivp(field, (sde.T, sde.eps), start, method="RK45", rtol=tol, atol=tol)
    return torch.from_numpy(found.y[:, -1]).to(z).reshape(z.shape), found.nfev


@torch.no_grad()
def rows_of(run: Path, images: int, converged: int) -> list[Row]:
    """A row for each sampler, from the same ``images`` z_T."""
    folder = run_folder(run)
    model, recipe = open_model(folder).eval(), recipe_of(folder)
    score, sde = model.score, model.sde
    z = sde.prior_sample((images, *model.shape), generator=torch.Generator().manual_seed(0))

    def denoised(solved: tuple[Tensor, int]) -> tuple[Tensor, int]:
        return denoise(score, solved[0], sde.endpoints(z)[0]), solved[1] + 1

    methods: dict[str, Callable[[], tuple[Tensor, int]]] = {
        "RK45, 1e-5": lambda: denoised(rk45(score, z, 1e-5)),
        "unipc, 25 steps": lambda: solve_latent(model, z, UniPC(), 25),
        "unipc, 400 steps on the clock": lambda: solve_latent(model, z, OnTheClock(), 400),
        "unipc, 400 steps": lambda: solve_latent(model, z, UniPC(), 400),
        "ode, tol 2e-2": lambda: solve_latent(model, z, AdaptiveODE(2e-2)),
        "ode, tol 1e-2": lambda: solve_latent(model, z, AdaptiveODE(1e-2)),
    }
    exact, _ = denoised(follow_flow(score, z, sde.T, sde.eps, steps=converged))
    rows = []
    for name, solve in methods.items():
        started = time.process_time()
        x, evaluations = solve()
        errors = 128 * (x - exact).flatten(1).square().mean(1).sqrt()
        row = {"model": described(run.name, recipe, ("net", "sde"), model.shape), "sampler": name}
        row |= {
            "evaluations": evaluations,
            "error": f"{errors.mean():.2g}",
            "largest": f"{errors.max():.2g}",
        }
        row |= {
            "cpu_seconds": f"{time.process_time() - started:.1f}",
            "images": images,
            "converged": converged,
        }
        rows.append(row | {"torch": torch.__version__})
    return rows


if __name__ == "__main__":
    command(__doc__ or "", rows_of, COLUMNS, images=2, converged=1600, table="ripples.csv")
