"""Known instruments before real data: volumes by autograd, and the fixed whitening."""

import math

import pytest
import torch
from torch.autograd.functional import jacobian

from research.verdict import recorded


def test_the_volume_of_a_frame_round_the_circle_is_that_of_autograd():
    u = 2 * torch.randn(1, 16, dtype=torch.float64)
    _, volume = recorded.round_the_circle(u)
    matrix = jacobian(lambda u: recorded.round_the_circle(u)[0][0], u)[:, 0]
    assert volume.item() == pytest.approx(torch.linalg.slogdet(matrix).logabsdet.item(), abs=1e-9)


def test_the_volume_of_a_whole_sound_is_that_of_its_curve():
    sound = 2 * torch.randn(40, dtype=torch.float64)
    _, slopes = recorded.through(sound)
    matrix = jacobian(lambda s: recorded.through(s)[0], sound)
    assert slopes.sum().item() == pytest.approx(
        torch.linalg.slogdet(matrix).logabsdet.item(), abs=1e-9
    )


def test_both_instruments_of_speech_are_one_far_from_the_ends():
    """A frame in silence: what leaves the frame is nothing."""
    sound = torch.zeros(64, dtype=torch.float64)
    sound[5:45] = torch.randn(40, dtype=torch.float64)
    whole, circle = recorded.through(sound)[0], recorded.round_the_circle(sound[None])[0][0]
    assert torch.allclose(whole, circle, atol=1e-9)


@pytest.fixture
def few_clothes(monkeypatch):
    raw = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    images = type("Images", (), dict.fromkeys(("train", "valid", "test"), raw))
    monkeypatch.setattr(recorded, "load", lambda name: images)
    recorded.clothes.cache_clear()
    yield raw
    recorded.clothes.cache_clear()


def test_the_volume_of_an_image_round_the_torus_is_that_of_autograd(few_clothes):
    """From the differences of x at two images, whose noise is the same for each number."""
    plain, volume_0 = recorded.clothes(None, "circular")["train"]
    x, volume = recorded.clothes(1, "circular")["train"]
    spread, exponent, strength = recorded.optics(1)
    noise = torch.rand(few_clothes.shape, generator=recorded.seeded(22), dtype=torch.float64)
    u = (few_clothes.double() + noise) / 256

    def through(u):
        curved = (recorded.blurred(u[None], spread, "circular") + 0.02).pow(exponent)
        return ((1 + strength) * curved - strength * recorded.blurred(curved, 1.0, "circular"))[0]

    made = torch.stack([through(image) for image in u])
    assert torch.allclose(x.double(), (made - made.mean()) / made.std(), atol=1e-6)
    matrix = jacobian(through, u[0]).reshape(256, 256)
    whole = torch.linalg.slogdet(matrix).logabsdet - 256 * (made.std().log() + math.log(256))
    assert volume[0].item() == pytest.approx(whole.item(), abs=1e-6)
    assert volume_0.unique().numel() == 1 and plain.shape == x.shape


@pytest.mark.parametrize("shape", [(64,), (1, 16, 16)])
def test_the_whitening_makes_the_spectrum_flat(shape):
    rough = torch.randn(400, *shape)
    x = rough + rough.roll(1, -1) * 0.7
    z = recorded.whitening(x).latent(x - x.mean(0)).reshape(400, -1, shape[-1])
    power = torch.fft.rfft2(z, norm="ortho").abs().square().mean(0)
    assert torch.allclose(power, torch.ones_like(power), atol=1e-3)


def test_a_recording_is_in_one_split_for_ever():
    assert {recorded.part_of(f"{n}.wav") for n in range(200)} == {"train", "valid", "test"}
    assert recorded.part_of("en_US_f_Allison/activated.wav") == "test"
