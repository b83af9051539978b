"""Networks trained elsewhere, against exact denoisers and the prior that the exact flow pulls back."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from exact import BETAS, PATHS, PREDICTS, Cosine, Exact, pulled_back

import indm
from indm.foreign.denoiser import Preconditioned
from indm.foreign.paths import path_of
from indm.likelihood import check_gradient
from indm.nets import MLP as MLPNet

GAUSSIAN = ([1.0], [[0.0, 0.0]], [0.7])
MIXTURE = ([0.4, 0.6], [[-0.5, 0.8], [0.6, -0.3]], [0.3, 0.5])
POINTS = torch.tensor([[0.3, -0.4], [-0.6, 0.9]], dtype=torch.float64)
MLP = {"factory": "mlp", "options": {"shape": [2], "width": 8}}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def model_of(predicts, path, law=MIXTURE, **options):
    return indm.from_denoiser(
        Exact(predicts, path, *law), predicts=predicts, path=path, shape=(2,), **options
    ).double()


def stretched(path, prior_std):
    """The law at ε that the flow of data N(0, v I), v = 0.49, carries to N(0, prior_std² I) at T.

    The flow only stretches: x_T = x_ε √((α_T² v + σ_T²)/(α_ε² v + σ_ε²)).
    """
    ends = torch.tensor(path.range, dtype=torch.float64)
    first, last = (path.alpha(ends) ** 2 * 0.49 + path.sigma(ends) ** 2).tolist()
    return torch.distributions.Normal(
        0.0, prior_std * math.sqrt(first / last) / path.alpha(ends)[0].item()
    )


def test_the_prior_of_a_path_may_have_a_deviation_of_its_own():
    path = Cosine()
    path.prior_std = 2.0
    found = model_of("velocity", path, GAUSSIAN).log_prob(POINTS, steps=128)
    torch.testing.assert_close(
        found, stretched(path, 2.0).log_prob(POINTS).sum(1), rtol=0, atol=2e-4
    )


@pytest.mark.parametrize("name", PATHS)
def test_log_p_of_a_mixture_is_the_prior_pulled_back(name):
    model = model_of("data", PATHS[name])
    expected = pulled_back(model.score.backbone.network, POINTS)
    torch.testing.assert_close(model.log_prob(POINTS, steps=128), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PATHS)
def test_all_parameterizations_of_a_path_are_one_model(name):
    models = [model_of(predicts, PATHS[name]) for predicts in PREDICTS]
    t = torch.linspace(1e-5, 1.0, 20, dtype=torch.float64)
    z = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = [model.score(z, t) * model.sde.sigma(t)[:, None] for model in models]
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], rtol=1e-6, atol=1e-6)
    exact, path = models[0].score.backbone.network, path_of(PATHS[name])
    tau = path.time(-0.5 * models[0].sde.log_snr(t))[:, None]
    alpha, sigma = path.alpha(tau), path.sigma(tau)
    noise = exact.at(torch.hypot(alpha, sigma) * z, alpha, sigma)[2]
    torch.testing.assert_close(-scores[0], noise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_the_clock_is_the_path_and_never_leaves_it(name):
    seen, path = [], path_of(PATHS[name])

    def network(x, tau):
        seen.append(tau)
        return torch.zeros_like(x)

    model = indm.from_denoiser(network, predicts="noise", path=PATHS[name], shape=(2,))
    model.log_prob(torch.zeros(1, 2), steps=6)
    tau = torch.cat(seen).double()
    low, high = min(path.range), max(path.range)
    assert tau.min() >= low * (1 - 1e-6) and tau.max() <= high * (1 + 1e-6)
    assert tau.max() - tau.min() > 0.99 * (high - low)
    levels = path.level(torch.linspace(*path.range, 50, dtype=torch.float64))
    torch.testing.assert_close(path.level(path.time(levels)), levels, rtol=1e-9, atol=1e-9)


def test_eps_is_in_the_units_of_the_path():
    for path, eps, level in (
        ("edm", 0.01, math.log(0.01)),
        ("linear-reversed", 0.99, math.log(0.01 / 0.99)),
    ):
        model = model_of("noise", path, eps=eps)
        assert model.sde.log_snr(torch.tensor(model.sde.eps).double()).item() == pytest.approx(
            -2 * level, abs=1e-6
        )
    model = model_of("noise", PATHS["betas"], eps=5)
    assert model.sde.sigma(torch.tensor(1e-5)).item() ** 2 == pytest.approx(
        1 - (1 - BETAS)[:6].prod().item(), rel=1e-5
    )
    for path, eps in (("edm", 0.001), ("edm", 80.0), ("linear", 0.0), (PATHS["betas"], 999)):
        with pytest.raises(ValueError, match=r"eps must be a τ from .*, the path's own, got"):
            model_of("noise", path, eps=eps)


def test_a_step_that_is_whole_stays_whole():
    """For networks that round k down, where log(σ/α) was rounded to float32."""
    seen = []

    def network(x, k):
        seen.append(k[0].item())
        return torch.zeros_like(x)

    for eps in range(1, 900, 60):
        model = indm.from_denoiser(
            network, predicts="noise", path=PATHS["betas"], shape=(2,), eps=eps
        )
        seen.pop()  # that of the question whether it takes fractions
        model.score(torch.zeros(1, 2), torch.full((1,), model.sde.eps))
    assert seen == list(range(1, 900, 60))


def test_a_schedule_that_ends_in_noise_alone_is_cut_before():
    alphas_bar = torch.linspace(0.99, 0.0, 100)
    with pytest.warns(RuntimeWarning, match="the last 1 of 100 steps has no signal"):
        assert path_of({"alphas_bar": alphas_bar}).range == (0.0, 98.0)


@pytest.mark.parametrize("options, message", [
    ({"predicts": "epsilon"}, "predicts must be one of noise, data, v, score, velocity, got 'epsilon'"),
    ({"variance": "huge"}, "variance must be one of large, small, learned, got 'huge'"),
    ({"path": "liner"}, "did you mean 'linear'"),
    ({"path": {"sigmas": (1.0, 0.1)}}, "0 < low < high"),
    ({"path": {"betas": [0.1, -0.1]}}, "path alphas_bar must be at least 2 numbers"),
    ({"path": {"alphas_bar": [0.5, 0.7]}}, "that fall from step to step"),
    ({"path": {"gammas": [0.5, 0.7]}}, "path must be one of"),
    ({"path": 3}, "path must be one of"),
    ({"network": None}, "network or factory must be given"),
    ({"network": torch.nn.Identity()}, r"network must be callable as network\(x, τ\), got Identity\(input"),
    ({"condition": indm.Classes("ab")}, r"network must be callable as network\(x, τ, c\), got <lambda>\(x, tau\): too"),
])  # fmt: skip
def test_what_cannot_be_is_refused_at_once(options, message):
    arguments = {
        "network": lambda x, tau: x,
        "predicts": "noise",
        "path": "edm",
        "shape": (2,),
    } | options
    with pytest.raises(ValueError, match=message):
        indm.from_denoiser(**arguments)


def test_a_path_must_rise():
    path = Cosine()
    path.range = (0.99, 0.01)
    with pytest.raises(ValueError, match=r"rises from range\[0\] = 0.99"):
        model_of("noise", path)


def test_a_velocity_must_determine_the_noise():
    """On α = sin, σ² = cos² + 0.01 both stand still at τ = 1; at 0.99 the error of the noise is 4
    of the velocity.
    """
    quarter = 0.5 * math.pi
    path = SimpleNamespace(
        alpha=lambda tau: (quarter * tau).sin(),
        sigma=lambda tau: ((quarter * tau).cos() ** 2 + 0.01).sqrt(),
        range=(1.0, 1e-4),
    )
    model_of("noise", path)
    with pytest.raises(
        ValueError, match=r"eps must be a τ nearer to the noise, such as 0.99\d*: at 1 a velocity"
    ):
        model_of("velocity", path)
    model_of("velocity", path, eps=0.99)


RETURNS = {
    "another shape": (
        lambda x, tau: x[:, :1],
        r"must return \(2, 2\), or twice the channels, got \(2, 1\)",
    ),
    "no tensor": (
        lambda x, tau: (x,),
        r"must return a tensor, got tuple; .*: network\(x, tau\)\.sample",
    ),
}


@pytest.mark.parametrize("kind", RETURNS)
def test_a_network_that_returns_something_else_is_named(kind):
    network, words = RETURNS[kind]
    model = indm.from_denoiser(network, predicts="noise", path="edm", shape=(2,))
    with pytest.raises(ValueError, match=f"network {words}"):
        model.log_prob(torch.zeros(1, 2))


class Scale(torch.nn.Module):
    """E[n|x] of N(0, I) data in flow matching, times a parameter."""

    def __init__(self, dtype):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, x, tau):
        return self.weight * (tau / ((1 - tau) ** 2 + tau**2))[:, None] * x


@pytest.mark.parametrize("hidden", [torch.no_grad(), torch.inference_mode()])
def test_a_network_without_gradients_is_refused_where_a_divergence_is_asked(hidden):
    """Its divergence would be 0, and log p wrong."""
    model = indm.from_denoiser(
        lambda x, tau: hidden(torch.sin)(x), predicts="velocity", path="linear", shape=(2,)
    )
    with pytest.raises(ValueError, match="network must have its whole gradient in x"):
        model.log_prob(torch.randn(3, 2), steps=4)
    assert indm.sample(model, 2, steps=400).shape == (2, 2)  # needs none


def partly(sigma_data):
    """E[x_0|x] of N(0, 1/4 I) by EDM's preconditioning, whose learned part has no gradient."""

    def network(x, sigma):
        v = sigma[:, None] ** 2
        skip = sigma_data**2 / (sigma_data**2 + v) * x
        return skip + (0.25 / (0.25 + v) * x - skip).detach()

    return indm.from_denoiser(network, predicts="data", path="edm", shape=(2,))


ASKED = {
    "log_prob": lambda model, x: model.log_prob(x),
    "nll": lambda model, x: indm.nll(model, x),
    "importance_bound": lambda model, x: indm.importance_bound(model, x, draws=2),
    "sample_with_log_prob": lambda model, x: indm.sample_with_log_prob(model, 4),
    "evaluate": lambda model, x: indm.evaluate(model, x, progress=False),
    "check_denoiser": lambda model, x: indm.check_denoiser(model, x),
}


# log p a bit a dimension too good, and as much too bad
@pytest.mark.parametrize("sigma_data", [0.25, 1.0])
@pytest.mark.parametrize("asked", ASKED)
def test_a_learned_part_without_gradients_is_refused(asked, sigma_data):
    x = 0.5 * torch.randn(40, 2, generator=seeded())
    for rows in (x, x[:2]):
        with pytest.raises(
            ValueError, match="network must have its whole gradient in x, got one whose divergence"
        ):
            ASKED[asked](partly(sigma_data), rows)


def mlp(d, activation, dtype=torch.float32):
    """Random layers, large enough for many kinks."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Linear(d, 64),
        activation(),
        torch.nn.Linear(64, 64),
        activation(),
        torch.nn.Linear(64, d),
    ]
    net = torch.nn.Sequential(*layers).to(dtype)
    return lambda x, tau: net((3 * x).to(dtype)).to(x.dtype)


def autocast(network):
    def inside(x, tau):
        with torch.autocast("cpu", torch.bfloat16):
            return network(x, tau).float()

    return inside


def convolutions(dtype):
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(3, 16, 3, padding=1),
        torch.nn.GroupNorm(4, 16),
        torch.nn.SiLU(),
        torch.nn.Conv2d(16, 3, 3),
    ]
    net = torch.nn.Sequential(*layers).to(dtype)
    return lambda x, tau: torch.nn.functional.pad(net(x.to(dtype)), (1, 1, 1, 1)).to(x.dtype)


def rounded(predicts, dtype, std):
    exact = Exact(predicts, "edm", [0.5, 0.5], [[-0.5, -0.5], [0.5, 0.5]], [std, std])
    return lambda x, tau: exact(x, tau).to(dtype).to(x.dtype)


SOUND = {
    "ReLU, 2": (mlp(2, torch.nn.ReLU), (2,)),
    "ReLU, 16": (mlp(16, torch.nn.ReLU), (16,)),
    "Hardtanh": (mlp(2, torch.nn.Hardtanh), (2,)),
    "SiLU": (mlp(16, torch.nn.SiLU), (16,)),
    "clamped": (lambda x, tau: (3 * x).clamp(-1, 1), (2,)),
    "ripples": (lambda x, tau: x + 0.1 * (1000 * x).sin(), (2,)),
    "double": (mlp(2, torch.nn.Tanh, torch.float64), (2,)),
    "bfloat16, 2": (mlp(2, torch.nn.SiLU, torch.bfloat16), (2,)),
    "bfloat16, 16": (mlp(16, torch.nn.SiLU, torch.bfloat16), (16,)),
    "bfloat16, ReLU": (mlp(2, torch.nn.ReLU, torch.bfloat16), (2,)),
    "float16": (mlp(2, torch.nn.SiLU, torch.float16), (2,)),
    "autocast, 2": (autocast(mlp(2, torch.nn.ReLU)), (2,)),
    "autocast, 16": (autocast(mlp(16, torch.nn.SiLU)), (16,)),
    "images": (convolutions(torch.float32), (3, 8, 8)),
    "images in bfloat16": (convolutions(torch.bfloat16), (3, 8, 8)),
    "rounded data": (rounded("data", torch.bfloat16, 0.2), (2,)),
    "rounded noise": (rounded("noise", torch.bfloat16, 0.2), (2,)),
    "two points": (rounded("data", torch.float32, 0.01), (2,)),
    "two points, rounded": (rounded("data", torch.bfloat16, 0.01), (2,)),
}


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("name", SOUND)
def test_kinks_and_half_precision_are_not_missing_gradients(name, rows):
    network, shape = SOUND[name]
    model = indm.from_denoiser(network, predicts="data", path="edm", shape=shape)
    for seed in range(3):
        check_gradient(model.score, 0.5 * torch.randn(rows, *shape, generator=seeded(seed)))


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize(
    "name",
    [
        "ReLU, 16",
        "SiLU",
        "bfloat16, 2",
        "bfloat16, 16",
        "float16",
        "autocast, 16",
        "images in bfloat16",
    ],
)
def test_a_gradient_that_is_missing_in_half_precision_or_beside_kinks_is_found(name, rows):
    """Of a sum of two parts; the hidden one pulls x to 0 by 0.2 x."""
    network, shape = SOUND[name]
    hidden = indm.from_denoiser(
        lambda x, tau: network(x, tau) + (0.2 * x).detach().bfloat16(),
        predicts="data",
        path="edm",
        shape=shape,
    )
    for seed in range(3):
        with pytest.raises(ValueError, match="network must have its whole gradient in x"):
            check_gradient(hidden.score, 0.5 * torch.randn(rows, *shape, generator=seeded(seed)))


def test_the_comparison_costs_at_most_two_percent_of_the_rows_that_the_network_sees():
    """A row with its gradient counts three times, as a backward pass takes twice as long as a
    forward pass.
    """
    seen = []

    def network(x, sigma):
        seen.append(len(x) * (3 if x.requires_grad else 1))
        return 0.25 / (0.25 + sigma[:, None] ** 2) * x

    model = indm.from_denoiser(network, predicts="data", path="edm", shape=(2,))
    for rows in (2, 64):
        seen.clear()
        model.log_prob(0.5 * torch.randn(rows, 2, generator=seeded()))
        whole = sum(seen)
        seen.clear()
        check_gradient(model.score, 0.5 * torch.randn(rows, 2, generator=seeded()))
        assert 0 < sum(seen) <= 0.02 * whole


def test_a_network_may_change_its_arguments():
    """The exact velocity of N(0, I), made in place."""

    def velocity(x, tau):
        tau.mul_(2).sub_(1)
        return x.mul_((tau / (0.5 * (tau**2 + 1)))[:, None])

    model = indm.from_denoiser(velocity, predicts="velocity", path="linear", shape=(2,)).double()
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(POINTS).sum(1)
    torch.testing.assert_close(model.log_prob(POINTS), expected, rtol=0, atol=1e-3)
    level = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    share = (2 * level).sigmoid().sqrt()[:, None]  # σ/√(α² + σ²), E[n|y] = share y
    torch.testing.assert_close(model.score.backbone.noise(POINTS, level), share * POINTS)


@pytest.mark.parametrize("asked", ASKED)
def test_a_network_that_is_not_finite_is_named_with_a_noise_level(asked):
    def network(x, sigma):
        s = sigma[:, None]
        return torch.where((s > 1.0) & (s < 3.0), torch.nan, x / (1 + s**2))

    model = indm.from_denoiser(network, predicts="data", path="edm", shape=(2,))
    with pytest.raises(
        ValueError, match=r"network must be finite, got NaN or infinity at σ/α [12]\.\d"
    ):
        ASKED[asked](model, torch.randn(40, 2))


@pytest.mark.parametrize("predicts", ["noise", "data"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_stated_error_covers_the_rounding_of_the_network(predicts, dtype):
    """Of log p without reconstruction, for the exact network of a mixture in 16 dimensions, at one
    z_ε.

    Predictions of data begin where the noise is some 30 times their rounding.
    """
    eps = None if predicts == "noise" else {torch.bfloat16: 0.064, torch.float16: 0.008}[dtype]
    means = 0.8 * torch.randn(3, 16, generator=seeded())
    exact = Exact(predicts, "edm", [0.3, 0.3, 0.4], means.tolist(), [0.3, 0.4, 0.6])

    def solved(network):
        model = indm.from_denoiser(network, predicts=predicts, path="edm", shape=(16,), eps=eps)
        report = indm.nll(model, x, steps=64, generator=seeded(1))
        return report.without_reconstruction, report.solver_error

    x = means.repeat(67, 1) + 0.4 * torch.randn(201, 16, generator=seeded(2))
    true, least = solved(exact)
    found, error = solved(lambda x, tau: exact(x, tau).to(dtype).to(x.dtype))
    off = (found - true).abs()
    assert (off <= error + least).double().mean() >= 0.95
    assert (error - least).mean() < 20 * off.mean()


HALVES = {
    "output": lambda x, share, dtype: (share * x).to(dtype).to(x),
    "input": lambda x, share, dtype: share * x.to(dtype).to(x),
    "inside": lambda x, share, dtype: 2 * (0.5 * x).to(dtype).to(x) * share,
}


@pytest.mark.parametrize("path", ["edm", "linear"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("where", HALVES)
def test_predictions_of_data_in_half_precision_begin_where_the_noise_bears_their_rounding(
    where, dtype, path
):
    """For N(0, I) in 16 dimensions: refused at the path's end, and within the stated error at the τ
    of the message.
    """

    def network(x, tau):
        t = tau.double()[:, None]
        alpha, sigma = (torch.ones_like(t), t) if path == "edm" else (1 - t, t)
        return HALVES[where](x, (alpha / (alpha**2 + sigma**2)).to(x), dtype)

    def model(eps=None):
        return indm.from_denoiser(network, predicts="data", path=path, shape=(16,), eps=eps)

    x = torch.randn(128, 16, generator=seeded())
    for asked in (lambda: indm.nll(model(), x, steps=16), lambda: indm.check_denoiser(model(), x)):
        with pytest.raises(ValueError, match="eps must be a τ with more noise") as refused:
            asked()
    eps = float(str(refused.value).split("such as ")[1].split(",")[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the stated error
        report = indm.nll(model(eps), x, generator=seeded(1))
    true = -torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1).mean()
    assert abs(report.nats.mean() - true) < report.solver_error.mean() + 0.03 < 0.6
    assert not indm.check_denoiser(model(eps), x).wrong


@pytest.mark.parametrize("name", ["ReLU, 16", "SiLU", "clamped", "double", "two points"])
def test_a_network_in_full_precision_begins_at_the_end_of_its_path(name):
    network, shape = SOUND[name]
    model = indm.from_denoiser(network, predicts="data", path="linear", shape=shape)
    for rows in (1, 40):
        model.score(
            0.5 * torch.randn(rows, *shape, generator=seeded()), torch.full((rows,), model.sde.eps)
        )


def test_the_model_has_the_precision_of_its_network():
    scaling = indm.Scaling(0.5, 2.0)
    options = {"predicts": "noise", "path": "linear", "shape": (2,), "scaling": scaling}
    model = indm.from_denoiser(Scale(torch.float64), **options)
    x, _ = model.from_data(torch.zeros(2, 2))
    assert x.dtype == torch.float64 and scaling.scale.dtype == torch.float32
    with pytest.raises(
        ValueError,
        match=r"network must be in float32 or float64, got torch.bfloat16; network.float",
    ):
        indm.from_denoiser(Scale(torch.bfloat16), **options)


def test_a_velocity_in_inference_mode():
    """The slopes of its path are derivatives."""

    def velocity(x, tau):
        return ((2 * tau - 1) / ((1 - tau) ** 2 + tau**2))[:, None] * x

    model = indm.from_denoiser(velocity, predicts="velocity", path="linear", shape=(2,))
    with torch.inference_mode():
        inside = indm.nelbo(
            model, torch.ones(3, 2), generator=torch.Generator().manual_seed(0)
        ).nats
    outside = indm.nelbo(model, torch.ones(3, 2), generator=torch.Generator().manual_seed(0)).nats
    torch.testing.assert_close(inside, outside)


def test_preconditioning_outside_the_network():
    """F of an exact denoiser of N(0, v) at v = σ_data²: D = v x/(v + σ²), so F = 0; and D follows
    F.
    """
    law, x, sigma = (
        ([1.0], [[0.0, 0.0]], [0.5]),
        torch.randn(4, 2),
        torch.tensor([0.1, 0.5, 2.0, 9.0]),
    )
    D = Preconditioned(lambda x, t: torch.zeros_like(x))(x, sigma)
    torch.testing.assert_close(D, Exact("data", "edm", *law)(x, sigma))
    seen = {}

    def F(x, t):
        seen["x"], seen["t"] = x, t
        return torch.ones_like(x)

    total = (sigma**2 + 0.25).sqrt()[:, None]
    torch.testing.assert_close(
        Preconditioned(F)(x, sigma) - D, (sigma[:, None] * 0.5 / total).expand(4, 2)
    )
    torch.testing.assert_close(seen["x"], x / total)
    torch.testing.assert_close(seen["t"], sigma.log() / 4)


def test_a_model_of_a_factory_is_saved_and_read(tmp_path):
    model = indm.from_denoiser(
        **MLP, predicts="v", path=PATHS["betas"], shape=(2,), eps=3, variance="small"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save(tmp_path)
    loaded, x = indm.INDM.load(tmp_path), torch.randn(3, 2)
    assert torch.equal(loaded.log_prob(x, steps=4), model.log_prob(x, steps=4))
    assert (
        loaded.score.backbone.variance == "small"
        and loaded.sde.log_snr_max == model.sde.log_snr_max
    )
    model = indm.from_denoiser(**MLP, predicts="v", path={"sigmas": (0.002, 80.1)}, shape=(2,))
    model.save(tmp_path)
    assert indm.INDM.load(tmp_path).score.backbone.noises.range == (0.002, 80.1)
    network = MLPNet((2,), width=8, depth=1)  # which keeps its arguments
    indm.from_denoiser(network, predicts="v", path="linear", shape=(2,)).save(tmp_path / "kept")
    loaded = indm.INDM.load(tmp_path / "kept").score.backbone.network
    assert torch.equal(loaded(x, x[:, 0]), network(x, x[:, 0]))
    with pytest.raises(
        ValueError, match="cannot be saved, because its network was given as an object"
    ):
        model_of("noise", "edm").save(tmp_path / "other")
    with pytest.raises(
        ValueError, match="cannot be saved, because its path was given as an object"
    ):
        indm.from_denoiser(**MLP, predicts="v", path=Cosine(), shape=(2,)).save(tmp_path / "other")


def test_a_factory_of_other_code_needs_trust(tmp_path):
    options = {"predicts": "noise", "path": "edm", "shape": (2,), "factory": "torch.nn:Identity"}
    with pytest.raises(ValueError, match=r"indm\.trust\('torch'\)"):
        indm.from_denoiser(**options)


def test_a_condition_reaches_the_network_and_guidance_works():
    """Two classes, each N(±1, I) under EDM; hidden, their mixture's denoiser is not needed: zeros."""

    def network(x, sigma, c):
        mean = c[:, :1] - c[:, 1:]
        return (x * 1.0 + sigma[:, None] ** 2 * mean) / (1 + sigma[:, None] ** 2)

    condition = indm.Classes(["right", "left"], drop=0.1)
    options = {"predicts": "data", "path": "edm", "shape": (2,), "condition": condition}
    model, x = indm.from_denoiser(network, **options), torch.zeros(2, 2)
    assert model.given(["right", "left"]).log_prob(x).shape == (2,)
    means = [
        indm.sample(model, 500, c=name, steps=30).mean().item() for name in ("right", "left", None)
    ]
    assert means == pytest.approx([1.0, -1.0, 0.0], abs=0.15)
    guided = indm.sample(model, 500, c="right", guidance=2.0, steps=30)
    # all of one width, so that guidance moves the mean
    assert guided.mean().item() == pytest.approx(2.0, abs=0.2)
