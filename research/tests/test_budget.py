"""The plan of research/budget: what is trained, in which order, for how many steps."""

import json
import math
import types

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

from indm.scaling import Scaling
from research.budget import family, splines, tables
from research.budget.design import SEEDS, STUDIES, TENTH, THIRD, Planner, steps_of
from research.records import Records


@pytest.fixture
def finished():
    """Validations by name, as jobs end; the planner that sees them."""
    done = {}
    return done, Planner(done.get)


def run_all(done, planner, bits=lambda job: 1.0):
    order = []
    while left := [job for job in planner.jobs() if job.name not in done]:
        order.append(left[0])
        done[left[0].name] = bits(left[0])
    return order


def test_every_variant_is_trained_with_every_seed_at_equal_cost(finished):
    order = run_all(*finished)
    final = [job for job in order if job.about.get("stage") == "final" and job.about["study"] in STUDIES]
    for study, s in STUDIES.items():
        for variant, v in s.variants.items():
            own = [job for job in final if (job.about["study"], job.about["variant"]) == (study, variant)]
            assert {job.about["seed"] for job in own} == set(v.seeds) and len(own) == len(v.seeds)
            assert {(job.share, job.about["structure"]) for job in own} == {(1.0, own[0].about["structure"])}
            assert steps_of(own[0], 1.25) == round(s.steps / 1.25)
    assert sum(len(v.seeds) for v in STUDIES["fashion"].variants.values()) == 5 * len(SEEDS) + 1
    assert [job.name.split("/")[0] for job in order][-4:] == ["models"] + ["pairs"] * 3


def test_a_search_takes_the_best_of_each_axis_and_the_network_of_the_linear_side(finished):
    wanted = {"train.batch_size": 128, "train.lr": 1e-3, "train.flow_lr": 3e-2}

    def bits(job):
        return sum(job.setting.get(key) != value for key, value in wanted.items())

    order = run_all(*finished, bits)
    spline = next(job for job in order if job.name == "fashion/final/spline-1")
    assert {key: spline.setting[key] for key in wanted} == wanted
    small = [job for job in order if job.about.get("stage") == "search"]
    assert {job.share for job in order} == {TENTH, THIRD, 1.0, None}
    assert all(not job.tested and job.about["seed"] == 0 for job in small)
    flow = next(job for job in order if job.name == "fashion/final/flow-1")
    assert flow.setting["net"] == "zero" and flow.setting["train.batch_size"] == 128
    assert not any(key.startswith("net.") for key in flow.setting)


def test_a_spline_that_stretches_one_end_gives_its_levels_that_share_of_the_latent():
    def stretched(x):
        """Slope 4 below -1 + 2/256, where level 0 is, and 1 above."""
        return torch.where(x < -1 + 2 / 256, 4 * x + 3 * (1 - 2 / 256), x), torch.zeros(len(x))

    model = types.SimpleNamespace(flow=stretched, shape=(1, 2, 2), scaling=Scaling.images())
    found = splines.lengths(model, 256)
    assert found[0] == pytest.approx(4 / 259) and found[1:] == pytest.approx([1 / 259] * 255, rel=1e-3)
    assert splines.frequencies(torch.tensor([[0, 0], [3, 255]], dtype=torch.uint8), 256)[[0, 3, 255]].tolist() == [
        0.5, 0.25, 0.25,
    ]  # fmt: skip


def test_the_table_of_final_trainings_has_each_number_with_its_error(tmp_path):
    measured = {"steps": 6000, "training_cpu_seconds": 2975.1, "nelbo": 3.05, "nelbo_error": 0.012, "frechet_own": 40.0}
    measured |= {"frechet_own_standard_error": 2.0}
    for study in ("fashion", "models"):
        Records(tmp_path / "runs.csv").at(study=study, variant="linear", stage="final", seed=1).add(measured)
    (line,) = tables.finals(Records(tmp_path / "runs.csv")).splitlines()[2:]
    assert line == "| fashion | linear | 1 | 6000 | 2975 | 3.0500 ± 0.0120 | – | 40.0 ± 2.0 | – |"


def test_the_curve_has_the_best_of_the_search_and_the_mean_over_seeds_beside_the_hours_spent(tmp_path):
    made = Records(tmp_path / "runs.csv")
    for variant, stage, seed, setting, valid in (
        ("linear", "search", 0, "a", 3.6),
        ("linear", "search", 0, "b", 3.5),
        ("linear", "final", 1, "1", 3.0),
        ("linear", "final", 2, "2", 3.2),
        ("spline", "search", 0, "a", 3.25),
        ("spline", "final", 1, "1", 2.85),
        ("flow", "search", 0, "a", 3.0),
        ("indm", "search", 0, "a", 3.4),
        ("indm", "third", 0, "1", 3.3),
    ):
        row = {"valid": valid, "training_cpu_seconds": 1800}
        made.at(study="fashion", variant=variant, stage=stage, seed=seed, setting=setting).add(row)
    assert tables.curve(made).splitlines()[2:] == [
        "| fashion | spline | 3.250 (−0.250) | – | 2.850 (−0.250) |",
        "| fashion | linear | 3.500 | – | 3.100 |",
        "| fashion | indm | 3.400 (−0.100) | 3.300 | – |",
        "| fashion | flow | 3.000 (−0.500) | – | – |",
    ]
    hours = ["| fashion | final | 3 | 1.5 |", "| fashion | search | 5 | 2.5 |", "| fashion | third | 1 | 0.5 |"]
    assert tables.spent(made).splitlines()[2:] == hours


def test_a_difference_of_the_family_is_paired_by_seed_and_tested_with_two_seeds_or_more(tmp_path):
    nats = {("spline", 1): 1.0, ("spline", 2): 1.5, ("linear", 1): 2.0, ("linear", 2): 2.48}  # of every image
    for (variant, seed), of_each in nats.items():
        folder = tmp_path / f"fashion/final/{variant}-{seed}"
        folder.mkdir(parents=True)
        result = {"unit": "bits/dim", "dims": 4, "nelbo": {}}
        (folder / "evaluation.json").write_text(json.dumps(result))
        np.savez(folder / "evaluation.npz", nelbo=np.arange(5.0) + of_each)
    (row,) = family.rows(tmp_path.joinpath)
    bits = np.array([-1.0, -0.98]) / (4 * math.log(2))
    assert (row["variant"], row["baseline"], row["seeds"]) == ("spline", "linear", 2)
    assert row["difference"] == pytest.approx(bits.mean())
    assert row["p"] == pytest.approx(ttest_1samp(bits, 0).pvalue)
    assert row["p_holm"] == pytest.approx(8 * row["p"]) and row["verdict"] == "undecided", "eight were planned"
    (tmp_path / "fashion/final/spline-2/evaluation.json").unlink()
    (row,) = family.rows(tmp_path.joinpath)
    assert row["p_holm"] is None and row["verdict"] == "untested"
