"""The plan of research/budget: what is trained, in which order, for how many steps."""

import types

import pytest
import torch

from indm.scaling import Scaling
from research.budget import splines
from research.budget.design import SEEDS, STUDIES, TENTH, THIRD, Planner, steps_of


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
    assert [job.name.split("/")[0] for job in order][-6:] == ["models"] * 3 + ["pairs"] * 3


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
