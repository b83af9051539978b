"""What a run survives: signals at any moment, steps that are not finite, disks that are full."""

import io
import itertools
import json
import math
import os
import random
import shutil
import signal
import time
import warnings

import pytest
import torch
from processes import fork
from small_runs import (
    TINY,
    assert_same,
    change,
    checkpoint,
    compare_runs,
    interrupt_at,
    trainer_of,
)

import indm
from indm.files import atomic
from indm.workbench.runs.folder import read_metrics
from indm.workbench.training.checkpoints import Checkpoints
from indm.workbench.training.loop import train
from indm.workbench.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    train(TINY, run, progress=False)
    return run


LONG_STOP = [pytest.param(stop, marks=pytest.mark.long) for stop in (1, 2)]


# between two lines of the log, at the end, at the beginning
@pytest.mark.parametrize("stop", [7, 12, *LONG_STOP])
def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, whole, stop):
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop)
        assert train(TINY, tmp_path, progress=False)["interrupted"]
    summary = train(TINY, tmp_path, resume=True, progress=False)
    compare_runs(whole, tmp_path)
    assert summary["best"] == summary_of(whole)["best"] and math.isfinite(summary["valid_nelbo"])


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before_it(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)
        train(TINY, tmp_path, progress=False)
    damaged = tmp_path / "checkpoints" / "10.pt"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "los')
    with pytest.warns(UserWarning) as said:
        train(TINY, tmp_path, resume=True, progress=False)
    said = [str(warning.message) for warning in said]
    assert any("10.pt is damaged" in text for text in said)
    compare_runs(whole, tmp_path)


def test_a_full_disk_ends_a_run_that_can_be_resumed(tmp_path, small_disk, whole):
    run = small_disk / "run"
    with pytest.raises(OSError, match=r"cannot be written|No space left"):
        train(change(TINY, keep_last=1000, checkpoint_every=1), run, progress=False)
    assert Checkpoints(run).numbered() and not list(run.rglob(atomic.HALF_WRITTEN))
    for old in Checkpoints(run).numbered()[2:]:
        old.unlink()
    train(TINY, run, resume=True, progress=False)
    compare_runs(whole, run)


def test_the_best_validation_is_kept(tmp_path, monkeypatch):
    """Of validations 3, 1, 2 the second's averaged model stays in best/."""
    validations, models = iter([3.0, 1.0, 2.0]), {}

    def validate(self):
        models.setdefault(self.step, {k: v.clone() for k, v in self.ema.model.state_dict().items()})
        return {"valid_nelbo": next(validations), "unit": "bits/dim"}

    monkeypatch.setattr(Trainer, "validate", validate)
    summary = train(TINY, tmp_path, progress=False)
    assert summary["best"] == {"step": 8, "valid_nelbo": 1.0}
    assert_same(dict(indm.INDM.load(tmp_path / "best").state_dict()), models[8])
    assert json.loads((tmp_path / "best" / "validation.json").read_text()) == summary["best"]


@pytest.mark.filterwarnings("ignore:.* had come to step 12 at least")
@pytest.mark.parametrize("left", [[], ["recipe.toml", "versions.json", "metrics.jsonl"]])
def test_a_run_that_had_saved_nothing_yet_begins_anew(tmp_path, whole, left):
    """With --resume where there is a recipe; without it there is nothing but what was half written."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True) if left else run.mkdir()
    (run / ".recipe.toml.new").write_text("[da")
    for name in left:
        shutil.copy(whole / name, run)
    with pytest.raises(
        (FileNotFoundError, ValueError),
        match="resume must be false" if not left else "with resume it is continued",
    ):
        train(TINY, run, resume=not left, progress=False)
    train(TINY, run, resume=bool(left), progress=False)
    compare_runs(whole, run)


# ── numbers that are not finite ───────────────────────────────────────────────────────────────────


def break_steps(monkeypatch, broken, value=math.nan):
    """Give those steps (from 1) a batch of ``value`` where ``broken(trainer)`` says so."""
    prepare = Trainer.prepare_batch

    def prepare_batch(self, raw):
        raw = prepare(self, raw)
        return torch.full(raw.shape, value) if broken(self) else raw

    monkeypatch.setattr(Trainer, "prepare_batch", prepare_batch)


CONDITIONAL = {
    "name": "conditional-residual",
    "blocks": [1],
    "width": 4,
    "code_dim": 4,
    "encoder_planes": [4],
}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("flow", [TINY["flow"], CONDITIONAL], ids=["residual", "batch norm"])
def test_a_step_that_is_not_finite_moves_neither_model_nor_optimizer(monkeypatch, value, flow):
    trainer = trainer_of(change(TINY, first="both", flow_update_every=1) | {"flow": flow})
    batches = trainer.batches()
    trainer.train_step(batches)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    moments = [
        {k: v.clone() for k, v in s.items()}
        for s in trainer.optimizer.state_dict()["state"].values()
    ]
    break_steps(monkeypatch, lambda self: self.step == 1, value)
    assert trainer.train_step(batches)["skipped"] == 1 and trainer.step == 2
    assert_same(dict(trainer.model.state_dict()), before)
    assert_same(list(trainer.optimizer.state_dict()["state"].values()), moments)
    assert trainer.train_step(batches)["skipped"] == 0
    assert any(not torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())


def test_a_gradient_that_is_not_finite_is_seen_where_the_loss_is_finite():
    trainer = trainer_of(TINY)
    bias = trainer.model.score.backbone.stem.bias
    handle = bias.register_hook(lambda gradient: gradient * math.inf)
    terms = trainer.train_step(trainer.batches())
    assert (
        terms["skipped"] == 1
        and terms["loss"].isfinite()
        and not terms["score_grad_norm"].isfinite()
    )
    handle.remove()


def test_what_is_left_out_is_counted_with_its_cause(tmp_path, monkeypatch):
    """Steps 5 and 13; the means and the weights are those of the others."""
    break_steps(monkeypatch, lambda self: self.step in (4, 12))
    recipe = change(
        TINY, steps=15, first="both", validate_every=100, checkpoint_every=100, accumulate=1
    )
    recipe = change(recipe, batch_size=128)
    summary = train(recipe, tmp_path, progress=False)
    lines = [line for line in read_metrics(tmp_path) if "skipped" in line]
    assert [(line["step"], line["skipped"]) for line in lines] == [(5, 1), (13, 2)]
    assert (
        lines[0]["not_finite"] == "denoising"
        and lines[1]["not_finite"] == "flow, denoising, prior, correction"
    )
    assert summary["skipped_steps"] == 2
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert all(
        math.isfinite(line["denoising"]) for line in read_metrics(tmp_path) if "score_lr" in line
    )


def test_a_run_that_fails_stops_and_its_last_state_goes_on_at_a_lower_rate(tmp_path, monkeypatch):
    """No state is saved while steps are left out."""
    recipe = change(TINY, steps=20, max_skipped_steps=4, log_every=3, decay=0.0)
    with monkeypatch.context() as patch:
        break_steps(patch, lambda self: self.step >= 7)
        with pytest.raises(
            RuntimeError,
            match=r"denoising.* became infinite or NaN by step 11; .* a lower train\.lr",
        ):
            train(recipe, tmp_path, progress=False)
    assert checkpoint(tmp_path)["step"] == 6 and all(
        v.isfinite().all() for v in checkpoint(tmp_path)["model"].values()
    )
    assert [line["step"] for line in read_metrics(tmp_path) if "skipped" in line] == [8, 9, 10, 11]
    assert train(change(recipe, lr=5e-4), tmp_path, resume=True, progress=False)["steps"] == 20
    rates = {
        line["step"]: line["score_lr"] for line in read_metrics(tmp_path) if "score_lr" in line
    }
    assert rates[9] == pytest.approx(5e-4) and rates[6] == pytest.approx(1e-3)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_anything_in_a_validation_that_is_not_finite_is_a_failure(tmp_path, monkeypatch, value):
    validations = itertools.count()

    def validate(self):
        return {
            "valid_nelbo": 1.0,
            "unit": "bits/dim",
            "valid_terminal": value if next(validations) == 1 else 2.0,
        }

    monkeypatch.setattr(Trainer, "validate", validate)
    with pytest.raises(RuntimeError, match=r"valid_terminal became infinite or NaN by step 4; "):
        train(change(TINY, steps=5, validate_every=2), tmp_path, progress=False)
    assert "Infinity" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_signal_after_the_last_step_is_not_lost(tmp_path, monkeypatch):
    """What was told to stop is done all the same; whoever would begin something else then knows."""
    validate = Trainer.validate

    def told(self):
        if self.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return validate(self)

    monkeypatch.setattr(Trainer, "validate", told)
    summary = train(change(TINY, steps=2), tmp_path, progress=False)
    assert summary.signal_received and not summary["interrupted"] and summary["steps"] == 2


def test_a_signal_while_a_checkpoint_is_written_waits_for_it(tmp_path, monkeypatch, whole):
    save, raised = torch.save, []

    def interrupted(state, path):
        if not raised and state["step"] == 6:
            raised.append(signal.raise_signal(signal.SIGTERM))
        save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        assert train(TINY, tmp_path, progress=False)["interrupted"]
    # the step after it is the last
    assert checkpoint(tmp_path)["step"] == 7 and summary_of(tmp_path)["interrupted"]
    train(TINY, tmp_path, resume=True, progress=False)
    compare_runs(whole, tmp_path)


# ── signals at any moment ─────────────────────────────────────────────────────────────────────────

LONG = change(TINY, steps=40, checkpoint_every=7)


def child(run, before=lambda: None):
    """A process that makes ``run`` or what is left of it, after ``before()``."""

    def work():
        before()
        warnings.simplefilter("ignore")
        train(LONG, run, resume=bool(Checkpoints(run).numbered()), progress=False)

    return fork(work)


def finish(run):
    """Start it again after it was stopped: anew where it had saved nothing."""
    if run.exists() and not Checkpoints(run).numbered():
        shutil.rmtree(run)
    assert os.waitpid(child(run), 0)[1] == 0


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """The run that nothing disturbs, and the seconds it takes."""
    run = tmp_path_factory.mktemp("long") / "run"
    started = time.monotonic()
    finish(run)
    return run, time.monotonic() - started


@pytest.mark.long
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name
)
@pytest.mark.parametrize("case", range(20))
def test_a_signal_at_a_random_moment_changes_nothing(tmp_path, long, number, case):
    whole, seconds = long
    run = tmp_path / "run"
    pid = child(run)
    time.sleep(random.Random(f"{number}{case}").uniform(0, seconds))
    os.kill(pid, number)
    os.waitpid(pid, 0)
    finish(run)
    compare_runs(whole, run)


def die_at(call, name, share):
    """SIGKILL at that call of ``name``: in the middle of a checkpoint's bytes, or before or after a
    rename.
    """

    def before():
        module = torch if name == "save" else os
        real, calls = getattr(module, name), []

        def fatal(*arguments):
            calls.append(arguments)
            if len(calls) == call:
                if name == "save":
                    whole = io.BytesIO()
                    real(arguments[0], whole)
                    arguments[1].write_bytes(whole.getvalue()[: int(share * whole.tell())])
                elif share > 0.5:
                    real(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        setattr(module, name, fatal)

    return before


@pytest.mark.long
@pytest.mark.parametrize("name, most", [("save", 7), ("replace", 30), ("link", 7)])
@pytest.mark.parametrize("case", range(20))
def test_being_killed_while_a_checkpoint_is_written_changes_nothing(
    tmp_path, long, name, most, case
):
    chance = random.Random(f"{name}{case}")
    pid = child(tmp_path / "run", die_at(chance.randint(1, most), name, chance.random()))
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    finish(tmp_path / "run")
    compare_runs(long[0], tmp_path / "run")
