"""log p of a diffusion model of your own: a network in plain PyTorch that knows nothing of indm, on
a known law.

python examples/denoiser.py        # half a minute
"""

import json
from pathlib import Path

import torch
import tyro
from torch import distributions, nn

import indm

LOW, HIGH = 0.02, 20.0  # noise levels
corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
clouds = distributions.Independent(distributions.Normal(corners, 0.3), 1)
law = distributions.MixtureSameFamily(distributions.Categorical(torch.ones(4)), clouds)


class Denoiser(nn.Module):
    """Sees x + σn (B, 2) and σ (B,), and predicts the noise n."""

    def __init__(self) -> None:
        super().__init__()
        hidden = [layer for _ in range(2) for layer in (nn.Linear(128, 128), nn.SiLU())]
        self.layers = nn.Sequential(nn.Linear(3, 128), nn.SiLU(), *hidden, nn.Linear(128, 2))

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        size = (1 + sigma[:, None] ** 2).sqrt()
        seen = torch.cat([x / size, sigma.log()[:, None] / 3], dim=1)
        return (sigma[:, None] * x / size + self.layers(seen)) / size


def trained(steps: int) -> Denoiser:
    """Your own training."""
    network = Denoiser()
    optimizer = torch.optim.Adam(network.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        x, n = law.sample((256,)), torch.randn(256, 2)
        sigma = LOW * (HIGH / LOW) ** torch.rand(256)
        loss = (network(x + sigma[:, None] * n, sigma) - n).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network


def main(steps: int = 2500, out: Path = Path("runs/example-denoiser")) -> None:
    """steps: of the optimizer; out: where the report is written."""
    torch.manual_seed(0)
    network = trained(steps)
    x = law.sample((1000,))
    model = indm.from_denoiser(network, predicts="noise", path={"sigmas": (LOW, HIGH)}, shape=(2,))
    found = indm.evaluate(model, x, [indm.Bound(), indm.NLL()], progress=False)
    print(found)
    print(f"truth: {-law.log_prob(x).mean():.4f} nats")
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(found.report.content(), indent=1), "utf-8")


if __name__ == "__main__":
    tyro.cli(main)
