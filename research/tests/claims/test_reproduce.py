"""The reproduction: its recipes and budgets, units that are killed and go on, and the whole of it on a tiny study."""

import functools
import json
import math
import os
import re
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from processes import exit_code, fork

import indm
from indm.flows import Identity
from indm.model import build_model, count_parameters
from indm.sde.linear import VESDE, VPSDE
from indm.workbench.data.registry import load_data
from indm.workbench.evaluation import figures, plots
from indm.workbench.evaluation.records import Record
from indm.workbench.evaluation.statistics import holm
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs import folder as folder_module
from indm.workbench.runs.devices import run_lock
from indm.workbench.runs.folder import read_metrics
from indm.workbench.training import costs as measured_costs
from indm.workbench.training import loop
from indm.workbench.training.loop import summarise, train
from indm.workbench.training.trainer import Trainer
from research import measurements
from research.claims import claims, costs, plan, reproduce, studies, units, vae
from research.claims.plan import Budget, Plan, family_of_plan, measurements_of, recipe_of, run_folder
from research.claims.studies import STUDIES, VARIANTS, Study
from research.claims.units import work
from research.claims.verdicts import Check, paired, summary
from research.sampling_error import errors
from research.sampling_error.errors import estimation_curve

TINY = {
    "data": {"name": "eight-gaussians", "samples": 2000},
    "flow": {"name": "residual", "blocks": [1], "width": 4},
    "sde": {"name": "vp"},
    "net": {"name": "mlp", "width": 8, "depth": 1},
    "train": {
        "steps": 5,
        "seconds": 9,
        "batch_size": 256,
        "validate_examples": 20,
        "flow_update_every": 3,
        "decay": 0.5,
    },
}
EVALUATE = {"examples": "60", "nll_examples": "10", "times": "2", "steps": "8"}
FAST = Plan(("eight-gaussians",), 2, fast=True)
TAKEN = {"linear": [0.5, 0.4, 0.7], "indm": [1.2, 1.0, 0.9], "flow": [2.0], "vae": [0.25]}
COSTS = {"linear": 0.5, "indm": 1.0, "indm-pretrained": 0.835, "linear-ve": 0.5, "indm-ve": 1.0, "flow": 2.0,
         "vae": 0.25}  # fmt: skip


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The study of eight Gaussians made tiny, in this process; ``tiny(steps)`` says how many steps INDM makes."""
    (tmp_path / "tiny.toml").write_text(recipes.to_toml(TINY))

    def study(steps):
        return Study(str(tmp_path / "tiny.toml"), steps, steps, 20, 20, 3, EVALUATE)

    def make(steps):
        monkeypatch.setitem(STUDIES, "eight-gaussians", study(steps))

    make(8)
    monkeypatch.setattr(plan, "FAST_STEPS", (5, 10))
    monkeypatch.setattr(costs, "seconds_per_step", lambda *_, **__: TAKEN)
    quick = functools.partial(estimation_curve, samples=50, times=3, step=0.05)
    monkeypatch.setattr(errors, "estimation_curve", quick)
    monkeypatch.setattr(errors, "POINTS", 100)
    monkeypatch.setattr(errors, "CONVERGED_STEPS", 40)
    return make


def times_of(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"}


# ── Recipes and budgets ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("data", ["eight-gaussians", "digits"])
def test_variants_are_what_they_are_called(data):
    whole, material = Plan((data,), 3, fast=False), load_data(**recipes.load(data)["data"])
    shape, x = material.shape, torch.randn(3, *material.shape)
    made = {variant: recipe_of(whole, data, variant, 2, 120) for variant in VARIANTS}
    model = {
        v: build_model(recipes.model_of(recipe), shape, material.scaling) for v, recipe in made.items() if v != "vae"
    }
    for variant in model:
        with torch.no_grad():
            for parameter in model[variant].parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))  # away from where every flow is the identity
            z, log_det = model[variant].eval().encode(x)
        linear = variant.startswith("linear")
        assert torch.equal(z, x) == linear == isinstance(model[variant].flow, Identity) == bool((log_det == 0).all())
        assert isinstance(model[variant].sde, VESDE if variant.endswith("-ve") else VPSDE)
        assert made[variant]["train"]["pretrain"] == (0.33 if variant == "indm-pretrained" else 0)
        assert made[variant]["train"]["objective"] == ("flow" if variant == "flow" else "mle")
    assert count_parameters(model["flow"].score) == 0 < count_parameters(model["flow"].flow)
    assert count_parameters(model["linear"]) == count_parameters(model["indm"].score)
    coder = vae.build_vae(made["vae"]["net"], shape, material.scaling)
    assert count_parameters(coder) == pytest.approx(count_parameters(model["indm"]), rel=0.05)


def test_variants_differ_in_nothing_else():
    for fast in (False, True):
        made = {v: recipe_of(Plan(("digits",), 3, fast), "digits", v, 1, 120) for v in VARIANTS}
        for variant, recipe in made.items():
            changed = {key.split(".")[0] if "." not in key else key for key in VARIANTS[variant].changes}
            for key in recipes.differences(made["indm"], recipe):
                assert (
                    key in changed
                    or key.split(".")[0] in changed
                    or (variant == "vae" and (key in ("train.lr", "train.objective") or key.startswith("net.")))
                )
            assert recipe["train"]["seed"] == 1 and recipe["train"]["steps"] == 120
            assert recipe["train"]["seconds"] == math.inf and recipe["train"]["decay"] == 0
            assert recipe["train"]["validate_every"] == (12 if fast else 6) and recipe["train"]["snapshot_every"] == 0
            assert recipe["evaluate"] == made["linear"]["evaluate"]
        assert made["indm"]["evaluate"]["nll_examples"] == (0 if fast else 64)
    seeds = [recipe_of(Plan(("digits",), 3, False), "digits", "indm", seed, 7) for seed in (0, 5)]
    assert set(recipes.differences(*seeds)) == {
        "train.seed",
        "train.snapshot_every",
    }  # the first seed alone has snapshots
    assert recipe_of(Plan(("digits",), 3, False), "digits", "indm", 0, 120)["train"]["snapshot_every"] == 30


def test_a_plan_measures_less_when_it_is_fast():
    slow, fast = (Plan(("digits",), 3, fast).options("digits", 1) for fast in (False, True))
    assert slow.examples > fast.examples and set(fast.steps) < set(slow.steps) and claims.FEW_STEPS in fast.steps
    for seeds, fast, found in ((None, True, plan.FAST_SEEDS), (None, False, STUDIES["digits"].seeds), (7, True, 7)):
        assert Plan(("digits",), seeds, fast).seeds_of("digits") == range(found)
    for data, study in STUDIES.items():
        assert (
            Plan((data,), 1, True).steps(data) == study.fast_steps < study.steps == Plan((data,), 1, False).steps(data)
        )
        assert recipes.load(study.recipe)["data"]["name"].startswith(data.removesuffix("-16"))


def test_every_variant_gets_the_same_seconds(tmp_path, tiny, monkeypatch):
    tiny(1001)
    budget = reproduce.prepare(tmp_path / "out", FAST, 1, False)
    stored = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert stored["seconds_per_step"]["eight-gaussians"] == pytest.approx(COSTS)  # medians
    logs = np.log(np.divide(TAKEN["indm"], TAKEN["linear"]))
    assert stored["log_cost"]["eight-gaussians"] == pytest.approx([logs.mean(), logs.std(ddof=1) / math.sqrt(3)])
    steps = stored["steps"]["eight-gaussians"]
    assert steps == {"linear": 2002, "indm": 1001, "indm-pretrained": 1199, "linear-ve": 2002, "indm-ve": 1001,
                     "flow": 500, "vae": 4004}  # fmt: skip
    assert all(steps[v] * COSTS[v] == pytest.approx(1001, abs=0.5 * COSTS[v]) for v in VARIANTS)

    def never(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(costs, "seconds_per_step", never)
    assert reproduce.prepare(tmp_path / "out", FAST, 1, False) == budget  # a budget is decided once
    assert Budget.load(tmp_path / "out") == budget and budget.plan == FAST and stored.keys() == vars(budget).keys()
    before = (tmp_path / "out" / "plan.json").read_bytes()
    for other in (Plan(FAST.data, 3, True), Plan(FAST.data, 2, False), Plan(("digits",), 2, True)):
        with pytest.raises(ValueError, match="holds another reproduction") as complaint:
            reproduce.reproduce(tmp_path / "out", other, progress=False)
        assert str(tmp_path / "out") in str(complaint.value) and "'seeds': 2" in str(complaint.value)
    assert (tmp_path / "out" / "plan.json").read_bytes() == before


def test_the_family_is_stated_in_the_plan_and_no_other_is_judged(tmp_path, tiny, monkeypatch):
    reproduce.prepare(tmp_path, FAST, 1, False)
    family = json.loads((tmp_path / "plan.json").read_text())["family"]
    assert len(family) == 12 and "1 fast training · eight-gaussians · test NELBO at equal seconds" in family
    images = family_of_plan(Plan(("digits", "fashion-mnist-16"), None))
    assert len(images) == 12 + 10 and not any("fashion-mnist-16" in row and "under VE" in row for row in images)
    monkeypatch.setattr(plan, "CLAIMS", claims.CLAIMS[:3])  # fewer tests would need less adjustment
    with pytest.raises(ValueError, match=r"plan\.json states another family of tests than this version"):
        reproduce.prepare(tmp_path, FAST, 1, False)


@pytest.mark.parametrize(
    ("options", "jobs", "complaint"),
    [
        ({"data": ("eight-gaussians", "mnist")}, None, "data must be of eight-gaussians.*'mnist'"),
        ({"data": ()}, None, "data must name at least one of eight-gaussians"),
        ({"seeds": 0}, None, "seeds must be at least 1, got 0"),
        ({}, 0, "jobs must be at least 1, got 0"),
    ],
)
def test_plans_that_are_none(tmp_path, options, jobs, complaint):
    with pytest.raises(ValueError, match=complaint):
        reproduce.reproduce(tmp_path / "out", Plan(**options), jobs=jobs, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage",
    [{"plan": 1}, {"plan": {"seeds": 3}}, {"log_cost": {"eight-gaussians": [0.2]}}, {"mine": 1}, {"family": None}],
)
def test_a_damaged_plan_is_named(tmp_path, damage):
    name = "eight-gaussians"
    budget = Budget(FAST, {name: COSTS}, {name: (0.2, 0.1)}, {name: {}}, 1, family_of_plan(FAST))
    budget.save(tmp_path)
    assert Budget.load(tmp_path) == budget
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    with pytest.raises(ValueError, match=r"plan\.json is no plan of a reproduction"):
        Budget.load(tmp_path)


def test_a_run_has_the_measurements_that_claims_need_and_the_page_shows():
    def measured(variant, seed, *own):
        return measurements_of((*claims.CLAIMS, *own), variant, seed)

    for seed in (0, 1):
        assert measured("indm", seed) == measured("linear", seed) == list(measurements.MEASUREMENTS)
        assert measured("flow", seed) == measured("vae", seed) == (["quality"] if seed == 0 else [])
        assert measured("indm-ve", seed) == measured("indm-pretrained", seed) == []
    row = claims.Row("q", claims.bound, variants=("indm-ve", "flow"))
    mine = claims.Claim("7 mine", "…", (row,), measurements=("gap", "flow"))
    assert measured("indm-ve", 1, mine) == measured("flow", 1, mine) == ["gap", "flow"]
    assert measured("flow", 0, mine) == ["quality", "gap", "flow"] and measured("linear-ve", 0, mine) == []


def test_units_are_all_runs_of_a_plan_the_main_pair_first():
    whole = Plan(("digits", "fashion-mnist-16"), 2, fast=True).units()
    assert len(whole) == len(set(whole)) == 2 * (7 + 4)
    assert whole[:4] == [("digits", v, seed) for v in ("linear", "indm") for seed in (0, 1)]
    assert {v for data, v, _ in whole if data == "digits"} == VARIANTS.keys()
    assert {v for data, v, _ in whole if data != "digits"} == {"linear", "indm", "flow", "vae"}


@pytest.mark.about_time
def test_what_a_step_costs_is_measured(tiny, monkeypatch):
    monkeypatch.undo()  # the real clock, of the tiny study below
    monkeypatch.setitem(STUDIES, "eight-gaussians", Study("eight-gaussians", 8, 8, 20, 20, 3, EVALUATE))
    step = Trainer.train_step

    def slow_flow(self, batches):
        time.sleep(0.1 if self.options.objective == "flow" else 0.0)
        return step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", slow_flow)
    loaded = load_data(name="eight-gaussians", samples=3000)
    monkeypatch.setattr(measured_costs, "load_data", lambda *_, **__: loaded)
    taken = costs.seconds_per_step(FAST, "eight-gaussians", rounds=3, steps=1)
    assert {len(seconds) for seconds in taken.values()} == {2}  # the first round warms up
    cost = costs.costs_of(taken)
    assert cost.keys() == VARIANTS.keys() and min(cost.values()) > 0
    assert cost["flow"] > 0.1 and cost["flow"] > cost["linear"] + 0.05
    assert cost["linear-ve"] == cost["linear"] and cost["indm-ve"] == cost["indm"]
    assert cost["indm-pretrained"] == pytest.approx(0.33 * cost["linear"] + 0.67 * cost["indm"])


def test_runs_that_spent_otherwise_have_no_verdict(tmp_path, monkeypatch):
    """One of four runs was cut: its row is not comparable and no test of the family, that of other variants is."""

    def measure(evidence):
        return paired([1.0, 2.0], [2.0, 3.1], sign=-1)

    claim = claims.Claim("7 mine", "…", (claims.Row("cut", measure), claims.Row("whole", measure, ("vae", "flow"))))
    monkeypatch.setattr(reproduce, "claims_of", lambda plan: [claim])
    steps = {"indm": (8, 8), "linear": (16, 14), "vae": (32, 35), "flow": (4, 4)}
    monkeypatch.setattr(reproduce, "end_of", lambda run: {"steps": steps[run.parent.name][int(run.name)]})
    records = {name: [Record(tmp_path / name / str(s), name, {}, {}, 0, {}) for s in (0, 1)] for name in steps}
    section = reproduce.Section("eight-gaussians", load_data(**TINY["data"]), None, records)
    budget = Budget(FAST, {"eight-gaussians": COSTS}, {"eight-gaussians": (0.7, 0.1)}, {}, 1, ())
    cut, whole = reproduce.verdicts_of([section], budget)
    assert cut.verdict == "not comparable" and math.isnan(cut.p) and math.isnan(cut.p_holm) and cut.steps == (8, 16)
    assert whole.verdict != "not comparable" and whole.p_holm == whole.p and whole.steps == (32, 4)


# ── Units ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def finished(folder):
    return folder_module.finished(folder, recipes.resolve(recipes.load(folder)))


def assert_without_gaps(folder, steps):
    """Training terms every 50 steps and validations in ten parts, each once and in order, from first to last."""
    lines = read_metrics(folder)
    trained = [line["step"] for line in lines if "loss" in line]
    validated = [line["step"] for line in lines if "valid_nelbo" in line]
    assert trained == [*range(50, steps, 50), steps]
    assert validated == sorted({*range(steps // 10, steps + 1, steps // 10), steps})
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


@pytest.mark.long
def test_a_killed_unit_goes_on_and_ends_as_if_it_had_not_been(tmp_path, tiny, monkeypatch):
    steps, out = 240, tmp_path / "out"
    tiny(steps)
    for name in measurements.MEASUREMENTS.keys() - {"quality", "flow"}:
        monkeypatch.delitem(measurements.MEASUREMENTS, name)  # all are made in the test of the whole
    reproduce.prepare(out, FAST, 1, False)
    folder = run_folder(out, "eight-gaussians", "indm", 0)

    def killed():
        step = Trainer.train_step
        Trainer.train_step = lambda self, batches: (
            os.kill(os.getpid(), signal.SIGKILL) if self.step == 230 else step(self, batches)
        )
        work(out, "eight-gaussians", "indm", 0)

    assert exit_code(fork(killed)) == -signal.SIGKILL
    assert not (folder / "summary.json").exists() and not finished(folder)
    assert (folder / "checkpoints" / "200.pt").exists()
    assert max(line["step"] for line in read_metrics(folder)) == 216  # ahead of the checkpoint

    begun, real = [], train
    monkeypatch.setattr(units, "train", lambda *a, resume, **k: begun.append(resume) or real(*a, resume=resume, **k))
    assert work(out, "eight-gaussians", "indm", 0) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert begun == [True] and summary["steps"] == steps and not summary["interrupted"] and finished(folder)
    assert_without_gaps(folder, steps)
    real(recipe_of(FAST, "eight-gaussians", "indm", 0, steps), tmp_path / "whole", progress=False)
    ends = [indm.INDM.load(f).state_dict() for f in (folder, tmp_path / "whole")]
    assert all(torch.allclose(ends[0][key], ends[1][key], atol=1e-6) for key in ends[1])
    validated = [
        [line["valid_nelbo"] for line in read_metrics(f) if "valid_nelbo" in line] for f in (folder, tmp_path / "whole")
    ]
    assert validated[0] == pytest.approx(validated[1], abs=1e-5)
    assert sorted(int(p.name) for p in (folder / "snapshots").iterdir()) == [120, 240]
    assert {p.stem for p in (folder / "measurements").iterdir()} == {"quality", "flow"}

    before = times_of(out)
    assert work(out, "eight-gaussians", "indm", 0) == 0  # nothing is left to do
    assert begun == [True] and times_of(out) == before


def test_an_interrupted_unit_says_so_and_goes_on(tmp_path, tiny, monkeypatch):
    tiny(60)
    reproduce.prepare(tmp_path, FAST, 1, False)
    folder, step = run_folder(tmp_path, "eight-gaussians", "vae", 1), Trainer.train_step

    def interrupted(self, batches):
        if self.step == 100:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        assert work(tmp_path, "eight-gaussians", "vae", 1) == 130
    assert json.loads((folder / "summary.json").read_text())["steps"] == 101
    assert not finished(folder) and not (folder / "evaluation.json").exists()
    assert work(tmp_path, "eight-gaussians", "vae", 1) == 0 and finished(folder)
    assert json.loads((folder / "summary.json").read_text())["steps"] == 240  # four for one of INDM's
    assert (folder / "evaluation.json").exists() and not (folder / "measurements").exists()  # the first seed alone is


@pytest.mark.parametrize("left", ["recipe.toml", "measurements/quality.json"])
def test_a_folder_without_checkpoint_is_begun_anew(tmp_path, tiny, left):
    reproduce.prepare(tmp_path, FAST, 1, False)
    folder = run_folder(tmp_path, "eight-gaussians", "linear", 1)
    (folder / left).parent.mkdir(parents=True)
    (folder / left).write_text("torn")
    assert work(tmp_path, "eight-gaussians", "linear", 1) == 0
    assert json.loads((folder / "summary.json").read_text())["steps"] == 16  # two for one of INDM's
    assert recipes.load(folder)["flow"] == {"name": "identity"} and recipes.load(folder)["train"]["seed"] == 1
    kept = json.loads((folder / "measurements" / "quality.json").read_text())
    assert [row["steps"] for row in kept["result"]] == [None, 5, 10, 5, 10]
    assert {row["images"] for row in kept["result"]} == {20}


def test_a_finished_run_stays_where_its_checkpoints_were_removed(tmp_path, tiny, monkeypatch):
    reproduce.prepare(tmp_path, FAST, 1, False)
    assert work(tmp_path, "eight-gaussians", "linear", 1) == 0
    folder = run_folder(tmp_path, "eight-gaussians", "linear", 1)
    shutil.rmtree(folder / "checkpoints")
    before = times_of(folder)
    monkeypatch.setattr(units, "train", None)  # not called
    assert work(tmp_path, "eight-gaussians", "linear", 1) == 0
    assert times_of(folder) == before


def test_a_unit_that_is_told_to_stop_when_it_is_trained_stops(tmp_path, tiny, monkeypatch):
    reproduce.prepare(tmp_path, FAST, 1, False)
    folder, real = run_folder(tmp_path, "eight-gaussians", "linear", 1), summarise

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "summarise", interrupted)
        assert work(tmp_path, "eight-gaussians", "linear", 1) == 130
    assert finished(folder) and not (folder / "evaluation.json").exists()
    assert work(tmp_path, "eight-gaussians", "linear", 1) == 0


def test_two_reproductions_do_not_work_in_one_folder(tmp_path):
    (tmp_path / "out").mkdir()

    def another():
        with pytest.raises(ValueError, match="another process is at work in"):
            reproduce.reproduce(tmp_path / "out", Plan(("eight-gaussians",), 1, True), progress=False)

    with run_lock(tmp_path / "out"):
        assert exit_code(fork(another)) == 0
    assert not (tmp_path / "out" / "plan.json").exists()


def test_only_what_is_missing_is_made(tmp_path, tiny, monkeypatch):
    reproduce.prepare(tmp_path, FAST, 1, False)
    assert work(tmp_path, "eight-gaussians", "flow", 0) == 0
    folder = run_folder(tmp_path, "eight-gaussians", "flow", 0)
    assert {p.stem for p in (folder / "measurements").iterdir()} == {"quality"}
    (folder / "measurements" / "quality.json").unlink()
    before = times_of(folder)
    monkeypatch.setattr(units, "train", None)  # not called
    monkeypatch.setattr(units, "evaluate_run", None)
    assert work(tmp_path, "eight-gaussians", "flow", 0) == 0
    after = times_of(folder)
    assert after.keys() - before.keys() == {folder / "measurements" / "quality.json"}
    assert {p: after[p] for p in before} == before


@pytest.mark.long
def test_a_unit_that_fails_is_named_with_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "VARIANTS", {"indm": studies.Variant()})
    monkeypatch.setitem(STUDIES, "digits", replace(STUDIES["digits"], variants=("indm",)))
    with pytest.raises(RuntimeError, match=r"digits, indm, seed 0 ended with status 1; .*0\.log says why"):
        units.run_units(tmp_path, Plan(("digits",), 1, True), 1, 1, False)  # there is no plan
    assert "plan.json" in (tmp_path / "digits" / "indm" / "0.log").read_text()


# ── The whole ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
def test_the_whole_writes_a_row_for_every_verdict_and_repeats_itself(tmp_path, tiny, monkeypatch):
    done = []

    def run_units(out, plan, jobs, threads, progress):
        for unit in plan.units():
            done.append(unit)
            assert work(out, *unit) == 0

    monkeypatch.setattr(reproduce, "run_units", run_units)
    row = Check("control", 0.5, 0.25, "as expected", "by hand")  # the real one is in test_claims
    quick = [replace(claim, control=lambda: [row]) if claim.control is not list else claim for claim in claims.CLAIMS]
    monkeypatch.setattr(plan, "CLAIMS", tuple(quick))
    monkeypatch.setattr(Plan, "validations", 2)
    plane = []  # its figure is tested with the report
    monkeypatch.setattr(
        figures,
        "plane_figure",
        lambda f, data, path, colours: plane.append(f.group) or plots.save_figure(Figure(), path),
    )
    monkeypatch.setattr(figures, "PARTICLES", 50)
    monkeypatch.setattr(plots, "DPI", 40)
    out, threads = tmp_path / "out", torch.get_num_threads()
    verdicts = reproduce.reproduce(out, FAST, jobs=1, progress=False)
    assert len(done) == 14 and torch.get_num_threads() == threads and plane == ["linear", "indm"]

    assert {v.claim for v in verdicts} == {"1 fast training", "2 MLE training", "3 robust sampling", "4 sampling error",
                                           "5 pre-training", "6 VP and VE"}  # fmt: skip
    assert [v.claim for v in verdicts] == sorted(v.claim for v in verdicts)
    added = r", (nats|sliced Wasserstein|for these examples)$"
    assert [f"{v.claim} · {v.data} · {re.sub(added, '', v.quantity)}" for v in verdicts] == list(family_of_plan(FAST))
    adjusted = holm([v.p for v in verdicts])
    assert [v.p_holm for v in verdicts] == pytest.approx(adjusted) and {v.seeds for v in verdicts} == {2}
    stored, text = json.loads((out / "claims.json").read_text()), (out / "claims.json").read_text()
    assert [row["p_holm"] for row in stored["verdicts"]] == [v.p_holm for v in verdicts] and "NaN" not in text
    assert stored["plan"] == json.loads((out / "plan.json").read_text())
    checks = stored["checks"]
    assert [check["quantity"].split(":")[0].split(",")[0] for check in checks] == [
        "control", "NELBO − NLL (ODE) of INDM", "NELBO − NLL (ODE) of linear", "least sum of the parts less the whole",
    ]  # fmt: skip

    first, second = (out / "claims.md").read_text("utf-8").split("\n\n")
    for lines, count, columns in ((first.splitlines(), 12, 11), (second.splitlines(), len(checks), 6)):
        assert len(lines) == 2 + count and {line.count("|") for line in lines} == {columns + 1}
        assert set(lines[1]) == set("|- ")
    names, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in first.splitlines())
    for line, v in zip(lines, verdicts, strict=True):
        cells = dict(zip(names, line, strict=True))
        assert (cells["claim"], cells["data"], cells["verdict"]) == (v.claim, v.data, v.verdict)
        assert cells["difference"] == f"{v.difference:+.4f} ± {v.standard_error:.4f}"
        assert (cells["p"], cells["Holm's p"]) == (f"{v.p:.2g}", f"{v.p_holm:.2g}")
        pretrained = v.claim.startswith("5")
        assert cells["steps"] == ("10 / 8" if pretrained else "8 / 16")
    lines = summary(verdicts).splitlines()
    assert len(lines) == len(verdicts) and all(v.verdict in line for line, v in zip(lines, verdicts, strict=True))

    page = (out / "index.html").read_text("utf-8")
    assert page.count("<img ") == len(list(out.glob("eight-gaussians-*.png"))) == 8
    assert all(f">{v.verdict}</td>" in page for v in verdicts) and '<td class="holds">holds</td>' in page
    assert all(f'<td class="long">{claim.sentence}</td>' in page for claim in quick)
    top = page[: page.index("<nav>")]
    words = [v.verdict for v in verdicts]
    assert "<p>Of 12 differences that the claims name: " in top
    assert all(f"{words.count(word)} {word}" in top for word in set(words))
    assert "<p>eight-gaussians, linear, the worst of 2 seeds: The model (" in top
    assert "12 differences that plan.json stated" in page and "linear 16 × 500 ms" in page
    assert all(f'<td class="{variant}">{variant}</td>' in page for variant in VARIANTS)

    bound = next(v for v in verdicts if v.claim == "1 fast training" and v.quantity.startswith("test NELBO"))
    nats = {}
    for variant in ("indm", "linear"):
        kept = [
            json.loads((run_folder(out, "eight-gaussians", variant, s) / "evaluation.json").read_text()) for s in (0, 1)
        ]
        nats[variant] = [result["nelbo"]["with_reconstruction"]["nats"] for result in kept]
    assert (bound.indm, bound.linear) == pytest.approx([sum(nats[v]) / 2 for v in ("indm", "linear")])
    pretrained = next(v for v in verdicts if v.claim == "5 pre-training")
    assert pretrained.linear == pytest.approx(bound.indm)
    ends = {v: read_metrics(run_folder(out, "eight-gaussians", v, 0))[-1]["step"] for v in ("indm", "linear")}
    assert ends["indm"] * COSTS["indm"] == ends["linear"] * COSTS["linear"]

    assert (checks[0]["claim"], checks[0]["value"], checks[0]["outcome"]) == ("2 MLE training", 0.5, "as expected")
    assert checks[-1]["outcome"] == "holds"  # the triangle inequality, on real numbers
    likelihood = page[page.index("<table>", page.index(">Likelihood and budget</h2>")) :]
    assert (
        '<td class="linear">linear</td><td class="2">2</td><td class="seeds">seeds</td>' in likelihood
        and '<td class="16">16</td><td class="8">8</td>' in likelihood
    )

    before = times_of(out)

    def never(*_, **__):
        raise AssertionError("measured again")

    for name, measurement in measurements.MEASUREMENTS.items():
        monkeypatch.setitem(measurements.MEASUREMENTS, name, replace(measurement, make=never))
    monkeypatch.setattr(reproduce.Sections, "add_all", lambda _: None)
    assert str(reproduce.reproduce(out, FAST, jobs=1, progress=False)) == str(verdicts)
    made = {p for p in before if p.parent == out}
    assert {p: t for p, t in times_of(out).items() if p not in made} == {
        p: t for p, t in before.items() if p not in made
    }
