"""The interfaces of the method: what has them works without a base class of the package."""

import torch

import indm
from indm.flows import Identity
from indm.protocols import Model, Score


class Standard(torch.nn.Module):
    """The score of N(0, I) under VP."""

    def __init__(self):
        super().__init__()
        self.sde = indm.VPSDE()

    def forward(self, z_t, t):
        return -z_t


class Own(torch.nn.Module):
    """A model of N(0, I) that is not an INDM."""

    condition = dequantization = None
    has_shape, shape = True, (2,)

    def __init__(self):
        super().__init__()
        self.scaling, self.score, self.flow = indm.Scaling(), Standard(), Identity()
        self.sde = self.score.sde

    def given(self, c, n=None, **_):
        return self

    def truncated(self, eps):
        return self

    def rows(self, c, n):
        return c

    def encode(self, x, *, c=None, generator=None):
        return self.flow(x)

    def decode(self, z, *, c=None):
        return self.flow.inverse(z)


def test_a_model_and_a_score_of_another_class_have_the_numbers_of_ours():
    ours, x = indm.INDM(Identity(), Standard(), shape=(2,)), torch.randn(5, 2)
    assert isinstance(ours, Model) and isinstance(Own(), Model) and isinstance(Own().score, Score)
    assert isinstance(indm.INDM(Identity(), Standard()), Model)  # which does not know its shape
    assert not isinstance(torch.nn.Linear(2, 2), Score) and not isinstance(Own().score, Model)
    drawn = [
        indm.nelbo(model, x, generator=torch.Generator().manual_seed(0)).total
        for model in (ours, Own())
    ]
    solved = [
        indm.nll(model, x, generator=torch.Generator().manual_seed(0)).total
        for model in (ours, Own())
    ]
    assert torch.equal(*drawn) and torch.equal(*solved)
