"""Networks of diffusers against that library's own predictions, at every step of its schedule and between."""

import sys

import pytest
import torch
from contract_parts import OPTIONS as PARTS
from torch.testing import assert_close

import indm
from indm import INDM, ScoreModel
from indm.flows import Identity
from indm.nets.diffusers import DiffusersUNet
from indm.sde import VESDE, VPSDE, SubVPSDE

diffusers = pytest.importorskip("diffusers")
OPTIONS = PARTS["net"]["diffusers"]["options"]


@pytest.fixture(params=["epsilon", "v_prediction"])
def pipeline(request, tmp_path):
    torch.manual_seed(3)
    unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **OPTIONS).eval()
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=request.param)
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
    return tmp_path, unet, scheduler


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(sigma_min=0.01, sigma_max=50.0)])
def test_the_score_is_that_of_the_prediction(pipeline, sde):
    """At the times of our SDE whose noise is that of a step: x̂ and ε̂ of diffusers from √ᾱ x + √(1 − ᾱ) n."""
    folder, unet, scheduler = pipeline
    score = ScoreModel(DiffusersUNet.from_pipeline(folder), sde).double()
    steps = torch.tensor([40, 200, 500, 800])
    alpha = scheduler.alphas_cumprod[steps].double().sqrt()
    sigma = (1 - alpha**2).sqrt()
    y = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        predicted = unet.double()(y, steps).sample
        a, s = (part[:, None, None, None] for part in (alpha, sigma))
        noise = predicted if scheduler.config.prediction_type == "epsilon" else a * predicted + s * y
        t = sde.time(2 * (alpha.log() - sigma.log()))
        std = torch.hypot(sde.alpha(t), sde.sigma(t))[:, None, None, None]
        found = score(std * y, t)
    assert_close(-found * sde.sigma(t)[:, None, None, None], noise, rtol=1e-4, atol=1e-4)


def test_steps_between_those_of_the_schedule_and_beyond(pipeline):
    net = DiffusersUNet.from_pipeline(pipeline[0])
    table = net.log_noise_to_signal
    assert (table.diff() > 0).all()
    between = 0.25 * table[300] + 0.75 * table[301]
    level = torch.stack([table[0] - 1, table[10], between, table[-1] + 1])
    assert_close(net.step(level), torch.tensor([0.0, 10.0, 300.75, 999.0]), rtol=0, atol=1e-3)


def test_objects_make_the_network_of_their_folder(pipeline):
    folder, unet, scheduler = pipeline
    made, read = DiffusersUNet.from_unet(unet, scheduler), DiffusersUNet.from_pipeline(folder)
    z, level = torch.randn(3, 1, 8, 8), torch.tensor([-2.0, 0.0, 3.0])
    with torch.no_grad():
        assert torch.equal(made.eval()(z, level), read.eval()(z, level)) and made.prediction == read.prediction
    wide = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=2, **OPTIONS)
    with pytest.raises(ValueError, match="unet must be of square images with as many channels out as in"):
        DiffusersUNet.from_unet(wide, scheduler)


def test_a_model_around_it_is_saved_and_loaded_without_the_pipeline(pipeline, tmp_path):
    net = DiffusersUNet.from_pipeline(pipeline[0])
    model = INDM(Identity(), ScoreModel(net, VPSDE()), indm.Scaling.images(256), shape=net.shape)
    model.save(tmp_path / "model")
    again = INDM.load(tmp_path / "model")
    z, t = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 0.5, 0.9])
    with torch.no_grad():
        assert torch.equal(model.eval().score(z, t), again.eval().score(z, t))


def test_mistakes(tmp_path, pipeline):
    with pytest.raises(ValueError, match="has no option 'block_channels'"):
        DiffusersUNet((1, 8, 8), {"block_channels": 3})
    with pytest.raises(ValueError, match="options do not fit UNet2DModel"):
        DiffusersUNet((1, 8, 8), {"down_block_types": ["DownBlock2D"]})
    with pytest.raises(ValueError, match=r"must be \(channels, side, side\)"):
        DiffusersUNet((4,))
    with pytest.raises(ValueError, match="prediction must be of excess, epsilon"):
        DiffusersUNet((1, 8, 8), OPTIONS, prediction="sample")
    config = pipeline[0] / "unet" / "config.json"
    config.write_text(config.read_text().replace("UNet2DModel", "UNet2DConditionModel"))
    with pytest.raises(ValueError, match="must hold a UNet2DModel, got 'UNet2DConditionModel'"):
        DiffusersUNet.from_pipeline(pipeline[0])


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"needs the library diffusers: pip install 'indm\[diffusers\]'"):
        DiffusersUNet((1, 8, 8), OPTIONS)
