"""A training run in float64 that several processes make:
``torchrun … tests/launch.py RECIPE OUT [--resume] …``.

The tests of several processes start it; with ``--nan``, ``--kill`` and ``--interrupt`` one process
fails at a step.
"""

import argparse
import math
import os
import signal
from pathlib import Path

import torch

from indm.workbench.recipes import recipe as recipes
from indm.workbench.training.loop import train
from indm.workbench.training.trainer import Trainer

# which process, which step
FAULTS: dict[str, list[int]] = {name: [] for name in ("nan", "kill", "interrupt")}


class InDouble(Trainer):
    """In float64, where the order of a sum over processes is far below what is compared."""

    def fails(self, fault):
        return FAULTS[fault] == [self.accelerator.process_index, self.step]

    def __init__(self, parts):
        parts.step.double()
        super().__init__(parts)

    def train_step(self, batches):
        if self.fails("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fails("interrupt"):
            os.kill(os.getpid(), signal.SIGINT)
        return super().train_step(batches)

    def prepare_batch(self, raw):
        x = super().prepare_batch(raw)
        return x * math.nan if self.fails("nan") else x


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--resume", action="store_true")
    for fault in FAULTS:
        parser.add_argument(f"--{fault}", type=int, nargs=2, default=[], metavar=("RANK", "STEP"))
    options = parser.parse_args()
    FAULTS.update({fault: getattr(options, fault) for fault in FAULTS})
    torch.set_num_threads(1)
    train(
        recipes.load(options.recipe),
        options.out,
        resume=options.resume,
        progress=False,
        trainer=InDouble,
    )


if __name__ == "__main__":
    main()
