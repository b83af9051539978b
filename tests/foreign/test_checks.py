"""What check_denoiser says: bits lost by noise level, and the description that fits better."""

import math

import pytest
import torch
from exact import PATHS, PREDICTS, Exact
from torch import nn

import indm
from indm.foreign.denoiser import Preconditioned
from indm.foreign.paths import path_of
from indm.foreign.schedules import FAMILIES, schedule, schedules

LAW = ([0.5, 0.5], [[-1.0, -1.0], [1.0, 1.0]], [0.3, 0.3])
KINDS = [("noise", "data"), ("noise", "v"), ("v", "velocity"), ("data", "noise")]


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def data(n=1024):
    side = torch.randint(0, 2, (n, 1), generator=seeded(0)) * 2.0 - 1
    return (side.expand(n, 2) + 0.3 * torch.randn(n, 2, generator=seeded(2))).double()


def check(network, predicts="noise", path="linear", raw=None, **options):
    model = indm.from_denoiser(
        network, predicts=predicts, path=path, shape=(2,), **options
    ).double()
    return indm.check_denoiser(
        model, data() if raw is None else raw, batch_size=512, generator=seeded()
    )


def steps(name, count=1000):
    return {"alphas_bar": (-2 * dict(schedules(count))[name].whole_levels()).sigmoid()}


@pytest.mark.parametrize("path", ["linear", "edm", "betas"])
@pytest.mark.parametrize("kind", PREDICTS)
def test_a_right_description_is_found_right(kind, path):
    found = check(Exact(kind, PATHS[path], *LAW), kind, PATHS[path])
    assert not found.wrong and str(found).endswith("\nnothing looks wrong")
    assert (found.errors[kind] < 1.1 * found.linear + 1e-6).all() and found.lost.sum() < 0.01


@pytest.mark.parametrize("said, is_", KINDS)
def test_another_parameterization_is_named(said, is_):
    found = check(Exact(is_, "linear", *LAW), said)
    assert found.wrong and found.verdict.startswith(
        f"predicts={is_!r} fits the network better, by "
    )


def at(time):
    """A network that gets time(τ) for τ."""
    return lambda net: lambda x, tau: net(x, time(tau))


SIGMAS = {"sigmas": (0.02, 9.0)}
FEW, FIFTY = (f"linear with beta_start={1e-4 * n:g}, beta_end={0.02 * n:g}" for n in (50, 20))
OTHERS = {
    "schedule": ("noise", steps("squaredcos_cap_v2"), steps("linear"), None, "} of squaredcos_cap_v2"),
    "few steps": ("noise", steps(FIFTY, 50), steps("sigmoid of ᾱ", 50), None, FIFTY),
    "k + 1": ("noise", steps(FEW, 20), steps(FEW, 20), at(lambda k: k + 1), "k − 1 in place"),
    "k - 1": ("noise", steps(FEW, 20), steps(FEW, 20), at(lambda k: (k - 1).clamp_min(0)), "k + 1 in place of k"),
    "end": ("noise", steps("linear"), steps("linear"), at(lambda k: 999 - k), "k counted from the other end"),
    "share": ("noise", steps("linear"), steps("linear"), at(lambda k: (1000 * k).clamp_max(999)), "k/K as the net"),
    "noise at 1": ("velocity", "linear", "linear-reversed", None, "path='linear'"),
    "trigonometric": ("velocity", "trigonometric-reversed", "linear-reversed", None, "path='trigonometric-reversed'"),
    "unit": ("velocity", "linear", "linear", at(lambda tau: tau / 1000), "1000 τ as the network's time"),
    "reversed": ("noise", PATHS["an object"], PATHS["an object"], at(lambda tau: 1 - tau), "τ counted from the"),
    "quarter": ("noise", "edm", "edm", at(lambda s: (4 * s).exp()), "¼ log σ as the network's time"),
    "no quarter": ("noise", SIGMAS, SIGMAS, at(lambda s: 0.25 * s.log()), "without ¼ log"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_path_or_time_is_named(name):
    kind, is_, said, wrapped, named = OTHERS[name]
    network = Exact(kind, is_, *LAW)
    found = check(network if wrapped is None else wrapped(network), kind, said)
    assert found.wrong and named in found.verdict.split(" fits the network better, by ")[0], (
        found.verdict
    )


ZERO, STABLE = ", rescaled to zero terminal SNR", " with beta_start=0.00085, beta_end=0.012"
ODD = {
    "odd linear": schedule("linear", 1000, (3e-4, 0.035)),
    "odd cosine": schedule("squaredcos_cap_v2", 1000, (0.1,)),
    "odd sigmoid": schedule("sigmoid of ᾱ", 1000, (2.0, 4.0)),
}
TRUE = [("v", f"scaled_linear{ZERO}"), ("noise", "linear"), ("data", f"sigmoid{STABLE}"), ("v", "squaredcos_cap_v2"),
        *(("v", name) for name in ODD)]  # fmt: skip
SAID = [(0, "squaredcos_cap_v2"), (0, "linear"), (1, f"scaled_linear{STABLE}")]
MORE = [(0, f"scaled_linear{STABLE}"), (0, "laplace"), (0, "exp"), (1, "scaled_linear"), (1, "odd linear"),
        (1, "sigmoid of ᾱ"), (2, "linear"), (3, "scaled_linear"), (4, "linear"), (5, "squaredcos_cap_v2"),
        (6, "linear")]  # fmt: skip


def thousand(name):
    path = ODD[name] if name in ODD else dict(schedules(1000))[name]
    return {"alphas_bar": (-2 * path.whole_levels()).sigmoid()}


@pytest.mark.parametrize("kind, is_", TRUE)
def test_a_right_schedule_passes(kind, is_):
    found = check(Exact(kind, thousand(is_), *LAW), kind, thousand(is_))
    assert not found.wrong and found.verdict == "nothing looks wrong"


@pytest.mark.parametrize(
    "true, said", [*SAID, *(pytest.param(*row, marks=pytest.mark.long) for row in MORE)]
)
def test_a_wrong_schedule_is_never_certified_nor_corrected_to_a_wrong_one(true, said):
    """A schedule that is named has the true noise levels, where the data matter: it need not have
    the true name.
    """
    kind, is_ = TRUE[true]
    found = check(Exact(kind, thousand(is_), *LAW), kind, thousand(said))
    named, better, _ = found.verdict.partition(" fits the network better")
    assert found.wrong
    if not better:
        assert "path is not that of its training" in found.verdict
        return
    named = named.split("} of ")[1]
    path, true_path = path_of(parsed(named)), path_of(thousand(is_))
    level = torch.linspace(-2.5, 1.0, 50).double()  # σ/α from 0.08 to 2.7
    off = (path.level(true_path.time(level)) - level).abs()
    assert off.max() < 0.25, (named, off.max())


def parsed(named):
    """The path of a schedule from the words of a verdict."""
    zero_snr, family = named.endswith(ZERO), named.removesuffix(ZERO)
    family, _, parameters = family.partition(" with ")
    values = (
        [float(part.split("=")[1]) for part in parameters.split(", ")]
        if parameters
        else FAMILIES[family].usual[0]
    )
    return schedule(family, 1000, values, zero_snr)


@pytest.mark.parametrize("is_, said", [(1.5, 0.5), pytest.param(0.5, 1.0, marks=pytest.mark.long)])
def test_another_sigma_data_is_named(is_, said):
    """F of the exact D: (D − c_skip x)/c_out at x = input · √(σ² + σ_data²)."""
    exact = Exact("data", "edm", *LAW)

    def network(x, quarter_log):
        sigma = (4 * quarter_log).exp()
        s, total = sigma[:, None], (sigma**2 + is_**2)[:, None].sqrt()
        at = total * x
        return (exact(at, sigma) - (is_ / total) ** 2 * at) * total / (s * is_)

    right = check(Preconditioned(network, is_), "data", "edm")
    assert right.verdict == "nothing looks wrong"
    found = check(Preconditioned(network, said), "data", "edm")
    named = found.verdict.split(" fits the network better")[0]
    assert found.wrong and named.startswith("sigma_data="), found.verdict
    assert float(named.split("=")[1]) == pytest.approx(is_, rel=0.05)


@pytest.mark.parametrize(
    "scaling, named",
    [(indm.Scaling(0.0, 5.0), "deviation 1"), (indm.Scaling(-3.0, 6.0), "deviation")],
)
def test_another_scaling_is_named(scaling, named):
    """The network is that of standardised data."""
    raw = data()
    scale = raw.std().item()
    law = (LAW[0], [[m / scale for m in mean] for mean in LAW[1]], [s / scale for s in LAW[2]])
    found = check(Exact("noise", "linear", *law), raw=raw, scaling=scaling)
    assert found.wrong and named in found.verdict.split(" fits")[0], found.verdict


@pytest.mark.parametrize("said", ["noise", "v"])
def test_bits_lost_are_those_of_the_nelbo(said):
    """Errors of 0.15 at σ > 5, where the data are nearly Gaussian, against the NELBO on fresh
    noise.
    """
    path = {"sigmas": (0.1, 2000.0)}
    exact = Exact("noise", path, *LAW)

    def network(x, tau):
        return exact(x, tau) + 0.15 * (tau > 5)[:, None] * (1000 * x).sin()

    found = check(network, said, path)
    if said == "v":
        assert "predicts='noise', loses 0.3" in found.verdict
        return
    bits = []
    for net in (network, exact):
        model = indm.from_denoiser(net, predicts="noise", path=path, shape=(2,)).double()
        with torch.no_grad():
            bits.append(indm.nelbo(model, data(), times=64, generator=seeded(3)).bits_per_dim)
    assert found.lost.sum().item() == pytest.approx(bits[0] - bits[1], rel=0.1)
    assert found.wrong and found.verdict.startswith(
        f"the network loses at least {found.lost.sum():.2g} bits/dim, most at"
    )
    assert "none of 9 other descriptions loses 0.02 bits/dim less" in found.verdict


@pytest.mark.parametrize("levels", [None, 17])
def test_bits_lost_at_the_least_noise_are_those_of_the_reconstruction(levels):
    """A network that errs next to its least noise alone; a decoder of grey levels does not use it
    there.
    """
    path, scaling = (
        {"sigmas": (0.1, 2000.0)},
        indm.Scaling.between(-2, 2, levels) if levels else None,
    )
    exact = Exact("noise", path, *LAW)
    network = lambda x, tau: exact(x, tau) + 2.0 * (tau < 0.1005)[:, None] * (1000 * x).sin()  # noqa: E731
    raw = (4 * data() + 8).round().clamp(0, 16) if levels else data()
    bits, lost = [], []
    for net in (network, exact):
        model = indm.from_denoiser(
            net, predicts="noise", path=path, shape=(2,), scaling=scaling
        ).double()
        checked = indm.check_denoiser(model, raw, generator=seeded())
        with torch.no_grad():
            bits.append(indm.nelbo(model, raw, times=64, generator=seeded(3)).bits_per_dim)
        lost.append(checked.lost.sum().item())
    assert len(checked.levels) == (8 if levels else 9) and lost[1] < 0.05 < (
        2 if levels else lost[0]
    )
    assert lost[0] - lost[1] == pytest.approx(bits[0] - bits[1], rel=0.1, abs=0.02)


def test_a_small_loss_is_no_finding():
    path = {"sigmas": (0.1, 2000.0)}
    exact = Exact("noise", path, *LAW)
    found = check(lambda x, tau: exact(x, tau) + 0.05 * (1000 * x).sin(), path=path)
    assert not found.wrong and found.lost.sum() < 0.02
    assert found.verdict.startswith("the description looks right, but the network loses at least")
    assert (
        "times that of the best linear predictor" in found.verdict
        and "other descriptions" not in found.verdict
    )


def test_a_level_with_more_noise_bounds_the_error_of_the_next():
    """By Stam's inequality, on exact errors of narrow peaks; a hole in which the network is linear
    is found by it.
    """
    law = ([0.5, 0.5], [[-1.0, -1.0], [1.0, 1.0]], [0.01, 0.01])
    raw = (
        data().mean(1, keepdim=True).sign()
        + 0.01 * torch.randn(1024, 2, generator=seeded(4)).double()
    )
    path = {"sigmas": (0.002, 20.0)}
    exact = Exact("noise", path, *law)
    found = check(exact, path=path, raw=raw)
    error, width = found.errors["noise"], 2 * found.levels.diff()
    assert (
        torch.logit(error[:-1]) < torch.logit(error[1:]) + width + 0.2
    ).all() and found.lost.sum() < 0.01
    hole, width = found.levels[4].exp(), width[-1].item()

    def network(x, tau):
        linear = tau[:, None] * x / (1 + tau**2)[:, None]
        return torch.where((tau - hole).abs()[:, None] < 1e-3, linear, exact(x, tau))

    holed = check(network, path=path, raw=raw)
    next_error = error[5].item()
    allowed = 1 / (1 + (1 - next_error) / next_error * math.exp(-width))
    expected = 0.5 * width / math.log(2) * (holed.errors["noise"][4].item() - allowed)
    assert holed.lost[4].item() == pytest.approx(expected, rel=0.15) and holed.lost[4] > 0.5
    assert holed.wrong and f"most at σ/α = {hole:.2g}" in holed.verdict


def test_the_linear_error_is_that_of_the_best_linear_predictor():
    """By least squares on fresh noise, for Gaussian data with two correlated columns."""
    generator = seeded(3)
    raw = (
        torch.randn(40_000, 2, generator=generator).double()
        @ torch.tensor([[1.0, 0.0], [0.8, 0.4]]).double()
    )
    model = indm.from_denoiser(
        lambda x, tau: torch.zeros_like(x), predicts="noise", path="linear", shape=(2,)
    ).double()
    found = indm.check_denoiser(model, raw, batch_size=4096)
    for level, error in zip(found.levels, found.linear, strict=True):
        noise = torch.randn(40_000, 2, generator=generator).double()
        x = torch.cat([raw + level.exp() * noise, torch.ones(40_000, 1).double()], 1)
        residual = noise - x @ torch.linalg.lstsq(x, noise).solution
        assert residual.square().mean().item() == pytest.approx(error.item(), rel=0.05, abs=1e-4)


def test_the_linear_predictor_is_that_of_gaussian_data_on_the_same_noise():
    """For N(m, s² I) it is the exact network, row by row."""
    raw = (
        torch.tensor([0.5, -0.3]).double()
        + 0.6 * torch.randn(4000, 2, generator=seeded(0)).double()
    )
    found = check(Exact("noise", "linear", [1.0], [[0.5, -0.3]], [0.6]), raw=raw)
    torch.testing.assert_close(found.linear, found.errors["noise"], rtol=5e-3, atol=0)


def test_a_combination_of_the_output_and_x_shows_a_loss():
    """An output of half the size loses what least squares regains, at each level."""
    exact = Exact("noise", "linear", *LAW)
    found, right = check(lambda x, tau: 0.5 * exact(x, tau)), check(exact)
    bits = (found.levels[2] - found.levels[1]) / math.log(2)
    expected = torch.tensor([0.5 / math.log(2), *[bits] * 8]).double() * (
        found.errors["noise"] - right.errors["noise"]
    )
    torch.testing.assert_close(found.lost, expected, rtol=0.05, atol=0.03)


def test_few_rows_of_many_dimensions_do_not_accuse():
    """The predictor that is fitted to the other rows does not know these rows."""
    raw = torch.randn(40, 100, generator=seeded(0)).double()
    model = indm.from_denoiser(
        lambda x, tau: torch.zeros_like(x), predicts="v", path="trigonometric", shape=(100,)
    )
    assert indm.check_denoiser(model.double(), raw).verdict == "nothing looks wrong"


def test_the_network_sees_the_condition_of_each_row():
    """Of classes N(±1, 0.09 I) the exact network, which sees the class, errs by 0.09/(0.09 + σ²)
    under α = 1.
    """

    def network(x, sigma, c):
        s2 = sigma[:, None] ** 2
        return (0.09 * x + s2 * (c[:, 1:] - c[:, :1])) / (0.09 + s2)

    condition = indm.Classes(["left", "right"], drop=0.1)
    model = indm.from_denoiser(
        network, predicts="data", path="edm", shape=(2,), condition=condition
    ).double()
    numbers = seeded(0)
    right = torch.arange(8000) % 2
    raw = 2.0 * right[:, None] - 1 + 0.3 * torch.randn(8000, 2, generator=numbers).double()
    found = indm.check_denoiser(model, raw, c=right, generator=numbers)
    expected = 0.09 / (0.09 + (2 * found.levels).exp())
    torch.testing.assert_close(found.errors["data"], expected, rtol=0.08, atol=0)
    assert not found.wrong


def test_coupled_noise_is_found():
    """A velocity whose noise was the data times 4: u = n − x_0 = 3n/4, and x_τ = (1 + 3τ) n/4."""
    batches = []

    def network(x, tau):
        batches.append(len(x))
        return 3 * x / (1 + 3 * tau)[:, None]

    model = indm.from_denoiser(network, predicts="velocity", path="linear", shape=(2,))
    raw = 0.25 * torch.randn(256, 2, generator=seeded(1))
    found = indm.check_denoiser(model, raw)
    assert (
        found.wrong
        and "If the noise was coupled, the likelihood of the probability flow" in found.verdict
    )
    batches.clear()
    with pytest.warns(RuntimeWarning, match="with noise coupled") as warned:
        shown = indm.evaluate(model, raw, [indm.Bound()], batch_size=20, progress=False)
    assert warned[0].filename == __file__ and max(batches) == 2048  # at other times
    assert (
        f"\nnetwork: {shown.report.network}" in str(shown)
        and "loses at least" in shown.report.network
    )


def test_how_often_a_right_description_asks_the_network():
    seen = []
    exact = Exact("noise", "linear", *LAW)

    def network(x, tau):
        seen.append(len(x))
        return exact(x, tau)

    model = indm.from_denoiser(network, predicts="noise", path="linear", shape=(2,))
    indm.check_denoiser(model, data(200).float(), batch_size=30)
    gradient, times = 3 * 2 * 4, 13 * 8 * 4096
    assert max(seen) == 2048 and sum(seen) == 9 * 100 + gradient + times


def test_the_error_is_that_of_the_output():
    raw = data(200)
    # the error of D = 0 is that of n̂ = x_τ/σ
    found = check(lambda x, tau: torch.zeros_like(x), "data", "edm", raw)
    rows = raw[torch.randperm(200, generator=seeded(0))[:100]]
    torch.testing.assert_close(
        found.errors["data"], rows.square().mean() / (2 * found.levels).exp(), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("scale", [100, 0])
def test_data_of_another_scale_are_found(scale):
    found = check(Exact("noise", "linear", *LAW), raw=scale * data())
    assert found.wrong and (scale == 0 or found.verdict.startswith("data of "))


def test_a_network_that_gives_zero_is_read_right():
    """v = 0 is exact for N(0, I), and a column of zeros has no part in the best combination."""
    raw = torch.randn(512, 2, generator=seeded(0)).double()
    assert (
        check(lambda x, tau: torch.zeros_like(x), "v", "trigonometric", raw).verdict
        == "nothing looks wrong"
    )


def test_a_model_of_this_package_is_not_checked():
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
    with pytest.raises(ValueError, match="model must come from from_denoiser"):
        indm.check_denoiser(indm.build_model(tables, (2,)), data())


@pytest.fixture(scope="module")
def trained():
    """A network that was trained for seconds to predict the noise of the cosine schedule."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(12, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2)
    )
    path, x = path_of(steps("squaredcos_cap_v2")), data(20_000).float()

    def network(x, k):
        angle = (k / 1000)[:, None] * torch.tensor([1.0, 3.0, 6.0, 12.0, 24.0])
        return net(torch.cat([x, angle.sin(), angle.cos()], 1).to(net[0].weight)).to(x)

    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(2000):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 2000)
        k, noise = torch.randint(0, 1000, (512,)).double(), torch.randn(512, 2)
        x_k = (
            path.alpha(k)[:, None] * x[torch.randint(len(x), (512,))]
            + path.sigma(k)[:, None] * noise
        )
        loss = (network(x_k.float(), k.float()) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@pytest.mark.long
def test_a_trained_network_is_accused_of_wrong_descriptions_alone(trained):
    """The cosine schedule that was said to be linear is the first thing that people get wrong."""
    cosine, raw = steps("squaredcos_cap_v2"), data(4000)
    right = check(trained, path=cosine, raw=raw)
    assert "other descriptions loses 0.02 bits/dim less" in right.verdict and right.lost.sum() < 0.2
    for said, path, named in [
        ("noise", "linear", "squaredcos_cap_v2"),
        ("v", "squaredcos_cap_v2", "predicts='noise'"),
    ]:
        found = check(trained, said, steps(path), raw)
        assert found.wrong and named in found.verdict.split(" fits")[0], found.verdict
