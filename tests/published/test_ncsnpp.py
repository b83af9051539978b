"""The published networks: resampling against its definition, the whole against the original's
layout, the score.
"""

import copy

import numpy as np
import pytest
import torch
from original import slow_upfirdn

from indm import INDM, NCSNpp, PublishedScore, Scaling, ScoreModel, UNet, build_model, nelbo
from indm.flows import Identity
from indm.model import count_parameters
from indm.published.ncsnpp import Down, Positional, StridedConv, Up, upfirdn2d
from indm.sde.linear import VESDE, VPSDE, LogLinearSDE, SubVPSDE

PLUSPLUS = {
    "embedding": "fourier", "fir": (1, 3, 3, 1), "input_pyramid": "residual", "scale_by_sigma": True, "centered": False,
}  # fmt: skip


def small(shape=(3, 8, 8), **options):
    torch.manual_seed(0)
    net = NCSNpp(
        shape, **{"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)} | options
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


# ── Resampling ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (1, 2), (2, 3), (3, 2)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1), (1, 3), (-1, 2), (2, -1)])
@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 5), (2, 1)])
def test_upfirdn2d_is_what_its_name_says(up, down, padding, taps):
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    # of no symmetry
    kernel = torch.outer(torch.tensor(taps), torch.tensor([*taps[:-1], 7])).double()
    expected = slow_upfirdn(x, kernel.numpy(), up, down, *padding)
    torch.testing.assert_close(upfirdn2d(x, kernel, up, down, padding), expected)


def test_upfirdn2d_has_the_right_derivatives():
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, k: upfirdn2d(x, k, 2, 1, (2, 1)), (x, kernel))
    assert torch.autograd.gradgradcheck(lambda x, k: upfirdn2d(x, k, 1, 2, (1, -1)), (x, kernel))


@pytest.mark.parametrize("taps", [(), (1, 3, 3, 1), (1, 1), (1, 2, 1)])
def test_resampling_keeps_constants_and_shapes(taps):
    h = torch.full((2, 3, 8, 6), 1.7)
    up, down = Up(taps)(h), Down(taps)(h)
    assert (
        up.shape == (2, 3, 16, 12)
        and down.shape == (2, 3, 4, 3) == StridedConv(3, 3, taps)(h).shape
    )
    for result in (up, down):
        torch.testing.assert_close(
            result[:, :, 2:-2, 2:-2], torch.full_like(result[:, :, 2:-2, 2:-2], 1.7)
        )


def test_up_and_down_are_each_others_transpose_of_a_symmetric_filter():
    h, small_h = (
        torch.randn(1, 1, 8, 8, dtype=torch.float64),
        torch.randn(1, 1, 4, 4, dtype=torch.float64),
    )
    taps = (1, 3, 3, 1)
    up, down = Up(taps).double(), Down(taps).double()
    torch.testing.assert_close((up(small_h) * h).sum(), 4 * (down(h) * small_h).sum())


# ── The network ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "options, count",
    [
        ({}, 61_804_419),
        ({"blocks": 8}, 106_632_579),
        (PLUSPLUS, 62_758_787),
        (PLUSPLUS | {"blocks": 8}, 107_586_947),
    ],
)
def test_parameter_counts_at_the_published_settings(options, count):
    with torch.device("meta"):
        assert count_parameters(NCSNpp((3, 32, 32), **options)) == count


def test_ncsnpp_starts_at_zero_learns_with_every_parameter_and_is_kept(tmp_path):
    """As the contract of networks asks of DDPM++, which has all defaults."""
    z, level, t = (
        torch.randn(3, 3, 8, 8),
        torch.tensor([0.3, 1.0, 20.0]),
        torch.tensor([1e-5, 0.4, 1.0]),
    )
    assert (
        NCSNpp((3, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,), **PLUSPLUS)(
            z, level
        )
        == 0
    ).all()
    net = small(**PLUSPLUS)
    net(z, level).square().sum().backward()
    assert not [
        name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    torch.testing.assert_close(net(z[2:], level[2:]), net(z, level)[2:], rtol=1e-4, atol=1e-5)
    model = INDM(
        Identity(), PublishedScore(net, VESDE()), Scaling.images(256, net.centered), (3, 8, 8)
    ).eval()
    model.save(tmp_path)
    again = INDM.load(tmp_path)
    assert type(again.score) is PublishedScore and torch.equal(again.score(z, t), model.score(z, t))


def test_weights_begin_as_published():
    torch.manual_seed(0)
    net = NCSNpp((3, 16, 16), channels=32, multipliers=(1, 2), blocks=1, attention=(8,))
    conv, attention = net.encoder[1][0].conv1.weight, net.middle_attention.query_key_value.weight
    assert conv.var().item() == pytest.approx(2 / (9 * (32 + 64)), rel=0.05)
    assert attention.var().item() == pytest.approx(0.1 * 2 / (64 + 64), rel=0.05)
    assert conv.abs().max() < (6 / (9 * (32 + 64))) ** 0.5
    assert not net.encoder[0][0].conv2.weight.any() and not net.stem.bias.any()


def test_dropout_acts_in_training_only():
    net, plain = small(dropout=0.5), small(dropout=0.0)
    z, level = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 20.0])
    assert torch.equal(net(z, level), plain(z, level))
    assert not torch.equal(net.train()(z, level), plain(z, level))


def test_data_in_the_unit_interval_are_centred():
    net = small()
    z, level = torch.rand(2, 3, 8, 8), torch.tensor([0.3, 20.0])
    other = copy.deepcopy(net)
    other.centered = False
    torch.testing.assert_close(other(z, level), net(2 * z - 1, level))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"shape": (3, 9, 8)}, "shape must be .* divisible by 2"),
        ({"shape": (3,)}, "shape must be"),
        ({"blocks": 0}, "blocks must be at least 1"),
        ({"multipliers": (1, 0)}, "multipliers must be at least 1"),
        ({"embedding": "sinus"}, "embedding must be one of positional, fourier, got 'sinus'"),
        ({"input_pyramid": "skip"}, "input_pyramid must be one of"),
        ({"scale_by_sigma": True}, "scale_by_sigma must be false"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(ValueError, match=words):
        small(**options)


# ── Its score ─────────────────────────────────────────────────────────────────────────────────────


class Constant(torch.nn.Module):
    """A backbone that returns 1 and keeps its level."""

    def forward(self, z, level):
        self.level = level
        return torch.ones_like(z)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=lambda sde: type(sde).__name__)
def test_level_and_sign_of_the_score(sde):
    t = torch.tensor([1e-3, 0.2, 1.0])
    backbone = Constant()
    score = PublishedScore(backbone, sde)(torch.zeros(3, 2), t)[:, 0]
    if isinstance(sde, VESDE):
        torch.testing.assert_close(backbone.level, sde.sigma(t))
        assert torch.equal(score, torch.ones(3))
    else:
        torch.testing.assert_close(backbone.level, 999 * t)
        torch.testing.assert_close(score, -1 / sde.sigma(t), rtol=1e-3, atol=0)


def test_published_sigma_is_the_original_s_and_near_the_exact_one():
    t = torch.tensor([1e-5, 1e-4, 0.01, 1.0])
    decay = np.exp(-(0.1 * t.double().numpy() + 0.5 * 19.9 * t.double().numpy() ** 2)).astype(
        np.float32
    )
    for sde, expected in ((VPSDE(), np.sqrt(1 - decay)), (SubVPSDE(), 1 - decay)):
        score = PublishedScore(Constant(), sde)
        torch.testing.assert_close(score.published_sigma(t), torch.from_numpy(expected))
        exact = score.published_sigma(t.double()) / sde.sigma(t.double())
        torch.testing.assert_close(exact, torch.ones_like(exact))
    assert (
        abs(
            PublishedScore(Constant(), VPSDE()).published_sigma(t)[0] / VPSDE().sigma(t)[0] - 1.0061
        )
        < 1e-4
    )


def test_score_of_the_wrong_sde():
    with pytest.raises(
        ValueError, match="sde must be vp, subvp or ve for a published network, got LogLinearSDE"
    ):
        PublishedScore(small(), LogLinearSDE())


def test_the_network_decides_which_score_it_gets(tmp_path):
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}}
    for name, kind in (("ncsnpp", PublishedScore), ("unet", ScoreModel)):
        net = {"name": name, "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": []}
        assert type(build_model(tables | {"net": net}, (3, 8, 8)).score) is kind
    for score in (
        ScoreModel(small(), VPSDE()),
        PublishedScore(UNet((3, 8, 8), 8, (1, 2), 1), VPSDE()),
    ):
        with pytest.raises(
            ValueError, match=r"score must be the network's (PublishedScore|ScoreModel)"
        ):
            INDM(Identity(), score, shape=(3, 8, 8)).save(tmp_path)


def test_a_network_that_predicts_nothing_has_the_nelbo_of_pure_noise():
    """With s = 0 the denoising errors are ½‖n‖², so the score term is d/2 times the length of the
    clock.
    """
    torch.manual_seed(0)
    net = NCSNpp((1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=())
    model = INDM(Identity(), PublishedScore(net, VPSDE()), shape=(1, 8, 8))
    terms = nelbo(model, torch.zeros(500, 1, 8, 8))
    error = terms.score.std() / 500**0.5
    assert abs(terms.score.mean() - 32 * model.sde.log_snr_range()) < 4 * error


def test_positional_embedding_is_sine_and_cosine_of_falling_frequencies():
    level, omega = torch.tensor([0.0, 3.0, 700.0]), torch.tensor([1.0, 1e-2, 1e-4])
    phase = level[:, None] * omega
    expected = torch.cat((phase.sin(), phase.cos(), torch.zeros(3, 1)), dim=1)
    torch.testing.assert_close(Positional(7)(level), expected, rtol=1e-5, atol=1e-5)
