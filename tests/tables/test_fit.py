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
from indm.training import CELLS, DEAD, REVIVALS, UNIFORM_SHARE, NoiseLevels


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
@pytest.mark.long
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


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def test_a_network_dies_at_a_rate_that_is_far_too_high(dead):
    """Its output is a constant: the same at the noise n and −n, and at all rows."""
    z, level = torch.randn(20, 2), torch.zeros(20)
    with torch.no_grad():
        output = dead.model.eval().score.backbone.mlp(z, level, torch.zeros(20, 2))
    assert dead.health.is_dead and (output - output[0]).abs().max() < 1e-5 < output.abs().max()
    assert dead.gain()[0] < 0.02 and dead.rates == [0.3]


def test_a_dead_network_begins_anew_and_finds_most_of_what_the_best_rate_finds(dead):
    best = max(trained_on_a_ring(rate).gain()[0] for rate in (4e-3, 2e-2))
    recovered = trained_on_a_ring(0.3)
    assert recovered.health.revivals > 0 and recovered.rates[0] < 0.1 and not recovered.is_silenced
    assert recovered.gain()[0] > 0.6 > 20 * dead.gain()[0]
    assert recovered.gain()[0] > 0.8 * best


@pytest.mark.parametrize(("gain", "is_kept"), [(1.0, True), (0.001, False), (-1.0, False)])
def test_what_is_within_the_noise_of_validation_is_left_out(gain, is_kept):
    training = training_of(torch.randn(300, 2))
    first = weights(training.best)
    with torch.no_grad():
        training.best.score.backbone.mlp.output.bias.fill_(1.0)
    noise = 0.1 * torch.randn(300, generator=torch.Generator().manual_seed(0))
    training.lowest, training.best_step = training.start - gain - (noise - noise.mean()), 7
    training.leave_out_unheard()
    assert (training.best_step, bool((weights(training.best) != first).any())) == (
        (7, True) if is_kept else (0, False)
    )
    assert training.gain()[0] == pytest.approx(gain if is_kept else 0.0, abs=1e-4)


def test_a_network_that_has_not_moved_is_not_dead():
    training = trained_on_a_ring(1e-9)
    assert (
        training.health.spread < DEAD
        and not training.health.is_dead
        and training.health.revivals == 0
    )


def killed(training: Training) -> None:
    """As if its network had added something, and now were a constant."""
    training.advance(lambda: training._gradients(torch.randn(8, 2), torch.zeros(8, 0)), 1.0)
    training.health.largest_size, training.health.spread = 1.0, 0.0


def test_a_dead_network_begins_anew_some_times_each_at_a_third_of_the_rate():
    training = training_of(torch.randn(64, 2), rate=0.1)
    first = weights(training.model)
    for i in range(1, REVIVALS + 1):
        killed(training)
        assert (weights(training.model) != first).any() and training.optimizer.state
        training.revive()
        assert training.rates == [pytest.approx(0.1 / 3**i)] and training.health.revivals == i
        assert (weights(training.model) == first).all()
        assert (weights(training.ema.model) == first).all()
        assert training.began == training.step == i and not training.optimizer.state
        assert training.health.largest_size == 0 and not training.is_silenced
    killed(training)
    training.revive()
    assert training.is_silenced and training.health.revivals == REVIVALS >= 3
    assert (weights(training.model) != first).any()
    training.health.spread = 1.0
    training.revive()
    assert not training.is_silenced


def test_a_network_that_is_not_to_be_revived_stays_as_it_is():
    training = training_of(torch.randn(64, 2), rate=0.1, revives=False)
    killed(training)
    training.lowest = training.start - 0.01 * torch.randn(64)
    lowest = training.lowest
    training.revive()
    training.leave_out_unheard()
    assert training.rates == [0.1] and not training.is_silenced and training.lowest is lowest


@pytest.mark.parametrize(
    ("largest_size", "spread", "is_dead"),
    [(0.02, 1e-5, True), (1e-5, 1e-5, False), (0.02, 0.02, False)],
)
def test_dead_is_what_was_heard_and_is_a_constant(largest_size, spread, is_dead):
    training = training_of(torch.randn(8, 2))
    training.health.largest_size, training.health.spread = largest_size, spread
    assert training.health.is_dead == is_dead


def test_the_size_and_the_spread_of_a_network_are_those_of_its_loudest_level(monkeypatch):
    """It adds 3 and −1 at the noises n and −n, in both columns, in the eighth of most noise."""
    training = training_of(torch.randn(64, 2))
    latest = training.draws.t.argsort()[-8:]
    added = torch.zeros(2, 64, 2)
    added[0, latest], added[1, latest] = 3.0, -1.0

    def errors_of(added):
        monkeypatch.setattr(
            fit, "paired_error", lambda *_: (torch.zeros(64), training.unlearned - added)
        )
        training._bounds()
        return training.health.largest_size, training.health.spread

    assert errors_of(added) == (pytest.approx(math.sqrt(10)), pytest.approx(math.sqrt(8)))
    assert errors_of(0 * added) == (pytest.approx(math.sqrt(10)), 0.0)


def test_a_new_network_begins_at_the_full_rate_after_a_warm_up_of_its_own(monkeypatch):
    """It is looked at only while the rate is neither rising nor falling."""
    training, factors, looks = training_of(torch.randn(64, 2)), [], []

    def update(_, factor):
        factors.append(factor)
        training.step += 1
        return False

    def revive():
        looks.append(factors[-1])
        if len(looks) == 1:
            training.restart()

    monkeypatch.setattr(training, "update", update)
    monkeypatch.setattr(training, "revive", revive)
    monkeypatch.setattr(training, "validate", lambda: False)
    list(race.train(training, lambda i: (i,), 800, 8, 500, math.inf))
    assert set(looks) == {1.0} and len(looks) >= 2
    restart = training.began
    assert factors[restart - 1 : restart + 2] == pytest.approx([1.0, 1 / 50, 2 / 50])
    assert factors[-1] < 0.1


@pytest.mark.parametrize("is_silenced", [False, True])
@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_a_gain_is_unknown_where_a_silenced_network_found_nothing(is_silenced, gain):
    training = training_of(torch.randn(64, 2))
    training.health.is_silenced, training.lowest = is_silenced, training.start - gain
    assert report.is_unknown(training) == (is_silenced and not gain)


def test_where_nothing_has_been_gained_patience_is_twice_as_long():
    plateau = race.Plateau(80, 8)
    last = max(race.PATIENCE * plateau.epoch, race.LEAST_STEPS)
    assert plateau.is_reached(last, True) and not plateau.is_reached(last, False)
    assert plateau.is_reached(2 * last, False)


def test_a_network_that_dies_at_every_rate_is_silenced_and_the_warning_names_the_rates(monkeypatch):
    for name in ("indm.training.REVIVALS", "indm.tables.report.REVIVALS"):
        monkeypatch.setattr(name, 1)
    for name in ("indm.tables.fit.SLOWER", "indm.tables.report.SLOWER"):
        monkeypatch.setattr(name, 0.9)
    training = trained_on_a_ring(0.5)
    assert training.is_silenced and training.health.revivals == 1
    with pytest.warns(UserWarning, match=r"between 0\.5 and 0\.45"):
        report.warn_of_silence([training])
