"""Parts of a training: models, data, objectives from Python, which resume; the penalties of the
flow, closed forms.
"""

from dataclasses import asdict

import pytest
import torch
from closed_form import within
from own_parts import Blind, Net, Points, TooWide, doubled
from small_runs import assert_same, checkpoint, interrupt_at, log_of, timeless
from torch.utils.data import TensorDataset

import indm
from indm.flows import ActNorm, Compose, CouplingFlow, Identity, InvertibleLinear
from indm.model import INDM
from indm.nets import MLP, Zero
from indm.objective import Objective, as_objective, flow_nll, mle_loss
from indm.scaling import Scaling
from indm.score import ScoreModel
from indm.sde.linear import VESDE, VPSDE
from indm.training import FlowUse, Penalty, TrainingStep
from indm.workbench.data.base import Data, InMemory
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import TrainOptions
from indm.workbench.training.loop import train
from indm.workbench.training.terminal import normal_law, terminal_law, with_noise

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

OPTIONS = TrainOptions(steps=6, batch_size=40, validate_examples=20, log_every=2, validate_every=3)
TABLES = {"flow": {"name": "coupling", "width": 8}, "sde": {"name": "vp"}, "train": asdict(OPTIONS)}


def whole_model():
    torch.manual_seed(7)
    return INDM(CouplingFlow((2,), depth=1, width=8), ScoreModel(Net(), VPSDE()))


def test_a_model_and_a_data_set_make_a_run_that_resumes_exactly(tmp_path, monkeypatch):
    """Options alone, an INDM without shape and scaling, a data set whose items are (x, label)."""
    train(OPTIONS, tmp_path / "whole", model=whole_model(), data=Points(), progress=False)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        train(OPTIONS, tmp_path / "halved", model=whole_model(), data=Points(), progress=False)
    train(
        OPTIONS,
        tmp_path / "halved",
        model=whole_model(),
        data=Points(),
        resume=True,
        progress=False,
    )
    whole, halved = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "halved")
    assert whole["place"]["seconds"] > 0 and halved["place"]["seconds"] > 0
    assert_same(timeless(whole), timeless(halved))
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "halved")

    recipe = recipes.load(tmp_path / "whole")
    assert recipe["data"] == {"name": "own_parts:Points", "n": 300, "radius": 2.0}
    assert recipe["net"] == {"name": "own_parts:Net", "width": 8} and recipe["flow"]["width"] == 8
    with pytest.raises(ValueError, match=r"trust\('own_parts'\)"):
        INDM.load(tmp_path / "whole")
    with indm.trust("own_parts"):
        model = INDM.load(tmp_path / "whole")
        # from the folder alone
        again = train(tmp_path / "halved", tmp_path / "halved", resume=True, progress=False)
    assert model.shape == (2,) and model.scaling.scale.tolist() == pytest.approx(
        [2**0.5] * 2, rel=0.05
    )
    assert again["steps"] == 6


def test_a_network_gets_the_flow_and_the_sde_of_the_recipe(tmp_path):
    """It is trained in place; a tuple's first entry is x; data that no file can name have to be
    given again.
    """
    net, zeros = MLP((2,), width=8, depth=1), torch.zeros(100)
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
    train(TABLES, tmp_path / "net", model=net, data=TensorDataset(x, zeros), progress=False)
    recipe = recipes.load(tmp_path / "net")
    assert (
        recipe["data"] == {"name": "given"}
        and recipe["flow"] == TABLES["flow"]
        and recipe["net"]["name"] == "mlp"
    )
    assert indm.INDM.load(tmp_path / "net").score.backbone.width == 8
    trained = checkpoint(tmp_path / "net")["model"]
    assert all(
        torch.equal(trained[f"score.backbone.{name}"], value)
        for name, value in net.state_dict().items()
    )
    with pytest.raises(
        ValueError, match="data 'given' was given in Python and has no name: give it again"
    ):
        train(tmp_path / "net", tmp_path / "net", resume=True, progress=False)
    more = TABLES | {"train": TABLES["train"] | {"steps": 8}}
    summary = train(
        more, tmp_path / "net", model=net, data=TensorDataset(x, zeros), resume=True, progress=False
    )
    assert summary["steps"] == 8


def test_a_model_without_a_scaling_keeps_the_arguments_of_its_parts(tmp_path):
    """They are known from build_model alone, as the network keeps them nowhere."""
    x = 3 + torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
    with indm.trust("own_parts"):
        net = {"name": "own_parts:Forgetful", "width": 8}
        model = indm.build_model({"flow": "identity", "sde": "vp", "net": net}, (2,))
        train(TABLES, tmp_path, model=model, data=TensorDataset(x), progress=False)
        again = INDM.load(tmp_path)
    assert again.description()["net"]["width"] == 8 and not again.scaling.is_identity()


@pytest.mark.parametrize(
    "objective",
    [doubled, "own_parts:doubled", Objective(doubled)],
    ids=["function", "name", "value"],
)
def test_a_given_objective_is_what_is_minimised(tmp_path, objective):
    """Twice the bound per dimension, in two dimensions, is the bound."""
    seen = []
    given = {
        "model": whole_model(),
        "data": torch.randn(60, 2),
        "callbacks": [lambda _, terms: seen.append(terms)],
    }
    with indm.trust("own_parts"):
        train(OPTIONS, tmp_path, objective=objective, **given, progress=False)
    assert recipes.load(tmp_path)["train"]["objective"] == "own_parts:doubled"
    assert len(seen) == 6 and all(torch.allclose(terms["loss"], terms["nelbo"]) for terms in seen)


def test_an_objective_that_a_file_cannot_name_has_to_be_given_again(tmp_path):
    @as_objective(frozen_terms=())
    def local(model, x):
        return mle_loss(model, x)[0], {}

    options = TrainOptions(**asdict(OPTIONS) | {"steps": 4, "flow_update_every": 2})
    given = {
        "model": whole_model(),
        "data": torch.randn(60, 2, generator=torch.Generator().manual_seed(1)),
    }
    train(options, tmp_path, objective=local, **given, progress=False)
    assert recipes.load(tmp_path)["train"]["objective"] == "given"
    with pytest.raises(
        ValueError, match="objective 'given' was given in Python and has no name: give it again"
    ):
        train(tmp_path, tmp_path, **given, resume=True, progress=False)
    more = TrainOptions(**asdict(options) | {"steps": 6})
    assert (
        train(more, tmp_path, objective=local, **given, resume=True, progress=False)["steps"] == 6
    )


def test_a_callback_sees_every_step_and_stops_the_run(tmp_path):
    seen = []

    def watch(trainer, terms):
        seen.append((trainer.step, float(terms["loss"])))
        return trainer.step == 3

    given = {
        "model": whole_model(),
        "data": torch.randn(60, 2, generator=torch.Generator().manual_seed(1)),
    }
    summary = train(
        OPTIONS, tmp_path, **given, callbacks=[watch, lambda trainer, terms: None], progress=False
    )
    assert [step for step, _ in seen] == [1, 2, 3] and all(loss < 100 for _, loss in seen)
    assert summary["interrupted"] and not summary.signal_received and summary["steps"] == 3
    summary = train(OPTIONS, tmp_path, **given, callbacks=[watch], resume=True, progress=False)
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6] and not summary["interrupted"]


class Slow(VPSDE):
    def drift(self, t):
        return 0.5 * super().drift(t)


class NoLogDet(CouplingFlow):
    def forward(self, x, **options):
        z, log_det = super().forward(x, **options)
        return z, log_det.sum()


@pytest.mark.parametrize(
    "model, objective, said",
    [
        (
            INDM(NoLogDet((2,), depth=1, width=8), ScoreModel(Net(), VPSDE())),
            None,
            r"flow NoLogDet: its log_det must have",
        ),
        (INDM(Identity(), ScoreModel(Net(), Slow())), None, "drift of Slow must be d log α/dt"),
        (
            TooWide(),
            None,
            r"net TooWide: its output must have shape \(2, 2\) for a batch of 2, got shape \(2, 4\)",
        ),
        (Blind(), None, r"network must be callable as network\(z, level\), got Blind\(z\): "),
        (
            Net(),
            lambda model, x: x.mean(),
            "must return a scalar loss and a dict of scalar terms, got tensor",
        ),
        (
            Net(),
            lambda model, x: (x, {}),
            "must return a scalar loss and a dict of scalar terms, got ",
        ),
    ],
    ids=["flow", "sde", "net", "call", "one value", "no scalar"],
)
def test_what_returns_the_wrong_shape_is_refused_before_anything_is_written(
    tmp_path, model, objective, said
):
    data = torch.randn(60, 2)
    with pytest.raises(ValueError, match=said):
        train(TABLES, tmp_path / "run", model=model, data=data, objective=objective, progress=False)
    assert not (tmp_path / "run").exists()


class Lying(CouplingFlow):
    """Its log-determinant lacks a factor that its map has; at its start nobody would notice."""

    def __init__(self):
        super().__init__((2,), depth=1, width=8)
        self.log_factor = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, *, generator=None):
        return super().forward(self.log_factor.exp() * x)

    def solve_inverse(self, z, tol=1e-5):
        found = super().solve_inverse(z, tol)
        return found._replace(x=(-self.log_factor).exp() * found.x)


def test_a_flow_whose_log_det_is_wrong_is_refused_before_anything_is_written(tmp_path):
    model = INDM(Lying(), ScoreModel(MLP((2,), 8, 1), VPSDE()), shape=(2,))
    with pytest.raises(ValueError, match=r"flow Lying gives log\|det .* where its Jacobian has"):
        train(OPTIONS, tmp_path / "run", model=model, data=torch.randn(300, 2), progress=False)
    assert not (tmp_path / "run").exists()


# ── Penalties ─────────────────────────────────────────────────────────────────────────────────────


def model_of(flow, sde):
    return INDM(flow, ScoreModel(Zero(), sde))


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=3.0)])
def test_terminal_density_of_an_affine_flow_is_gaussian(sde):
    torch.manual_seed(2)
    flow = Compose([ActNorm(3), InvertibleLinear(3, "rotation")]).double()
    with torch.no_grad():
        flow.flows[0].log_scale.copy_(torch.tensor([0.5, -0.2, 0.1]))
        flow.flows[0].shift.copy_(torch.tensor([1.0, 0.0, -2.0]))
    x = torch.randn(7, 3, dtype=torch.float64)
    scale, shift = flow.flows[0].log_scale.exp(), flow.flows[0].shift
    law = torch.distributions.Independent(
        torch.distributions.Normal(-shift / scale, sde.prior_std / scale), 1
    )
    torch.testing.assert_close(
        flow_nll(model_of(flow, sde), x), -law.log_prob(x), rtol=1e-5, atol=1e-5
    )


def test_normal_law_has_the_moments_of_the_data():
    torch.manual_seed(3)
    mix = torch.randn(6, 6, dtype=torch.float64)
    x = (torch.rand(5000, 6, dtype=torch.float64) @ mix + 1.5).reshape(-1, 2, 3)
    drawn = normal_law(x)(40_000)
    assert drawn.shape == (40_000, 2, 3)
    torch.testing.assert_close(drawn.mean(0), x.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.flatten(1).T.cov(), x.flatten(1).T.cov(), rtol=0.05, atol=0.03)


def test_a_law_with_noise_is_its_convolution_with_a_normal_one():
    """Two points: means stay, and variances are those of the noise about each."""
    torch.manual_seed(5)

    def law(n):
        return (torch.arange(n) % 2).float()[:, None].expand(n, 3)

    draws = with_noise(law, 0.5)(40_000)
    for point in (0, 1):
        about = draws[point::2]
        assert within(about, point) and within((about - point).square(), 0.25)
    assert with_noise(law, 0.0) is law


@pytest.mark.parametrize("flip", [False, True])
def test_the_terminal_law_flips_the_second_data_where_they_allow_it(flip):
    image = torch.arange(4.0).reshape(1, 1, 2, 2)
    data = Data("one", *(InMemory(image.repeat(3, 1, 1, 1)),) * 3, Scaling(), (1, 2, 2), flip=flip)
    model = INDM(Identity(), ScoreModel(Zero(), VPSDE()), data.scaling)
    draws = terminal_law(model, data, data, torch.device("cpu"))(400)
    mirrored = (draws == image.flip(-1)).flatten(1).all(1)
    assert torch.equal(draws[~mirrored], image.expand(int((~mirrored).sum()), 1, 2, 2))
    assert mirrored.float().mean().item() == pytest.approx(
        0.5 if flip else 0.0, abs=0.12 if flip else 0.0
    )


@pytest.mark.parametrize("in_nats, share", [(False, 1), (True, 4)])
def test_a_penalty_in_nats_enters_the_loss_per_dimension_like_the_bound(in_nats, share):
    model = INDM(Identity(), ScoreModel(Zero(), VPSDE()), shape=(4,))
    objective = Objective(lambda model, x: (torch.tensor(10.0), {"nelbo": torch.tensor(40.0)}))
    penalty = Penalty("bend", 3.0, lambda model, x: torch.tensor(2.0), in_nats)
    loss, terms = TrainingStep(model, objective, [penalty])(torch.zeros(5, 4))
    assert loss.item() == terms["loss"].item() == pytest.approx(10 + 3 * 2 / share)
    assert terms["bend"].item() == 2


@pytest.mark.parametrize("use", [FlowUse.TRAINED, FlowUse.FROZEN])
def test_a_step_sees_data_with_the_noise_of_a_bridge(use):
    model, seen = INDM(Identity(), ScoreModel(Zero(), VPSDE()), shape=(4,)), []
    objective = Objective(lambda model, x: (seen.append(x) or x.square().mean(), {}))
    TrainingStep(model, objective, noise=0.5)(torch.full((20_000, 4), 2.0), flow_use=use)
    off = (seen[0] - 2).flatten()
    assert within(off, 0.0) and within(off.square(), 0.25)
