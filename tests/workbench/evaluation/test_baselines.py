"""Baselines against closed forms, dense matrices, integration over the noise, and files counted one
by one.
"""

import io
import math
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import MultivariateNormal

from indm.evaluation.statistics import mean_and_error
from indm.scaling import Scaling
from indm.workbench.data.base import Data, InMemory
from indm.workbench.evaluation import baselines as module
from indm.workbench.evaluation.baselines import baselines, fit_gaussian, gaussian_nats, png_nats


def draw(*shape, levels=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.randn(shape, generator=generator)
    return torch.randint(levels, shape, generator=generator, dtype=torch.uint8)


def three(train, valid, test, levels=None, centered=True, flip=False):
    scaling = Scaling.images(levels, centered) if levels else Scaling.standardise(train)
    return Data(
        "three", *map(InMemory, (train, valid, test)), scaling, tuple(train.shape[1:]), flip=flip
    )


def dense(gaussian):
    """The law as PyTorch has it, from the formula of its covariance."""
    correlation = gaussian.basis @ gaussian.variance.diag() @ gaussian.basis.T
    return MultivariateNormal(gaussian.mean, gaussian.std[:, None] * correlation * gaussian.std)


@pytest.mark.parametrize("full", [True, False])
def test_a_gaussian_law_has_its_entropy(full, monkeypatch):
    """Of many examples; with a diagonal covariance, that of independent entries of the same
    variances.
    """
    monkeypatch.setattr(module, "LARGEST_DENSE", 3 if full else 2)
    monkeypatch.setattr(module, "MOST_TRAINING_DIAGONAL", 20_000)
    law = MultivariateNormal(
        torch.tensor([1.0, -2, 30]), torch.tensor([[4.0, 1, 0], [1, 1, -8], [0, -8, 100]])
    )
    torch.manual_seed(0)
    train, valid, test = law.sample((20_000,)), law.sample((500,)), law.sample((4000,))
    data = three(train, valid, test)
    rows, nats = baselines(data, data, test, torch.zeros(4000))
    variances = law.covariance_matrix.diagonal()
    entropy = law.entropy() if full else (0.5 * (2 * math.pi * math.e * variances).log()).sum()
    gaussian = rows["gaussian"]
    assert set(rows) == set(nats) == {"gaussian"}  # floats have neither grey levels nor files
    assert abs(gaussian["nats"] - entropy) < 3 * gaussian["nats_standard_error"] < 0.1
    assert gaussian["nats_standard_error"] == pytest.approx(mean_and_error(nats["gaussian"])[1])
    assert gaussian["name"] == f"a Gaussian with {'full' if full else 'diagonal'} covariance"
    assert gaussian["examples"] == 20_000


def test_iid_uniform_levels():
    """log₂ L of noise; the Gaussian knows no edges: ½ log₂ (2πe L²/12) of it; no file is shorter
    than its pixels.
    """
    images = draw(600, 1, 8, 8, levels=256)
    data = three(images[:400], images[400:500], images[500:], levels=256)
    nelbo = torch.full((100,), 64 * math.log(256) + 3.0)
    rows, nats = baselines(data, data, data.test.tensor, nelbo)
    assert (nats["uniform"] == 64 * math.log(256)).all() and rows["uniform"][
        "bits_per_dim"
    ] == pytest.approx(8)
    assert rows["uniform"]["nelbo_difference"]["nats"] == pytest.approx(3.0)
    assert rows["uniform"]["bits_per_dim_standard_error"] == 0
    flat = 0.5 * math.log2(2 * math.pi * math.e * 256**2 / 12)
    assert rows["gaussian"]["bits_per_dim"] == pytest.approx(flat, abs=0.03)
    assert 8 < rows["png"]["bits_per_dim"] < 8 + 8 * 80 / 64
    less = nelbo - nats["png"]
    difference = rows["png"]["nelbo_difference"]
    assert difference["nats"] == pytest.approx(less.mean().item())
    assert difference["nats_standard_error"] == pytest.approx(less.std().item() / 10)
    assert difference["bits_per_dim_standard_error"] == pytest.approx(
        less.std().item() / 10 / (64 * math.log(2))
    )


@pytest.mark.parametrize("centered", [True, False])
def test_the_noise_is_averaged_over(centered, monkeypatch):
    """Two pixels of four levels: −log p, integrated over the unit square of noise at each of the 16
    pairs.
    """
    fitted = []

    def keep(*args, **options):
        fitted.append(fit_gaussian(*args, **options))
        return fitted[-1]

    monkeypatch.setattr(module, "fit_gaussian", keep)
    first = draw(3000, 1, 1, 1, levels=4)
    pairs = torch.cat([first, (first + draw(3000, 1, 1, 1, levels=2, seed=1)).clamp(max=3)], 3)
    data = three(pairs[:2000], pairs[2000:2500], pairs[2500:], levels=4, centered=centered)
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(4)).to(torch.uint8)
    nats, _ = gaussian_nats(data, grid.reshape(16, 1, 1, 2), seed=0)
    u = (torch.arange(40).double() + 0.5) / 40
    noise = torch.cartesian_prod(u, u)
    scale, shift = data.scaling.scale.double(), data.scaling.shift.double()
    law = dense(fitted[0][0])
    for pair, value in zip(grid.double(), nats, strict=True):
        density = law.log_prob((pair + noise - shift) / scale) - 2 * scale.log()
        assert value.item() == pytest.approx(-density.mean().item(), abs=2e-3)
    probability = (-nats).exp().sum()
    assert 0.3 < probability < 1  # a bound of one: Jensen's inequality only takes away


@pytest.mark.parametrize("n", [40, 5])
def test_shrunk_covariance_is_that_of_the_formula(n):
    """With fewer examples than dimensions, too."""
    train, valid = draw(n, 12), draw(9, 12, seed=1).double()
    v = (train.double() - train.double().mean(0)) / train.double().std(0, correction=0)
    noise = torch.linspace(0, 0.1, 12).double()
    gaussian, w = fit_gaussian(train.clone(), valid, noise, full=True)
    correlation = (1 - w) * v.T @ v / n + w * torch.eye(12).double()
    law = MultivariateNormal(
        train.double().mean(0), gaussian.std[:, None] * correlation * gaussian.std
    )
    trace = (law.precision_matrix.diagonal() * noise).sum()
    assert torch.allclose(gaussian.nats(gaussian.squares(valid)), -law.log_prob(valid) + trace / 2)
    assert torch.allclose(gaussian.mean, train.double().mean(0), atol=1e-6)


def test_what_is_chosen_makes_the_validation_likeliest():
    """Independent entries need much shrinkage where examples are few, perfectly correlated ones
    none.
    """
    noise = torch.zeros(50).double()
    _, alone = fit_gaussian(draw(20, 50), draw(500, 50, seed=1).double(), noise, full=True)
    common = draw(520, 1, seed=2) + 0.001 * draw(520, 50, seed=3)
    _, together = fit_gaussian(common[:20].clone(), common[20:].double(), noise, full=True)
    assert alone > 0.5 and together < 1e-4
    silent = draw(400, 50)
    silent[:, 0] = 0.0
    heard = silent[200:].clone()
    heard[:, 0] = 1.0  # of which the training split shows nothing
    for valid, floor in ((heard, 1e-2), (silent[200:], 1e-6)):
        gaussian, _ = fit_gaussian(silent[:200].clone(), valid.double(), noise, full=False)
        assert gaussian.std[0].item() == pytest.approx(math.sqrt(floor * 49 / 50), rel=0.2)


@pytest.mark.parametrize(
    ("levels", "channels", "depth"),
    [
        (256, 1, 8),
        (256, 3, 8),
        (17, 1, 8),
        (2, 1, 1),
        (2, 3, 8),
        (1000, 1, 16),
        (1000, 3, None),
        (256, 2, None),
    ],
)
def test_png_is_what_the_files_hold(levels, channels, depth, tmp_path):
    """Every byte of the file counts; the file has the fewest bits a pixel that Pillow writes, and
    gives it back.
    """
    first = torch.arange(3 * channels).reshape(3, channels, 1, 1)
    pattern = (torch.arange(50)[:, None] + torch.arange(40) // 3) ** 2 // 7
    images = (pattern + first) % levels  # repeats itself, as pictures do
    nats = png_nats(images, levels)
    if depth is None:
        assert nats is None
        return
    for image, value in zip(images, nats, strict=True):
        pixels = (
            image.movedim(0, -1)
            .numpy()
            .squeeze()
            .astype({1: bool, 8: np.uint8, 16: np.uint16}[depth])
        )
        Image.fromarray(pixels).save(tmp_path / "a.png", optimize=True)
        content = (tmp_path / "a.png").read_bytes()
        Image.fromarray(pixels).save(tmp_path / "quick.png")
        assert len(content) < (tmp_path / "quick.png").stat().st_size or channels == 1
        assert value.item() == pytest.approx(8 * len(content) * math.log(2))
        assert struct.unpack(">IIBB", content[16:26]) == (40, 50, depth, 2 if channels == 3 else 0)
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(content))).astype(int), pixels.astype(int)
        )
