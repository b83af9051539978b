"""The NLL against closed forms, with and without a flow, and the report against direct computation."""

import dataclasses
import json
import math
import re
import warnings

import numpy as np
import pytest
import torch
from closed_form import EACH_SDE, SDES, GaussianScore, MixtureScore, gaussian, normal_log_prob, within
from tqdm import tqdm

import indm
from indm.flows import ActNorm, Identity
from indm.flows.base import ExactFlow
from indm.gaussian import GaussianReference
from indm.likelihood import LikelihoodReport, latent_reference, log_likelihood
from indm.model import INDM, build_model
from indm.objective import nelbo
from indm.ode import OUT_OF_REACH, basis
from indm.scaling import Scaling
from indm.score import is_smooth
from indm.sde.linear import VPSDE
from indm.workbench.data.base import load_data, stack
from indm.workbench.evaluation.likelihood import draw_all, evaluate, level_table
from indm.workbench.evaluation.mean_nll import RepeatableDraws
from indm.workbench.evaluation.measures import NLL, Bound, Estimate, SamplerBound
from indm.workbench.evaluation.statistics import in_units

NUMBERS = {
    "nats",
    "nats_standard_error",
    "nats_estimator_noise",
    "bits_per_dim",
    "bits_per_dim_standard_error",
    "bits_per_dim_estimator_noise",
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def mixture(name="vp", dtype=torch.float64):
    means = torch.tensor([[0.9, 0.3], [-0.6, 0.8], [-0.1, -1.1]], dtype=dtype)
    stds, weights = torch.tensor([0.3, 0.5, 0.2], dtype=dtype), torch.tensor([0.5, 0.3, 0.2], dtype=dtype)
    score = MixtureScore(SDES[name](), means, stds, weights)
    score.is_smooth = False  # solved like a network that says nothing
    return score


@pytest.fixture(params=EACH_SDE)
def name(request):
    return request.param


# ── closed forms ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "shape, n, exact",
    [
        ((2,), 500, True),
        pytest.param((2,), 500, False, marks=pytest.mark.long),
        pytest.param((3, 8, 8), 12, True, marks=pytest.mark.long),
        ((3, 8, 8), 12, False),
    ],
)
def test_gaussian_data_with_the_exact_score(name, shape, n, exact):
    """float32: the mean to 1e-3 nats/dim of the closed form at default tolerances, and at 1e-5 each to 1e-3 of the
    density that the prior has at ε when it is carried back exactly (p_T is not π to a few thousandths a sample)."""
    score, d = gaussian(name, shape), math.prod(shape)
    x = score.sample(n, seeded(0), dtype=torch.float32)
    report = log_likelihood(INDM(Identity(), score), x, exact=exact, generator=seeded(1))
    assert report.log_prob.dtype == torch.float32
    assert abs((report.log_prob - score.log_prob(x)).mean().item()) / d < 1e-3
    assert report.settings["divergence"].startswith("exact" if exact else "Hutchinson")
    tight = log_likelihood(INDM(Identity(), score), x, exact=exact, nll_error=1e-4, generator=seeded(1))
    assert (tight.log_prob - score.flow_log_prob(x)).abs().max().item() / d < 1e-3


@pytest.mark.parametrize("shape", [(2,), (3, 8, 8)])
@pytest.mark.parametrize("exact", [True, False])
def test_few_steps_are_exact_where_the_reference_is(name, shape, exact):
    """With the data's own law as reference the state rests, and of the divergence nothing is left: neither steps nor
    probes matter, and the solver says so."""
    score, d = gaussian(name, shape), math.prod(shape)
    x = score.sample(400 // d, seeded(0))
    reference = GaussianReference(score.mean.flatten(), score.variance.flatten())
    options = {"reference": reference, "exact": exact, "probes": 2}
    few, many = (log_likelihood(INDM(Identity(), score), x, steps=n, **options, generator=seeded(1)) for n in (8, 16))
    assert few.nfe == 18 and few.settings["steps"] == 8
    torch.testing.assert_close(few.log_prob, many.log_prob, rtol=1e-9, atol=1e-9)
    assert few.solver_error.max() < 1e-8
    assert (few.log_prob - score.flow_log_prob(x)).abs().max().item() / d < 1e-3


def test_the_trace_of_a_law_is_that_of_its_flow():
    """By the slope of its log-volume, and by the probes that make the estimate exact."""
    law = GaussianReference.fit(torch.randn(40, 6, generator=seeded(0)).double() @ torch.randn(6, 6).double())
    clock = torch.tensor([-3.0, 0.5], dtype=torch.float64, requires_grad=True)
    z = torch.zeros(2, 6, dtype=torch.float64)
    (slope,) = torch.autograd.grad(law.log_volume(clock).sum(), clock)
    clock = clock.detach()
    torch.testing.assert_close(law.trace(clock, z), slope)
    torch.testing.assert_close(law.divergence(basis(z), clock), slope)


def test_steps_converge_and_the_stated_error_covers_the_true_one(name):
    """Curved paths, without a reference: the same probes, ever more steps."""
    score = mixture(name)
    model, x = INDM(Identity(), score), score.sample(80, seeded(0))

    def solved(**options):
        return log_likelihood(model, x, exact=False, **options, generator=seeded(1))

    exact, errors = solved(steps=192).log_prob, []
    for n in (48, 96):
        report = solved(steps=n)
        off = (report.log_prob - exact).abs()
        assert (report.solver_error >= off).double().mean() > 0.95
        errors.append(off.mean().item())
    assert errors[1] < errors[0] / 8 and errors[1] < 1e-3


@pytest.mark.filterwarnings("ignore:the ODE")
def test_samples_are_solved_until_their_error_is_small():
    """By their own numbers of steps: alone, each has the result that it has in the batch."""
    score = mixture()
    model, x = INDM(Identity(), score), score.sample(20, seeded(0))
    tol = 1e-3 * 2 * math.log(2)
    first, together = (log_likelihood(model, x, exact=True, **o, generator=seeded(1)) for o in ({"steps": 64}, {}))
    assert (first.solver_error > tol).any() and (first.solver_error <= tol).any()
    assert (together.solver_error <= tol).all()
    kept = first.solver_error <= tol
    assert torch.equal(together.log_prob[kept], first.log_prob[kept])
    assert together.nfe > first.nfe == 137
    tight = log_likelihood(model, x, exact=True, nll_error=1e-30, generator=seeded(1))
    assert (tight.solver_error > 0).all() and tight.nfe == sum(2 * n + 1 + n // 8 for n in (64, 128, 256))


def test_the_error_of_the_importance_weighted_bound_is_the_mean_of_its_draws_by_their_weights():
    """Of the same draws, solved as rows of their own; between the least and the largest of them."""
    score = mixture(dtype=torch.float32)
    model = INDM(Identity(), score)
    x, _ = model.from_data(score.sample(10, seeded(0)).float())
    weighted = indm.log_probability(model, x, draws=5, batch_size=50, steps=16, generator=seeded(1))
    each = log_likelihood(model, x.repeat_interleave(5, 0), exact=True, steps=16, generator=seeded(1))
    error, weight = (v.unflatten(0, (10, 5)).numpy() for v in (each.solver_error, each.log_prob.exp()))
    expected = [np.average(*row, weights=share) for *row, share in zip(error, weight, strict=True)]
    assert weighted.solver_error.tolist() == pytest.approx(expected, rel=1e-4) and error.std() > 1e-4
    assert bool((weighted.solver_error <= torch.from_numpy(error).amax(1) * 1.0001).all())


def test_a_network_that_is_smooth_takes_half_the_steps_and_states_an_error_that_covers():
    model = indm.from_pretrained("digits-pretrained")
    data = load_data(name="digits")
    x, log_q = model.from_data(stack(data.test, 8), generator=seeded(0))

    def solved(**options):
        law = latent_reference(model, stack(data.train, 200))
        return log_likelihood(model, x, log_q=log_q, reference=law, generator=seeded(1), **options)

    default, fine = solved(), solved(steps=128)
    off = (default.log_prob - fine.log_prob).abs()
    assert (off <= 1.5 * (default.solver_error + fine.solver_error)).all()
    assert default.nfe < 137 and default.solver_error.max() / (64 * math.log(2)) <= 1e-3


@pytest.mark.parametrize(
    ("net", "smooth"),
    [({"name": "mlp", "width": 8}, True), ({"name": "unet", "channels": 8}, True), ({"name": "zero"}, True),
     ({"name": "ncsnpp", "channels": 8, "multipliers": [1], "blocks": 1, "attention": []}, False)],
)  # fmt: skip
def test_networks_say_whether_they_are_smooth(net, smooth):
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": net}
    score = build_model(tables, (3, 16, 16)).score
    assert is_smooth(score) == smooth
    if net["name"] in ("mlp", "unet"):
        condition = {"condition": {"name": "classes", "labels": ["0", "1"]}}
        assert is_smooth(build_model(tables | condition, (3, 16, 16)).given([0, 1]).score)


@pytest.mark.parametrize("of", ["log_prob", "log_likelihood", "log_probability", "decode_with_log_prob", "evaluate"])
def test_inference_mode_gives_the_same_numbers(of):
    """Of a residual flow and a conditional score, whose derivatives are taken inside."""
    tables = {
        "flow": {"name": "residual", "blocks": [1], "width": 8},
        "sde": {"name": "vp"},
        "net": {"name": "mlp", "width": 8},
    }
    torch.manual_seed(0)
    model = build_model(tables | {"condition": {"name": "vector", "size": 1}}, (2,))
    of_unconditional = build_model(tables, (2,))

    def found():
        x, c = torch.ones(6, 2), torch.linspace(-1, 1, 6)[:, None]
        if of == "evaluate":
            return evaluate(model, x, [Bound(times=1), NLL()], c=c, progress=False).nats["nll"]
        if of == "decode_with_log_prob":
            return indm.likelihood.decode_with_log_prob(of_unconditional, x)[1]
        options = {"c": c, "generator": seeded(0)} | ({"draws": 2} if of == "log_probability" else {})
        result = getattr(indm.likelihood, of)(model, x, **options)
        return result if of == "log_prob" else result.nats()

    with torch.no_grad():
        expected = found()
    with torch.inference_mode():
        assert torch.equal(found(), expected)


def test_another_precision_than_the_models_is_named():
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "mlp", "width": 8}}
    model, x = build_model(tables, (2,)), torch.zeros(3, 2, dtype=torch.float64)
    for use in (model.log_prob, lambda x: log_likelihood(model, x), lambda x: nelbo(model, x)):
        with pytest.raises(ValueError, match=r"x must be torch\.float32, as the model is, got torch\.float64"):
            use(x)
    assert model.double().log_prob(x).dtype == torch.float64


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e20])
def test_evaluate_names_the_row_that_is_not_finite(value):
    """In model units: a scale of 1e20 makes 1e20 one."""
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
    raw = torch.randn(60, 2, generator=seeded(0))
    raw[7, 1] = value
    with pytest.raises(
        ValueError, match=rf"raw must be finite, also when squared, got {re.escape(f'{value:g}')} in row 7"
    ):
        evaluate(build_model(tables, (2,)), raw, progress=False)
    if value == 1e20:
        large = build_model(tables, (2,), Scaling(0.0, 1e20))
        assert math.isfinite(evaluate(large, raw, progress=False).mean("nll", "nats")[0])


def test_solver_options_are_checked():
    with pytest.raises(ValueError, match="steps must be at least 8, or None"):
        log_likelihood(INDM(Identity(), gaussian("vp")), torch.zeros(2, 2), steps=7)
    with pytest.raises(ValueError, match="nll_error must be positive and finite, got 0"):
        log_likelihood(INDM(Identity(), gaussian("vp")), torch.zeros(2, 2), nll_error=0)


def test_a_score_that_is_not_finite_is_said():
    score = gaussian("vp")
    score.mean = score.mean * math.nan
    with pytest.raises(RuntimeError, match="became non-finite in sample 0, in 256 steps"):
        log_likelihood(INDM(Identity(), score), torch.zeros(2, 2).double())


def test_mixture_data_with_the_exact_score(name):
    """Curved paths and dense Jacobians. Components as narrow as 20 σ_ε (VE) open a gap of second order."""
    score = mixture(name)
    x = score.sample(1500, seeded(0))
    report = log_likelihood(INDM(Identity(), score), x, generator=seeded(1))
    assert abs((report.log_prob - score.log_prob(x)).mean().item()) / 2 < 1e-3


def test_hutchinson_is_unbiased_for_dense_jacobians():
    score = mixture()
    model, x = INDM(Identity(), score), score.sample(4, seeded(0)).repeat(500, 1)
    rough = log_likelihood(model, x, exact=False, probes=2, steps=32, generator=seeded(1))
    exact = log_likelihood(model, x, exact=True, steps=32, generator=seeded(1))
    difference = (rough.log_prob - exact.log_prob).reshape(500, 4)
    assert difference.std(0).max() > 0.1  # there is something to average
    assert within(difference, 0.0, floor=5e-4)


class Turned(torch.nn.Module):
    """The score of Q z, z of a ``score``."""

    is_smooth = True

    def __init__(self, score, Q):
        super().__init__()
        self.score, self.sde, self.Q = score, score.sde, Q

    def forward(self, z, t):
        return self.score(z @ self.Q, t) @ self.Q.T


@pytest.mark.parametrize("reference", ["none", "another", "its own"])
def test_probes_of_each_row_have_the_variance_that_the_reference_leaves(reference, probes=2):
    """The Jacobians of a Gaussian's flow commute: probes v are off by v·Gv − tr G, G = ½ log((C + r)/(1 + r)) from ε to
    T less that of the reference, with variance 2 Σ_{i≠j} G_ij² over their number."""
    score, (Q, other) = gaussian("vp", (5,)), torch.linalg.qr(torch.randn(2, 5, 5, generator=seeded(0)).double())[0]
    laws = {
        "its own": GaussianReference(Q @ score.mean, score.variance, Q),
        "another": GaussianReference(score.mean, score.variance.flip(0), other),
        "none": GaussianReference.standard(score.mean[None]),
    }

    def growth(law):
        r = (-score.sde.log_snr(torch.tensor([[score.sde.eps], [score.sde.T]]).double())).exp()
        start, end = 0.5 * ((law.variance + r) / (1 + r)).log()
        basis = torch.eye(5).double() if law.basis is None else law.basis
        return basis * (end - start) @ basis.T

    model, x = INDM(Identity(), Turned(score, Q)), score.sample(1, seeded(2)).expand(3000, 5) @ Q.T
    options = {"reference": laws[reference], "probes": probes, "steps": 24}
    rough, exact = (log_likelihood(model, x, exact=e, **options, generator=seeded(1)).log_prob for e in (False, True))
    G = growth(laws["its own"]) - growth(laws[reference])
    variance = 2 * (G - G.diag().diag()).square().sum() / probes
    assert (variance > 0.01) == (reference != "its own") and within(rough - exact, 0.0, floor=1e-9)
    assert (rough - exact).var().item() == pytest.approx(variance.item(), rel=0.12, abs=1e-12)


@pytest.mark.parametrize("shape", [(2,), (3, 8, 8)])
def test_affine_flow_changes_variables(name, shape):
    """x far from unit scale, whitened by an ActNorm: log p(x) is still that of x."""
    channels = shape[0]
    flow = ActNorm(channels).double()
    per_channel = (channels,) + (1,) * (len(shape) - 1)
    with torch.no_grad():
        flow.log_scale.copy_(torch.linspace(-3.0, 2.0, channels))
        flow.shift.copy_(torch.linspace(1.0, -2.0, channels))
        scale, shift = flow.log_scale.exp().reshape(per_channel), flow.shift.reshape(per_channel)
    score = gaussian(name, shape)
    mean, variance = (score.mean - shift) / scale, score.variance / scale**2
    x = mean + variance.sqrt() * torch.randn(50, *shape, dtype=torch.float64, generator=seeded(0))
    report = log_likelihood(INDM(flow, score), x, exact=False, nll_error=1e-4, generator=seeded(1))
    difference = report.log_prob - normal_log_prob(x, mean, variance)
    prior_mismatch = score.flow_log_prob(scale * x + shift) - score.log_prob(scale * x + shift)
    assert (difference - prior_mismatch).abs().max().item() / math.prod(shape) < 1e-3


def test_number_without_reconstruction_is_the_density_at_eps():
    """log p_ε(z_ε), averaged: minus the entropy of N(α m, α² v + σ²), at an ε where that is another number."""
    score = gaussian("vp", eps=0.3)
    x = score.sample(20_000, seeded(0))
    report = log_likelihood(INDM(Identity(), score), x, generator=seeded(1))
    t = torch.tensor(0.3, dtype=torch.float64)
    variance = score.sde.alpha(t) ** 2 * score.variance + score.sde.sigma(t) ** 2
    entropy = 0.5 * (2 * math.pi * math.e * variance).log().sum()
    without = report.log_prob + report.reconstruction
    assert within(-without, entropy, floor=1e-3)
    # With it, a bound of the likelihood that is off by what the Gaussian p(z_0|z_ε) costs at this ε:
    assert within(-report.log_prob, score.entropy() + score.bound_gap(), floor=1e-3)


# ── the report ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_report_of_log_likelihood():
    score = gaussian("vp", (1, 2, 2))
    model = INDM(Identity(), score, Scaling(0.0, 4.0))
    x = score.sample(30, seeded(0))
    report = log_likelihood(model, x, probes=3, nll_error=1e-2, generator=seeded(1))
    assert isinstance(report, LikelihoodReport)
    assert report.settings["eps"] == 1e-5 and report.settings["nll_error"] == 1e-2
    assert "3" in report.settings["divergence"] and report.nfe == 69  # 2 · 32 + 1 + 4
    nats = -report.log_prob.double() + 4 * math.log(4)
    torch.testing.assert_close(report.nats(), nats)
    bits = nats / (4 * math.log(2))
    assert report.bits_per_dim() == pytest.approx(bits.mean().item(), rel=1e-9)
    assert report.standard_error() == pytest.approx((bits.std() / math.sqrt(30)).item(), rel=1e-9)
    assert "bits/dim" not in str(report)  # of continuous data
    _, first, second, last, solver = str(dataclasses.replace(report, levels=256)).splitlines()
    assert f"{report.nats().mean():.4f}" in first and f"{report.bits_per_dim():.4f}" in first
    assert first.split()[-1] == f"{report.standard_error():.4f}" and last.startswith("30 samples of ")
    error = report.solver_error.mean().item()
    assert solver.endswith(f"solver, estimated: {error:.1g} nats, {error / (4 * math.log(2)):.1g} bits/dim")
    without = (report.log_q - report.log_prob - report.reconstruction).mean()
    assert f"{without:.4f}" in second
    with pytest.raises(ValueError, match="at least 2 samples"):
        log_likelihood(model, x[:1]).standard_error()


def test_divergence_is_exact_where_that_is_cheaper():
    def divergence(shape, probes):
        score = gaussian("vp", shape)
        report = log_likelihood(INDM(Identity(), score), score.sample(2), probes=probes, steps=8)
        return report.settings["divergence"]

    assert divergence((2,), 1) == divergence((16,), 1) == divergence((1, 1, 5), 5) == divergence((1, 2), 1) == "exact"
    assert divergence((1, 1, 5), 4).startswith("Hutchinson") and divergence((17,), 1).startswith("Hutchinson")


def test_probes_are_checked():
    with pytest.raises(ValueError, match="probes must be at least 1"):
        log_likelihood(INDM(Identity(), gaussian("vp")), torch.zeros(2, 2), probes=0)


def test_same_generator_same_number():
    score = mixture()
    x = score.sample(20, seeded(0))
    options = {"exact": False, "steps": 8}
    draws = [log_likelihood(INDM(Identity(), score), x, **options, generator=seeded(4)).log_prob for _ in range(2)]
    assert torch.equal(*draws)


def test_in_units_by_hand():
    """Draws = image effect + noise: the standard error is of the images' means, the noise what repeats can show."""
    n, repeats = 4000, 3
    effect, noise = 2.0 * torch.randn(n, generator=seeded(0)), 0.5 * torch.randn(repeats, n, generator=seeded(1))
    numbers = in_units((7 + effect + noise).double(), dims=10)
    assert set(numbers) == NUMBERS
    assert numbers["nats"] == pytest.approx(7 + (effect + noise.mean(0)).mean().item(), rel=1e-6)
    total = math.sqrt(2.0**2 + 0.5**2 / repeats) / math.sqrt(n)
    assert numbers["nats_standard_error"] == pytest.approx(total, rel=0.05)
    assert numbers["nats_estimator_noise"] == pytest.approx(0.5 / math.sqrt(repeats * n), rel=0.05)
    for key in ("nats", "nats_standard_error", "nats_estimator_noise"):
        assert numbers[key.replace("nats", "bits_per_dim")] == pytest.approx(numbers[key] / (10 * math.log(2)))


# ── evaluate ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_bound_of_few_steps_is_a_row_beside_that_of_the_sde():
    score, x = gaussian("vp", (3,)), torch.randn(400, 3, generator=seeded(0))
    model = INDM(Identity(), score)
    found = evaluate(model, x, [Bound(times=8), SamplerBound(steps=8, times=8)], progress=False)
    report, nats = dict(found.report), found.nats
    terms = nelbo(model, x, times=64, ancestral=8, generator=seeded(1))
    row, noise = report["ancestral"]["with_reconstruction"], terms.total.std().item() / 20
    assert row["nats"] == pytest.approx(terms.total.mean().item(), abs=4 * row["nats_estimator_noise"] + noise / 4)
    assert row["nats"] > report["nelbo"]["with_reconstruction"]["nats"] + 1 and nats["ancestral"].shape == (400,)
    lines = str(found).splitlines()
    assert sum(line.startswith("NELBO of few steps, N = 8") for line in lines) == 2 and "ε = 1e-05" in lines


@pytest.mark.parametrize("groups", [None, torch.arange(10).repeat(20)])
def test_print_shows_each_number_with_its_error_and_how_many_examples_it_is_of(groups):
    model, raw, _ = grey_model(True)
    found = evaluate(model, raw, [Bound(), NLL(examples=20, steps=32)], groups=groups, progress=False)
    head, *lines = str(found).splitlines()
    assert head.split() == ["examples", "bits/dim", "±", "standard", "error", "estimator", "noise", "solver", "error"]
    for name, kind, n in (("NELBO", "nelbo", 200), ("NLL (ODE)", "nll", 20)):
        (row,) = (line for line in lines if re.match(rf"{re.escape(name)} +\d", line))
        mean, error = found.mean(kind)
        assert row.removeprefix(name).split()[:3] == [str(n), f"{mean:.4f}", f"{error:.4f}"]
    assert any("over 10 groups" in line for line in lines) == (groups is not None)


def test_a_tolerance_out_of_reach_is_said_once():
    """Of many batches and repeats; a bound that is no likelihood hides nothing that comes after it."""

    def draw(job, number):
        warnings.warn(f"{OUT_OF_REACH} {number}", RuntimeWarning, stacklevel=1)
        return Estimate.of(*torch.zeros(3, 2), {})

    with pytest.warns(RuntimeWarning) as caught:
        draw_all(draw, [(kind, 1.0) for kind in ("nelbo", "nll", "nll", "iw")], 2, progress=False, distributed=False)
    assert [str(w.message).removeprefix(OUT_OF_REACH) for w in caught] == [" 0", " 1", " 2"]


@pytest.mark.parametrize("grouped", [False, True])
def test_a_difference_of_evaluations_is_paired_over_examples_or_groups(tmp_path, grouped):
    """Saved, read again and subtracted, against the formula by hand; pairing takes away most of the spread."""
    x, groups = 2 * torch.randn(60, 2, generator=seeded(0)), torch.arange(60) // 3 if grouped else None
    models = [INDM(Identity(), gaussian("vp"), Scaling(0.0, scale), (2,)) for scale in (1.0, 1.1)]
    for name, model in zip("ab", models, strict=True):
        found = evaluate(model, x, [Bound(), NLL(each=True)], groups=groups, progress=False)
        found.save(tmp_path / name)
        again = indm.Likelihoods.load(tmp_path / name)
        assert again.report == found.report and str(again) == str(found)
        assert all(torch.equal(again.nats[key], value) for key, value in found.nats.items())
    a, b = (indm.Likelihoods.load(tmp_path / name) for name in "ab")
    paired = a - b
    assert paired.keys() == {"nelbo", "nll"}
    for kind, (mean, error) in paired.items():
        apart = (a.nats[kind] - b.nats[kind]).numpy()
        sums = (apart - apart.mean()).reshape(20, 3).sum(1) if grouped else apart - apart.mean()
        by_hand = math.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1)) / 60
        assert mean == pytest.approx(apart.mean()) and error == pytest.approx(by_hand)
        assert mean == pytest.approx(a.mean(kind, "nats")[0] - b.mean(kind, "nats")[0])
        assert error < 0.5 * math.hypot(a.mean(kind, "nats")[1], b.mean(kind, "nats")[1])


def test_a_difference_needs_the_same_examples_seed_and_unit():
    model, x = INDM(Identity(), gaussian("vp"), shape=(2,)), torch.randn(20, 2, generator=seeded(0))
    of_levels = INDM(Identity(), gaussian("vp"), Scaling.images(4), (2,))

    def found(model=model, x=x, examples=None, **options):
        return evaluate(model, x, [Bound(examples=examples)], progress=False, **options)

    first = found()
    for other, said in (
        (found(x=x + 1), "examples_sha256 of other must be '"),
        (found(seed=1), "seed of other must be 0, as in the evaluation that it is taken from, got 1"),
        (found(of_levels, (x > 0).long()), "unit of other must be 'nats', .* got 'bits/dim'"),
        (found(examples=9), "examples of other, nelbo must be 20, as here, got 9"),
    ):
        with pytest.raises(ValueError, match=said):
            first - other


@pytest.fixture
def interrupted_at(monkeypatch):
    """Ctrl-C when the NLL is drawn that many times, or when its corrections begin."""

    def patched(number):
        calls, estimate = [], NLL.estimate

        def estimate_or_stop(*arguments):
            calls.append(1)
            if len(calls) == number:
                raise KeyboardInterrupt
            return estimate(*arguments)

        def stop(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(NLL, "estimate", estimate_or_stop)
        if number is None:
            monkeypatch.setattr(RepeatableDraws, "solve", stop)

    return patched


@pytest.mark.parametrize("number, rows", [(2, None), (3, 40), (4, 40), (None, 100)])
def test_ctrl_c_keeps_what_is_done(interrupted_at, number, rows):
    """Batches of 40, two draws each: of the NLL the batches whose draws are all done, in few steps each."""
    model, x = INDM(Identity(), gaussian("vp"), shape=(2,)), torch.randn(100, 2, generator=seeded(0))
    options = {"batch_size": 40, "progress": False}
    whole = evaluate(model, x, [Bound(), NLL(steps=16)], **options)
    interrupted_at(number)
    found = evaluate(model, x, [Bound(), NLL() if number is None else NLL(steps=16)], **options)
    assert found.report["interrupted"] and "interrupted: these are the examples" in str(found)
    assert found.report["images"] == {"nelbo": 100} | ({} if rows is None else {"nll": rows})
    assert torch.equal(found.nats["nelbo"], whole.nats["nelbo"])
    if rows == 40:
        assert torch.equal(found.nats["nll"], whole.nats["nll"][:40])
    assert ("nll" in found.nats) == (rows is not None) and "interrupted" not in whole.report


def test_ctrl_c_before_anything_is_done_is_an_interruption(interrupted_at):
    interrupted_at(1)
    with pytest.raises(KeyboardInterrupt):
        evaluate(INDM(Identity(), gaussian("vp"), shape=(2,)), torch.randn(9, 2), [NLL()], progress=False)


def test_the_bar_moves_by_what_a_draw_costs(monkeypatch):
    """A NELBO of four evaluations is a few percent of an NLL that is solved finely."""
    moved = []

    class Bar(tqdm):
        def update(self, n=1):
            moved.append(n / self.total)

    monkeypatch.setattr("indm.workbench.evaluation.likelihood.tqdm", Bar)
    evaluate(INDM(Identity(), gaussian("vp"), shape=(2,)), torch.randn(30, 2), [Bound(), NLL(each=True)])
    assert sum(moved) == pytest.approx(1) and len(moved) == 4 and sum(moved[:2]) < 0.05


def test_evaluate_vectors():
    """Raw vectors: mean 100, deviation 50 in one feature. The entropy is that of the raw data; NLL draws have next to
    no noise of their own, so that its standard error is the spread of the data; the NELBO's draws have much."""
    score = gaussian("vp")
    scale, shift = torch.tensor([50.0, 0.1]), torch.tensor([100.0, -3.0])
    model = INDM(Identity(), score, Scaling(shift, scale))
    raw = score.sample(3000, seeded(0), dtype=torch.float32) * scale + shift
    measures = [Bound(), NLL(examples=400, each=True, nll_error=1e-4)]
    found = evaluate(model, raw, measures, batch_size=300, progress=False)
    report, samples = found.report, found.nats

    assert json.loads(json.dumps(report)) == report
    assert {"images", "dims", "dequantization", "eps", "repeats", "seed", "nelbo", "nll"} <= set(report)
    assert report["images"] == {"nelbo": 3000, "nll": 400} and report["dims"] == 2 and report["eps"] == 1e-5
    assert report["dequantization"].startswith("none")
    assert {"nll_error", "divergence", "nfe", "solver_error", "unconverged"} <= set(report["nll"])
    for kind, n in (("nelbo", 3000), ("nll", 400)):
        for table, key in (
            ("with_reconstruction", kind),
            ("without_reconstruction", f"{kind}_without_reconstruction"),
        ):
            numbers = report[kind][table]
            assert set(numbers) == NUMBERS and samples[key].shape == (n,)
            assert numbers["nats"] == pytest.approx(samples[key].mean().item(), rel=1e-9)
            assert numbers["nats_standard_error"] == pytest.approx((samples[key].std() / math.sqrt(n)).item(), rel=1e-9)
            assert numbers["bits_per_dim"] == pytest.approx(numbers["nats"] / (2 * math.log(2)), rel=1e-9)

    errors, said = samples["nll_solver_error"], report["nll"]["solver_error"]
    assert errors.shape == (400,) and said["nats"] == pytest.approx(errors.mean().item())
    assert said["largest_bits_per_dim"] == pytest.approx(errors.max().item() / (2 * math.log(2)))

    std = score.variance.sqrt() * scale.double()
    truth = -normal_log_prob(raw.double(), score.mean * scale + shift, std**2)
    nll = report["nll"]["with_reconstruction"]
    assert (samples["nll"] - truth[:400]).mean().abs().item() < 2e-3
    assert nll["nats_estimator_noise"] < 1e-3 * nll["nats_standard_error"]
    assert nll["nats_standard_error"] == pytest.approx((truth[:400].std() / math.sqrt(400)).item(), rel=0.01)
    nelbo = report["nelbo"]["with_reconstruction"]
    difference = samples["nelbo"] - truth
    assert abs(difference.mean().item()) < 4 * difference.std().item() / math.sqrt(3000)
    assert nelbo["nats_estimator_noise"] > 3 * nll["nats_estimator_noise"]
    # Without the reconstruction: the entropy of z_ε, a little another number in model units.
    gap = report["nll"]["without_reconstruction"]["nats"] - nll["nats"]
    assert gap == pytest.approx(0.0, abs=0.01)


def grey_model(centered, levels=256):
    """A Gaussian over the grey levels around the middle, the same density of raw data in both conventions."""
    mean, std = torch.full((1, 4, 4), 0.55 * levels), torch.full((1, 4, 4), 0.08 * levels)
    scaling = Scaling.images(levels, centered)
    score = GaussianScore(VPSDE(), (mean - scaling.shift) / scaling.scale, (std / scaling.scale) ** 2)
    generator = seeded(7)
    raw = (mean + std * torch.randn(200, 1, 4, 4, generator=generator)).floor().clamp(0, levels - 1).to(torch.uint8)
    # −log ∫ over the cell is bounded by the mean of −log p over it: ((raw + ½ − m)² + 1/12)/2v, in raw units.
    square = (raw.double() + 0.5 - mean.double()) ** 2 + 1 / 12
    nats = (square / (2 * std.double() ** 2) + 0.5 * math.log(2 * math.pi) + std.double().log()).flatten(1).sum(1)
    return INDM(Identity(), score, scaling), raw, nats


@pytest.mark.parametrize("centered, levels", [(True, 256), (False, 17)])
def test_evaluate_grey_levels(centered, levels):
    """Bits/dim of the raw levels do not depend on the convention of scaling."""
    model, raw, nats = grey_model(centered, levels)
    found = evaluate(model, raw, [Bound(), NLL(exact=True, steps=32)], repeats=4, progress=False)
    report, samples = found.report, found.nats
    m = f"{levels * 2.0**-22:.3g}"
    assert report["dequantization"] == f"uniform on [{m}, 1 − {m}], {levels} grey levels, its density counted"
    difference = samples["nll"] - nats
    assert abs(difference.mean().item()) < 4.5 * difference.std().item() / math.sqrt(200) + 16 * 1e-3
    bits = report["nll"]["with_reconstruction"]["bits_per_dim"]
    assert bits == pytest.approx(nats.mean().item() / (16 * math.log(2)), abs=0.01)
    if levels == 256:  # cells much narrower than the Gaussian: its differential entropy in grey levels
        assert bits == pytest.approx(math.log2(0.08 * levels * math.sqrt(2 * math.pi * math.e)), abs=0.03)
    assert abs(report["nelbo"]["with_reconstruction"]["bits_per_dim"] - bits) < 0.5
    # Dequantization is drawn anew in every repeat: estimator noise that the NLL's report shows.
    noise = report["nll"]["with_reconstruction"]["nats_estimator_noise"]
    per_pixel = (2 * (raw.double() + 0.5 - 0.55 * levels)) ** 2 / 12 / (4 * (0.08 * levels) ** 4)  # leading order
    expected = math.sqrt(per_pixel.flatten(1).sum(1).mean().item() / (4 * 200))
    assert noise == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("name, eps, own", [("vp", 0.6, 0.6), ("ve", 0.3, 0.3), ("vp", 0.6, 1e-5), ("ve", 0.3, 0.1)])
def test_evaluate_names_the_numbers_without_reconstruction(name, eps, own):
    """At an ε where it matters, the SDE's own or a raised one: the entropy of z_ε without the term, the data's and the
    known gap with it."""
    score = GaussianScore(SDES[name](eps=own), torch.tensor([0.2, -0.1]).double(), torch.tensor([0.05, 0.1]).double())
    raw, n = score.sample(4000, seeded(0), dtype=torch.float32), 4000
    measures = [Bound(times=8), NLL()]
    report = evaluate(INDM(Identity(), score), raw, measures, eps=eps, progress=False, batch_size=n).report
    assert report["eps"] == report["nll"]["eps"] == eps and score.sde.eps == own
    variance = score.law(torch.tensor(eps, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64))[1]
    at_eps = 0.5 * (2 * math.pi * math.e * variance).log().sum().item()
    for kind in ("nelbo", "nll"):
        for table, expected in (
            ("with_reconstruction", score.entropy() + score.bound_gap(eps)),
            ("without_reconstruction", at_eps),
        ):
            numbers = report[kind][table]
            assert abs(numbers["nats"] - expected) < 4.5 * numbers["nats_standard_error"] + 2e-3
            assert numbers["nats_standard_error"] < 0.1
    assert abs(at_eps - score.entropy() - score.bound_gap(eps)) > 0.1


@pytest.mark.parametrize("groups", [None, torch.arange(60).repeat(5), torch.zeros(300, dtype=torch.long)])
def test_evaluate_says_where_the_bound_lies(groups):
    """Terms and levels sum to the NELBO. Errors are of means of groups, which have equal sizes here."""
    model, raw, _ = grey_model(True)
    raw = raw.repeat(300 // len(raw) + 1, *[1] * (raw.ndim - 1))[:300]
    found = evaluate(model, raw, [Bound()], groups=groups, batch_size=128, progress=False)
    report, nats = found.report, found.nats
    assert json.loads(json.dumps(report)) == report
    nelbo, levels = report["nelbo"], nats["nelbo_levels"]
    by_level, terms = nelbo["by_level"], nelbo["terms"]
    assert levels.shape == (300, 8) and set(terms) == {"score", "reconstruction", "prior", "flow", "constant", "log_q"}
    difference = nelbo["with_reconstruction"]["nats"] - nelbo["without_reconstruction"]["nats"]
    assert terms["reconstruction"]["nats"] == pytest.approx(difference, rel=1e-5)
    for unit in ("nats", "bits_per_dim"):
        assert sum(row[unit] for row in by_level) == pytest.approx(terms["score"][unit], rel=1e-9)
        assert sum(v[unit] for v in terms.values()) == pytest.approx(nelbo["with_reconstruction"][unit], rel=1e-6)
    for row, own in zip(by_level, levels.T, strict=True):
        assert row["nats"] == pytest.approx(own.mean().item())
        means = own if groups is None else torch.stack([own[groups == group].mean() for group in groups.unique()])
        error = means.std().item() / math.sqrt(len(means)) if len(means) > 1 else None
        assert row["nats_standard_error"] == (error and pytest.approx(error))
    ends = [noise for row in by_level for noise in row["noise"]]
    t = torch.tensor([model.sde.eps, 1.0]).double()
    assert [ends[0], ends[-1]] == pytest.approx((model.sde.sigma(t) / model.sde.alpha(t)).tolist())
    assert ends[1:-1:2] == ends[2::2] and np.diff(np.log(ends))[::2] == pytest.approx(np.log(ends[-1] / ends[0]) / 8)
    table, others = level_table(report | {"unit": "bits/dim"})
    assert len(table.splitlines()) == 9 and f"flow {terms['flow']['bits_per_dim']:.4f} ± " in others


def test_evaluate_repeats_and_pairs():
    model, raw, _ = grey_model(True)
    measures = [Bound(), NLL(steps=8)]
    runs = [evaluate(model, raw[:20], measures, seed=seed, batch_size=8, progress=False).nats for seed in (3, 3, 4)]
    for key in runs[0]:
        assert torch.equal(runs[0][key], runs[1][key])
        assert not torch.equal(runs[0][key], runs[2][key])


class Noisy(ExactFlow):
    """The identity, with a draw from the generator as a stochastic log-determinant makes it."""

    def forward(self, x, *, generator=None):
        torch.randn(x.shape, generator=generator)
        return x, x.new_zeros(len(x))

    def inverse_step(self, z):
        return z


def test_models_compared_at_one_seed_share_dequantization_times_and_noise():
    """What evaluate promises for paired differences, for a flow that draws and one that does not."""
    model, raw, _ = grey_model(True)
    twin = INDM(Noisy(), model.score, model.scaling)
    measures = [Bound(), NLL(exact=True, steps=16)]
    one, two = (evaluate(m, raw[:20], measures, progress=False).nats for m in (model, twin))
    for kind in ("nelbo", "nll"):
        torch.testing.assert_close(one[kind], two[kind])
        without = f"{kind}_without_reconstruction"
        torch.testing.assert_close(one[without], two[without])


def test_evaluate_without_nll():
    model, raw, _ = grey_model(True)
    found = evaluate(model, raw, [Bound()], progress=False)
    assert "nll" not in found.report and "nll" not in found.nats and found.report["images"] == {"nelbo": len(raw)}


def test_evaluate_checks_its_arguments():
    model, raw, _ = grey_model(True)
    with pytest.raises(ValueError, match="repeats must be at least 2"):
        evaluate(model, raw, repeats=1)
    with pytest.raises(ValueError, match="raw must be at least 2"):
        evaluate(model, raw[:1])
    for measures in (Bound(), [Bound], ["nll"]):  # as one may write them
        with pytest.raises(ValueError, match=r"measures must be a list of measures, got .*; \[indm\.Bound\(\), "):
            evaluate(model, raw, measures)
    for error in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"nll_error must be positive and finite, got {error}"):
            evaluate(model, raw, [NLL(nll_error=error)])
        with pytest.raises(ValueError, match=f"nll_error must be positive and finite, got {error}"):
            log_likelihood(model, model.scaling.centre(raw), nll_error=error)


@pytest.mark.parametrize("examples", [1, 0, -1])
def test_evaluate_needs_two_images_for_a_standard_error_of_the_nll(examples):
    model, raw, _ = grey_model(True)
    with pytest.raises(ValueError, match=f"examples of NLL must be at least 2 for a standard error, got {examples}"):
        evaluate(model, raw[:10], [Bound(), NLL(examples=examples)], progress=False)
    with pytest.raises(ValueError, match=r"measures must be one or more, each kind once, got \['nll', 'nll'\]"):
        evaluate(model, raw, [NLL(), NLL(each=True)])
