"""The VAE: its bound against the exact likelihood of a linear one, its networks, and its life under the trainer."""

import itertools
import json
import math
import signal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from closed_form import within
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import indm
from indm.flows import Identity
from indm.model import INDM, build_model, count_parameters
from indm.nets import Zero
from indm.objective import objective_of
from indm.scaling import Scaling
from indm.score import ScoreModel
from indm.sde.linear import VPSDE
from indm.workbench.cli.main import main
from indm.workbench.data.base import stack
from indm.workbench.data.registry import load_data
from indm.workbench.evaluation.results import evaluate_run, likelihood_table
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.folder import model_class, open_model, read_metrics
from indm.workbench.training.loop import train
from indm.workbench.training.trainer import Trainer
from research.claims import vae
from research.claims.coders import ConvCoder, MLPCoder
from research.claims.studies import STUDIES
from research.claims.vae import VAE, build_vae, elbo, matching_width

CONV, MLP = "research.claims.coders:ConvCoder", "research.claims.coders:MLPCoder"
ELBO = "research.claims.vae:elbo"
DIGITS = {
    "data": {"name": "digits"},
    "flow": {"name": "identity"},
    "sde": {"name": "vp"},
    "net": {"name": CONV, "width": 8, "latent": 6},
    "train": {
        "objective": ELBO,
        "steps": 9,
        "batch_size": 128,
        "validate_examples": 40,
        "log_every": 3,
        "validate_every": 3,
    },
    "evaluate": {"examples": 60, "batch_size": 25},
}
TABLES = {
    "conv": ({"name": CONV, "width": 4, "latent": 5}, (1, 8, 8)),
    "conv odd": ({"name": CONV, "width": 4, "latent": 3}, (3, 9, 14)),
    "mlp": ({"name": MLP, "width": 16, "latent": 3, "depth": 2}, (4,)),
    "mlp axes": ({"name": MLP, "width": 16, "latent": 3, "depth": 1}, (2, 3)),
}


def change(recipe, **train_options):
    return recipe | {"train": recipe["train"] | train_options}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=TABLES)
def model(request):
    """A VAE with noise on every parameter, so that nothing is hidden behind a zero-initialised layer."""
    table, shape = TABLES[request.param]
    scaling = Scaling.images(17) if len(shape) == 3 else Scaling.standardise(3 * torch.randn(50, *shape) + 7)
    model = build_vae(table, shape, scaling).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(1)))
    return model


# ── the bound ────────────────────────────────────────────────────────────────────────────────────────────────────


class LinearCoder(nn.Module):
    """x = W z + σ n behind the encoder N(A x, diag s²)."""

    def __init__(self, weight, std, encoder, code_std):
        super().__init__()
        self.weight, self.encoder, self.code_std = weight, encoder, code_std
        self.latent, self.free_std = weight.shape[1], std - vae.LEAST_STD

    def encode(self, x):
        mean = x @ self.encoder.T
        return mean, self.code_std.log().expand_as(mean)

    def decode(self, z):
        mean = z @ self.weight.T
        return mean, torch.full_like(mean, math.log(self.free_std))


def linear_vae(wrong=0.0):
    """Probabilistic PCA with orthogonal columns, so that its posterior factorises, and its marginal.

    The encoder is the posterior, but for an error of that size in every number.
    """
    basis, _ = torch.linalg.qr(torch.randn(5, 3, generator=seeded(0), dtype=torch.float64))
    weight, std = basis * torch.tensor([1.5, 0.7, 0.3], dtype=torch.float64), 0.4
    precision = 1 + weight.square().sum(0) / std**2
    encoder = weight.T / std**2 / precision[:, None] + wrong
    model = VAE(LinearCoder(weight, std, encoder, precision.rsqrt() + wrong), Scaling(), (5,))
    covariance = weight @ weight.T + std**2 * torch.eye(5, dtype=torch.float64)
    return model, MultivariateNormal(torch.zeros(5, dtype=torch.float64), covariance)


def expected_bound(model, x, monkeypatch):
    """The bound's mean over its noise, exactly: it is quadratic in it, so that ±1 in every entry stands for it."""
    totals = []
    for signs in itertools.product((-1.0, 1.0), repeat=model.coder.latent):
        noise = torch.tensor(signs, dtype=x.dtype).expand(len(x), -1)
        monkeypatch.setattr(vae, "randn_like", lambda z, generator=None, noise=noise: noise)
        totals.append(model.bound(x).total)
    monkeypatch.undo()
    return torch.stack(totals).mean(0)


def test_bound_at_the_true_posterior_is_the_likelihood(monkeypatch):
    model, law = linear_vae()
    x = law.sample((20,))
    torch.testing.assert_close(expected_bound(model, x, monkeypatch), -law.log_prob(x), rtol=0, atol=1e-6)


def test_bound_elsewhere_is_above_it_by_the_divergence_of_the_encoder(monkeypatch):
    model, law = linear_vae(wrong=0.2)
    right, _ = linear_vae()
    x = law.sample((20,))
    gap = expected_bound(model, x, monkeypatch) + law.log_prob(x)
    encoders = [Independent(Normal(mean, std.exp()), 1) for mean, std in (model.encode(x), right.encode(x))]
    assert (gap > 0.1).all()
    torch.testing.assert_close(gap, kl_divergence(*encoders), rtol=1e-5, atol=1e-6)


def test_draws_of_the_bound_have_its_mean(monkeypatch):
    model, law = linear_vae(wrong=0.1)
    x = law.sample((10,))
    draws = torch.stack([model.bound(x, generator=seeded(i)).total for i in range(4000)])
    assert within(draws, expected_bound(model, x, monkeypatch))


def test_samples_have_the_moments_of_the_marginal():
    model, law = linear_vae()
    model.scaling.double()
    x = model.sample(40_000, generator=seeded(0))
    torch.testing.assert_close(x.mean(0), law.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(x.T.cov(), law.covariance_matrix, rtol=0.05, atol=0.03)


def test_terms_are_those_of_torchs_distributions(model):
    x = torch.randn(6, *model.shape)
    terms = model.bound(x, generator=seeded(3))
    mean, log_std = model.encode(x)
    code = Independent(Normal(mean, log_std.exp()), 1)
    z = mean + log_std.exp() * torch.randn(mean.shape, generator=seeded(3))
    centre, spread = model.decode(z)
    decoder = Independent(Normal(centre, spread.exp()), len(model.shape))
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    torch.testing.assert_close(terms.distortion, -decoder.log_prob(x))
    torch.testing.assert_close(terms.rate, kl_divergence(code, prior))
    assert terms.rate.min() > 0 and torch.equal(terms.total, terms.distortion + terms.rate)
    assert torch.equal(terms.reconstruction, torch.zeros(6))


# ── the networks ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_parameter_gets_a_gradient_and_samples_do_not_mix(model):
    x, z = torch.randn(4, *model.shape), torch.randn(4, model.coder.latent)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(model.bound(x).total.sum(), parameters)
    dead = [n for n, g in zip(names, gradients, strict=True) if not (g.isfinite().all() and g.abs().max() > 0)]
    assert not dead
    for one, both in ((model.encode, x), (model.decode, z)):
        for part, whole in zip(one(both[:1]), one(both), strict=True):
            torch.testing.assert_close(part[0], whole[0], rtol=1e-4, atol=1e-5)


def test_the_decoder_reaches_the_scale_of_dequantization():
    """The best Gaussian for uniform noise within one grey level has its deviation, 1/√12 of a level."""
    model = build_vae(*TABLES["conv"], Scaling.images(256))
    level = 2 / 256
    with torch.no_grad():
        model.coder.decoder[-1].weight.zero_()
        model.coder.decoder[-1].bias.fill_(-50.0)
    _, log_std = model.decode(torch.zeros(1, 5))
    assert log_std.exp().max() < level / math.sqrt(12)
    assert log_std.exp().min() > 0.2 * level


@pytest.mark.parametrize("recipe, name", [("digits", CONV), ("fashion-mnist", CONV), ("eight-gaussians", MLP)])
def test_width_matches_the_parameters_of_an_indm(recipe, name):
    tables = recipes.model_of(recipes.override(recipes.load(recipe), dict(STUDIES[recipe].changes)))
    shape = {"digits": (1, 8, 8), "fashion-mnist": (1, 28, 28), "eight-gaussians": (2,)}[recipe]
    scaling = Scaling() if len(shape) == 1 else Scaling.images(256)
    wanted = count_parameters(build_model(tables, shape, scaling))
    width = matching_width({"name": name}, shape, wanted)
    found = count_parameters(build_vae({"name": name, "width": width}, shape, Scaling()))
    assert abs(found / wanted - 1) < 0.1


def test_refuses_what_cannot_be_built():
    with pytest.raises(ValueError, match=r"shape must be \(channels, height, width\) .*, got \(4,\); use MLPCoder"):
        ConvCoder((4,))
    with pytest.raises(ValueError, match="width and latent must be at least 1, got 8 and 0"):
        MLPCoder((4,), width=8, latent=0)
    with pytest.raises(ValueError, match="depth must be at least 1"):
        MLPCoder((4,), depth=0)
    with pytest.raises(
        ValueError, match=r"needs a net with .*, such as ConvCoder or MLPCoder, got 'unet' without latent"
    ):
        build_vae({"name": "unet"}, (1, 8, 8), Scaling())
    with pytest.raises(ValueError, match="parameters must be at least"):
        matching_width({"name": MLP}, (1000,), 10)
    with pytest.raises(ValueError, match="n must be at least 1"):
        build_vae(*TABLES["mlp"], Scaling()).sample(0)


# ── training, saving, evaluating ─────────────────────────────────────────────────────────────────────────────────


def test_saved_is_loaded(model, tmp_path):
    model.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"model.json", "model.safetensors"}
    twin = open_model(tmp_path)
    assert (
        type(twin) is model_class(tmp_path) is VAE
        and not twin.training
        and twin.shape == model.shape
        and twin.scaling.levels == model.scaling.levels
    )
    x = model.scaling.to_model(torch.randint(0, 17, (3, *model.shape)), generator=seeded(0))
    assert torch.equal(twin.bound(x, generator=seeded(1)).total, model.bound(x, generator=seeded(1)).total)
    assert torch.equal(twin.sample(2, generator=seeded(2)), model.sample(2, generator=seeded(2)))
    with pytest.raises(ValueError, match=r"cannot be read: it is a research\.claims\.vae:VAE, and this needs an INDM"):
        indm.INDM.load(tmp_path)
    (tmp_path / "model.json").unlink()
    with pytest.raises(ValueError, match=r"no file model\.json"):
        VAE.load(tmp_path)


def test_a_vae_that_claims_more_than_its_weights(tmp_path):
    vae = build_vae({"name": MLP, "width": 8, "latent": 2}, (2,), Scaling())
    vae.save(tmp_path)
    x = torch.randn(3, 2)
    assert torch.equal(VAE.load(tmp_path).encode(x)[0], vae.eval().encode(x)[0])
    description = json.loads((tmp_path / "model.json").read_text())
    description["net"]["width"] = 10**6
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="the description is of a larger model than the weights"):
        VAE.load(tmp_path)


def test_training_on_digits_learns_them(tmp_path):
    run = tmp_path / "run"
    recipe = change(DIGITS, steps=160, lr=2e-3, ema=0.9, log_every=10, validate_every=80)
    summary = train(recipe, run, progress=False)
    lines = [line for line in read_metrics(run) if "nelbo" in line]
    assert lines[-1]["nelbo"] < lines[0]["nelbo"] - 0.7
    assert summary["valid_nelbo"] < lines[-1]["nelbo"] + 0.2 and summary["unit"] == "bits/dim"
    assert lines[-1]["rate"] > 1  # nats: the code is in use
    assert summary["vae_parameters"] == count_parameters(VAE.load(run)) == len(vae_vector(run))
    assert {"versions.json", "checkpoint.pt", "model.safetensors", "model.json"} <= {p.name for p in run.iterdir()}

    model, raw = VAE.load(run), stack(load_data("digits").train).double()
    samples = model.scaling.to_data(model.sample(1000, generator=seeded(0)))
    assert samples.shape == (1000, 1, 8, 8) and samples.dtype == torch.uint8 and samples.max() <= 16
    mean = samples.double().mean(0)
    assert (mean - raw.mean(0)).square().mean().sqrt() < 0.4 * raw.mean(0).std()


def vae_vector(run):
    return nn.utils.parameters_to_vector(VAE.load(run).parameters())


def test_the_rates_weight_rises_to_one():
    trainer = Trainer(recipes.resolve(change(DIGITS, steps=10)), load_data("digits"), Accelerator(cpu=True))
    weights, batches = [], trainer.batches()
    for _ in range(5):
        terms = trainer.train_step(batches)
        weights.append(((64 * terms["loss"] - terms["distortion"]) / terms["rate"]).item())
    assert weights == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0], abs=1e-3)


@pytest.mark.parametrize("net", [CONV, MLP])
def test_resuming_equals_never_stopping(tmp_path, monkeypatch, net):
    recipe = DIGITS | {"net": {"name": net, "width": 8, "latent": 6}}
    train(recipe, tmp_path / "whole", progress=False)
    original = Trainer.train_step

    def interrupted(self, batches):
        terms = original(self, batches)
        if self.step == 4:
            signal.raise_signal(signal.SIGINT)
        return terms

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        assert train(recipe, tmp_path / "halved", progress=False)["interrupted"]
    assert train(recipe, tmp_path / "halved", resume=True, progress=False)["steps"] == 9
    assert torch.equal(vae_vector(tmp_path / "whole"), vae_vector(tmp_path / "halved"))


def test_objective_and_network_go_together(tmp_path):
    with pytest.raises(ValueError, match=r"net '.*:ConvCoder' has no forward\(z, level\), which"):
        train(change(DIGITS, objective="fid"), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"elbo needs a net with .*, got 'mlp' without latent, encode, decode"):
        train(DIGITS | {"net": {"name": "mlp"}}, tmp_path / "run", progress=False)


def test_the_objective_is_the_bound_whose_rate_is_weighted_by_the_progress(model):
    x, event = torch.randn(5, *model.shape), math.prod(model.shape)
    torch.manual_seed(2)
    terms = model.bound(x)
    for progress, weight in ((0.0, 0.0), (0.05, 0.25), (0.2, 1.0), (0.9, 1.0)):
        torch.manual_seed(2)
        loss, shown = elbo(model, x, progress=progress)
        expected = (terms.distortion.mean() + weight * terms.rate.mean()) / event
        torch.testing.assert_close(loss, expected)
        assert loss.requires_grad and not any(value.requires_grad for value in shown.values())
        for name, value in {"nelbo": terms.total, "distortion": terms.distortion, "rate": terms.rate}.items():
            torch.testing.assert_close(shown.pop(name), value.mean().detach())
        assert not shown
    assert objective_of(elbo).shown == ("distortion", "rate") and not objective_of(elbo).takes("eps")


@pytest.mark.parametrize("option", [{"pretrain": 0.5}, {"terminal": 1.0}, {"latent_mean": True}])
def test_refuses_what_only_an_indm_can_be_trained_for(tmp_path, option):
    (key, value), *_ = option.items()
    with pytest.raises(
        ValueError, match=rf"train\.{key} must be .* for a model without flow and diffusion, got {value!r}"
    ):
        train(change(DIGITS, **option), tmp_path / "run", progress=False)


def test_evaluation_is_the_bound_of_the_raw_data():
    """Raw data on another scale: the linear VAE's mean bound is the entropy of the data plus the log of the scale."""
    model, law = linear_vae()
    scale = torch.tensor([50.0, 0.1, 1.0, 2.0, 3.0])
    model.scaling = Scaling(torch.tensor([100.0, 0.0, 0.0, 0.0, 0.0]), scale).double()
    raw = law.sample((4000,)) * model.scaling.scale + model.scaling.shift
    report, nats = indm.evaluate(model, raw, repeats=4, batch_size=1500, seed=3, progress=False)
    numbers = report["nelbo"]["with_reconstruction"]
    entropy = law.entropy().item() + scale.log().sum().item()
    assert numbers["nats"] == pytest.approx(entropy, abs=4.5 * numbers["nats_standard_error"])
    assert numbers["nats"] == pytest.approx(nats["nelbo"].mean().item())
    assert numbers["bits_per_dim"] == pytest.approx(numbers["nats"] / (5 * math.log(2)))
    for arguments in ({"repeats": 1}, {"raw": raw[:1]}):
        with pytest.raises(ValueError, match=r"must .*2"):
            indm.evaluate(model, **{"raw": raw} | arguments)


def test_evaluations_of_one_seed_share_their_dequantization(monkeypatch):
    scaling, shape = Scaling.images(17), (1, 8, 8)
    models = build_vae(*TABLES["conv"], scaling), INDM(Identity(), ScoreModel(Zero(), VPSDE()), scaling, shape)
    raw, original, seen = torch.randint(0, 17, (10, *shape)), Scaling.place, []

    def recorded(self, raw, u):
        seen.append(original(self, raw, u))
        return seen[-1]

    monkeypatch.setattr(Scaling, "place", recorded)
    indm.evaluate(models[0], raw, batch_size=4, seed=5, progress=False)
    ours = torch.cat(seen)
    indm.evaluate(models[1], raw, nll_examples=0, batch_size=4, seed=5, progress=False)
    assert torch.equal(torch.cat(seen[-6:]), ours)


def test_an_evaluated_run_stands_beside_an_indm(tmp_path, capsys):
    ours, other = tmp_path / "vae", tmp_path / "indm"
    train(DIGITS, ours, progress=False)
    report = evaluate_run(ours, progress=False)
    assert json.loads((ours / "evaluation.json").read_text()) == report
    assert report["images"] == {"nelbo": 60, "nll": 0} and report["unit"] == "bits/dim" and report["split"] == "test"
    assert "60 for the NELBO" in likelihood_table(report)

    flow = {"flow": {"name": "coupling", "width": 8}, "net": {"name": "zero"}}
    train(change(DIGITS, objective="mle") | flow, other, progress=False)
    assert main(["evaluate", str(other), "--nll-examples", "0", "--quiet"]) == 0
    assert report.keys() == json.loads((other / "evaluation.json").read_text()).keys()
    assert main(["compare", "--trust", "research", str(ours), str(other), "--out", str(tmp_path)]) == 0
    differences = json.loads((tmp_path / "comparison.json").read_text())["differences"]["indm"]
    with np.load(ours / "evaluation.npz") as a, np.load(other / "evaluation.npz") as b:
        mean = (b["nelbo"] - a["nelbo"]).mean() / (64 * math.log(2))
    assert differences["nelbo"]["difference"] == pytest.approx(mean)
    assert main(["evaluate", str(ours), "--overwrite", "--quiet"]) == 0  # as any run
    assert json.loads((ours / "evaluation.json").read_text())["nelbo"] == report["nelbo"]
    capsys.readouterr()
    assert main(["sample", str(ours), "-n", "4"]) == 2
    assert "it is a research.claims.vae:VAE, and this needs an INDM" in capsys.readouterr().err
