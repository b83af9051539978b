"""Runs compared, made by hand: recipes, and nats of every example."""

import json
import math

import numpy as np
import pytest
from pages import Reader, tables_of
from scipy.stats import ttest_rel

from indm.workbench.cli.main import main
from indm.workbench.evaluation.compare import compare
from indm.workbench.evaluation.results import check_same_examples, read_evaluation
from indm.workbench.recipes import recipe as recipes

DIMS, N = 64, 50
BITS = DIMS * math.log(2)
GENERATOR = np.random.default_rng(0)
HARD = GENERATOR.normal(size=N)  # what makes an example hard, for every model
NATS = {
    name: BITS * (level + HARD + 0.05 * GENERATOR.normal(size=N))
    for name, level in (("a", 2.1), ("b", 1.6))
}


def evaluated(folder, nats, nll=None, steps=10, **more):
    """A run folder with a recipe, a log of two seconds that ends at ``steps``, and an evaluation of
    these nats.
    """
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(recipes.to_toml(recipes.resolve(recipes.load("digits"))))
    lines = [{"step": steps * i // 2, "seconds": 1.0 * i, "valid_nelbo": 3.0 - i} for i in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(
        json.dumps({"steps": steps, "flow_parameters": 23, "score_parameters": 1000})
    )
    kinds = {"nelbo": nats} | ({} if nll is None else {"nll": nll})
    result = {"unit": "bits/dim", "dims": DIMS, "data": {"name": "digits"}, "split": "test", "eps": 1e-5,
              "dequantization": "uniform", "entropy_nats": None, "weights_sha256": "0" * 64,
              "repeats": 2, "seed": 0, "examples_sha256": "a",
              "images": {kind: len(kinds.get(kind, ())) for kind in ("nelbo", "nll")}}  # fmt: skip
    for kind, values in kinds.items():
        numbers = {"bits_per_dim": values.mean() / BITS, "nats": values.mean()}
        numbers |= {
            f"{key}{end}": 0.1
            for key in list(numbers)
            for end in ("_standard_error", "_estimator_noise")
        }
        result[kind] = {
            "title": {"nelbo": "NELBO", "nll": "NLL (ODE)"}[kind],
            "settings": {},
            "with_reconstruction": numbers,
            "without_reconstruction": numbers,
        }
    (folder / "evaluation.json").write_text(json.dumps(result | more))
    np.savez(folder / "evaluation.npz", **kinds)
    return folder


def test_differences_are_paired_by_example_and_the_page_has_the_table_of_the_text(tmp_path):
    row = {"name": "a <Gaussian>", "bits_per_dim": 2.5, "bits_per_dim_standard_error": 0.02}
    less = {"bits_per_dim": -0.9, "bits_per_dim_standard_error": 0.01}
    baselines = {"gaussian": row | {"nelbo_difference": less}}
    runs = [
        evaluated(tmp_path / "a", NATS["a"], nll=NATS["a"][:10], entropy_nats=7.0),
        evaluated(tmp_path / "b", NATS["b"], nll=NATS["b"][:10] + 1, steps=20, baselines=baselines),
        evaluated(tmp_path / "c", NATS["b"]),
    ]
    out = tmp_path / "out"
    text = compare(runs, out)
    stored = json.loads((out / "comparison.json").read_text())
    known = ttest_rel(NATS["b"], NATS["a"])
    found = stored["differences"][str(runs[1])]
    mean = (NATS["b"] - NATS["a"]).mean() / BITS
    assert found["nelbo"]["difference"] == pytest.approx(mean)
    assert found["nelbo"]["standard_error"] == pytest.approx(mean / known.statistic)
    assert set(found) == {"nelbo", "nll"} and set(stored["differences"][str(runs[2])]) == {"nelbo"}
    (table,) = tables_of((out / "comparison.html").read_text("utf-8"))
    header, *rows = table
    assert header == [
        "",
        "parameters",
        "steps",
        "seconds",
        "NELBO, bits/dim",
        "− first",
        "NLL (ODE), bits/dim",
        "− first",
    ]
    cells = {row[0]: row[1:] for row in rows}
    assert list(cells) == [*map(str, runs), "baseline: a <Gaussian>", "entropy of the data"]
    assert cells[str(runs[0])][:3] == ["1,023", "10", "2"] and cells[str(runs[0])][4] == "–"
    assert (
        cells[str(runs[1])][4] == f"{mean:.4f} ± {mean / known.statistic:.4f}"
        and cells[str(runs[2])][5] == "–"
    )
    for row in rows:
        assert any(line.split() == " ".join(row).split() for line in text.splitlines())
    page = Reader((out / "comparison.html").read_text("utf-8"))
    assert page.images() == [(out / "comparison.png").read_bytes()]
    assert page.text("p") == text.splitlines()[len(table) :]


def test_one_run_has_a_page_and_no_differences(tmp_path, capsys):
    run = evaluated(tmp_path / "a", NATS["a"])
    assert main(["compare", str(run), "--out", str(tmp_path / "out")]) == 0
    assert "− first" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["differences"] == {}


@pytest.mark.parametrize(
    ("paths", "hashes", "same"),
    [
        (("/old/mine.npy", "/new/mine.npy"), ("a", "a"), True),
        (("/old/mine.npy", "/new/mine.npy"), ("a", "b"), False),
        (("/home/mine.npy", "/home/mine.npy"), ("a", "b"), False),
    ],
)
def test_the_examples_of_an_evaluation_decide_not_where_they_are(paths, hashes, same, tmp_path):
    results = {}
    for name, path, sha256 in zip("ab", paths, hashes, strict=True):
        run = evaluated(tmp_path / name, NATS["a"])
        results[run] = read_evaluation(run) | {
            "data": {"name": "array", "path": path},
            "examples_sha256": sha256,
        }
    if same:
        check_same_examples(results)
    else:
        with pytest.raises(ValueError, match="examples_sha256"):
            check_same_examples(results)
    results[run]["data"]["valid"] = 0.3
    with pytest.raises(ValueError, match="the data"):
        check_same_examples(results)
