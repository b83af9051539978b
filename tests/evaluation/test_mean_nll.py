"""The mean NLL from few fine solves, against the fine solves of all examples."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from closed_form import MixtureScore

import indm
from indm.evaluation.mean_nll import (
    ERROR_SHARE,
    PILOT,
    CoarseSolves,
    RepeatableDraws,
    cheapest,
    corrected,
    order,
)
from indm.evaluation.report import Likelihoods
from indm.flows import Identity
from indm.likelihood import latent_reference
from indm.sde.linear import VPSDE
from indm.tensors import SEED_STRIDE

N, REPEATS, BATCH = 100, 2, 64


@pytest.fixture(scope="module")
def model():
    """The score of N(0, I), for data that are not: the ODE's error differs from example to example."""
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
    return indm.build_model(tables, (20,)).double()


@pytest.fixture(scope="module")
def raw():
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(N, 20, generator=generator).double()


def evaluated(model, raw, **options):
    """The report, and the nats."""
    of_all = {name: options.pop(name) for name in ("seed", "groups") if name in options}
    measures = [indm.Bound(times=1), indm.NLL(exact=False, **{"nll_error": 1e-4} | options)]
    found = indm.evaluate(
        model, raw, measures, repeats=REPEATS, batch_size=BATCH, progress=False, **of_all
    )
    return found.report, found.nats


@pytest.fixture(scope="module")
def each(model, raw):
    return evaluated(model, raw, each=True)


@pytest.fixture(scope="module")
def mean(model, raw):
    return evaluated(model, raw, each=False)


def test_the_mean_is_that_of_fine_solves_of_all_examples(each, mean):
    fine, found = each[0].nll, mean[0].nll
    for row in ("with_reconstruction", "without_reconstruction"):
        off = getattr(found, row).mean - getattr(fine, row).mean
        assert abs(off) < 4 * found.correction.added_error + 1e-6
    error = found.with_reconstruction.standard_error
    assert error == pytest.approx(fine.with_reconstruction.standard_error, rel=0.02)
    assert 0 < found.correction.added_error < 0.25 * error
    assert found.nfe < 0.6 * fine.nfe
    assert found.correction.solves[-1].estimates >= PILOT


def test_a_single_group_has_no_standard_error_and_its_mean_is_corrected(model, raw, each, mean):
    """What corrections may add is then a share of the error of examples that are independent."""
    one_group, _ = evaluated(model, raw, groups=torch.zeros(N, dtype=torch.long))
    json.dumps(one_group.content(), allow_nan=False)
    found, expected = one_group.nll, mean[0].nll
    assert found.with_reconstruction.standard_error is None
    assert found.with_reconstruction.mean == expected.with_reconstruction.mean
    assert found.correction == expected.correction


def test_every_evaluation_is_counted(model, raw, monkeypatch):
    calls = []
    forward = type(model.score.backbone).forward

    def counted(self, z, level):
        calls.append(len(z))
        return forward(self, z, level)

    monkeypatch.setattr(type(model.score.backbone), "forward", counted)
    # which is not a part of the solve
    monkeypatch.setattr("indm.likelihood.check_gradient", lambda score, z: 0.0)
    report, _ = evaluated(model, raw, each=False)
    assert sum(calls) == pytest.approx(
        report.nll.nfe * N * REPEATS + N * REPEATS * 3, rel=1e-6
    )  # and of the NELBO and of the reconstruction


@pytest.mark.long
def test_differences_are_of_the_same_draws(model, raw, each, mean):
    """Coarse value and differences of an estimate add up to its fine solve."""
    nats = mean[1]
    first = -(-N // BATCH) * REPEATS
    seeds = [SEED_STRIDE * (first + number) for number in range(first)]
    solver = {"eps": model.sde.eps, "exact": False, "nll_error": 1e-4}
    draws = RepeatableDraws(
        model,
        raw,
        None,
        latent_reference(model, raw, batch_size=BATCH),
        BATCH,
        REPEATS,
        seeds,
        solver,
    )
    everything = torch.arange(N * REPEATS)
    places = draws.numbers(everything).argsort(stable=True)
    fine = torch.empty(N * REPEATS, dtype=torch.float64)
    fine[places] = draws.solve(places, [None])[0][0]
    torch.testing.assert_close(
        fine.reshape(N, REPEATS).mean(1), each[1]["nll_without_reconstruction"], rtol=0, atol=1e-9
    )
    solves = mean[0].nll.correction.solves
    if len(solves) == 2:
        few = solves[0].steps
        coarse = torch.empty(N * REPEATS, dtype=torch.float64)
        coarse[places] = draws.solve(places, [few])[0][0]
        chosen = nats["nll_rung_1_estimates"]
        torch.testing.assert_close((fine - coarse)[chosen], nats["nll_rung_1"], rtol=0, atol=1e-9)


def table(n=1000, deviations=(1.0, 0.1, 0.02)):
    """Values at 12, 24, 48 and 96 steps and at last of n estimates, and what looks them up."""
    generator = torch.Generator().manual_seed(0)
    fine = 3 * torch.randn(n, generator=generator, dtype=torch.float64)
    rough = [
        d * (0.3 + torch.randn(n, generator=generator, dtype=torch.float64))
        for d in (*deviations, deviations[-1] / 9)
    ]
    values = {steps: fine + off for steps, off in zip((12, 24, 48, 96), rough, strict=True)} | {
        None: fine
    }

    def solve(estimates, steps):
        found = torch.stack([values[n][estimates] for n in steps])
        return (
            found,
            torch.full((len(estimates),), 1e-4),
            sum(100 if n is None else 2 * n for n in steps) * len(estimates),
        )

    return values, solve


@pytest.mark.parametrize("deviations", [(1.0, 0.1, 0.02), (0.01, 0.01, 0.01)])
def test_intervals_of_chosen_levels_cover(deviations):
    values, solve = table(deviations=deviations)
    stated, covered, mean = torch.ones(1000), 0, values[None].mean().item()
    for seed in range(200):
        found = corrected(CoarseSolves(values[12], stated, 12, 25.0), solve, 0.02, seed).correction
        low, high = found.interval(0.9)
        covered += low <= mean - values[12].mean().item() <= high
    assert 167 <= covered <= 193


def test_levels_between_are_chosen_where_they_are_cheaper():
    values, solve = table()
    found = corrected(CoarseSolves(values[12], torch.ones(1000), 12, 25.0), solve, 0.02, 0)
    assert len(found.rungs) > 1 and found.correction.added_error < 0.03
    chosen, wanted = cheapest(
        torch.stack([values[n][:32] for n in (12, 24, 48, 96, None)]),
        [48, 96, 192, 100],
        1000,
        0.02,
    )
    assert chosen and len(wanted) == len(chosen) + 1
    assert cheapest(torch.stack([values[12][:32], values[12][:32]]), [100], 1000, 0.02) == (
        [],
        [PILOT],
    )


def test_a_correction_between_two_levels_costs_a_solve_at_each():
    """Differences of variances 0.9 and 0.1: √(50·0.9) + √(150·0.1) > √100 > √(20·0.9) + √(120·0.1)."""
    first, second = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1]], dtype=torch.float64)
    middle = math.sqrt(0.9) * first
    values = torch.stack([0 * first, middle, middle + math.sqrt(0.1) * second])
    assert cheapest(values, [50.0, 100.0], 10**6, 0.01)[0] == []
    assert cheapest(values, [20.0, 100.0], 10**6, 0.01)[0] == [0]


def test_estimates_with_an_unusual_error_are_solved_for_certain():
    values, solve = table(deviations=(0.01, 0.01, 0.01))
    coarse, stated = values[12].clone(), torch.ones(1000)
    coarse[::100] += 50.0
    stated[::100] = 3.0
    found = corrected(CoarseSolves(coarse, stated, 12, 25.0), solve, 0.02, 0)
    assert found.certain[0].tolist() == list(range(0, 1000, 100))
    assert coarse.mean().item() + found.correction.value == pytest.approx(
        values[None].mean().item(), abs=0.01
    )


def test_sizes_and_errors_are_those_of_the_share_that_is_usual():
    """By hand: a twentieth is solved for certain, and the rest may add the error that is allowed
    over all.
    """
    values, solve = table(deviations=(0.3, 0.3, 0.3))
    stated = torch.ones(1000)
    stated[::20] = 3.0
    found = corrected(CoarseSolves(values[12], stated, 12, 25.0), solve, 0.03, 0)
    (level,), share, usual = found.rungs, 0.95, 950
    first = order(1000, 1, 0)
    first = first[stated[first] < 2][:PILOT]
    pilot = (values[None] - values[12])[first].var().item()
    m = len(level.differences)
    assert m == math.ceil(pilot / ((0.03 / share) ** 2 + pilot / usual)) > PILOT
    added = share * math.sqrt(level.differences.var().item() / m * (1 - m / usual))
    assert found.correction.added_error == pytest.approx(added)


def test_the_correction_of_skewed_differences_is_unbiased_and_its_error_is_that_of_its_draws():
    """A pilot without a large difference asks for few estimates, so it must not be a part of their
    mean.
    """
    off, errors = [], []
    for seed in range(1000):
        generator = torch.Generator().manual_seed(seed)
        fine = 3 * torch.randn(400, generator=generator, dtype=torch.float64)
        coarse = fine - 0.2 * torch.randn(400, generator=generator, dtype=torch.float64).exp()

        def solve(estimates, steps, coarse=coarse, fine=fine):
            found = torch.stack([fine[estimates] for _ in steps])
            return found, torch.full((len(estimates),), 1e-4), 100 * len(estimates)

        found = corrected(
            CoarseSolves(coarse, torch.ones(400), 12, 1000.0), solve, 0.03, seed
        ).correction
        off.append(found.value - (fine - coarse).mean().item())
        errors.append(found.added_error)
    off, errors = np.array(off), np.array(errors)
    assert abs(off.mean()) < 4 * off.std() / math.sqrt(len(off))
    assert off.std() == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.1)


def test_both_errors_together_cover_the_entropy_of_a_mixture():
    """Twelve steps are 0.2 nats off on average, in some examples 2 or more; each repetition draws
    its own examples.
    """
    means = 1.5 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stds = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.5], dtype=torch.float64)
    score = MixtureScore(VPSDE(), means, stds, torch.full((5,), 0.2, dtype=torch.float64))
    law = indm.INDM(Identity(), score, shape=(4,)).double()
    x = score.sample(600, generator=torch.Generator().manual_seed(1))
    exact, values = -score.log_prob(x).mean().item(), {}
    for steps in (12, 24, 48, 96):
        found = indm.evaluate(
            law, x, [indm.NLL(each=True, steps=steps)], batch_size=600, progress=False
        )
        values[steps] = found.nats["nll"]
    values[None] = values[96]
    stated = torch.ones(400)
    covered = 0
    for seed in range(400):
        drawn = torch.randint(600, (400,), generator=torch.Generator().manual_seed(seed))

        def solve(estimates, steps, drawn=drawn):
            found = torch.stack([values[n][drawn[estimates]] for n in steps])
            evaluations = sum(100 if n is None else 2 * n for n in steps)
            return found, torch.full((len(estimates),), 1e-4), evaluations * len(estimates)

        coarse = values[12][drawn]
        error = coarse.std().item() / math.sqrt(400)
        found = corrected(
            CoarseSolves(coarse, stated, 12, 25.0), solve, ERROR_SHARE * error, seed
        ).correction
        off = coarse.mean().item() + found.value - exact
        covered += abs(off) < 1.96 * math.hypot(error, found.added_error)
    assert covered >= 380 - 3 * 4.4  # a binomial count's deviation is 4.4


def test_the_correction_of_the_usual_estimates_counts_by_their_share():
    """By hand: each of 95 % is off by 1, and each of the 5 % that are solved for certain by 3."""
    coarse, stated = torch.randn(1000, dtype=torch.float64), torch.ones(1000)
    stated[::20] = 3.0

    def solve(estimates, steps):
        found = torch.stack([coarse[estimates] + stated[estimates] for _ in steps])
        return found, torch.full((len(estimates),), 1e-4), 100 * len(estimates)

    found = corrected(CoarseSolves(coarse, stated, 12, 25.0), solve, 0.03, 0).correction
    assert found.value == pytest.approx(0.95 * 1 + 0.05 * 3)


def test_levels_that_a_pilot_chose_are_of_other_estimates():
    """It is the beginning of the first solve; no level holds all of it, nor do two levels share
    theirs.
    """
    values, solve = table()
    solved = []

    def noted(estimates, steps):
        solved.append(set(estimates.tolist()))
        return solve(estimates, steps)

    rungs = corrected(CoarseSolves(values[12], torch.ones(1000), 12, 25.0), noted, 0.02, 0).rungs
    subsets = [set(rung.estimates.tolist()) for rung in rungs]
    assert len(rungs) > 1 and not any(solved[0] <= subset for subset in subsets)
    assert not any(a <= b for a in subsets for b in subsets if a is not b)


def test_rare_misses_that_the_coarse_solves_do_not_state_are_not_covered():
    """The limit that docs/likelihood.md states: 1 % of the examples are off by 10 nats."""
    covered, errors = 0, []
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        off = 0.01 * torch.randn(1000, generator=generator, dtype=torch.float64)
        off[torch.randperm(1000, generator=generator)[:10]] += 10.0

        def solve(estimates, steps, off=off):
            left = torch.stack([off[estimates] * (0 if n is None else 12 / n) for n in steps])
            return left, torch.full((len(estimates),), 1e-4), 100 * len(steps) * len(estimates)

        found = corrected(
            CoarseSolves(off, torch.ones(1000), 12, 25.0), solve, 0.02, seed
        ).correction
        low, high = found.interval(0.95)
        covered += low <= -off.mean() <= high
        errors.append(found.value + off.mean().item())
    # few intervals are wide
    assert 40 <= covered <= 70 and abs(np.mean(errors)) < 4 * np.std(errors) / 10


@pytest.mark.long
def test_a_difference_is_corrected_by_the_same_estimates(model, raw, mean, each, tmp_path):
    """Its own variance, far below those of both corrections."""
    tables = {
        "flow": {"name": "actnorm", "channels": 20},
        "sde": {"name": "vp"},
        "net": {"name": "zero"},
    }
    other = indm.build_model(tables, (20,)).double()
    other.flow.log_scale.data.fill_(0.01)
    runs = {"one": mean, "other": evaluated(other, raw, each=False)}
    for name, (report, nats) in runs.items():
        Likelihoods(replace(report, unit="nats"), nats).save(tmp_path / name)
    one_of, other_of = (Likelihoods.load(tmp_path / name) for name in runs)
    error = one_of.added_error(other_of, "nll")
    apart = (one_of.per_example("nll") - other_of.per_example("nll")).numpy()
    fine = (each[1]["nll"] - evaluated(other, raw, each=True)[1]["nll"]).numpy()
    assert apart.mean() == pytest.approx(fine.mean(), abs=4 * error + 1e-6)
    assert error < 0.5 * math.hypot(
        *(report.nll.correction.added_error for report, _ in runs.values())
    )
    found, its_error = (one_of - other_of)["nll"]
    assert found == pytest.approx(apart.mean())
    assert its_error == pytest.approx(math.hypot(apart.std(ddof=1) / math.sqrt(N), error))
