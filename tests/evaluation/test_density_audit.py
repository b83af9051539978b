"""The audit of a density: right ones pass, planted faults are found, each check can fail."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.neighbors import KernelDensity
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

import indm

# dx/dt = A x, t from 0 to 1
A = torch.tensor([[0.5, 0.8, 0.0], [-0.4, 0.2, 0.3], [0.1, 0.0, -0.9]])
MATRIX = torch.matrix_exp(A)
# the law of x(1) where x(0) is N(0, I)
MOVED = MultivariateNormal(torch.zeros(3), MATRIX @ MATRIX.T)


def draw(n):
    return torch.randn(n, 3) @ MATRIX.T


TRACE = A.diagonal().sum()


def of_a_flow(x, trace=TRACE, sign=1.0):
    """log p of x(1), by the base and the integral of the divergence."""
    base = -0.5 * torch.linalg.solve(MATRIX.to(x), x.T).square().sum(0) - 1.5 * math.log(
        2 * math.pi
    )
    return base - sign * trace.to(x)


def hutchinson(probes):
    """The sum of v·Av over ``probes`` directions of ±1, not divided: the mean over them is exact."""
    v = torch.tensor([[1.0, a, b] for a in (-1, 1) for b in (-1, 1)])[:probes]
    return ((v @ A) * v).sum()


FAULTS = {
    "a sum over probes that is not divided": lambda x: of_a_flow(x, hutchinson(4)),
    "another column": lambda x: of_a_flow(x[:, [1, 0, 2]]),
    "a log-determinant of the wrong sign": lambda x: of_a_flow(x, sign=-1.0),
    "an inverse density": lambda x: -of_a_flow(x),
}


def failed(audit):
    return {row.check for row in audit.rows if row.passed is False}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("seed", range(5))
def test_a_right_density_passes(seed):
    torch.manual_seed(seed)
    found = indm.audit(of_a_flow, draw, MOVED, seed=seed)
    assert not found.wrong, found
    assert {row.passed for row in found.rows} == {True}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    found = indm.audit(FAULTS[fault], draw)
    assert {"draws follow log p", "draws, by a classifier"} <= failed(found), found


def test_faults_of_mass_are_found_from_data_alone():
    for fault in ("a sum over probes that is not divided", "a log-determinant of the wrong sign"):
        assert {"total mass", "total mass by quadrature"} == failed(
            indm.audit(FAULTS[fault], x=draw(2000))
        )
    # cut: its mass is infinite
    assert {"total mass"} == failed(indm.audit(FAULTS["an inverse density"], x=draw(2000)))
    assert not indm.audit(FAULTS["another column"], x=draw(2000)).wrong  # a density, of other data


def test_the_mass_of_a_scaled_density_is_its_scale():
    rows = {row.check: row for row in indm.audit(lambda x: of_a_flow(x) + math.log(1.2), draw).rows}
    assert abs(rows["total mass by quadrature"].value - 1.2) < 1e-3
    assert abs(rows["total mass"].value - 1.2) < 4 * rows["total mass"].error


@pytest.mark.parametrize("dims", [1, 2, 10])
def test_right_laws_of_one_two_and_ten_dimensions_pass(dims):
    law = Independent(Normal(torch.arange(dims) * 10.0, torch.logspace(-2, 2, dims)), 1)
    found = indm.audit(law.log_prob, lambda n: law.sample((n,)), law)
    assert not found.wrong, found


def test_a_density_by_numpy_passes():
    kernel = KernelDensity(bandwidth=0.3).fit(np.random.default_rng(0).normal(size=(200, 2)))
    found = indm.audit(kernel.score_samples, lambda n: kernel.sample(n, random_state=0))
    assert not found.wrong, found
    assert found.verdict.endswith("not checked: gradient in x")


def test_a_narrower_sampler_is_found():
    assert failed(indm.audit(of_a_flow, lambda n: 0.8 * draw(n))) <= {
        "draws follow log p",
        "draws, by a classifier",
    }
    assert indm.audit(of_a_flow, lambda n: 0.8 * draw(n)).wrong


def test_a_density_above_the_entropy_is_found():
    narrow = lambda x: MOVED.log_prob(x) + 0.1  # noqa: E731
    rows = {row.check: row for row in indm.audit(narrow, law=MOVED).rows}
    assert rows["above the law's entropy"].passed is False
    assert abs(rows["above the law's entropy"].value - 0.1) < 1e-5


def test_a_missing_jacobian_is_found():
    right = indm.audit(
        of_a_flow, draw, rescaled=lambda k: lambda x: of_a_flow(x / k) - 3 * math.log(k)
    )
    assert not right.wrong
    assert failed(indm.audit(of_a_flow, draw, rescaled=lambda k: lambda x: of_a_flow(x / k))) == {
        "change of units"
    }


def test_noise_of_a_call_is_found():
    assert "same call" in failed(
        indm.audit(lambda x: of_a_flow(x) + 0.1 * torch.randn(len(x)), draw)
    )


def test_dependence_on_other_rows_is_found():
    by_batch = failed(indm.audit(lambda x: of_a_flow(x) + 0.1 * x.mean(), draw))
    assert {"rows alone"} <= by_batch and "order of rows" not in by_batch
    by_order = failed(indm.audit(lambda x: of_a_flow(x) + 1e-2 * torch.arange(len(x)), draw))
    assert {"order of rows"} <= by_order


def test_a_float_of_few_digits_is_found():
    assert failed(
        indm.audit(lambda x: of_a_flow(x.bfloat16().to(x) if x.dtype == torch.float64 else x), draw)
    ) == {"other float"}


@pytest.mark.parametrize(
    "log_prob",
    [
        lambda x: of_a_flow(x.detach()),
        lambda x: of_a_flow(torch.cat([x[:, :1].detach(), x[:, 1:]], 1)),
    ],
)
def test_a_missing_gradient_is_found(log_prob):
    assert failed(indm.audit(log_prob, draw)) == {"gradient in x"}


def test_parameters_without_gradient_are_found():
    trace, unused = nn.Parameter(TRACE.clone()), nn.Parameter(torch.zeros(()))
    assert not indm.audit(lambda x: of_a_flow(x, trace), draw, parameters=[trace]).wrong
    found = indm.audit(lambda x: of_a_flow(x, trace), draw, parameters=[trace, unused])
    assert failed(found) == {"gradient in parameters"}


def test_nan_ends_the_audit():
    found = indm.audit(lambda x: of_a_flow(x).where(x[:, 0] < 1, math.nan), draw)
    assert found.verdict == "wrong: finite"


def test_our_own_density_passes():
    model = indm.build_model({"flow": "identity", "sde": "vp", "net": "zero"}, (2,))
    draws = partial(indm.sample_with_log_prob, model, steps=8, progress=False)
    found = indm.audit(partial(model.log_prob, steps=8), lambda n: draws(n)[0], draws=64)
    assert not found.wrong, found


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: indm.audit(of_a_flow), "sample, law or x must be given"),
        (
            lambda: indm.audit(of_a_flow, draw, draws=10),
            r"sample\(n\) must be at least 64 rows, got '20 rows'",
        ),
        (
            lambda: indm.audit(of_a_flow, x=torch.zeros(3, 3)),
            "x must be at least 64 rows, got '3 rows'",
        ),
        (
            lambda: indm.audit(of_a_flow, lambda n: draw(n) * torch.tensor([1, 0, 1])),
            r"sample\(n\) must vary in every entry, got 0 .* of entry 1",
        ),
        (lambda: indm.audit(of_a_flow, lambda n: draw(n) / 0), r"sample\(n\) must be finite"),
        (
            lambda: indm.audit(of_a_flow, lambda n: draw(n).long()),
            r"sample\(n\) must be of floating-point",
        ),
        (lambda: indm.audit(of_a_flow, x=np.full((200, 3), np.nan)), "x must be finite"),
        (
            lambda: indm.audit(lambda x: of_a_flow(x).sum(), draw),
            r"log_prob\(x\) must be of shape \(512,\)",
        ),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()
