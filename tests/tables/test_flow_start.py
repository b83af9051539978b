"""Density estimators that start from a flow: the race between starts, and the density behind the
flow.
"""

import copy
import math

import numpy as np
import pytest
import torch

import indm
from indm import DensityEstimator
from indm.flows import MaskedFlow
from indm.tables.fit import FlowTraining, bounds_of, flow_nats
from indm.tables.mixture import Mixture
from indm.tables.race import race
from indm.tables.solve import at, latent_log_prob, start_log_prob
from indm.tables.start import Fits, Fitted, Latents


def banana(n, seed):
    """Rows of (a, a² + 0.2 b) with normal a and b, and their log-density."""
    a, b = np.random.default_rng(seed).normal(size=(2, n))
    log_prob = -0.5 * (a**2 + b**2) - np.log(2 * np.pi) - np.log(0.2)
    return np.stack([a, a**2 + 0.2 * b], 1), log_prob


OPTIONS = {
    "max_components": 1,
    "max_steps": 300,
    "max_seconds": 1e4,
    "random_state": 0,
    "progress": False,
    "flow": True,
    "n_models": 1,
    "batch_size": 64,
}
START = Fits(DensityEstimator(**OPTIONS), np.array([], dtype=int))


@pytest.fixture(scope="module")
def fitted():
    X, _ = banana(2_000, 0)
    return DensityEstimator(**OPTIONS).fit(X)


def test_a_flow_wins_where_a_gaussian_is_poor_and_the_density_is_right(fitted):
    rows, log_prob = banana(500, 1)
    assert fitted.starts_ == ["flow"]
    assert abs((log_prob - fitted.score_samples(rows)).mean()) < 0.1
    axis = [np.linspace(-4, 4, 60), np.linspace(-1.5, 12, 100)]
    grid = np.stack(np.meshgrid(*axis, indexing="ij"), -1).reshape(-1, 2)
    mass = np.exp(fitted.score_samples(grid)).sum() * np.prod([part[1] - part[0] for part in axis])
    assert abs(mass - 1) < 0.03
    drawn = fitted.sample(2_000, random_state=0)
    assert abs((drawn[:, 1] - drawn[:, 0] ** 2).std() - 0.2) < 0.05
    assert (
        abs(
            fitted.score_samples(drawn[:500]).mean()
            + 0.5 * 2 * (1 + np.log(2 * np.pi))
            + np.log(0.2)
        )
        < 0.15
    )


def test_the_start_is_the_flow_with_a_mixture_behind_it(fitted):
    (model,) = fitted.models_
    z = torch.randn(5, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda z: model.flow(z)[0].sum(0), z).transpose(
        0, 1
    )
    network = model.score.backbone
    parts = zip(
        network.log_weight.softmax(0), network.mean, network.variance, network.basis, strict=True
    )
    law = [
        (w, torch.distributions.MultivariateNormal(m, q @ v.diag() @ q.T)) for w, m, v, q in parts
    ]
    expected = torch.stack(
        [w.log() + part.log_prob(model.flow(z)[0]) for w, part in law]
    ).logsumexp(0)
    found = start_log_prob(at(model, torch.zeros(5, 0)), z)
    torch.testing.assert_close(found, expected + jacobian.det().abs().log(), atol=2e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:the network found nothing")
def test_without_a_flow_or_with_few_rows_there_is_none():
    options = {
        "max_components": 1,
        "max_steps": 30,
        "n_models": 1,
        "random_state": 0,
        "progress": False,
    }
    for rows, flow in ((300, None), (2_500, False)):
        assert DensityEstimator(**options, flow=flow).fit(banana(rows, 0)[0]).starts_ == [
            "1 Gaussian"
        ]


def test_errors_of_a_race_are_the_bound_of_all_starts(fitted):
    """The flow's error is −log p; that of a diffusion is −log p of its start at first, and near
    −log p at the end.
    """
    X, _ = banana(1_000, 2)
    z = torch.from_numpy(fitted.columns_.latents(X, np.zeros((len(X), 0)))).float()
    law = Mixture(np.ones(1), np.full((1, 2), 0.1), 1.5 * np.eye(2)[None], 2)
    flow = copy.deepcopy(fitted.models_[0].flow).float()
    data = Latents(fitted.columns_, 2_000, lambda i: (z[i], z[i, :0]), z, z[:, :0], 1, math.inf)
    (training,) = START.trainings(flow, [law], data)
    torch.testing.assert_close(
        training.start, -start_log_prob(training.model, z), atol=1e-3, rtol=1e-3
    )


def test_the_flow_leaves_a_share_of_the_seconds():
    torch.manual_seed(0)
    flowing = FlowTraining(MaskedFlow((2,), depth=1, width=8), torch.randn(50, 2))
    rows = torch.randn(100, 2)
    best = race([flowing], lambda i: (rows[i], torch.zeros(len(i), 0)), 100, 16, 30, 1e9)
    assert best is flowing and best.step == 30 and best.ended == "max_steps"


def test_the_network_behind_a_flow_trains_on_what_the_flow_makes(fitted, monkeypatch):
    """The flow doubles: the rows that train, those that validate and the mixture's are twice the
    latents.
    """
    z = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    data = Latents(
        fitted.columns_, 400, lambda i: (z[i], z[i, :0]), z[:100], z[:100, :0], 1, math.inf
    )
    flowing = FlowTraining(indm.flows.ElementwiseFlow((2,)), z[:100])
    monkeypatch.setattr(
        type(flowing.best),
        "forward",
        lambda flow, z, generator=None: (2 * z, z.new_full((len(z),), 2 * math.log(2))),
    )
    seen = {}

    def raced(trainings, data, max_steps):
        seen["batch"], seen["held"] = data.batch(torch.arange(50))[0], trainings[0].held
        seen["variance"] = trainings[0].model.score.backbone.variance
        return trainings[0]

    monkeypatch.setattr(Fits, "race", lambda self, *arguments: raced(*arguments))
    flowing.lowest = flow_nats(flowing.best, z[:100])
    _, control = START.corrected(flowing, data, 0)
    of_gaussian = 2 * (1.5 - math.log(2))  # the divergence of N(0, 4 I) and N(0, I) in two columns
    assert control[0] == pytest.approx(of_gaussian, abs=4 * control[1]) and control[1] < 0.4
    torch.testing.assert_close(seen["batch"], 2 * z[:50])
    torch.testing.assert_close(seen["held"], 2 * z[:100])
    assert seen["variance"].numpy() == pytest.approx(4, rel=0.3)


@pytest.mark.long
def test_a_flow_with_a_network_behind_it_has_mass_one_draws_of_its_density_and_its_gradient(fitted):
    """The network is moved, so that it counts: by quadrature, waves of draws, and differences."""
    density = copy.deepcopy(fitted)
    torch.manual_seed(0)
    (model,) = density.models_
    torch.nn.init.normal_(model.score.backbone.mlp.output.weight, std=0.05)
    a, b = np.linspace(-6, 6, 97), np.linspace(-20, 20, 121)
    grid = np.stack(np.meshgrid(a, b, indexing="ij"), -1).reshape(-1, 2)
    # along the ridge, where a cell has 0.2 of its area
    grid[:, 1] = grid[:, 0] ** 2 + 0.2 * grid[:, 1]
    mass = np.exp(density.score_samples(grid)) * 0.2 * (a[1] - a[0]) * (b[1] - b[0])
    assert mass.sum() == pytest.approx(1, abs=0.02)
    drawn = density.sample(2_000, random_state=0)
    for frequency in (0.5, 1.0):
        for i in (0, 1):
            wave, of_draws = (np.sin(frequency * rows[:, i] + 0.5) for rows in (grid, drawn))
            assert of_draws.mean() == pytest.approx(
                (mass * wave).sum(), abs=4 * of_draws.std() / 2_000**0.5 + 0.01
            )
    z = torch.from_numpy(density.columns_.latents(drawn[:6], np.zeros((6, 0)))).requires_grad_()
    (value,) = density.log_densities(z, np.zeros((6, 0)), 48)
    (slope,) = torch.autograd.grad(value.sum(), z)
    step = 1e-6
    for column in (0, 1):
        nudge = step * torch.eye(2, dtype=z.dtype)[column]
        ends = [
            next(density.log_densities(z.detach() + sign * nudge, np.zeros((6, 0)), 48))
            for sign in (1, -1)
        ]
        torch.testing.assert_close(
            slope[:, column], (ends[0] - ends[1]).detach() / (2 * step), atol=1e-3, rtol=1e-3
        )
    assert (
        value.detach() - latent_log_prob(fitted.models_[0], z.detach(), 0.01)[0]
    ).abs().max() > 0.1


def test_a_flow_is_compared_with_the_density_of_a_diffusion_and_not_with_its_bound(fitted):
    """The diffusion is exact, its bound is 0.3 nats above; the flow is 0.1 nats off."""
    z = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    law = Mixture(np.ones(1), np.zeros((1, 2)), np.eye(2)[None], 2)
    data = Latents(fitted.columns_, 2_000, lambda i: (z[i], z[i, :0]), z, z[:, :0], 1, math.inf)
    (diffusion,) = START.trainings(indm.flows.Identity(), [law], data)
    flowing = FlowTraining(MaskedFlow((2,), depth=1, width=8), z)
    exact = 0.5 * z.square().sum(1) + math.log(2 * math.pi)
    diffusion.lowest, flowing.lowest = exact + 0.3, exact + 0.1
    torch.testing.assert_close(diffusion.exact(), exact[:256], atol=1e-3, rtol=1e-3)
    assert race([flowing, diffusion], data.batch, 300, 16, 0, math.inf) is diffusion


def test_the_bound_without_an_ode_is_the_nelbo(fitted):
    """Its mean over noise, for a network that adds something, beside the bound's other estimator."""
    torch.manual_seed(0)
    (model,) = copy.deepcopy(fitted.models_)
    torch.nn.init.normal_(model.score.backbone.mlp.output.weight, std=0.05)
    z = torch.randn(256, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    found = bounds_of(model, z, torch.zeros(256, 0), 100, generator).T
    other = torch.stack(
        [-indm.nelbo(model, z, times=100, generator=generator).total.mean() for _ in range(8)]
    )
    off, error = (
        found.mean() - other.mean(),
        math.hypot(found.mean(1).std() / 100**0.5, other.std() / 8**0.5),
    )
    assert error < 0.05 and abs(off) < 4 * error
    assert (found - start_log_prob(model, z)).mean(0).abs().max() > 0.1  # the network counts


def test_a_network_behind_a_flow_has_the_log_prob_of_the_whole_model(fitted):
    torch.manual_seed(0)
    (model,) = copy.deepcopy(fitted.models_)
    torch.nn.init.normal_(model.score.backbone.mlp.output.weight, std=0.05)
    z = torch.randn(16, 2, dtype=torch.float64)
    found, _ = latent_log_prob(model, z, 0.01)
    expected = model.log_prob(z, steps=96, exact=True).detach()
    assert (found - expected).abs().max() < 0.05 and (model.flow(z)[1].abs() > 0.2).any()


def test_the_bound_of_rows_is_near_their_mean_log_prob(fitted):
    rows, _ = banana(300, 3)
    bound, error = fitted.score_bound(rows, random_state=0)
    assert abs(bound - fitted.score(rows)) < 4 * error + 0.02
    assert fitted.score_bound(rows[:50], random_state=1)[1] >= error


class Behind:
    """A training behind a flow that kept no step of its network."""

    step, best_step, is_silenced, best = 100, 0, False, None

    def gain(self, *_, **__):
        return 0.0, 0.0

    def error_of_nothing(self):
        return 0.01


@pytest.mark.parametrize(
    "silenced, control, gain",
    [(False, (0.0, 0.01), (0.0, 0.01)), (True, (0.0, 0.01), None), (False, (0.1, 0.01), None)],
)
def test_there_is_nothing_to_find_only_where_a_living_network_and_the_mixture_find_nothing(
    silenced, control, gain
):
    training = Behind()
    training.is_silenced = silenced
    assert Fitted(None, torch.zeros(2), training, (0.0, 0.0), control).gain == gain


@pytest.mark.parametrize(
    ("rows", "seconds", "revives"), [(2_000, 1e4, True), (40, 1e4, False), (2_000, 5, False)]
)
def test_behind_a_flow_the_rate_is_lower_and_the_dead_are_revived_where_there_is_time(
    fitted, rows, seconds, revives
):
    z = torch.randn(50, 2)
    law = Mixture(np.ones(1), np.zeros((1, 2)), np.eye(2)[None], 2)
    start = Fits(DensityEstimator(**OPTIONS | {"max_seconds": seconds}), START.whole)
    data = Latents(fitted.columns_, rows, lambda i: (z[i], z[i, :0]), z, z[:, :0], 1, math.inf)
    flows = indm.flows.Identity(), indm.flows.ElementwiseFlow((2,))
    plain, behind = (start.trainings(flow, [law], data)[0] for flow in flows)
    assert 0.1 < behind.rates[0] / plain.rates[0] < 0.5
    assert behind.revives == plain.revives == revives


def ring(n, seed):
    """Points around a circle."""
    numbers = np.random.default_rng(seed)
    radius, angle = 1 + 0.1 * numbers.normal(size=n), 2 * np.pi * numbers.uniform(size=n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


@pytest.fixture
def on_a_ring(monkeypatch):
    """The gain of the network behind a flow that knows nothing, by the rate of the estimator."""
    race_of = Fits.race

    def flow_wins(density, trainings, data, max_steps):
        flowing = [one for one in trainings if one.kind == "flow"]
        return flowing[0] if flowing else race_of(density, trainings, data, max_steps)

    monkeypatch.setattr("indm.tables.start.MaskedFlow", indm.flows.ElementwiseFlow)
    monkeypatch.setattr(Fits, "race", flow_wins)

    def gain_at(rate):
        options = {"max_components": 1, "max_steps": 600, "max_seconds": 1e4, "batch_size": 64}
        options |= {"width": 16, "depth": 1, "n_models": 1, "random_state": 0, "progress": False}
        model = DensityEstimator(**options, learning_rate=rate, flow=True).fit(ring(2_500, 0))
        assert model.starts_ == ["flow"]
        return model.gains_[0]

    return gain_at


@pytest.mark.filterwarnings("ignore:the network found nothing")
@pytest.mark.long
def test_the_default_behind_a_flow_finds_most_of_what_the_best_of_three_rates_finds(on_a_ring):
    default, high, low = (on_a_ring(rate)[0] for rate in (None, 2e-2, 8e-4))
    assert default > 0.8 * max(default, high, low) > 0.4


@pytest.mark.filterwarnings("ignore:the network found nothing")
def test_a_network_whose_rate_is_far_too_high_behind_a_flow_recovers(on_a_ring):
    gain, error = on_a_ring(4.0)
    assert gain > 0.2 + 2 * error


@pytest.mark.filterwarnings("ignore:the network found nothing")
def test_a_network_that_stays_dead_behind_a_flow_has_an_unknown_gain(on_a_ring, monkeypatch):
    monkeypatch.setattr("indm.training.REVIVALS", 0)
    with pytest.warns(UserWarning, match="learning_rate"):
        assert on_a_ring(40.0) is None
