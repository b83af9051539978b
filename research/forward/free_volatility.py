r"""How much a free volatility of the generative SDE would bring, as NFDM has it: of runs with a forward process.

    indm train research/forward/recipes/digits-nfdm.toml --train.steps 477 --train.seconds inf --out runs/nfdm
    python -m research.forward.free_volatility runs/nfdm

A volatility :math:`\sqrt{\rho}\,g` in place of g makes of e = a + n/(2R) the target a + ρ n/(2R), and divides its
squared error by ρ (README.md). The best network for it is s_θ + (ρ − 1) ŝ/2. With the mean squared errors A of a
and B of n/(2R) by what the run's network knows of them, the best ρ of a time is √(A/B), and the bound falls by

.. math:: \tfrac12 \int (\sqrt A - \sqrt B)^2\,d\Lambda
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

import indm
from indm.dequantization import from_data
from indm.rng import randn_like
from indm.tensors import expand_like, squared_norm
from indm.workbench.data.base import stack
from indm.workbench.data.registry import load_data
from indm.workbench.runs.folder import open_model, recipe_of
from research.forward.model import ForwardINDM

EXAMPLES, BINS = 500, 24  # of the test split; of the clock


@torch.no_grad()
def errors(model: ForwardINDM, x: Tensor, times: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Place on the clock, and squared errors of a and of n/(2R), of each draw of a time and noise."""
    sde, rows = model.score.sde, []
    z, _ = model.encode(x, generator=generator)
    for _ in range(times):
        t = sde.sample_time(len(z), importance=True, generator=generator)[0].to(z.dtype)
        noised = model.process.at(sde, z, t, randn_like(z, generator))
        drift, law = (expand_like(sde.sigma(t), z) * score for score in model.score.both(noised.z_t, t))
        a, b = noised.target - noised.noise / 2 + drift - law / 2, (noised.noise + law) / 2
        a, b = (expand_like(sde.clock_rate(t), z).sqrt() * error for error in (a, b))  # of each entry's own clock
        rows.append((sde.place(sde.clock(t)), squared_norm(a).double(), squared_norm(b).double()))
    place, a, b = (torch.cat(column) for column in zip(*rows, strict=True))
    return place, a, b


def fall_of_bound(place: Tensor, a: Tensor, b: Tensor, log_snr_range: float) -> float:
    """½ ∫ (√A − √B)² dΛ in nats, A and B constant in each of :data:`BINS` equal parts of the clock."""
    parts = (BINS * place).long().clamp(0, BINS - 1)
    roots = [torch.stack([values[parts == k].mean().sqrt() for k in range(BINS)]) for values in (a, b)]
    return 0.5 * log_snr_range * (roots[0] - roots[1]).square().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--times", type=int, default=32, help="draws of a time for each example")
    o = parser.parse_args()
    for run in o.runs:
        with indm.trust("research"):
            model, recipe, generator = open_model(run), recipe_of(run), torch.Generator().manual_seed(0)
        if model.process.is_tight:
            raise SystemExit(f"{run} must have a forward process of two scores: LearnedMean or Affine")
        x, _ = from_data(model, stack(load_data(**recipe["data"]).test, EXAMPLES), generator=generator)
        fall = fall_of_bound(*errors(model, x, o.times, generator), model.sde.log_snr_range())
        print(f"{run}: the bound would fall by {fall / (x[0].numel() * math.log(2)):.5f} bits/dim")


if __name__ == "__main__":
    main()
