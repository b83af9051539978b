"""The verdict of an evaluation: which baselines the model is better than."""

import json
import math

import pytest

from indm.workbench.cli.main import main
from indm.workbench.evaluation.text import verdict
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.folder import recipe_of

BITS = 64 * math.log(2)
BASELINES = {
    "uniform": ("uniform noise", 8.0),
    "gaussian": ("a Gaussian", 5.0),
    "png": ("PNG", 4.0),
}


def result(value, error=0.1, unit="bits/dim", baselines=BASELINES):
    """An evaluation of that NELBO, in bits/dim, or nats, with the standard ``error`` of each paired
    difference.
    """

    def both(number):
        return (
            {"bits_per_dim": number, "nats": number * BITS}
            if unit == "bits/dim"
            else {"nats": number}
        )

    rows = {}
    for key, (name, of_baseline) in baselines.items():
        errors = {f"{k}_standard_error": v for k, v in both(error).items()}
        rows[key] = {
            "name": name,
            **both(of_baseline),
            "nelbo_difference": both(value - of_baseline) | errors,
        }
    return {"unit": unit, "nelbo": {"with_reconstruction": both(value)}, "baselines": rows}


BELOW = "better than a Gaussian (5.00) and uniform noise (8.00), but "


@pytest.mark.parametrize(
    ("value", "error", "sentence"),
    [
        (3.1, 0.1, "better than PNG (4.00) and a Gaussian (5.00) and uniform noise (8.00)"),
        (3.81, 0.1, f"{BELOW}not better than PNG (4.00)"),  # by less than two standard errors
        (4.5, 0.1, f"{BELOW}not better than PNG (4.00)"),
        (8.79, 0.1, "not better than PNG (4.00) and a Gaussian (5.00) and uniform noise (8.00)"),
    ],
)
def test_baselines_that_a_model_beats_by_two_standard_errors(value, error, sentence):
    assert verdict(result(value, error)) == f"The model ({value:.2f} bits/dim) is {sentence}."


def test_nats_and_what_says_nothing():
    """Floats have a Gaussian alone; a single group has no errors; older evaluations no baselines."""
    one = {"gaussian": ("a Gaussian", 5.0)}
    assert "than a Gaussian (5.00)." in verdict(result(2.0, unit="nats", baselines=one))
    unknown = result(9.0, baselines=one)
    unknown["baselines"]["gaussian"]["nelbo_difference"]["bits_per_dim_standard_error"] = None
    old = result(9.0)
    del old["baselines"]
    assert verdict(unknown) == verdict(old) == ""


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
        rows.values(),
        ("uniform noise", "a Gaussian with full covariance", "PNG, header included"),
        strict=True,
    ):
        assert any(
            text.startswith(f"baseline: {label}") and f"{row['bits_per_dim']:.4f}" in text
            for text in table
        )
    assert last == verdict(json.loads((run / "evaluation.json").read_text()))
    (run / "summary.json").unlink()  # as if it were still in training
    capsys.readouterr()
    again = [
        "evaluate",
        str(run),
        "--examples",
        "40",
        "--nll-examples",
        "0",
        "--quiet",
        "--overwrite",
    ]
    assert main(again) == 0
    table = capsys.readouterr().out.splitlines()
    assert "weights of a checkpoint: the training has not ended" in table
    noisy = recipes.override(recipe_of(run), {"train.terminal": "1", "train.initial_noise": "0.1"})
    (run / "recipe.toml").write_text(recipes.to_toml(recipes.resolve(noisy)))
    with pytest.warns(UserWarning, match="has learned data with noise of deviation 0.1"):
        assert main(again) == 0
