"""Parts that stand outside the package, as a user's module has them: a network, a data set, an
objective.
"""

import torch
from torch import nn
from torch.utils.data import Dataset

from indm.objective import Objective, mle_loss


class Net(nn.Module):
    """A network that sees the noise level, and keeps its argument as an attribute."""

    def __init__(self, width=8):
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, z, level):
        return self.layers(torch.cat([z, level[:, None]], 1))


class Forgetful(nn.Module):
    """A network that keeps its argument nowhere."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, z, level):
        return self.layers(z)


class TooWide(Net):
    """A network whose output has not the shape of its input."""

    def forward(self, z, level):
        return torch.cat([super().forward(z, level)] * 2, 1)


class Blind(Net):
    """A network that does not take the noise level."""

    def forward(self, z):
        return z


class Points(Dataset):
    """Points on a ring and their labels."""

    def __init__(self, n=300, radius=2.0):
        self.n, self.radius = n, radius

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        angle = torch.tensor(2.4 * index)
        return self.radius * torch.stack([angle.cos(), angle.sin()]), index % 2


def doubled(model, x, *, eps=None):
    """Twice the bound."""
    loss, terms = mle_loss(model, x, eps=eps)
    return 2 * loss, terms


QUIET = Objective(doubled, shown=())
