"""A model that is no diffusion, as somebody else would bring it: normal entries, built by their objective."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.distributions import Normal

from indm.model import reading, write_model
from indm.objective import as_objective
from indm.tensors import event_size


class Normals(nn.Module):
    is_diffusion = False

    def __init__(self, shape, scaling):
        super().__init__()
        self.shape, self.scaling = tuple(shape), scaling
        self.mean, self.log_std = nn.Parameter(torch.zeros(self.shape)), nn.Parameter(torch.zeros(self.shape))

    @property
    def trained_parts(self):
        return {"normals": self}

    @property
    def law(self):
        return Normal(self.mean, self.log_std.exp())

    def bound(self, x, *, generator=None):
        total = -self.law.log_prob(x).flatten(1).sum(1)
        return SimpleNamespace(total=total, reconstruction=torch.zeros_like(total))

    @torch.no_grad()
    def sample(self, n, *, generator=None):
        return self.mean + self.log_std.exp() * torch.randn(n, *self.shape, generator=generator)

    def save(self, folder):
        write_model(self, folder, {"model": "own_model:Normals"})

    @classmethod
    def load(cls, folder, device="cpu"):
        with reading(folder) as saved:
            model = cls(saved.shape, saved.scaling)
            model.load_state_dict(saved.state)
        return model.to(device).eval()


@as_objective(build=lambda recipe, shape, scaling: Normals(shape, scaling), shown=("nelbo",), truncates=False)
def likelihood(model, x):
    nats = model.bound(x).total.mean()
    return nats / event_size(x), {"nelbo": nats.detach()}
