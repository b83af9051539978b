"""Small runs that several test modules make, and how two of them are compared."""

import os
import signal
import subprocess
import sys

import torch
from accelerate import Accelerator

from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.folder import open_model, read_metrics
from indm.workbench.training.checkpoints import Checkpoints
from indm.workbench.training.parts import read
from indm.workbench.training.trainer import Trainer

DIGITS = {
    "data": {"name": "digits"},
    "flow": {"name": "residual", "blocks": [1, 1], "width": 4},
    "sde": {"name": "vp"},
    "net": {
        "name": "unet",
        "channels": 4,
        "multipliers": [1, 1],
        "blocks": 1,
        "attention": [],
        "dropout": 0.2,
    },
    "train": {
        "steps": 9,
        "batch_size": 64,
        "validate_examples": 20,
        "log_every": 2,
        "validate_every": 4,
    },
}
GAUSSIAN = {
    "flow": {"name": "residual", "blocks": [1], "width": 8},
    "sde": {"name": "vp"},
    "net": {"name": "mlp", "width": 32, "depth": 1},
    "train": {
        "steps": 200,
        "batch_size": 256,
        "lr": 5e-3,
        "decay": 0.5,
        "ema": 0.98,
        "log_every": 1,
    },
}


def change(recipe, **train_options):
    return recipe | {"train": recipe["train"] | train_options}


def timeless(state):
    """A state without what depends on the speed of the machine."""
    own = {key: value for key, value in state["place"].items() if "seconds" not in key}
    return state | {"place": own}


def checkpoint(run):
    return Checkpoints(run).newest()[1]


def trainer_of(recipe, data=None, objective=None):
    """A trainer at the start of a run by that recipe, in the precision of this process."""
    return Trainer(read(recipes.resolve(recipe), Accelerator(), None, data, objective)[1])


def assert_same(a, b):
    """Equal bit for bit, through nested containers."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def log_of(run):
    """The metrics but for the seconds: no line is missing, none is there twice."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(run)]


def interrupt_at(monkeypatch, step):
    """Raise SIGINT in the middle of that optimizer step."""
    original = Trainer.train_step

    def interrupted(self, batches):
        terms = original(self, batches)
        if self.step == step:
            signal.raise_signal(signal.SIGINT)
        return terms

    monkeypatch.setattr(Trainer, "train_step", interrupted)


# Every kind of randomness that training has: dequantization, times, noise, roulette, probes, the
# share of the batch that has a log-determinant, dropout, truncation; accumulation; the flow in
# every third step.
TINY = {
    "data": {"name": "digits"},
    "flow": {"name": "residual", "blocks": [1], "width": 4},
    "sde": {"name": "vp"},
    "net": {"name": "unet", "channels": 4, "multipliers": [1], "blocks": 1, "attention": [], "dropout": 0.2},
    "train": {
        "steps": 12, "batch_size": 32, "accumulate": 2, "flow_update_every": 3, "soft_truncation": 1.2, "warmup": 3,
        "decay": 0.3, "first": "score", "alone": 0.2, "validate_examples": 20, "log_every": 5, "validate_every": 4,
        "checkpoint_every": 3,
    },
}  # fmt: skip


def compare_runs(one, other):
    """Bit for bit the same: weights, average, optimizer, random state, running means, log."""
    assert_same(timeless(checkpoint(one)), timeless(checkpoint(other)))
    assert log_of(one) == log_of(other)
    for folder in (".", "best"):
        one_model, other_model = (open_model(run / folder).state_dict() for run in (one, other))
        assert_same(dict(one_model), dict(other_model))


ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def command(processes, *arguments, module=False):
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    return [*torchrun, *(["-m"] if module else []), *map(str, arguments)]


def launch(processes, *arguments, module=False, fails=False):
    done = subprocess.run(
        command(processes, *arguments, module=module),
        capture_output=True,
        text=True,
        env=ONE_THREAD,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done


def largest_difference(one, other):
    a, b = checkpoint(one), checkpoint(other)
    pairs = [(a[part][k], b[part][k]) for part in ("model", "ema") for k in a[part]]
    return max((p - q).abs().max().item() for p, q in pairs)
