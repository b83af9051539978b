"""What a GPU computes in float32 is what a CPU does in float64. On a machine without a GPU, its CPU
stands for one.

``make gpu`` runs this file by itself, without ``conftest.py``.
"""

import copy
import math
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import indm
from indm.flows import ResidualBlock, ResidualFlow
from indm.sampling import make_sampler, solve_latent
from indm.tensors import evaluation_mode, float32_convolutions, full_precision
from indm.workbench.data.base import as_data
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.devices import device

sys.path.append(str(Path(__file__).parents[1] / "bench"))
from tf32 import TF32

pytestmark = pytest.mark.cuda
DEVICE = torch.device(device())
SHAPE, BATCH = (1, 8, 8), 6
NET = {"name": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]}
FLOWS = {
    "identity": {},
    "coupling": {"depth": 1, "width": 8},
    "elementwise": {},
    "residual": {"blocks": [2], "width": 8},
}
SMALL = {
    "flow": "coupling", "flow.depth": 1, "flow.width": 8, "net.channels": 8, "net.multipliers": [1],
    "train.batch_size": 8, "train.steps": 6, "train.seconds": math.inf, "train.decay": 0.0,
    "train.validate_examples": 8,
}  # fmt: skip


def drawn_on_the_cpu(draw, kind):
    """``draw`` with the same numbers for every device and precision."""

    def drawn(*size, dtype=None, device=None, generator=None):
        return draw(*size, dtype=kind).to(
            device=device, dtype=dtype or (kind if kind is torch.int64 else torch.float32)
        )

    return drawn


@pytest.fixture
def exact(monkeypatch):
    """Equal draws, and no TF32."""
    for name in ("rand", "randn", "randint", "randperm"):
        kind = torch.float64 if name in ("rand", "randn") else torch.int64
        monkeypatch.setattr(torch, name, drawn_on_the_cpu(getattr(torch, name), kind))
    with float32_convolutions():
        yield


def pair(flow):
    """A model in float64 on the CPU, no part of which rests at its start, and the same in float32
    on the device.
    """
    torch.manual_seed(0)
    tables = {"flow": {"name": flow, **FLOWS[flow]}, "sde": {"name": "vp"}, "net": NET}
    model = indm.build_model(tables, SHAPE, indm.Scaling.images(256)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, dtype=torch.float64))
    return model, copy.deepcopy(model).float().to(DEVICE)


def both(flow, compute):
    """``compute(model, x)`` with either model, the same draws, and data that both can represent."""
    x = (torch.rand(BATCH, *SHAPE) * 2 - 1).float()
    results = []
    for model in pair(flow):
        torch.manual_seed(1)
        given = x.to(next(model.parameters()))
        results.append([part.detach().cpu().double() for part in compute(model, given)])
    return results


def assert_near(results, tolerance):
    """Largest differences, over the size of the numbers."""
    for expected, found in zip(*results, strict=True):
        assert expected.isfinite().all() and expected.abs().max() > 0
        assert (found - expected).abs().max() < tolerance * expected.abs().max().clamp_min(1)


@pytest.mark.parametrize("flow", FLOWS)
def test_flow_inverse_and_score(exact, flow):
    def compute(model, x):
        with evaluation_mode(model):
            z, log_det = model.encode(x)
            return (
                z,
                log_det + 1,
                model.decode(z),
                model.score(z, torch.linspace(0.01, 0.99, BATCH).to(x)),
            )

    assert_near(both(flow, compute), 1e-4)


@pytest.mark.parametrize("loss", [indm.mle_loss, indm.fid_loss])
@pytest.mark.parametrize("flow", FLOWS)
def test_losses_and_their_gradients(exact, flow, loss):
    def compute(model, x):
        value, terms = loss(model, x)
        value.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return value[None], torch.stack([*terms.values()]), torch.cat(gradients)

    assert_near(both(flow, compute), 1e-3)


@pytest.mark.parametrize("flow", FLOWS)
def test_likelihoods(exact, flow):
    def compute(model, x):
        report = indm.nll(model, x, steps=16)
        return report.total, indm.nelbo(model, x, times=2).total

    assert_near(both(flow, compute), 1e-4)


@pytest.mark.parametrize("name", ["unipc", "heun", "dpm++2m", "euler-maruyama", "pc", "ode"])
def test_samples(exact, name):
    sampler = make_sampler(name, **{"tol": 0.1} if name == "ode" else {})

    def compute(model, x):
        with evaluation_mode(model):
            return (model.decode(solve_latent(model, 3 * x, sampler, 8)[0]),)

    assert_near(both("coupling", compute), 1e-3)


def test_bfloat16_rounds_the_networks_alone(exact):
    """z and log|det| stay in float32, and the gradient points where it does in float32."""
    _, model = pair("residual")
    x = (torch.rand(64, *SHAPE) * 2 - 1).to(DEVICE)
    found = []
    for cast in (False, True):
        torch.manual_seed(1)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=cast):
            assert (torch.ones(2, 2, device=DEVICE) @ torch.ones(2, 2, device=DEVICE)).dtype == (
                torch.bfloat16 if cast else torch.float32
            )
            z, log_det = model.encode(x)
            loss, _ = indm.mle_loss(model, x)
        model.zero_grad()
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        assert z.dtype == log_det.dtype == loss.dtype == gradient.dtype == torch.float32
        found.append((loss.item(), gradient))
    (exact, expected), (rounded, gradient) = found
    assert exact != rounded and rounded == pytest.approx(exact, rel=0.02)
    assert torch.cosine_similarity(expected, gradient, dim=0) > 0.99


@pytest.mark.filterwarnings("ignore:the run ended")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_training_resumes(tmp_path, precision):
    """To the last bit on a CPU; a GPU adds gradients up in any order."""
    recipe = recipes.recipe("digits", SMALL | {"train.mixed_precision": precision})
    data = as_data(torch.randint(0, 256, (40, *SHAPE), dtype=torch.uint8))

    def train(run, **options):
        indm.train(recipe, tmp_path / run, data=data, progress=False, **options)
        state = indm.INDM.load(tmp_path / run).state_dict()
        return torch.cat([value.flatten().double() for value in state.values()])

    whole = train("whole")
    half = train("parts", callbacks=[lambda trainer, terms: trainer.step == 3])
    off = (train("parts", resume=True) - whole).norm() / (half - whole).norm()
    assert off == 0 if DEVICE.type == "cpu" else off < 0.05


def is_tf32():
    cudnn = torch.backends.cudnn
    return cudnn.conv.fp32_precision == "tf32" if hasattr(cudnn, "conv") else cudnn.allow_tf32


@pytest.mark.long
def test_an_inverse_is_found_although_convolutions_are_rounded_by_default():
    """Of a map with slopes near 0.94: of rounded factors, none meets the tolerance."""
    flow = ResidualFlow(SHAPE, (1,), 8).eval().to(DEVICE)
    for part in flow.modules():
        if isinstance(part, ResidualBlock):
            for linear in part.maps:
                torch.nn.init.dirac_(linear.weight)
    z = (torch.rand(2, *SHAPE) * 2 - 1).to(DEVICE)
    before = is_tf32()
    with TF32(is_tf32) if DEVICE.type == "cpu" else nullcontext(), torch.no_grad():
        if DEVICE.type == "cpu":
            assert before and not flow.solve_inverse(z)[3].any()
        for exact in (evaluation_mode(flow), full_precision(DEVICE)):
            with exact:
                assert not is_tf32() and flow.solve_inverse(z)[3].all()
            assert is_tf32() == before
