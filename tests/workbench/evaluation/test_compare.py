"""Methods and their differences, on runs made by hand: recipes, and nats of every example."""

import contextlib
import json
import math

import numpy as np
import pytest
from pages import Reader
from PIL import Image
from scipy.stats import ttest_rel

from indm.evaluation.statistics import holm
from indm.workbench.evaluation.compare import Run, compare, differences, methods_of, pairs_of
from indm.workbench.evaluation.results import check_same_examples, read_evaluation
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.folder import recipe_of
from indm.workbench.training.costs import key_of

DIMS, N = 64, 50
LEVELS = {"linear": (2.1, 2.2, 2.0, 2.15), "indm": (1.6, 1.7, 1.52, 1.66), "flow": (2.05, 2.3, 2.02, 2.1)}
GENERATOR = np.random.default_rng(0)
HARD = GENERATOR.normal(size=N)  # what makes an example hard, for every model
NATS = {
    (name, seed): DIMS * math.log(2) * (level + HARD + 0.05 * GENERATOR.normal(size=N))
    for name, levels in LEVELS.items()
    for seed, level in enumerate(levels)
}


def evaluated(folder, nats, seed=0, nll=None, steps=10, **changes):
    """A run folder with a recipe, a log of two seconds that ends at ``steps``, and an evaluation of these nats."""
    folder.mkdir(parents=True)
    recipe = recipes.override(recipes.load("digits"), {"train.seed": str(seed), **changes})
    (folder / "recipe.toml").write_text(recipes.to_toml(recipes.resolve(recipe)))
    lines = [{"step": steps * i // 2, "seconds": 1.0 * i, "valid_nelbo": 3.0 - i} for i in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    kinds = {"nelbo": nats} | ({} if nll is None else {"nll": nll})
    result = {"unit": "bits/dim", "dims": DIMS, "data": {"name": "digits"}, "split": "test", "eps": 1e-5,
              "dequantization": "uniform", "entropy_nats": None, "weights_sha256": "0" * 64,
              "repeats": 2, "seed": 0, "examples_sha256": "a",
              "images": {kind: len(kinds.get(kind, ())) for kind in ("nelbo", "nll")}}  # fmt: skip
    for kind, values in kinds.items():
        bits = values / (DIMS * math.log(2))
        means = {"bits_per_dim": bits.mean(), "nats": values.mean()}
        numbers = {key: float(np.nan_to_num(mean, posinf=1e30)) for key, mean in means.items()}  # as files may hold
        numbers |= {f"{key}{end}": 0.1 for key in list(numbers) for end in ("_standard_error", "_estimator_noise")}
        result[kind] = {"settings": {}, "with_reconstruction": numbers, "without_reconstruction": numbers}
    (folder / "evaluation.json").write_text(json.dumps(result))
    np.savez(folder / "evaluation.npz", **kinds)
    return folder


def trained(base, name, seeds, **changes):
    linear = {"indm": {}, "linear": {"flow": "identity"}, "flow": {"net": "zero"}}[name]
    return [evaluated(base / name / str(s), NATS[name, s], s, **linear, **changes) for s in seeds]


def changed(run, **fields):
    result = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps(result | fields))
    return result


def bits(name, seeds):
    return np.stack([NATS[name, s] for s in seeds]) / (DIMS * math.log(2))


def compared(runs, out, **options):
    """The text, and what is stored."""
    text = compare(runs, out, **options)
    return text, json.loads((out / "comparison.json").read_text())


def measured(run, costs):
    """Keep that a step of each of these runs costs so much, as measured with ``run``."""
    found = {key_of(recipe_of(other)): cost for other, cost in costs.items()}
    (run / "versions.json").write_text(json.dumps({"step_costs": found}))


def test_methods_are_runs_that_differ_in_the_seed_alone(tmp_path):
    """And in the place of their data, and a little in their steps."""
    indm, linear = trained(tmp_path, "indm", (0, 1, 2)), trained(tmp_path, "linear", (2, 0))
    copy = evaluated(tmp_path / "copy", NATS["indm", 1], 1)
    longer = evaluated(tmp_path / "longer", NATS["indm", 1], 3, **{"train.steps": "70"})
    as_long = evaluated(tmp_path / "as-long", NATS["indm", 1], 5, **{"train.steps": "75"})
    longest = evaluated(tmp_path / "longest", NATS["indm", 1], 6, **{"train.steps": "78"})
    watched = evaluated(tmp_path / "watched", NATS["indm", 1], 4, **{"train.log_every": "7", "evaluate.times": "3"})
    places = [
        evaluated(tmp_path / p, NATS["indm", 0], i, data="folder", **{"data.path": p}) for i, p in enumerate("ab")
    ]
    order = [indm[0], linear[0], copy, indm[1], linear[1], longer, indm[2], watched, as_long, longest, *places]
    found = [[run.folder for run in runs] for runs in methods_of([Run.read(folder) for folder in order]).values()]
    # The copy has the seed of indm[1]: it comes first and so belongs to the first, the other begins another method.
    assert found == [[indm[0], copy, indm[2], watched], linear, [indm[1]], [longer, as_long], [longest], places]

    def paired(runs, first):
        found = pairs_of(*([Run.read(folder) for folder in folders] for folders in (runs, first)))
        return [(run.folder, other.folder) for run, other in found]

    assert paired(indm, linear) == [(indm[0], linear[1]), (indm[2], linear[0])]
    assert paired([longer], [indm[0]]) == [(longer, indm[0])] and paired(indm, [longer]) == []


def test_differences_over_seeds_are_one_family(tmp_path):
    """Three methods, four seeds: scipy's paired t, the error of the shared examples beside it, and Holm over both."""
    seeds = range(4)
    folders = [run for name in ("linear", "indm", "flow") for run in trained(tmp_path, name, seeds)]
    text, stored = compared(folders, tmp_path / "out", equal="steps")
    assert stored["baseline"] == "linear" and stored["unit"] == "bits/dim"
    runs = {name: list(map(str, folders[i : i + 4])) for name, i in (("linear", 0), ("indm", 4), ("flow", 8))}
    assert stored["methods"] == runs and f"flow: {', '.join(runs['flow'])}\n" in text
    found = [stored["differences"][name]["nelbo"] for name in ("indm", "flow")]
    for row, name in zip(found, ("indm", "flow"), strict=True):
        a, b = bits(name, seeds), bits("linear", seeds)
        known = ttest_rel(a.mean(1), b.mean(1))
        over_seeds = (a - b).mean() / known.statistic
        over_examples = (a - b).mean(0).std(ddof=1) / math.sqrt(N)
        assert row["difference"] == pytest.approx((a - b).mean()) and row["seeds"] == 4
        assert row["standard_error_over_seeds"] == pytest.approx(over_seeds)
        assert row["standard_error_over_examples"] == pytest.approx(over_examples)
        assert row["standard_error"] == pytest.approx(math.hypot(over_seeds, over_examples))
        assert row["p"] >= known.pvalue
    assert [row["p_holm"] for row in found] == pytest.approx(holm([row["p"] for row in found]))
    assert [row["verdict"] for row in found] == ["better", "undecided"]
    (line,) = [line.split() for line in text.splitlines() if line.startswith("indm ") and "NELBO" in line[:20]]
    assert line[:6] == ["indm", "NELBO", f"{found[0]['difference']:.4f}", "±", f"{found[0]['standard_error']:.4f}", "4"]
    assert line[6:] == [*["10", "steps", "against", "10"], *(f"{found[0][p]:.2g}" for p in ("p", "p_holm")), "better"]
    assert "one training" not in text and Image.open(tmp_path / "out" / "comparison.png").size[0] > 600


def test_budgets_that_differ_have_no_verdict(tmp_path):
    """The same seconds, but 95 steps against 458: no verdict, and no part of the family, on one seed or on two."""
    indm = [evaluated(tmp_path / "i" / str(s), NATS["indm", s], s, steps=458 + s) for s in (0, 1)]
    slow = [evaluated(tmp_path / "s" / str(s), NATS["linear", s], s, steps=95, flow="identity") for s in (0, 1)]
    fair = [evaluated(tmp_path / "f" / str(s), NATS["flow", s], s, steps=520 - s, net="zero") for s in (0, 1)]
    seconds = {indm[0]: 0.1, slow[0]: 0.088, fair[0]: 0.088}
    measured(indm[1], seconds)
    text, stored = compared([*indm, *slow, *fair], tmp_path / "out")
    refused, judged = (stored["differences"][name]["nelbo"] for name in "sf")
    assert refused["verdict"] == "not comparable" and refused["p"] is refused["p_holm"] is None
    assert refused["difference"] == pytest.approx((bits("linear", (0, 1)) - bits("indm", (0, 1))).mean())
    assert judged["p_holm"] == judged["p"] is not None and judged["verdict"] in ("worse", "undecided")
    assert judged["steps"] == [[520, 519], [458, 459]] and judged["cost"] == pytest.approx(0.88)
    words = "95 steps × 0.88 = 84 against 458–459"
    assert f"s and i are not comparable, as the budgets differ by more than 10%: {words}; " in text
    assert "519–520 steps × 0.88 = 457–458 against 458–459" in text
    assert any(line.startswith("s ") and line.endswith("not comparable") for line in text.splitlines())
    measured(indm[0], seconds)
    (row,) = compared([indm[0], slow[0]], tmp_path / "two")[1]["differences"].values()
    assert row["nelbo"]["verdict"] == "not comparable"


@pytest.mark.parametrize(
    ("steps", "cost", "equal", "comparable"),
    [
        (100, 1.1, "cost", True),
        (100, 1.11, "cost", False),
        (100, 0.92, "cost", True),
        (100, 0.9, "cost", False),
        (50, 2.0, "cost", True),
        (50, 2.0, "steps", False),
        (100, 9.0, "steps", True),
        (109, 1.0, "steps", True),
    ],
)
def test_budgets_are_equal_within_a_tenth(tmp_path, steps, cost, equal, comparable):
    """Of steps × cost, as it was measured, or of steps."""
    first = [evaluated(tmp_path / f"a{s}", NATS["indm", s], s, steps=100) for s in (0, 1)]
    other = [evaluated(tmp_path / f"b{s}", NATS["flow", s], s, steps=steps, net="zero") for s in (0, 1)]
    measured(other[0], {first[0]: 2.0, other[0]: 2.0 * cost})
    methods = {name: [Run.read(run) for run in runs] for name, runs in (("a", first), ("b", other))}
    row = differences(methods, equal)["b"]["nelbo"]
    assert (row["verdict"] != "not comparable") == comparable == (row["p"] is not None) == (row["why"] == "")


def test_without_costs_or_steps_differences_are_shown_without_a_verdict(tmp_path):
    """Of runs that nobody timed together, or a converted checkpoint; equal steps can be compared all the same."""
    linear, own = trained(tmp_path, "linear", (0, 1)), trained(tmp_path, "flow", (0, 1), flow="my_flow:Scale")
    text, stored = compared([*linear, *own], tmp_path / "out")
    row = stored["differences"]["flow"]["nelbo"]
    assert row["verdict"] == "not comparable" and row["cost"] is None and row["difference"] is not None
    assert "as the cost of a step is not known (10 steps × – against 10)" in text and "equal steps" in text
    text, _ = compared([*linear, *own], tmp_path / "steps", equal="steps")
    assert "not comparable" not in text and "10 steps against 10" in text and "whatever a step costs" in text
    (own[1] / "metrics.jsonl").unlink()
    text, _ = compared([*linear, *own], tmp_path / "log", equal="steps")
    assert "not comparable, as the steps of a run are not known (– steps against 10)" in text


def test_one_training_each_has_an_error_over_examples_and_no_verdict(tmp_path):
    """However large the difference is against it."""
    (indm,), (linear,) = trained(tmp_path, "indm", (0,)), trained(tmp_path, "linear", (1,))
    text, stored = compared([linear, indm], tmp_path / "out", equal="steps")
    row = stored["differences"]["0"]["nelbo"]  # named after its folder
    each = bits("indm", (0,)) - bits("linear", (1,))
    assert row["standard_error"] == pytest.approx(each.std(ddof=1) / math.sqrt(N))
    assert row["standard_error"] < 0.05 * abs(row["difference"])
    assert row["verdict"] == "untested" and row["p"] is row["p_holm"] is row["standard_error_over_seeds"] is None
    assert f"{row['difference']:.4f} ± {row['standard_error']:.4f}" in text
    assert "which of two models is better, not which method" in text
    assert not any(word in text for word in ("  better", "  worse", "tie"))


@pytest.mark.parametrize(
    ("paths", "hashes", "same"),
    [
        (("mine.npy", "/home/mine.npy"), ("a", "a"), True),
        (("/old/mine.npy", "/new/mine.npy"), ("a", "a"), True),
        (("/old/mine.npy", "/new/mine.npy"), ("a", "b"), False),
        (("/home/mine.npy", "/home/mine.npy"), ("a", "b"), False),
    ],
)
def test_the_examples_of_an_evaluation_decide_not_where_they_are(paths, hashes, same, tmp_path):
    results = {}
    for path, sha256, run in zip(paths, hashes, trained(tmp_path, "indm", (0, 1)), strict=True):
        results[run] = read_evaluation(run) | {"data": {"name": "array", "path": path}, "examples_sha256": sha256}
    wanted = "must be evaluated on the same examples with the same options, got the examples_sha256 b and a"
    with contextlib.nullcontext() if same else pytest.raises(ValueError, match=wanted):
        check_same_examples(results)
    results[run]["data"]["valid"] = 0.3
    with pytest.raises(ValueError, match=r"got the data \{.*'valid': 0.3"):
        check_same_examples(results)


def test_a_likelihood_counts_where_all_runs_of_a_pair_have_it(tmp_path):
    nll = NATS["indm", 0][:10]
    runs = [evaluated(tmp_path / "a" / str(s), NATS["indm", s], s, nll=nll + s) for s in (0, 1)]
    runs += [evaluated(tmp_path / "b" / str(s), NATS["flow", s], s, nll=nll + 2 - s, net="zero") for s in (0, 1)]
    runs += [evaluated(tmp_path / "c" / str(s), NATS["linear", s], s, flow="identity") for s in (0, 1)]
    found = compared(runs, tmp_path / "out", equal="steps")[1]["differences"]
    assert {name: set(row) for name, row in found.items()} == {"b": {"nelbo", "nll"}, "c": {"nelbo"}}
    rows = [row for by_kind in found.values() for row in by_kind.values()]
    assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["p"] for row in rows]))  # three in the family


def test_seeds_without_a_partner_are_named_and_methods_without_a_common_seed_are_untested(tmp_path):
    """Such a method keeps neither the others from their verdicts, nor the family from its size."""
    linear, indm = trained(tmp_path, "linear", (0, 1, 2)), trained(tmp_path, "indm", (3, 1, 0))
    apart = evaluated(tmp_path / "apart", NATS["flow", 3], 7, net="zero")
    text, stored = compared([*linear, *indm, apart], tmp_path / "out", equal="steps")
    row, alone = (stored["differences"][name]["nelbo"] for name in ("indm", "apart"))
    each = bits("indm", (0, 1)) - bits("linear", (0, 1))
    assert row["difference"] == pytest.approx(each.mean()) and row["seeds"] == 2 and row["left_out"] == [2, 3]
    assert row["p_holm"] == row["p"]  # the other is no test
    assert alone["verdict"] == "untested: no seed in common" and alone["left_out"] == [0, 1, 2, 7]
    assert alone["seeds"] == 0 and alone["difference"] is alone["standard_error"] is alone["p"] is None
    assert set(stored["differences"]["apart"]) == {"nelbo"} and "one training" not in text
    assert "2 (without a partner: 2, 3)" in text and "untested: no seed in common" in text


def test_the_page_says_what_the_text_says(tmp_path):
    """Of several methods, one with baselines, whose worst seed says whether it learned; of one run alone."""
    runs = [run for name in ("linear", "indm") for run in trained(tmp_path, name, (0, 1))]
    for run, value in zip(runs[2:], (2.0, 3.0), strict=True):
        numbers = {"bits_per_dim": value, "bits_per_dim_standard_error": 0.1}
        less = {"bits_per_dim": value - 2.5, "bits_per_dim_standard_error": 0.01}
        row = {"name": "a Gaussian", "bits_per_dim": 2.5, "bits_per_dim_standard_error": 0.02, "nelbo_difference": less}
        about = {
            "baselines": {"gaussian": row},
            "data_changed": False,
            "nelbo": {"settings": {}, "with_reconstruction": numbers},
        }
        changed(run, **about)
    changed(runs[0], entropy_nats=7.0)
    text, _ = compared(runs, tmp_path / "out", equal="steps")
    page = Reader((tmp_path / "out" / "comparison.html").read_text("utf-8"))
    tables = ["Likelihood and budget", "Differences between methods"]
    assert page.text("h2") == [*tables, "Samples"]
    assert page.images() == [(tmp_path / "out" / "comparison.png").read_bytes()]
    said = "indm, the worst of 2 seeds: The model (3.00 bits/dim) is not better than a Gaussian (2.50)."
    assert page.text("p")[0] == text.splitlines()[-1] == said
    cells = page.text("td")
    assert all(
        cell in cells for cell in ("baseline: a Gaussian", "2.500 ± 0.020", "2.500 ± 0.500", "entropy of the data")
    )
    text, stored = compared(runs[:1], tmp_path / "one")
    assert stored["differences"] == {}
    page = Reader((tmp_path / "one" / "comparison.html").read_text("utf-8"))
    assert page.text("h2") == ["Likelihood and budget", "Samples"]
