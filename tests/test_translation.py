"""Translation against closed forms: the probability flows of Gaussians, the laws at both ends,
orders, identities.
"""

import copy
import itertools
import math

import pytest
import torch
from closed_form import GaussianScore, gaussian, within

from indm.flows import ActNorm, CouplingFlow, Identity
from indm.model import INDM, build_model
from indm.objective import flow_nll
from indm.scaling import Scaling
from indm.sde.linear import VESDE, VPSDE
from indm.translation import (
    bridge,
    forward_step,
    sdedit,
    translate,
    translate_bridge,
    two_models,
    without_noise,
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def actnorm(seed, channels=2):
    flow = ActNorm(channels).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=seeded(seed))
    return flow


def model_of(name, seed, flow=None, **sde):
    """An INDM in float64 whose score is exact for Gaussian latents."""
    score = gaussian(name, seed=seed, **sde)
    model = INDM(flow or Identity(), score, shape=(2,))
    return model.double()


def data_of(model, n, seed=0):
    return model.decode(model.score.sample(n, seeded(seed)))


def standard(n):
    """Draws of N(0, I) whose mean and covariance are exactly 0 and I."""
    z = torch.randn(n, 2, dtype=torch.float64, generator=seeded(0))
    z = z - z.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(z.T @ z / n), z.T, upper=False).T


def exact_data_of(model, n=100):
    """Data whose latents have exactly the mean and covariance of their law: what is affine keeps
    that, with no error of sampling.
    """
    return model.decode(model.score.mean + model.score.variance.sqrt() * standard(n))


def is_standard(white):
    """Whether mean and covariance are those of N(0, I), for what came of exact ones."""
    off = white.T @ white / len(white) - torch.eye(2)
    return (
        white.mean(0).abs().max() < 0.02
        and off.diagonal().abs().max() < 0.03
        and off[0, 1].abs() < 0.02
    )


@pytest.fixture(
    params=[
        pytest.param("vp", marks=pytest.mark.long),
        pytest.param("subvp", marks=pytest.mark.long),
        "ve",
    ]
)
def pair(request):
    return model_of(request.param, 0, actnorm(0)), model_of(request.param, 1, actnorm(1))


# ── two models ────────────────────────────────────────────────────────────────────────────────────


def closed(source, target, x, strength=1.0):
    """The translation by the closed flows of both."""
    sde = source.sde
    alpha = sde.alpha(torch.tensor(sde.eps, dtype=torch.float64))
    turned = source.score.flow(alpha * source.encode(x)[0], sde.eps, strength * sde.T)
    return target.decode(target.score.flow(turned, strength * sde.T, sde.eps) / alpha)


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_the_way_between_gaussians_is_the_composition_of_their_closed_flows(pair, strength):
    source, target = pair
    x = data_of(source, 50)
    got = translate(source, target, x, strength=strength, steps=320)
    assert (got - closed(source, target, x, strength)).abs().max() < 1e-5
    assert (got - x).abs().mean() > 0.05


def test_what_arrives_has_the_law_of_the_target(pair):
    source, target = pair
    z = target.encode(translate(source, target, exact_data_of(source), steps=150))[0]
    assert is_standard((z - target.score.mean) / target.score.variance.sqrt())


def test_stochastic_translation_has_the_law_of_the_target_and_repeats_by_its_seed():
    source, target = model_of("vp", 0, actnorm(0)), model_of("vp", 1, actnorm(1))
    x, options = data_of(source, 20_000), {"stochastic": True, "steps": 40}
    once, again, other = (
        translate(source, target, x[:50], **options, generator=seeded(s)) for s in (7, 7, 8)
    )
    assert torch.equal(once, again) and (once - other).abs().mean() > 0.1
    y = translate(source, target, x, **options, generator=seeded(7))
    white = (target.encode(y)[0] - target.score.mean) / target.score.variance.sqrt()
    assert within(white, 0.0, floor=0.02) and within(white.square(), 1.0, floor=0.03)


@pytest.mark.parametrize("strength", [0.2, 0.6])
def test_sdedit_of_gaussians_has_its_law(strength):
    """z_t = α_t z_0 + σ_t n of one and the same source, carried down by the closed flow of B, is a
    Gaussian; the noise from ε on leaves out that of ε itself.
    """
    target = model_of("vp", 1, actnorm(1))
    sde, score, n = target.sde, target.score, 5000
    source = torch.tensor([[1.5, -0.7]], dtype=torch.float64)
    y = (
        sdedit(target, strength=strength, steps=60)
        .follow(source.expand(n, 2), generator=seeded(3))
        .x
    )
    z = target.encode(y)[0]
    (alpha, start), (sigma, least) = (
        of(torch.tensor([strength * sde.T, sde.eps], dtype=torch.float64))
        for of in (sde.alpha, sde.sigma)
    )
    std = (sigma**2 - (alpha / start * least) ** 2).sqrt()
    ends = [a**2 * score.variance + s**2 for a, s in ((start, least), (alpha, sigma))]
    gain = (ends[0] / ends[1]).sqrt() / start
    mean = score.mean + gain * (alpha * target.encode(source)[0] - alpha * score.mean)
    white = (z - mean) / (gain * std)
    assert within(white, 0.0) and within(white.square(), 1.0)
    # Less noise keeps more of the source: its share in the mean is gain · α_t, which falls with t.
    later = (
        sdedit(target, strength=0.9, steps=60).follow(source.expand(n, 2), generator=seeded(3)).x
    )
    away = [(target.encode(v)[0].mean(0) - score.mean).abs() for v in (y, later)]
    assert (away[1] < away[0]).all()


def test_images_come_back_within_half_a_grey_level():
    tables = {
        "flow": {"name": "coupling", "depth": 2, "width": 8},
        "sde": {"name": "vp"},
        "net": {"name": "unet", "channels": 4, "blocks": 1, "multipliers": [1], "attention": []},
    }
    models = [build_model(tables, (3, 8, 8), Scaling.images(256)).eval() for _ in range(2)]
    for model in models:
        for parameter in model.parameters():
            torch.nn.init.normal_(
                parameter, std=0.02, generator=seeded(3)
            ) if parameter.ndim > 1 else None
    source, target = models[0], copy.deepcopy(models[0])
    raw = torch.randint(0, 256, (3, 3, 8, 8), generator=seeded(0), dtype=torch.uint8)
    x = source.scaling.centre(raw)
    back = translate(source, target, x)
    assert torch.equal(target.scaling.to_data(back), raw)
    assert (back - x).abs().max() * 128 < 0.5
    route = two_models(models[0], models[1])
    there = route.follow(x)
    assert (route.back().follow(there.x).x - x).abs().max() * 128 < 0.5


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_the_error_of_the_cycle_and_of_the_way_falls_with_the_third_power_of_the_step(name):
    source, target = model_of(name, 0, actnorm(0)), model_of(name, 1, actnorm(1))
    x = data_of(source, 20)
    exact = closed(source, target, x)
    errors = {"way": [], "cycle": []}
    for steps in (60, 120, 240):
        route = two_models(source, target, steps=steps)
        there = route.follow(x)
        assert there.nfe == steps + 2
        errors["way"].append((there.x - exact).abs().max().item())
        errors["cycle"].append((route.back().follow(there.x).x - x).abs().max().item())
    for found in errors.values():
        orders = [math.log2(a / b) for a, b in itertools.pairwise(found)]
        assert all(order > 2.6 for order in orders), (found, orders)


def test_the_score_is_called_as_often_as_is_said(monkeypatch):
    calls, forward = [], GaussianScore.forward
    monkeypatch.setattr(
        GaussianScore, "forward", lambda *arguments: calls.append(1) or forward(*arguments)
    )
    model = model_of("vp", 0)
    assert two_models(model, model, steps=20).follow(data_of(model, 3)).nfe == len(calls) == 22


def test_the_tolerance_bounds_the_cycle():
    source, target = model_of("vp", 0, actnorm(0)), model_of("vp", 1, actnorm(1))
    x, errors = data_of(source, 20), []
    for tol in (1e-3, 1e-4, 1e-5):
        route = two_models(source, target, tol=tol)
        errors.append((route.back().follow(route.follow(x).x).x - x).abs().max().item())
        assert errors[-1] < 300 * tol
    assert errors[2] < errors[1] < errors[0]


# ── a bridge ──────────────────────────────────────────────────────────────────────────────────────


def gaussian_bridge():
    """Latents N(mean, variance) under VP and an affine h: x_0 and x_T = h⁻¹(N(0, I)) are two known
    Gaussians.
    """
    return model_of("vp", 2, actnorm(4))


def test_a_bridge_carries_one_end_to_the_other_and_back():
    model = gaussian_bridge()
    a = exact_data_of(model)
    b = translate_bridge(model, a, steps=100)
    assert is_standard(model.encode(b)[0])
    assert (translate_bridge(model, b, "backward", steps=100) - a).abs().max() < 1e-4

    z = model.encode(translate_bridge(model, model.decode(standard(100)), "backward"))[0]
    assert is_standard((z - model.score.mean) / model.score.variance.sqrt())


def test_a_bridge_may_stop_on_its_way_and_be_random():
    model = gaussian_bridge()
    a = exact_data_of(model)
    half = translate_bridge(model, a, strength=0.5, steps=100)
    of_half, noisy = (
        translate_bridge(model, x, strength=0.5, stochastic=True, generator=seeded(7))
        for x in (a, data_of(model, 20_000))
    )
    assert (of_half - half).abs().mean() > 0.1
    mean, variance = model.score.law(torch.tensor(0.5, dtype=torch.float64), half)
    assert is_standard((model.encode(half)[0] - mean) / variance.sqrt())
    white = (model.encode(noisy)[0] - mean) / variance.sqrt()
    assert within(white, 0.0, floor=0.02) and within(white.square(), 1.0, floor=0.03)
    whole = translate_bridge(
        model, translate_bridge(model, a, steps=100), "backward", strength=0.5, steps=100
    )
    assert (whole - half).abs().max() < 1e-3


def test_a_bridge_begins_with_the_noise_of_grey_levels_and_two_models_in_their_middles():
    """The noise is that of the image and the seed, in whatever batch the image is."""
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
    model = build_model(tables, (1, 4, 4), Scaling.images(256))
    raw = torch.randint(0, 256, (5, 1, 4, 4), generator=seeded(3), dtype=torch.uint8)
    middles, through = two_models(model, model).source(raw), bridge(model)
    assert torch.equal(middles, model.scaling.centre(raw))
    x = through.source(raw)
    assert torch.equal(model.scaling.to_data(x), raw) and (
        x - middles
    ).abs().mean() * 128 == pytest.approx(0.25, abs=0.1)
    assert torch.equal(through.source(raw[3:]), x[3:]) and not torch.equal(
        through.source(raw, seed=1), x
    )
    assert torch.equal(through.source(raw.double()), x)
    assert not torch.equal((x - middles)[0], (x - middles)[1])


def test_noise_with_which_b_was_learned_is_taken_away_where_the_bridge_ends_in_b():
    """By σ² times the slope of log p(x_T), which is Gaussian here; nowhere else."""
    model, sigma = gaussian_bridge(), 0.4
    a = data_of(model, 50)
    b, clean = (translate_bridge(model, a, steps=100, noise=(0.0, noise)) for noise in (0.0, sigma))
    mean = model.decode(torch.zeros_like(a))
    variance = (model.decode(torch.ones_like(a)) - mean) ** 2
    torch.testing.assert_close(clean, b - sigma**2 * (b - mean) / variance)
    for options in ({"direction": "backward"}, {"strength": 0.5}):
        noises = ((0.0, 0.0), (0.0, sigma))
        plain, same = (
            translate_bridge(model, a, steps=10, noise=noise, **options) for noise in noises
        )
        assert torch.equal(plain, same)
    route = bridge(model, noise=(0.0, sigma), steps=100)
    there = route.follow(a, frames=3)
    assert (
        torch.equal(there.x, clean)
        and torch.equal(there.end, b)
        and torch.equal(there.frames[:, -1], clean)
    )
    assert (route.back().follow(there.end).x - a).abs().max() < 1e-4


def test_noise_with_which_a_was_learned_is_taken_away_where_the_bridge_ends_in_a():
    """The law of x_0 is Gaussian here, too, with 0.01 more variance in its latents; the way back
    begins before that.
    """
    model, sigma = gaussian_bridge(), 0.4
    b = model.decode(torch.randn(50, 2, dtype=torch.float64, generator=seeded(5)))
    options = {"direction": "backward", "steps": 100}
    a, clean = (translate_bridge(model, b, noise=(noise, 0.0), **options) for noise in (0.0, sigma))
    mean = model.decode(model.score.mean.expand_as(a))
    std = (model.score.variance + 0.01).sqrt()
    variance = (model.decode((model.score.mean + std).expand_as(a)) - mean) ** 2
    torch.testing.assert_close(clean, a - sigma**2 * (a - mean) / variance)
    plain, same = (
        translate_bridge(model, a, steps=10, noise=(noise, 0.0)) for noise in (0.0, sigma)
    )
    assert torch.equal(plain, same)
    route = bridge(model, noise=(sigma, 0.0), **options)
    there = route.follow(b)
    assert torch.equal(there.x, clean) and (route.back().follow(there.end).x - b).abs().max() < 1e-4


def test_noise_is_taken_away_along_the_slope_of_a_density_that_is_no_gaussian():
    """That of h⁻¹#N(0, I), by finite differences of its logarithm, through a flow that bends."""
    flow = CouplingFlow((2,), width=8, depth=2)
    torch.manual_seed(3)
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model, x, step = (
        INDM(flow, gaussian("vp"), shape=(2,)).double().eval(),
        torch.randn(6, 2).double(),
        1e-5,
    )
    ways = step * torch.eye(2).double()
    moved = torch.stack(
        [(flow_nll(model, x + way) - flow_nll(model, x - way)) / (2 * step) for way in ways]
    )
    torch.testing.assert_close(
        without_noise(model, x, 0.5), x - 0.25 * moved.T, rtol=1e-6, atol=1e-6
    )


def test_a_bridge_adds_the_noise_with_which_it_has_learned_the_end_where_it_begins():
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
    model = build_model(tables, (1, 16, 16), Scaling.images(256))
    raw = torch.full((20, 1, 16, 16), 7, dtype=torch.uint8)
    for direction, deviation in (("forward", 0.1), ("backward", 0.3)):
        off = bridge(model, direction, noise=(0.1, 0.3)).source(raw, seed=2) - model.scaling.centre(
            raw
        )
        assert off.std().item() == pytest.approx(
            math.hypot(deviation, 2 / 256 / math.sqrt(12)), rel=0.05
        )
    assert bridge(model).source(torch.zeros(0, 1, 16, 16)).shape == (0, 1, 16, 16)


def test_noise_of_the_source_goes_along_with_both_signs_and_the_mean_is_the_result():
    """All is linear here: what comes of the mean of n and −n is what comes of no noise at all."""
    model = gaussian_bridge()
    raw = data_of(model, 6)
    for options in ({}, {"strength": 0.5}, {"direction": "backward"}):
        way = bridge(model, noise=(0.3, 0.2), steps=10, **options)
        x = way.source(raw, seed=1)
        there, once = way.translate(raw, seed=1, frames=3), way.follow(x, frames=3)
        without = way.follow(raw, frames=3)
        assert not torch.allclose(once.x, without.x, atol=0.05) and torch.equal(there.end, once.end)
        for name in ("x", "frames"):
            torch.testing.assert_close(
                getattr(there, name), getattr(without, name), rtol=1e-9, atol=1e-9
            )
        assert there.nfe == 2 * once.nfe
    for options in ({}, {"noise": (0.3, 0.2), "stochastic": True}):
        way = bridge(model, steps=10, **options)
        once = way.follow(way.source(raw, seed=1), generator=seeded(2))
        assert torch.equal(way.translate(raw, seed=1, generator=seeded(2)).x, once.x)


# ── pictures on the way, noise ────────────────────────────────────────────────────────────────────


def test_frames_are_decoded_latents_from_the_source_to_the_result(pair):
    source, target = pair
    x = data_of(source, 8)
    route = two_models(source, target, steps=40)
    found, plain = route.follow(x, frames=4), route.follow(x)
    assert found.frames.shape == (8, 8, 2)
    assert (found.x - plain.x).abs().max() < 1e-5
    small = 0.02 if isinstance(source.sde, VESDE) else 1e-4  # h⁻¹(α_ε z_0) is not quite x
    assert (found.frames[:, 0] - x).abs().max() < small and (
        found.frames[:, -1] - found.x
    ).abs().max() < small
    turn = [model.encode(found.frames[:, i])[0] for model, i in ((source, 3), (target, 4))]
    assert (turn[0] - turn[1]).abs().max() < 1e-6  # one z_T, decoded by either flow
    assert plain.frames.shape == (8, 0, 2)
    times = [t for leg in route.legs for t in leg.times(4)]
    up = torch.tensor(times, dtype=torch.float64)[:4]
    assert (up[0], up[-1]) == (source.sde.eps, 1.0)
    between = source.sde.log_snr(up).diff()  # equal steps
    assert between.std() < 1e-6 < between.abs().min() and times == [
        *up.tolist(),
        *up.tolist()[::-1],
    ]


def test_frames_of_a_random_way_have_its_noise_and_take_none_from_what_follows():
    source, target = model_of("vp", 0, actnorm(0)), model_of("vp", 1, actnorm(1))
    x, route = data_of(source, 8), two_models(source, target, stochastic=True, steps=40)
    plain, pictured = seeded(3), seeded(3)
    expected, found = (
        route.follow(x, generator=plain).x,
        route.follow(x, frames=2, generator=pictured),
    )
    assert torch.equal(found.x, expected) and torch.equal(plain.get_state(), pictured.get_state())
    assert (found.frames[:, -1] - found.x).abs().max() < 1e-4


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_steps_of_the_forward_sde_add_up_to_its_kernel(sde):
    z, n = torch.full((50_000, 1), 1.5, dtype=torch.float64), 50_000
    generator = seeded(0)
    for t, s in ((sde.eps, 0.1), (0.1, 0.3), (0.3, 0.6)):
        z = forward_step(sde, z, t, s, generator)
    ends = torch.tensor([sde.eps, 0.6], dtype=torch.float64)
    alpha, sigma = sde.alpha(ends), sde.sigma(ends)
    ratio = (alpha[1] / alpha[0]).item()
    std = math.sqrt(sigma[1] ** 2 - ratio**2 * sigma[0] ** 2)
    assert abs(z.mean() - 1.5 * ratio) < 4.5 * std / math.sqrt(n)
    assert z.std().item() == pytest.approx(std, rel=4.5 / math.sqrt(2 * n))


# ── what cannot be done ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (
            lambda: INDM(Identity(), gaussian("vp", (3,)), shape=(3,)),
            r"that of source, \(2,\), got \(3,\)",
        ),
        (
            lambda: INDM(Identity(), gaussian("vp"), Scaling.images(17), shape=(2,)),
            "grey levels, got None and 17",
        ),
        (lambda: model_of("ve", 0), "the same SDE, got VPSDE .* and VESDE"),
        (
            lambda: model_of("vp", 0, eps=1e-3),
            "the same SDE, got VPSDE .*1e-05.* and VPSDE .*0.001",
        ),
        (lambda: model_of("vp", 0, beta_max=10.0), "the same SDE"),
    ],
)
def test_models_that_do_not_fit_are_errors(other, complaint):
    with pytest.raises(ValueError, match=complaint):
        two_models(model_of("vp", 0), other())


def test_arguments_are_checked():
    model = model_of("vp", 0)
    x = data_of(model, 3)
    for strength in (0.0, 1e-6, 1.2, -1.0):
        for route in (two_models, bridge, sdedit):
            with pytest.raises(ValueError, match="strength"):
                route(*[model] * (1 + (route is two_models)), strength=strength)
    with pytest.raises(ValueError, match="steps"):
        translate(model, model, x, steps=1)
    for tol in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="tol"):
            translate(model, model, x, tol=tol)
    with pytest.raises(ValueError, match=r"x .*\(4, 3\)"):
        translate(model, model, torch.zeros(4, 3, dtype=torch.float64))
    with pytest.raises(KeyError, match="up"):
        translate_bridge(model, x, "up")
    with pytest.raises(ValueError, match="stochastic"):
        bridge(model, "backward", stochastic=True)
    with pytest.raises(ValueError, match="strength"):
        sdedit(model, strength=1)
    with pytest.raises(ValueError, match="no way back along noise"):
        sdedit(model).back()
    with pytest.raises(ValueError, match="no way back along noise"):
        two_models(model, model, stochastic=True).back()
