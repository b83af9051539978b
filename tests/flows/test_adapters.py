"""The door for flows of other libraries: certificates and errors."""

import math

import pytest
import torch
from flow_tools import batched_jacobian

from indm.flows import ForeignFlow


class Bisected(ForeignFlow):
    """Twice x, whose inverse is looked for between −10 and 10 alone."""

    def to_latent(self, x):
        return 2 * x, x.new_full((len(x),), x.shape[1] * math.log(2))

    def to_data(self, z):
        return (z / 2).clamp(-10, 10)


def test_an_inverse_that_misses_is_an_error():
    flow, z = Bisected(False), torch.tensor([[3.0], [-18.0]])
    back, residual, iterations, converged = flow.solve_inverse(z)
    assert torch.equal(back, z / 2) and iterations.tolist() == [0, 0] and bool(converged.all())
    with pytest.raises(
        RuntimeError, match=r"inverse did not reach tol=5e-05 for 1 of 2 samples \(indices 1\);"
    ):
        flow.inverse(torch.tensor([[3.0], [-22.0]]))
    _, residual, _, converged = flow.solve_inverse(torch.tensor([[3.0], [-22.0]]))
    assert residual.tolist() == pytest.approx([0, 2 / 22]) and converged.tolist() == [True, False]


class Half(ForeignFlow):
    """Twice x in one direction; the library lacks the other."""

    def to_latent(self, x):
        return 2 * x, x.flatten(1).shape[1] * math.log(2)

    def to_data(self, z):
        raise NotImplementedError


def test_a_log_determinant_may_be_one_number():
    x = torch.randn(2, 3, dtype=torch.float64)
    _, log_det = Half(False)(x)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(batched_jacobian(Half(False), x))[1])


def test_a_flow_that_changes_the_shape_is_an_error(monkeypatch):
    monkeypatch.setattr(Half, "to_latent", lambda self, x: (x.reshape(2, 1, 4, 4), 0.0))
    with pytest.raises(
        ValueError, match=r"keep the shape \(2, 4, 2, 2\), but it makes it \(2, 1, 4, 4\)"
    ):
        Half(False)(torch.zeros(2, 4, 2, 2))
