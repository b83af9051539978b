"""The loop: what it optimises, that it stops, saves and goes on exactly, and that nothing is lost
on the way.
"""

import copy
import dataclasses
import json
import math
import os
import signal
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from processes import exit_code, fork
from scipy import stats
from small_runs import DIGITS, GAUSSIAN, assert_same, change, checkpoint, trainer_of
from torch import nn
from torch.nn import functional as F

import indm
from indm.dequantization import Uniform
from indm.files import atomic
from indm.objective import Objective
from indm.scaling import Scaling
from indm.training import EMA, FlowUse, TrainingStep, learning_rate_factor
from indm.workbench.cli.main import main
from indm.workbench.data.base import load_data, stack
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.devices import interruptible
from indm.workbench.runs.folder import read_metrics
from indm.workbench.training.checkpoints import Checkpoints
from indm.workbench.training.loop import train
from indm.workbench.training.terminal import normal_law
from indm.workbench.training.trainer import Trainer
from indm.workbench.training.validation import drawn

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested


def test_learns_a_gaussian_to_its_entropy(tmp_path):
    generator = torch.Generator().manual_seed(1)
    factor = torch.tensor([[3.0, 0.0], [1.5, 0.4]])
    np.save(
        tmp_path / "data.npy", (torch.randn(10_000, 2, generator=generator) @ factor.T + 5).numpy()
    )
    entropy = math.log(2 * math.pi * math.e) + factor.det().log().item()  # nats, in two dimensions
    recipe = GAUSSIAN | {"data": {"name": "array", "path": str(tmp_path / "data.npy")}}
    summary = train(recipe, tmp_path / "run", progress=False)
    assert summary["unit"] == "nats"
    model, raw = indm.INDM.load(tmp_path / "run"), stack(load_data(**recipe["data"]).test)
    bound = indm.nelbo(
        model, model.scaling.to_model(raw), times=16
    ).total.mean() - model.scaling.log_volume((2,))
    assert abs(bound.item() - entropy) < 0.25
    losses = [line["nelbo"] for line in read_metrics(tmp_path / "run") if "nelbo" in line]
    assert sum(losses[:5]) / 5 > entropy + 0.7
    assert abs(sum(losses[-60:]) / 60 - entropy) < 0.2


def test_a_run_is_whole(tmp_path):
    run = tmp_path / "run"
    recipe = change(DIGITS, objective="fid", soft_truncation=1.2, warmup=3)
    summary = train(recipe, run, progress=False)
    assert summary["steps"] == 9 and not summary["interrupted"] and summary["peak_memory_mib"] > 0
    assert math.isfinite(summary["valid_nelbo"]) and summary["unit"] == "bits/dim"
    lines = read_metrics(run)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8, 9]
    assert [line["step"] for line in lines if "valid_nelbo" in line] == [4, 8, 9]
    assert recipes.differing_keys(recipes.load(run), recipes.resolve(recipe)) == []
    made_by = json.loads((run / "versions.json").read_text())
    assert (
        torch.__version__.startswith(made_by["torch"])
        and made_by["indm"] == indm.__version__
        and made_by["data"]
    )
    assert not list(run.glob(atomic.HALF_WRITTEN)), "nothing half written is left"

    saved, averaged = indm.INDM.load(run).state_dict(), checkpoint(run)["ema"]
    assert saved.keys() == averaged.keys() and all(
        torch.equal(saved[k], averaged[k]) for k in saved
    )


@pytest.mark.long
def test_bits_per_dim_in_the_metrics_are_those_of_nelbo(tmp_path):
    run = tmp_path / "run"
    summary = train(change(DIGITS, steps=2, validate_examples=360), run, progress=False)
    model, raw = indm.INDM.load(run), load_data("digits").valid.tensor
    generator = torch.Generator().manual_seed(7)
    nats = torch.stack(
        [
            indm.nelbo(model, model.scaling.to_model(raw, generator=generator), times=8).nats.mean()
            for _ in range(4)
        ]
    )
    bits = nats.mean().item() / (math.prod(model.shape) * math.log(2))
    assert abs(summary["valid_nelbo"] - bits) < 0.05 * bits


def test_average_of_weights_is_the_one_written_down():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    ema, expected, statistics = EMA(model, decay=0.4), model[0].weight.detach().clone(), 0.0
    for n in range(1, 12):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model[1].running_mean.fill_(n)
            model[1].num_batches_tracked.fill_(n)
        ema.update(model, n)
        decay = min(0.4, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
        assert torch.allclose(ema.model[0].weight, expected, atol=1e-6)
        statistics = decay * statistics + (1 - decay) * n
        assert torch.allclose(ema.model[1].running_mean, torch.full((3,), statistics))
        assert ema.model[1].num_batches_tracked == n
    assert not any(p.requires_grad for p in ema.model.parameters())


def test_learning_rate_rises_rests_and_falls():
    factors = [learning_rate_factor(step, step / 100, warmup=10, decay=0.2) for step in range(101)]
    assert factors[0] == 0.1 and factors[4] == 0.5
    assert factors[10:81] == pytest.approx([1.0] * 71)
    assert factors[90] == pytest.approx(0.5) and factors[100] == 0
    assert learning_rate_factor(0, 0.0, warmup=0, decay=0.0) == 1.0


LEARNED_NOISE = {"dequantization": {"name": "variational", "width": 4}}


@pytest.mark.parametrize("clip", [math.inf, 0.5])
def test_gradient_is_the_mean_over_accumulated_batches_and_is_clipped(monkeypatch, clip):
    factors = iter([0.0, 1.0, 5.0])  # the first call only shows that it returns what it must

    def objective(model, x, *, eps=None):
        loss = next(factors) * model.score.backbone.stem.bias.sum() + 0 * sum(
            p.sum() for p in model.parameters()
        )
        return loss, {"nelbo": loss.detach()}

    trainer = trainer_of(change(DIGITS, accumulate=2, clip=clip), objective=Objective(objective))
    bias, seen = trainer.model.score.backbone.stem.bias, []
    monkeypatch.setattr(trainer.optimizer, "step", lambda: seen.append(bias.grad.clone()))
    terms = trainer.train_step(trainer.batches())
    mean = torch.full_like(bias, 3.0)
    assert torch.allclose(
        seen[0], mean if clip == math.inf else clip * mean / mean.norm(), rtol=1e-4
    )
    assert terms["score_grad_norm"].item() == pytest.approx(mean.norm().item())


def test_order_of_the_data_covers_every_epoch_and_is_another_in_each_and_for_every_seed():
    train_set = load_data("digits").train

    def of_seed(seed):
        return trainer_of(change(DIGITS, batch_size=100, seed=seed))

    def epochs(trainer):
        batches = trainer.batches()
        return [torch.cat([next(batches) for _ in range(len(train_set) // 100)]) for _ in range(2)]

    trainer = of_seed(0)
    first, second = epochs(trainer)
    other, _ = epochs(of_seed(1))
    rows = {tuple(image.flatten().tolist()) for image in stack(train_set)}
    seen = [tuple(image.flatten().tolist()) for image in first]
    assert len(seen) == 1200 and set(seen) <= rows
    assert len(set(seen)) > 0.99 * len(seen)  # each once, apart from equal images
    assert torch.equal(epochs(of_seed(0))[0], first)
    for one, another in ((first, second), (first, other), (second, other)):
        assert (one != another).flatten(1).any(1).float().mean() > 0.9, (
            "at most a few examples keep their place"
        )
    trainer.step = 12 + 2
    assert torch.equal(next(trainer.batches()), second[200:300])


def test_validation_is_of_the_averaged_weights():
    """Of the bound and of the density of x_T alike: the raw weights may be anything, the average
    may not.
    """
    recipe = GAUSSIAN | {"data": {"name": "checkerboard"}, "data_b": {"name": "two-spirals"}}
    recipe = change(recipe, terminal=1.0, validate_examples=50, batch_size=50)
    trainer = trainer_of(recipe)

    def moved(model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return trainer.validate()

    before = trainer.validate()
    assert set(before) == {"valid_nelbo", "unit", "valid_terminal"}
    assert moved(trainer.model) == before
    after = moved(trainer.ema.model)
    assert all(abs(after[name] - before[name]) > 1e-3 for name in ("valid_nelbo", "valid_terminal"))


def pushed(*slopes, **options):
    """A trainer whose loss has, step by step, these slopes in every parameter of the score, and 0
    in the flow.
    """
    slopes = iter([0.0, *slopes])  # the first call only shows that it returns what it must

    def objective(model, x, *, eps=None):
        rest = 0 * sum(p.sum() for p in model.flow.parameters())
        loss = next(slopes) * sum(p.sum() for p in model.score.parameters()) + rest
        return loss, {"nelbo": loss.detach()}

    recipe = change(DIGITS, weight_decay=0.0, clip=math.inf, **options)
    return trainer_of(recipe, objective=Objective(objective))


def test_a_step_is_that_of_adam_with_the_betas_of_the_recipe():
    """The second step by hand, for slopes 1 and −3: −rate · m̂/√v̂ with β = (0.5, 0.8)."""
    trainer = pushed(1.0, -3.0, lr=0.1, betas=[0.5, 0.8])
    batches, weight = trainer.batches(), next(trainer.model.score.parameters())
    start = weight.detach().clone()
    trainer.train_step(batches)
    torch.testing.assert_close(weight, start - 0.1)
    trainer.train_step(batches)
    m, v = (0.5 * 0.5 - 0.5 * 3) / (1 - 0.5**2), (0.8 * 0.2 + 0.2 * 9) / (1 - 0.8**2)
    torch.testing.assert_close(weight, start - 0.1 - 0.1 * m / math.sqrt(v))


def test_truncations_are_drawn_with_the_exponent_of_the_recipe():
    trainer = trainer_of(change(DIGITS, soft_truncation=3.0))
    draws, eps = (
        np.array([trainer.step_arguments()["eps"] for _ in range(300)]),
        trainer.model.sde.eps,
    )
    assert stats.kstest(draws, lambda tau: (eps**-2.0 - tau**-2.0) / (eps**-2.0 - 1)).pvalue > 1e-3
    trainer = trainer_of(DIGITS)
    assert trainer.step_arguments()["eps"] is None


@pytest.mark.parametrize("flip", [False, True])
def test_half_of_the_images_are_flipped_where_the_data_allow_it(flip):
    data = dataclasses.replace(load_data("digits"), flip=flip)
    trainer = trainer_of(DIGITS, data)
    raw = stack(data.train)[:400]
    seen = trainer.prepare_batch(raw)
    mirrored = (seen != raw).flatten(1).any(1)
    assert torch.equal(seen[mirrored], raw[mirrored].flip(-1))
    assert mirrored.float().mean().item() == pytest.approx(
        0.5 if flip else 0.0, abs=0.12 if flip else 0.0
    )


def test_each_batch_of_validation_has_noise_of_its_own_and_the_same_every_time():
    raw, model = torch.zeros(9, 2), nn.Identity()
    model.scaling, model.dequantization = Scaling.images(4), Uniform()
    one, again = (
        drawn(raw, lambda x, generator: x[:, 0], model, Accelerator(), 3, seed=5) for _ in range(2)
    )
    assert torch.equal(one, again) and len(one.unique()) == 9


def test_the_noise_of_grey_levels_is_trained_with_the_model():
    """The loss is the objective at noisy data plus log q(x|raw), and its gradient reaches the noise
    through both.
    """
    recipe = change(DIGITS, dequantization_lr=2e-2, mixed_precision="no") | LEARNED_NOISE
    trainer = trainer_of(recipe)
    model, raw = trainer.model, stack(load_data("digits").train, 50)
    step = TrainingStep(model, trainer.objective)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    torch.manual_seed(1)
    loss, terms = step(raw)  # in single precision, whatever this process trains in
    torch.manual_seed(1)
    x, log_q = model.from_data(raw)
    bound = indm.mle_loss(model, x)[1]["nelbo"]
    assert terms["log_q"].item() == pytest.approx(log_q.mean().item(), rel=1e-5)
    assert loss.item() * 64 == pytest.approx(bound.item() + log_q.mean().item(), rel=1e-4)
    noise = list(model.dequantization.parameters())
    torch.manual_seed(1)
    expected = torch.autograd.grad(
        64 * indm.mle_loss(model, model.from_data(raw)[0])[0] + log_q.mean(), noise
    )
    for gradient, value in zip(torch.autograd.grad(64 * loss, noise), expected, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-3, atol=1e-4)
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates["dequantization"] == 2e-2


@pytest.mark.parametrize("decays", [{"score": 0.3, "flow": 0.0}, {"score": 0.0, "flow": 0.2}])
def test_each_part_has_a_weight_decay_of_its_own(decays):
    """Without a gradient, a step of AdamW multiplies the weights by 1 − rate · decay and does
    nothing else.
    """

    def flat(model, x, *, eps=None):
        loss = 0 * sum(p.sum() for p in model.parameters())
        return loss, {"nelbo": loss.detach()}

    recipe = change(
        DIGITS, weight_decay=decays["score"], flow_weight_decay=decays["flow"], lr=0.1, flow_lr=0.5
    )
    trainer = trainer_of(recipe, objective=Objective(flat))
    parts = {"score": trainer.model.score, "flow": trainer.model.flow}
    before = copy.deepcopy(parts)
    trainer.train_step(trainer.batches())
    for name, part in parts.items():
        kept = 1 - {"score": 0.1, "flow": 0.5}[name] * decays[name]
        for p, q in zip(part.parameters(), before[name].parameters(), strict=True):
            torch.testing.assert_close(p, kept * q)


def test_pretraining_leaves_the_flow_alone_and_ends_without_a_jump():
    trainer = trainer_of(change(DIGITS, first="score", alone=0.5, steps=8, terminal=1.0))
    before = [p.clone() for p in trainer.model.flow.parameters()]
    batches = trainer.batches()
    for _ in range(4):
        assert "terminal" not in trainer.train_step(batches), (
            "a penalty on the flow is one where the flow is trained"
        )
    assert trainer.step == 4 and trainer.schedule.flow_use(4) is FlowUse.TRAINED
    assert all(
        torch.equal(p, q) for p, q in zip(before, trainer.model.flow.parameters(), strict=True)
    )

    x, _ = trainer.model.from_data(next(batches))
    losses = []
    for use in (FlowUse.LEFT_OUT, FlowUse.TRAINED):
        torch.manual_seed(5)
        losses.append(indm.nelbo(trainer.network.with_flow(use).eval(), x).total)
    trainer.network.train()
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)
    assert "terminal" in trainer.train_step(batches)
    assert any(
        not torch.equal(p, q) for p, q in zip(before, trainer.model.flow.parameters(), strict=True)
    )


def test_the_flow_trains_in_every_third_step_alone_and_the_score_in_all():
    trainer = trainer_of(change(DIGITS, flow_update_every=3, steps=9))
    batches = trainer.batches()
    for step in range(7):
        before = [
            copy.deepcopy(list(part.parameters()))
            for part in (trainer.model.flow, trainer.model.score)
        ]
        terms = trainer.train_step(batches)
        flow, score = (
            any(not torch.equal(p, q) for p, q in zip(old, part.parameters(), strict=True))
            for old, part in zip(before, (trainer.model.flow, trainer.model.score), strict=True)
        )
        assert score and flow == (step % 3 == 0) and ("nelbo" in terms) == flow


@pytest.mark.long
@pytest.mark.parametrize("objective", ["mle", "flow"])
def test_a_plain_flow_trains_without_a_score(tmp_path, objective):
    recipe = DIGITS | {"net": {"name": "zero"}, "flow": {"name": "coupling", "width": 8}}
    recipe = change(recipe, objective=objective, steps=20, flow_update_every=3, log_every=2)
    recipe = change(recipe, flow_lr=5e-3)
    summary = train(recipe, tmp_path / "run", progress=False)
    assert summary["score_parameters"] == 0 < summary["flow_parameters"]
    lines = read_metrics(tmp_path / "run")
    assert lines[-2]["nelbo"] < lines[0]["nelbo"] - 0.1
    assert abs(summary["valid_nelbo"] - lines[-2]["nelbo"]) < 1 and "score_lr" not in lines[0]
    model = indm.INDM.load(tmp_path / "run")
    assert model.description()["net"] == {"name": "zero"} and not list(model.score.parameters())
    assert (
        train(change(recipe, steps=21), tmp_path / "run", resume=True, progress=False)["steps"]
        == 21
    )


@pytest.mark.parametrize(
    "tables, options, said",
    [
        (
            {},
            {"objective": "flow"},
            r'train\.objective "flow" needs net\.name "zero", got \d+ parameters',
        ),
        ({"net": {"name": "zero"}}, {"first": "score"}, r"train\.first must be .*, got 'score'"),
        (
            {"net": {"name": "zero"}},
            {"objective": "flow", "soft_truncation": 1.2},
            r"train\.soft_truncation must be 0",
        ),
    ],
)
def test_what_trains_nothing_or_leaves_something_untrained_is_refused(tables, options, said):
    with pytest.raises(ValueError, match=said):
        trainer_of(change(DIGITS | tables, **options))


def test_the_rates_of_score_and_flow_rise_over_the_warmup():
    trainer = trainer_of(change(DIGITS, warmup=3, steps=9))
    batches, rates = trainer.batches(), []
    for _ in range(4):
        trainer.train_step(batches)
        groups = zip(trainer.optimizer.param_groups, trainer.rates, strict=True)
        rates.append([group["lr"] / highest for group, highest in groups])
    assert np.allclose(rates, [[1 / 3] * 2, [2 / 3] * 2, [1.0] * 2, [1.0] * 2])


def end_and_law(weight, **data_b):
    """Draws of x_T in model units after a training with this weight of its law, and of that law:
    the data's own moments or a second data set.
    """
    recipe = GAUSSIAN | {"data": {"name": "checkerboard", "samples": 5000}}
    recipe |= {"flow": {"name": "coupling", "width": 16}} | data_b
    recipe = change(recipe, terminal=weight, flow_lr=5e-3)
    trainer = trainer_of(recipe)
    batches = trainer.batches()
    for _ in range(70):
        terms = trainer.train_step(batches)
    assert ("terminal" in terms) == (weight > 0)
    with torch.no_grad():
        end = trainer.model.decode(torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)))
    other = trainer.model.scaling.to_model(
        stack(load_data(**recipe.get("data_b", recipe["data"])).train)
    )
    return end, other[:2000] if data_b else normal_law(other)(2000)


def sliced_wasserstein(a, b):
    """Of two sets of one size in the plane, along a hundred directions."""
    directions = F.normalize(torch.randn(2, 100, generator=torch.Generator().manual_seed(0)), dim=0)
    return (
        ((a @ directions).sort(0).values - (b @ directions).sort(0).values).square().mean().sqrt()
    )


@pytest.mark.long
@pytest.mark.parametrize("second", [{"data_b": {"name": "eight-gaussians", "samples": 5000}}, {}])
def test_the_terminal_law_is_the_one_asked_for(second):
    """x_T comes nearer to the second data set, or to the data's own mean and covariance, than
    without the term.
    """
    (without, _), (end, law) = end_and_law(0.0), end_and_law(30.0, **second)
    assert sliced_wasserstein(end, law) < 0.6 * sliced_wasserstein(without, law)


@pytest.mark.about_time
def test_seconds_end_a_run_and_are_kept(tmp_path):
    run, recipe = tmp_path / "run", change(DIGITS, steps=math.inf, seconds=0.5)
    first = train(recipe, run, progress=False)
    assert 0.5 <= first["seconds"] < 5
    assert (
        train(change(recipe, seconds=first["seconds"] - 0.01), run, resume=True, progress=False)[
            "steps"
        ]
        == first["steps"]
    )
    again = train(change(recipe, seconds=first["seconds"] + 0.2), run, resume=True, progress=False)
    assert again["steps"] > first["steps"] and again["seconds"] >= first["seconds"] + 0.2


def test_validation_and_checkpoints_are_not_training_time(tmp_path, monkeypatch):
    def slow(self):
        time.sleep(0.3)
        return {"valid_nelbo": 0.0, "unit": "bits/dim"}

    monkeypatch.setattr(Trainer, "validate", slow)
    recipe = change(DIGITS, steps=4, validate_every=1, batch_size=32)
    started = time.perf_counter()
    summary = train(recipe, tmp_path / "run", progress=False)
    assert summary["seconds"] < time.perf_counter() - started - 1.2


def test_diverging_stops_before_it_saves(tmp_path):
    run, linear = tmp_path / "run", DIGITS | {"flow": {"name": "identity"}}
    with pytest.raises(RuntimeError, match=r"infinite or NaN by step .* a lower train\.lr"):
        train(change(linear, lr=1e20, checkpoint_every=5, log_every=100), run, progress=False)
    assert checkpoint(run)["step"] == 0
    assert all(v.isfinite().all() for v in indm.INDM.load(run).state_dict().values())


@pytest.mark.long
def test_latent_mean_becomes_the_prior(tmp_path):
    recipe = DIGITS | {"sde": {"name": "ve"}}
    train(change(recipe, steps=2, latent_mean=True), tmp_path / "run", progress=False)
    model, data = indm.INDM.load(tmp_path / "run"), load_data("digits")
    latents, _ = model.encode(model.scaling.to_model(stack(data.train)))
    assert model.sde.prior_mean.shape == (1, 8, 8)
    assert torch.allclose(model.sde.prior_mean, latents.mean(0), atol=0.02)
    assert (
        train(
            change(recipe, steps=3, latent_mean=True), tmp_path / "run", resume=True, progress=False
        )["steps"]
        == 3
    )


def test_a_run_in_bf16_keeps_its_weights_in_float32_and_leaves_the_next_run_its_precision(tmp_path):
    for i, precision in enumerate(("no", "bf16", "no")):
        train(
            change(DIGITS, steps=1, mixed_precision=precision, batch_size=32),
            tmp_path / str(i),
            progress=False,
        )
    first, second, third = (checkpoint(tmp_path / str(i))["model"] for i in range(3))
    assert_same(first, third)
    assert any(not torch.equal(second[k], first[k]) for k in first)
    assert {p.dtype for p in indm.INDM.load(tmp_path / "1").parameters()} == {torch.float32}


def test_refuses_what_would_lose_a_run(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="holds no run to resume"):
        train(DIGITS, run, resume=True, progress=False)
    train(change(DIGITS, steps=1), run, progress=False)
    with pytest.raises(ValueError, match="exists and is not empty; with resume it is continued"):
        train(DIGITS, run, progress=False)
    other = change(DIGITS, weight_decay=0.5) | {
        "flow": {"name": "residual", "blocks": [1, 1], "width": 5}
    }
    with pytest.raises(
        ValueError, match=r"another recipe, it differs in flow\.width, train\.weight_decay"
    ):
        train(other, run, resume=True, progress=False)

    for state in (run / "checkpoints").iterdir():
        state.write_bytes(state.read_bytes()[:1000])
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(
            FileNotFoundError, match=r"resume must be false: .* holds no intact checkpoint"
        ),
    ):
        train(change(DIGITS, steps=2), run, resume=True, progress=False)


@pytest.mark.parametrize("launched, status", [(False, 128 + signal.SIGINT), (True, 0)])
def test_the_second_signal_ends_the_process_unless_a_launcher_may_have_repeated_it(
    monkeypatch, launched, status
):
    monkeypatch.setattr("torch.distributed.is_torchelastic_launched", lambda: launched)
    pid = os.fork()
    if not pid:
        with interruptible() as event:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            os._exit(0 if event.is_set() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, capfd):
    run = tmp_path / "run"
    (tmp_path / "mine.toml").write_text(
        recipes.to_toml(change(DIGITS, steps=1_000_000, batch_size=32, log_every=1))
    )
    command = ["train", str(tmp_path / "mine.toml"), "--out", str(run), "--quiet"]
    process = fork(lambda: os._exit(main(command)))
    while not any("loss" in line for line in read_metrics(run)):
        time.sleep(0.05)
    os.kill(process, signal.SIGINT)
    assert exit_code(process) == 130
    said = capfd.readouterr().err
    assert (
        said.strip().endswith(f"Continue with: indm train {run} --resume")
        and "Traceback" not in said
    )
    step = checkpoint(run)["step"]
    assert step > 0
    assert (
        train(change(DIGITS, steps=step + 2, batch_size=32), run, resume=True, progress=False)[
            "steps"
        ]
        == step + 2
    )


@pytest.mark.parametrize(
    "options, is_even",
    [
        ({}, False),
        ({"noise_levels": "even"}, True),
        ({"soft_truncation": 1.2}, True),
        ({"objective": "fid"}, True),
    ],
)
def test_noise_levels_are_drawn_where_gradients_are_large_and_kept_by_a_checkpoint(
    tmp_path, options, is_even
):
    recipe = change(DIGITS, steps=4, **options)
    trainer = trainer_of(recipe)
    for _ in trainer.steps():
        pass
    assert (trainer.noise_levels is None) == is_even
    if not is_even:
        assert trainer.noise_levels.squares.unique().numel() > 4
        Checkpoints(tmp_path).save(trainer)
        other = trainer_of(recipe)
        Checkpoints(tmp_path).load(other)
        assert torch.equal(other.noise_levels.squares, trainer.noise_levels.squares)
