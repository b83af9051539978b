"""Models of p(x|c): closed forms, one row of c for each sample, guidance, Bayes, and what a
condition may be.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import indm
from indm.conditions import Classes, Condition, Conditioned, Image, Vector, given, sees_condition
from indm.flows import CouplingFlow, ExactFlow, Frozen, Identity, ResidualFlow
from indm.likelihood import decode_with_log_prob, latent_reference
from indm.model import build_model
from indm.nets import MLP, Backbone, UNet
from indm.nets.embedding import ConditionOfImages
from indm.published import NCSNpp
from indm.sampling import make_sampler, solve_latent
from indm.translation import two_models
from indm.workbench.recipes.options import Drawing
from indm.workbench.recipes.recipe import load, resolve
from indm.workbench.runs.samples import conditions
from indm.workbench.translation.routes import open_runs

VP = {"name": "vp"}
MEANS = torch.tensor([[1.5, -0.5], [-1.0, 0.5], [0.0, 2.0]])
STDS = torch.tensor([0.05, 0.5, 1.0])  # so different that they need different numbers of steps
LETTERS = ("a", "b", "c")


class GaussianScore(nn.Module):
    """The exact score of N(mean_c, std_c² I); of the mixture of all classes where c is hidden."""

    is_smooth = takes_condition = True

    def __init__(self, means=MEANS, stds=STDS):
        super().__init__()
        self.sde = indm.VPSDE()
        self.means, self.stds = means, stds

    def moments(self, t, dtype=torch.float64):
        alpha, sigma = self.sde.alpha(t).to(dtype), self.sde.sigma(t).to(dtype)
        return alpha[:, None, None] * self.means.to(dtype), (
            alpha[:, None] * self.stds.to(dtype)
        ) ** 2 + sigma[:, None] ** 2

    def forward(self, z_t, t, c=None):
        means, variances = self.moments(t)
        z = z_t.double()[:, None]
        log_p = -0.5 * (z - means).square().sum(2) / variances - variances.log()
        scores = (means - z) / variances[:, :, None]
        hidden = torch.ones(len(z_t), dtype=torch.bool) if c is None else c.sum(1) == 0
        shares = log_p.softmax(1)
        if c is not None:
            shares = torch.where(hidden[:, None], shares, c.double())
        return (shares[:, :, None] * scores).sum(1).to(z_t.dtype)


def gaussian_model(**options):
    return indm.INDM(Identity(), GaussianScore(), shape=(2,), condition=Classes(LETTERS, **options))


def log_normal(x, c):
    mean, std = MEANS[c], STDS[c]
    return (
        -0.5 * ((x - mean) / std[:, None]).square().sum(1) - 2 * std.log() - math.log(2 * math.pi)
    )


def mixed(n):
    """Data of all classes in one batch, and their classes."""
    c = torch.arange(n) % 3
    return MEANS[c] + STDS[c][:, None] * torch.randn(n, 2), c


# ── closed forms ──────────────────────────────────────────────────────────────────────────────────


def test_log_prob_of_a_conditional_gaussian_row_by_row():
    x, c = mixed(30)
    with torch.no_grad():
        log_prob = gaussian_model().log_prob(x, c=c, steps=128)
    eps = 1e-5  # without last denoising: the law at ε, which is wider by σ_ε² and divided by α_ε
    score = gaussian_model().score
    alpha, sigma = (f(torch.tensor([eps])).item() for f in (score.sde.alpha, score.sde.sigma))
    std = (STDS[c].double() ** 2 + (sigma / alpha) ** 2).sqrt()
    wanted = (
        -0.5 * ((x - MEANS[c]).double() / std[:, None]).square().sum(1)
        - 2 * std.log()
        - math.log(2 * math.pi)
    )
    assert torch.allclose(log_prob.double(), wanted, atol=6e-2)


def test_nelbo_of_a_conditional_gaussian_is_its_entropy_in_the_mean():
    x, c = mixed(6000)
    bound = indm.nelbo(gaussian_model(), x, c=c, times=4).total
    for k in range(3):
        entropy = 1 + math.log(2 * math.pi) + 2 * STDS[k].log().item()
        own = bound[c == k]
        assert abs(own.mean().item() - entropy) < 4 * own.std().item() / math.sqrt(len(own)) + 2e-3


@pytest.mark.parametrize("sampler", ["unipc", "ode", "heun"])
def test_samples_of_each_class_have_its_mean_and_deviation(sampler):
    c = torch.arange(3000) % 3
    x = indm.sample(gaussian_model(), 3000, c=c, sampler=sampler, steps=40, batch_size=1024)
    for k in range(3):
        own = x[c == k]
        error = STDS[k].item() / math.sqrt(len(own))
        assert (own.mean(0) - MEANS[k]).abs().max() < 5 * error + 1e-3
        assert (own.std(0) / STDS[k] - 1).abs().max() < 0.12


def test_the_density_of_samples_is_that_at_their_own_condition():
    model, c = gaussian_model(), torch.tensor([0, 1, 2, 1, 2, 0, 1, 2])
    x, log_prob = indm.sample_with_log_prob(model, 8, c=c, batch_size=3)
    with torch.no_grad():
        assert torch.allclose(log_prob, model.log_prob(x, c=c, steps=128), atol=2e-2)
    assert torch.allclose(log_prob, log_normal(x, c), atol=5e-2)
    with pytest.warns(RuntimeWarning, match="above 1e-07 bits/dim"):
        indm.sample_with_log_prob(model, 8, c=c, nll_error=1e-7, steps=8)


@pytest.mark.long
def test_rows_of_c_follow_their_samples_where_some_are_solved_again():
    """A batch in any order gives each sample what it gets alone."""
    x, c = mixed(6)
    order = torch.randperm(6)
    options = {"exact": True, "nll_error": 1e-4}
    model = gaussian_model()
    one = decode_with_log_prob(model.given(c), x, **options)
    other = decode_with_log_prob(model.given(c[order]), x[order], **options)
    assert torch.allclose(one[0][order], other[0], atol=1e-6) and torch.allclose(
        one[1][order], other[1], atol=1e-5
    )
    assert len(indm.nll(model, x, c=c, **options).solver_error.unique()) > 1


# ── guidance ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("time", [1e-3, 0.1, 0.5, 1.0])
def test_the_guided_field_is_that_of_the_mixture_in_closed_form(guidance, time):
    model = gaussian_model(drop=0.1)
    z, t, c = torch.randn(12, 2), torch.full((12,), time), torch.arange(12) % 3
    field = model.given(c, guidance=guidance).score(z, t)
    alpha, sigma = model.sde.alpha(t)[0].double(), model.sde.sigma(t)[0].double()
    variances = (alpha * STDS.double()) ** 2 + sigma**2
    densities = torch.stack(
        [
            torch.exp(-0.5 * (z.double() - alpha * m).square().sum(1) / v) / v
            for m, v in zip(MEANS, variances, strict=True)
        ],
        1,
    )
    slopes = torch.stack(
        [(alpha * m - z.double()) / v for m, v in zip(MEANS, variances, strict=True)], 1
    )
    mixture = (densities[:, :, None] * slopes).sum(1) / densities.sum(1, keepdim=True)
    wanted = mixture + guidance * (slopes[torch.arange(12), c] - mixture)
    assert torch.allclose(field.double(), wanted, rtol=2e-3, atol=2e-3)


def test_guidance_above_one_is_not_the_sharpened_density():
    """p^{1−w} p(·|c)^w at t = 0 is another law: guidance mixes the scores of laws that diffused
    apart.
    """
    stds = torch.tensor([0.5, 2.0])
    score = GaussianScore(torch.tensor([[0.5, 0.0], [-0.5, 0.0]]), stds)
    model = indm.INDM(Identity(), score, shape=(2,), condition=Classes(LETTERS[:2], drop=0.1))
    x = indm.sample(
        model, 4000, c=0, guidance=3.0, steps=60, generator=torch.Generator().manual_seed(0)
    )
    grid = torch.cartesian_prod(torch.linspace(-4, 4, 161), torch.linspace(-4, 4, 161)).double()
    logs = torch.stack(
        [
            -0.5 * (grid - m.double()).square().sum(1) / s**2 - 2 * s.log()
            for m, s in zip(score.means, stds.double(), strict=True)
        ]
    )
    sharpened = (-2 * (logs.logsumexp(0) - math.log(2)) + 3 * logs[0]).softmax(0)
    mean = (sharpened[:, None] * grid).sum(0)
    deviation = (sharpened * (grid[:, 0] - mean[0]) ** 2).sum().sqrt()
    assert abs(x[:, 0].std() / deviation - 1) > 0.05


# ── flows ─────────────────────────────────────────────────────────────────────────────────────────

FLOWS = {
    "coupling": lambda shape, k: CouplingFlow(shape, width=8, depth=2, condition=(k,)),
    "residual": lambda shape, k: ResidualFlow(shape, blocks=(2,), width=8, condition=(k,)),
}


def moved(module):
    """``module`` with its parameters moved at random, away from the identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


@pytest.mark.parametrize("shape", [(2,), (2, 4, 4)])
@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_of_a_condition(name, shape):
    """Jacobian and inverse at each row's own c; another c is another map."""
    flow = moved(FLOWS[name](shape, 3)).double()
    x, c = torch.randn(4, *shape).double(), torch.randn(4, 3).double()
    at_c = given(flow, c)
    z, log_det = at_c(x)
    for i in range(4):
        one = given(flow, c[i : i + 1])
        jacobian = torch.autograd.functional.jacobian(
            lambda v, one=one: one.latent(v[None])[0], x[i]
        )
        assert torch.allclose(
            torch.linalg.slogdet(jacobian.reshape(x[0].numel(), -1))[1], log_det[i], atol=1e-8
        )
    assert torch.allclose(at_c.inverse(z, tol=1e-9), x, atol=1e-6)
    assert (given(flow, c.roll(1, 0))(x)[0] - z).abs().flatten(1).amax(1).min() > 1e-4
    with pytest.raises(ValueError, match="c must be given"):
        flow(x)


@pytest.mark.long
def test_rows_whose_inverse_is_solved_again_keep_their_condition():
    """In single precision few samples reach this tolerance; those that do not are solved in double."""
    flow = moved(FLOWS["residual"]((4,), 3))
    x, c = torch.randn(40, 4), torch.randn(40, 3)
    z = given(flow, c).latent(x)
    residual = given(flow, c).solve_inverse(z, tol=0.0)[1]
    tol = residual[residual > 0].min().item() / 2
    converged = given(flow, c).solve_inverse(z, tol=tol)[3]
    assert 0 < int(converged.sum()) < 40
    assert torch.allclose(given(flow, c).inverse(z, tol=tol), x, atol=1e-5)


def test_without_a_condition_a_flow_is_itself():
    for flow in (Identity(), CouplingFlow((2,), width=4), ResidualFlow((2,), blocks=(1,), width=4)):
        assert given(flow, torch.randn(3, 2)) is flow and not sees_condition(flow)
    frozen = Frozen(CouplingFlow((2,), width=4, condition=(2,)))
    assert given(frozen, torch.zeros(3, 2))(torch.randn(3, 2))[0].shape == (
        3,
        2,
    ) and sees_condition(frozen)


class Direction(Condition):
    """Degrees, seen as cosine and sine; it has nothing to learn or to keep."""

    seen_shape = (2,)

    @classmethod
    def of_data(cls, c, labels):
        return {}

    def rows(self, c, n=None):
        return torch.as_tensor(c).reshape(-1, 1)

    def forward(self, c):
        return torch.cat([torch.deg2rad(c).cos(), torch.deg2rad(c).sin()], 1)


def test_a_condition_of_ones_own_can_be_hidden():
    table = {"flow": {"name": "identity"}, "sde": VP, "net": {"name": "mlp", "width": 8}}
    model = build_model(table | {"condition": {"name": Direction, "drop": 0.1}}, (2,)).double()
    assert (
        model.condition.absent(3).tolist() == [[0.0, 0.0]] * 3
        and model.condition.absent(1).dtype == torch.float64
    )
    assert model.given(None, 3).log_prob(torch.zeros(3, 2, dtype=torch.float64), steps=4).shape == (
        3,
    )


def test_a_view_shares_weights_and_leaves_the_flow_as_it_was():
    flow = CouplingFlow((2,), width=4, condition=(3,))
    view = given(flow, torch.zeros(5, 3))
    assert all(a is b for a, b in zip(flow.parameters(), view.parameters(), strict=True))
    assert all(part.c is None for part in flow.modules() if hasattr(part, "c"))
    view(torch.randn(5, 2))[0].sum().backward()
    assert any(parameter.grad is not None for parameter in flow.parameters())


@pytest.mark.filterwarnings("ignore:the error of log_prob")
@pytest.mark.parametrize("flow_sees", [True, pytest.param(False, marks=pytest.mark.long)])
def test_the_density_at_each_condition_is_normalised(flow_sees):
    """By quadrature, of a model whose flow and network are moved at random."""
    tables = {
        "flow": {"name": "coupling", "width": 8, "depth": 2, "transform": "affine"},
        "sde": VP,
        "net": {"name": "mlp", "width": 8, "depth": 1, "fourier": 0},
    }
    tables["condition"] = {"name": "classes", "labels": ["left", "right"], "flow": flow_sees}
    model = build_model(tables, (2,))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    side = torch.linspace(-7, 7, 57)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        left, right = (model.log_prob(grid, c=label, steps=24) for label in ("left", "right"))
    for log_prob in (left, right):
        assert abs(log_prob.exp().sum().item() * (side[1] - side[0]).item() ** 2 - 1) < 0.02
    assert (left - right).abs().max() > 1e-3


def test_one_model_translates_between_its_classes():
    """Encoded with c = A and decoded with c = B, Gaussians go to Gaussians of the other class by
    the affine map.
    """
    x, c = mixed(200)
    model = gaussian_model()
    x, n = x[c == 1], int((c == 1).sum())
    there = indm.translate(model, model, x, c=("b", "c"), steps=100)
    wanted = MEANS[2] + (x - MEANS[1]) * STDS[2] / STDS[1]
    assert (there - wanted).abs().max() < 0.05
    assert torch.equal(
        there, indm.translate(model.given("b", n), model.given("c", n), x, steps=100)
    )
    route = two_models(model, model, c=("b", "c"), steps=100)
    assert (route.back().follow(there).x - x).abs().max() < 0.01
    rows = torch.arange(n) % 3  # a class for each sample
    each = indm.translate(model, model, x, c=("b", rows), steps=100)
    assert (
        each - (MEANS[rows] + (x - MEANS[1]) * (STDS[rows] / STDS[1])[:, None])
    ).abs().max() < 0.05


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_a_guided_translation_leads_farther_away_from_the_source_and_has_a_way_back(guidance):
    """Of Gaussians of one deviation, s_a + w (s_b − s_a) is the score of N(m_a + w (m_b − m_a), v)."""
    score = GaussianScore(stds=torch.full((3,), 0.5))
    model = indm.INDM(Identity(), score, shape=(2,), condition=Classes(LETTERS))
    x = MEANS[0] + 0.5 * torch.randn(20, 2)
    route = two_models(model, model, c=("a", "b"), guidance=guidance, steps=100)
    there = route.follow(x).x
    (_, variance), alpha = score.moments(torch.ones(1)), score.sde.alpha(torch.ones(()))
    left = alpha * 0.5 / variance[0, 0].sqrt()  # of the means at T, where both ways meet
    assert torch.allclose(
        there, (x + guidance * (1 - left) * (MEANS[1] - MEANS[0])).float(), atol=3e-3
    )
    assert torch.equal(
        there, indm.translate(model, model, x, c=("a", "b"), guidance=guidance, steps=100)
    )
    assert torch.allclose(route.back().follow(there).x, x, atol=0.01)


# ── networks ──────────────────────────────────────────────────────────────────────────────────────

NETS = {
    "mlp": lambda **options: MLP((2, 8, 8), width=8, depth=1, **options),
    "unet": lambda **options: UNet((2, 8, 8), channels=8, multipliers=(1,), blocks=1, **options),
    "ncsnpp": lambda **options: NCSNpp(
        (2, 8, 8), channels=8, multipliers=(1,), blocks=1, dropout=0.0, **options
    ),
}


@pytest.mark.parametrize("seen", [(3,), (2, 8, 8)])
@pytest.mark.parametrize("name", NETS)
def test_a_network_of_a_condition(name, seen):
    net = NETS[name](condition=seen)
    z, level, c = torch.randn(4, 2, 8, 8), torch.linspace(0.5, 3, 4), torch.randn(4, *seen)
    assert torch.equal(net(z, level, c), net(z, level))  # it starts without c
    net = moved(net)
    output = net(z, level, c)
    assert torch.equal(net(z, level), net(z, level, torch.zeros_like(c)))
    assert (output - net(z, level)).abs().flatten(1).amax(1).min() > 1e-4
    # rows belong together
    assert torch.allclose(output[1:2], net(z[1:2], level[1:2], c[1:2]), atol=1e-5)
    with pytest.raises(ValueError, match="c must have shape"):
        net(z, level, c[:, :1])
    with pytest.raises(ValueError, match="c must have shape"):
        NETS[name]()(z, level, c)


def test_an_mlp_sees_differences_of_z_and_c():
    """Its first layer takes c as it takes z: where it has the weights of −z, only z − c matters."""
    net = moved(MLP((3,), width=8, depth=1, fourier=0, condition=(3,)))
    z, level, c = torch.randn(4, 3), torch.linspace(0.5, 3, 4), torch.randn(4, 3)
    with torch.no_grad():
        net.condition_embedding.mlp[-1].weight.zero_()
        net.condition_input.weight.copy_(-net.input.weight)
        assert torch.allclose(net(z, level, c), net(z - c, level), atol=1e-5)
        assert (net(z, level, c) - net(z, level)).abs().max() > 1e-3


def test_an_image_is_seen_where_it_is():
    """A pixel of c reaches the 3×3 features around it, of maps that were padded at the bottom and
    the right.
    """
    part = moved(ConditionOfImages((2, 9, 9), width=8, channels=4))
    c, h, embedding = torch.zeros(1, 2, 9, 9), torch.randn(1, 4, 10, 10), torch.randn(1, 8)
    before = part(c, embedding, h)[1]
    c[0, 1, 2, 6] = 1.0
    same, after = part(c, embedding, h)
    reached = (after - before)[0].abs().amax(0) > 0
    assert reached[1:4, 5:8].all() and reached.sum() == 9 and torch.equal(same, embedding)


# ── what c may be ─────────────────────────────────────────────────────────────────────────────────


def test_classes_by_number_and_by_name():
    classes = Classes(LETTERS)
    numpys = (np.int64(1), [np.uint8(1)], np.array([1]), np.array("b"), np.array(["b"], object))
    for value in (1, "b", [1], ["b"], torch.tensor([1]), [torch.tensor(1)], *numpys):
        assert classes.rows(value, 1).tolist() == [1]
    assert classes.rows("c", 3).tolist() == [2, 2, 2] and classes.rows(
        torch.tensor(2), 2
    ).tolist() == [2, 2]
    assert (
        classes(torch.tensor([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
        and not classes.absent(2).any()
    )


def test_a_whole_number_is_an_index_and_a_string_a_name_where_names_are_numbers():
    classes = Classes(("1", "2", "0"))
    for c in (
        [1, 2, 0],
        (1, 2, 0),
        torch.tensor([1, 2, 0]),
        np.array([1, 2, 0]),
        list(np.array([1, 2, 0])),
    ):
        assert classes.rows(c).tolist() == [1, 2, 0]
    assert (
        classes.rows(["1", "2", "0"]).tolist()
        == [0, 1, 2]
        == classes.rows(np.array(["1", "2", "0"])).tolist()
    )
    with pytest.raises(
        ValueError,
        match="c must be one of 7, 5, got 7; a number is an index, 0 to 1, and a name is",
    ):
        Classes(("7", "5")).rows(7)


def test_what_is_typed_is_a_name_or_an_index_where_no_name_has_a_digit():
    def typed(text, *labels, n=None):
        model = indm.INDM(Identity(), GaussianScore(), shape=(2,), condition=Classes(labels))
        return conditions(Path(), model, Drawing(condition=text, n=n)).tolist()

    assert typed("1", "1", "2", "0", n=2) == [0, 0] and typed("1", *LETTERS, n=2) == [1, 1]
    assert typed('["c", 0]', *LETTERS, n=2) == [2, 0] and typed("[2, 1]", "1", "2", n=2) == [1, 0]
    assert typed("[2, 1]", "[2, 1]", "2", n=1) == [0]
    for text, labels in (
        ("0", ("1", "2")),
        ("1", ("grade 1", "grade 2")),
        ("3", LETTERS),
        ("-1", LETTERS),
    ):
        with pytest.raises(ValueError, match="c must"):
            typed(text, *labels, n=1)


@pytest.mark.parametrize("unit", [1.0, 1e-8, 1e-30])
def test_numbers_are_brought_to_unit_scale_and_told_from_none(unit):
    c = unit * torch.tensor([[1.0, 100.0], [3.0, 300.0], [5.0, 500.0]])
    vector = Vector(2)
    vector.fit(c)
    seen = vector(c)
    assert torch.allclose(seen[:, :2].mean(0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(seen[:, :2].std(0), torch.ones(2), atol=1e-6)
    assert (seen[:, 2] == 1).all() and not vector.absent(2).any()
    assert vector.rows([1.0, 2.0], 4).shape == (4, 2)
    constant = Vector(1)
    constant.fit(torch.full((5, 1), 3.0))
    assert constant(torch.full((1, 1), 3.0)).tolist() == [[0.0, 1.0]]


def test_a_share_of_the_rows_is_hidden():
    classes = Classes(LETTERS, drop=0.25)
    seen = classes(torch.arange(4000) % 3)
    kept = classes.dropped(seen).sum(1)
    assert set(kept.tolist()) == {0.0, 1.0} and abs(kept.mean().item() - 0.75) < 0.03
    assert torch.equal(Classes(LETTERS).dropped(seen), seen)


# ── models ────────────────────────────────────────────────────────────────────────────────────────

TABLES = {
    "flow": {"name": "coupling", "width": 8},
    "sde": VP,
    "net": {"name": "mlp", "width": 8, "depth": 1},
}
CONDITIONS = {
    "classes": ({"name": "classes", "labels": list(LETTERS)}, [0, 2, 1]),
    "seen by the flow": (
        {"name": "classes", "labels": list(LETTERS), "flow": True},
        ["a", "c", "b"],
    ),
    "vector": (
        {"name": "vector", "size": 2, "flow": True},
        torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]),
    ),
    "hidden": ({"name": "vector", "size": 2, "drop": 0.2}, None),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_model_is_saved_with_its_condition(name, tmp_path):
    table, c = CONDITIONS[name]
    model = moved(build_model(TABLES | {"condition": table}, (2,)))
    if table["name"] == "vector":
        model.condition.fit(torch.tensor([[0.0, 5.0], [1.0, 7.0]]))
    model.save(tmp_path)
    again, x = indm.INDM.load(tmp_path), torch.randn(3, 2)
    assert again.description() == model.description()
    with torch.no_grad():
        assert torch.equal(
            again.given(c, 3).log_prob(x, steps=4), model.given(c, 3).log_prob(x, steps=4)
        )


def test_what_has_no_rows_asks_for_them_or_hides_c():
    hidden, never = (
        build_model(TABLES | {"condition": CONDITIONS[name][0]}, (2,))
        for name in ("hidden", "classes")
    )
    x = torch.zeros(1, 2)
    for model in (hidden, never):
        with pytest.raises(ValueError, match="model must"):
            indm.NonlinearDiffusion(model)
    indm.NonlinearDiffusion(hidden.given(None, 2))
    with pytest.raises(ValueError, match="c must be given"):
        two_models(never, never)
    at, free = hidden.given([0.5, 1.0], 1), hidden.given(None, 1)
    assert torch.equal(
        indm.translate(hidden, hidden, x, c=([0.5, 1.0], None)), indm.translate(at, free, x)
    )


@pytest.mark.parametrize("flow_sees", [True, pytest.param(False, marks=pytest.mark.long)])
def test_evaluation_does_not_depend_on_batches_but_on_c(flow_sees):
    """Each example is evaluated at its own c in every batch."""
    model = gaussian_model()
    if flow_sees:
        model = moved(build_model(TABLES | {"condition": CONDITIONS["seen by the flow"][0]}, (2,)))
    x, c = mixed(40)
    bound, nll = indm.Bound(times=8), indm.NLL(examples=10, steps=16 if flow_sees else None)
    nats = indm.evaluate(model, x, [bound, nll], c=c, batch_size=16, progress=False).nats
    order = torch.randperm(40)
    moved_nats = indm.evaluate(
        model, x[order], [bound], c=c[order], batch_size=16, progress=False
    ).nats
    scale = 4 * (1 + nats["nelbo"].std())
    assert (nats["nelbo"][order] - moved_nats["nelbo"]).abs().median() < scale
    if not flow_sees:
        assert torch.allclose(nats["nll"].float(), -log_normal(x, c)[:10], atol=0.05)


def test_importance_weights_are_of_each_samples_own_condition():
    x, c = mixed(5)
    report = indm.importance_bound(gaussian_model(), x, c=c, draws=3, batch_size=8)
    assert torch.allclose(report.nats.float(), -log_normal(x, c), atol=0.05)


# ── evaluation at the c of the data ───────────────────────────────────────────────────────────────


class Stretch(Conditioned, ExactFlow):
    """z = s_c x."""

    def __init__(self, factors):
        super().__init__()
        self.features, self.factors = len(factors), factors

    def forward(self, x, *, generator=None):
        s = self.seen(x) @ self.factors
        return s[:, None] * x, 2 * s.log()

    def inverse_step(self, z):
        return z / (self.seen(z) @ self.factors)[:, None]


def test_the_law_of_latents_is_at_one_class_or_at_that_of_each_row():
    """The flow stretches each class by its own factor; with ``most`` rows, at the c of these."""
    factors, x = torch.tensor([2.0, 0.5, 10.0]), torch.randn(40, 2)
    model = indm.INDM(
        Stretch(factors), GaussianScore(), shape=(2,), condition=Classes(LETTERS, flow=True)
    )
    rows = torch.arange(40) % 3
    for c, each in (
        (2, torch.full((40,), 2)),
        ("b", torch.ones(40).long()),
        (rows, rows),
        (rows.tolist(), rows),
    ):
        law, z = latent_reference(model, x, c=c, most=30), factors[each, None] * x
        assert torch.allclose(law.mean, z[:30].mean(0), atol=1e-5)
        assert law.variance.sum() == pytest.approx(
            z[:30].var(0, correction=0).sum().item(), rel=1e-4
        )


# ── Bayes ─────────────────────────────────────────────────────────────────────────────────────────


def exact_posterior(x, stds, means):
    logs = torch.stack(
        [
            -0.5 * (x - m).square().sum(1) / s**2 - 2 * s.log()
            for m, s in zip(means, stds, strict=True)
        ],
        1,
    )
    return logs.log_softmax(1)


def near_classes(labels=LETTERS, n=60):
    means, stds = torch.tensor([[0.6, 0.0], [-0.6, 0.0], [0.0, 0.9]]), torch.tensor([0.8, 0.8, 0.6])
    model = indm.INDM(Identity(), GaussianScore(means, stds), shape=(2,), condition=Classes(labels))
    c = torch.arange(n) % 3
    return model, means, stds, means[c] + stds[c][:, None] * torch.randn(n, 2), c


def test_the_posterior_is_that_of_bayes():
    model, means, stds, x, _ = near_classes()
    found = indm.classify(model, x, draws=8, times=64, progress=False)
    wanted = exact_posterior(x, stds, means).double()
    off = (found.log_posterior - wanted).abs()
    assert off.mean() < 0.15 and off.max() < 0.8
    assert torch.allclose(found.log_posterior.exp().sum(1), torch.ones(60).double())
    prior = torch.tensor([0.8, 0.1, 0.1])
    even, skewed = (
        indm.classify(model, x, prior=p, draws=2, times=4, progress=False) for p in (None, prior)
    )
    assert torch.allclose(
        skewed.log_posterior, (even.log_posterior + prior.double().log()).log_softmax(1), atol=1e-6
    )


def test_the_error_of_a_class_is_that_of_its_difference_from_the_mean_over_classes():
    """One example again and again, each time with its own noise: errors as stated, far below those
    of the bounds.
    """
    model, _, _, x, _ = near_classes()
    found = indm.classify(
        model, x[:1].expand(1500, 2), draws=4, times=2, batch_size=1500, progress=False
    )
    bound = found.log_likelihood
    scatter = (bound - bound.mean(1, keepdim=True)).var(0)
    assert torch.allclose(found.noise.square().mean(0), scatter, rtol=0.15)
    assert (bound.var(0) > 1.5 * scatter).all()


class Renamed(Backbone):
    """A network whose condition has another name than c."""

    def forward(self, z, level, cond):
        return z * cond.sum(1, keepdim=True)


def test_a_network_says_by_an_attribute_that_it_takes_a_condition():
    """Not by the name of an argument: without the attribute the class would not reach it."""
    classes, x = Classes(LETTERS[:2]), torch.ones(1, 2)
    with pytest.raises(ValueError, match="network must"):
        indm.ScoreModel(Renamed(), indm.VPSDE())
    network = Renamed()
    network.forward = lambda z, level, *cond: z * sum(cond)
    with pytest.raises(ValueError, match="condition must"):
        indm.INDM(Identity(), indm.ScoreModel(network, indm.VPSDE()), shape=(2,), condition=classes)
    network.takes_condition = True
    model = indm.INDM(
        Identity(), indm.ScoreModel(network, indm.VPSDE()), shape=(2,), condition=indm.Vector(1)
    )
    found = [model.log_prob(x, c=[[value]], steps=4).item() for value in (0.0, 0.5)]
    assert abs(found[0] - found[1]) > 0.1


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────

ROWS, TWO, SEEN = (
    torch.zeros(2, 2),
    {"name": "classes", "labels": ["a", "b"]},
    CONDITIONS["classes"][0],
)


def built(**changes):
    return build_model(TABLES | changes, (2,))


def seeing():
    flow = CouplingFlow((2,), width=8, condition=(3,))
    return indm.INDM(flow, GaussianScore(), shape=(2,), condition=Classes(LETTERS, flow=True))


def of_classes(c):
    return lambda: Classes(LETTERS).rows(c, 3)


def between(model, c=("a", "b"), guidance=2.0, source=None):
    return two_models(model if source is None else source, model, c=c, guidance=guidance)


LIKELIHOODS = (indm.nelbo, indm.nll, indm.INDM.log_prob)
MISTAKES = [
    # guidance
    *((lambda f=f: f(gaussian_model(drop=0.1).given([0, 1], guidance=2.0), ROWS), "guidance must be 1 for a likelihood")
      for f in LIKELIHOODS),
    (lambda: indm.sample(gaussian_model(drop=0.0), 2, c=0, guidance=2.0), r"must be 1 for a model of p\(x\|c\) alone"),
    (lambda: indm.sample(gaussian_model(drop=0.1), 2, c=0, guidance=math.inf), "guidance"),
    (lambda: between(gaussian_model(), source=gaussian_model()), "guidance"),
    (lambda: between(gaussian_model(), ("a", None)), "guidance"),
    (lambda: between(seeing()), "guidance"),
    (lambda: between(gaussian_model(), guidance=math.inf), "guidance"),
    # classes and vectors
    (of_classes("bb"), "c must be one of a, b, c, got 'bb'; did you mean 'b'"),
    (of_classes("boot"), "c must be one of a, b, c, got 'boot'$"),
    (of_classes(3), "c must be one of a, b, c, got 3"),
    (of_classes(-1), "c must be one of a, b, c, got -1"),
    (of_classes(True), "c must be one of a, b, c, got True"),
    (of_classes(np.array([0.5])), "c must be one of a, b, c, got 0.5"),
    (of_classes(torch.tensor([0, 3])), "c must be from 0 to 2, got 0 … 3"),
    (of_classes(torch.tensor([-1])), "c must be from 0 to 2, got -1 … -1"),
    (of_classes(torch.zeros(2)), "c must be classes"),
    (lambda: Vector(2).rows(torch.zeros(3, 3), 3), "c must"),
    (lambda: Vector(2).rows(torch.tensor([[math.nan, 0.0]]), 3), "c must"),
    (lambda: Vector(2).rows("cat", 3), "c must"),
    # conditions and models
    (lambda: Classes(("one",)), "labels"),
    (lambda: Classes(("one", "one")), "labels"),
    (lambda: Classes(LETTERS, drop=1.0), "drop"),
    (lambda: Classes(LETTERS, drop=0.1, flow=True), "drop"),
    (lambda: Vector(), "size"),
    (lambda: Image((2,), 1), "channels"),
    (lambda: built(flow={"name": "elementwise"}, condition=TWO | {"flow": True}), "flow must be one that sees a cond"),
    (lambda: built(net={"name": "zero"}, condition=TWO), "takes_condition = True, which Zero has not"),
    (lambda: built(condition=TWO | {"name": "class"}), "did you mean 'classes'"),
    (lambda: built(condition={"name": "classes", "label": ["a", "b"]}), "did you mean 'labels'"),
    # c that is missing or has no use
    *((lambda f=f: f(built(condition=SEEN), ROWS), "c must be given") for f in LIKELIHOODS),
    *((lambda f=f: f(built(), ROWS, c=[0, 1]), "c must be left out") for f in LIKELIHOODS),
    (lambda: indm.sample(built(condition=SEEN), 2), "c must be given"),
    (lambda: indm.sample(built(), 2, c=0), "c must be left out"),
    (lambda: solve_latent(gaussian_model(drop=0.0), ROWS, make_sampler("heun"), 2), "c must be given"),
    (lambda: indm.classify(gaussian_model(), ROWS, draws=1), "draws"),
    (lambda: indm.classify(gaussian_model(), ROWS, prior=torch.tensor([0.5, 0.5])), "prior"),
    (lambda: indm.classify(built(), ROWS), r"must be one of p\(x\|class\)"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), MISTAKES)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_as_many_rows_of_c_as_samples():
    assert Classes(LETTERS).rows([1], 3).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="the rows of c"):
        Classes(LETTERS).rows([0, 1], 3)


def test_a_translation_between_classes_needs_a_model_of_classes(monkeypatch):
    model = indm.INDM(Identity(), GaussianScore(), shape=(2,), condition=Vector(1))
    monkeypatch.setattr(
        "indm.workbench.translation.routes.open_run",
        lambda folder: (model, resolve(load("eight-gaussians"))),
    )
    with pytest.raises(
        ValueError, match="the model of one run must be of classes, with two of them, got 'Vector'"
    ):
        open_runs([Path("run")], classes=("1", "2"))
