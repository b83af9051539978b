"""A training run in float64 that several processes make: ``torchrun … tests/launch.py RECIPE OUT [--resume] …``.

The tests of several processes start it; with ``--nan`` and ``--kill`` one process fails at a step.
"""

import argparse
import math
import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer

from indm import recipes
from indm.training import Trainer, train

parser = argparse.ArgumentParser()
parser.add_argument("recipe", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--resume", action="store_true")
parser.add_argument("--sharded", action="store_true")
parser.add_argument("--nan", type=int, nargs=2, default=(-1, -1), metavar=("RANK", "STEP"))
parser.add_argument("--kill", type=int, nargs=2, default=(-1, -1), metavar=("RANK", "STEP"))
parser.add_argument("--interrupt", type=int, nargs=2, default=(-1, -1), metavar=("RANK", "STEP"))
options = parser.parse_args()


class InDouble(Trainer):
    """In float64, where the order of a sum over processes is far below what is compared."""

    def build_model(self, recipe):
        return super().build_model(recipe).double()

    def train_step(self, batches):
        here = [self.accelerator.process_index, self.step]
        for fatal, number in ((options.kill, signal.SIGKILL), (options.interrupt, signal.SIGINT)):
            if here == list(fatal):
                os.kill(os.getpid(), number)
        return super().train_step(batches)

    def prepare_batch(self, raw):
        x = super().prepare_batch(raw)
        return x * math.nan if [self.accelerator.process_index, self.step] == list(options.nan) else x


class ShardedAdamW(ZeroRedundancyOptimizer):
    """AdamW of which each process keeps the moments of its share of the parameters alone."""

    def __init__(self, groups, **options):
        super().__init__(groups, torch.optim.AdamW, fused=True, **options)

    def step(self):
        self.optim.found_inf = self.found_inf
        super().step()

    def state_dict(self):
        self.consolidate_state_dict()
        return super().state_dict() if dist.get_rank() == 0 else {}


class Sharded(InDouble):
    """As in docs/reliability.md."""

    def build_optimizer(self, groups):
        return ShardedAdamW(groups, lr=self.options.lr, betas=self.options.betas)


torch.set_num_threads(1)
train(
    recipes.load(options.recipe),
    options.out,
    resume=options.resume,
    progress=False,
    trainer=Sharded if options.sharded else InDouble,
)
