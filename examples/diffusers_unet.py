"""A U-Net of diffusers as the network of an INDM, new or trained there. pip install diffusers

python examples/diffusers_unet.py
indm sample runs/example-diffusers --trust diffusers_unet      # in this folder; --trust as the
class is yours
"""

from pathlib import Path

import torch
import tyro
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

import indm

SMALL = {
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "attention_head_dim": 8,
}
SMALL |= {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


class DiffusersUNet(nn.Module):
    """ε or v = αε − σx from a UNet2DModel, asked at the step, with a fraction, at which log(σ/α) is
    ``level``.
    """

    def __init__(
        self, shape: tuple[int, ...], options: dict, schedule: dict, prediction: str = "epsilon"
    ):
        super().__init__()
        self.shape, self.options, self.schedule, self.prediction = (
            tuple(shape),
            options,
            schedule,
            prediction,
        )
        channels, side = shape[0], shape[1]
        sizes = {"sample_size": side, "in_channels": channels, "out_channels": channels}
        self.network = UNet2DModel(**(options | sizes))
        log_alpha = 0.5 * (1 - DDPMScheduler(**schedule).betas.double()).log().cumsum(0)
        levels = 0.5 * (-(2 * log_alpha).expm1()).log() - log_alpha
        self.register_buffer("levels", levels.float(), persistent=False)

    @classmethod
    def from_unet(cls, unet: UNet2DModel, scheduler: DDPMScheduler) -> "DiffusersUNet":
        """The network of a pipeline, ``pipeline.unet`` and ``pipeline.scheduler``; its data are
        images in [−1, 1].
        """
        known = [
            {k: v for k, v in p.config.items() if k[0] != "_" and v is not None}
            for p in (unet, scheduler)
        ]
        shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
        net = cls(shape, known[0], known[1], scheduler.config.prediction_type)
        net.network.load_state_dict(unet.state_dict())
        return net

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        right = torch.searchsorted(self.levels, level.to(self.levels)).clamp(
            1, len(self.levels) - 1
        )
        low, high = self.levels[right - 1], self.levels[right]
        step = right - 1 + ((level - low) / (high - low)).clamp(0, 1)
        predicted = self.network(z, step.to(z.dtype)).sample
        q2 = torch.sigmoid(2 * level)[:, None, None, None]  # σ²/(α² + σ²)
        # A backbone gives ε − qz, the noise beyond that of N(0, I); with ε = √(1 − q²) v + qz that
        # is √(1 − q²) v.
        return (
            (1 - q2).sqrt() * predicted
            if self.prediction == "v_prediction"
            else predicted - q2.sqrt() * z
        )


def main(steps: int = 300, out: Path = Path("runs/example-diffusers")) -> None:
    """steps: of the optimizer; out: the run folder."""
    net = DiffusersUNet((1, 8, 8), SMALL, {"beta_schedule": "squaredcos_cap_v2"}, "v_prediction")
    summary = indm.train(indm.recipe("digits", {"train.steps": steps}), out, model=net)
    print(f"validation NELBO {summary['valid_nelbo']:.3f} {summary['unit']}")


if __name__ == "__main__":
    tyro.cli(main)
