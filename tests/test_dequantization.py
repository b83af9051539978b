"""Dequantization: densities of the noise against scipy, autograd and counts, and bounds of log P
against quadrature.
"""

import copy
import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from closed_form import MixtureScore, within
from flow_tools import perturb, slopes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import indm
from indm import dequantization, variational
from indm.dequantization import Dequantization, Uniform
from indm.flows import Identity
from indm.model import INDM, build_model
from indm.names import BUILT_IN, find
from indm.objective import flow_loss, mle_loss
from indm.scaling import MOST_LEVELS, Scaling
from indm.sde.linear import VPSDE
from indm.tensors import rand_like
from indm.training import FlowUse, TrainingStep
from indm.workbench.cli.main import main
from indm.workbench.data.base import Data, InMemory

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

OPTIONS = {"variational": {"width": 8}}
LARGEST_BELOW_ONE = 1 - 2.0**-24


class Triangle(Dequantization):
    """Noise of one's own: u is the mean of two uniform numbers."""

    in_words = "triangle"

    def forward(self, centre, *, generator=None):
        u = 0.5 * (rand_like(centre, generator) + rand_like(centre, generator))
        return u, (4 * torch.minimum(u, 1 - u)).log().flatten(1).sum(1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def noise_of(name, shape=(1, 1, 2), scale=0.15):
    """The noise of that row, far from where it starts, in double precision."""
    kind = Triangle if name == "triangle" else find("dequantization", name)
    noise = kind(shape, **OPTIONS[name]) if name == "variational" else kind(**OPTIONS.get(name, {}))
    return perturb(noise.double(), scale)


def model_of(name, shape=(1, 1, 2), scaling=None, score=None):
    """A model in double precision whose score is ``score``, of a mixture of two by default."""
    scaling = Scaling.images(4) if scaling is None else scaling
    return INDM(
        Identity(),
        mixture(shape) if score is None else score,
        scaling,
        shape,
        noise_of(name, shape),
    ).double()


def mixture(shape=(1, 1, 2), **sde):
    """Two bells, as wide as a bin of four grey levels, so that their density is far from constant
    within one.
    """
    means = torch.linspace(-0.6, 0.5, 2 * math.prod(shape)).reshape(2, *shape).flip(-1)
    return MixtureScore(
        VPSDE(**sde), means.double(), torch.tensor([0.25, 0.4]), torch.tensor([0.6, 0.4])
    )


def probability(score, scaling, raw):
    """∫ of the mixture's density over the bin of each of ``raw``: products of differences of normal
    functions.
    """
    low = ((raw.double() - scaling.shift) / scaling.scale)[:, None]
    high = ((raw.double() + 1 - scaling.shift) / scaling.scale)[:, None]
    stds = score.stds.double().reshape(-1, *(1,) * (raw.ndim - 1))
    normal = torch.distributions.Normal(score.means.double(), stds)
    return ((normal.cdf(high) - normal.cdf(low)).flatten(2).prod(2) * score.weights.double()).sum(1)


def all_images(levels, entries=2):
    return torch.cartesian_prod(*[torch.arange(levels)] * entries).reshape(-1, 1, 1, entries)


def uniform_images(shape):
    """Images of 17 grey levels, each as likely as the others."""
    splits = (
        InMemory(torch.randint(17, (n, *shape), dtype=torch.uint8, generator=seeded(n)))
        for n in (40, 8, 8)
    )
    return Data("uniform", *splits, Scaling.images(17), shape)


NOISES = [name for name in BUILT_IN["dequantization"] if not find("dequantization", name).decodes]


@pytest.fixture(params=NOISES)
def name(request):
    return request.param


# ── the density of the noise ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape, levels", [((1, 1, 2), 17), ((2, 2, 3), 256), ((4,), 5)])
def test_log_q_is_the_density_of_x_by_its_jacobian(name, shape, levels, monkeypatch):
    """x is a function of uniform noise, so its density given the raw data is one over the
    determinant of autograd.
    """
    scale = torch.rand(shape[0], *(1,) * (len(shape) - 1), generator=seeded(3)) + levels
    model = model_of(name, shape, Scaling(levels / 2, scale, levels))
    raw = torch.randint(0, levels, (20, *shape), generator=seeded(1))
    v = (
        0.02 + 0.96 * torch.rand(20, *shape, generator=seeded(2), dtype=torch.float64)
    ).requires_grad_()
    for place in (dequantization, variational):
        monkeypatch.setattr(place, "rand_like", lambda z, generator: v)
    x, log_q = model.from_data(raw)
    d = x[0].numel()
    rows = torch.eye(d, dtype=x.dtype)[:, None].expand(d, 20, d)
    (jacobian,) = torch.autograd.grad(x.flatten(1), v, rows, is_grads_batched=True)
    log_det = torch.linalg.slogdet(jacobian.flatten(2).transpose(0, 1))[1]
    torch.testing.assert_close(log_q, -log_det, rtol=1e-9, atol=1e-9)
    assert torch.equal(model.scaling.to_data(x), raw.to(torch.uint8))


def test_density_of_the_noise_by_counts(name):
    """∫ of q over a cell is how often u falls in it, and ∫ of one is its size: E[1_cell(u)/q(u)] =
    |cell|.
    """
    noise, centre, cells = noise_of(name), torch.tensor([-0.5, 0.4]).double().reshape(1, 1, 1, 2), 5
    with torch.no_grad():
        u, log_q = noise(centre.expand(100_000, 1, 1, 2), generator=seeded(0))
    assert bool(((u > 0) & (u < 1)).all())
    cell = (cells * u.flatten(1)).floor() @ torch.tensor([cells, 1.0]).double()
    inside = cell[:, None] == torch.arange(cells**2)
    assert within(inside / log_q.exp()[:, None], 1 / cells**2)


def test_variational_noise_starts_as_uniform_noise():
    """The same numbers as those of uniform noise, and log q = 0."""
    centre = torch.randn(100, 3, 4, 5, generator=seeded(0)).double()
    u, log_q = indm.Variational((3, 4, 5)).double()(centre, generator=seeded(1))
    torch.testing.assert_close(u, Uniform()(centre, generator=seeded(1))[0], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(log_q, torch.zeros_like(log_q), rtol=0, atol=1e-9)


def test_variational_noise_depends_on_the_image_and_moves_every_entry(monkeypatch):
    """The noise of an entry depends on the grey levels of its neighbours and of itself, and on
    their noise.
    """
    shape = (1, 1, 3)
    noise, centre = (
        noise_of("variational", shape, 0.4),
        torch.zeros(1, *shape, dtype=torch.float64, requires_grad=True),
    )
    v = torch.tensor([0.3, 0.6, 0.8]).double().reshape(1, *shape).requires_grad_()
    for place in (dequantization, variational):
        monkeypatch.setattr(place, "rand_like", lambda z, generator: v)
    for entry in range(3):
        u, log_q = noise(centre)
        by_image, by_noise = torch.autograd.grad(u.flatten()[entry], (centre, v))
        for gradient in (by_image.flatten(), by_noise.flatten()):
            assert bool((gradient[max(0, entry - 1) : entry + 2].abs() > 1e-4).all())
        assert abs(u.flatten()[entry] - v.flatten()[entry]) > 1e-3
    assert abs(log_q) > 1e-3


@settings(max_examples=30)
@given(
    st.sampled_from(NOISES),
    st.sampled_from([2, 17, 256, MOST_LEVELS]),
    st.sampled_from([0.0, 2.0**-24, 0.5, LARGEST_BELOW_ONE]),
)
def test_no_noise_leaves_its_grey_level(name, levels, v):
    """In single precision, at the ends of what torch.rand returns; log q stays finite there."""
    raw = torch.linspace(0, levels - 1, 6).round().long().reshape(3, 1, 1, 2)
    model = model_of(name, scaling=Scaling.images(levels)).float()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for place in (dequantization, variational):
            patch.setattr(place, "rand_like", lambda z, generator: torch.full_like(z, v))
        x, log_q = model.from_data(raw)
    assert x.dtype == torch.float32 and bool(log_q.isfinite().all())
    assert torch.equal(model.scaling.to_data(x).long(), raw)


# ── bounds of log P(raw) ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("noise", ["uniform", "triangle"])
def test_bound_of_one_draw_against_quadrature(noise):
    """E[−log p(x) + log q] = ∫ q log(q/p) over the bin, by Gauss–Legendre quadrature in the noise;
    by importance_bound with one draw, by nll, and by the NELBO, which an exact score makes tight.
    """
    model, levels, n = model_of(noise), 4, 1000
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(40))
    nodes, weights = (nodes + 1) / 2, weights / 2
    law = stats.uniform() if noise == "uniform" else stats.triang(0.5)
    u = torch.cartesian_prod(nodes, nodes)
    q = torch.from_numpy(law.pdf(u.numpy())).prod(1)
    for raw in torch.tensor([[1, 2], [3, 0]]).reshape(2, 1, 1, 1, 2):
        x = (raw.flatten() + u - levels / 2) / (levels / 2)
        # of raw + u
        log_p = model.score.log_prob(x.reshape(-1, 1, 1, 2)) - 2 * math.log(levels / 2)
        expected = (torch.cartesian_prod(weights, weights).prod(1) * q * (q.log() - log_p)).sum()
        rows = raw.expand(n, 1, 1, 2)
        nats = indm.importance_bound(
            model, rows, draws=1, batch_size=n, steps=48, generator=seeded(0)
        ).nats
        assert within(nats, expected, floor=3e-3)
        # there is a gap to close
        assert (nats.mean() + probability(model.score, model.scaling, raw).log()) > 0.01
        x, log_q = model.from_data(rows, generator=seeded(1))
        solved = indm.nll(model, x, log_q=log_q, steps=48, generator=seeded(2))
        assert within(solved.nats, expected, floor=3e-3)
        bound = indm.nelbo(model, x, times=4, log_q=log_q, generator=seeded(3)).nats
        assert within(bound, expected, floor=3e-3)


@pytest.mark.parametrize("draws", [1, 2, 4])
def test_importance_weighted_bound(name, draws):
    """Its mean is that of many draws of closed-form weights, without an ODE; and the mean of the
    probabilities is that of the bin, with any number of draws: their sum over all images is what
    the density has within the grey levels.
    """
    model, images, n = model_of(name), all_images(4), 240 // draws
    expected = probability(model.score, model.scaling, images)
    rows = images.repeat(n, 1, 1, 1)
    options = {"steps": 48, "batch_size": 4 * len(rows)}
    report = indm.importance_bound(model, rows, draws=draws, generator=seeded(draws), **options)
    nats = report.nats.reshape(n, len(images))
    assert within((-nats).exp(), expected, floor=2e-4)
    assert within((-nats).exp().sum(1), expected.sum(), floor=2e-4)

    with torch.no_grad():
        x, log_q = model.from_data(images.repeat(4800, 1, 1, 1), generator=seeded(0))
        weights = (model.score.log_prob(x) - log_q).reshape(draws, -1, len(images))
        many = math.log(draws) - weights.logsumexp(0)
    tolerance = 4.5 * (nats.var(0) / n + many.var(0) / len(many)).sqrt() + 4e-3
    assert bool(((nats.mean(0) - many.mean(0)).abs() < tolerance).all())
    gap = (expected * (nats.mean(0) + expected.log())).sum() / expected.sum()
    assert gap > 0.01 / draws  # that falls with the number of draws, and is still there


# ── training ──────────────────────────────────────────────────────────────────────────────────────


class Quadratic(nn.Module):
    """A network with a parameter, so that there is a score to train."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.2))

    def forward(self, z, level):
        return self.weight * z


def trained_model():
    """A small model with learned noise, in double precision."""
    score = indm.ScoreModel(Quadratic(), VPSDE())
    return INDM(Identity(), score, Scaling.images(4), (1, 1, 2), noise_of("variational")).double()


@pytest.mark.parametrize("loss", [mle_loss, flow_loss])
def test_learned_noise_is_trained_by_the_bound_of_the_raw_data(loss):
    """The loss of a step is that of x and log q(x|raw), per dimension; its slope along the
    parameters of the noise is that of finite differences, and x and log q each have one of their
    own.
    """
    model, raw = trained_model(), all_images(4).repeat(4, 1, 1, 1)
    step = TrainingStep(model, indm.Objective(loss), [])
    torch.manual_seed(0)
    total, terms = step(raw)
    torch.manual_seed(0)
    x, log_q = model.from_data(raw)
    of_x = loss(model, x)[0]
    torch.testing.assert_close(total, of_x + log_q.mean() / 2)
    torch.testing.assert_close(terms["log_q"].detach(), log_q.mean().detach())

    parameters = list(model.dequantization.parameters())
    for part in (of_x, log_q.mean()):
        gradients = torch.autograd.grad(part, parameters, retain_graph=True)
        assert all(bool(gradient.any()) for gradient in gradients)
    direction = [
        torch.randn(p.shape, generator=seeded(i), dtype=p.dtype) for i, p in enumerate(parameters)
    ]

    @torch.enable_grad()
    def value():
        torch.manual_seed(0)
        return step(raw)[0]

    by_autograd, by_difference = slopes(value, parameters, direction)
    assert by_autograd == pytest.approx(by_difference, rel=1e-4) and abs(by_autograd) > 1e-3


def test_a_step_behind_a_frozen_flow_leaves_learned_noise_alone():
    """Such a step has no log-determinant, by which alone the noise would be narrowed without end."""
    model = trained_model()
    step = TrainingStep(model, indm.Objective(mle_loss), [])
    step(all_images(4), flow_use=FlowUse.FROZEN)[0].backward()
    assert model.score.backbone.weight.grad.abs() > 0
    assert all(p.grad is None or not p.grad.any() for p in model.dequantization.parameters())


def test_learned_noise_has_its_own_rate_and_is_saved(tmp_path):
    """It is a part of the model with a learning rate, moves in training, and comes back with its
    weights.
    """
    tables = {
        "flow": {"name": "identity"},
        "sde": {"name": "vp"},
        "net": {"name": "mlp", "width": 4, "depth": 1},
    }
    tables["dequantization"] = {"name": "variational", "width": 4, "depth": 2}
    options = {"steps": 3, "batch_size": 8, "dequantization_lr": 0.1, "mixed_precision": "no"}
    rate = {**options, "dequantization_lr": 1e-9}
    data, moved = uniform_images((1, 2, 2)), {}
    for label, train in {"quick": options, "slow": rate}.items():
        indm.train(tables | {"train": train}, tmp_path / label, data=data)
        model = INDM.load(tmp_path / label)
        assert (
            isinstance(model.dequantization, indm.Variational) and model.dequantization.width == 4
        )
        moved[label] = max(
            c.layers[-1].weight.detach().abs().max().item()
            for c in model.dequantization.conditioners
        )
    assert moved["quick"] > 1e-2 and moved["slow"] < 1e-6
    again = INDM.load(tmp_path / "quick")
    other = copy.deepcopy(again)
    other.save(tmp_path / "again")
    raw = data.train.tensor
    for read in (other, INDM.load(tmp_path / "again")):
        for mine, theirs in zip(
            again.from_data(raw, generator=seeded(1)),
            read.from_data(raw, generator=seeded(1)),
            strict=True,
        ):
            assert torch.equal(mine, theirs)


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────

NO_LEVELS = (
    "dequantization must be left out for continuous data, which have no grey levels, got '{}'"
)


def test_vectors_without_grey_levels_take_no_noise(name, tmp_path, capsys):
    """An error wherever it is asked for: of a model, of its description, of a training and of the
    command.
    """
    vectors = torch.randn(100, 2, generator=seeded(0))
    noise = noise_of(name, (2,)).float()
    with pytest.raises(ValueError, match=NO_LEVELS.format(type(noise).__name__)):
        INDM(Identity(), mixture((2,)), Scaling(), (2,), noise)
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "mlp"}}
    tables["dequantization"] = {"name": name}
    with pytest.raises(ValueError, match=NO_LEVELS.format(name)):
        build_model(tables, (2,))
    with pytest.raises(ValueError, match=NO_LEVELS.format(name)):
        indm.train(
            tables | {"train": {"steps": 1, "batch_size": 8}}, tmp_path / "run", data=vectors
        )
    assert (
        main(["train", "eight-gaussians", "--out", str(tmp_path / "cli"), "--dequantization", name])
        == 2
    )
    assert NO_LEVELS.format(name) in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("*/model.json"))
    without = INDM(Identity(), mixture((2,)), Scaling(1.0, 2.0), (2,))
    x, log_q = without.from_data(vectors)
    torch.testing.assert_close(x, (vectors - 1) / 2)
    assert without.dequantization is None and log_q.tolist() == pytest.approx(
        [2 * math.log(2)] * 100
    )


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="depth must be at least 2, got 1"):
        indm.Variational((1, 2, 2), width=8, depth=1)
    with pytest.raises(ValueError, match="shape must"):
        indm.Variational((2, 2))
    model = model_of("variational")
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        indm.importance_bound(model, all_images(4), draws=0)
    with pytest.raises(ValueError, match="log_q must be given for Variational noise"):
        indm.nll(model, model.from_data(all_images(4))[0])


IMAGES = {
    "flow": {"name": "elementwise"},
    "sde": {"name": "vp"},
    "net": {"name": "unet", "channels": 8},
}
WRONG = {
    "above": torch.full((4, 1, 8, 8), 200),
    "below": torch.full((4, 1, 8, 8), -5),
    "uint8": torch.full((4, 1, 8, 8), 17, dtype=torch.uint8),
    "ToTensor": torch.linspace(0, 1, 256).reshape(4, 1, 8, 8),
    "fraction": torch.full((4, 1, 8, 8), 2.5),
    "nan": torch.full((4, 1, 8, 8), math.nan),
    "channels": torch.zeros(4, 3, 8, 8),
    "no axis": torch.zeros(4, 8, 8),
    "numpy": np.zeros((4, 1, 8, 8)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_raw_data_are_errors(kind):
    """Wherever raw data enter a model; the same numbers as whole floats are right."""
    model = build_model(
        IMAGES | {"condition": {"name": "classes", "labels": ["a", "b"]}},
        (1, 8, 8),
        Scaling.images(levels=17),
    )
    raw = WRONG[kind]
    enter = [
        model.from_data,
        lambda raw: indm.evaluate(model, raw, [indm.Bound()], c=0, progress=False),
        lambda raw: indm.importance_bound(model, raw, c=0),
        lambda raw: indm.classify(model, raw, progress=False),
    ]
    for of_raw in enter:
        with pytest.raises(ValueError, match="raw must"):
            of_raw(raw)
    model.from_data(torch.full((4, 1, 8, 8), 16.0))


def test_a_training_checks_the_levels_of_its_data(tmp_path, monkeypatch):
    """Of a data set that no loader of this package has checked: once, as the host would wait for
    the device.
    """
    check, checked = Scaling.check, []
    monkeypatch.setattr(Scaling, "check", lambda *arguments: checked.append(check(*arguments)))
    data = uniform_images((1, 8, 8))
    wrong = dataclasses.replace(data, train=InMemory(data.train.tensor / 16))
    with pytest.raises(
        ValueError, match="raw must be whole numbers 0 … 16, got float32 from 0 to 1; multiply"
    ):
        indm.train(IMAGES | {"train": {"steps": 1, "batch_size": 8}}, tmp_path / "run", data=wrong)
    indm.train(
        IMAGES | {"train": {"steps": 3, "batch_size": 8}},
        tmp_path / "right",
        data=data,
        progress=False,
    )
    assert len(checked) == 1


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8).long(), np.zeros(2)]
)
def test_functions_of_model_units_refuse_raw_data(x):
    model = build_model(IMAGES, (1, 8, 8), Scaling.images(levels=17))
    losses = [
        functools.partial(loss, model) for loss in (mle_loss, indm.fid_loss, indm.nelbo, indm.nll)
    ]
    for of_x in (*losses, model.log_prob, model.encode):
        with pytest.raises(ValueError, match="x must"):
            of_x(x)
