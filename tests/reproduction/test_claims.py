"""The claims' arithmetic: scipy's paired test, curves and records made by hand, and the exact score by autograd."""

import functools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from indm.data.densities import EightGaussians, log_gaussian_mixture
from indm.report.measurements import MEASUREMENTS
from indm.report.records import Record
from indm.reproduction import claims, control
from indm.reproduction.claims import CLAIMS, Claim, Evidence, steps_to_goal
from indm.reproduction.studies import VARIANTS
from indm.reproduction.verdicts import judge, paired
from indm.sde.linear import VESDE, VPSDE

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
    return Evidence("d", {"indm": indm, "linear": linear}, *cost)


def values(rows, start):
    """The one row whose quantity begins so."""
    (row,) = [row for row in rows if row.quantity.startswith(start)]
    return row


# ── A claim as a value ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_claim_is_judged_where_all_its_variants_were_trained():
    row = paired("q", [1.0, 2.0], [3.0, 5.0], sign=-1)
    claim = Claim("7 mine", "…", lambda e: [row] * len(e.records), variants=("indm", "flow"), control=lambda: [row])
    (verdict, _) = claim.verdicts(Evidence("d", {"indm": [], "flow": []}))
    assert (verdict.claim, verdict.data) == ("7 mine", "d") and vars(row).items() <= vars(verdict).items()
    assert claim.verdicts(Evidence("d", {"indm": [], "linear": []})) == []
    assert [(v.claim, v.data, v.difference) for v in claim.controls()] == [("7 mine", "eight Gaussians", -2.5)]
    assert Claim("8", "…", lambda e: []).controls() == []


def test_claims_need_what_there_is():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert set(claim.variants) <= VARIANTS.keys() and set(claim.measurements) <= MEASUREMENTS.keys()


# ── The test ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("error", [1e-6, 0.3, 40.0])
def test_a_difference_within_two_standard_errors_is_a_tie(sign, error):
    for side in (1, -1):
        assert judge(side * 1.9 * error, error, sign) == "tie"
        assert judge(side * 2.1 * error, error, sign) == ("reproduced" if side == sign else "failed")
    assert judge(0.0, error, sign) == "tie"
    for broken in (math.nan, math.inf, -math.inf):
        assert judge(broken, error, sign) == "failed"


@pytest.mark.parametrize(("sign", "verdict"), [(-1, "reproduced"), (1, "failed")])
def test_paired_is_the_paired_t_test(sign, verdict):
    found, known = paired("q", INDM, LINEAR, sign=sign), ttest_rel(INDM, LINEAR)
    assert (found.indm, found.linear) == pytest.approx((np.mean(INDM), np.mean(LINEAR)))
    assert found.difference == pytest.approx(np.mean(INDM) - np.mean(LINEAR)) and found.difference < 0
    assert found.difference / found.standard_error == pytest.approx(known.statistic)
    assert found.test == f"paired over 4 seeds, p = {known.pvalue:.2g}"
    assert found.verdict == verdict
    assert paired("q", LINEAR, INDM, sign=sign).verdict != verdict


def test_paired_takes_out_what_seeds_share():
    shared = np.array([0.0, 5.0, -3.0, 9.0])
    found = paired("q", list(INDM + shared), list(LINEAR + shared), sign=-1)
    assert found.standard_error == pytest.approx(paired("q", INDM, LINEAR, sign=-1).standard_error)
    with pytest.raises(ValueError, match="zip"):
        paired("q", INDM, LINEAR[:3], sign=-1)


def test_the_error_of_the_examples_is_the_least():
    alone = paired("q", INDM, LINEAR, sign=-1)
    assert paired("q", INDM, LINEAR, sign=-1, least_error=0.5 * alone.standard_error) == alone
    wide = paired("q", INDM, LINEAR, sign=-1, least_error=abs(alone.difference) / 1.9)
    assert wide.standard_error == abs(alone.difference) / 1.9 and wide.verdict == "tie"
    one = paired("q", [1.0], [1.5], sign=-1, least_error=0.2)
    assert (one.standard_error, one.test, one.verdict) == (0.2, "one seed", "reproduced")
    unknown = paired("q", [1.0], [1.5], sign=-1)  # without any error there is nothing to judge by
    assert math.isnan(unknown.standard_error) and unknown.verdict == "untested" and unknown.difference == -0.5
    same = paired("q", [0.0, 0.0], [1.0, 1.0], sign=1)  # no spread, and yet a difference
    assert same.verdict == "failed" and same.standard_error == 0
    assert paired("q", [1.0, 1.0], [1.0, 1.0], sign=1).verdict == "tie"


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
    rows = claims.fast_training(evidence(indm, linear, math.log(1.25), 0.01))
    bound = values(rows, "test NELBO")
    per_unit = 2 * math.log(2) if unit == "bits/dim" else 1.0
    known = ttest_rel(*([v.mean() / per_unit for v in nelbos[name]] for name in ("indm", "linear")))
    images = (np.mean(nelbos["indm"], 0) - np.mean(nelbos["linear"], 0)) / per_unit
    assert bound.difference == pytest.approx(images.mean()) and bound.verdict == "reproduced"
    least = images.std(ddof=1) / math.sqrt(50)
    assert bound.standard_error == pytest.approx(max(least, bound.difference / known.statistic))
    assert bound.test.endswith(f"p = {known.pvalue:.2g}") and unit in bound.quantity
    steps, seconds = values(rows, "log of the steps"), values(rows, "log of the seconds")
    assert (steps.indm, steps.linear) == pytest.approx((math.log(300), math.log(600)))  # 600, not 700: the best
    assert seconds.difference == pytest.approx(math.log(1.25 * 300 / 600)) and seconds.linear == steps.linear
    assert steps.standard_error == pytest.approx(0, abs=1e-12) and seconds.standard_error == 0.01
    assert {row.verdict for row in rows} == {"reproduced"}

    for cost, error, verdict in ((2.5, 0.01, "failed"), (2.5, 0.2, "tie"), (1.25, 0.4, "tie")):
        slow = claims.fast_training(evidence(indm, linear, math.log(cost), error))  # fewer steps, more seconds
        assert [row.verdict for row in slow[1:]] == ["reproduced", verdict]
    turned = claims.fast_training(evidence(linear, indm, math.log(1.25), 0.01))
    assert {row.verdict for row in turned} == {"failed"}


def test_pretraining_and_both_sdes_judge_the_bound_with_the_error_of_the_examples(tmp_path):
    good, bad = [[1.0, 2.0, 3.0, 4.0], [1.1, 2.1, 3.1, 4.1]], [[1.5, 2.5, 3.5, 4.5], [1.6, 2.6, 3.6, 4.6]]
    noisy = [[9.0, 2.0, -3.0, 3.0], [9.1, 2.1, -2.9, 3.1]]  # better by 0.25, by a few examples alone
    runs = {
        name: [make_run(tmp_path / name / str(i), nelbo) for i, nelbo in enumerate(nelbos)]
        for name, nelbos in (("good", good), ("bad", bad), ("noisy", noisy))
    }
    pretrained = {"indm-pretrained": runs["good"], "indm": runs["bad"]}
    (row,) = claims.pretraining(Evidence("d", pretrained))
    assert row.difference == pytest.approx(-0.5) and row.verdict == "reproduced"
    turned = {"indm-pretrained": runs["bad"], "indm": runs["good"]}
    assert claims.pretraining(Evidence("d", turned))[0].verdict == "failed"
    pairs = {"indm": runs["bad"], "linear": runs["good"], "indm-ve": runs["noisy"], "linear-ve": runs["bad"]}
    vp, ve = claims.both_sdes(Evidence("d", pairs))
    assert "under VP" in vp.quantity and vp.difference == pytest.approx(0.5) and vp.verdict == "failed"
    each = np.mean(noisy, 0) - np.mean(bad, 0)
    assert "under VE" in ve.quantity and ve.difference == pytest.approx(each.mean()) and ve.verdict == "tie"
    assert ve.standard_error == pytest.approx(each.std(ddof=1) / 2)


# ── Training towards the likelihood ─────────────────────────────────────────────────────────────────────────────────


def with_gaps(tmp_path, gaps, error=0.05):
    early = {"step": 1, "gap": 99.0, "standard_error": 1.0}  # only the end counts
    return [record(tmp_path, gap=[early, {"step": 9, "gap": gap, "standard_error": error}]) for gap in gaps]


def test_mle_training_is_reproduced_where_indm_closes_the_gap(tmp_path):
    indm, linear = with_gaps(tmp_path, [0.03, -0.05, 0.04]), with_gaps(tmp_path, [0.9, 1.1, 1.0])
    size, ours, theirs = claims.mle_training(evidence(indm, linear))
    assert (size.indm, size.linear) == pytest.approx((0.04, 1.0)) and size.verdict == "reproduced"  # sizes, not sums
    least = 0.05 * math.sqrt(2)  # of the examples, which all seeds share
    assert size.standard_error == pytest.approx(max(paired_error([0.03, 0.05, 0.04], [0.9, 1.1, 1.0]), least))
    assert ours.verdict == "zero within two standard errors" and theirs.verdict == "not zero"
    assert ours.indm == ours.difference == pytest.approx(0.02 / 3) and math.isnan(ours.linear)
    assert theirs.linear == theirs.difference == pytest.approx(1.0) and math.isnan(theirs.indm)
    assert ours.standard_error == pytest.approx(0.05)  # examples, which all seeds share
    assert theirs.standard_error == pytest.approx(0.1 / math.sqrt(3))  # seeds
    assert [row.verdict for row in claims.mle_training(evidence(linear, indm))] == ["failed", "not zero", ours.verdict]
    assert claims.mle_training(evidence(indm, with_gaps(tmp_path, [0.05, 0.01, -0.04])))[0].verdict == "tie"


def paired_error(a, b):
    return abs(np.mean(a) - np.mean(b)) / abs(ttest_rel(a, b).statistic)


def test_mle_training_with_one_seed_has_the_error_of_the_examples(tmp_path):
    for gap, verdict in ((0.095, "zero within two standard errors"), (-0.105, "not zero")):
        rows = claims.mle_training(evidence(with_gaps(tmp_path, [gap]), with_gaps(tmp_path, [2.0])))
        assert rows[1].verdict == verdict and rows[1].standard_error == 0.05
        assert rows[0].standard_error == pytest.approx(0.05 * math.sqrt(2)) and rows[0].verdict == "reproduced"


# ── Sampling ────────────────────────────────────────────────────────────────────────────────────────────────────────


def quality(frechet, sliced):
    """Rows of two samplers: unipc at 5, 10 and 100 steps, euler-maruyama at 20, 50 and 1000."""
    rows = [{"sampler": "data", "steps": None, "frechet": frechet and 0.0, "sliced_wasserstein": 0.0}]
    names = [("unipc", n) for n in (5, 10, 100)] + [("euler-maruyama", n) for n in (20, 50, 1000)]
    for i, (sampler, steps) in enumerate(names):
        row = {"sampler": sampler, "steps": steps, "frechet": frechet and frechet[i], "sliced_wasserstein": sliced[i]}
        rows.append(row)
    return rows


def test_robust_sampling_counts_what_few_steps_cost(tmp_path):
    def group(losses, frechet=True):
        found = []
        for i, loss in enumerate(losses):
            sliced = [0.2 + loss, 0.2 + loss / 2, 0.2, 0.7 + loss, 0.7, -9.0]
            rows = quality([10 * v for v in sliced] if frechet else None, sliced)
            ratio = 1.2 + loss + 0.01 * i
            costs = {"data": {"ratio": ratio, "cost_per_dimension": 2 * ratio}}
            found.append(
                record(tmp_path, quality=rows, transport=costs | {"latent": {"ratio": 7.0, "cost_per_dimension": 7.0}})
            )
        return found

    rows = claims.robust_sampling(evidence(group([0.1, 0.12, 0.09]), group([0.5, 0.4, 0.45])))
    quantities = [row.quantity for row in rows]
    assert quantities == [
        "Fréchet distance, unipc, 5 less 100 steps",
        "Fréchet distance, unipc, 10 less 100 steps",
        "sliced Wasserstein distance, unipc, 5 less 100 steps",
        "sliced Wasserstein distance, unipc, 10 less 100 steps",
        "Fréchet distance, euler-maruyama, 20 less 50 steps",
        "sliced Wasserstein distance, euler-maruyama, 20 less 50 steps",
        "transport cost E‖x_T − x_0‖² / d, data space",
        "transport cost over the optimal one, data space",
    ]
    ours, theirs = np.mean([0.1, 0.12, 0.09]), np.mean([0.5, 0.4, 0.45])
    for row, factor in zip(rows, (10, 5, 1, 0.5, 10, 1), strict=False):
        assert (row.indm, row.linear) == pytest.approx((factor * ours, factor * theirs)) and row.verdict == "reproduced"
    assert [row.indm for row in rows[-2:]] == pytest.approx([2 * (1.21 + ours), 1.21 + ours])
    assert rows[-2].verdict == rows[-1].verdict == "reproduced"
    turned = claims.robust_sampling(
        evidence(group([0.5, 0.4, 0.45], frechet=False), group([0.1, 0.12, 0.09], frechet=False))
    )
    assert len(turned) == 5 and {row.verdict for row in turned} == {"failed"}


def parted(tmp_path, whole, prior, discretization, estimation):
    errors = {
        "prior": {"rms": prior, "samples": {"sliced_wasserstein": prior}},
        "discretization": [{"steps": 5, "rms": 99.0}, {"steps": 10, "rms": discretization}],
        "estimation": {"samples": {"sliced_wasserstein": estimation}},
    }
    rows = quality(None, [99.0, whole, 99.0, 99.0, 99.0, 99.0])
    return record(tmp_path, quality=rows, errors=errors)


def test_the_sampling_error_compares_the_parts_and_their_sum_to_the_whole(tmp_path):
    indm = [parted(tmp_path, 0.5, 0.1, 0.3, 0.2), parted(tmp_path, 0.52, 0.12, 0.3, 0.22)]
    linear = [parted(tmp_path, 1.5, 0.1, 0.5, 0.6), parted(tmp_path, 1.5, 0.14, 0.51, 0.59)]
    rows = claims.sampling_error(evidence(indm, linear))
    assert len(rows) == 5
    for name, ours, theirs, verdict in (
        ("whole", 0.51, 1.5, "reproduced"),
        ("prior", 0.11, 0.12, "tie"),
        ("discretization", 0.3, 0.505, "reproduced"),
        ("estimation", 0.21, 0.595, "reproduced"),
    ):
        row = values(rows, name)
        assert (row.indm, row.linear) == pytest.approx((ours, theirs)) and row.verdict == verdict
        assert row.quantity == f"{name}, 10 steps of UniPC"
    check = values(rows, "check: sum of the parts less the whole")
    assert (check.indm, check.linear) == pytest.approx((np.mean([0.1, 0.12]), np.mean([-0.3, -0.26])))
    assert check.verdict == "violated"  # by every linear run
    for whole, verdict in ((0.6, "holds"), (0.61, "violated")):
        edge = [*indm[:1], parted(tmp_path, whole, 0.125, 0.25, 0.225)]
        assert claims.sampling_error(evidence(indm, edge))[-1].verdict == verdict


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


def test_control_is_as_expected_and_would_notice(monkeypatch):
    claim = replace(CLAIMS[1], control=functools.partial(control.exact_score_control, points=200))
    exact, wrong = claim.controls()
    assert (exact.verdict, wrong.verdict) == ("as expected", "as expected")
    assert abs(exact.difference) < 3 * exact.standard_error and wrong.difference < -3 * wrong.standard_error
    assert {exact.claim, wrong.claim} == {"2 MLE training"}  # it stands beside what it is the control of
    assert "with 1.1 times the exact score" in wrong.quantity

    made = control.MixtureScore
    monkeypatch.setattr(control, "MixtureScore", lambda sde, factor: made(sde, {1.0: 1.1, 1.1: 1.0}[factor]))
    assert [row.verdict for row in claim.controls()] == ["NOT as expected"] * 2
