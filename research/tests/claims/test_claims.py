"""The claims' arithmetic: scipy's paired test, curves and records made by hand, and the exact score by autograd."""

import functools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from indm.sde.linear import VESDE, VPSDE
from indm.workbench.data.densities import EightGaussians, log_gaussian_mixture
from indm.workbench.evaluation.records import Record
from research.claims import claims, control
from research.claims.claims import CLAIMS, Claim, Evidence, Row, family_of, steps_to_goal
from research.claims.studies import STUDIES, VARIANTS
from research.claims.verdicts import HEADER, Judged, as_json, cells, judge, paired, summary
from research.measurements import MEASUREMENTS

INDM, LINEAR = [2.13, 2.31, 2.05, 2.4], [2.5, 2.44, 2.61, 2.48]


def record(folder, group="a", **measured):
    return Record(folder, group, {}, {"unit": "nats", "entropy_nats": None}, 0, measured)


def make_run(folder, nelbo, curve=((1, 1.0),), unit="nats", dims=2):
    """The record of a folder with per-example nats and a validation curve, as an evaluated run has them."""
    folder.mkdir(parents=True)
    lines = [{"step": step, "seconds": 2.0 * step, "valid_nelbo": value, "unit": unit} for step, value in curve]
    between = {"step": lines[-1]["step"], "seconds": 1.0, "loss": 0.0}  # training terms stand between them
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [between, *lines, between]))
    nats, bits = float(np.mean(nelbo)), float(np.mean(nelbo)) / (dims * math.log(2))
    numbers = {"nats": nats, "nats_standard_error": 0.0, "bits_per_dim": bits, "bits_per_dim_standard_error": 0.0}
    evaluation = {"unit": unit, "dims": dims, "entropy_nats": None, "nelbo": {"with_reconstruction": numbers}}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    np.savez(folder / "evaluation.npz", nelbo=np.asarray(nelbo))
    return Record(folder, folder.parent.name, {}, evaluation, 0, {})


def evidence(indm, linear, *cost):
    return Evidence("d", (indm, linear), *cost)


def compared(name, evidence):
    """The comparisons of the rows of a claim, by quantity."""
    (claim,) = [claim for claim in CLAIMS if claim.name.startswith(name)]
    return {row.quantity: row.measure(evidence) for row in claim.rows}


def judged(*comparisons):
    """The verdicts of comparisons as one family."""
    return judge([Judged("c", "d", str(i), comparison, (1, 2)) for i, comparison in enumerate(comparisons)])


def words(*comparisons):
    return [row.verdict for row in judged(*comparisons)]


# ── A claim as a value ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_family_is_every_row_on_every_data_set_that_has_its_variants():
    claim = Claim("7 mine", "…", (Row("q", claims.bound, variants=("flow", "vae")), Row("r", claims.bound)))
    variants = {"a": ("indm", "linear"), "b": ("indm", "linear", "flow", "vae")}
    mine = [(c.name, data, row.quantity) for c, data, row in family_of([claim], variants)]
    assert mine == [("7 mine", "a", "r"), ("7 mine", "b", "q"), ("7 mine", "b", "r")]
    assert (
        claim.variants == {"flow", "vae", "indm", "linear"} and claim.checks(evidence([], [])) == claim.control() == []
    )
    whole = family_of(CLAIMS, {data: study.variants for data, study in STUDIES.items()})
    assert len({(c.name, data, row.quantity) for c, data, row in whole}) == len(whole) == 4 * 10 + 2 * 2
    assert [c.name for c, *_ in whole] == sorted(c.name for c, *_ in whole)


def test_rows_whose_error_leaves_out_the_examples_that_seeds_share_say_so():
    """Each either passes the error of what its seeds share, or draws anew in every seed, or says so."""
    limited = {row.quantity.split(" ")[0] + " " + claim.name[0] for claim in CLAIMS for row in claim.rows if row.scope}
    assert limited == {"log 1", "transport 3", "prior: 4", "estimation: 4"}
    (row,) = [row for claim in CLAIMS for row in claim.rows if row.quantity.startswith("transport")]
    assert row.shown == f"{row.quantity}, for these examples" and CLAIMS[0].rows[0].shown == CLAIMS[0].rows[0].quantity


def test_claims_need_what_there_is():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.variants <= VARIANTS.keys() and set(claim.measurements) <= MEASUREMENTS.keys()


# ── The verdict ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_verdict_is_of_the_adjusted_p_and_the_claimed_sign():
    clear = paired([a - 9 for a in INDM], LINEAR, sign=-1)
    row, doubtful = judged(clear, paired(INDM, LINEAR, sign=-1))
    known = ttest_rel([a - 9 for a in INDM], LINEAR)
    assert (row.indm, row.linear) == pytest.approx((np.mean(INDM) - 9, np.mean(LINEAR)))
    assert row.difference == pytest.approx(row.indm - row.linear) and row.seeds == 4 and row.steps == (1, 2)
    assert row.difference / row.standard_error == pytest.approx(known.statistic)
    assert row.p == pytest.approx(known.pvalue) and row.p_holm == pytest.approx(2 * known.pvalue)
    assert (row.verdict, doubtful.verdict) == ("reproduced", "undecided")
    assert 0.05 < doubtful.p < 0.2 and doubtful.p_holm == pytest.approx(doubtful.p)  # the last of the family
    assert words(replace(clear, sign=1)) == ["opposite"] and words(paired([1.0], [9.0], sign=-1)) == ["untested"]
    # Alone it would be reproduced; beside twenty others it is not.
    near = paired([a - 0.4 for a in INDM], LINEAR, sign=-1)
    assert words(near) == ["reproduced"] and words(near, *[paired(INDM, INDM, sign=-1)] * 20)[0] == "undecided"


def test_what_all_seeds_share_adds_to_the_error():
    alone = paired(INDM, LINEAR, sign=-1).difference.standard_error
    shared = paired(INDM, LINEAR, sign=-1, shared_error=0.3).difference.standard_error
    assert shared == pytest.approx(math.hypot(alone, 0.3))


def test_a_row_shows_steps_and_both_p():
    clear, one = judged(paired([1.0, 1.2], [3.0, 3.3], sign=-1, unit="nats"), paired([0.5], [1.0], sign=-1))
    shown = dict(zip(HEADER, cells(clear), strict=True))
    assert shown["quantity"] == "0, nats" and shown["steps"] == "1 / 2" and shown["seeds"] == "2"
    assert shown["p"] == f"{clear.p:.2g}" == shown["Holm's p"] and shown["difference"].startswith("-2.0500 ± ")
    shown = dict(zip(HEADER, cells(one), strict=True))
    assert (shown["p"], shown["Holm's p"], shown["verdict"], shown["difference"]) == ("–", "–", "untested", "-0.5000")
    assert "untested" in summary([one]) and json.dumps(as_json(one), allow_nan=False)


# ── Fast training ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("curve", "steps"),
    [
        ([(100, 5.0), (200, 3.0), (400, 1.0)], (300, 600)),  # 2.0 is half way from 3 to 1
        ([(100, 5.0), (200, 2.5), (400, 1.5), (500, 0.0)], (300, 600)),
        ([(100, 5.0), (200, 3.0), (300, 2.0)], (300, 600)),  # reached exactly
        ([(100, 1.9), (200, 3.0)], (100, 600)),  # below it from the first
        ([(100, 3.0), (600, 4.0), (900, 1.0)], (800, 600)),  # later than the linear model; up before it goes down
        ([(100, 5.0), (600, 3.0), (900, 3.5)], (600, 450)),  # never: then the linear model has to reach INDM's best
    ],
)
def test_steps_to_the_goal_are_where_the_curve_crosses(tmp_path, curve, steps):
    curves = {"indm": curve, "linear": [(300, 4.0), (600, 2.0), (700, 2.5)]}  # the best counts, not the last
    indm, linear = (make_run(tmp_path / name, [0.0, 0.0], points) for name, points in curves.items())
    assert steps_to_goal(indm, linear) == pytest.approx(steps)
    assert steps_to_goal(linear, indm) == pytest.approx(steps[::-1])
    assert steps_to_goal(indm, indm)[0] == steps_to_goal(indm, indm)[1]


@pytest.mark.parametrize("unit", ["nats", "bits/dim"])
def test_fast_training_compares_the_bound_and_the_time(tmp_path, unit):
    generator = np.random.default_rng(0)
    common = generator.normal(size=50)  # what makes an example hard, for every model
    nelbos = {
        name: [level + common + 0.1 * generator.normal(size=50) for level in levels]
        for name, levels in (("indm", (2.0, 2.1, 1.9)), ("linear", (3.0, 3.05, 2.9)))
    }
    curves = {"indm": [(100, 5.0), (200, 3.0), (400, 1.0)], "linear": [(300, 4.0), (600, 2.0), (700, 2.5)]}
    indm, linear = (
        [make_run(tmp_path / name / str(i), nelbo, curves[name], unit) for i, nelbo in enumerate(found)]
        for name, found in nelbos.items()
    )
    bound, steps, seconds = compared("1", evidence(indm, linear, math.log(1.25), 0.01)).values()
    per_unit = 2 * math.log(2) if unit == "bits/dim" else 1.0
    known = ttest_rel(*([v.mean() / per_unit for v in nelbos[name]] for name in ("indm", "linear")))
    images = (np.mean(nelbos["indm"], 0) - np.mean(nelbos["linear"], 0)) / per_unit
    assert bound.difference.difference == pytest.approx(images.mean()) and bound.unit == unit
    assert bound.difference.standard_error_shared == pytest.approx(images.std(ddof=1) / math.sqrt(50))
    assert bound.difference.standard_error_over_seeds == pytest.approx(images.mean() / known.statistic)
    assert (steps.indm, steps.linear) == pytest.approx((math.log(300), math.log(600)))  # 600, not 700: the best
    assert seconds.difference.difference == pytest.approx(math.log(1.25 * 300 / 600)) and seconds.linear == steps.linear
    assert steps.difference.standard_error == pytest.approx(0, abs=1e-12)
    assert seconds.difference.standard_error == pytest.approx(0.01)  # of the cost, which all seeds share
    assert words(bound, steps, seconds) == ["reproduced"] * 3
    slow = compared("1", evidence(indm, linear, math.log(2.5), 0.01))  # fewer steps, more seconds
    assert words(*slow.values()) == ["reproduced", "reproduced", "opposite"]
    unsure = compared("1", evidence(indm, linear, math.log(2.5), 0.2))
    assert words(*unsure.values()) == ["reproduced", "reproduced", "undecided"]
    turned = compared("1", evidence(linear, indm, math.log(1.25), 0.01))
    assert set(words(*turned.values())) == {"opposite"}


def test_pretraining_and_ve_compare_the_bound_of_their_variants(tmp_path):
    levels = {"good": [[1.0, 2.0, 3.0, 4.0], [1.1, 2.1, 3.1, 4.1]], "bad": [[1.5, 2.5, 3.5, 4.5], [1.6, 2.6, 3.6, 4.6]]}
    runs = {
        name: [make_run(tmp_path / name / str(i), nelbo) for i, nelbo in enumerate(nelbos)]
        for name, nelbos in levels.items()
    }
    for name, variants in (("5", ("indm-pretrained", "indm")), ("6", ("indm-ve", "linear-ve"))):
        (claim,) = [claim for claim in CLAIMS if claim.name.startswith(name)]
        (row,) = claim.rows
        assert row.variants == variants
        found = row.measure(evidence(runs["good"], runs["bad"]))
        assert found.difference.difference == pytest.approx(-0.5) and found.sign == -1


# ── Training towards the likelihood ─────────────────────────────────────────────────────────────────────────────────


def with_gaps(tmp_path, gaps, error=0.05):
    early = {"step": 1, "gap": 99.0, "standard_error": 1.0}  # only the end counts
    return [record(tmp_path, gap=[early, {"step": 9, "gap": gap, "standard_error": error}]) for gap in gaps]


def test_mle_training_compares_the_sizes_of_the_gaps_and_checks_each(tmp_path):
    indm, linear = with_gaps(tmp_path, [0.03, -0.05, 0.04]), with_gaps(tmp_path, [0.9, 1.1, 1.0])
    (size,) = compared("2", evidence(indm, linear)).values()
    assert (size.indm, size.linear) == pytest.approx((0.04, 1.0)) and words(size) == ["reproduced"]  # sizes, not sums
    assert size.difference.standard_error_shared == pytest.approx(0.05 * math.sqrt(2))  # the examples of both
    assert words(*compared("2", evidence(linear, indm)).values()) == ["opposite"]
    near = with_gaps(tmp_path, [0.05, 0.01, -0.04])
    assert words(*compared("2", evidence(indm, near)).values()) == ["undecided"]

    ours, theirs = claims.gap_checks(evidence(indm, linear))
    assert (ours.outcome, theirs.outcome) == ("not told from zero", "not zero")
    assert (ours.value, theirs.value) == pytest.approx((0.02 / 3, 1.0))
    spread = np.std([0.03, -0.05, 0.04], ddof=1) / math.sqrt(3)
    assert ours.standard_error == pytest.approx(math.hypot(spread, 0.05))
    for gap, outcome in ((0.095, "not told from zero"), (-0.105, "not zero")):  # one seed: of the examples
        check, _ = claims.gap_checks(evidence(with_gaps(tmp_path, [gap]), linear))
        assert check.outcome == outcome and check.standard_error == 0.05


# ── Sampling ────────────────────────────────────────────────────────────────────────────────────────────────────────


def lossy(tmp_path, loss, frechet, transport):
    rows = [
        {"sampler": sampler, "steps": steps, "rms": 99.0, "sliced_wasserstein": size * loss,
         "frechet": 100 * size * loss if frechet else None}
        for sampler, steps, size in (("unipc", 5, 9), ("unipc", 10, 1), ("euler-maruyama", 10, 3), ("heun", 10, 9))
    ]  # fmt: skip
    costs = {"data": {"cost_per_dimension": transport}, "latent": {"cost_per_dimension": 7.0}}
    return record(tmp_path, errors={"discretization": rows}, transport=costs)


@pytest.mark.parametrize("frechet", [True, False])
def test_robust_sampling_compares_the_loss_of_ten_steps_and_the_transport_cost(tmp_path, frechet):
    indm = [lossy(tmp_path, v, frechet, 2 * v) for v in (0.1, 0.12, 0.09)]
    linear = [lossy(tmp_path, v, frechet, 2 * v) for v in (0.5, 0.6, 0.55)]
    found = compared("3", evidence(indm, linear))
    assert list(found) == [
        "distance of 10 steps of unipc to its converged samples",
        "distance of 10 steps of euler-maruyama to its converged samples",
        "transport cost E‖x_T − x_0‖² / d, data space",
    ]
    ours, theirs, unit = np.mean([0.1, 0.12, 0.09]), 0.55, 100 if frechet else 1
    for row, factor in zip(found.values(), (unit, 3 * unit, 2), strict=True):
        assert (row.indm, row.linear) == pytest.approx((factor * ours, factor * theirs)) and row.sign == -1
    assert [row.unit for row in found.values()] == ["Fréchet" if frechet else "sliced Wasserstein"] * 2 + [""]


def parted(tmp_path, whole, prior, discretization, estimation):
    errors = {
        "prior": {"rms": prior},
        "discretization": [{"sampler": "unipc", "steps": 5, "rms": 99.0}, {"sampler": "heun", "steps": 10, "rms": 99.0},
                           {"sampler": "unipc", "steps": 10, "rms": discretization}],
        "estimation": {"samples": {"sliced_wasserstein": estimation}},
    }  # fmt: skip
    rows = [{"sampler": "data", "steps": None, "sliced_wasserstein": 0.0}]
    rows += [
        {"sampler": sampler, "steps": steps, "sliced_wasserstein": whole if (sampler, steps) == ("unipc", 10) else 99.0}
        for sampler in ("heun", "unipc")
        for steps in (5, 10)
    ]
    return record(tmp_path, quality=rows, errors=errors)


def test_the_sampling_error_compares_the_parts_and_checks_that_they_bound_the_whole(tmp_path):
    indm = [parted(tmp_path, 0.5, 0.1, 0.3, 0.2), parted(tmp_path, 0.52, 0.12, 0.3, 0.22)]
    linear = [parted(tmp_path, 1.5, 0.1, 0.5, 0.6), parted(tmp_path, 1.5, 0.14, 0.51, 0.59)]
    found = compared("4", evidence(indm, linear))
    assert [name.split(":")[0] for name in found] == ["prior", "discretization", "estimation"]
    for row, means in zip(found.values(), ((0.11, 0.12), (0.3, 0.505), (0.21, 0.595)), strict=True):
        assert (row.indm, row.linear) == pytest.approx(means) and row.sign == -1
    (check,) = claims.bounds_check(evidence(indm, linear))
    assert check.outcome == "violated" and check.value == pytest.approx(-0.3)  # by every linear run
    for whole, outcome in ((0.6, "holds"), (0.61, "violated")):
        edge = [*indm[:1], parted(tmp_path, whole, 0.125, 0.25, 0.225)]
        assert claims.bounds_check(evidence(indm, edge))[0].outcome == outcome


# ── The control ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()])
@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_the_exact_score_is_the_gradient_of_the_noised_mixture(sde, factor):
    density = EightGaussians()
    for t in (1e-5, 0.01, 0.3, 1.0):
        each = torch.full((64,), t, dtype=torch.float64)
        alpha, sigma = sde.alpha(each)[0].item(), sde.sigma(each)[0].item()
        std = math.hypot(alpha * density.std, sigma)  # of the components at t
        z_t = (std * torch.randn(64, 2, dtype=torch.float64) + 0.5).requires_grad_()
        log_p = log_gaussian_mixture(z_t, alpha * density.centres, torch.full((8,), 1 / 8), std)
        (score,) = torch.autograd.grad(log_p.sum(), z_t)
        found = control.MixtureScore(sde, factor)(z_t.detach(), each)
        assert torch.allclose(found, factor * score, rtol=1e-6, atol=1e-9)


@pytest.mark.long
def test_control_is_as_expected_and_would_notice(monkeypatch):
    make = functools.partial(CLAIMS[1].control, points=200)
    exact, wrong = make()
    assert (exact.outcome, wrong.outcome) == ("as expected", "as expected")
    assert abs(exact.value) < 3 * exact.standard_error and wrong.value < -3 * wrong.standard_error
    assert "with 1.1 times the exact score" in wrong.quantity

    made = control.MixtureScore
    monkeypatch.setattr(control, "MixtureScore", lambda sde, factor: made(sde, {1.0: 1.1, 1.1: 1.0}[factor]))
    assert [check.outcome for check in make()] == ["NOT as expected"] * 2
