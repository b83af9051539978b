"""What the flow is worth: that its search is fair, that it goes on, and that its slopes are slopes."""

import numpy as np
import pytest

from indm.workbench.evaluation.statistics import Difference
from research.flow_gain import study, tables
from research.flow_gain.cells import DEQUANTIZATIONS, SIDES, STUDIES, Training, axes, median_and_error, name_of
from research.records import Records


@pytest.mark.parametrize("data", STUDIES)
@pytest.mark.parametrize("dequantization", DEQUANTIZATIONS)
def test_every_side_is_searched_by_the_same_number_of_trainings(data, dequantization):
    counts = {side: 1 + sum(len(axis) - 1 for axis in axes(data, dequantization, side)) for side in SIDES}
    assert set(counts.values()) == {5 if dequantization == "variational" else 4}


@pytest.fixture
def found(monkeypatch):
    """A cell whose best setting is known in place of trainings; the settings that were tried, with their steps."""
    best, tried = {"train.lr": 1e-3, "train.flow_lr": 3e-3, "train.flow_update_every": 3}, []

    def validated(job):
        job.recipe()  # is valid
        tried.append((job.setting, job.steps))
        return {"valid": {"0.9": 1.0 + sum(job.setting[key] != value for key, value in best.items()), "0.97": 9.0}}

    monkeypatch.setattr(study, "validated", validated)
    return best, tried


def test_a_search_finds_the_best_at_equal_seconds_and_goes_on(tmp_path, found):
    best, tried = found
    job = Training("digits", "uniform", "indm", {}, 1)
    costs = {f"uniform indm flow_update_every={every}": cost for every, cost in ((1, 1.25), (3, 1.1))}
    trainings, choice = (Records(tmp_path / f"{kind}.csv").at(side="indm") for kind in ("search", "chosen"))
    searched = job, axes("digits", "uniform", "indm"), costs, 550
    found = study.search_cell(trainings, choice, *searched)
    assert found == {"side": "indm", "setting": best, "steps": 500, "ema": 0.9, "valid": 1.0, "trainings": 4}
    assert [steps for _, steps in tried] == [440] * 3 + [500]
    assert len({name_of(setting) for setting, _ in tried}) == 4
    made = tmp_path / "search.csv"
    lines = made.read_text().splitlines(keepends=True)
    made.write_text("".join(lines[:2] + lines[3:]))
    choice.path.unlink()
    assert study.search_cell(trainings, choice, *searched) == found
    assert len(tried) == 5, "what has a record is not made again"


def test_slopes_are_those_of_a_plane():
    rng = np.random.default_rng(0)
    gain = {(c, 32, b): -0.2 + 0.05 * np.log2(b) - 0.01 * np.log2(c) for c in (16, 32, 64) for b in (1, 2, 4)}
    points = {place: Difference(value + 1e-6 * rng.normal(), 1, np.nan) for place, value in gain.items()}
    assert tables.slopes(points).startswith(
        "+0.0500 ± 0.0000 for each doubling of the budget, -0.0100 ± 0.0000 for each doubling of the score's width; "
        "on this line it is 0 at 2^3.0 of the largest budget"
    )


def test_a_family_is_paired_by_seed_and_image_and_says_what_is_missing(tmp_path):
    """INDM is better by 0.1 bits/dim in each seed, whatever the images are; a seed that one side lacks is left out."""
    rng, images, final = np.random.default_rng(0), 30, Records(tmp_path / "final.csv")
    for side, gain in {"elementwise": 0.0, "indm": 0.1}.items():
        for seed in (1, 2, 3) if side == "indm" else (2, 1):
            nats = 64 * np.log(2) * (2 + np.linspace(0, 5, images) + seed - gain + 1e-3 * rng.normal(size=images))
            record = {"dims": 64, "nelbo_nats": nats.tolist()}
            final.at(data="digits", noise="uniform", side=side, seed=seed).add(record)
    table = tables.family_table(final, ["digits"])
    assert "| digits | uniform | INDM − spline | 2 | -0.100" in table
    p = tables.difference(*(final.at(side=side).rows() for side in ("indm", "elementwise"))).p
    p_holm = float(table.splitlines()[2].split(" | ")[5])
    assert p_holm == pytest.approx(min(1, 6 * p), rel=0.1), "the family has six, made or not"
    assert table.endswith("\n\n5 of 6 are not made yet.")
    assert len(tables.FAMILY) == 6


def test_the_error_of_a_median_is_that_of_normal_values_and_bears_one_disturbed():
    draws = np.random.default_rng(0).normal(1.2, 0.1, (4000, 9))
    medians, errors = zip(*(median_and_error(row.tolist()) for row in draws), strict=True)
    assert np.mean(errors) == pytest.approx(np.std(medians), rel=0.15)
    calm, disturbed = draws[0].tolist(), [*draws[0, :8].tolist(), 60.0]
    assert median_and_error(disturbed)[1] < 2 * median_and_error(calm)[1]
