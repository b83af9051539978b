"""Backbones: against formulas written out, autograd, and the symmetries that they must have."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from indm.nets import MLP, UNet
from indm.nets.embedding import LevelEmbedding
from indm.nets.unet import Attention, ResBlock, attend, group_norm


def perturbed(net, scale=0.1, seed=0):
    """``net`` with noise on every parameter, so that nothing is hidden behind a zero-initialised
    layer.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def small_unet(shape=(2, 8, 8), **options):
    torch.manual_seed(0)
    return perturbed(
        UNet(
            shape,
            **{"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (8,)} | options,
        )
    )


def draw(shape, n=5, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return z, torch.linspace(-7, 5, n, dtype=torch.float64).to(dtype)


def test_derivatives_against_finite_differences():
    nets = [(MLP((2,), width=8, depth=1), 3), (UNet((1, 8, 8), 4, (1, 2), 1, (8,)), 1)]
    for net, n in nets:
        net = perturbed(net.double())
        z, level = draw(net.shape, n, dtype=torch.float64)
        assert torch.autograd.gradcheck(
            net, (z.requires_grad_(), level.requires_grad_()), atol=1e-6
        )


def test_fourier_features_are_waves_of_each_channel():
    """Blind to z itself, the network sees it up to periods 2/k, and shifted where its weights are
    turned.
    """
    net, (z, level) = small_unet(fourier=(4.0, 8.0)).double(), draw((2, 8, 8), dtype=torch.float64)
    with torch.no_grad():
        net.stem.weight[:, :2] = 0
        seen = net(z, level)
        torch.testing.assert_close(net(z + 2 / 4, level), seen)
        assert (net(z + 2 / 8, level) - seen).abs().max() > 1e-3
        sin4, cos4, sin8, cos8 = net.stem.weight[:, 2:].clone().split(2, dim=1)
        # by a quarter of the longer period, 1/8
        net.stem.weight[:, 2:] = torch.cat([-cos4, sin4, -sin8, -cos8], 1)
        torch.testing.assert_close(net(z - 1 / 8, level), seen)


class TestLevelEmbedding:
    def distance(self, delta):
        """Root mean square distance of the features of levels that differ by ``delta``, at a random
        base level.
        """
        embedding = LevelEmbedding(16).double()
        base = -8 + 14 * torch.rand_like(delta)
        difference = embedding.features(base + delta) - embedding.features(base)
        return difference.square().mean(1).sqrt()

    def test_distance_is_a_function_of_the_difference(self):
        delta = torch.linspace(0, 6, 50, dtype=torch.float64)
        periods = 32.0 ** (1 - torch.arange(32, dtype=torch.float64) / 31)
        expected = (2 * (math.pi * delta[:, None] / periods).sin().square()).mean(1).sqrt()
        torch.testing.assert_close(self.distance(delta), expected, atol=1e-5, rtol=1e-5)

    def test_near_levels_are_told_apart_in_order(self):
        distance = self.distance(torch.arange(0, 10, dtype=torch.float64) * 0.05)
        assert (distance.diff() > 0.02).all()

    def test_far_levels_never_look_alike(self):
        near = self.distance(torch.tensor([0.3], dtype=torch.float64))
        assert (
            self.distance(torch.linspace(0.3, 14, 4000, dtype=torch.float64)) >= near - 1e-6
        ).all()


class TestMLP:
    def test_features_written_out(self):
        net, z = MLP((2,), fourier=3), torch.tensor([[0.3, -1.2]])
        rungs = [math.pi / 2, math.pi, 2 * math.pi]
        expected = [0.3, -1.2]
        expected += [math.sin(w * x) for w in rungs for x in (0.3, -1.2)]
        expected += [math.cos(w * x) for w in rungs for x in (0.3, -1.2)]
        torch.testing.assert_close(net.features(z), torch.tensor([expected]), atol=1e-5, rtol=1e-5)

    def test_without_fourier_features_sees_z_alone(self):
        z, level = draw((2, 3))
        net = perturbed(MLP((2, 3), width=8, depth=1, fourier=0))
        assert torch.equal(net.features(z), z.flatten(1))
        assert net(z, level).shape == z.shape

    @pytest.mark.long
    def test_learns_the_exact_denoiser_of_gaussian_data(self):
        """For z₀ ~ N(0, I) and α² + σ² = 1 the best noise estimate is σ z_t, with σ² = sigmoid(2
        level).
        """
        torch.manual_seed(0)
        net = MLP((2,), width=64, depth=2)
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=300)

        def error(n):
            z, level = torch.randn(n, 2), -7 + 12 * torch.rand(n)
            return (net(z, level) - torch.sigmoid(2 * level).sqrt()[:, None] * z).square().mean()

        before = error(4000).item()
        for _ in range(300):
            optimizer.zero_grad()
            error(256).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            assert error(4000).item() < 2e-3 < 0.3 < before


class TestUNet:
    @pytest.mark.parametrize("shape", [(1, 8, 8), (2, 9, 14), (3, 13, 8), (5, 16, 11)])
    def test_memory_format_does_not_matter(self, shape):
        net = small_unet(shape)
        z, level = draw(shape)
        expected = net(z, level)
        torch.testing.assert_close(
            net(z.to(memory_format=torch.channels_last), level), expected, atol=1e-5, rtol=1e-5
        )
        net.to(memory_format=torch.channels_last)
        torch.testing.assert_close(
            net(z.to(memory_format=torch.channels_last), level), expected, atol=1e-5, rtol=1e-5
        )

    @pytest.mark.parametrize("height, width", [(9, 11), (8, 13), (15, 8), (12, 12)])
    def test_odd_sizes_are_padded_and_cropped(self, height, width):
        net = small_unet((2, height, width), multipliers=(1, 2, 2))
        z, level = draw(net.shape)
        padded = F.pad(
            z, (0, 4 * math.ceil(width / 4) - width, 0, 4 * math.ceil(height / 4) - height)
        )
        torch.testing.assert_close(
            net(z, level), net(padded, level)[:, :, :height, :width], atol=1e-6, rtol=1e-6
        )

    @pytest.mark.parametrize(
        "height, attention, expected",
        [(8, (8,), [8]), (9, (12,), [12]), (9, (9,), []), (28, (14, 7), [14, 7]), (16, (), [])],
    )
    def test_attention_lies_at_the_stated_heights(self, height, attention, expected):
        net = UNet((1, height, 8), channels=4, multipliers=(1, 1, 1), blocks=1, attention=attention)
        seen = []
        for stages in (*net.encoder, *net.decoder):
            for stage in stages:
                if isinstance(stage.attention, Attention):
                    stage.attention.register_forward_hook(
                        lambda module, inputs, output: seen.append(output.shape[2])
                    )
        net(*draw(net.shape, 1))
        assert seen == expected + expected[::-1]

    def test_dropout_acts_in_training_only(self):
        net, plain = small_unet(dropout=0.5), small_unet()
        z, level = draw(net.shape)
        assert torch.equal(net(z, level), plain(z, level))
        net.train()
        assert (net(z, level) - net(z, level)).abs().max() > 1e-2
        assert torch.equal(plain.train()(z, level), plain.eval()(z, level))

    @pytest.mark.parametrize("shape", [(1, 7, 8), (1, 8, 4), (8, 8), (64,), (1, 1, 8, 8)])
    def test_refuses_what_is_no_image(self, shape):
        with pytest.raises(ValueError, match=rf"shape .*{shape[-1]}"):
            UNet(shape)

    def test_refuses_no_block(self):
        with pytest.raises(ValueError, match="blocks"):
            UNet((1, 8, 8), blocks=0)


@pytest.mark.parametrize("tokens", [7, 300])
def test_attention_in_bfloat16_is_the_formula_for_few_tokens_and_the_fused_kernel_for_more(
    tokens, monkeypatch
):
    fused, calls = F.scaled_dot_product_attention, []
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *parts: calls.append(1) or fused(*parts)
    )
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, tokens, 8).bfloat16().requires_grad_() for _ in range(3)]
    exact = [part.detach().double().requires_grad_() for part in parts]
    of_ours = torch.autograd.grad((ours := attend(*parts)).square().sum(), parts)
    assert len(calls) == (tokens > 128) and ours.dtype == torch.bfloat16
    of_exact = torch.autograd.grad((expected := fused(*exact)).square().sum(), exact)
    for found, wanted in zip((ours, *of_ours), (expected, *of_exact), strict=True):
        torch.testing.assert_close(
            found.double(), wanted, atol=0.02 * wanted.abs().max().item(), rtol=0.02
        )


def test_attention_written_out():
    torch.manual_seed(0)
    attention = perturbed(Attention(6), 0.3)
    h = torch.randn(2, 6, 3, 4)
    pixels = attention.norm(h).permute(0, 2, 3, 1).reshape(2, 12, 6)
    weight, bias = attention.query_key_value.weight, attention.query_key_value.bias
    q, k, v = (pixels @ weight[i : i + 6].T + bias[i : i + 6] for i in (0, 6, 12))
    mixed = torch.einsum(
        "bij,bjc->bic", torch.softmax(torch.einsum("bic,bjc->bij", q, k) / math.sqrt(6), -1), v
    )
    update = (
        (mixed @ attention.project.weight.T + attention.project.bias)
        .reshape(2, 3, 4, 6)
        .permute(0, 3, 1, 2)
    )
    torch.testing.assert_close(attention(h), (h + update) / math.sqrt(2), atol=1e-5, rtol=1e-5)


def test_residuals_start_as_a_rescaled_identity():
    h, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    torch.testing.assert_close(ResBlock(8, 8, 16, 0.0)(h, embedding), h / math.sqrt(2))
    torch.testing.assert_close(Attention(8)(h), h / math.sqrt(2))


@given(channels=st.integers(1, 600))
@settings(max_examples=100, deadline=None)
def test_group_count_suits_the_channels(channels):
    groups = group_norm(channels).num_groups
    assert channels % groups == 0 and groups <= 32 and (groups == 1 or channels // groups >= 4)
    assert all(channels % more or channels // more < 4 for more in range(groups + 1, 33))
