"""Measure what the mean −log P of 64 images costs under a diffusion model of another library,
beside RK45.

    pip install denoising-diffusion-pytorch
    python bench/foreign.py --out runs/bench    # writes bench/records/foreign.csv, one row a method

A small U-Net of denoising-diffusion-pytorch is trained on digits for 300 steps. Its embedding of
1,000 steps ripples in the noise level, which an ODE must resolve; the bounds ask for no resolution.
Each method is repeated with fresh draws, and its noise is the deviation of the mean over images
between repeats. What solves long is run on the first 16 images.
"""

import argparse
import csv
import math
import time
from collections.abc import Callable
from pathlib import Path

import baselines
import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from sklearn.datasets import load_digits
from torch import Tensor

import indm
from indm.likelihood import latent_reference, nll
from indm.ode import rademacher
from indm.tensors import evaluation_mode

RECORD = Path(__file__).parent / "records" / "foreign.csv"
IMAGES, FEW, REPEATS, TIMES = 64, 16, 4, 48


def trained(raw: Tensor, steps: int, cache: Path) -> tuple[Unet, Tensor]:
    """A U-Net that predicts v, and its betas."""
    torch.manual_seed(0)
    network = Unet(dim=16, dim_mults=(1, 2), channels=1)
    diffusion = GaussianDiffusion(network, image_size=16, timesteps=1000)
    if cache.is_file():
        network.load_state_dict(torch.load(cache, weights_only=True))
        return network, diffusion.betas
    optimizer = torch.optim.Adam(diffusion.parameters(), 2e-3)
    for _ in range(steps):
        loss = diffusion(raw[torch.randint(len(raw), (32,))] / 16)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    cache.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), cache)
    return network, diffusion.betas


# nats of each image, evaluations of the network, the solver's stated error
Drawn = tuple[Tensor, float, float]


def measured(draw: Callable[[torch.Generator], Drawn], repeats: int) -> dict[str, float]:
    """Mean, its noise between repeats and the solver's mean stated error; evaluations and CPU
    seconds an image.
    """
    means, evaluations, seconds, error = [], 0.0, 0.0, 0.0
    for seed in range(repeats):
        start = time.process_time()
        nats, spent, stated = draw(torch.Generator().manual_seed(seed))
        seconds += (time.process_time() - start) / len(nats) / repeats
        means.append(nats.mean().item())
        evaluations += spent / repeats
        error += stated / repeats
    noise = torch.tensor(means).std().item() if repeats > 1 else math.nan
    return {
        "evaluations": round(evaluations, 1), "cpu_seconds": round(seconds, 3),
        "mean_nats": round(sum(means) / repeats, 2), "noise_of_mean": round(noise, 2),
        "stated_error": round(error, 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), help="where the trained network is kept"
    )
    parser.add_argument("--steps", type=int, default=300, help="of training")
    given = parser.parse_args()
    torch.set_num_threads(1)
    raw = torch.tensor(load_digits().images)[:, None].float()
    raw = torch.nn.functional.interpolate(raw, 16, mode="nearest").long()
    network, betas = trained(raw[:1400].float(), given.steps, given.out / "foreign.pt")
    scaling = indm.Scaling.between(-1, 1, 17)
    model = indm.from_denoiser(
        network, predicts="v", path={"betas": betas}, shape=(1, 16, 16), scaling=scaling
    )
    law, test = latent_reference(model, raw[:1400]), raw[1500 : 1500 + IMAGES]
    x, log_q = model.from_data(test)

    def bound(of: Callable[..., indm.NELBO]) -> Callable[[torch.Generator], Drawn]:
        options = {"times": TIMES, "log_q": log_q, "reference": law}
        return lambda generator: (of(model, x, **options, generator=generator).nats, TIMES, 0.0)

    def solved(n: int, **options) -> Callable[[torch.Generator], Drawn]:
        def draw(generator: torch.Generator) -> Drawn:
            report = nll(
                model, x[:n], log_q=log_q[:n], reference=law, generator=generator, **options
            )
            return report.nats, report.nfe, report.solver_error.mean().item()

        return draw

    def by_scipy(generator: torch.Generator) -> Drawn:
        noise, probe = (
            torch.randn(x[:FEW].shape, generator=generator),
            rademacher(x[:FEW], 1, generator)[:, 0],
        )
        log_prob, evaluations = baselines.plain_log_prob(model, x[:FEW], noise=noise, probe=probe)
        return -log_prob + log_q[:FEW], evaluations, math.nan

    methods = {
        f"discrete_nelbo, times={TIMES}": (bound(indm.discrete_nelbo), REPEATS),
        f"nelbo, times={TIMES}": (bound(indm.nelbo), REPEATS),
        "nll, steps=48": (solved(IMAGES, steps=48), REPEATS),
        f"nll, steps=48, {FEW} images": (solved(FEW, steps=48), REPEATS),
        f"nll, default, {FEW} images": (solved(FEW), 2),
        f"RK45, rtol = atol = 1e-5, {FEW} images": (by_scipy, REPEATS),
    }
    with evaluation_mode(model), RECORD.open("w", newline="") as file:
        writer = csv.writer(file)
        for number, (name, (draw, repeats)) in enumerate(methods.items()):
            row = measured(draw, repeats)
            if not number:
                writer.writerow(["method", *row])
            writer.writerow([name, *row.values()])
            file.flush()
            print(name, row, flush=True)


if __name__ == "__main__":
    main()
