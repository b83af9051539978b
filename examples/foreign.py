"""log p of a model of another library: a DDPM of digits. pip install denoising-diffusion-pytorch

python examples/foreign.py        # a minute on a laptop; more --steps give a better model
"""

import json
from pathlib import Path

import torch
import tyro
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from sklearn.datasets import load_digits

import indm


def trained(images: torch.Tensor, steps: int) -> GaussianDiffusion:
    """The library's own training, of images in [0, 1]; put your model here."""
    net = Unet(8, channels=1, dim_mults=(1, 2), attn_heads=1, attn_dim_head=8, full_attn=False)
    diffusion = GaussianDiffusion(net, image_size=8, timesteps=50)
    optimizer = torch.optim.Adam(diffusion.parameters(), 3e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        loss = diffusion(images[torch.randint(len(images), (64,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return diffusion


def main(steps: int = 500, out: Path = Path("runs/example-foreign")) -> None:
    """steps: of the optimizer; out: where the report is written."""
    torch.manual_seed(0)
    raw = torch.tensor(load_digits().images).long()[:, None]  # grey levels 0 to 16
    train, test = raw[:1500], raw[1500:]
    diffusion = trained(train / 16, steps)
    model = indm.from_denoising_diffusion(diffusion, scaling=indm.Scaling.between(-1, 1, levels=17))
    print(indm.check_denoiser(model, test))
    found = indm.evaluate(model, test, [indm.Bound(), indm.NLL(examples=8)], progress=False)
    print(found)
    x, log_q = model.from_data(test)
    with torch.no_grad():
        for variance in ("small", "large"):
            bound = indm.discrete_nelbo(model, x, times=4, variance=variance, log_q=log_q)
            print(f"bound of all steps, {variance} variance {bound.bits_per_dim:.3f} bits/dim")
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(found.report.content(), indent=1), "utf-8")


if __name__ == "__main__":
    tyro.cli(main)
