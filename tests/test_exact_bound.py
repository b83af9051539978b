"""The bound of a network that adds to a known law: against the plain estimator on the same draws,
and quadrature.
"""

import pytest
import torch
from closed_form import SDES, within

from indm.conditions import Vector
from indm.flows import CouplingFlow, Identity
from indm.gaussian import STANDARD, GaussianReference
from indm.model import INDM
from indm.nets import MLP, Zero
from indm.objective import constant_part, flow_loss, mle_loss, nelbo, prior_term
from indm.score import ScoreModel
from indm.sde.linear import VESDE, VPSDE
from indm.tables.networks import MixtureMLP
from indm.training import NoiseLevels

ROWS = 100
MEANS = torch.tensor([[1.0, -0.5], [-1.0, 1.0]], dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def mixture_net(deviation=0.6, condition=()):
    net = MixtureMLP((2,), 2, width=16, condition=condition).double()
    covariance = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64) * deviation**2
    net.set_mixture(
        torch.tensor([0.3, 0.7]).double(), MEANS, torch.stack([covariance, covariance.flip(0, 1)])
    )
    return net


def model_of(sde="vp", net=None, condition=None, seed=0):
    """A coupling flow and a network, both far from where they start."""
    torch.manual_seed(seed)
    net = (
        MLP((2,), width=16, condition=condition.seen_shape if condition else ())
        if net is None
        else net
    )
    model = INDM(
        CouplingFlow((2,)), ScoreModel(net, SDES[sde]()), shape=(2,), condition=condition
    ).double()
    return disturbed(model, seed)


def conditioned(sde, net, seed):
    return model_of(sde, net, Vector(3), seed).given(torch.ones(ROWS, 3))


def disturbed(model, seed):
    """``model`` with other weights."""
    generator = seeded(seed)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(
            parameter.shape, generator=generator, dtype=torch.float64
        )
    return model


def gradients(loss, module):
    return torch.cat(
        [
            g.flatten()
            for g in torch.autograd.grad(loss, module.parameters(), allow_unused=True)
            if g is not None
        ]
    )


@pytest.fixture
def plainly(monkeypatch):
    """mle_loss as it is where no law is known: ½‖n − ε̂‖² with all its noise."""

    def loss(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr("indm.objective.base_of", lambda score: None)
            return mle_loss(*arguments, **options)

    return loss


# ── the closed form ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("eps", [None, 0.2])
@pytest.mark.parametrize("sde", SDES)
def test_the_denoising_of_a_gaussian_is_the_integral_over_the_clock(sde, eps):
    """E[D] = ½ Σ (λ² + rδ²)/(λ + r)² of the module's page, by quadrature on the clock log r, and
    once at ε.
    """
    sde, eps = SDES[sde](), SDES[sde]().eps if eps is None else eps
    law = GaussianReference(torch.tensor([0.3, -2.0]).double(), torch.tensor([0.5, 1.7]).double())
    z = torch.randn(4, 2, dtype=torch.float64, generator=seeded(0))
    for of in (law, STANDARD):
        mean, variance = of.mean.double().expand(2), of.variance.double().expand(2)
        start, end = (-sde.log_snr(torch.tensor([eps, 1.0], dtype=torch.float64))).tolist()
        clock = torch.linspace(start, end, 200_001, dtype=torch.float64)
        error = [
            (0.5 * (variance**2 + r * (z[:, None] - mean) ** 2) / (variance + r) ** 2).sum(2)
            for r in (clock.exp()[None, :, None], torch.tensor(start).double().exp())
        ]
        expected = torch.trapezoid(error[0], clock, dim=1) + error[1][:, 0]
        torch.testing.assert_close(of.denoising(sde, z, eps), expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("sde", SDES)
def test_the_bound_of_the_base_is_its_log_density(sde):
    """Of N(0, I), and not of the SDE's prior, which is far wider under VE; the rest is of the size
    of ε.
    """
    z = torch.randn(50, 2, dtype=torch.float64, generator=seeded(0))
    for of in (
        STANDARD,
        GaussianReference(torch.tensor([0.3, -0.1]).double(), torch.tensor([0.5, 1.7]).double()),
    ):
        law = SDES[sde]()
        bound = of.denoising(law, z, law.eps) + prior_term(law, z) + constant_part(law, z, law.eps)
        mean, deviation = of.mean.double().expand(2), of.variance.double().expand(2).sqrt()
        log_prob = torch.distributions.Normal(mean, deviation).log_prob(z).sum(1)
        torch.testing.assert_close(of.log_prob(z), log_prob)
        torch.testing.assert_close(bound, -log_prob, rtol=0, atol=1e-3)


def test_a_flow_alone_is_trained_on_the_density_of_the_base():
    """Under VE, where the prior has the width of the most noise."""
    flow = disturbed(CouplingFlow((2,)).double(), 1)
    x = torch.randn(6, 2, dtype=torch.float64, generator=seeded(2))
    z, log_det = flow(x)
    expected = -(log_det + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)).mean()
    for sde in (VPSDE(), VESDE()):
        model = INDM(flow, ScoreModel(Zero(), sde), shape=(2,))
        torch.testing.assert_close(2 * flow_loss(model, x)[0], expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(2 * mle_loss(model, x)[0], expected, rtol=1e-4, atol=0)


# ── the same number by another estimator ──────────────────────────────────────────────────────────

CASES = {
    "vp": lambda seed: model_of("vp", seed=seed),
    "ve": lambda seed: model_of("ve", seed=seed),
    "mixture": lambda seed: model_of("vp", mixture_net(), seed=seed),
    "mixture, ve": lambda seed: model_of("ve", mixture_net(), seed=seed),
    "condition": lambda seed: conditioned("vp", None, seed),
    "mixture, condition": lambda seed: conditioned(
        "vp", mixture_net(condition=Vector(3).seen_shape), seed
    ),
}


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_difference_from_the_plain_estimator_does_not_depend_on_the_network(
    case, pairs, plainly
):
    """On the same draws; so the network's gradients are the same."""
    x = torch.randn(ROWS, 2, dtype=torch.float64, generator=seeded(1))
    model, differences = CASES[case](0), []
    for seed in range(3):
        disturbed(model.score, seed)
        losses = [
            loss(model, x, pairs=pairs, generator=seeded(2))[0] for loss in (mle_loss, plainly)
        ]
        differences.append((losses[0] - losses[1]).item())
        new, old = (gradients(loss, model.score) for loss in losses)
        torch.testing.assert_close(new, old, rtol=1e-8, atol=1e-10)
        assert new.abs().max() > 1e-3
    assert max(differences) - min(differences) < 1e-10 and abs(differences[0]) > 1e-3


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_both_estimators_have_one_mean_and_the_flow_one_gradient(case, pairs, plainly):
    model = CASES[case](3)
    x = torch.randn(ROWS, 2, dtype=torch.float64, generator=seeded(1))
    drawn: dict[str, list] = {"values": [], "gradients": []}
    for seed in range(60):
        value, other = (
            loss(model, x, pairs=pairs, generator=seeded(seed))[0] for loss in (mle_loss, plainly)
        )
        drawn["values"].append((value - other).detach())
        drawn["gradients"].append(gradients(value, model.flow) - gradients(other, model.flow))
    differences = torch.stack(drawn["gradients"])
    assert within(torch.stack(drawn["values"]), 0.0, errors=4, floor=1e-4) and within(
        differences, 0.0, errors=5, floor=1e-3
    )


@pytest.mark.parametrize("case", ["vp", "mixture"])
def test_the_loss_is_the_mean_of_the_bound_term_by_term(case):
    """The bound draws its score and reconstruction terms apart from each other."""
    model = CASES[case](3)
    x = torch.randn(2000, 2, dtype=torch.float64, generator=seeded(1))
    with torch.no_grad():
        losses = torch.stack(
            [mle_loss(model, x, generator=seeded(seed))[1]["nelbo"] for seed in range(20)]
        )
        bounds = torch.stack(
            [nelbo(model, x, times=4, generator=seeded(seed)).total.mean() for seed in range(20)]
        )
    assert within(losses - bounds, 0.0)


@pytest.mark.parametrize("sde", SDES)
def test_where_the_network_adds_nothing_the_bound_has_no_noise(sde):
    model = INDM(
        disturbed(CouplingFlow((2,)).double(), 1), ScoreModel(Zero(), SDES[sde]()), shape=(2,)
    )
    x = torch.randn(ROWS, 2, dtype=torch.float64, generator=seeded(1))
    drawn = torch.stack([mle_loss(model, x, generator=seeded(seed))[0] for seed in range(3)])
    assert drawn.std() < 1e-12 and mle_loss(model, x)[1]["correction"] == 0


@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_the_bound_of_a_standard_base_is_exact_at_every_truncation(sde, plainly):
    """So that soft truncation keeps its bound; behind a mixture a truncated bound is estimated
    plainly.
    """
    x = torch.randn(ROWS, 2, dtype=torch.float64, generator=seeded(1))
    for net in (None, mixture_net()):
        model = model_of(sde, net)
        new, old = (
            torch.stack(
                [loss(model, x, eps=0.3, generator=seeded(seed))[0].detach() for seed in range(60)]
            )
            for loss in (mle_loss, plainly)
        )
        assert within(new - old, 0.0) and (
            new.std() < old.std() if net is None else torch.equal(new, old)
        )


def test_a_component_too_narrow_for_the_first_noise_is_named():
    model, x = (
        INDM(Identity(), ScoreModel(mixture_net(0.01), VPSDE(eps=1e-3)), shape=(2,)).double(),
        torch.zeros(2, 2),
    )
    with pytest.raises(ValueError, match=r"above 10 σ/α at ε, 0\.1, got 0\.00"):
        mle_loss(model, x.double())


@pytest.mark.parametrize("levels", [False, True])
@pytest.mark.long
def test_pairs_and_levels_keep_the_mean_and_take_noise_from_the_gradient(levels):
    """Of a score trained for a while on points of two modes, at equal evaluations of the network."""
    torch.manual_seed(0)
    model = INDM(Identity(), ScoreModel(MLP((2,), width=32), VPSDE()), shape=(2,))
    x = 0.1 * torch.randn(4000, 2) + torch.where(torch.rand(4000, 1) < 0.5, 1.0, -1.0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    drawing = NoiseLevels(model.sde) if levels else None
    for _ in range(200):
        optimizer.zero_grad()
        mle_loss(model, x[torch.randint(4000, (128,))], pairs=levels, noise_levels=drawing)[
            0
        ].backward()
        optimizer.step()
    drawn: dict[bool, list] = {False: [], True: []}
    for _ in range(80):
        for better, rows in ((False, 128), (True, 64)):
            options = {"pairs": True, "noise_levels": drawing} if better else {}
            loss, _ = mle_loss(model, x[torch.randint(4000, (rows,))], **options)
            drawn[better].append(gradients(loss, model.score))
    plain, better = (torch.stack(drawn[name]) for name in (False, True))
    assert within(better - plain, 0.0, errors=5)
    assert better.var(0).sum() < (0.6 if levels else 0.9) * plain.var(0).sum()


def test_levels_are_of_the_whole_bound_in_any_precision():
    model = model_of()
    levels, x = (
        NoiseLevels(model.sde),
        torch.randn(ROWS, 2, dtype=torch.float64, generator=seeded(0)),
    )
    assert (
        mle_loss(model, x, noise_levels=levels)[0].dtype == torch.float64
        and levels.squares.unique().numel() > 2
    )
    with pytest.raises(ValueError, match="noise_levels must be None where the bound is truncated"):
        mle_loss(model, torch.zeros(2, 2).double(), eps=0.1, noise_levels=NoiseLevels(model.sde))
