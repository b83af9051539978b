"""``train.first`` "flow": the flow by its own likelihood, then flow and score together, and what
the run ends with.
"""

import math

import pytest
import torch
from small_runs import change, checkpoint, compare_runs, interrupt_at, trainer_of

import indm
from indm.nets import MLP
from indm.objective import flow_nll
from indm.score import noise_parts
from indm.workbench.runs.folder import read_metrics
from indm.workbench.training.loop import plan, train
from indm.workbench.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

PLANE = {
    "flow": {"name": "coupling", "depth": 2, "width": 16, "bins": 8},
    "sde": {"name": "vp"},
    "net": {"name": "mlp", "width": 32},
    "train": {
        "steps": 300, "first": "flow", "batch_size": 256, "lr": 2e-3, "flow_lr": 2e-2, "warmup": 50, "decay": 0.5,
        "ema": 0.99, "noise_levels": "even", "threads": 1,
    },
}  # fmt: skip
GIVEN = {"data": {"name": "given"}}
ALONE = {"net": {"name": "zero"}}
TINY = PLANE | {
    "flow": {"name": "coupling", "depth": 1, "width": 4},
    "net": {"name": "mlp", "width": 8, "depth": 1},
}
TINY = change(
    TINY, steps=20, batch_size=32, warmup=2, validate_every=2, checkpoint_every=3, log_every=5
)


def ridges(n, generator):
    """(a, sin 2a + 0.1 n) with a and n normal."""
    a, noise = torch.randn(2, n, generator=generator)
    return torch.stack([a, (2 * a).sin() + 0.1 * noise], 1)


def atoms(n, generator):
    """Correlated columns in (0, 1), of which 30 % lie in the lowest of 256 levels."""
    u = torch.randn(n, 2, generator=generator) @ torch.tensor([[1.0, 0.7], [0.0, 0.51**0.5]])
    low, level = torch.rand(2, n, 2, generator=generator)
    return torch.where(low < 0.3, level, 1 + 255 * u.sigmoid()) / 256


@torch.no_grad()
def bounds(run, raw):
    """−log p of rows, nats of the raw data (B,): the bound, and what the flow alone would have."""
    model = indm.INDM.load(run)
    x, volume = model.scaling.to_model(raw), model.scaling.log_volume(raw.shape[1:])
    reference = indm.likelihood.latent_reference(model, raw, seed=0)
    bound = indm.nelbo(
        model, x, times=8, reference=reference, generator=torch.Generator().manual_seed(2)
    ).total
    return bound - volume, flow_nll(model, x) - volume


@pytest.mark.long  # the parts of this training are tested below
def test_an_indm_keeps_what_its_flow_has_learned_and_gains_where_there_is_something_to_find(
    tmp_path,
):
    """On fresh rows. Ridges, which a coupling flow fits: level with the flow that had its steps
    alone. Atoms behind a spline of each column, which does not see that they are correlated:
    better, by the network, than the spline that had all steps for itself, and than flow and score
    trained together from the start.
    """

    def gains(law, recipe, others):
        """Of "flow first" over its own flow without the network and over others, in standard
        errors.
        """
        data, raw = (
            law(12_000, torch.Generator().manual_seed(0)),
            law(4096, torch.Generator().manual_seed(1)),
        )
        found = {}
        for name, tables in {"first": recipe, **others}.items():
            train(tables, tmp_path / law.__name__ / name, data=data, progress=False)
            found[name], by_flow = bounds(tmp_path / law.__name__ / name, raw)
            found.setdefault("without", by_flow)
        differences = {name: found[name] - found["first"] for name in found if name != "first"}
        return {
            name: (d.mean() / d.std() * math.sqrt(len(d))).item() for name, d in differences.items()
        }

    recipe = change(PLANE, lr=5e-4)
    alone = change(recipe | ALONE, objective="flow", first="both")
    found = gains(ridges, recipe, {"alone": change(alone, steps=150)})
    assert found["alone"] > -2, found

    spline = {"flow": {"name": "elementwise", "shared": "none", "bins": 16}}
    found = gains(
        atoms,
        PLANE | spline,
        {"alone": alone | spline, "together": change(PLANE | spline, first="both")},
    )
    assert min(found.values()) > 2, found


def started(recipe, **options):
    return trainer_of(change(recipe | GIVEN, **options), points())


def points():
    return ridges(400, torch.Generator().manual_seed(3))


def test_the_flow_learns_alone_by_its_likelihood_and_then_with_the_score_anew():
    """From its best validated average, at a tenth of the rate, with other moments, and each part
    with a schedule of its own.
    """
    trainer = started(TINY, steps=20, first="flow", alone=0.5, warmup=2, decay=0.5)
    score = [p.clone() for p in trainer.model.score.parameters()]
    rates = {"flow": [], "score": []}
    for step, (terms, _) in enumerate(trainer.steps()):
        for group, highest in zip(trainer.optimizer.param_groups, trainer.rates, strict=True):
            rates[group["name"]].append(group["lr"] / highest)
        if step < 10:
            assert terms["denoising"] == 0 and "score_grad_norm" not in terms
            assert all(
                torch.equal(p, q)
                for p, q in zip(score, trainer.model.score.parameters(), strict=True)
            )
        if step == 4:
            trainer.note(1.0)
            best = [p.clone() for p in trainer.ema.model.flow.parameters()]
        if step == 9:
            trainer.note(1.5)  # worse: it is not from here that both go on
        if step == 10:
            assert "correction" in terms and trainer.best_flow is None
            n = [state["step"].item() for state in trainer.optimizer.state.values()]
            assert set(n) == {1.0} and len(n) == len(list(trainer.model.parameters()))
            moved = max(
                (p - q).abs().max()
                for p, q in zip(best, trainer.model.flow.parameters(), strict=True)
            )
            assert 0 < moved < 1.01 * 0.1 * 0.5 * 2e-2  # by one step of Adam
            for p, q, average in zip(
                best,
                trainer.model.flow.parameters(),
                trainer.ema.model.flow.parameters(),
                strict=True,
            ):
                assert torch.allclose(average, p.lerp(q, 9 / 11), atol=1e-7)  # of a first step
    own = [1 / 2, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    assert rates["score"] == pytest.approx(own * 2) and rates["flow"] == pytest.approx(
        [*own, *(0.1 * r for r in own)]
    )


@pytest.mark.parametrize(
    ("found", "ends"),
    [
        ([3.0, 2.0, 1.0], False),
        ([1.0, 2.0, 2.0], False),
        ([1.0, 2.0, 2.0, 1.0], True),
        ([3.0, 2.0, 3.0, 1.0], False),
    ],
)
def test_the_flow_is_alone_until_three_validations_are_no_better(found, ends):
    trainer = started(TINY, first="flow", alone=0.9)
    next(trainer.steps())
    for bound in found:
        trainer.note(bound)
    assert trainer.schedule.opening_is_over(trainer.step) == ends
    next(trainer.steps())
    assert trainer.schedule.is_flow_alone != ends and trainer.began == ends
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(
        TINY["train"]["lr"] / (2 if ends else 1)
    )


def test_a_run_ends_with_its_flow_where_the_score_does_harm(tmp_path):
    """Unless it shall end with the last model."""
    harmful = change(TINY, lr=1.0, first="flow", alone=0.3, warmup=0, validate_every=100)
    for final in ("auto", "last"):
        train(change(harmful, final=final), tmp_path / final, data=points(), progress=False)
    lines = [line for line in read_metrics(tmp_path / "auto") if "valid_nelbo" in line]
    assert [line["step"] for line in lines] == [6, 20], "the flow is validated when it is done"
    assert lines[0]["valid_nelbo"] < lines[1]["valid_nelbo"]
    added = {}
    for final in ("auto", "last"):
        score = indm.INDM.load(tmp_path / final).score
        added[final] = noise_parts(score, torch.ones(1, 2), torch.ones(1))[1].abs().max().item()
    assert added["auto"] == 0 < added["last"]


STOPS = (6, 9, 12)  # alone; at the switch; together


@pytest.mark.parametrize("ends", ["by its share", "without a gain"])
@pytest.mark.long
def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, ends):
    if ends == "without a gain":
        validate, values = Trainer.validate, {2: 2.0, 4: 1.0, 6: 3.0, 8: 3.0, 10: 3.0}
        monkeypatch.setattr(
            Trainer,
            "validate",
            lambda self: validate(self) | {"valid_nelbo": values.get(self.step, 4.0)},
        )
    recipe = change(TINY, first="flow", alone=0.45 if ends == "by its share" else 0.9)
    train(recipe, tmp_path / "whole", data=points(), progress=False)
    whole = checkpoint(tmp_path / "whole")
    assert whole["began"] == {"by its share": 9, "without a gain": 10}[ends]
    assert not whole["place"]["opening"]
    for stop in STOPS:
        run = tmp_path / str(stop)
        with monkeypatch.context() as patch:
            interrupt_at(patch, stop)
            assert train(recipe, run, data=points(), progress=False)["interrupted"]
        train(recipe, run, data=points(), progress=False, resume=True)
        compare_runs(tmp_path / "whole", run)


def test_all_that_a_step_of_the_flow_has_is_in_a_step_of_the_flow_alone(tmp_path):
    """Learned noise of grey levels, a condition that the flow sees, the law of x_T, truncation, the
    other objective.
    """
    recipe = {
        "data": {"name": "digits"}, "flow": {"name": "coupling", "width": 4, "depth": 1}, "sde": {"name": "vp"},
        "net": {"name": "unet", "channels": 4, "multipliers": [1], "blocks": 1, "attention": []},
        "dequantization": {"name": "variational", "width": 4}, "condition": {"name": "classes"},
        "train": {"steps": 4, "batch_size": 32, "first": "flow", "objective": "fid", "soft_truncation": 1.2,
                  "terminal": 1.0, "log_every": 1, "validate_examples": 20, "flow_update_every": 2},
    }  # fmt: skip
    train(recipe, tmp_path, progress=False)
    lines = [line for line in read_metrics(tmp_path) if "flow_lr" in line]
    for line in lines[:2]:
        assert {
            "nelbo",
            "flow",
            "log_q",
            "terminal",
            "flow_grad_norm",
            "dequantization_grad_norm",
        } <= line.keys()
        assert "score_grad_norm" not in line and line["denoising"] == 0
    assert ["nelbo" in line for line in lines[2:]] == [True, False]
    assert all("score_grad_norm" in line for line in lines[2:]) and "variance_weighted" in lines[2]


def test_a_plan_and_budgets_by_cost_know_both_parts(tmp_path):
    recipe = change(
        TINY | {"data": {"name": "checkerboard", "samples": 500}}, first="flow", alone=0.5
    )
    assert plan(recipe)[1]["steps"] == 20


class Ready(MLP):
    """A network that has learned something."""

    def __init__(self, shape):
        super().__init__(shape, width=4, depth=1)
        torch.nn.init.ones_(self.output.bias)


@pytest.mark.parametrize(
    ("tables", "options", "said"),
    [
        (
            {"flow": {"name": "identity"}},
            {},
            r"train\.first must be \"both\" where the flow has nothing.*such as",
        ),
        (
            ALONE,
            {},
            r"train\.first must be \"both\" where the score has nothing to train, got 'flow'; .*objective",
        ),
        ({}, {"alone": 1.0}, r"train\.alone must be above 0 and below 1, got 1\.0"),
        ({}, {"joint_factor": 0.0}, r"train\.joint_factor must be positive, got 0"),
    ],
)
def test_what_cannot_be_trained_flow_first_is_refused(tmp_path, tables, options, said):
    with pytest.raises(ValueError, match=said):
        train(change(TINY | tables, **options), tmp_path / "run", data=points(), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_network_that_does_not_start_at_0_is_refused(tmp_path):
    recipe = {name: TINY[name] for name in ("flow", "sde", "train")}
    with pytest.raises(
        ValueError,
        match=r"the output of net Ready must be 0 at the start .*, got 1\.0; set the weights",
    ):
        train(recipe, tmp_path / "ready", model=Ready((2,)), data=points(), progress=False)
    published = {"name": "ncsnpp", "channels": 8, "multipliers": [1], "blocks": 1, "attention": []}
    pictures = TINY | {"data": {"name": "digits"}, "net": published}
    with pytest.raises(
        ValueError,
        match=r"train\.first must not be \"flow\" where net NCSNpp gives the noise itself",
    ):
        train(pictures, tmp_path / "published", progress=False)


def far_too_high(tmp_path, name):
    """The gain over its flow, on fresh rows, of a run whose network has a rate that kills it; and
    what its last state says of that.
    """
    curve = {
        "flow": {"name": "elementwise", "shared": "none"},
        "net": {"name": "mlp", "width": 16, "depth": 1},
    }
    tables = change(
        PLANE | curve,
        lr=0.3,
        alone=0.05,
        steps=1000,  # enough that a network which begins anew learns, with each of 12 seeds
        batch_size=64,
        validate_every=10,
        ema=0.9,
    )
    data, raw = (
        ridges(4_000, torch.Generator().manual_seed(0)),
        ridges(2_000, torch.Generator().manual_seed(1)),
    )
    train(tables, tmp_path / name, data=data, progress=False)
    found, by_flow = bounds(tmp_path / name, raw)
    return (by_flow - found).mean().item(), checkpoint(tmp_path / name)["place"]["health"]


def test_a_network_that_dies_behind_its_flow_begins_anew(tmp_path):
    gain, health = far_too_high(tmp_path, "revived")
    assert gain > 0.1 and health["revivals"] > 0
    last = [line for line in read_metrics(tmp_path / "revived") if line.get("score_lr")][-1]
    assert last["score_lr"] / last["flow_lr"] == pytest.approx(0.3 / 3 ** health["revivals"] / 2e-3)
    assert not health["is_silenced"]


@pytest.mark.long
def test_a_network_that_is_dead_at_every_rate_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("indm.training.REVIVALS", 0)
    with pytest.warns(UserWarning, match=r"train\.lr 0\.3"):
        gain, health = far_too_high(tmp_path, "silenced")
    assert gain < 0.05 and health["is_silenced"]
