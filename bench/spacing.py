r"""Whether it is a process that has small bounds of few steps, or where its steps are: a run's on another's clocks.

    indm train digits --flow elementwise --dequantization truncated-normal --train.seconds inf --train.steps 592 \
        --train.lr 0.002 --train.flow_lr 0.003 --train.flow_update_every 1 --train.seed 1 --out runs/linear
    …                       # the same with --forward affine --sde learned --train.steps 410 --out runs/both
    python bench/spacing.py runs/linear --like runs/both

Steps of equal length on the common clock of a learned SDE are others on the clocks of its entries, −log SNR. The run
gets those, in the mean over the entries, stretched to its own ends.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor
from worth_cells import VALID_EXAMPLES, write

import indm
from indm.data.base import stack
from indm.data.registry import load_data
from indm.dequantization import from_data
from indm.forward.base import require_no_code
from indm.objective import step_divergence
from indm.rng import randn_like
from indm.runs.folder import open_run
from indm.sampling import log_snr_grid
from indm.sde.linear import LinearSDE

STEPS = (2, 4, 8, 16, 32, 100)


def mean_clock(sde: LinearSDE, steps: int) -> Tensor:
    """−log SNR of the entries in the mean, (steps + 1,), at equal steps on the common clock from ε to T."""
    t = log_snr_grid(sde, steps).flip(0).double()
    own = 2 * (sde.sigma(t).log() - sde.log_alpha(t))
    return own.flatten(1).mean(1) if own.ndim > 1 else own


@torch.no_grad()
def bound_on(model: indm.INDM, x: Tensor, clock: Tensor, generator: torch.Generator) -> float:
    """The bound of ancestral samples on times with these −log SNR, rising from ε to T, nats in the mean."""
    sde, score, process = model.sde, model.score, model.forward_process
    times = sde.time(-clock).clamp(sde.eps, sde.T)
    terms = indm.nelbo(model, x, generator=generator)
    z, _ = model.encode(x)
    steps = [
        step_divergence(score, z, z.new_full((len(z),), t), z.new_full((len(z),), s), randn_like(z, generator), process)
        for s, t in zip(times[:-1].tolist(), times[1:].tolist(), strict=True)
    ]
    return (terms.total - terms.score + torch.stack(steps).sum(0)).mean().item()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--like", type=Path, required=True, help="run whose clocks are taken")
    parser.add_argument("--out", type=Path, help="JSON file")
    o = parser.parse_args()
    (model, recipe), (like, _) = open_run(o.run), open_run(o.like)
    require_no_code(model, "steps of any length")
    raw, unit = stack(load_data(**recipe["data"]).valid, VALID_EXAMPLES), math.prod(model.shape) * math.log(2)
    x, log_q = from_data(model, raw, generator=seeded())
    start, end = model.sde.clock_span()
    first, last = mean_clock(like.sde, 1).tolist()
    record: dict = {"clock": [start, end], "clock of the other": [first, last], "bits_per_dim": {}}
    for steps in STEPS:
        bent = start + (mean_clock(like.sde, steps) - first) * (end - start) / (last - first)
        nats = {
            "equal steps": bound_on(model, x, mean_clock(model.sde, steps), seeded()),
            "spaced like the other": bound_on(model, x, bent, seeded()),
            "the other": indm.nelbo(like, x, times=8, ancestral=steps, generator=seeded()).total.mean().item(),
        }
        record["bits_per_dim"][steps] = {name: (value + log_q.mean().item()) / unit for name, value in nats.items()}
    print(json.dumps(record, indent=2))
    if o.out:
        write(o.out, record)


if __name__ == "__main__":
    main()
