"""What an evaluation says of its model: better or worse than baselines, the cause by what the run folder holds."""

import json
import math

import pytest

from indm.workbench.cli.main import main
from indm.workbench.evaluation.results import conclusion
from indm.workbench.recipes import recipe as recipes

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
    cause = " Likely cause: too short a training, 500 steps." if value > 5 else ""
    assert found == f"The model ({value:.2f} bits/dim) {sentence}{cause}"


def test_nats_and_what_says_nothing(tmp_path):
    """Floats have a Gaussian alone; a single group has no errors; older evaluations no baselines."""
    one = {"gaussian": ("a Gaussian", 5.0)}
    assert "than a Gaussian (5.00)." in conclusion(tmp_path, result(2.0, unit="nats", baselines=one))
    unknown = result(9.0, baselines=one)
    unknown["baselines"]["gaussian"]["nelbo_difference"]["bits_per_dim_standard_error"] = None
    old = result(9.0)
    del old["baselines"]
    assert conclusion(tmp_path, unknown) == conclusion(tmp_path, old) == ""


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
    (run / "metrics.jsonl").write_text("")
    assert conclusion(run, result(9.0, data={"name": "given"})).endswith("uniform noise (8.00).")


@pytest.mark.filterwarnings("ignore:the run ended")
def test_evaluate_says_it(tmp_path, capsys):
    """Of a run of three steps on the digits."""
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
    assert last.endswith("Likely cause: too short a training, 3 steps.")
    (run / "summary.json").unlink()  # as if it were still in training
    capsys.readouterr()
    again = ["evaluate", str(run), "--examples", "40", "--nll-examples", "0", "--quiet", "--overwrite"]
    assert main(again) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert "weights of a checkpoint: the training has not ended" in table
    assert last.endswith("Likely cause: its training has not ended.")
