"""Implicit nonlinear diffusion models: likelihood-based generative modelling with learned diffusions."""

from indm import flows
from indm.learned_sde import LearnedSDE
from indm.likelihood import LikelihoodReport, evaluate, log_likelihood
from indm.model import INDM, build_model
from indm.nets import MLP, NCSNpp, UNet
from indm.nonlinear import NonlinearDiffusion, forward_path, generative_path, probability_flow_path
from indm.objective import NELBO, fid_loss, flow_loss, mle_loss, nelbo, soft_truncation
from indm.sampling import sample
from indm.scaling import Scaling
from indm.score import PublishedScore, ScoreModel
from indm.sde import VESDE, VPSDE, LinearSDE, SubVPSDE
from indm.translation import translate, translate_bridge

__version__ = "0.1.0"

__all__ = [
    "INDM",
    "MLP",
    "NELBO",
    "VESDE",
    "VPSDE",
    "LearnedSDE",
    "LikelihoodReport",
    "LinearSDE",
    "NCSNpp",
    "NonlinearDiffusion",
    "PublishedScore",
    "Scaling",
    "ScoreModel",
    "SubVPSDE",
    "UNet",
    "build_model",
    "evaluate",
    "fid_loss",
    "flow_loss",
    "flows",
    "forward_path",
    "generative_path",
    "log_likelihood",
    "mle_loss",
    "nelbo",
    "probability_flow_path",
    "sample",
    "soft_truncation",
    "translate",
    "translate_bridge",
]
