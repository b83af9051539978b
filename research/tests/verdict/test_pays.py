"""The study of images: its models and their controls, the search, and the bound of a flow alone."""

import math

import pytest
import torch
from scipy.stats import kstest, truncnorm

import indm
from research.lab.costs import kept_costs
from research.lab.statistics import word
from research.records import Records
from research.verdict import pays
from research.verdict.images import Images, halved
from research.verdict.pays import MODELS, Job, Scale, Setting

GENERATOR = torch.Generator().manual_seed(0)
RAW = torch.randint(0, 256, (96, 1, 8, 8), dtype=torch.uint8, generator=GENERATOR)
RAW[torch.rand(RAW.shape, generator=GENERATOR) < 0.5] = 0  # half of all entries are black
IMAGES = Images(RAW[:64], RAW[64:80], RAW[80:], 256)


@pytest.fixture
def study(monkeypatch, tmp_path):
    """The study on 64 small images, with few steps and tables of its own."""
    for name in ("SEARCH", "COSTS", "TABLE"):
        monkeypatch.setattr(pays, name, Records(tmp_path / f"{name}.csv"))
    for name in MODELS:
        for key in (name, f"{name}, pairs"):
            pays.COSTS.at(data="small", step=key).add({"cost": 1.0})
    monkeypatch.setattr(pays, "images_of", lambda data: IMAGES)
    monkeypatch.setattr(pays, "TUNED", 1)
    monkeypatch.setattr(pays, "CURVE_STEPS", 20)


def test_images_are_halved_by_the_means_of_squares():
    whole = torch.tensor(
        [[[[0, 1, 8, 8], [2, 4, 8, 9], [1, 1, 0, 0], [1, 1, 0, 2]]]], dtype=torch.uint8
    )
    assert halved(whole).tolist() == [[[[2, 8], [1, 0]]]]  # 7/4, 33/4, 1, ½ to the even level


def test_a_scale():
    flow, x = Scale(), torch.randn(3, 2, 4, 4)
    flow.log_scale.data.fill_(math.log(2))
    z, log_det = flow(x)
    assert torch.allclose(z, 2 * x) and torch.allclose(flow.inverse(z), x)
    assert torch.allclose(log_det, torch.full((3,), 32 * math.log(2)))


def test_the_fixed_curve_makes_the_histogram_normal_in_its_range():
    # half of the entries are dark: one level of half the mass is a cliff from which Adam jumps
    levels = torch.randint(
        0, 48, RAW.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    dark = torch.where(RAW == 0, levels, RAW)
    images = Images(dark[:64], dark[64:80], dark[80:], 256)
    flow = indm.flows.ElementwiseFlow(images.shape)
    flow.raw.data.copy_(pays.fixed_curve(images))
    x = indm.Scaling.images(256).to_model(images.train, generator=torch.Generator().manual_seed(1))
    z = flow.latent(x).flatten().detach()
    within = truncnorm(-1.5, 1.5)  # the spline's range
    before, after = (kstest(v, within.cdf).statistic for v in (x.flatten(), z))
    assert after < 0.05 < 0.2 < before


def test_all_models_of_a_seed_start_from_one_network():
    first = pays.built("linear", "uniform", IMAGES, 3).score.state_dict()
    for name in ("scale", "spline", "coupling", "fixed curve"):
        own = pays.built(name, "uniform", IMAGES, 3).score.state_dict()
        assert all(torch.equal(own[key], first[key]) for key in first)


def test_jobs_are_whole_seeds_of_all_models():
    jobs = [job for job in pays.jobs() if job.steps == pays.STEPS and job.noise == "uniform"]
    assert len(jobs) == len(set(jobs)) == len(MODELS) * len(pays.STUDIES) * len(pays.SEEDS)
    for place in range(0, len(jobs), len(MODELS)):
        part = jobs[place : place + len(MODELS)]
        assert len({(job.data, job.seed) for job in part}) == 1 and [job.model for job in part] == [
            *MODELS
        ]


def test_costs_are_measured_once_and_only_what_is_missing_is_made(tmp_path):
    made, table = [], Records(tmp_path / "costs.csv")
    steps = {
        name: lambda name=name: made.append(name) or (lambda: sum(range(10_000)))
        for name in ("a", "b", "c")
    }
    first = kept_costs(table, {name: steps[name] for name in ("a", "b")}, "a")
    assert (
        first["a"] == 1.0
        and made == ["a", "b"]
        and kept_costs(table, {"b": steps["b"]}, "a") == first
    )
    found = kept_costs(table, steps, "a")
    assert made == ["a", "b", "a", "c"] and found["b"] == first["b"] and found["c"] > 0


@pytest.mark.usefixtures("study")
def test_each_model_trains_and_the_frozen_curve_is_that_of_the_spline():
    for name in MODELS:
        pays.run(Job("small", name, "uniform", 2, 1))
    rows = {row["model"]: row for row in pays.TABLE.rows()}
    assert rows.keys() == MODELS.keys() and all(math.isfinite(row["bits"]) for row in rows.values())
    frozen = pays.curve_of(Job("small", "frozen spline", "uniform", 2, 1), Setting())
    assert frozen.tolist() == rows["spline"]["curve"] and frozen.abs().max() > 0
    model, _ = pays.trained(Job("small", "frozen spline", "uniform", 2, 1), Setting())
    assert torch.equal(model.flow.raw, frozen)


@pytest.mark.usefixtures("study")
def test_the_search_keeps_the_best_of_each_axis(monkeypatch):
    bits = {"lr": {4e-3: 2.0, 8e-3: 1.0, 1.6e-2: 3.0}, "pairs": {False: 0.5, True: 0.0}}
    monkeypatch.setattr(
        pays, "trial", lambda data, name, s: bits["lr"][s.lr] + bits["pairs"][s.pairs]
    )
    assert pays.chosen("small", "linear") == Setting(lr=8e-3, pairs=True)
    assert pays.chosen("small", "scale") == Setting(lr=8e-3, pairs=True)


def test_the_bound_of_a_flow_alone_is_its_likelihood():
    model = pays.built("flow alone", "uniform", IMAGES, 0).eval()  # starts as N(0, I)
    generator = torch.Generator().manual_seed(2)
    x, log_q = model.from_data(IMAGES.test, generator=generator)
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = (log_q - normal.log_prob(x).flatten(1).sum(1)).mean().item()
    assert pays.bound("flow alone", model, IMAGES.test).mean().item() == pytest.approx(
        expected, rel=1e-3
    )


@pytest.mark.parametrize(
    ("difference", "error", "p", "name"),
    [(-0.1, 0.01, 0.01, "gain"), (0.1, 0.01, 0.01, "loss"), (-0.1, 0.01, 0.1, "undecided"),
     (0.0, 0.001, 1.0, "no difference"), (-0.02, 0.005, 0.01, "undecided")],
)  # fmt: skip
def test_the_word_of_a_difference(difference, error, p, name):
    # its interval: 2.78 errors
    row = {"difference": difference, "standard_error": error, "seeds": 5, "p_holm": p}
    assert word(row, 0.01) == name


def test_the_family_pairs_seeds_of_one_machine(study, tmp_path):
    """−0.05 bits/dim in two seeds of one machine each; a third seed, whose runs are of two
    machines, is left out.
    """
    table, nats = Records(tmp_path / "rows.csv"), torch.linspace(100, 200, 50)
    for seed, machines in ((1, "aa"), (2, "bb"), (3, "ab")):
        for name, machine, less in zip(
            ("spline", "linear"), machines, (0.05 + 1e-4 * seed, 0.0), strict=True
        ):
            row = {
                "machine": machine,
                "bits": 1.0,
                "nelbo_nats": (nats - less * 256 * math.log(2)).tolist(),
            }
            where = {
                "data": "clothes-16",
                "model": name,
                "noise": "uniform",
                "steps": pays.STEPS,
                "seed": seed,
            }
            table.at(**where).add(row)
    bits = pays.bits_of(table, "clothes-16", ("spline", "linear"), steps=pays.STEPS)
    assert bits["spline"].shape == (2, 50)
    difference = bits["spline"] - bits["linear"]
    assert difference.mean(1) == pytest.approx([-0.0501, -0.0502], abs=1e-6)
    assert "| clothes-16 | spline − linear | 2 | -0.0502 ± 0.0001 |" in pays.family_table(table)
