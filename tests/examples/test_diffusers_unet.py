"""The adapter of diffusers' U-Nets against that library's own predictions, at each step of its
schedule and between.
"""

import pytest
import torch
from example import load
from torch.testing import assert_close

import indm
from indm import INDM, ScoreModel
from indm.flows import Identity
from indm.sde import VESDE, VPSDE, SubVPSDE

diffusers = pytest.importorskip("diffusers")
DiffusersUNet, SMALL = load("diffusers_unet", "DiffusersUNet", "SMALL")


@pytest.fixture(params=["epsilon", "v_prediction"])
def pipeline(request, tmp_path):
    """One that was saved and read again."""
    torch.manual_seed(3)
    unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **SMALL)
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type=request.param
    )
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
    return diffusers.DDPMPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(sigma_min=0.01, sigma_max=50.0)])
def test_the_score_is_that_of_the_prediction(pipeline, sde):
    """At the times of our SDE whose noise is that of a step: x̂ and ε̂ of diffusers from √ᾱ x + √(1
    − ᾱ) n.
    """
    scheduler = pipeline.scheduler
    score = ScoreModel(DiffusersUNet.from_unet(pipeline.unet, scheduler), sde).double().eval()
    steps = torch.tensor([40, 200, 500, 800])
    alpha = scheduler.alphas_cumprod[steps].double().sqrt()
    sigma = (1 - alpha**2).sqrt()
    y = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        predicted = pipeline.unet.double()(y, steps).sample
        a, s = (part[:, None, None, None] for part in (alpha, sigma))
        noise = (
            predicted if scheduler.config.prediction_type == "epsilon" else a * predicted + s * y
        )
        t = sde.time(2 * (alpha.log() - sigma.log()))
        std = torch.hypot(sde.alpha(t), sde.sigma(t))[:, None, None, None]
        found = score(std * y, t)
    assert_close(-found * sde.sigma(t)[:, None, None, None], noise, rtol=1e-4, atol=1e-4)


def test_steps_between_those_of_the_schedule_and_beyond(pipeline):
    net, seen = DiffusersUNet.from_unet(pipeline.unet, pipeline.scheduler), []
    net.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    table = net.levels
    assert (table.diff() > 0).all()
    between = 0.25 * table[300] + 0.75 * table[301]
    with torch.no_grad():
        net(torch.zeros(4, 1, 8, 8), torch.stack([table[0] - 1, table[10], between, table[-1] + 1]))
    assert_close(seen[0], torch.tensor([0.0, 10.0, 300.75, 999.0]), rtol=0, atol=1e-3)


def test_a_model_around_it_is_saved_and_loaded_without_the_pipeline(pipeline, tmp_path):
    net = DiffusersUNet.from_unet(pipeline.unet, pipeline.scheduler)
    model = INDM(Identity(), ScoreModel(net, VPSDE()), indm.Scaling.images(256), shape=net.shape)
    model.save(tmp_path / "model")
    with indm.trust("diffusers_unet"):
        again = INDM.load(tmp_path / "model")
    z, t = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 0.5, 0.9])
    with torch.no_grad():
        assert torch.equal(model.eval().score(z, t), again.eval().score(z, t))
