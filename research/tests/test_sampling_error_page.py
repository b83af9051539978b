"""python -m research.sampling_error: its page, tables and sentence, on tiny runs."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from indm.workbench.evaluation.extractor import train_extractor
from pages import assert_alone, tables_of
from solvers import solve_roughly

import indm
from indm.workbench.data.registry import load_data
from indm.workbench.evaluation import plots
from indm.workbench.evaluation.records import Record, Setup, measure
from indm.workbench.recipes.options import ReportOptions
from indm.workbench.training.loop import train
from research.command import main
from research.measurements import MEASUREMENTS, SAMPLING_ERROR
from research.sampling_error import errors
from research.sampling_error.__main__ import SamplingError
from research.sampling_error.page import best_sampler, loss_views

DIGITS = {
    "flow": "coupling", "flow.depth": 1, "flow.width": 4, "net": "mlp", "net.width": 16, "net.depth": 1,
    "net.fourier": 0, "train.steps": 8, "train.seconds": math.inf, "train.batch_size": 64,
    "train.validate_examples": 20, "evaluate.examples": 60, "evaluate.nll_examples": 4, "evaluate.steps": 8,
}  # fmt: skip
FEW = ["--examples", "20", "--steps", "2", "3", "--samplers", "unipc", "euler-maruyama", "--quiet"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The page of two seeds of a tiny INDM and of a linear model."""
    base = tmp_path_factory.mktemp("errors")
    train_extractor(load_data("digits"), epochs=1, most=256, progress=False).save(base / "out")
    for seed in (0, 1):
        train(indm.recipe("digits", DIGITS | {"train.seed": seed}), base / "indm" / str(seed), progress=False)
    linear = {key: value for key, value in DIGITS.items() if not key.startswith("flow.")} | {"flow": "identity"}
    train(indm.recipe("digits", linear), base / "linear", progress=False)
    folders = [base / "indm" / "0", base / "indm" / "1", base / "linear"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "DPI", 40)
        patch.setattr(errors, "CONVERGED_STEPS", 40)
        solve_roughly(patch)
        assert main(SamplingError, [*map(str, folders), "--out", str(base / "out"), *FEW]) == 0
        quality = {str(f): measure(f, "quality", setup()) for f in folders}
    stored = json.loads((base / "out" / "errors.json").read_text())["runs"]
    return base, folders, stored, quality


def setup():
    options = ReportOptions(20, (2, 3), ("unipc", "euler-maruyama"))
    return Setup(load_data("digits"), None, options, False, MEASUREMENTS)


def test_tables_are_means_over_seeds(digits):
    base, folders, stored, _ = digits
    text = (base / "out" / "index.html").read_text("utf-8")
    loss, transport, error = tables_of(text)
    runs = [stored[str(folder)] for folder in folders[:2]]
    for run, folder in zip(runs, folders, strict=False):
        assert run.keys() == {"group", *SAMPLING_ERROR}
        kept = json.loads((folder / "measurements" / "errors.json").read_text())["result"]
        assert run["errors"] == kept
    rows = [run["errors"]["discretization"] for run in runs]
    assert [row[1:4] for row in loss[1:5]] == [["unipc", "2", "3"], ["unipc", "3", "4"], ["euler-maruyama", "2", "3"],
                                               ["euler-maruyama", "3", "4"]]  # fmt: skip
    for i, key in ((4, "rms"), (5, "frechet"), (6, "sliced_wasserstein")):
        a, b = (found[2][key] for found in rows)
        assert loss[3][i] == f"{(a + b) / 2:.3f} ± {abs(a - b) / 2:.3f}" and min(a, b) >= 0
    ratios = [run["transport"]["data"]["ratio"] for run in runs]
    assert transport[1][4].startswith(f"{np.mean(ratios):.3f} ± ") and all(ratio >= 1 for ratio in ratios)
    assert transport[3][0] == transport[4][0] == "linear" and transport[3][2:] == transport[4][2:]  # one space
    rms = [found[0]["rms"] for found in rows]
    (row,) = [row for row in error if row[0] == "indm" and row[2].startswith("2 steps of unipc")]
    assert row[1] == "discretization" and row[3].startswith(f"{np.mean(rms):.4f} ± ")
    reader = assert_alone(text)
    assert reader.text("p")[0].startswith("In 2 steps (3 evaluations of the network) ")
    assert [path.name for path in (base / "out").glob("*.png")] == ["loss.png"]


def test_the_whole_sampling_error_is_within_its_parts(digits):
    """The triangle inequality of the sliced Wasserstein distance, up to what 200 directions and rounding leave."""
    _, folders, stored, quality = digits
    for folder in map(str, folders):
        for steps in (2, 3):
            found, of = stored[folder]["errors"], ("unipc", steps)
            whole, loss = (
                next(row for row in rows if (row["sampler"], row["steps"]) == of)
                for rows in (quality[folder], found["discretization"])
            )
            parts = found["prior"]["rms"], loss["rms"], found["estimation"]["samples"]["sliced_wasserstein"]
            assert min(parts) > 0 and whole["sliced_wasserstein"] <= 1.1 * sum(parts) + 0.02


def test_it_is_not_written_over_and_runs_are_of_one_data_set(digits, tmp_path, capsys):
    base, folders, _, _ = digits
    for command, said in (
        ([str(folders[0]), "--out", str(base / "out"), *FEW], "add --overwrite"),
        ([str(folders[0])] * 2, "must differ"),
        ([str(tmp_path)], "is no run folder"),
        ([], "at least one run"),
    ):
        assert main(SamplingError, command) == 2
        shown = capsys.readouterr().err
        assert said in shown and shown.startswith("research.sampling_error: error: ") and shown.count("\n") == 1


def test_the_transport_is_measured_of_a_model_with_learned_noise_of_grey_levels(tmp_path, monkeypatch):
    solve_roughly(monkeypatch)
    train(indm.recipe("digits", DIGITS | {"dequantization": "variational"}), tmp_path / "run", progress=False)
    assert measure(tmp_path / "run", "transport", setup())["data"]["cost"] > 0


def lossy(group, losses=()):
    """A record of what its samplers lose in 5 and in 10 steps."""
    rows = [
        {"sampler": name, "steps": steps, "nfe": steps + 1, "rms": rms / steps, "rms_standard_error": 0.001}
        for name, rms in losses
        for steps in (5, 10)
    ]
    return Record(Path(group), group, {}, {}, 0, {"errors": {"discretization": rows}} if rows else {})


def test_a_sentence_names_the_sampler_that_loses_least_in_few_steps():
    ours = lossy("indm", (("unipc", 0.5), ("heun", 1.0), ("pc", 2.0)))
    linear = lossy("linear", (("unipc", 0.75), ("heun", 0.9)))
    assert best_sampler([linear, ours, lossy("own")]) == (
        "In 5 steps (6 evaluations of the network) unipc with indm loses least: 0.100 ± 0.001 from the converged "
        "samples, root mean square in model units; heun loses 0.200 ± 0.001 with the same model, and linear "
        "0.150 ± 0.001 with the same sampler. These differences are not tested."
    )
    assert best_sampler([lossy("own")]) == ""
    unipc, heun, _ = loss_views([[ours]], {"indm": "#123456"})
    assert (unipc.name, heun.name) == ("unipc", "heun") and unipc.log
    assert unipc.lines[0].points == [(6, 0.1, 0.001), (11, 0.05, 0.001)]


@pytest.mark.long
def test_of_a_known_density_the_estimation_is_in_nats_too(tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "estimation_curve", functools.partial(errors.estimation_curve, samples=50, times=3,
                                                                      step=0.05))  # fmt: skip
    monkeypatch.setattr(errors, "POINTS", 100)
    monkeypatch.setattr(errors, "CONVERGED_STEPS", 40)
    few = {key: value for key, value in DIGITS.items() if key not in ("flow.depth", "net.fourier")}
    train(indm.recipe("eight-gaussians", few | {"flow": "identity"}), tmp_path / "run", progress=False)
    out = tmp_path / "out"
    assert main(SamplingError, [str(tmp_path / "run"), "--out", str(out), *FEW]) == 0
    *_, error = tables_of((out / "index.html").read_text("utf-8"))
    (run,) = json.loads((out / "errors.json").read_text())["runs"].values()
    estimation, cells = run["errors"]["estimation"], {row[2]: row[3] for row in error}
    curve = estimation["curve"]
    width = (curve["range"][1] - curve["range"][0]) / len(curve["curve"])
    summed = width * sum(point["integrand"] for point in curve["curve"])
    assert cells["the same, measured where the true score is resolved, nats"].startswith(f"{summed:.4f} ± ")
    assert cells["½∫g²E‖s_θ − ∇log p_t‖² dt by the bound, nats"].startswith(f"{estimation['kl']['nats']:.4f} ± ")
