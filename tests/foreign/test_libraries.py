"""Models of other libraries, trained by them for seconds: log p beside SciPy, the bound beside the
sum of its steps.

What each network says of the noise is compared with the library's own formulas."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

import indm
from indm.foreign.schedules import schedules

K, SIDE = 50, 8
SCALING = indm.Scaling.between(-1, 1, 17)


def library(name):
    """The library, or the test is skipped; some have escapes in their docstrings of which Python
    warns.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"needs pip install -e '.[foreign]', for {name}")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    return torch.tensor(load_digits().images).round().long()[:, None]


class Net(nn.Module):
    """A small network of x and τ, which all libraries take: (x, τ), (t, x) or by name; ``unit``: of
    τ.
    """

    channels = out_dim = 1
    self_condition = random_or_learned_sinusoidal_cond = False

    def __init__(self, shape=(1, SIDE, SIDE), unit=1.0, width=128):
        super().__init__()
        torch.manual_seed(0)
        d, self.unit = math.prod(shape), unit
        self.time = nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, 2 * width))
        self.first, self.middle, self.last = (
            nn.Linear(d, width),
            nn.Linear(width, width),
            nn.Linear(width, d),
        )

    def forward(self, x, t, _=None):
        t = (t / self.unit).to(x).expand(len(x))[:, None] * 2.0 ** torch.arange(4)
        scale, shift = self.time(torch.cat([t.sin(), t.cos()], 1)).chunk(2, 1)
        h = nn.functional.silu(self.first(x.flatten(1)))
        h = h + self.middle(nn.functional.silu(h * (1 + scale) + shift))
        return self.last(nn.functional.silu(h)).view_as(x)


def trained(module, loss_of, data, steps, rate=3e-3):
    """``module`` after so many steps of Adam on ``loss_of(batch)``, in double precision, ready for
    use.
    """
    optimizer, generator = torch.optim.Adam(module.parameters(), rate), seeded(1)
    torch.manual_seed(2)
    for step in range(steps):
        loss = loss_of(data[torch.randint(0, len(data), (128,), generator=generator)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
    return module.double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def denoising_diffusion(digits):
    """A GaussianDiffusion of digits, in v on the sigmoid schedule, as the library has it by
    default.
    """
    theirs = library("denoising_diffusion_pytorch")
    diffusion = theirs.GaussianDiffusion(Net(unit=K), image_size=SIDE, timesteps=K)
    return trained(diffusion, diffusion, digits[:1500] / 16, 600)


def train_ddpm(digits, steps):
    """A network and its DDPMScheduler, trained as in the tutorials of diffusers."""
    scheduler = library("diffusers").DDPMScheduler(
        K, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
    )
    net = Net(unit=K)

    def loss(raw):
        x, k = raw / 8 - 1, torch.randint(0, K, (len(raw),))
        noise = torch.randn_like(x)
        return (
            (net(scheduler.add_noise(x, noise, k), k) - scheduler.get_velocity(x, noise, k))
            .square()
            .mean()
        )

    return trained(net, loss, digits[:1500].float(), steps), scheduler


@pytest.fixture(scope="module")
def ddpm(digits):
    return train_ddpm(digits, 600)


def carried(noise, y, first, last, std):
    """log density of the rows y = x/α at log(σ/α) = ``first``, carried from N(0, std²) at ``last``,
    where α² + σ² = 1.

    dy/d log(σ/α) = (σ/α) n̂, by RK45 with the exact divergence; ``noise(y, log(σ/α))`` is n̂.
    """
    d, out = y[0].numel(), []

    def slope(level, state):
        rows = (
            torch.tensor(state[:d])
            .reshape(1, *y.shape[1:])
            .repeat(d, *[1] * (y.ndim - 1))
            .requires_grad_()
        )
        n = noise(rows, level)
        (gradient,) = torch.autograd.grad(n.flatten(1).diagonal().sum(), rows)
        return math.exp(level) * np.append(
            n[0].detach().flatten(), gradient.flatten(1).diagonal().sum()
        )

    alpha = (1 + math.exp(2 * last)) ** -0.5
    for row in y:
        start = np.append(row.double().flatten(), 0.0)
        end = solve_ivp(slope, (first, last), start, rtol=1e-6, atol=1e-7).y[:, -1]
        prior = Normal(0.0, std).log_prob(torch.tensor(alpha * end[:d])).sum().item()
        out.append(prior + d * math.log(alpha) + end[d])
    return torch.tensor(out)


def of_steps(net, kind, alphas_bar):
    """n̂(y, log(σ/α)) of a network of K steps, with cubics between them; v and noise as in their
    papers.
    """
    bar = alphas_bar.double()
    levels = (0.5 * ((1 - bar) / bar).log()).numpy()
    curve = PchipInterpolator(np.arange(len(levels)), levels)

    def noise(y, level):
        k = (
            brentq(lambda k: curve(k) - level, 0, len(levels) - 1)
            if levels[0] < level < levels[-1]
            else (0.0 if level <= levels[0] else len(levels) - 1.0)
        )
        alpha = (1 + math.exp(2 * level)) ** -0.5
        sigma, f = math.sqrt(1 - alpha**2), net(alpha * y, torch.full((len(y),), k).double())
        return alpha * f + sigma * alpha * y if kind == "v" else f

    return noise, levels


def check_nll(model, noise, levels, raw):
    """The density at one z_ε by SciPy, and that the decoder was asked at the same z_ε, by Bayes'
    rule.
    """
    x, log_q = model.from_data(raw)
    report = indm.nll(model, x, log_q=log_q, exact=True, generator=seeded(3))
    alpha = (1 + math.exp(2 * levels[0])) ** -0.5
    sigma = math.sqrt(1 - alpha**2)
    z = alpha * x + sigma * torch.randn(x.shape, generator=seeded(3), dtype=x.dtype)
    likely = Normal(alpha * SCALING.centre(torch.arange(17)).double(), sigma).log_prob(z[..., None])
    decoded = likely.logsumexp(-1).flatten(1).sum(1)  # log q(z_ε|raw) − log P(raw|z_ε)
    torch.testing.assert_close(report.reconstruction, decoded, rtol=1e-5, atol=1e-3)
    expected = carried(noise, z / alpha, levels[0], levels[-1], 1.0) - x[0].numel() * math.log(
        alpha
    )
    away = (-report.without_reconstruction - expected).abs()
    assert (away <= report.solver_error + 1e-3).all() and report.solver_error.max() < 0.05


def sum_over_all_steps(net, kind, alphas_bar, x, variance, n, generator):
    """DDPM's bound, each of its K − 1 divergences and the decoder on average over n draws of noise,
    and its error.
    """
    bar, values = alphas_bar.double(), SCALING.centre(torch.arange(17)).double()
    x = x.expand(n, *x.shape[1:])
    total = torch.zeros(n, dtype=torch.float64)
    for k in range(1, len(bar)):
        now, before, noise = bar[k], bar[k - 1], torch.randn(x.shape, generator=generator).double()
        beta = 1 - now / before
        x_k = now.sqrt() * x + (1 - now).sqrt() * noise
        f = net(x_k, torch.full((n,), k))
        data = (
            now.sqrt() * x_k - (1 - now).sqrt() * f
            if kind == "v"
            else (x_k - (1 - now).sqrt() * f) / now.sqrt()
        )
        means = [
            before.sqrt() * beta / (1 - now) * known
            + (1 - beta).sqrt() * (1 - before) / (1 - now) * x_k
            for known in (x, data)
        ]
        small = beta * (1 - before) / (1 - now)
        q, p = (
            Normal(means[0], small.sqrt()),
            Normal(means[1], ({"large": beta, "small": small}[variance]).sqrt()),
        )
        total += kl_divergence(Independent(q, 3), Independent(p, 3))
    x_0 = (
        bar[0].sqrt() * x + (1 - bar[0]).sqrt() * torch.randn(x.shape, generator=generator).double()
    )
    likely = Normal(bar[0].sqrt() * values, (1 - bar[0]).sqrt()).log_prob(x_0[..., None])
    own = Normal(bar[0].sqrt() * x, (1 - bar[0]).sqrt()).log_prob(x_0)
    total -= (own - likely.logsumexp(-1)).flatten(1).sum(1)
    end = kl_divergence(
        Normal(bar[-1].sqrt() * x[:1], (1 - bar[-1]).sqrt()), Normal(torch.zeros(()).double(), 1.0)
    )
    return total.mean() + end.sum(), total.std() / n**0.5


def check_bound(model, net, kind, alphas_bar, raw, variance):
    x, n = model.from_data(raw)[0], 1000
    expected, error = sum_over_all_steps(net, kind, alphas_bar, x, variance, n, seeded(4))
    rows = x.expand(4 * n, *x.shape[1:])
    with torch.no_grad():
        drawn = indm.discrete_nelbo(
            model, rows, times=8, variance=variance, generator=seeded(5)
        ).nats
    assert abs(drawn.mean() - expected) < 4 * (error**2 + drawn.var() / len(drawn)).sqrt() < 5


def check_description(model, predicts, wrong, raw):
    """Nothing is wrong, and a wrong word is recognised."""
    assert (
        "fits the network better" not in indm.check_denoiser(model, raw, generator=seeded()).verdict
    )
    model.score.backbone.predicts = wrong
    found = indm.check_denoiser(model, raw, generator=seeded())
    model.score.backbone.predicts = predicts
    assert found.wrong and f"predicts={predicts!r}" in found.verdict


def test_digits_of_denoising_diffusion_pytorch(denoising_diffusion, digits):
    model = indm.from_denoising_diffusion(denoising_diffusion, scaling=SCALING).double()
    net, bar = denoising_diffusion.model, (1 - denoising_diffusion.betas).cumprod(0)
    check_nll(model, *of_steps(net, "v", bar), digits[1500:1502])
    check_bound(model, net, "v", bar, digits[1500:1501], "small")
    check_description(model, "v", "noise", digits[1500:])
    assert model.score.backbone.variance == "small" and model.shape == (1, SIDE, SIDE)


@pytest.mark.long
def test_digits_of_diffusers(ddpm, digits):
    net, scheduler = ddpm
    model = indm.from_diffusers(net, scheduler, shape=(1, SIDE, SIDE), scaling=SCALING).double()
    check_nll(model, *of_steps(net, "v", scheduler.alphas_cumprod), digits[1500:1516])
    check_bound(model, net, "v", scheduler.alphas_cumprod, digits[1500:1501], "large")
    check_description(model, "v", "velocity", digits[1500:])


def mixture(t, x, sigma):
    """E[x_1 − x_0|x] and E[n|x] of torchcfm's x = t x_1 + (1 − t) x_0 + σ e, for x_1 of a mixture
    of two Gaussians.
    """
    means, std, t = torch.tensor([[-1.0, 0.5], [1.0, 0.3]]).double(), 0.4, t.double()[:, None, None]
    s2 = (1 - t) ** 2 + sigma**2
    variance, away = t**2 * std**2 + s2, x.double()[:, None] - t * means
    share = (-0.5 * away.square().sum(2, keepdim=True) / variance - variance.log()).softmax(1)
    velocity = means + (t * std**2 - (1 - t)) / variance * away
    return (share * velocity).sum(1), (share * s2.sqrt() / variance * away).sum(1)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5])
def test_the_noise_of_an_exact_velocity_of_torchcfm(sigma):
    model = indm.from_torchcfm(
        lambda t, x: mixture(t, x, sigma)[0].to(x), shape=(2,), sigma=sigma
    ).double()
    denoiser, t = model.score.backbone, torch.linspace(0.01, 0.99, 30).double()
    s = ((1 - t) ** 2 + sigma**2).sqrt()
    x = torch.randn(30, 2, generator=seeded()).double()
    found = denoiser.noise(x / torch.hypot(t, s)[:, None], (s / t).log())
    torch.testing.assert_close(found, mixture(t, x, sigma)[1], rtol=1e-6, atol=1e-6)
    rows = torch.tensor([[0.3, -0.2], [-1.2, 0.6]]).double()
    expected = along_time(
        lambda t, x: mixture(t, x, sigma)[0], rows, 1.0 if sigma else 1 - 1e-4, 1e-4
    )
    torch.testing.assert_close(model.log_prob(rows, steps=256), expected, rtol=0, atol=5e-4)


def along_time(velocity, rows, first, last, std=1.0):
    """log density of rows x = x_t/t at t = ``first``, where x_t follows dx/dt = u(t, x) from N(0,
    std²) at ``last``.
    """
    out = []

    def slope(t, state):
        x = torch.tensor(state[None, :2]).repeat(2, 1).requires_grad_()
        u = velocity(torch.full((2,), t).double(), x)
        (gradient,) = torch.autograd.grad(u.diagonal().sum(), x)
        return np.append(u[0].detach(), gradient.diagonal().sum())

    for row in rows:
        end = solve_ivp(slope, (first, last), np.append(first * row, 0.0), rtol=1e-6, atol=1e-7).y[
            :, -1
        ]
        out.append(
            Normal(0.0, std).log_prob(torch.tensor(end[:2])).sum().item()
            + end[2]
            + 2 * math.log(first)
        )
    return torch.tensor(out)


def moons(n=2000):
    """Points on two half circles."""
    angle, side = (
        math.pi * torch.rand(n, generator=seeded()),
        torch.randint(0, 2, (n,), generator=seeded(1)),
    )
    x = torch.stack([angle.cos() + side - 0.5, angle.sin() * (1 - 2 * side) + 0.5 * side - 0.25], 1)
    return x + 0.1 * torch.randn(n, 2, generator=seeded(2))


POINTS = torch.tensor([[0.5, 0.7], [-0.4, 0.6], [0.5, -0.3]]).double()


def check_moons(model, expected, atol=1e-3):
    torch.testing.assert_close(model.log_prob(POINTS, steps=256), expected, rtol=0, atol=atol)
    assert (
        "fits the network better"
        not in indm.check_denoiser(model, moons(), generator=seeded()).verdict
    )


def train_torchcfm(matcher):
    """Their MLP, as their tutorials train it, and u(t, x)."""
    torch.manual_seed(0)
    net = library("torchcfm.models").MLP(2, w=64, time_varying=True)

    def velocity(t, x):
        return net(torch.cat([x, t[:, None]], 1))

    def loss(x_1):
        t, x, u = matcher.sample_location_and_conditional_flow(torch.randn_like(x_1), x_1)
        return (velocity(t, x) - u).square().mean()

    return trained(net, loss, moons(), 400), velocity


@pytest.mark.filterwarnings("ignore:the error of log_prob's ODE solver")  # SELU has a kink
@pytest.mark.parametrize(
    "sigma, wrapped", [(0.0, False), pytest.param(0.2, True, marks=pytest.mark.long)]
)
def test_moons_of_torchcfm(sigma, wrapped):
    net, velocity = train_torchcfm(library("torchcfm").ConditionalFlowMatcher(sigma))
    wrapper = type("torch_wrapper", (nn.Module,), {})()  # theirs is in a module that needs torchdyn
    wrapper.model = net
    model = indm.from_torchcfm(wrapper if wrapped else net, shape=(2,), sigma=sigma).double()
    check_moons(model, along_time(velocity, POINTS, 1.0 if sigma else 1 - 1e-4, 1e-4), 0.01)


@pytest.mark.long
def test_noise_that_optimal_transport_coupled_is_found():
    net, _ = train_torchcfm(library("torchcfm").ExactOptimalTransportConditionalFlowMatcher(0.0))
    found = indm.check_denoiser(
        indm.from_torchcfm(net, shape=(2,)).double(), moons(), generator=seeded()
    )
    assert found.wrong and "with noise coupled to the data" in found.verdict


@pytest.mark.parametrize(
    "name", ["CondOT", *(pytest.param(n, marks=pytest.mark.long) for n in ("Cosine", "VP"))]
)
def test_moons_of_flow_matching(name):
    path, schedulers = library("flow_matching.path"), library("flow_matching.path.scheduler")
    affine = path.AffineProbPath(getattr(schedulers, f"{name}Scheduler")())
    net = library("flow_matching.utils").ModelWrapper(Net((2,), width=64))

    def loss(x_1):
        drawn = affine.sample(x_0=torch.randn_like(x_1), x_1=x_1, t=torch.rand(len(x_1)))
        return (net(x=drawn.x_t, t=drawn.t) - drawn.dx_t).square().mean()

    trained(net, loss, moons(), 400)
    given = {} if name == "CondOT" else {"path": affine}
    model = indm.from_flow_matching(net, shape=(2,), **given).double()
    ends = affine.scheduler(torch.tensor([1 - 1e-4, 1e-4]).double())
    expected = along_time(
        lambda t, x: net(x=x, t=t),
        ends.alpha_t[0] * POINTS / (1 - 1e-4),
        1 - 1e-4,
        1e-4,
        ends.sigma_t[1],
    )
    expected += 2 * (ends.alpha_t[0] / (1 - 1e-4)).log()
    check_moons(model, expected)


@pytest.mark.parametrize("name", [pytest.param("VP", marks=pytest.mark.long), "Rectified"])
@pytest.mark.long
def test_moons_of_azula(name):
    schedule = getattr(library("azula.noise"), f"{name}Schedule")()
    denoiser = library("azula.denoise").KarrasDenoiser(Net((2,), unit=4.0, width=64), schedule)
    trained(denoiser, lambda x: denoiser.loss(x, torch.rand(len(x))), moons(), 400)
    model = indm.from_azula(denoiser, shape=(2,)).double()
    levels = [
        (sigma / alpha).log().item()
        for alpha, sigma in map(schedule, torch.tensor([0.0, 1.0]).double())
    ]
    times = torch.linspace(0, 1, 20_001).double()
    along = (schedule(times)[1] / schedule(times)[0]).log().numpy()

    def noise(y, level):
        t = torch.tensor(np.interp(level, along, times)).expand(len(y))
        alpha, sigma = (v[:, None] for v in schedule(t))
        return (alpha * y - alpha * denoiser(alpha * y, t).mean) / sigma

    # σ at the end, in units where α² + σ² = 1
    std = math.exp(levels[1]) * (1 + math.exp(2 * levels[1])) ** -0.5
    expected = carried(noise, POINTS, *levels, std)
    check_moons(model, expected, 2e-3)


def test_one_network_in_two_descriptions_has_one_score(ddpm):
    net, scheduler = ddpm
    bar = scheduler.alphas_cumprod.double()
    curve = PchipInterpolator(np.arange(K), 0.5 * ((1 - bar) / bar).log())

    def noise(x, k):
        alpha2 = (-2 * torch.tensor(curve(k))).sigmoid()[:, None, None, None]
        return alpha2.sqrt() * net(x, k) + (1 - alpha2).sqrt() * x

    shape = (1, SIDE, SIDE)
    one = indm.from_diffusers(net, scheduler, shape=shape, scaling=SCALING).double()
    path = {"alphas_bar": scheduler.alphas_cumprod}
    other = indm.from_denoiser(
        noise, predicts="noise", path=path, shape=shape, scaling=SCALING
    ).double()
    z, t = (
        torch.randn(20, *shape, generator=seeded()).double(),
        torch.linspace(1e-5, 1, 20).double(),
    )
    scores = [model.score(z, t) * model.sde.sigma(t)[:, None, None, None] for model in (one, other)]
    torch.testing.assert_close(*scores, rtol=1e-9, atol=1e-9)


SCHEDULERS = {
    "ddpm-epsilon": ("DDPMScheduler", {"prediction_type": "epsilon"}),
    "ddim-sample": ("DDIMScheduler", {"prediction_type": "sample"}),
    "ddim-v": (
        "DDIMScheduler",
        {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"},
    ),
    "edm": ("EDMEulerScheduler", {}),
    "edm-v": ("EDMEulerScheduler", {"prediction_type": "v_prediction", "sigma_data": 0.7}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
}


@pytest.fixture(scope="module")
def unet():
    theirs = library("diffusers")
    blocks = {
        "down_block_types": ["DownBlock2D"] * 2,
        "up_block_types": ["UpBlock2D"] * 2,
        "num_class_embeds": 4,
    }
    torch.manual_seed(0)
    return theirs.UNet2DModel(
        8,
        1,
        1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        add_attention=False,
        **blocks,
    ).eval()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_noise_is_that_of_a_step_of_diffusers(name, unet):
    """A step of the library's own sampler gives the data, or the step of Euler, that the network
    predicts.
    """
    kind, options = SCHEDULERS[name]
    options = options | ({} if kind[0] in "EF" else {"clip_sample": False})
    scheduler = getattr(library("diffusers"), kind)(**options)
    model = indm.from_diffusers(unet, scheduler, condition=indm.Classes("abc"))
    scheduler.set_timesteps(10)
    t, x = scheduler.timesteps[4], torch.randn(3, 1, 8, 8, generator=seeded())
    # of 4 embeddings the last is for none
    labels, seen = torch.tensor([2, 3, 0]), torch.eye(4)[[2, 3, 0]][:, :3]
    if kind.startswith("D"):
        alpha = scheduler.alphas_cumprod[t].sqrt().item()
        sigma = math.sqrt(1 - alpha**2)
    else:
        sigma = scheduler.sigmas[4].item()
        alpha = 1.0 if kind.startswith("E") else 1 - sigma
    with torch.no_grad():
        known = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        step = scheduler.step(unet(known, t, labels).sample, t, x)
        level = torch.full((3,), math.log(sigma / alpha))
        found = model.score.backbone.noise(x / math.hypot(alpha, sigma), level, seen)
    if kind.startswith("F"):  # x + (σ' − σ) u, and n̂ = x + (1 − σ) u
        expected = x + (1 - sigma) * (step.prev_sample - x) / (scheduler.sigmas[5].item() - sigma)
    else:
        expected = (x - alpha * step.pred_original_sample) / sigma
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


NETS = {
    "own": lambda theirs: Net(unit=K),
    "Unet": lambda theirs: theirs.Unet(
        8, channels=1, dim_mults=(1, 2), attn_heads=1, attn_dim_head=8
    ),
    "KarrasUnet": lambda theirs: theirs.KarrasUnet(
        image_size=SIDE,
        dim=8,
        dim_max=16,
        channels=1,
        num_downsamples=1,
        num_blocks_per_stage=1,
        attn_res=(),
    ),
}


@pytest.mark.parametrize(
    "net, objective",
    [
        ("own", "pred_noise"),
        ("own", "pred_x0"),
        ("own", "pred_v"),
        ("Unet", "pred_v"),
        ("KarrasUnet", "pred_v"),
    ],
)
def test_the_noise_is_that_of_denoising_diffusion_pytorch(net, objective):
    theirs = library("denoising_diffusion_pytorch")
    diffusion = theirs.GaussianDiffusion(
        NETS[net](theirs), image_size=SIDE, timesteps=K, objective=objective
    ).eval()
    model = indm.from_denoising_diffusion(diffusion)
    x, k = torch.randn(5, 1, SIDE, SIDE, generator=seeded()), torch.tensor([0, 3, 20, 40, K - 1])
    with torch.no_grad():
        found = model.score.backbone.noise(x, model.score.backbone.noises.levels[k])
        torch.testing.assert_close(
            found, diffusion.model_predictions(x, k).pred_noise, rtol=2e-3, atol=2e-3
        )


def test_elucidated_diffusion():
    """D by Karras' table, σ from the model's ends, and images of [0, 1] in [−1, 1]."""
    net = Net()
    net.random_or_learned_sinusoidal_cond = True
    diffusion = library("denoising_diffusion_pytorch").ElucidatedDiffusion(
        net, image_size=SIDE, channels=1, sigma_min=0.01, sigma_max=20.0, sigma_data=0.3
    )
    model = indm.from_denoising_diffusion(diffusion)
    x, sigma = torch.randn(3, 1, SIDE, SIDE, generator=seeded()), torch.tensor([0.02, 0.5, 15.0])
    s = sigma[:, None, None, None]
    total = s**2 + 0.3**2
    data = 0.3**2 / total * x + 0.3 * s / total.sqrt() * net(x / total.sqrt(), sigma.log() / 4)
    found = model.score.backbone.noise(x / (1 + s**2).sqrt(), sigma.log())
    torch.testing.assert_close(found, (x - data) / s, rtol=1e-3, atol=1e-3)
    assert model.score.backbone.noises.range == (0.01, 20.0)
    assert model.from_data(torch.tensor([0, 255]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8))[
        0
    ].unique().tolist() == [
        -1,
        1,
    ]


@pytest.mark.parametrize("kind, expected", [
    ("fixed_small", "small"), ("fixed_small_log", "small"), ("fixed_large", "large"), ("fixed_large_log", "large"),
    ("learned_range", "learned"),
])  # fmt: skip
def test_the_variance_of_the_steps_is_that_of_the_scheduler(kind, expected, unet):
    scheduler = library("diffusers").DDPMScheduler(variance_type=kind)
    model = indm.from_diffusers(unet, scheduler, condition=indm.Classes("abcd"))
    assert model.score.backbone.variance == expected


@pytest.mark.parametrize(
    "name, variance", [("DDPM", "small"), ("UnCLIP", "small"), ("DDIM", "large"), ("PNDM", "large")]
)
def test_the_variance_is_the_default_of_the_scheduler(name, variance):
    scheduler = getattr(library("diffusers"), f"{name}Scheduler")()
    denoiser = indm.from_diffusers(lambda x, k: 0 * x, scheduler, shape=(2,)).score.backbone
    assert denoiser.variance == variance


@pytest.mark.parametrize("name, options", [
    ("DDPMScheduler", {"prediction_type": "v_prediction"}), ("FlowMatchEulerDiscreteScheduler", {}),
    ("EDMEulerScheduler", {"prediction_type": "v_prediction", "sigma_data": 0.7}),
])  # fmt: skip
def test_a_model_of_diffusers_is_saved_and_read_without_restating_anything(
    name, options, unet, tmp_path
):
    scheduler = getattr(library("diffusers"), name)(**options)
    scaling = indm.Scaling.between(-1, 1, 17)
    model = indm.from_diffusers(
        unet, scheduler, condition=indm.Classes("abc", drop=0.1), scaling=scaling
    )
    model.save(tmp_path)
    with pytest.raises(ValueError, match=r"indm\.trust\('diffusers'\)"):
        indm.INDM.load(tmp_path)
    with indm.trust("diffusers"):
        loaded = indm.INDM.load(tmp_path)
    raw = torch.randint(17, (2, 1, 8, 8), generator=seeded())
    x = model.from_data(raw)[0]
    assert (
        torch.equal(loaded.from_data(raw)[0], x)
        and loaded.score.backbone.variance == model.score.backbone.variance
    )
    for c in (["a", "c"], None):
        found = [m.log_prob(x, c=c, steps=4, generator=seeded()) for m in (model, loaded)]
        assert torch.equal(*found)


def test_a_network_that_cannot_be_made_anew_says_what_to_pass(tmp_path):
    model = indm.from_torchcfm(lambda t, x: x, shape=(2,))
    with pytest.raises(ValueError, match=r"factory='package.module:function' with its options"):
        model.save(tmp_path)


def test_a_hidden_class_needs_an_embedding(unet):
    scheduler, x = library("diffusers").DDIMScheduler(), torch.zeros(2, 1, 8, 8)
    level = torch.zeros(2)
    four = indm.from_diffusers(unet, scheduler, condition=indm.Classes("abcd"))
    with pytest.raises(
        ValueError, match="c must be a class for each sample, as none of the network's 4"
    ):
        four.score.backbone.noise(x, level, torch.zeros(2, 4))
    for condition in (None, indm.Classes("abcde"), indm.Vector(3)):
        with pytest.raises(
            ValueError, match="condition must be Classes with at most 4 labels, got"
        ):
            indm.from_diffusers(unet, scheduler, condition=condition)
    with pytest.raises(
        ValueError, match="condition must be None, as the network has no classes, got Classes"
    ):
        indm.from_diffusers(Net(), scheduler, shape=(1, 8, 8), condition=indm.Classes("ab"))


def test_classes_of_torchcfm_and_names_of_the_others():
    """What a conditional network gets: whole numbers as y, or what the condition shows as c."""
    seen = {}

    def call(t, x, y=None):
        seen["y"] = y
        return x

    call.num_classes = 3
    x, level, c = (
        torch.zeros(2, 2),
        torch.zeros(2),
        torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
    )
    condition = indm.Classes("abc")
    indm.from_torchcfm(call, shape=(2,), condition=condition).score.backbone.noise(x, level, c)
    assert seen["y"].tolist() == [2, 1]

    def by_name(x, t, c):
        seen["c"] = c
        return x

    indm.from_flow_matching(by_name, shape=(2,), condition=condition).score.backbone.noise(
        x, level, c
    )
    assert torch.equal(seen["c"], c)


def test_what_no_adapter_can_do_is_refused(unet):
    theirs, condition = library("diffusers"), indm.Classes("abcd")
    with pytest.raises(ValueError, match=r"scheduler must be .* got ScoreSdeVeScheduler"):
        indm.from_diffusers(unet, theirs.ScoreSdeVeScheduler(), condition=condition)
    with pytest.raises(ValueError, match=r"variance_type must be one of .* got 'learned'"):
        indm.from_diffusers(
            unet, theirs.DDPMScheduler(variance_type="learned"), condition=condition
        )


def test_what_is_refused_of_denoising_diffusion_pytorch():
    theirs, options = library("denoising_diffusion_pytorch"), {"image_size": SIDE, "timesteps": K}
    with pytest.raises(ValueError, match=r"offset_noise_strength must be 0, got 0\.1"):
        indm.from_denoising_diffusion(
            theirs.GaussianDiffusion(Net(), offset_noise_strength=0.1, **options)
        )
    with pytest.raises(ValueError, match="scaling must be given if auto_normalize is False"):
        indm.from_denoising_diffusion(
            theirs.GaussianDiffusion(Net(), auto_normalize=False, **options)
        )


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("ends", [(1e-4, 0.02), (0.00085, 0.012)])
@pytest.mark.parametrize(
    "name", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"]
)
def test_schedules_that_are_tried_are_those_of_diffusers(name, ends, zero_snr):
    options = {"beta_start": ends[0], "beta_end": ends[1], "rescale_betas_zero_snr": zero_snr}
    bar = library("diffusers").DDPMScheduler(beta_schedule=name, **options).alphas_cumprod.double()
    is_default = ends[0] == 1e-4 or name in ("squaredcos_cap_v2", "laplace")
    words = name if is_default else f"{name} with beta_start=0.00085, beta_end=0.012"
    found = dict(schedules(1000))[
        f"{words}, rescaled to zero terminal SNR" if zero_snr else words
    ].levels[:990]
    torch.testing.assert_close(found, -0.5 * torch.logit(bar[:990]), rtol=0, atol=2e-3)


def test_schedules_that_are_tried_are_those_of_denoising_diffusion_pytorch():
    betas = library("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
    tried = {
        "sigmoid of ᾱ": betas.sigmoid_beta_schedule(50),
        "linear with beta_start=0.002, beta_end=0.4": betas.linear_beta_schedule(50),
        "squaredcos_cap_v2": betas.cosine_beta_schedule(50),
    }
    for name, beta in tried.items():
        bar = (1 - beta).cumprod(0)
        torch.testing.assert_close(
            dict(schedules(50))[name].levels, -0.5 * torch.logit(bar), rtol=0, atol=1e-3
        )
