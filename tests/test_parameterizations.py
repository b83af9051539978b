"""Scores with a parameterization of their own are trained as the models that likelihoods and
samples use.
"""

import pytest
import torch
from closed_form import SDES, within
from torch import nn

import indm
from indm.flows import CouplingFlow
from indm.nets import MLP
from indm.objective import flow_loss, mle_loss, nelbo
from indm.score import GivenScore, base_of, noise_parts
from indm.tensors import expand_like
from indm.training import NoiseLevels

ROWS = 100


class OfVelocity(indm.ScoreModel):
    """The network predicts v = (α n − σ z_0)/√(α² + σ²)."""

    def forward(self, z_t, t, c=None):
        alpha, sigma, std = (
            expand_like(of(t), z_t)
            for of in (self.sde.alpha, self.sde.sigma, self.sde.marginal_std)
        )
        level = -0.5 * self.sde.log_snr(t)
        v = self.backbone(z_t / std, level) if c is None else self.backbone(z_t / std, level, c)
        return -(alpha / std * v + sigma / std**2 * z_t) / sigma


class OfData(indm.ScoreModel):
    """The network predicts z_0; it is tried where the least noise is not small."""

    def forward(self, z_t, t, c=None):
        alpha, sigma = expand_like(self.sde.alpha(t), z_t), expand_like(self.sde.sigma(t), z_t)
        clean = self.backbone(
            z_t / expand_like(self.sde.marginal_std(t), z_t), -0.5 * self.sde.log_snr(t)
        )
        return (alpha * clean - z_t) / sigma**2


class Drawn(OfVelocity):
    """Trained by the whole error of the network."""

    base = None


class Own(nn.Module):
    """A conditional score that is not a ScoreModel."""

    takes_condition = True

    def __init__(self):
        super().__init__()
        self.sde = indm.VPSDE()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, z_t, t, c):
        return -z_t + self.weight * c


PARAMETERIZATIONS = {"velocity": OfVelocity, "data": OfData, "drawn": Drawn}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def model_of(kind, sde="vp", flow=None, condition=None):
    torch.manual_seed(0)
    net = MLP((2,), width=16, depth=1, condition=condition.seen_shape if condition else ())
    nn.init.normal_(net.output.weight, std=0.3)
    eps = {"ve": {}}.get(sde, {"eps": 0.02})
    score = PARAMETERIZATIONS[kind](net, SDES[sde](**eps))
    model = indm.INDM(
        CouplingFlow((2,)) if flow is None else flow, score, shape=(2,), condition=condition
    )
    for parameter in model.flow.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.double()


def points(n=ROWS):
    return 0.5 * torch.randn(n, 2, dtype=torch.float64, generator=seeded(1))


@pytest.mark.parametrize("levels", [False, True], ids=["even", "by gradients"])
@pytest.mark.parametrize("sde", ["vp", "ve"])
@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
def test_the_loss_is_the_bound_of_the_same_model(kind, sde, levels):
    model = model_of(kind, sde)
    drawing = NoiseLevels(model.sde) if levels else None
    with torch.no_grad():
        losses = torch.stack(
            [
                mle_loss(model, points(), noise_levels=drawing, generator=seeded(k))[1]["nelbo"]
                for k in range(25)
            ]
        )
        bounds = torch.stack(
            [nelbo(model, points(), times=4, generator=seeded(k)).total.mean() for k in range(25)]
        )
    assert within(losses - bounds, 0.0)


@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
def test_the_gradients_of_the_loss_are_those_of_the_bound(kind):
    model = model_of(kind)
    differences = []
    for seed in range(40):
        loss = 2 * mle_loss(model, points(), generator=seeded(seed))[0]
        bound = nelbo(model, points(), generator=seeded(1000 + seed)).total.mean()
        gradients = [torch.autograd.grad(value, model.parameters()) for value in (loss, bound)]
        differences.append(torch.cat([(a - b).flatten() for a, b in zip(*gradients, strict=True)]))
    assert within(torch.stack(differences), 0.0, errors=5, floor=1e-3)


@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
def test_the_networks_gradient_is_that_of_its_whole_error_on_the_same_draws(kind, monkeypatch):
    model = model_of(kind)
    ours = torch.autograd.grad(
        mle_loss(model, points(), generator=seeded(0))[0], model.score.parameters()
    )
    monkeypatch.setattr("indm.objective.base_of", lambda score: None)
    plain = torch.autograd.grad(
        mle_loss(model, points(), generator=seeded(0))[0], model.score.parameters()
    )
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
def test_the_parts_of_the_noise_add_up_to_the_score(kind):
    model = model_of(kind)
    z_t, t = points(50), torch.linspace(0.02, 1.0, 50, dtype=torch.float64)
    noise = -model.sde.sigma(t)[:, None] * model.score(z_t, t)
    torch.testing.assert_close(sum(noise_parts(model.score, z_t, t)), noise)


@pytest.mark.parametrize("away_from", [None, -1.0])
def test_the_parts_of_the_noise_add_up_to_a_guided_score(away_from):
    net = MLP((2,), width=8, condition=(1,)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(3)))
    c = torch.ones(50, 1, dtype=torch.float64)
    guided = GivenScore(
        indm.ScoreModel(net, indm.VPSDE()), c, 3.0, None if away_from is None else away_from * c
    )
    z_t, t = points(50), torch.linspace(0.02, 1.0, 50, dtype=torch.float64)
    noise = -guided.sde.sigma(t)[:, None] * guided(z_t, t)
    torch.testing.assert_close(sum(noise_parts(guided, z_t, t)), noise)
    plain = noise_parts(guided.at(c), z_t, t)
    unguided = noise_parts(GivenScore(guided.score, c), z_t, t)
    assert (plain[1] - unguided[1]).abs().max() > 0.01


def test_a_subclass_that_keeps_forward_keeps_its_law():
    class Named(indm.ScoreModel):
        """Only its name is new."""

    for kind in (indm.ScoreModel, Named):
        score = kind(MLP((2,), width=8), indm.VPSDE())
        assert base_of(score) is score.base is not None
        assert noise_parts(score, points(3).float(), torch.ones(3))[1].abs().max() == 0


def test_a_conditional_score_of_somebodys_own_is_trained():
    """And a conditional subclass: at the rows that it is given."""
    c = torch.linspace(-1, 1, ROWS)[:, None].double()
    own = indm.INDM(CouplingFlow((2,)), Own(), shape=(2,), condition=indm.Vector(1)).double()
    for model in (own, model_of("velocity", condition=indm.Vector(1))):
        given = model.given(c)
        with torch.no_grad():
            losses = torch.stack(
                [mle_loss(given, points(), generator=seeded(k))[1]["nelbo"] for k in range(25)]
            )
            bounds = torch.stack(
                [nelbo(model, points(), c=c, generator=seeded(k)).total.mean() for k in range(25)]
            )
        assert within(losses - bounds, 0.0)
        assert flow_loss(given, points())[0].isfinite()
