"""A network as somebody else writes it, which needs its c."""

import torch
from torch import nn

from indm.nets import Backbone


class OwnNet(Backbone):
    """Linear in z, level and c."""

    takes_condition = True

    def __init__(self, shape, condition=()):
        super().__init__()
        self.shape, self.condition = tuple(shape), tuple(condition)
        self.layer = nn.Linear(shape[0] + 1 + condition[0], shape[0])

    def forward(self, z, level, c):
        return self.layer(torch.cat([z, level[:, None], c], 1))
