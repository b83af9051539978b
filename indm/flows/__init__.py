"""Normalizing flows h_φ: data → latent, one family a file."""

from indm.flows.autoregressive import AutoregressiveFlow
from indm.flows.base import (
    ActNorm,
    Compose,
    ExactFlow,
    Flow,
    Frozen,
    Identity,
    Squeeze,
    Unsqueeze,
    require_one_map,
)
from indm.flows.conditional import ConditionalResidualFlow
from indm.flows.coupling import Coupling, CouplingFlow, InvertibleLinear, Part, initialize_actnorms
from indm.flows.log_det import ExactLogDet, PowerSeries
from indm.flows.residual import ResidualBlock, ResidualFlow, use_log_det
from indm.flows.zuko_adapter import ZukoFlow

__all__ = [
    "ActNorm",
    "AutoregressiveFlow",
    "Compose",
    "ConditionalResidualFlow",
    "Coupling",
    "CouplingFlow",
    "ExactFlow",
    "ExactLogDet",
    "Flow",
    "Frozen",
    "Identity",
    "InvertibleLinear",
    "Part",
    "PowerSeries",
    "ResidualBlock",
    "ResidualFlow",
    "Squeeze",
    "Unsqueeze",
    "ZukoFlow",
    "initialize_actnorms",
    "require_one_map",
    "use_log_det",
]
