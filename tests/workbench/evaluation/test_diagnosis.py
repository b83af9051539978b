"""What an evaluation says of its model: better or worse than baselines, the cause by what the run folder holds."""

import json
import math
import shlex

import pytest

from indm.workbench.cli.main import main
from indm.workbench.evaluation.results import advice, conclusion
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.folder import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

BITS = 64 * math.log(2)
BASELINES = {"uniform": ("uniform noise", 8.0), "gaussian": ("a Gaussian", 5.0), "png": ("PNG", 4.0)}


def result(value, error=0.1, unit="bits/dim", baselines=BASELINES, **changes):
    """An evaluation of that NELBO, in bits/dim, or nats, with the standard ``error`` of each paired difference."""

    def both(number):
        return {"bits_per_dim": number, "nats": number * BITS} if unit == "bits/dim" else {"nats": number}

    rows = {}
    for key, (name, of_baseline) in baselines.items():
        errors = {f"{k}_standard_error": v for k, v in both(error).items()}
        rows[key] = {"name": name, **both(of_baseline), "nelbo_difference": both(value - of_baseline) | errors}
    evaluation = {"unit": unit, "nelbo": {"with_reconstruction": both(value)}, "baselines": rows}
    about = {"data": {"name": "digits"}, "data_changed": False, "split": "test", "images": {"nelbo": 100}}
    return evaluation | about | changes


def folder(home, lines=(), summary=None, **changes):
    """A run folder of the digits' recipe, with these lines of metrics and that summary."""
    recipe = recipes.resolve(recipes.override(recipes.load("digits"), {"train.seconds": "inf", **changes}))
    (home / "recipe.toml").write_text(recipes.to_toml(recipe))
    (home / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if summary is not None:
        (home / "summary.json").write_text(json.dumps(summary))
    return home


def line(step, rate=1e-3, **values):
    return {"step": step, "seconds": step / 10, "score_lr": rate, "flow_lr": rate / 2, **values}


FINISHED, LONG = {"interrupted": False}, {"steps": 2000}


def test_a_bridge_that_learned_noisy_data_is_not_judged_by_clean_ones(tmp_path):
    recipe = recipes.override(recipes.load("digits"), {"train.terminal": "1", "train.initial_noise": "0.1"})
    (tmp_path / "recipe.toml").write_text(recipes.to_toml(recipes.resolve(recipe)))
    said = "The model (7.00 bits/dim) has learned data with noise of deviation 0.1 (train.initial_noise), not clean"
    assert conclusion(tmp_path, result(7.0)).startswith(said)


BELOW = "is better than a Gaussian (5.00) and uniform noise (8.00), but "


@pytest.mark.parametrize(
    ("value", "error", "sentence"),
    [
        (3.1, 0.1, "is better than PNG (4.00), a Gaussian (5.00) and uniform noise (8.00)."),
        (4.5, 0.1, f"{BELOW}worse than PNG (4.00)."),
        (4.1, 0.1, f"{BELOW}within two standard errors of PNG (4.00)."),
        (8.79, 0.1, "is worse than PNG (4.00), a Gaussian (5.00) and uniform noise (8.00)."),
        (5.25, 0.1, "is better than uniform noise (8.00), but worse than PNG (4.00) and a Gaussian (5.00)."),
        (5.5, 0.3, "is better than uniform noise (8.00), within two standard errors of a Gaussian (5.00), but worse "
         "than PNG (4.00)."),  # of 0.6
    ],
)  # fmt: skip
def test_what_a_model_beats_and_what_beats_it(value, error, sentence, tmp_path):
    run = folder(tmp_path, [line(500)], FINISHED, **{"train.steps": "500"})
    found = conclusion(run, result(value, error))
    advised = f" Go on with: indm train {run} --resume --train.steps 2000" if value > 5 else ""
    assert found.startswith(f"The model ({value:.2f} bits/dim) {sentence}") and found.endswith(advised)
    assert ("Likely cause: " in found) == (value > 5)


def test_nats_and_what_says_nothing(tmp_path):
    """Floats have a Gaussian alone; a single group has no errors; older evaluations no baselines."""
    one = {"gaussian": ("a Gaussian", 5.0)}
    assert "than a Gaussian (5.00)." in conclusion(tmp_path, result(2.0, unit="nats", baselines=one))
    unknown = result(9.0, baselines=one)
    unknown["baselines"]["gaussian"]["nelbo_difference"]["bits_per_dim_standard_error"] = None
    old = result(9.0)
    del old["baselines"]
    assert conclusion(tmp_path, unknown) == conclusion(tmp_path, old) == ""


@pytest.mark.parametrize(
    ("lines", "summary", "changes", "cause", "flags"),
    [
        ([line(40), line(80)], None, {"steps": 500}, "the run was interrupted at step 80", []),
        ([line(40), line(80)], {"interrupted": True}, {"steps": 500}, "the run was interrupted at step 80", []),
        (
            [line(100, 1e-6), line(300, 3e-6)], FINISHED, {"steps": 300},
            "the run ended inside its warm-up, at step 300, with a learning rate of 3.0e-06", ["steps 2000"],
        ),
        (
            [line(1000, nelbo=3.0, valid_nelbo=4.0), line(2000, 5e-4, nelbo=2.0, valid_nelbo=5.5)], FINISHED, LONG,
            "too few data for this model: the training NELBO is 2.00, that of validation 5.50", None,
        ),
        ([line(1000, 9e-6), line(2000, 8e-6)], FINISHED, LONG, "the learning rate was never above 9.0e-06", None),
        (
            [line(1000, nelbo=5.2), line(1500, 0.0), line(2000, 1e-4, nelbo=5.1, valid_nelbo=5.5)], FINISHED, LONG,
            "the budget of 2000 steps, 200 seconds, is too small", ["steps 8000"],
        ),
        ([line(200)], FINISHED, {"steps": 200}, "the budget of 200 steps, 20 seconds", ["steps 2000"]),
        (
            [line(1000)], FINISHED, {"steps": math.inf, "seconds": 100.0},
            "the budget of 1000 steps, 100 seconds", ["seconds 400"],
        ),
        (
            [line(1000)], FINISHED, {"steps": 1000, "seconds": 200.0},
            "the budget of 1000 steps, 100 seconds", ["steps 4000", "seconds 400"],
        ),
    ],
)  # fmt: skip
def test_the_likely_cause_and_how_to_go_on(lines, summary, changes, cause, flags, tmp_path):
    run = folder(tmp_path, lines, summary, **{f"train.{key}": str(value) for key, value in changes.items()})
    found = advice(run, 5.0)
    assert found.startswith(f"Likely cause: {cause}")
    if flags is None:
        assert "Go on with" not in found and ("More examples would do" in found or "--train.lr 1e-3" in found)
    else:
        budget = "".join(f" --train.{flag}" for flag in flags)
        assert found.endswith(f". Go on with: indm train {run} --resume{budget}")


@pytest.mark.parametrize("final", ["last", "best"])
def test_the_validation_that_counts_is_that_of_the_model_that_was_saved(final, tmp_path):
    lines = [line(1000, nelbo=3.0, valid_nelbo=4.0), line(2000, 5e-4, nelbo=2.0, valid_nelbo=5.5)]
    run = folder(tmp_path, lines, FINISHED, **{"train.steps": "2000", "train.final": final})
    by_a_baseline_between, below_both = advice(run, 5.0), advice(run, 3.5)
    if final == "best":
        assert "the budget of 2000 steps" in by_a_baseline_between
        assert "is 2.00, that of validation 4.00. More examples" in below_both
    else:
        assert by_a_baseline_between == below_both and "that of validation 5.50. More examples" in below_both


def test_causes_that_are_no_training(tmp_path):
    """Other data than those of the training; data that were given in Python; a converted run, which has no log."""
    run = folder(tmp_path, [line(100)], FINISHED, **{"train.steps": "100"})
    for changes in ({"data": {"name": "folder"}}, {"data_changed": True}):
        assert conclusion(run, result(9.0, **changes)).endswith("these are not the data that it was trained on.")
        few = conclusion(run, result(9.0, **changes, images={"nelbo": 3}))
        assert few.startswith("3 examples are too few to tell. The model") and "cause" not in few
    assert conclusion(run, result(9.0, groups=1)).startswith("1 group is too few to tell. The model")
    text = (run / "recipe.toml").read_text().replace('name = "digits"', 'name = "given"')
    (run / "recipe.toml").write_text(text)
    assert advice(run).endswith("Go on in Python: indm.train(…, resume=True), with train.steps=2000.")
    (run / "metrics.jsonl").write_text("")
    assert advice(run) == ""
    assert conclusion(run, result(9.0, data={"name": "given"})).endswith("uniform noise (8.00).")


def test_evaluate_says_it_and_its_command_goes_on(tmp_path, monkeypatch, capsys):
    """A run of three steps on the digits, continued by the very command that its evaluation prints."""
    monkeypatch.setattr("indm.workbench.evaluation.results.ENOUGH_STEPS", 13)
    run = tmp_path / "a run"
    small = "--flow identity --net mlp --net.width 8 --net.depth 1 --train.seconds inf --train.steps 3 --quiet"
    assert main(["train", "digits", "--out", str(run), *small.split(), "--train.threads", "1"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--examples", "40", "--nll-examples", "0", "--quiet"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    rows = json.loads((run / "evaluation.json").read_text())["baselines"]
    assert list(rows) == ["uniform", "gaussian", "png"] and rows["gaussian"]["examples"] == 1257
    for row, label in zip(
        rows.values(), ("uniform noise", "a Gaussian with full covariance", "PNG, header included"), strict=True
    ):
        assert any(text.startswith(f"baseline: {label}") and f"{row['bits_per_dim']:.4f}" in text for text in table)
    assert "Likely cause: the budget of 3 steps, " in last and "Go on with: indm train" in last
    _, *command = shlex.split(last.partition("Go on with: ")[2])
    assert main([*command, "--quiet"]) == 0
    assert read_metrics(run)[-1]["step"] == 13
    (run / "summary.json").unlink()  # as if it were still in training
    capsys.readouterr()
    again = ["evaluate", str(run), "--examples", "40", "--nll-examples", "0", "--quiet", "--overwrite"]
    assert main(again) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert "weights of a checkpoint: the training has not ended" in table
    assert last.endswith("Likely cause: its training has not ended.")
