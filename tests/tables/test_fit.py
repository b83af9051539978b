"""How a table's network is trained: the loss against the NELBO, levels by their gradients, and when
it ends.
"""

import itertools
import math
import time

import numpy as np
import pytest
import torch

from indm.conditions import Vector
from indm.flows.base import Identity
from indm.model import INDM
from indm.objective import mle_loss
from indm.score import ScoreModel
from indm.sde.linear import VPSDE
from indm.tables import fit, race, report
from indm.tables.fit import Training, gradient_square, paired_error
from indm.tables.networks import MixtureMLP
from indm.training import CELLS, UNIFORM_SHARE, NoiseLevels


def model_of(k: int = 0, width: int = 8) -> INDM:
    """An untrained model of two columns with the mixture N(0, 4 I), at conditions of k numbers."""
    torch.manual_seed(0)
    condition = Vector(k) if k else None
    net = MixtureMLP((2,), 1, width, 1, condition=condition.seen_shape if condition else ())
    net.set_mixture(torch.ones(1), torch.zeros(1, 2), 4 * torch.eye(2)[None])
    return INDM(Identity(), ScoreModel(net, VPSDE(eps=1e-4)), shape=(2,), condition=condition)


def training_of(
    rows: torch.Tensor, c: torch.Tensor | None = None, rate: float = 1e-2, **options
) -> Training:
    c = torch.zeros(len(rows), 0) if c is None else c
    return Training(model_of(c.shape[1]), rows, c, rate, 0.0, **options)


def test_weighted_draws_of_any_law_integrate_over_the_clock():
    clock, generator = NoiseLevels(VPSDE(eps=1e-4)), torch.Generator().manual_seed(0)
    clock.squares = torch.rand(CELLS, generator=generator) + 0.01
    t, weight, cell = clock.draw(20_000, generator)
    log_snr = clock.sde.log_snr(t.double())
    end = clock.sde.log_snr(torch.tensor([1.0]).double())
    span = clock.length - 1
    assert weight.mean().item() == pytest.approx(clock.length, rel=1e-3)
    assert (weight * (t <= clock.sde.eps)).mean().item() == pytest.approx(1.0, rel=0.01)
    square = (log_snr - end).square().where(cell > 0, torch.zeros(()).double())
    assert (weight * square).mean().item() == pytest.approx(span**3 / 3, rel=0.01)


def test_the_paired_error_is_that_of_the_bound():
    z = torch.randn(40_000, 2, generator=torch.Generator().manual_seed(0))
    model, clock = model_of(), NoiseLevels(VPSDE(eps=1e-4))
    t, weight, _ = clock.draw(len(z), torch.Generator().manual_seed(1))
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(2))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    paired = weight[order] * paired_error(model, torch.zeros(len(z), 0), z, t[order], noise)[0]
    alone = mle_loss(model, z, generator=torch.Generator().manual_seed(4))[1]["denoising"]
    error = 3 * paired.std().item() / len(z) ** 0.5
    assert paired.mean().item() == pytest.approx(alone.item(), abs=2 * error)


def test_the_gradient_of_a_level_is_that_of_the_last_layer():
    training = training_of(torch.randn(5, 2))
    training.model.score.backbone.mlp.output.weight.data.normal_()
    z, t, noise, c = torch.randn(5, 2), torch.full((5,), 0.3), torch.randn(5, 2), torch.zeros(5, 0)
    error, difference = paired_error(training.model, c, z, t, noise)
    found = gradient_square(difference, training.hidden.unflatten(0, (2, -1)))
    for row, expected in zip(error, found, strict=True):
        (gradient,) = torch.autograd.grad(
            row, training.model.score.backbone.mlp.output.weight, retain_graph=True
        )
        assert 4 * gradient.square().sum().item() == pytest.approx(expected.item(), rel=1e-4)


def test_levels_are_drawn_where_gradients_are_large():
    clock = NoiseLevels(VPSDE(eps=1e-4))
    cells = torch.arange(CELLS).repeat(4)
    for _ in range(300):
        clock.measure(cells, torch.where(cells == 7, 100.0, 1.0))
    share, roots = clock.share, torch.where(torch.arange(CELLS) == 7, 10.0, 1.0)
    mass = clock.widths * roots
    expected = UNIFORM_SHARE * clock.widths / clock.length + (1 - UNIFORM_SHARE) * mass / mass.sum()
    torch.testing.assert_close(share, expected, rtol=0.02, atol=0)
    assert share.sum().item() == pytest.approx(1)


def test_levels_without_a_draw_keep_what_was_measured():
    clock = NoiseLevels(VPSDE(eps=1e-4))
    for _ in range(10):
        clock.measure(torch.arange(3), torch.full((3,), 5.0))
    assert (clock.squares[:3] > 1).all() and (clock.squares[3:] == 1).all()


def test_a_measurement_changes_the_average_by_a_fiftieth_of_its_difference():
    clock = NoiseLevels(VPSDE(eps=1e-4))
    clock.measure(torch.arange(CELLS), torch.full((CELLS,), 101.0))
    torch.testing.assert_close(clock.squares, torch.full((CELLS,), 3.0))


def test_a_gain_is_that_of_the_bound_and_its_error_over_rows():
    """From N(0, 4 I) to N(0, I), the truth: KL(N(0, I) ‖ N(0, 4 I)) = 2 log 2 − 3/4 nats."""
    rows = torch.randn(1_500, 2, generator=torch.Generator().manual_seed(0))
    training = training_of(rows.repeat_interleave(4, 0), groups=4)
    training.ema.model.score.backbone.set_mixture(
        torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None]
    )
    assert training.validate()
    gain, error = training.gain()
    assert gain == pytest.approx(2 * np.log(2) - 0.75, abs=3 * error + 0.02)
    assert 0.005 < error < 0.1


def test_training_follows_the_condition():
    numbers = torch.Generator().manual_seed(0)
    c = torch.rand(2_000, 1, generator=numbers) * 6 - 3
    z = torch.cat([c.sin(), c.cos()], 1) + 0.1 * torch.randn(2_000, 2, generator=numbers)
    training = training_of(z[:500], c[:500])
    list(race.train(training, lambda i: (z[500:][i], c[500:][i]), 1_500, 128, 150, float("inf")))
    assert training.ended == "max_steps" and training.gain()[0] > 0.5


@pytest.mark.parametrize("rows, growths", [(40, 0), (4_000, 1)])
def test_it_ends_some_epochs_after_the_last_gain_and_the_batch_grows_before(
    rows, growths, monkeypatch
):
    """A tiny rate gains nothing: a plateau at once, in the larger batch another, and then the fall
    of the rate.
    """
    for name, value in {"CHECK_EVERY": 5, "PATIENCE": 1, "LEAST_STEPS": 20}.items():
        monkeypatch.setattr(race, name, value)
    z, sizes, rates = torch.randn(rows, 2), [], []
    training = training_of(z[:20], rate=1e-12)
    update = training.update

    def watched(batch, factor):
        sizes.append(len(batch[0]))
        rates.append(factor)
        update(batch, factor)

    training.update = watched  # type: ignore[method-assign]
    list(
        race.train(
            training, lambda i: (z[i], torch.zeros(len(i), 0)), rows, 32, 10_000, float("inf")
        )
    )
    assert training.ended == "plateau"
    assert len(set(sizes)) == 1 + growths and sizes == sorted(sizes)
    assert training.gain()[0] < 1e-3 and rates[-1] < 0.3 < max(rates)


def test_seconds_end_a_training_at_a_rate_of_zero(monkeypatch):
    ticks, rates = itertools.count(), []
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    z = torch.randn(100, 2)
    training = training_of(z[:20])
    monkeypatch.setattr(training, "update", lambda batch, factor: rates.append(factor))
    list(race.train(training, lambda i: (z[i], torch.zeros(len(i), 0)), 100, 32, 10_000, 100.0))
    assert training.ended == "max_seconds"
    assert rates[-1] < 0.05 and len(rates) == 99


@pytest.mark.parametrize("steps", [100, 10_000])
def test_the_better_of_two_trainings_goes_on_after_the_race(steps, monkeypatch):
    """One starts at the truth; the other, from N(0, 4 I) at a tiny rate, stays behind and stops
    with the race.
    """
    monkeypatch.setattr(race, "RACE_STEPS", 100)
    z = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    behind, ahead = training_of(z, rate=1e-12), training_of(z, rate=1e-12)
    for model in (ahead.model, ahead.ema.model, ahead.best):
        model.score.backbone.set_mixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    ahead.start = ahead.lowest = ahead._errors()

    options = 500, 250, min(steps, 200)
    assert (
        race.race([behind, ahead], lambda i: (z[i], torch.zeros(len(i), 0)), *options, math.inf)
        is ahead
    )
    assert behind.step == 100 and ahead.step == min(steps, 200)
    gain, error = ahead.gain(behind.start)
    assert gain == pytest.approx(2 * np.log(2) - 0.75, abs=3 * error + 0.05)


def test_what_time_ended_says_what_it_gained_late(monkeypatch):
    """After 35 % of the time the errors are 4, after 70 % they are 2.5; what the falling rate gains
    does not count.
    """
    training = training_of(torch.zeros(8, 2))
    clock = iter([0.0, 0.1, 0.4, 0.5, 0.75, 0.9, 1.1])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    lowest = iter([4.0, 3.0, 2.5, 2.0, 1.0, 0.0])

    def update(*_):
        training.lowest = torch.full((8,), next(lowest))

    training.lowest = torch.full((8,), 4.0)
    monkeypatch.setattr(training, "update", update)
    monkeypatch.setattr(training, "validate", lambda: False)
    for _ in race.train(training, lambda i: (i,), 8, 4, 100, 1.0):
        pass
    assert training.ended == "max_seconds" and training.late_gain() == (1.5, 0.0)
    training.ended = "plateau"
    assert training.late_gain() == (0.0, 0.0)


def test_a_row_far_from_all_others_does_not_choose_a_state():
    """Errors are lower in most rows and a million nats higher in one, which stands twice in the
    validation.
    """
    training, generator = (
        training_of(torch.randn(400, 2), groups=2),
        torch.Generator().manual_seed(0),
    )
    errors = 3 + torch.randn(400, generator=generator)
    others = errors + 0.1 + 0.1 * torch.randn(400, generator=generator)
    assert training.is_lower(errors, others) and not training.is_lower(others, errors)
    errors[8:10] += 1e6
    assert training.is_lower(errors, others) and not training.is_lower(others, errors)
    assert not training.is_lower(errors, errors)
    # a row's draws are averaged before
    assert training.is_lower(torch.tensor([0.0, 15.0]), torch.tensor([30.0, 0.0]))


@pytest.mark.parametrize("n", [40, 400])
def test_the_columns_start_at_the_first_plateau_and_the_rate_falls_at_a_later_one(n, monkeypatch):
    """With few rows the batch cannot grow: the first plateau starts the columns alone."""
    monkeypatch.setattr(race, "LEAST_STEPS", 150)
    training = training_of(torch.randn(64, 2), rate=0.0)
    columns, started = training.model.score.backbone.columns, []
    for _ in race.train(
        training,
        lambda i: (torch.randn(len(i), 2), torch.zeros(len(i), 0)),
        n,
        40,
        10_000,
        math.inf,
    ):
        started.append(not columns.is_off)
    assert not started[0] and started[-1] and training.ended == "plateau"
    assert columns.is_off is training.ema.model.score.backbone.columns.is_off is False
    assert training.best.score.backbone.columns.is_off


def test_the_columns_start_at_half_of_the_seconds(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    training = training_of(torch.randn(64, 2))
    steps = race.train(
        training, lambda i: (torch.randn(len(i), 2), torch.zeros(len(i), 0)), 400, 40, 10_000, 400.0
    )
    off_at = [training.step for _ in steps if training.model.score.backbone.columns.is_off]
    assert 0.3 < off_at[-1] / training.step < 0.6


def ring(n: int, seed: int) -> torch.Tensor:
    """Points around a circle, of which the mixture N(0, I) knows nothing but the size."""
    numbers = torch.Generator().manual_seed(seed)
    radius = 1.4 * (1 + 0.1 * torch.randn(n, generator=numbers))
    angle = 2 * math.pi * torch.rand(n, generator=numbers)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def trained_on_a_ring(rate: float, **options) -> Training:
    torch.manual_seed(0)
    held, x = ring(300, 1), ring(2_000, 2)
    model = INDM(Identity(), ScoreModel(MixtureMLP((2,), 1, 16, 1), VPSDE(eps=1e-4)), shape=(2,))
    training = Training(model, held, torch.zeros(300, 0), rate, 0.01, **options)
    list(race.train(training, lambda i: (x[i], x[i, :0]), len(x), 32, 400, float("inf")))
    return training


@pytest.fixture(scope="module")
def dead() -> Training:
    """At a rate that is far too high, without a new beginning."""
    return trained_on_a_ring(0.3, revives=False)


def test_a_network_dies_at_a_rate_that_is_far_too_high(dead):
    """Its output is a constant: the same at the noise n and −n, and at all rows."""
    z, level = torch.randn(20, 2), torch.zeros(20)
    with torch.no_grad():
        output = dead.model.eval().score.backbone.mlp(z, level, torch.zeros(20, 2))
    assert dead.is_dead and (output - output[0]).abs().max() < 1e-5 < output.abs().max()
    assert dead.gain()[0] < 0.02 and dead.rates == [0.3]


def test_a_dead_network_begins_anew_and_finds_most_of_what_the_best_rate_finds(dead):
    best = max(trained_on_a_ring(rate).gain()[0] for rate in (4e-3, 2e-2))
    recovered = trained_on_a_ring(0.3)
    assert recovered.revivals > 0 and recovered.rates[0] < 0.1 and not recovered.is_silenced
    assert recovered.gain()[0] > 0.6 > 20 * dead.gain()[0]
    assert recovered.gain()[0] > 0.8 * best


def test_what_is_within_the_noise_of_validation_is_left_out(dead):
    alive = trained_on_a_ring(4e-3)
    gain = alive.gain()
    alive.leave_out_unheard()
    assert alive.gain() == gain and alive.best_step > 0
    alive.lowest = alive.start - 0.01 * torch.randn(300, generator=torch.Generator().manual_seed(0))
    alive.leave_out_unheard()
    assert alive.gain()[0] == 0 and alive.best_step == 0
    assert alive.best.score.backbone.is_mixture


def test_a_network_that_has_not_moved_is_not_dead():
    training = trained_on_a_ring(1e-9)
    assert training.spread < fit.DEAD and not training.is_dead and training.revivals == 0


def test_a_network_that_dies_at_every_rate_is_silenced_and_the_warning_names_the_rates(monkeypatch):
    for module in (fit, report):
        monkeypatch.setattr(module, "REVIVALS", 1)
        monkeypatch.setattr(module, "SLOWER", 0.9)
    training = trained_on_a_ring(0.5)
    assert training.is_silenced and training.revivals == 1
    with pytest.warns(UserWarning, match=r"between 0\.5 and 0\.45"):
        report.warn_of_silence([training])
