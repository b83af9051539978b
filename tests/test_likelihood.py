"""The NLL against closed forms, with and without a flow, and the report against direct computation."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from closed_form import EACH_SDE, SDES, MixtureScore, gaussian, normal_log_prob, within

import indm
from indm.evaluation.evaluate import evaluate
from indm.evaluation.measures import NLL, Bound
from indm.flows import ActNorm, Identity
from indm.gaussian import GaussianReference
from indm.likelihood import LikelihoodReport, latent_reference, nll
from indm.model import INDM, build_model
from indm.objective import nelbo
from indm.ode import basis
from indm.scaling import Scaling
from indm.score import is_smooth
from indm.workbench.data.base import load_data, stack


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def mixture(name="vp", dtype=torch.float64):
    means = torch.tensor([[0.9, 0.3], [-0.6, 0.8], [-0.1, -1.1]], dtype=dtype)
    stds, weights = (
        torch.tensor([0.3, 0.5, 0.2], dtype=dtype),
        torch.tensor([0.5, 0.3, 0.2], dtype=dtype),
    )
    score = MixtureScore(SDES[name](), means, stds, weights)
    score.is_smooth = False  # solved like a network that says nothing
    return score


@pytest.fixture(params=EACH_SDE)
def name(request):
    return request.param


# ── closed forms ──────────────────────────────────────────────────────────────────────────────────


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
    """float32: the mean to 1e-3 nats/dim of the closed form at default tolerances, and at 1e-5 each
    to 1e-3 of the density that the prior has at ε when it is carried back exactly (p_T is not π to
    a few thousandths a sample).
    """
    score, d = gaussian(name, shape), math.prod(shape)
    x = score.sample(n, seeded(0), dtype=torch.float32)
    report = nll(INDM(Identity(), score), x, exact=exact, generator=seeded(1))
    assert report.total.dtype == torch.float32
    assert abs((report.total + score.log_prob(x)).mean().item()) / d < 1e-3
    assert report.settings["divergence"].startswith("exact" if exact else "Hutchinson")
    tight = nll(INDM(Identity(), score), x, exact=exact, nll_error=1e-4, generator=seeded(1))
    assert (tight.total + score.flow_log_prob(x)).abs().max().item() / d < 1e-3


@pytest.mark.parametrize("shape", [(2,), (3, 8, 8)])
@pytest.mark.parametrize("exact", [True, False])
def test_few_steps_are_exact_where_the_reference_is(name, shape, exact):
    """With the data's own law as reference the state rests, and of the divergence nothing is left:
    neither steps nor probes matter, and the solver says so.
    """
    score, d = gaussian(name, shape), math.prod(shape)
    x = score.sample(400 // d, seeded(0))
    reference = GaussianReference(score.mean.flatten(), score.variance.flatten())
    options = {"reference": reference, "exact": exact, "probes": 2}
    few, many = (
        nll(INDM(Identity(), score), x, steps=n, **options, generator=seeded(1)) for n in (8, 16)
    )
    assert few.nfe == 18 and few.settings["steps"] == 8
    torch.testing.assert_close(few.total, many.total, rtol=1e-9, atol=1e-9)
    assert few.solver_error.max() < 1e-8
    assert (few.total + score.flow_log_prob(x)).abs().max().item() / d < 1e-3


def test_the_trace_of_a_law_is_that_of_its_flow():
    """By the slope of its log-volume, and by the probes that make the estimate exact."""
    law = GaussianReference.fit(
        torch.randn(40, 6, generator=seeded(0)).double() @ torch.randn(6, 6).double()
    )
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
        return nll(model, x, exact=False, **options, generator=seeded(1))

    exact, errors = solved(steps=192).total, []
    for n in (48, 96):
        report = solved(steps=n)
        off = (report.total - exact).abs()
        assert (report.solver_error >= off).double().mean() > 0.95
        errors.append(off.mean().item())
    assert errors[1] < errors[0] / 8 and errors[1] < 1e-3


@pytest.mark.filterwarnings("ignore:the ODE")
def test_samples_are_solved_until_their_error_is_small():
    """By their own numbers of steps: alone, each has the result that it has in the batch."""
    score = mixture()
    model, x = INDM(Identity(), score), score.sample(10, seeded(0))
    tol = 1e-3 * 2 * math.log(2)
    first, together = (
        nll(model, x, exact=True, **o, generator=seeded(1)) for o in ({"steps": 64}, {})
    )
    assert (first.solver_error > tol).any() and (first.solver_error <= tol).any()
    assert (together.solver_error <= tol).all()
    kept = first.solver_error <= tol
    assert torch.equal(together.total[kept], first.total[kept])
    assert together.nfe > first.nfe == 137
    tight = nll(model, x, exact=True, nll_error=1e-30, generator=seeded(1))
    assert (tight.solver_error > 0).all() and tight.nfe == sum(
        2 * n + 1 + n // 8 for n in (64, 128, 256)
    )


def test_the_error_of_the_importance_weighted_bound_is_the_mean_of_its_draws_by_their_weights():
    """Of the same draws, solved as rows of their own; between the least and the largest of them."""
    score = mixture(dtype=torch.float32)
    model = INDM(Identity(), score)
    x, _ = model.from_data(score.sample(10, seeded(0)).float())
    weighted = indm.importance_bound(
        model, x, draws=5, batch_size=50, steps=16, generator=seeded(1)
    )
    each = nll(model, x.repeat_interleave(5, 0), exact=True, steps=16, generator=seeded(1))
    error, weight = (
        v.unflatten(0, (10, 5)).numpy() for v in (each.solver_error, (-each.total).exp())
    )
    expected = [np.average(*row, weights=share) for *row, share in zip(error, weight, strict=True)]
    assert (
        weighted.solver_error.tolist() == pytest.approx(expected, rel=1e-4) and error.std() > 1e-4
    )
    assert bool((weighted.solver_error <= torch.from_numpy(error).amax(1) * 1.0001).all())


@pytest.mark.long
def test_a_network_that_is_smooth_takes_half_the_steps_and_states_an_error_that_covers():
    model = indm.from_pretrained("digits-pretrained")
    data = load_data(name="digits")
    x, log_q = model.from_data(stack(data.test, 3), generator=seeded(0))

    def solved(**options):
        law = latent_reference(model, stack(data.train, 200))
        return nll(model, x, log_q=log_q, reference=law, generator=seeded(1), **options)

    default, fine = solved(), solved(steps=128)
    off = (default.total - fine.total).abs()
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


@pytest.mark.parametrize(
    "of", ["log_prob", "nll", "importance_bound", "decode_with_log_prob", "evaluate"]
)
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
        options = {"c": c, "generator": seeded(0)} | (
            {"draws": 2} if of == "importance_bound" else {}
        )
        result = getattr(indm.likelihood, of)(model, x, **options)
        return result if of == "log_prob" else result.nats

    with torch.no_grad():
        expected = found()
    with torch.inference_mode():
        assert torch.equal(found(), expected)


def test_another_precision_than_the_models_is_named():
    tables = {
        "flow": {"name": "identity"},
        "sde": {"name": "vp"},
        "net": {"name": "mlp", "width": 8},
    }
    model, x = build_model(tables, (2,)), torch.zeros(3, 2, dtype=torch.float64)
    for use in (model.log_prob, lambda x: nll(model, x), lambda x: nelbo(model, x)):
        with pytest.raises(
            ValueError, match=r"x must be torch\.float32, as the model is, got torch\.float64"
        ):
            use(x)
    assert model.double().log_prob(x).dtype == torch.float64


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e20])
def test_evaluate_names_the_row_that_is_not_finite(value):
    """In model units: a scale of 1e20 makes 1e20 one."""
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
    raw = torch.randn(60, 2, generator=seeded(0))
    raw[7, 1] = value
    with pytest.raises(
        ValueError,
        match=rf"raw must be finite, also when squared, got {re.escape(f'{value:g}')} in row 7",
    ):
        evaluate(build_model(tables, (2,)), raw, progress=False)
    if value == 1e20:
        large = build_model(tables, (2,), Scaling(0.0, 1e20))
        assert math.isfinite(evaluate(large, raw, progress=False).mean("nll", "nats")[0])


def test_solver_options_are_checked():
    with pytest.raises(ValueError, match="steps must be at least 8, or None"):
        nll(INDM(Identity(), gaussian("vp")), torch.zeros(2, 2), steps=7)
    with pytest.raises(ValueError, match="nll_error must be positive and finite, got 0"):
        nll(INDM(Identity(), gaussian("vp")), torch.zeros(2, 2), nll_error=0)
    with pytest.raises(ValueError, match="probes must be at least 1"):
        nll(INDM(Identity(), gaussian("vp")), torch.zeros(2, 2), probes=0)


def test_a_score_that_is_not_finite_is_said():
    score = gaussian("vp")
    score.mean = score.mean * math.nan
    with pytest.raises(RuntimeError, match="became non-finite in sample 0, in 256 steps"):
        nll(INDM(Identity(), score), torch.zeros(2, 2).double())


def test_mixture_data_with_the_exact_score(name):
    """Curved paths and dense Jacobians. Components as narrow as 20 σ_ε (VE) open a gap of second
    order.
    """
    score = mixture(name)
    x = score.sample(1500, seeded(0))
    report = nll(INDM(Identity(), score), x, generator=seeded(1))
    assert abs((report.total + score.log_prob(x)).mean().item()) / 2 < 1e-3


def test_hutchinson_is_unbiased_for_dense_jacobians():
    score = mixture()
    model, x = INDM(Identity(), score), score.sample(4, seeded(0)).repeat(500, 1)
    rough = nll(model, x, exact=False, probes=2, steps=32, generator=seeded(1))
    exact = nll(model, x, exact=True, steps=32, generator=seeded(1))
    difference = (exact.total - rough.total).reshape(500, 4)
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
    """The Jacobians of a Gaussian's flow commute: probes v are off by v·Gv − tr G, G = ½ log((C +
    r)/(1 + r)) from ε to T less that of the reference, with variance 2 Σ_{i≠j} G_ij² over their
    number.
    """
    score, (Q, other) = (
        gaussian("vp", (5,)),
        torch.linalg.qr(torch.randn(2, 5, 5, generator=seeded(0)).double())[0],
    )
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
    rough, exact = (
        nll(model, x, exact=e, **options, generator=seeded(1)).total for e in (False, True)
    )
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
    report = nll(INDM(flow, score), x, exact=False, nll_error=1e-4, generator=seeded(1))
    difference = -report.total - normal_log_prob(x, mean, variance)
    prior_mismatch = score.flow_log_prob(scale * x + shift) - score.log_prob(scale * x + shift)
    assert (difference - prior_mismatch).abs().max().item() / math.prod(shape) < 1e-3


def test_number_without_reconstruction_is_the_density_at_eps():
    """log p_ε(z_ε), averaged: minus the entropy of N(α m, α² v + σ²), at an ε where that is another
    number.
    """
    score = gaussian("vp", eps=0.3)
    x = score.sample(20_000, seeded(0))
    report = nll(INDM(Identity(), score), x, generator=seeded(1))
    t = torch.tensor(0.3, dtype=torch.float64)
    variance = score.sde.alpha(t) ** 2 * score.variance + score.sde.sigma(t) ** 2
    entropy = 0.5 * (2 * math.pi * math.e * variance).log().sum()
    without = -report.without_reconstruction
    assert within(-without, entropy, floor=1e-3)
    # With it, a bound of the likelihood that is off by what the Gaussian p(z_0|z_ε) costs at this
    # ε:
    assert within(report.total, score.entropy() + score.bound_gap(), floor=1e-3)


# ── the report ────────────────────────────────────────────────────────────────────────────────────


def test_report_of_the_nll():
    score = gaussian("vp", (1, 2, 2))
    model = INDM(Identity(), score, Scaling(0.0, 4.0))
    x = score.sample(30, seeded(0))
    report = nll(model, x, probes=3, nll_error=1e-2, generator=seeded(1))
    assert isinstance(report, LikelihoodReport)
    assert report.settings["eps"] == 1e-5 and report.settings["nll_error"] == 1e-2
    assert "3" in report.settings["divergence"] and report.nfe == 69  # 2 · 32 + 1 + 4
    nats = report.total.double() + 4 * math.log(4)
    torch.testing.assert_close(report.nats, nats)
    bits = nats / (4 * math.log(2))
    assert report.bits_per_dim == pytest.approx(bits.mean().item(), rel=1e-9)
    assert report.standard_error() == pytest.approx((bits.std() / math.sqrt(30)).item(), rel=1e-9)
    assert "bits/dim" not in str(report)  # of continuous data
    _, first, second, last, solver = str(dataclasses.replace(report, grey_levels=256)).splitlines()
    assert f"{report.nats.mean():.4f}" in first and f"{report.bits_per_dim:.4f}" in first
    assert first.split()[-1] == f"{report.standard_error():.4f}" and last.startswith(
        "30 samples of "
    )
    error = report.solver_error.mean().item()
    assert solver.endswith(
        f"solver, estimated: {error:.1g} nats, {error / (4 * math.log(2)):.1g} bits/dim"
    )
    without = (report.log_q + report.without_reconstruction).mean()
    assert f"{without:.4f}" in second
    with pytest.raises(ValueError, match="at least 2 samples"):
        nll(model, x[:1]).standard_error()


def test_divergence_is_exact_where_that_is_cheaper():
    def divergence(shape, probes):
        score = gaussian("vp", shape)
        report = nll(INDM(Identity(), score), score.sample(2), probes=probes, steps=8)
        return report.settings["divergence"]

    assert (
        divergence((2,), 1)
        == divergence((16,), 1)
        == divergence((1, 1, 5), 5)
        == divergence((1, 2), 1)
        == "exact"
    )
    assert divergence((1, 1, 5), 4).startswith("Hutchinson") and divergence((17,), 1).startswith(
        "Hutchinson"
    )


def test_same_generator_same_number():
    score = mixture()
    x = score.sample(20, seeded(0))
    options = {"exact": False, "steps": 8}
    draws = [
        nll(INDM(Identity(), score), x, **options, generator=seeded(4)).total for _ in range(2)
    ]
    assert torch.equal(*draws)
