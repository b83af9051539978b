"""The transformer and the mixer of patches: formulas written out, autograd, symmetries, and as a part by name."""

import math
from functools import partial

import pytest
import test_net_contract as contract
import torch
from torch import nn
from torch.nn import functional as F

import indm
from research.networks.dit import DiT, SelfAttention

NAME = "research.networks.dit:DiT"
MIXINGS = pytest.mark.parametrize("mixing", ["attention", "mlp"])


def perturbed(net, scale=0.1, seed=0):
    """``net`` with noise on every parameter, so that nothing is hidden behind a zero-initialised layer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def draw(shape, n=5, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return z, torch.linspace(-7, 5, n, dtype=torch.float64).to(dtype)


def small_dit(shape=(2, 8, 8), **options):
    torch.manual_seed(0)
    return perturbed(DiT(shape, **{"width": 8, "depth": 2, "heads": 2, "patch": 2} | options), 0.2)


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    ours, theirs = perturbed(SelfAttention(12, 3), 0.3), nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict({
        "in_proj_weight": ours.query_key_value.weight, "in_proj_bias": ours.query_key_value.bias,
        "out_proj.weight": ours.project.weight, "out_proj.bias": ours.project.bias,
    })  # fmt: skip
    h = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(h), theirs(h, h, h, need_weights=False)[0], atol=1e-5, rtol=1e-5)


def test_attention_knows_patches_by_their_place_alone():
    """Without their places, an image that is shifted by whole patches around its edge gives the shifted output."""
    net, (z, level) = small_dit(shape=(2, 8, 6)), draw((2, 8, 6))
    shifted = partial(torch.roll, shifts=(2, 4), dims=(2, 3))
    assert (net(shifted(z), level) - shifted(net(z, level))).abs().max() > 1e-2
    with torch.no_grad():
        net.place.zero_()
    torch.testing.assert_close(net(shifted(z), level), shifted(net(z, level)), atol=1e-5, rtol=1e-5)
    assert (net(z.roll(1, 2), level) - net(z, level).roll(1, 2)).abs().max() > 1e-2


@MIXINGS
def test_a_patch_writes_its_own_place_and_sees_the_others_by_the_gates(mixing):
    net, (z, level) = small_dit(mixing=mixing), draw((2, 8, 8))
    other = z.clone()
    other[:, :, 2:4, 4:6] += 1
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:4, 4:6] = True
    assert ((net(other, level) - net(z, level)).abs().amax((0, 1)) > 1e-4)[~inside].all()
    with torch.no_grad():
        for block in net.blocks:
            block.level.weight.zero_(), block.level.bias.zero_()
        change = (net(other, level) - net(z, level)).abs().amax((0, 1))
    assert (change[inside] > 1e-3).all() and torch.equal(change[~inside], torch.zeros(60))


@MIXINGS
def test_half_precision_does_not_reach_the_sum_over_blocks(mixing):
    """Under autocast, and with weights in bfloat16 besides."""
    net, (z, level) = small_dit(mixing=mixing), draw((2, 8, 8))
    seen = []
    net.blocks[-1].register_forward_hook(lambda block, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    for model in (net, net.bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            model(z, level)
    assert seen == [(torch.float32, torch.float32)] * 2


def test_starts_at_zero():
    for mixing in ("attention", "mlp"):
        assert not DiT((1, 8, 8), width=8, depth=1, mixing=mixing)(*draw((1, 8, 8))).any()


@pytest.mark.parametrize("height, width", [(9, 11), (8, 13), (3, 4)])
def test_odd_sizes_are_padded_and_cropped(height, width):
    net = small_dit((2, height, width), patch=4)
    z, level = draw(net.shape)
    padded = F.pad(z, (0, 4 * math.ceil(width / 4) - width, 0, 4 * math.ceil(height / 4) - height))
    torch.testing.assert_close(net(z, level), net(padded, level)[:, :, :height, :width], atol=1e-6, rtol=1e-6)


def test_fourier_features_are_waves():
    """A network that is blind to z itself cannot tell z from z + one period."""
    net, (z, level) = small_dit(fourier=(4.0,)).double(), draw((2, 8, 8), dtype=torch.float64)
    with torch.no_grad():
        net.input.weight[:, :2] = 0
        torch.testing.assert_close(net(z + 2 / 4, level), net(z, level))
        assert (net(z + 1 / 4, level) - net(z, level)).abs().max() > 1e-3


def test_dropout_acts_in_training_only():
    net, plain = small_dit(dropout=0.5), small_dit()
    z, level = draw(net.shape)
    assert torch.equal(net(z, level), plain(z, level))
    net.train()
    assert (net(z, level) - net(z, level)).abs().max() > 1e-2


@pytest.mark.parametrize("mixing, mix", [("attention", 4 * 8 * 8 + 4 * 8), ("mlp", 2 * 16 * 32 + 32 + 16)])
def test_parameter_count(mixing, mix):
    w, patch = 8, 2 * 2 * 2
    embedding = (64 * w + w) + (w * w + w)
    block = mix + (8 * w * w + 5 * w) + (6 * w * w + 6 * w)
    ends = (patch * w + w) + 16 * w + (2 * w * w + 2 * w) + (w * patch + patch)
    net = DiT((2, 8, 8), width=w, depth=3, heads=2, mixing=mixing)
    assert sum(p.numel() for p in net.parameters()) == embedding + 3 * block + ends


@pytest.mark.parametrize(
    "options, named",
    [({"shape": (5,)}, "use the MLP"), ({"width": 10, "heads": 4}, "128 will do"),
     ({"patch": 0}, "patch must be at least 1"), ({"mixing": "conv"}, "mixing must be one of attention, mlp")],
)  # fmt: skip
def test_refuses(options, named):
    with pytest.raises(ValueError, match=named):
        DiT(**{"shape": (1, 8, 8)} | options)


@MIXINGS
def test_derivatives_against_finite_differences(mixing):
    net = perturbed(DiT((1, 8, 8), width=4, depth=1, heads=2, patch=4, mixing=mixing).double())
    z, level = draw(net.shape, 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(net, (z.requires_grad_(), level.requires_grad_()), atol=1e-6)


@MIXINGS
def test_it_keeps_the_contract_of_networks(mixing):
    def net():
        return contract.moved(DiT((1, 8, 8), width=8, depth=1, heads=2, mixing=mixing, fourier=(8.0,)))

    contract.test_samples_do_not_see_one_another(net())
    contract.test_every_parameter_gets_a_gradient_and_moves(net())
    for dtype in (torch.float32, torch.float64):
        contract.test_keeps_dtype_and_is_a_function(net(), dtype)


@MIXINGS
@pytest.mark.parametrize("seen", [(3,), (2, 8, 8)])
def test_it_sees_a_condition(mixing, seen):
    net = DiT((2, 8, 8), width=8, depth=1, heads=2, patch=4, mixing=mixing, condition=seen)
    z, level, c = torch.randn(4, 2, 8, 8), torch.linspace(0.5, 3, 4), torch.randn(4, *seen)
    assert torch.equal(net(z, level, c), net(z, level))  # it starts without c
    net = perturbed(net)
    output = net(z, level, c)
    assert torch.equal(net(z, level), net(z, level, torch.zeros_like(c)))
    assert (output - net(z, level)).abs().flatten(1).amax(1).min() > 1e-4
    assert torch.allclose(output[1:2], net(z[1:2], level[1:2], c[1:2]), atol=1e-5)  # rows belong together


def test_a_model_names_it_is_saved(tmp_path):
    table = {"name": NAME, "width": 8, "depth": 1, "heads": 2, "patch": 4, "fourier": [4.0]}
    tables = {"flow": {"name": "elementwise"}, "sde": {"name": "vp"}, "net": table}
    with indm.trust("research"):
        model = perturbed(indm.build_model(tables, (1, 9, 8)), 0.05)
        model.save(tmp_path / "model")
        again = indm.INDM.load(tmp_path / "model")
    x, t = torch.randn(7, 1, 9, 8), torch.linspace(0.05, 0.95, 7)
    with torch.no_grad():
        assert torch.equal(again.score(x, t), model.score(x, t))
