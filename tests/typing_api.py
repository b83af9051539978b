"""What a caller of the public functions sees of their types; read by mypy (`make lint`), never run."""

from typing import assert_type

import torch
from torch import Tensor, nn

import indm
from indm.nets import Backbone
from indm.protocols import Model, Score
from indm.workbench.data import Data, as_data
from indm.workbench.training.loop import Summary


def read_by_mypy() -> None:
    model = indm.INDM.load("runs/digits")
    assert_type(model, indm.INDM)
    assert_type(model.flow, indm.flows.Flow)
    assert_type(model.sde, indm.LinearSDE)
    assert_type(model.scaling, indm.Scaling)
    assert_type(model.shape, tuple[int, ...])
    assert_type(model.encode(torch.zeros(2, 1, 8, 8)), tuple[Tensor, Tensor])
    assert_type(model.decode(torch.zeros(2, 1, 8, 8)), Tensor)
    assert_type(model.log_prob(torch.zeros(2, 1, 8, 8)), Tensor)
    assert_type(model.save("runs/copy"), None)
    assert_type(indm.build_model({}, (2,), indm.Scaling.images(17)), indm.INDM)

    x = torch.zeros(4, 1, 8, 8)
    assert_type(indm.sample(model, 8), Tensor)
    assert_type(indm.sample_with_log_prob(model, 8), tuple[Tensor, Tensor])
    assert_type(indm.nelbo(model, x), indm.NELBO)
    assert_type(indm.nelbo(model, x).total, Tensor)
    assert_type(indm.mle_loss(model, x), tuple[Tensor, dict[str, Tensor]])
    assert_type(indm.nll(model, x), indm.LikelihoodReport)
    assert_type(indm.nll(model, x).bits_per_dim, float)
    assert_type(indm.translate(model, model, x), Tensor)
    assert_type(indm.translate_bridge(model, x, "forward"), Tensor)
    assert_type(indm.train("digits", "runs/digits"), Summary)
    assert_type(indm.recipe("digits").train.steps, float)
    assert_type(indm.NonlinearDiffusion(model).drift(x, torch.zeros(4)), Tensor)
    assert_type(indm.VPSDE().alpha(torch.zeros(3)), Tensor)

    network: nn.Module = indm.UNet((1, 8, 8))
    assert_type(indm.ScoreModel(network, indm.VPSDE()), indm.ScoreModel)
    assert_type(as_data(torch.zeros(100, 2)), Data)
    assert_type(as_data(torch.zeros(100, 2)).train[0], Tensor)

    backbone: Backbone = indm.UNet((1, 8, 8))
    score: Score = indm.ScoreModel(backbone, indm.VPSDE())
    as_model: Model = indm.INDM(indm.flows.Identity(), score)
    assert_type(indm.nelbo(as_model, x), indm.NELBO)
