"""What check_denoiser finds: another parameterization, coupled noise, data of another scale."""

import pytest
import torch
from exact import PATHS, PREDICTS, Exact

import indm

LAW = ([0.5, 0.5], [[-1.0, -1.0], [1.0, 1.0]], [0.3, 0.3])


def data(n=256):
    generator = torch.Generator().manual_seed(0)
    side = torch.randint(0, 2, (n, 1), generator=generator) * 2.0 - 1
    return side.expand(n, 2) + 0.3 * torch.randn(n, 2, generator=generator)


def check(said, is_, path="linear", raw=None):
    model = indm.from_denoiser(Exact(is_, path, *LAW), predicts=said, path=path, shape=(2,)).double()
    raw = data().double() if raw is None else raw
    return indm.check_denoiser(model, raw, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("path", ["linear", "edm", "betas"])
@pytest.mark.parametrize("kind", PREDICTS)
def test_a_right_description_is_found_right(kind, path):
    found = check(kind, kind, PATHS[path])
    assert not found.findings and "nothing looks wrong" in str(found)
    assert (found.errors[kind] < 1.1 * found.linear + 1e-6).all()


@pytest.mark.parametrize("said, is_", [("noise", "data"), ("noise", "v"), ("v", "velocity"), ("data", "noise")])
def test_another_parameterization_is_recognised(said, is_):
    assert any(f"looks like {is_!r}, not {said!r}" in text for text in check(said, is_).findings)


@pytest.mark.parametrize("said", ["noise", "v"])
def test_small_errors_at_much_noise_are_not_taken_for_coupled_noise(said):
    """As of trained networks: 0.1 at all levels, which is far above the linear error where there is much noise."""
    path = {"sigmas": (0.1, 2000.0)}
    exact = Exact("noise", path, *LAW)

    def network(x, tau):
        return exact(x, tau) + 0.1 * (1000 * x).sin()

    model = indm.from_denoiser(network, predicts=said, path=path, shape=(2,)).double()
    findings = indm.check_denoiser(model, data().double(), generator=torch.Generator().manual_seed(1)).findings
    assert [text[:55] for text in findings] == (
        [] if said == "noise" else ["the network's output looks like 'noise', not 'v': its sq"[:55]]
    )


def test_the_linear_error_is_that_of_the_best_linear_predictor():
    """By least squares on fresh noise, for Gaussian data with two correlated columns."""
    generator = torch.Generator().manual_seed(3)
    raw = torch.randn(20_000, 2, generator=generator).double() @ torch.tensor([[1.0, 0.0], [0.8, 0.4]]).double()
    model = indm.from_denoiser(lambda x, tau: torch.zeros_like(x), predicts="noise", path="linear", shape=(2,)).double()
    found = indm.check_denoiser(model, raw, most=20_000)
    for level, error in zip(found.levels, found.linear, strict=True):
        noise = torch.randn(20_000, 2, generator=generator).double()
        x = torch.cat([raw + level.exp() * noise, torch.ones(20_000, 1).double()], 1)
        residual = noise - x @ torch.linalg.lstsq(x, noise).solution
        assert residual.square().mean().item() == pytest.approx(error.item(), rel=0.05, abs=1e-4)


def test_the_network_sees_the_condition_of_each_row():
    """Of classes N(±1, 0.09 I) the exact network, which sees the class, errs by 0.09/(0.09 + σ²) under α = 1."""

    def network(x, sigma, c):
        s2 = sigma[:, None] ** 2
        return (0.09 * x + s2 * (c[:, 1:] - c[:, :1])) / (0.09 + s2)

    condition = indm.Classes(["left", "right"], drop=0.1)
    model = indm.from_denoiser(network, predicts="data", path="edm", shape=(2,), condition=condition).double()
    numbers = torch.Generator().manual_seed(0)
    right = torch.arange(4000) % 2
    raw = 2.0 * right[:, None] - 1 + 0.3 * torch.randn(4000, 2, generator=numbers).double()
    found = indm.check_denoiser(model, raw, c=right, most=4000, generator=numbers)
    expected = 0.09 / (0.09 + (2 * found.levels).exp())
    torch.testing.assert_close(found.errors["data"], expected, rtol=0.08, atol=0)
    assert not found.findings


def test_coupled_noise_is_found():
    """A velocity whose noise was the data times 2: u = n − x_0 = n/2, and x_τ = (1 + τ) n/2."""
    options = {"predicts": "velocity", "path": "linear", "shape": (2,)}
    batches = []

    def network(x, tau):
        batches.append(len(x))
        return x / (1 + tau)[:, None]

    model = indm.from_denoiser(network, **options)
    raw = 0.5 * torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    (finding,) = indm.check_denoiser(model, raw).findings
    assert "noise and data were coupled in training" in finding
    batches.clear()
    with pytest.warns(RuntimeWarning, match="noise and data were coupled") as warned:
        indm.evaluate(model, raw[:64], [indm.Bound()], batch_size=20, progress=False)
    assert warned[0].filename == __file__ and max(batches) == 20


def test_the_network_sees_no_more_samples_than_a_batch():
    seen = []

    def network(x, tau):
        seen.append(len(x))
        return torch.zeros_like(x)

    model = indm.from_denoiser(network, predicts="data", path="edm", shape=(2,))
    found = indm.check_denoiser(model, data(100), batch_size=30)
    assert max(seen) == 30 and sum(seen) == 8 * 100 + 3 * 2 * 4
    x, sigma = data(100), found.levels.exp()  # the error of D = 0 is that of n̂ = x_τ/σ
    torch.testing.assert_close(found.errors["data"], x.square().mean() / sigma**2, rtol=1e-3, atol=0)


def test_data_of_another_scale_are_found():
    raw = 100 * data().double()
    assert any("data in the network's units reach" in text for text in check("noise", "noise", raw=raw).findings)


def test_a_network_that_gives_zero_is_read_right():
    """v = 0 is exact for N(0, I), and a column of zeros has no part in the best combination."""
    model = indm.from_denoiser(lambda x, tau: torch.zeros_like(x), predicts="v", path="trigonometric", shape=(2,))
    assert not indm.check_denoiser(model, torch.randn(256, 2, generator=torch.Generator().manual_seed(0))).findings


def test_a_model_of_this_package_is_not_checked():
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
    with pytest.raises(ValueError, match="model must come from from_denoiser"):
        indm.check_denoiser(indm.build_model(tables, (2,)), data())
