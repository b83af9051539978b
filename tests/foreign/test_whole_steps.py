"""Networks of a table of steps: cubics between the steps, and networks that take whole steps alone."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from torch import nn

import indm
from indm.foreign.paths import path_of

WEIGHTS, MEANS, VARIANCES = (
    np.array([0.3, 0.7]),
    np.array([[-1.0, 0.5], [0.8, -0.3]]),
    np.array([0.09, 0.16]),
)


def noise_of(y, level):
    """E[n|y], (B, 2), of the mixture for y = x_0 + e^level n, and its divergence."""
    total = VARIANCES + math.exp(2 * level)
    away = y[:, None] - MEANS
    share = WEIGHTS * np.exp(-0.5 * (away**2).sum(2) / total) / total
    share /= share.sum(1, keepdims=True)
    slopes = away / total[:, None]
    mean = (share[..., None] * slopes).sum(1)
    spread = (share * (slopes**2).sum(2)).sum(1) - (mean**2).sum(1)
    return math.exp(level) * mean, math.exp(level) * ((share * 2 / total).sum(1) - spread)


class Table(nn.Module):
    """The exact noise of the mixture at the levels of K steps, as an embedding gives them."""

    def __init__(self, levels):
        super().__init__()
        self.embedding = nn.Embedding(len(levels), 1, _weight=torch.as_tensor(levels)[:, None])

    def forward(self, x, k):
        level = self.embedding(k)
        y = x / (-2 * level).sigmoid().sqrt()
        total = torch.as_tensor(VARIANCES) + (2 * level).exp()
        away = y[:, None] - torch.as_tensor(MEANS)
        share = (
            torch.as_tensor(WEIGHTS).log() - total.log() - 0.5 * away.square().sum(2) / total
        ).softmax(1)
        return level.exp() * (share[..., None] * away / total[..., None]).sum(1)


def steps_of(count):
    betas = np.linspace(1e-4, 0.02, count) * (1000 / count)
    bar = np.cumprod(1 - betas)
    return betas, 0.5 * np.log((1 - bar) / bar)


def carried(x, levels, curve):
    """log density of the rows x at log(σ/α) = levels[0], carried from N(0, I) at levels[-1], step
    by step.

    dy/dlevel = e^level n̂, where n̂ is linear in k between the exact ones of α_level y at both
    steps, by SciPy.
    """
    state = np.concatenate([x, np.zeros((len(x), 1))], 1).ravel()
    for below, ends in enumerate(itertools.pairwise(levels)):

        def slope(level, state, below=below):
            y, k = (
                state.reshape(-1, 3)[:, :2],
                brentq(lambda k: curve(k) - level, below - 1e-9, below + 1 + 1e-9),
            )
            total = np.zeros((len(y), 3))
            for said, share in ((levels[below], below + 1 - k), (levels[below + 1], k - below)):
                # α_level/α_said
                scale = math.sqrt((1 + math.exp(2 * said)) / (1 + math.exp(2 * level)))
                n, divergence = noise_of(scale * y, said)
                total += share * np.concatenate([n, scale * divergence[:, None]], 1)
            return (math.exp(level) * total).ravel()

        state = solve_ivp(slope, ends, state, rtol=1e-9, atol=1e-10).y[:, -1]
    y, change = state.reshape(-1, 3)[:, :2], state.reshape(-1, 3)[:, 2]
    alpha = (1 + math.exp(2 * levels[-1])) ** -0.5
    return -0.5 * (alpha**2 * y**2).sum(1) - math.log(2 * math.pi) + 2 * math.log(alpha) + change


def model_of(betas, levels, **options):
    path = {"betas": torch.as_tensor(betas)}
    return indm.from_denoiser(Table(levels), predicts="noise", path=path, shape=(2,), **options)


def points(n):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.filterwarnings("ignore:the ODE's stated error")
@pytest.mark.parametrize(("count", "steps"), [(50, 48), (50, None), (200, 64)])
def test_the_stated_error_covers_the_kinks_at_whole_steps(count, steps):
    betas, levels = steps_of(count)
    model, x, alpha = model_of(betas, levels, steps="whole"), points(16), math.sqrt(1 - betas[0])
    report = indm.nll(model, x, generator=torch.Generator().manual_seed(1), steps=steps)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype).numpy()
    start = x.numpy() + math.exp(levels[0]) * noise  # z_ε/α_ε
    expected = carried(start, levels, PchipInterpolator(np.arange(count), levels)) - 2 * math.log(
        alpha
    )
    off = np.abs((report.reconstruction - report.total).numpy() - expected)
    assert (off <= report.solver_error.numpy()).all(), (off, report.solver_error)
    assert report.solver_error.max() < 0.2


def test_fractions_of_steps_are_those_of_scipy():
    betas, levels = steps_of(50)
    curve = PchipInterpolator(np.arange(50), levels)
    path = path_of({"betas": torch.as_tensor(betas)})
    for level in np.linspace(levels[0], levels[-1], 40)[1:-1]:
        k = brentq(lambda k, level=level: curve(k) - level, 0, 49, xtol=1e-13)
        assert abs(path.time(torch.tensor([level])).item() - k) < 1e-9 or abs(k - round(k)) < 2e-4


def test_the_slope_of_the_path_has_no_kink_at_a_step():
    path = path_of({"betas": torch.as_tensor(steps_of(50)[0])})
    k, h = torch.arange(1.0, 49.0).double(), 1e-6
    above, below = (path.level(k + h) - path.level(k)) / h, (path.level(k) - path.level(k - h)) / h
    assert ((above / below).log().abs() < 1e-4).all()


@pytest.mark.filterwarnings("ignore:the error of log_prob's ODE")
@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
def test_whole_steps_are_found_at_one_row_before_any_call(shape):
    seen, betas = [], steps_of(50)[0]
    table = torch.linspace(0.1, 1, 50)

    def network(x, k):
        seen.append(tuple(x.shape))
        return table[k].view(-1, *[1] * (x.ndim - 1)) * x

    options = {"predicts": "noise", "path": {"betas": torch.as_tensor(betas)}, "shape": shape}
    with pytest.warns(RuntimeWarning, match="asked at the two steps around"):
        found = indm.from_denoiser(network, **options)
    assert set(seen) == {(1, *shape)} and found.score.backbone.steps == "whole"
    said = indm.from_denoiser(network, **options, steps="whole")
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(*(model.log_prob(x, steps=8, exact=True) for model in (found, said)))


class Failing(Table):
    """A network that fails in some calls, as one that has no memory does for a moment."""

    def __init__(self, levels, fails, takes_fractions):
        super().__init__(levels)
        self.calls, self.fails, self.takes_fractions = 0, fails, takes_fractions

    def forward(self, x, k):
        self.calls += 1
        if self.calls in self.fails:
            raise RuntimeError("CUDA out of memory")
        return super().forward(x, k.long() if self.takes_fractions else k)


@pytest.mark.parametrize("call", [1, 2, 3, 7])
def test_an_error_at_any_call_does_not_change_the_steps(call):
    betas, levels = steps_of(50)
    network = Failing(levels, {call}, takes_fractions=True)
    model = indm.from_denoiser(
        network, predicts="noise", path={"betas": torch.as_tensor(betas)}, shape=(2,)
    )
    if call > 1:  # the first is the question whether it takes fractions
        with pytest.raises(RuntimeError, match="CUDA out of memory"):
            model.log_prob(points(4))
    assert model.score.backbone.steps is None


def test_what_has_no_memory_for_one_row_says_so():
    def network(x, k):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        indm.from_denoiser(network, predicts="noise", path={"betas": [0.1, 0.2]}, shape=(2,))


@pytest.mark.parametrize("error", [RuntimeError, IndexError, TypeError, ValueError, AssertionError])
def test_an_error_of_another_kind_is_raised_by_the_call_that_meets_it(error):
    def network(x, k):
        raise error("mat1 and mat2 shapes cannot be multiplied")

    model = indm.from_denoiser(network, predicts="noise", path={"betas": [0.1, 0.2]}, shape=(2,))
    with pytest.raises(error, match="mat1 and mat2"):
        model.log_prob(torch.zeros(3, 2))


def test_fractions_are_an_error_where_they_are_asked_for():
    betas, levels = steps_of(50)
    with pytest.raises(RuntimeError, match="indices"):
        model_of(betas, levels, steps="between").log_prob(points(4))


@pytest.mark.parametrize(("options", "words"), [
    ({"steps": "hole"}, "steps must be one of between, whole, got 'hole'; did you mean 'whole'"),
    ({"steps": "whole", "path": "linear"}, "steps must be 'between', as the path has no steps, got 'whole'"),
])  # fmt: skip
def test_bad_steps(options, words):
    with pytest.raises(ValueError, match=words):
        indm.from_denoiser(**({"network": lambda x, k: x, "predicts": "noise", "path": {"betas": [0.1, 0.2]},
                               "shape": (2,)} | options))  # fmt: skip
