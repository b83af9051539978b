"""The verdict's variants and how they are trained: what enters changes nothing, what is frozen stays."""

import math
from dataclasses import replace

import pytest
import torch

import indm
from indm.flows import InvertibleLinear
from research.verdict import search
from research.verdict.images import halved
from research.verdict.training import Phase, batches, cost_key, steps_of, train
from research.verdict.variants import Variant, with_flow, without_flow

SHAPE = (3, 8, 8)
SMALL = Variant(spline=True, family="thin", enters=0.5, channels=8, lr=1e-2, flow_share=1.0)
IMAGES = torch.randint(0, 256, (64, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def bits(model):
    generator = torch.Generator().manual_seed(1)
    x, log_q = model.from_data(IMAGES[:8], generator=generator)
    return indm.nelbo(model.eval(), x, log_q=log_q, generator=generator).bits_per_dim()


def test_images_are_halved_by_the_means_of_squares():
    whole = torch.tensor([[[[0, 1, 8, 8], [2, 4, 8, 9], [1, 1, 0, 0], [1, 1, 0, 2]]]], dtype=torch.uint8)
    assert halved(whole).tolist() == [[[[2, 8], [1, 0]]]]  # 7/4, 33/4, 1, ½ to the even level
    assert halved(IMAGES).shape == (64, 3, 4, 4)


@pytest.mark.parametrize("family", ["thin", "two scales", "affine", "linear map", "residual"])
def test_a_flow_enters_at_the_identity(family):
    model = without_flow(SMALL, SHAPE)
    with torch.no_grad():
        model.flow.raw.uniform_(-1, 1)
    assert bits(with_flow(model, replace(SMALL, family=family))) == pytest.approx(bits(model), abs=1e-4)


@pytest.mark.parametrize("family", ["affine", "linear map", "colour map"])
def test_a_fixed_rotation_turns_the_latent_and_stays(family):
    variant = replace(SMALL, spline=False, family=family, start="rotation", mixing="frozen")
    model = with_flow(without_flow(variant, SHAPE), variant)
    x = torch.randn(4, *SHAPE)
    z, log_det = model.flow(x)
    assert not torch.allclose(z, x, atol=0.1) and torch.allclose(log_det, torch.zeros(4), atol=1e-3)
    assert torch.allclose(z.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=1e-4)
    mixes = [layer for layer in model.flow.modules() if isinstance(layer, InvertibleLinear)]
    channels = {"affine": 12, "linear map": 12, "colour map": 3}[family]
    assert {mix.channels for mix in mixes} == {channels}
    assert not any(p.requires_grad for mix in mixes for p in mix.parameters())


def test_an_unknown_family_or_mixing_is_named():
    for wrong in ({"family": "glow"}, {"mixing": "some"}):
        (key,) = wrong
        with pytest.raises(ValueError, match=f"{key} must be one of .*, got '{wrong[key]}'"):
            with_flow(without_flow(SMALL, SHAPE), replace(SMALL, **wrong))


@pytest.mark.parametrize("mixing", ["frozen", "colours", "trained"])
def test_the_1x1_convolutions_mix_what_they_may(mixing):
    variant = replace(SMALL, mixing=mixing)
    phase = Phase(with_flow(without_flow(variant, SHAPE), variant), variant)
    for _ in range(3):
        phase.train_on(IMAGES[:8], 0.0)
    (mix, *_) = [layer for layer in phase.model.flow.modules() if isinstance(layer, InvertibleLinear)]
    x = torch.zeros(1, 12, 1, 1)
    jacobian = torch.autograd.functional.jacobian(lambda x: mix(x)[0], x).reshape(12, 12).abs() > 1e-7
    pixel = torch.nn.functional.pixel_unshuffle(torch.arange(4.0).reshape(1, 1, 2, 2).repeat(1, 3, 1, 1), 2).flatten()
    same = pixel[:, None] == pixel
    moved = jacobian & ~torch.eye(12, dtype=torch.bool)
    assert bool((moved & same).any()) == (mixing != "frozen")
    assert bool((moved & ~same).any()) == (mixing == "trained")


def test_a_residual_flow_has_the_gradients_of_all_images():
    model = with_flow(without_flow(SMALL, SHAPE), replace(SMALL, family="residual"))
    shares = [m.training_log_det.share for m in model.flow.modules() if hasattr(m, "training_log_det")]
    assert shares and set(shares) == {1}


def test_the_score_alone_is_trained_behind_a_frozen_flow():
    phase = Phase(with_flow(without_flow(SMALL, SHAPE), SMALL), SMALL)
    phase.train_on(IMAGES[:8], 0.0)
    phase.freeze()
    before = {name: value.clone() for name, value in phase.model.state_dict().items()}
    phase.train_on(IMAGES[:8], 0.0)
    moved = {name.split(".")[0] for name, value in phase.model.state_dict().items() if not value.equal(before[name])}
    assert moved == {"score"}


def test_each_part_has_its_rate():
    phase = Phase(with_flow(without_flow(SMALL, SHAPE), SMALL), replace(SMALL, spline_lr=0.5, flow_share=0.1))
    assert phase.rates == [1e-2, 0.5, pytest.approx(1e-3)]
    phase.train_on(IMAGES[:8], 0.75)
    assert phase.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.5 / 100)  # the first of 100 steps of warm-up


def test_steps_cost_what_the_budget_costs():
    costs = {"linear": 1.0, "spline": 1.1, "spline + thin": 1.5, "spline + thin, frozen": 1.2}
    assert steps_of(Variant(), 900, costs) == 900
    variant = replace(SMALL, channels=32, enters=1 / 3, frozen=1 / 6)
    mean = 1.1 / 3 + 1.5 / 2 + 1.2 / 6
    assert steps_of(variant, 900, costs) == round(900 / mean)
    assert cost_key(replace(variant, noise="variational"), "frozen") == "spline + thin + variational, frozen"


def test_every_image_comes_once_before_any_comes_again():
    numbers = torch.arange(70)
    source = batches(numbers, 0)
    first = torch.cat([next(source), next(source)])
    assert len(first) == 64 and len(first.unique()) == 64


def test_a_run_says_its_steps_and_can_be_looked_at():
    seen = []
    averaged, last, row = train(replace(SMALL, frozen=0.25), IMAGES, 4, 0, {2: lambda model: seen.append(bits(model))})
    assert row["steps"] == 4 and row["not_finite"] == 0 and len(seen) == 1
    assert math.isfinite(bits(averaged)) and math.isfinite(bits(last)) and last.score is averaged.score
    assert not averaged.flow.flows[0].raw.equal(last.flow.flows[0].raw)


@pytest.mark.parametrize("enters, phases", [(0.0, 1), (0.5, 2)])
def test_without_a_flow_the_optimizer_and_the_average_are_fresh_at_that_share(enters, phases, monkeypatch):
    made = []
    monkeypatch.setattr("research.verdict.training.Phase", lambda *parts: made.append(Phase(*parts)) or made[-1])
    train(replace(SMALL, family=None, enters=enters), IMAGES, 4, 0)
    assert [phase.step for phase in made] == ([4] if phases == 1 else [2, 2])
    assert len({id(phase.model) for phase in made}) == 1 and len({id(phase.optimizer) for phase in made}) == phases


def test_the_search_keeps_what_is_best_and_hands_it_on():
    """A made-up bound: the best rate is 4e-3, the flow enters best at the start, and the thin one is best."""

    def tried(variants):
        return [
            abs(math.log(v.lr / 4e-3)) + abs(math.log(v.spline_lr / 3e-3)) + v.enters + (v.family != "thin")
            for v in variants
        ]

    best = search.run(tried)
    assert best["linear"] == Variant(lr=4e-3) and best["spline"] == Variant(spline=True, lr=4e-3, spline_lr=3e-3)
    assert (best["indm"].enters, best["indm"].family, best["indm"].mixing) == (0.0, "thin", "trained")


def test_a_variant_is_called_by_what_is_not_the_default():
    assert str(Variant()) == "linear" and str(Variant(spline=True, lr=1e-3)) == "spline=True,lr=0.001"
