"""What the final trainings say, from rows whose differences are known."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from research.records import Records
from research.verdict import results
from research.verdict.final import CHOSEN

UNIT = 12 * math.log(2)  # nats of a bit/dim
NOISES = (0.1, 0.5, 1.0, 2.0, 5.0)


def row(shift, seed, rng):
    """Every measure is ``shift`` above the same of linear diffusion but for noise of the seed."""
    of = 1.0 + shift + 0.001 * rng.normal()
    nats = rng.normal(2.0, 0.5, 300)
    bits = {"nats": of * UNIT, "bits_per_dim": of}
    levels = [{"noise": [0.1 * k, 0.1 * (k + 1)], "bits_per_dim": of} for k in range(2)]
    samplers = [(s, n) for s in ("unipc", "euler-maruyama") for n in (2, 4, 8, 16, 32)]
    at_noise = {"drift": 2 * of, "drift_beyond_linear": of, "volatility": of, "anisotropy": of, "accuracy": of}
    return {
        "steps": 10, "curve": [[600, of], [1200, of]],
        "bound": {"with_reconstruction": bits, "by_level": levels, "terms": {"flow": bits}},
        "gap": {"bits_per_dim": of, "nll_bits_per_dim": of},
        "few_steps": [{"sampler": s, "evaluations": n, "frechet": of, "squared": of} for s, n in samplers],
        "few_steps_shrunk": [{"sampler": s, "evaluations": n, "frechet": of + 1} for s, n in samplers],
        "theorem": {"prior_kl": of, "discretization_squared": of, "estimation_frechet": of},
        "prior_distance": {"kl": of, "exact_kl": of, "kurtosis": of},
        "displacement": {
            "size": of, "constant": of, "frequency": [0.0, 0.25, 0.5], "x": [[2.0, 1.0, 1.0]] * 3,
            "moved": [[shift, shift, 2 * shift]] * 3,
        },
        **{name: [{"noise": n} | at_noise for n in NOISES] for name in ("behaviour", "class_probe", "class_control")},
        "nelbo_nats": ((2.0 + of + 0.1 * np.sin(nats)) * UNIT).tolist(),
    }  # fmt: skip


@pytest.fixture
def table(tmp_path):
    """Five seeds on CIFAR-10, the spline 0.05 above linear diffusion and INDM 0.04; a part of one on clothes."""
    found, rng = Records(tmp_path / "final.csv"), np.random.default_rng(0)
    for seed in range(1, 6):
        for name, shift in zip(CHOSEN, (0.0, 0.05, 0.04), strict=True):
            found.at(data="cifar10-16", variant=name, seed=seed).add(row(shift, seed, rng))
    for name in ("linear", "spline"):
        found.at(data="clothes-16", variant=name, seed=1).add(row(0.0, 1, rng))
    return found


def test_the_family_is_of_the_images_and_counts_what_was_not_made(table):
    linear, spline = results.judged(table)
    pairs = {}
    for other in ("linear", "spline"):
        own = (results.bits(results.runs_of(table, "cifar10-16")[name]) for name in ("indm", other))
        pairs[other] = np.subtract(*own)
    for found, other in ((linear, "linear"), (spline, "spline")):
        assert found["baseline"] == other and found["seeds"] == 5
        over = pairs[other].mean(1)
        assert found["difference"] == pytest.approx(over.mean(), abs=1e-6)
        shared = pairs[other].mean(0).std(ddof=1) / math.sqrt(300)
        assert found["standard_error"] == pytest.approx(math.hypot(over.std(ddof=1) / math.sqrt(5), shared), rel=1e-3)
    assert linear["p_holm"] == pytest.approx(4 * linear["p"])


def test_bits_are_nats_of_each_image_over_the_dimensions(table):
    runs = results.runs_of(table, "cifar10-16")["linear"]
    np.testing.assert_allclose(results.bits(runs), [np.array(r["nelbo_nats"]) / UNIT for r in runs], rtol=1e-5)


def test_the_interval_is_students():
    values = np.array([0.1, 0.2, 0.4])
    found = results.interval({"seeds": 3, "difference": values.mean(), "standard_error": values.std(ddof=1) / 3**0.5})
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("difference", "p", "low", "high", "word"),
    [
        (-0.010, 0.05, -0.02, -0.001, "gain"),
        (0.010, 0.05, 0.001, 0.02, "loss"),
        (-0.009, 0.01, -0.011, -0.007, "undecided"),
        (-0.005, 0.01, -0.009, -0.001, "no difference"),
        (0.005, 0.3, -0.0099, 0.0099, "no difference"),
        (0.02, 0.06, -0.01, 0.05, "undecided"),
        (-0.02, None, -math.inf, math.inf, "untested"),
    ],
)
def test_words_are_those_of_the_design(difference, p, low, high, word):
    assert results.word({"difference": difference, "p_holm": p, "low": low, "high": high}) == word


def test_a_difference_needs_one_sign_and_twice_its_error():
    assert "**" in results.cell([1.0, 1.1, 1.2], [0.5, 0.6, 0.8], ".2f")
    assert "**" not in results.cell([1.0, 1.1, 0.9], [0.5, 0.6, 1.0], ".2f"), "one seed has another sign"
    assert "**" not in results.cell([1.0, 1.001], [0.9, 0.5], ".2f"), "one sign, within two errors"
    assert "**" not in results.cell([1.0], [0.0], ".2f") and results.cell([1.0], [math.nan], ".2f") == ""


def rows_of(text):
    return {line.split("|")[1].strip(): [part.strip() for part in line.split("|")[2:-1]] for line in text.splitlines()}


def test_measures_are_compared_in_pairs(table):
    rows = rows_of(results.measure_table(table, "cifar10-16"))
    assert len(rows) == len(results.MEASURES) + 2
    runs = results.runs_of(table, "cifar10-16")
    for place, other in ((3, "linear"), (4, "spline")):
        values = [
            a["gap"]["nll_bits_per_dim"] - b["gap"]["nll_bits_per_dim"]
            for a, b in zip(runs["indm"], runs[other], strict=True)
        ]
        error = np.std(values, ddof=1) / math.sqrt(5)
        assert rows["NLL, bits/dim"][place] == f"**{np.mean(values):+.4f} ± {error:.4f}**"
    moved = rows["displacement above a quarter cycle"]
    assert moved[0] == "" and moved[2] == "0.500 ± 0.000" and moved[3] == ""
    assert rows["images above a quarter cycle"][0] == "0.250 ± 0.000"
    control, plain = (rows[f"Fréchet, 16 of Euler–Maruyama{end}"] for end in (", linear's latent at 0.7", ""))
    assert control[0].startswith("2.0") and plain[0].startswith("1.0") and control[1:3] == plain[1:3]


def test_a_measure_that_a_row_lacks_is_left_out(table):
    """Of linear diffusion the control is never the measure without it."""
    (old,) = table.at(data="cifar10-16", variant="linear", seed=1).rows()
    del old["few_steps_shrunk"]
    table.at(data="cifar10-16", variant="linear", seed=1).add(old)
    rows = rows_of(results.measure_table(table, "cifar10-16"))
    assert len(rows) == len(results.MEASURES) + 2 - 3 and not [name for name in rows if "latent at 0.7" in name]


def test_levels_and_curves_have_a_row_for_each(table):
    rows = rows_of(results.part_table(table, "cifar10-16"))
    assert [*rows][2:] == ["score, σ/α 0 to 0.1", "score, σ/α 0.1 to 0.2", "log-determinant", "NELBO"]
    assert [part.startswith(f"**{sign}0.0") for part, sign in zip(rows["NELBO"][3:], "++-", strict=True)] == [True] * 3
    curve = rows_of(results.curve_table(table, "cifar10-16"))
    assert [*curve][2:] == ["600", "1,200"] and curve["600"][2].startswith("**+0.0")


def test_a_seed_without_all_three_or_the_measure_is_left_out(table):
    assert [len(rows) for rows in results.runs_of(table, "clothes-16").values()] == [0, 0, 0]
    for name in CHOSEN:
        (found,) = table.at(data="cifar10-16", variant=name, seed=2).rows()
        table.at(data="cifar10-16", variant=name, seed=2).add({k: v for k, v in found.items() if k != "gap"})
    for measure, seeds in (("bound", [1, 2, 3, 4, 5]), ("gap", [1, 3, 4, 5])):
        runs = results.runs_of(table, "cifar10-16", measure)
        assert [[row["seed"] for row in own] for own in runs.values()] == [seeds] * 3


def test_the_figure_is_drawn(table, tmp_path):
    results.figure(table, "cifar10-16", tmp_path / "measures.png")
    assert (tmp_path / "measures.png").stat().st_size > 10_000
