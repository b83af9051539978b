"""``indm`` with Glow's data-dependent start of every ActNorm: ``python -m research.which_flow.data_start train …``."""

import sys

from indm.flows import initialize_actnorms
from indm.training import EMA
from indm.workbench.cli.main import main
from indm.workbench.training import loop
from indm.workbench.training.trainer import Trainer


class DataStartTrainer(Trainer):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        initialize_actnorms(self.model.flow, self.model.from_data(next(self.batches()))[0])
        self.ema = EMA(self.model, self.options.ema)


if __name__ == "__main__":
    loop.Trainer = DataStartTrainer
    sys.exit(main())
