"""Grey levels without noise: the decoder by enumeration, and bounds that are exact where the
denoiser is.
"""

import math

import pytest
import torch
from scipy import integrate
from torch import nn

import indm
from indm.flows import CouplingFlow, Identity
from indm.nets import Zero
from indm.objective import mean_reconstruction, reconstruction

LEVELS, SHAPE = 7, (1, 2, 2)
SCALING = indm.Scaling.between(-1, 1, LEVELS)
EPS = [1e-4, 3e-3, 0.02, 0.1, 0.4]


class UniformLevels(nn.Module):
    """The exact score where each entry is one of the grey levels, each as likely, independent of
    the others.
    """

    def __init__(self, sde, values):
        super().__init__()
        self.sde, self.values = sde, values

    def forward(self, z, t):
        alpha, sigma = (
            v.reshape(-1, *[1] * z.ndim) for v in (self.sde.alpha(t), self.sde.sigma(t))
        )
        away = alpha * self.values.to(z) - z[..., None]
        return ((-0.5 * (away / sigma) ** 2).softmax(-1) * away / sigma**2).sum(-1)


def values():
    return SCALING.centre(torch.arange(LEVELS)).double()


def model_of(score=None, eps=1e-5):
    sde = indm.VPSDE(eps=eps)
    score = indm.ScoreModel(Zero(), sde) if score is None else UniformLevels(sde, values())
    return indm.INDM(Identity(), score, SCALING, SHAPE, indm.GreyLevels()).double()


def images(n=40):
    return torch.randint(0, LEVELS, (n, *SHAPE), generator=torch.Generator().manual_seed(0))


def test_a_level_is_its_number_and_nothing_is_added():
    model, raw = model_of(), images()
    x, log_q = model.from_data(raw)
    torch.testing.assert_close(x, -1 + raw.double() / 3, rtol=0, atol=1e-6)
    assert log_q.abs().max() == 0 and torch.equal(model.scaling.to_data(x).long(), raw)
    assert (
        torch.equal(model.scaling.to_data(x + 0.16).long(), raw)
        and model.scaling.to_data(x + 0.17).max() == 6
    )


@pytest.mark.parametrize("eps", EPS)
def test_the_decoder_is_bayes_rule_over_all_levels(eps):
    model, raw = model_of(eps=eps), images()
    z, noise = (
        model.from_data(raw)[0],
        torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(1)).double(),
    )
    alpha, sigma = (
        float(v(torch.tensor(eps).double())) for v in (model.sde.alpha, model.sde.sigma)
    )
    law = torch.distributions.Normal(alpha * values(), sigma)
    # of z_ε and each level, but for log LEVELS
    joint = law.log_prob((alpha * z + sigma * noise)[..., None])
    q = joint.gather(-1, raw[..., None])[..., 0]
    expected = (q - (q - joint.logsumexp(-1))).flatten(1).sum(1)
    torch.testing.assert_close(reconstruction(model, z, noise), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eps", EPS)
def test_the_mean_over_the_noise_by_quadrature(eps):
    model = model_of(eps=eps)
    alpha, sigma = (
        float(v(torch.tensor(eps).double())) for v in (model.sde.alpha, model.sde.sigma)
    )
    law = torch.distributions.Normal(alpha * values(), sigma)

    def mean(level):
        def integrand(n):
            return float(law.log_prob(alpha * values()[level] + sigma * n).logsumexp(0)) * math.exp(
                -0.5 * n * n
            )

        return integrate.quad(integrand, -9, 9, limit=400)[0] / math.sqrt(2 * math.pi)

    raw = torch.tensor([0, 1, 3, 6]).reshape(1, *SHAPE)
    found = mean_reconstruction(model, model.from_data(raw)[0], torch.zeros(1, *SHAPE).double())
    assert found.item() == pytest.approx(sum(map(mean, [0, 1, 3, 6])), abs=1e-5)


def test_levels_far_apart_need_no_more_memory():
    """10⁷ deviations of the noise: what is left of the reconstruction is −½ log(2πe σ²) an entry."""
    model, raw = model_of(eps=1e-14), images(3)
    x = model.from_data(raw)[0]
    found = mean_reconstruction(model, x, torch.zeros_like(x))
    sigma = model.sde.sigma(torch.tensor(1e-14).double())
    expected = -4 * (0.5 * math.log(2 * math.pi * math.e) + sigma.log())
    torch.testing.assert_close(found, expected.expand(3), rtol=1e-9, atol=0)


@pytest.mark.parametrize("eps", EPS)
def test_uniform_levels_have_log_levels_at_every_eps(eps):
    """With the exact score the bound of the SDE and the NLL of the flow are −log P, however large ε
    is.
    """
    model, raw = model_of("exact", eps), images(2000)
    x, log_q = model.from_data(raw)
    drawn = indm.nelbo(
        model, x, times=4, log_q=log_q, generator=torch.Generator().manual_seed(2)
    ).nats
    expected = 4 * math.log(LEVELS)
    assert abs(drawn.mean().item() - expected) < 5 * drawn.std().item() / 2000**0.5
    options = {"draws": 4, "steps": 256, "generator": torch.Generator().manual_seed(3)}
    weighted = indm.importance_bound(model, raw[:6], **options)
    assert weighted.solver_error.max() < 0.1
    assert (weighted.nats - expected).abs().max() < weighted.solver_error.max() + 2e-3


@pytest.mark.parametrize("loss", [indm.mle_loss, indm.fid_loss])
def test_losses_report_the_bound(loss):
    model, raw = model_of(eps=0.01), images(20_000)
    x, _ = model.from_data(raw)
    found = loss(model, x, generator=torch.Generator().manual_seed(4))[1]["nelbo"].item()
    drawn = indm.nelbo(model, x, times=4, generator=torch.Generator().manual_seed(5)).nats
    assert abs(found - drawn.mean().item()) < 0.6  # nats; their difference has a deviation of 0.15


def test_evaluate_says_what_decodes_and_counts_it():
    measures = [indm.Bound(), indm.NLL(examples=20)]
    found = indm.evaluate(model_of("exact", 0.02), images(60), measures, progress=False)
    report, nats = found.report, found.nats
    assert report.dequantization == "none, 7 grey levels, decoded by P(level|z_ε)"
    assert abs(nats["nll"].mean().item() - 4 * math.log(LEVELS)) < 0.3


def test_an_empty_batch_has_no_numbers():
    x = torch.zeros(0, *SHAPE).double()
    assert indm.nll(model_of(), x).nats.shape == indm.nelbo(model_of(), x).nats.shape == (0,)


def test_what_cannot_be_decoded_is_refused():
    score = indm.ScoreModel(Zero(), indm.VPSDE())
    with pytest.raises(ValueError, match=r"flow must be the identity under .*, got CouplingFlow"):
        indm.INDM(CouplingFlow((4,)), score, SCALING, (4,), indm.GreyLevels())
    with pytest.raises(ValueError, match="must be left out for continuous data"):
        indm.INDM(Identity(), score, indm.Scaling(), (4,), indm.GreyLevels())
    with pytest.raises(ValueError, match=r"scaling must have one scale .* got 4"):
        indm.INDM(Identity(), score, indm.Scaling(0.0, torch.ones(4), 7), (4,), indm.GreyLevels())
