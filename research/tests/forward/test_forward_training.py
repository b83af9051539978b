"""Training with a forward process: it resumes to the last bit, processes make the run of one, and both scores learn."""

import math

import pytest
import torch
from launch import InDouble
from processes import fork_group
from test_processes import largest_difference
from test_reliability import TINY, compare_runs
from test_training import change
from torch.utils.data import TensorDataset

from indm.workbench.cli.main import main
from indm.workbench.training.loop import train
from research.forward.likelihood import log_likelihood
from research.forward.model import ForwardINDM
from research.forward.objective import nelbo

PROCESSES = {
    "research.forward.learned:Affine": {"width": 8},
    "research.forward.coded:Coded": {"width": 8, "code_size": 4},
}
OURS = {"objective": "research.forward.objective:mle"}
RECIPES = {
    name: change(TINY, steps=8, soft_truncation=0, pretrain=0, flow_update_every=1, **OURS)
    | {"sde": {"name": name} | options}
    for name, options in PROCESSES.items()
}
PLANE = {
    "flow": {"name": "identity"},
    "sde": {"name": "research.forward.learned:Affine", "width": 16, "base": "vp", "eps": 1e-3},
    "net": {"name": "mlp", "width": 32, "depth": 2, "fourier": 0},
    "train": {"steps": 400, "batch_size": 256, "lr": 3e-3, "decay": 0.3, "threads": 1} | OURS,
}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_run_resumes_to_the_last_bit(name, tmp_path):
    train(RECIPES[name], tmp_path / "whole", progress=False)
    train(RECIPES[name], tmp_path / "parts", progress=False, callbacks=[lambda trainer, _: trainer.step == 4])
    train(RECIPES[name], tmp_path / "parts", progress=False, resume=True)
    compare_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("name", PROCESSES)
def test_processes_make_the_run_of_one(name, tmp_path):
    train(RECIPES[name], tmp_path / "1", progress=False, trainer=InDouble)
    fork_group(2, lambda: train(RECIPES[name], tmp_path / "many", progress=False, trainer=InDouble))
    assert largest_difference(tmp_path / "1", tmp_path / "many") < 1e-9


@pytest.mark.long
def test_both_scores_and_the_process_learn_in_one_run(tmp_path):
    """The NLL, which needs both scores, comes near the entropy; the bound stays above it."""
    generator = torch.Generator().manual_seed(0)
    sign = 2.0 * (torch.rand(3000, 1, generator=generator) < 0.5) - 1
    x = torch.cat([sign, -sign], 1) + 0.3 * torch.randn(3000, 2, generator=generator)
    train(PLANE, tmp_path / "run", data=TensorDataset(x), progress=False)
    model = ForwardINDM.load(tmp_path / "run")
    assert any(p.abs().max() > 0.05 for p in model.process.parameters())
    units, log_q = model.from_data(x[:1000])
    entropy = math.log(2) + math.log(2 * math.pi * math.e * 0.3**2)  # of two separate Gaussians
    nll = log_likelihood(model, units, steps=32, log_q=log_q, generator=generator).nats().mean().item()
    bound = (nelbo(model, units, times=8, generator=generator).total + log_q).mean().item()
    assert abs(nll - entropy) < 0.15 and entropy - 0.05 < bound < entropy + 0.4


def test_the_commands_of_indm_take_it(tmp_path):
    run = str(tmp_path / "run")
    parts = "--flow identity --net mlp --net.width 8 --sde research.forward.learned:LearnedMean --sde.width 8"
    options = "--train.objective research.forward.objective:mle --train.steps 5 --quiet"
    assert main(["train", "eight-gaussians", *parts.split(), *options.split(), "--out", run]) == 0
    trusted = [run, "--trust", "research", "--quiet"]
    assert main(["evaluate", *trusted, "--examples", "20"]) == 0
    assert ForwardINDM.load(run).sample(4, steps=2).shape == (4, 2)
