"""``indm`` with Glow's data-dependent start of every ActNorm: ``python bench/data_start.py train digits …``."""

import sys

from indm import cli, training
from indm.flows import initialize_actnorms
from indm.trainer import EMA, Trainer


class DataStartTrainer(Trainer):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        initialize_actnorms(self.model.flow, self.prepare_batch(next(self.batches())))
        self.ema = EMA(self.model, self.options.ema)


training.Trainer = DataStartTrainer
sys.exit(cli.main())
