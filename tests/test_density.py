"""log p(x) of the probability flow and its gradient against closed forms, finite differences and
quadrature; that of samples against it, and by a normalising constant that is known.
"""

import math
import weakref

import pytest
import torch
from closed_form import EACH_SDE, SDES, MixtureScore, column, gaussian, normal_log_prob, within
from contract_parts import constructions
from flow_tools import perturb, slopes

from indm.flows import (
    ActNorm,
    Compose,
    CouplingFlow,
    ElementwiseFlow,
    ExactLogDet,
    Frozen,
    Identity,
    ResidualFlow,
    use_log_det,
)
from indm.gaussian import GaussianReference
from indm.likelihood import WhitenedFlow, decode_with_log_prob, nll
from indm.model import INDM, build, build_model
from indm.published import ConditionalResidualFlow
from indm.scaling import Scaling

pytestmark = pytest.mark.filterwarnings("ignore:the error of log_prob")  # of few steps

FLOWS = constructions("flow")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def double(*values):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


def points(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(0))


def gradient(values, x):
    return torch.autograd.grad(values.sum(), x)[0]


@pytest.fixture(params=EACH_SDE)
def name(request):
    return request.param


def mixture(name="vp", d=2, **sde):
    means = double([0.9, 0.3], [-0.6, 0.8], [-0.1, -1.1])[:, :d]
    return MixtureScore(SDES[name](**sde), means, double(0.5, 0.6, 0.4), double(0.5, 0.3, 0.2))


def smooth_model(name="vp", d=2, eps=0.1):
    """The score of a mixture behind a flow that is not of its data: a density that no formula
    knows.
    """
    affine = {"scales": 2, "depth": 1, "width": 8, "transform": "affine"}
    flow = ResidualFlow((1,), (2,), 8) if d == 1 else CouplingFlow((d,), **affine)
    return INDM(perturb(flow), mixture(name, d, eps=eps), Scaling(), shape=(d,)).double()


# ── closed forms ──────────────────────────────────────────────────────────────────────────────────


def test_an_affine_flow_of_gaussian_latents(name):
    """Value and gradient by hand: the prior carried back is a Gaussian of z_ε, so that x is one,
    too.
    """
    score, flow = gaussian(name, eps=0.1), ActNorm(2).double()
    with torch.no_grad():
        flow.log_scale.copy_(double(0.7, -1.2))
        flow.shift.copy_(double(0.4, 3.0))
    x = points(20, 2).requires_grad_()
    (mean_e, variance_e), (mean_T, variance_T) = (score.law(double(t), x) for t in (0.1, 1.0))
    alpha, ratio = score.sde.alpha(double(0.1)), (variance_e / variance_T).sqrt()
    scale = alpha * flow.log_scale.detach().exp()
    mean = (mean_e - ratio * mean_T - alpha * flow.shift.detach()) / scale
    variance = (ratio * score.sde.prior_std / scale) ** 2
    log_prob = INDM(flow, score).log_prob(x, steps=48)
    torch.testing.assert_close(log_prob, normal_log_prob(x, mean, variance), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(log_prob, x), (mean - x) / variance, rtol=1e-5, atol=1e-5)


def expected_log_prob(flow, score, x):
    """Of Gaussian latents and their exact score, in closed form."""
    z, log_det = flow(x)
    alpha = column(score.sde.alpha(double(score.sde.eps).expand(len(x))), z).expand_as(z)
    return log_det + alpha.log().flatten(1).sum(1) + score.flow_log_prob(alpha * z)


@pytest.mark.parametrize("sde, kind", [("vp", CouplingFlow), ("ve", ElementwiseFlow)])
def test_gaussian_latents_behind_a_flow(sde, kind):
    score, flow, x = (
        gaussian(sde, (3,)),
        perturb(kind((3,), bins=4)).double(),
        points(20, 3).requires_grad_(),
    )
    expected, log_prob = expected_log_prob(flow, score, x), INDM(flow, score).log_prob(x, steps=48)
    torch.testing.assert_close(log_prob, expected, rtol=0, atol=5e-5)
    torch.testing.assert_close(gradient(log_prob, x), gradient(expected, x), rtol=0, atol=5e-5)


def test_the_gradient_is_the_score_of_the_data():
    """A mixture with its exact score, up to the prior's mismatch and the noise at ε."""
    score = mixture()
    x = score.sample(50, seeded(0)).requires_grad_()
    log_prob, expected = INDM(Identity(), score).log_prob(x), score.log_prob(x)
    torch.testing.assert_close(log_prob, expected, rtol=0, atol=0.02)
    torch.testing.assert_close(gradient(log_prob, x), gradient(expected, x), rtol=0, atol=0.03)


@pytest.mark.parametrize("d, count", [(1, 121), (2, 41)])
@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_it_integrates_to_one(sde, d, count):
    """By the trapezoidal rule."""
    axis = torch.linspace(-6, 6, count, dtype=torch.float64)
    x = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
    with torch.no_grad():
        mass = smooth_model(sde, d).log_prob(x, steps=32).exp().sum() * (axis[1] - axis[0]) ** d
    assert mass.item() == pytest.approx(1.0, abs=5e-5)


@pytest.mark.parametrize("eps", [None, 0.3])
@pytest.mark.parametrize(
    "options", [{"exact": True}, {"exact": False, "probes": 2}, {"reference": True}]
)
def test_it_is_the_nll_without_noise_and_reconstruction(options, eps, monkeypatch):
    """In the same steps and by the same probes; with and without a gradient."""
    model, x, law = (
        smooth_model(),
        points(20, 2),
        GaussianReference(double(0.1, 0.2), double(0.5, 0.7)),
    )
    options = options | {
        "reference": law if "reference" in options else None,
        "steps": 16,
        "eps": eps,
    }
    monkeypatch.setattr("indm.likelihood.randn_like", lambda z, generator=None: torch.zeros_like(z))
    report = nll(model, x, **options, generator=seeded(1))
    expected = -report.without_reconstruction + 2 * model.sde.log_alpha(double(eps or 0.1))
    for part in (x, x.clone().requires_grad_()):
        log_prob = model.log_prob(part, **options, generator=seeded(1))
        torch.testing.assert_close(log_prob, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(model.log_prob(x, **options, generator=seeded(1)), log_prob)


def test_a_density_in_too_few_steps_is_said_to_be_off(recwarn):
    """Where 16 steps are off, it is said, in the same words each time; nothing is said where the
    error is small.
    """
    model, x = smooth_model(), 1.5 * points(30, 2)
    exact = model.log_prob(x, steps=128)
    assert not [w for w in recwarn if "log_prob" in str(w.message)]
    with pytest.warns(
        RuntimeWarning, match=r"above 0.001 bits/dim in 16 steps; steps=32 makes it smaller"
    ) as said:
        off = (model.log_prob(x, steps=16) - exact).abs() / (2 * math.log(2))
        again = model.log_prob(-x, steps=16)
    assert off.max() > 1e-3 and len({str(warning.message) for warning in said}) == 1 < len(said)
    assert again.isfinite().all()


def test_what_the_solver_watches_is_the_slope_of_log_p(name):
    law = GaussianReference(double(0.1, 0.2), double(0.5, 0.7))
    flow = WhitenedFlow(gaussian(name), law, (2,), exact=True)
    (v, velocity), (excess, divergence) = points(2, 6, 2), points(2, 6)
    state = v.requires_grad_(), excess.requires_grad_()
    along_v, along_excess = torch.autograd.grad(flow.log_prob(state).sum(), state)
    expected = (along_v * velocity).sum(1) + along_excess * divergence
    torch.testing.assert_close(flow.rate(state, (velocity.detach(), divergence.detach())), expected)


# ── the gradient ──────────────────────────────────────────────────────────────────────────────────


def check_gradient(model, x, **options):
    """In x and in all parameters, along random directions, against central differences."""
    x = x.requires_grad_()

    def loss():
        return -model.log_prob(x, steps=3, **options, generator=seeded(1)).mean()

    for variables in ([x], list(model.parameters())):
        if variables:
            slope, difference = slopes(loss, variables, [torch.randn_like(v) for v in variables])
            assert slope == pytest.approx(difference, rel=1e-5, abs=1e-5) and slope != 0


@pytest.mark.parametrize("case", FLOWS)
def test_every_flow_of_the_table(case):
    """Its part of the gradient; or the error, which says what would do."""
    table, shape = FLOWS[case]
    flow = perturb(build(table, "flow", shape)).double()
    use_log_det(flow, evaluation=ExactLogDet())
    model, x = INDM(flow, gaussian("vp", shape)), points(2, *shape)
    if flow.has_log_det:
        check_gradient(model, x, exact=False)
    else:
        with pytest.raises(
            ValueError, match=rf"for log_prob, got {type(flow).__name__}; .*flow\.at\(code\)"
        ):
            model.log_prob(x)


MLP = {"name": "mlp", "width": 16, "depth": 1}
UNET = {"name": "unet", "channels": 4, "multipliers": [1, 2], "blocks": 1, "attention": [4]}
NCSNPP = {"name": "ncsnpp", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]}


@pytest.mark.parametrize(
    "net, shape, sde, exact",
    [
        (MLP, (2,), "ve", True),
        (MLP, (2,), "vp", False),
        (UNET, (1, 8, 8), "subvp", False),
        (NCSNPP, (1, 8, 8), "ve", False),
    ],
)
def test_every_parameter_of_flow_and_network(net, shape, sde, exact):
    """Whose slopes have slopes: those of the network are of second order."""
    tables = {"flow": {"name": "elementwise"}, "sde": {"name": sde, "eps": 1e-3}, "net": net}
    model, x = perturb(build_model(tables, shape), 0.2).double(), points(2, *shape)
    check_gradient(model, x, exact=exact)
    (-model.log_prob(x, steps=3, exact=exact)).mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in model.parameters()
    )


def test_an_unbiased_estimate_has_an_unbiased_gradient():
    """By Hutchinson's probes, of a dense Jacobian; their mean is that of the exact divergence."""
    model, x = INDM(Identity(), mixture()), points(2, 2).repeat(2000, 1).requires_grad_()
    rough = gradient(model.log_prob(x, steps=8, exact=False, generator=seeded(1)), x).reshape(
        2000, 2, 2
    )
    exact = gradient(model.log_prob(x, steps=8), x).reshape(2000, 2, 2)[0]
    assert (rough.std(0) > 0.01).any() and within(rough, exact, floor=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_neither_matters_nor_changes(training):
    """Dropout would make every evaluation of the network another, and those for the gradient others
    again.
    """
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": UNET | {"dropout": 0.5}}
    model, x = (
        perturb(build_model(tables, (1, 8, 8)), 0.2),
        torch.randn(2, 1, 8, 8, requires_grad=True),
    )
    expected = model.eval().log_prob(x, steps=3, generator=seeded(1))
    slope = gradient(expected, x)
    log_prob = model.train(training).log_prob(x, steps=3, generator=seeded(1))
    assert (
        all(module.training is training for module in model.modules()) and torch.is_grad_enabled()
    )
    assert torch.equal(log_prob, expected) and torch.equal(gradient(log_prob, x), slope)
    assert all(module.training is training for module in model.modules()) and model.sde.eps == 1e-5


def test_a_gradient_at_a_raised_truncation_is_computed_there():
    """Also after the call: what is evaluated again is evaluated at that ε."""
    model, x = smooth_model(eps=1e-3), points(5, 2).requires_grad_()
    expected = model.truncated(0.3).log_prob(x, steps=8)
    slope = gradient(expected, x)
    log_prob = model.log_prob(x, steps=8, eps=0.3)
    assert (
        model.sde.eps == 1e-3
        and torch.equal(log_prob, expected)
        and torch.equal(gradient(log_prob, x), slope)
    )


class Kept:
    """A tensor that autograd keeps."""

    def __init__(self, tensor):
        self.tensor = tensor


def kept_bytes(function, model):
    """What the graph of ``function()`` keeps beside the parameters of the model."""
    parameters, kept = {p.data_ptr() for p in model.parameters()}, weakref.WeakSet()

    def pack(tensor):
        held = Kept(tensor)
        kept.add(held)
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        result = function()
    storages = {k.tensor.untyped_storage() for k in kept}
    total = sum(
        {s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in parameters}.values()
    )
    assert result.requires_grad
    return total


def test_a_step_keeps_its_two_states_and_no_activations():
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": UNET}
    model, x = (
        perturb(build_model(tables, (1, 8, 8)), 0.2),
        torch.randn(4, 1, 8, 8, requires_grad=True),
    )
    few, many = (
        kept_bytes(lambda n=n: model.log_prob(x, steps=n, generator=seeded(0)), model)
        for n in (4, 12)
    )
    evaluation = kept_bytes(lambda: model.score(x, torch.full((4,), 0.5)), model)
    size = x.numel() * x.element_size()
    assert 2 * size <= (many - few) / 8 < 2.5 * size < evaluation / 50


def test_a_second_derivative_is_refused():
    model, x = smooth_model(), points(3, 2).requires_grad_()
    (slope,) = torch.autograd.grad(model.log_prob(x, steps=2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.sum().backward()


def test_what_has_no_density_and_bad_options_are_named():
    score, x = gaussian("vp"), points(3, 2)
    for flow in (Frozen(ActNorm(2)), Compose([ActNorm(2), Frozen(Identity())])):
        for call in (
            INDM(flow, score).log_prob,
            lambda x, f=flow: decode_with_log_prob(INDM(f, score), x),
        ):
            with pytest.raises(
                ValueError,
                match="flow must give the log-determinant of one map for log_prob, got Frozen",
            ):
                call(x)
    conditional = ConditionalResidualFlow((2,), (1,), 8, code_dim=2)
    with pytest.raises(
        ValueError, match="log-determinant of one map for log_prob, got ConditionalResidualFlow"
    ):
        decode_with_log_prob(INDM(conditional, score), x)
    model = INDM(Identity(), score)
    for options, complaint in (
        ({"steps": 0}, "steps must be at least 1, got 0; 64 is usual"),
        ({"probes": 0}, "probes must be at least 1, got 0"),
        ({"eps": 1e-6}, r"eps must be in \[1e-05, 1\.0\), got 1e-06"),
    ):
        with pytest.raises(ValueError, match=complaint):
            model.log_prob(x, **options)
    with pytest.raises(ValueError, match="steps must be at least 8"):
        decode_with_log_prob(model, x, steps=4)


# ── of samples ────────────────────────────────────────────────────────────────────────────────────


def test_samples_and_their_density_in_closed_form(name):
    """Gaussian latents and their exact score behind a spline, at an ε where α and noise are seen."""
    score, flow = gaussian(name, eps=0.3), perturb(CouplingFlow((2,), bins=4)).double()
    z_T = score.sde.prior_sample((30, 2), generator=seeded(0), dtype=torch.float64)
    x, log_prob, error = decode_with_log_prob(INDM(flow, score), z_T, steps=48)
    z = score.flow(z_T, 1.0, 0.3) / score.sde.alpha(double(0.3))
    with torch.no_grad():
        torch.testing.assert_close(flow(x)[0], z, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(log_prob, expected_log_prob(flow, score, x), rtol=0, atol=1e-5)
    assert error.max() < 2e-3 and not x.requires_grad and not log_prob.requires_grad


@pytest.mark.parametrize(
    "reference", [None, GaussianReference(double(0.1, -0.2), double(0.4, 0.9))]
)
def test_the_error_of_a_density_is_stated(reference):
    """By probes, with the same of which log_prob is computed in many steps."""
    model, options = smooth_model(eps=1e-3), {"exact": False, "reference": reference}
    z_T = model.sde.prior_sample((60, 2), generator=seeded(0), dtype=torch.float64)
    x, log_prob, error = decode_with_log_prob(model, z_T, steps=16, **options, generator=seeded(1))
    with torch.no_grad():
        off = (log_prob - model.log_prob(x, steps=96, **options, generator=seeded(1))).abs()
    assert off.mean() > 1e-4 and (off <= error).all() and error.mean() < 0.3
