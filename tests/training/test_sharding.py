"""A score network divided over processes makes the run of one that is not, and its checkpoints are no pickles."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint
import torch.distributed.fsdp  # takes seconds, which the forked processes need not wait for
from launch import FAULTS, InDouble
from processes import fork_group
from safetensors.torch import load_file
from test_processes import CODES, assert_same_log, launch
from test_reliability import TINY
from test_training import assert_same, change, checkpoint, log_of

import indm
from indm.config import recipes
from indm.model import build, count_parameters
from indm.runs.devices import make_accelerator
from indm.training import checkpoints, sharding
from indm.training.loop import train
from indm.training.sharding import blocks, local, shard
from indm.training.trainer import Trainer

pytestmark = pytest.mark.long

LAUNCH = str(Path(__file__).with_name("launch.py"))
# All that a step can be of: accumulated batches, a flow that sits steps out, penalties, clipping, weight
# decay, warm-up; and all that is made of the average.
WHOLE = change(
    TINY, steps=6, flow_update_every=2, clip=0.05, weight_decay=0.1, isometry=0.1, terminal=0.1, validate_every=3,
    snapshot_every=3, final="best", latent_mean=True, mixed_precision="no",
)  # fmt: skip
SHARDED = change(WHOLE, shard=True)
HALF = change(TINY, steps=6, warmup=0, keep_last=100, mixed_precision="bf16")
ALONE = change(TINY, steps=6, shard=True, mixed_precision="no")  # what one process writes and reads
NOT_FINITE = 3  # the step, from 0, that one process has to leave out, and so all


def tensors_in(run):
    """The newest state in a run and its tensors by name, put together from the files of the processes."""
    state = checkpoint(run)
    parts = {}
    for file in sorted(checkpoints.shards_of(run / "checkpoint.pt", state).iterdir()):
        for name, tensor in load_file(file).items():
            parts.setdefault(name, []).append(tensor)
    return state, {name: torch.cat(tensors) if len(tensors) > 1 else tensors[0] for name, tensors in parts.items()}


def assert_same_run(run, whole):
    """Of two sharded runs: states, tensors and log are the same to the last bit."""
    (state, tensors), (expected, others) = tensors_in(run), tensors_in(whole)
    for each in (state, expected):
        each.pop("seconds"), each.pop("shards")
    assert_same(state, expected)
    assert_same(tensors, others)
    assert log_of(run) == log_of(whole)


def largest_difference(run, whole):
    """Between weights, averages and moments of a sharded run and of one that is not."""
    (state, tensors), expected = tensors_in(run), checkpoint(whole)
    pairs = [(tensors[f"{part}.{k}"], v) for part in ("model", "ema") for k, v in expected[part].items()]
    assert state["optimizer"]["state"].keys() == expected["optimizer"]["state"].keys()
    for i, entry in expected["optimizer"]["state"].items():
        kept = state["optimizer"]["state"][i]
        pairs += [(tensors[f"optimizer.{i}.{k}"] if kept[k] is None else kept[k], v) for k, v in entry.items()]
    assert len(pairs) == 2 * len(expected["model"]) + 3 * len(expected["optimizer"]["state"])
    return max((p.double() - q.double()).abs().max().item() for p, q in pairs)


def difference_of_models(one, other):
    a, b = (indm.INDM.load(folder).state_dict() for folder in (one, other))
    return max((a[name] - b[name]).abs().max().item() for name in a)


def held(trainer):
    """Bytes of the network's weights, average and moments in this process."""
    weights = list(trainer.model.score.backbone.parameters())
    states = [trainer.optimizer.state[p] for p in weights]
    kinds = {
        "weights": weights,
        "average": list(trainer.ema.model.score.backbone.parameters()),
        "moments": [state[key] for state in states for key in ("exp_avg", "exp_avg_sq")],
    }
    return {
        kind: sum(local(tensor).untyped_storage().nbytes() for tensor in tensors) for kind, tensors in kinds.items()
    }


def pass_through(half):
    """Bytes of what autograd keeps of a pass through a wide network, those of its weights, and the level's dtype."""
    accelerator = make_accelerator(recipes.resolve(HALF).train)
    net = {"name": "mlp", "width": 256, "depth": 4}
    model = indm.build_model({"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": net}, (4,))
    weights = sum(p.nbytes for p in model.score.backbone.parameters())
    shard(model, accelerator, half=half)
    kept, levels = {}, []
    model.score.backbone.embedding.register_forward_pre_hook(lambda _, inputs: levels.append(str(inputs[0].dtype)))

    def pack(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16, half):
        model.score(torch.randn(2, 4), torch.full((2,), 0.5))
    return sum(storage.nbytes() for storage in kept.values()), weights, *levels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The run of one process, that of two which hold a half each, and one of two that were stopped, and went on."""
    folder = tmp_path_factory.mktemp("sharding")

    def note(trainer, _):
        (folder / f"held-{trainer.accelerator.process_index}.json").write_text(json.dumps(held(trainer)))

    def work():
        FAULTS["nan"] = [1, NOT_FINITE]
        train(SHARDED, folder / "two", progress=False, trainer=InDouble, callbacks=[note])
        stop = [lambda trainer, _: trainer.step == 5]
        train(SHARDED, folder / "halved", progress=False, trainer=InDouble, callbacks=stop)
        if torch.distributed.get_rank() == 0:
            shutil.copytree(folder / "halved", folder / "other")
        torch.distributed.barrier()
        train(SHARDED, folder / "halved", progress=False, trainer=InDouble, resume=True)
        train(change(HALF, shard=True), folder / "half", progress=False)
        (folder / "passes.json").write_text(json.dumps([pass_through(half) for half in (False, True)]))

    fork_group(2, work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAULTS, "nan", [0, NOT_FINITE])
        train(WHOLE, folder / "one", progress=False, trainer=InDouble)
    return folder


# ── the same run ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_processes_with_a_half_each_make_the_run_of_one(folder):
    assert largest_difference(folder / "two", folder / "one") < 1e-12
    assert_same_log(folder / "two", folder / "one")
    (skipped,) = [line for line in log_of(folder / "two") if "skipped" in line]
    assert skipped["step"] == NOT_FINITE + 1


def test_each_process_has_its_share_of_weights_average_and_moments(folder):
    one, other = (json.loads((folder / f"held-{process}.json").read_text()) for process in range(2))
    network = indm.INDM.load(folder / "one").score.backbone
    whole = sum(p.nbytes for p in network.parameters())
    for kind, times in (("weights", 1), ("average", 1), ("moments", 2)):
        assert times * whole <= one[kind] + other[kind] < 1.02 * times * whole  # one row cannot be halved
        assert 0.45 < one[kind] / (times * whole) < 0.55


def test_a_backward_pass_gathers_blocks_again(folder):
    """Autograd keeps no weights of a block, be they whole or cast by autocast, and a level is not rounded."""
    for kept, weights, level in json.loads((folder / "passes.json").read_text()):
        assert kept < 0.1 * weights and level == "torch.float32"


def test_all_that_is_made_of_the_average_is_that_of_one_process(folder):
    made = sorted(path.parent.relative_to(folder / "one") for path in (folder / "one").rglob("model.safetensors"))
    assert len(made) == 4  # the model, the best one and two snapshots
    for place in made:
        assert difference_of_models(folder / "two" / place, folder / "one" / place) < 1e-12
    started = indm.INDM.load(folder / "one" / "snapshots" / "3")
    assert difference_of_models(folder / "one" / "snapshots" / "6", folder / "one" / "snapshots" / "3") > 1e-4
    assert started.sde.prior_mean.abs().max() == 0 < indm.INDM.load(folder / "two").sde.prior_mean.abs().max()


def test_two_processes_that_are_stopped_go_on_exactly(folder):
    assert_same_run(folder / "halved", folder / "two")


def test_another_number_of_processes_goes_on(folder):
    train(SHARDED, folder / "other", progress=False, trainer=InDouble, resume=True)
    assert largest_difference(folder / "other", folder / "one") < 1e-12
    assert difference_of_models(folder / "other", folder / "one") < 1e-12
    assert_same_log(folder / "other", folder / "one")


def test_two_processes_in_bfloat16_learn_what_one_does(folder, tmp_path):
    """Not to rounding: biases and the scales of norms are rounded, too. The weights stay in single precision."""
    train(HALF, tmp_path, progress=False)
    (_, tensors), one, start = tensors_in(folder / "half"), *map(checkpoints.read, checkpoints.numbered(tmp_path)[::2])
    names = [name for name in one["model"] if name.startswith("score.backbone")]
    assert {tensors[f"model.{name}"].dtype for name in names} == {torch.float32}
    apart, moved = (
        torch.cat([(tensors[f"model.{name}"] - run["model"][name]).flatten() for name in names]).norm()
        for run in (one, start)
    )
    assert apart < 0.1 * moved


# ── checkpoints ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    train(ALONE, run, progress=False)
    return run


def test_one_process_makes_the_run_of_one_that_does_not_shard(tmp_path, alone):
    train(change(ALONE, shard=False), tmp_path, progress=False)
    assert largest_difference(alone, tmp_path) == 0


def test_a_checkpoint_has_no_other_files_than_its_state_and_safetensors(folder, alone):
    for run in (folder / "two", alone):
        kept = {path.relative_to(run / "checkpoints") for path in (run / "checkpoints").rglob("*") if path.is_file()}
        assert {path.suffix for path in kept} == {".pt", ".safetensors"}
        assert len(list((run / "checkpoints").glob("*.pt"))) == len(checkpoints.all_shards(run)) == 2
        state = checkpoints.read(run / "checkpoint.pt")
        names = {path.name for path in checkpoints.shards_of(run / "checkpoint.pt", state).iterdir()}
        assert state["shards"]["files"].keys() == names and not state.keys() & {"model", "ema"}


def test_no_more_memory_is_taken_for_moments_than_files_hold(alone):
    state, parameters = checkpoints.read(alone / "checkpoint.pt"), [torch.nn.Parameter(torch.zeros(1000))]
    state["optimizer"]["state"] = {0: dict.fromkeys(map(str, range(10_000)))}
    with pytest.raises(ValueError, match=r"its moments claim 40,000,000 bytes, and its files hold \d+"):
        sharding.read(checkpoints.shards_of(alone / "checkpoint.pt", state), state, parameters)


@pytest.mark.parametrize("damage", ["byte", "missing", "pickle", "pipe"])
def test_damaged_shards_are_noticed_and_the_state_before_is_used(tmp_path, alone, damage):
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    (shard,) = (run / "checkpoints" / "6.1").iterdir()
    if damage == "byte":
        content = bytearray(shard.read_bytes())
        content[-5] ^= 1
        shard.write_bytes(content)
    elif damage == "missing":
        shard.unlink()
    elif damage == "pipe":
        os.mkfifo(shard.parent / "pipe")
    else:
        (shard.parent / ".metadata").write_bytes(pickle.dumps(print))
    with pytest.warns(UserWarning, match=r"6\.pt is damaged .* in .*6\.1 is not what was written"):
        train(ALONE, run, progress=False, resume=True)
    (before, expected), (state, tensors) = tensors_in(alone), tensors_in(run)
    for each in (before, state):
        each.pop("seconds"), each.pop("shards")
    assert_same(state, before)
    assert_same(tensors, expected)


def test_a_state_that_is_set_aside_keeps_its_shards(tmp_path, alone):
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    checkpoints.drop_newest(run)
    assert checkpoints.newest(run)[1]["step"] == 3
    train(ALONE, run, progress=False, resume=True)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        "3.pt", "3.1", "6.pt", "6.2", "6.pt.diverged", "6.1",
    }  # fmt: skip
    assert checkpoints.read(run / "checkpoints" / "6.pt.diverged", with_shards=True)["step"] == 6


def test_shards_of_another_recipe_are_refused_and_named(tmp_path, alone):
    wider = ALONE | {"net": ALONE["net"] | {"channels": 8}}
    data = indm.data.load_data(**ALONE["data"])
    wider = recipes.resolve(wider)
    trainer = Trainer(wider, data, make_accelerator(wider.train))
    with pytest.raises(ValueError, match=r"6\.pt is not a checkpoint of this recipe.*[Ss]ize"):
        trainer.load(alone)


def test_a_full_disk_leaves_the_state_before(small_disk):
    recipe = ALONE | {"net": ALONE["net"] | {"channels": 12}}
    with pytest.raises(OSError, match=r"checkpoints/\d+.1 cannot be written, and what was there before is unchanged"):
        train(change(recipe, checkpoint_every=1, keep_last=100, steps=100), small_disk / "run", progress=False)
    run = small_disk / "run"
    states = checkpoints.numbered(run)
    assert sorted(int(shards.stem) for shards in checkpoints.all_shards(run)) == sorted(int(p.stem) for p in states)
    assert checkpoints.newest(run)[0] == states[0]


# ── what is divided, and what cannot be ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("table", "shape", "largest"),
    [
        ({"name": "unet", "channels": 64, "multipliers": [1, 2, 3, 4], "blocks": 3}, (3, 32, 32), 0.1),
        ({"name": "ncsnpp", "channels": 64, "multipliers": [1, 2, 2], "input_pyramid": "residual"}, (3, 32, 32), 0.1),
        ({"name": "mlp", "width": 64, "depth": 12}, (4,), 0.1),
    ],
)
def test_blocks_are_small_and_have_nearly_all(table, shape, largest):
    network = build(table, "net", shape)
    parts = list(blocks(network))
    sizes = [count_parameters(block) / count_parameters(network) for block in parts]
    owned = [id(parameter) for block in parts for parameter in block.parameters()]
    assert len(owned) == len(set(owned))
    assert max(sizes) < largest and sum(sizes) > 0.9


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"net": "zero", "train.objective": "flow"}, "train.shard must be false where the score network has no"),
        ({"train.objective": "own_model:likelihood"}, "train.shard must be False for a model without flow and diff"),
    ],
)
def test_what_cannot_be_divided_is_refused(tmp_path, changes, why):
    with pytest.raises(ValueError, match=re.escape(why)), indm.trust("own_model"):
        train(recipes.recipe("eight-gaussians", {"train.shard": True, **changes}), tmp_path / "run", progress=False)


# ── more processes, killed ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.parametrize("recipe", [WHOLE, CODES], ids=["whole", "codes"])
def test_four_processes_with_a_quarter_each_make_the_run_of_one(tmp_path, recipe):
    """Some of them have nothing of the tensors with fewer than four rows; the flow may have a batch norm."""
    (tmp_path / "whole.toml").write_text(recipes.to_toml(recipe))
    (tmp_path / "sharded.toml").write_text(recipes.to_toml(change(recipe, shard=True)))
    launch(1, LAUNCH, tmp_path / "whole.toml", tmp_path / "one")
    launch(4, LAUNCH, tmp_path / "sharded.toml", tmp_path / "four")
    assert largest_difference(tmp_path / "four", tmp_path / "one") < 1e-9
    assert_same_log(tmp_path / "four", tmp_path / "one")


@pytest.mark.long
@pytest.mark.about_time
def test_killed_processes_go_on_in_another_number(tmp_path, folder):
    """Four, of which one is killed; then two, of which the main one is killed; then one."""
    (tmp_path / "sharded.toml").write_text(recipes.to_toml(change(SHARDED, checkpoint_every=1)))
    with_fault = tmp_path / "sharded.toml", tmp_path / "run"
    launch(4, LAUNCH, *with_fault, "--kill", 1, 2, fails=True)
    assert checkpoint(tmp_path / "run")["step"] == 2
    launch(2, LAUNCH, *with_fault, "--resume", "--nan", 1, NOT_FINITE, "--kill", 0, 5, fails=True)
    assert checkpoint(tmp_path / "run")["step"] == 5
    launch(1, LAUNCH, *with_fault, "--resume")
    assert largest_difference(tmp_path / "run", folder / "one") < 1e-9
    assert difference_of_models(tmp_path / "run", folder / "one") < 1e-9
