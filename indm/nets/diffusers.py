"""The U-Nets of diffusers as networks of ours: ``pip install 'indm[diffusers]'``."""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import nn

from indm.files import untrusted
from indm.tensors import Batch, PerSample, double, expand_like, zeroed

NOTHING: Mapping[str, Any] = MappingProxyType({})
WEIGHTS = "diffusion_pytorch_model.safetensors"
PREDICTIONS = ("excess", "epsilon", "v_prediction")


class DiffusersUNet(nn.Module):
    r"""A ``UNet2DModel``, which sees the step i of its schedule at which log(σ_i/α_i) is ``level``.

    Steps in between are interpolated, so that a network that was trained by diffusers at discrete steps is a score at
    all times, under every SDE. Beyond the schedule's ends its first and its last step are taken. With
    q = σ/√(α² + σ²) and y as :class:`~indm.score.ScoreModel` has it, the output is, where it predicts ε or v = αε − σx,

    .. math:: \hat\epsilon(y, i) - q\,y, \qquad\text{or}\qquad \sqrt{1 - q^2}\;\hat v(y, i).

    Args:
        shape: (channels, height, width) of an image, whose sides the blocks can halve.
        options: arguments of ``diffusers.UNet2DModel``; sizes and channels are those of ``shape``.
        schedule: arguments of ``diffusers.DDPMScheduler``, whose betas are used.
        prediction: what the U-Net gives: "epsilon", "v_prediction", or this output itself, "excess", which starts at 0.

    Raises:
        ValueError: without diffusers, for vectors, or for options that do not fit.

    Example:

        >>> net = DiffusersUNet((1, 8, 8), {"block_out_channels": [8, 8], "norm_num_groups": 4,
        ...     "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2})
        >>> net(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape
        torch.Size([2, 1, 8, 8])
    """

    log_noise_to_signal: torch.Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        options: Mapping[str, Any] = NOTHING,
        schedule: Mapping[str, Any] = NOTHING,
        prediction: str = "excess",
    ):
        super().__init__()
        self.shape, self.options, self.schedule = tuple(shape), dict(options), dict(schedule)
        if len(self.shape) != 3 or self.shape[1] != self.shape[2]:
            raise ValueError(f"shape must be (channels, side, side) for a U-Net of diffusers, got {self.shape}")
        library = _library()
        made = _called(library.DDPMScheduler, schedule)
        self.prediction = prediction
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be of {', '.join(PREDICTIONS)}, got {prediction!r}")
        channels, side = self.shape[0], self.shape[1]
        sizes = {"sample_size": side, "in_channels": channels, "out_channels": channels}
        self.network = _called(library.UNet2DModel, {**options, **sizes})
        if prediction == "excess":
            zeroed(self.network.conv_out)
        log_alpha = 0.5 * (1 - double(made.betas)).log().cumsum(0)
        steps = 0.5 * (-(2 * log_alpha).expm1()).log() - log_alpha
        self.register_buffer("log_noise_to_signal", steps.float(), persistent=False)

    @classmethod
    def from_pipeline(cls, folder: str | Path) -> "DiffusersUNet":
        """The network of a pipeline's folder, ``unet/`` beside ``scheduler/``, as ``save_pretrained`` writes it.

        Its data are images scaled to [−1, 1], ``indm.Scaling.images(256)``.

        Raises:
            ValueError: it holds no ``UNet2DModel``, or one of images that are no squares of one size.
        """
        place = Path(folder).expanduser()
        options = untrusted.json_object(place / "unet" / "config.json")
        if options.get("_class_name") != "UNet2DModel":
            raise ValueError(f"{place / 'unet'} must hold a UNet2DModel, got {options.get('_class_name')!r}")
        schedule = untrusted.json_object(place / "scheduler" / "scheduler_config.json")
        return cls._made(options, schedule, untrusted.weights(place / "unet" / WEIGHTS), str(place / "unet"))

    @classmethod
    def from_unet(cls, unet: nn.Module, scheduler: Any) -> "DiffusersUNet":
        """A ``UNet2DModel`` and its scheduler, as objects of diffusers; the weights are copied.

        Its data are images scaled to [−1, 1], ``indm.Scaling.images(256)``.

        Raises:
            ValueError: a U-Net of images that are no squares of one size, or of other channels out than in.
        """
        config = {name: dict(part.config) for name, part in (("unet", unet), ("scheduler", scheduler))}
        return cls._made(config["unet"], config["scheduler"], unet.state_dict(), "unet")

    @classmethod
    def _made(
        cls, options: Mapping[str, Any], schedule: Mapping[str, Any], weights: Mapping[str, Any], what: str
    ) -> "DiffusersUNet":
        options = dict(options)
        side = options.pop("sample_size", None)
        channels, outputs = options.pop("in_channels", 3), options.pop("out_channels", 3)
        if not isinstance(side, int) or channels != outputs:
            raise ValueError(
                f"{what} must be of square images with as many channels out as in, got a size of {side} with "
                f"{channels} and {outputs} channels"
            )
        library = _library()
        net = cls(
            (channels, side, side),
            _taken(library.UNet2DModel, options),
            _taken(library.DDPMScheduler, schedule),
            schedule.get("prediction_type", "epsilon"),
        )
        net.network.load_state_dict(weights)
        return net

    def step(self, level: PerSample) -> PerSample:
        """The step of the schedule, with a fraction, at which log(σ/α) is ``level``."""
        table = self.log_noise_to_signal
        level = level.to(table)
        right = torch.searchsorted(table, level).clamp(1, len(table) - 1)
        low, high = table[right - 1], table[right]
        return right - 1 + ((level - low) / (high - low)).clamp(0, 1)

    def forward(self, z: Batch, level: PerSample) -> Batch:
        predicted = self.network(z, self.step(level).to(z.dtype)).sample
        noise_share = expand_like(torch.sigmoid(2 * level), z)  # q²
        if self.prediction == "v_prediction":
            return (1 - noise_share).sqrt() * predicted
        return predicted if self.prediction == "excess" else predicted - noise_share.sqrt() * z


def _library() -> ModuleType:
    try:
        return importlib.import_module("diffusers")
    except ModuleNotFoundError as error:
        raise ValueError("net 'diffusers' needs the library diffusers: pip install 'indm[diffusers]'") from error


def _taken(what: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``arguments`` that ``what`` takes and that are not None."""
    names = inspect.signature(what).parameters
    return {name: value for name, value in arguments.items() if name in names and value is not None}


def _called(what: type, arguments: Mapping[str, Any]) -> Any:
    unknown = sorted(set(arguments) - set(inspect.signature(what).parameters))
    if unknown:
        raise ValueError(f"{what.__name__} of diffusers has no option {unknown[0]!r}")
    try:
        return what(**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"options do not fit {what.__name__} of diffusers: {error}") from error
