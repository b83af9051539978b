"""Normalizing flows h_φ: data → latent, one family a file."""

from indm.flows.base import ActNorm, Compose, ExactFlow, Flow, Frozen, Identity, Squeeze, Unsqueeze
from indm.flows.log_det import ExactLogDet, PowerSeries
from indm.flows.residual import ResidualBlock, ResidualFlow, use_log_det

__all__ = [
    "ActNorm",
    "Compose",
    "ExactFlow",
    "ExactLogDet",
    "Flow",
    "Frozen",
    "Identity",
    "PowerSeries",
    "ResidualBlock",
    "ResidualFlow",
    "Squeeze",
    "Unsqueeze",
    "use_log_det",
]
