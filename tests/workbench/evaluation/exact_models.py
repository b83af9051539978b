"""Models whose score is known exactly, and data of their law."""

import math

import torch
from closed_form import MixtureScore
from torch import nn

from indm import INDM
from indm.flows import Identity
from indm.flows.base import ExactFlow
from indm.scaling import Scaling
from indm.workbench.data.base import Data, InMemory
from indm.workbench.data.densities import DENSITIES, Density


class Linear(ExactFlow):
    """z = A x for vectors."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", torch.as_tensor(matrix))

    def forward(self, x, *, generator=None):
        return x @ self.matrix.to(x).T, torch.linalg.slogdet(self.matrix.to(x))[1].expand(len(x))

    def inverse_step(self, z):
        return torch.linalg.solve(self.matrix.to(z), z.T).T


class Scaled(nn.Module):
    """A known score times a constant."""

    def __init__(self, score, factor):
        super().__init__()
        self.score, self.sde, self.factor = score, score.sde, factor

    def forward(self, z, t):
        return self.factor * self.score(z, t)


class Normal(Density):
    """N(0, std² I) in the plane."""

    def __init__(self, std):
        self.std = std

    def sample(self, n, *, generator=None):
        return self.std * torch.randn(n, 2, generator=generator)

    def log_prob(self, x):
        return -0.5 * (x / self.std).square().sum(1) - math.log(2 * math.pi * self.std**2)


def normal_data(score, n, name="normal"):
    parts = {
        part: InMemory(score.sample(n, torch.Generator().manual_seed(seed), torch.float32))
        for seed, part in enumerate(("train", "valid", "test"))
    }
    return Data(name=name, scaling=Scaling(), shape=tuple(score.mean.shape), **parts)


def model_of(score, flow=None, shape=(2,)):
    return INDM(Identity() if flow is None else flow, score, shape=shape)


def eight_gaussians(sde):
    density = DENSITIES["eight-gaussians"]
    return MixtureScore(sde, density.centres, torch.full((8,), density.std), torch.full((8,), 1 / 8))


def near(found, expected, name, errors=4.5):
    assert abs(found[name] - expected) < errors * found[f"{name}_standard_error"] + 1e-6, (found[name], expected)
