"""The conditional residual flow: its maps, its code, the bound, and the models and runs that have
it.
"""

import copy
import math

import numpy as np
import pytest
import torch
from flow_tools import perturb, slopes
from torch import nn

import indm
from indm.flows import ActNorm, ExactLogDet, Frozen, InvertibleLinear, use_log_det
from indm.model import INDM
from indm.nets import Zero
from indm.published import ConditionalResidualFlow
from indm.published.conditional import CodePrior
from indm.score import ScoreModel
from indm.sde.linear import VPSDE
from indm.workbench.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

DEFAULTS = {"blocks": (1, 1), "width": 8, "code_dim": 4, "encoder_planes": (6, 8), "prior_width": 8}
CASES = {
    "vector": ((3,), {}),
    "image": ((1, 8, 8), {}),
    "squeezed": (
        (2, 8, 8),
        {"squeeze": True, "actnorm": True, "activation": "swish", "blocks": (2,)},
    ),
    "odd": (
        (3, 6, 10),
        {"encoder_activation": "leaky_relu", "prior_activation": "relu", "norm": "inf"},
    ),
}


def seeded(n):
    return torch.Generator().manual_seed(n)


def made(name="image", scale=0.15, **options):
    """A flow off the identity in double precision, exact in evaluation, and four samples."""
    shape, more = CASES[name]
    torch.manual_seed(0)
    flow = ConditionalResidualFlow(shape, **(DEFAULTS | more | options))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(
                scale * torch.randn(parameter.shape, generator=seeded(parameter.numel()))
            )
    use_log_det(flow, evaluation=ExactLogDet())
    return flow.double().eval(), torch.randn(4, *shape, dtype=torch.float64, generator=seeded(5))


@pytest.fixture(params=CASES)
def case(request):
    return made(request.param)


def model_of(flow):
    """The plain flow as an INDM: the exact score of N(0, I) latents."""
    return INDM(flow, ScoreModel(Zero(), VPSDE()), shape=flow.shape)


# ── The maps ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CASES)
def test_starts_at_the_identity_with_an_exact_bound(name):
    shape, options = CASES[name]
    flow, x = ConditionalResidualFlow(shape, **(DEFAULTS | options)), torch.randn(4, *shape)
    for mode in (True, False):
        z, bound = flow.train(mode)(x)
        torch.testing.assert_close(z, x, rtol=0, atol=1e-6)
        torch.testing.assert_close(bound, torch.zeros(4), rtol=0, atol=2e-5)


def test_round_trip_at_a_given_code(case):
    flow, x = case
    code = flow.encode_code(x, generator=seeded(1))
    with torch.no_grad():
        z, _ = flow(x, code)
        torch.testing.assert_close(flow.inverse(z, 1e-10, code=code), x, rtol=0, atol=1e-8)
        assert (flow.inverse(z, code=code.roll(1, 0)) - x).abs().max() > 1e-3, (
            "another code is another map"
        )
        assert torch.equal(flow.latent(x, code), z)


def test_single_precision_falls_back_to_double_with_the_codes_of_the_samples_that_need_it():
    flow, x = made("vector", 0.2)
    flow, x, code = flow.float(), x.float(), torch.randn(4, 4, generator=seeded(1))
    with torch.no_grad():
        z, _ = flow(x, code)
        # some samples reach it and some do not
        tol = 0.999 * float(flow.solve_inverse(z, 1e-7, code=code)[1].max())
        assert 0 < flow.solve_inverse(z, tol, code=code)[3].sum() < 4
        again = copy.deepcopy(flow).double().inverse(z.double(), tol, code=code.double())
        torch.testing.assert_close(
            flow.inverse(z, tol, code=code).double(), again, rtol=0, atol=1e-5
        )


def test_one_code_is_an_ordinary_flow(case):
    flow, x = case
    code = flow.sample_code(1, generator=seeded(2))[0]
    here = flow.at(code)
    for a, b in zip(here(x), flow(x, code.expand(4, -1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(here.inverse(here(x)[0], 1e-10), x, rtol=0, atol=1e-8)
    assert here.has_log_det and not flow.has_log_det


def test_the_code_enters_at_the_input_of_the_middle_map():
    """Against the block written out, where the constant is added before a padded convolution would
    see it.
    """
    flow, x = made("image")
    block, code = flow.chain[0], torch.randn(4, 4, dtype=torch.float64, generator=seeded(3))
    first, middle, last = (linear.constrained_weight() for linear in block.maps)
    phi = block.activations[0]
    h = phi(nn.functional.conv2d(x, first, block.maps[0].bias, padding=1))
    h = h + (code @ block.code.weight.T + block.code.bias)[:, :, None, None]
    h = phi(nn.functional.conv2d(h, middle, block.maps[1].bias))
    expected = x + nn.functional.conv2d(h, last, block.maps[2].bias, padding=1)
    torch.testing.assert_close(block.at(code).latent(x), expected, rtol=1e-12, atol=1e-12)


# ── The code ──────────────────────────────────────────────────────────────────────────────────────


def plane():
    """A grid over the plane, (n, 2), and the area of a cell."""
    axis = torch.linspace(-12, 12, 241, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), (axis[1] - axis[0]).item() ** 2


def test_prior_is_a_density_and_its_samples_have_it():
    flow, _ = made("vector", 0.3, code_dim=2)
    points, cell = plane()
    p = flow.prior.log_prob(points).exp() * cell
    assert p.sum().item() == pytest.approx(1, abs=1e-3)
    mean = p @ points / p.sum()
    covariance = (points - mean).T @ ((points - mean) * p[:, None])
    drawn = flow.sample_code(40_000, generator=seeded(0))
    error = covariance.diagonal().sqrt() / 200
    assert ((drawn.mean(0) - mean).abs() < 4 * error).all()
    torch.testing.assert_close(
        torch.cov(drawn.T), covariance, rtol=0.05, atol=0.05 * covariance.max().item()
    )


def test_couplings_of_the_prior_move_all_entries_by_halves_and_by_turns():
    """The Jacobian of each: a coupling moves one half, or every other entry, by all of the rest,
    which it leaves.
    """
    prior = CodePrior(6, steps=2, width=8, activation="elu").double()
    perturb(prior)
    couplings = [flow for flow in prior.flows if not isinstance(flow, ActNorm | InvertibleLinear)]
    assert len(couplings) == 8
    x = torch.randn(6, dtype=torch.float64)
    moved = [[3, 4, 5], [0, 1, 2], [1, 3, 5], [0, 2, 4]]
    for flow, entries in zip(couplings, moved * 2, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x, flow=flow: flow(x[None])[0][0], x)
        others = [i for i in range(6) if i not in entries]
        assert torch.equal(jacobian[others], torch.eye(6).double()[others])
        assert bool((jacobian[entries][:, others].abs() > 1e-9).all())


@pytest.mark.parametrize("activation", ["elu", "relu", "leaky_relu"])
def test_prior_is_inverted_and_has_the_jacobian_of_autograd(activation):
    torch.manual_seed(1)
    prior = CodePrior(6, 2, 16, activation).double()
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.2)
    code = torch.randn(3, 6, dtype=torch.float64)
    noise, log_det = prior(code)
    torch.testing.assert_close(prior.code_of(noise), code, rtol=1e-8, atol=1e-8)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda u: prior(u[None])[0][0], code[i])
        torch.testing.assert_close(
            log_det[i], torch.linalg.slogdet(jacobian)[1], rtol=1e-9, atol=1e-9
        )


def test_kl_is_that_of_quadrature():
    """The mean of log q − log p over draws of q, against ∫ q (log q − log p) on a grid."""
    flow, x = made("vector", 0.3, code_dim=2)
    points, cell = plane()
    mean, log_variance = flow.posterior(x[:1])
    log_q = torch.distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(points).sum(1)
    exact = (log_q.exp() * (log_q - flow.prior.log_prob(points))).sum() * cell
    many = x[:1].expand(20_000, -1)
    kl = flow.kl(many, flow.encode_code(many, generator=seeded(0)))
    assert abs(kl.mean() - exact) < 4 * kl.std() / math.sqrt(len(kl))
    assert exact > 0.01


def test_forward_draws_the_code_and_pays_for_it(case):
    flow, x = case
    code = flow.encode_code(x, generator=seeded(7))
    z, log_det = flow(x, code)
    drawn, bound = flow(x, generator=seeded(7))
    torch.testing.assert_close(drawn, z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bound, log_det - flow.kl(x, code), rtol=1e-9, atol=1e-9)
    assert torch.equal(flow.latent(x, generator=seeded(7)), drawn)
    assert torch.equal(Frozen(flow)(x, generator=seeded(7))[0], drawn)
    assert not torch.equal(flow(x, generator=seeded(8))[0], drawn)


def test_inverse_draws_the_code_from_the_prior(case):
    flow, z = case
    torch.manual_seed(7)
    code = flow.sample_code(4)
    torch.manual_seed(7)
    x = flow.inverse(z)
    assert torch.equal(x, flow.inverse(z, code=code)) and torch.equal(
        x, flow.solve_inverse(z, code=code)[0]
    )
    assert not torch.equal(x, flow.inverse(z))


def test_bound_lies_below_the_likelihood_which_many_draws_approach():
    """log p(x) = log ∫ p(u) N(h_u(x); 0, I) |∂h_u/∂x| du by quadrature over the plane of codes."""
    flow, x = made("vector", 0.2, code_dim=2)
    points, cell = plane()
    points, cell = points[::7], 7 * cell

    def log_joint(sample, codes):
        z, log_det = flow(sample.expand(len(codes), -1), codes)
        return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + log_det

    with torch.no_grad():
        for i in range(3):
            exact = torch.logsumexp(
                log_joint(x[i], points) + flow.prior.log_prob(points), 0
            ) + math.log(cell)
            z, bound = flow(x[i : i + 1].expand(20_000, -1), generator=seeded(i))
            draws = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + bound
            error = draws.std() / math.sqrt(len(draws))
            assert draws.mean() < exact + 4 * error and exact - draws.mean() > 4 * error, (
                "the gap is there to be seen"
            )
            weighted = torch.logsumexp(draws, 0) - math.log(len(draws))
            assert weighted.item() == pytest.approx(exact.item(), abs=0.02)


def test_nelbo_of_a_model_is_that_bound():
    """With the exact score of N(0, I) latents, the NELBO is −log π(z) − (log|det| − kl), but for
    the SDE's ends.
    """
    flow, x = made("vector", 0.1, code_dim=2)
    with torch.no_grad():
        many = x[:1].expand(2000, -1)
        terms = indm.nelbo(model_of(flow), many, times=4, generator=seeded(0))
        z, bound = flow(many, generator=seeded(1))
        expected = 0.5 * (z.square() + math.log(2 * math.pi)).sum(1) - bound
    for found, wanted, most in ((terms.flow, -bound, 0.1), (terms.total, expected, 1.0)):
        error = math.sqrt((found.var() + wanted.var()) / len(many))
        assert abs(found.mean() - wanted.mean()) < 4 * error < most


# ── Training ──────────────────────────────────────────────────────────────────────────────────────


def test_every_parameter_gets_a_gradient(case):
    flow, x = case
    z, bound = flow.train()(x, generator=seeded(0))
    (0.5 * z.flatten(1).square().sum(1) - bound).mean().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert bool((parameter.grad != 0).any()), name


def test_gradient_of_the_bound_is_that_of_finite_differences(case):
    flow, x = case
    parameters = list(flow.parameters())

    def loss():
        z, bound = flow(x, generator=seeded(0))
        return (0.5 * z.flatten(1).square().sum(1) - bound).mean()

    direction = [
        torch.randn(p.shape, dtype=p.dtype, generator=seeded(i)) for i, p in enumerate(parameters)
    ]
    slope, difference = slopes(loss, parameters, direction)
    assert slope == pytest.approx(difference, rel=1e-4, abs=1e-5)


def test_samples_interact_in_training_alone():
    flow, x = made("image")
    other = torch.cat([x[:2], 3 * x[2:] + 1])
    torch.testing.assert_close(
        flow.posterior(x)[0][:2], flow.posterior(other)[0][:2], rtol=1e-12, atol=1e-12
    )
    flow.train()
    assert (flow.posterior(x)[0][:2] - flow.posterior(other)[0][:2]).abs().max() > 1e-4


TRAINING = (
    "--flow=conditional-residual --flow.blocks=[1,1] --flow.width=4 --flow.code-dim=4 --flow.encoder-planes=[4] "
    "--net.channels=4 --net.blocks=1 --net.attention=[] --train.steps=5 --train.seconds=inf "
    "--train.flow_update_every=2 "
    "--train.batch_size=32 --train.log_every=1 --train.validate_every=5 --train.validate_examples=20"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "conditional"
    assert main(["train", "digits", *TRAINING.split(), "--out", str(folder), "--quiet"]) == 0
    return folder


def test_train_evaluate_and_sample_from_the_command_line(run, capsys):
    options = ["--examples", "8", "--nll-examples", "4", "--steps", "8", "--quiet"]
    assert main(["evaluate", str(run), *options]) == 0
    for report in ((run / "evaluation.json").read_text(), capsys.readouterr().out):
        assert (
            "one draw for each estimate: the NLL is a bound, too" in report
            and "estimates were solved" not in report
        )
    drawn = []
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        options = ["--steps", "4", "--seed", seed, "--out", str(run / out)]
        assert main(["sample", str(run), "-n", "6", *options]) == 0
        with np.load(run / out / "samples.npz") as arrays:
            drawn.append(arrays["samples"])
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
    assert "change in twice the steps: " not in capsys.readouterr().out  # the codes would differ


def test_what_needs_one_map_says_so():
    flow, x = made("image")
    model, times = model_of(flow), torch.tensor([0.1, 0.2])
    for attempt in (
        lambda: indm.NonlinearDiffusion(model),
        lambda: indm.forward_path(model, x, times),
        lambda: indm.generative_path(model, x, times.flip(0)),
        lambda: indm.probability_flow_path(model, x, times),
        lambda: indm.translate(model, model, x),
        lambda: indm.NonlinearDiffusion(INDM(Frozen(flow), model.score, shape=flow.shape)),
    ):
        with pytest.raises(ValueError, match=r"log-determinant of one map for .* flow\.at\(code\)"):
            attempt()
    here = INDM(flow.at(flow.sample_code(1)[0]), model.score, shape=flow.shape)
    assert (
        indm.NonlinearDiffusion(here)
        .probability_flow(x, torch.full((4,), 0.5).double())
        .isfinite()
        .all()
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"norm": "columns"}, "norm must be 2"),
        ({"coeff": 1.0}, "coeff must be in"),
        ({"blocks": (1, 1, 1, 1, 1)}, "halve 4 times"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConditionalResidualFlow((1, 8, 8), **(DEFAULTS | arguments))
