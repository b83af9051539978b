"""What is compared: a variant says which flow stands in front of the score, when it enters, and how it is trained."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import indm
from indm.flows import Compose, Identity, PowerSeries, use_log_det
from indm.flows.coupling import InvertibleLinear
from indm.model import INDM, build

Table = dict[str, Any]
SPLINE: Table = {"name": "elementwise"}
COUPLING: Table = {"name": "coupling", "levels": 1, "depth": 4, "width": 32}
FAMILIES: dict[str, Table] = {
    "coupling": COUPLING,
    "two scales": COUPLING | {"levels": 2},
    "affine": COUPLING | {"transform": "affine"},
    "thin": COUPLING | {"depth": 2, "width": 16},
    "linear map": {"name": "compose", "flows": [{"name": "squeeze"}, {"name": "linear"}, {"name": "unsqueeze"}]},
    "colour map": {"name": "linear"},
    "residual": {"name": "residual", "blocks": [2, 2], "width": 32},
}
MIXING = ("trained", "frozen", "colours")


@dataclass(frozen=True)
class Variant:
    """One way to train a model.

    Args:
        spline: whether a spline of grey levels, shared by all entries, is the flow from the first step.
        family: of the flow that enters behind it, a key of :data:`FAMILIES`; None for none.
        enters: share of the steps before it enters, at the identity, with a fresh optimizer and average; without a
            family these alone are fresh.
        frozen: share of the steps at the end in which the flow is not trained.
        mixing: what is trained of the 1×1 convolutions: all, nothing ("frozen"), or what mixes the colours of one
            pixel ("colours", of a flow at one scale).
        start: of the 1×1 convolutions, "identity" or a random "rotation" as in Glow.
        noise: of grey levels, "uniform" or "variational".
        lr: rate of the score network.
        spline_lr: rate of the spline.
        flow_share: rate of the flow that enters, over ``lr``.
        channels: of the score network.
    """

    spline: bool = False
    family: str | None = None
    enters: float = 0.0
    frozen: float = 0.0
    mixing: str = "trained"
    start: str = "identity"
    noise: str = "uniform"
    lr: float = 2e-3
    spline_lr: float = 1e-2
    flow_share: float = 0.2
    channels: int = 32

    def __str__(self) -> str:
        default = asdict(Variant())
        return ",".join(f"{key}={value}" for key, value in asdict(self).items() if value != default[key]) or "linear"

    @property
    def structure(self) -> str:
        """What decides about the cost of its steps."""
        parts = ["spline" if self.spline else "", self.family or "", self.noise if self.noise != "uniform" else ""]
        parts += [f"{self.channels} channels" if self.channels != Variant.channels else ""]
        return " + ".join(filter(None, parts)) or "linear"


def without_flow(variant: Variant, shape: tuple[int, ...]) -> INDM:
    """The model of the first steps: linear diffusion, or one behind the spline."""
    tables: dict[str, Table] = {
        "flow": SPLINE if variant.spline else {"name": "identity"},
        "sde": {"name": "vp"},
        "net": {
            "name": "unet", "channels": variant.channels, "multipliers": [1, 2, 2], "blocks": 1, "attention": [8],
        },
    }  # fmt: skip
    if variant.noise != "uniform":
        tables["dequantization"] = {"name": variant.noise}
    return indm.build_model(tables, shape, indm.Scaling.images(256))


def with_flow(model: INDM, variant: Variant) -> INDM:
    """The model with the variant's flow, which starts at the identity or at rotations, behind the flow that it has."""
    entering = build(table_of(variant, model.shape), "flow", model.shape)
    use_log_det(entering, training=PowerSeries(1, 1.0))  # of residual blocks: of every image, not of one in sixteen
    limit_mixing(entering, variant.mixing)
    flows = [entering] if isinstance(model.flow, Identity) else [model.flow, entering]
    return INDM(Compose(flows), model.score, model.scaling, model.shape, model.dequantization)


def table_of(variant: Variant, shape: tuple[int, ...]) -> Table:
    """The table of the flow that enters."""
    if variant.family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {variant.family!r}")
    table, mix = FAMILIES[variant.family], {"start": variant.start}
    if variant.family == "linear map":
        squeeze, linear, unsqueeze = table["flows"]
        return table | {"flows": [squeeze, linear | mix | {"channels": 4 * shape[0]}, unsqueeze]}
    if variant.family == "colour map":
        return table | mix | {"channels": shape[0]}
    return table if variant.family == "residual" else table | mix


def limit_mixing(flow: nn.Module, mixing: str) -> None:
    """Leave of the 1×1 convolutions in ``flow`` only what ``mixing`` says to be trained.

    Raises:
        ValueError: ``mixing`` is not one of :data:`MIXING`.
    """
    if mixing not in MIXING:
        raise ValueError(f"mixing must be one of {', '.join(MIXING)}, got {mixing!r}")
    for layer in flow.modules():
        if isinstance(layer, InvertibleLinear):
            if mixing == "frozen":
                layer.requires_grad_(False)
            elif mixing == "colours":
                layer.off_diagonal.register_hook(lambda gradient: gradient * of_one_pixel(len(gradient)))


def of_one_pixel(channels: int) -> Tensor:
    """Which entries of a matrix of squeezed channels mix channels of one pixel of the 2×2; 1 or 0.

    Squeezing puts the four pixels of a channel side by side: channel c of pixel p has the number 4 c + p.
    """
    pixel = torch.arange(channels) % 4
    return (pixel[:, None] == pixel).float()
