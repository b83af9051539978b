"""Training of p(x|c): it resumes to the last bit, processes make the run of one, and what it learns
depends on c.
"""

import inspect
import json
import shutil

import numpy as np
import pytest
import torch
from own_net import OwnNet
from PIL import Image
from small_runs import TINY, change, compare_runs
from torch.utils.data import TensorDataset

import indm
from indm.workbench.cli.main import main
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.samples import read_samples
from indm.workbench.training.loop import train

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

CLASSES = change(TINY, steps=8) | {"condition": {"name": "classes", "drop": 0.2}}
SEEN = CLASSES | {"condition": {"name": "classes", "flow": True}}
VECTORS = {
    "flow": {"name": "coupling", "width": 16, "depth": 2},
    "sde": {"name": "vp"},
    "net": {"name": "mlp", "width": 32, "depth": 2, "fourier": 0},
    "condition": {"name": "vector", "flow": True},
    "train": {
        "steps": 300,
        "batch_size": 128,
        "lr": 3e-3,
        "flow_lr": 3e-3,
        "decay": 0.3,
        "threads": 1,
    },
}


@pytest.mark.parametrize("recipe", [CLASSES, SEEN], ids=["hidden at times", "seen by the flow"])
def test_a_conditional_run_resumes_to_the_last_bit(recipe, tmp_path):
    train(recipe, tmp_path / "whole", progress=False)
    train(
        recipe, tmp_path / "parts", progress=False, callbacks=[lambda trainer, _: trainer.step == 4]
    )
    train(recipe, tmp_path / "parts", progress=False, resume=True)
    compare_runs(tmp_path / "whole", tmp_path / "parts")
    saved = recipes.load(tmp_path / "whole")
    assert list(saved["condition"]["labels"]) == list("0123456789")


@pytest.mark.long
def test_it_learns_the_law_at_each_condition(tmp_path):
    """x = (c, −c) + noise: the NLL comes near the entropy of the noise, and shuffled conditions
    cost nats.
    """
    generator = torch.Generator().manual_seed(0)
    c = 2 * torch.rand(3000, 1, generator=generator) - 1
    x = torch.cat([c, -c], 1) + 0.2 * torch.randn(3000, 2, generator=generator)
    train(VECTORS, tmp_path / "run", data=TensorDataset(x, 5 + 10 * c), progress=False)
    model = indm.INDM.load(tmp_path / "run")
    assert torch.allclose(model.condition.shift, torch.tensor([5.0]), atol=0.4)
    raw, c = x[:400], 5 + 10 * c[:400]
    x = model.from_data(raw)[0]
    report = indm.nll(model, x, c=c)
    entropy = 2 * (0.5 * np.log(2 * np.pi * np.e) + np.log(0.2))
    assert abs(report.nats.mean() - entropy) < 0.15
    assert indm.nll(model, x, c=c.roll(1, 0)).nats.mean() > entropy + 1
    y = model.scaling.to_data(indm.sample(model, 500, c=[10.0]))
    assert torch.allclose(y.mean(0), torch.tensor([0.5, -0.5]), atol=0.08)


@pytest.mark.filterwarnings("ignore:the error of log_prob")
def test_a_network_of_ones_own_is_tried_and_trained_with_its_condition(tmp_path):
    x = torch.randn(200, 2)
    recipe = VECTORS | {"flow": {"name": "identity"}, "condition": {"name": "vector"}}
    recipe |= {"train": {"steps": 2, "threads": 1}}
    train(
        recipe,
        tmp_path / "run",
        model=OwnNet((2,), (2,)),
        data=TensorDataset(x, x[:, :1]),
        progress=False,
    )
    with indm.trust("own_net"):
        model = indm.INDM.load(tmp_path / "run")
    assert model.log_prob(x[:3], c=x[:3, :1]).isfinite().all()


@pytest.mark.parametrize(
    ("condition", "data", "message"),
    [
        ({"name": "vector"}, None, "have no numbers for a condition"),
        (
            {"name": "classes", "labels": ["0", "1"]},
            None,
            "the train data do not fit the condition",
        ),
        ({"name": "klasses"}, None, "did you mean 'classes'"),
        ({"name": "classes"}, torch.zeros(40, 1, 8, 8, dtype=torch.uint8), "must be a pair"),
    ],
)
def test_data_that_do_not_fit(condition, data, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(TINY | {"condition": condition}, tmp_path / "run", data=data, progress=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional") / "run"
    flags = [
        "--condition",
        "classes",
        "--condition.drop",
        "0.1",
        "--net.channels",
        "8",
        "--train.steps",
        "6",
    ]
    assert (
        main(["train", "digits", "--out", str(folder), *flags, "--train.threads", "1", "--quiet"])
        == 0
    )
    return folder


def test_the_command_line_from_training_to_classes(run, capsys):
    assert main(["evaluate", str(run), "--examples", "60", "--nll-examples", "0", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "condition: classes; the model is one of p(x|c), and the baselines do not see c" in said
    assert (
        "class" in said
        and json.loads((run / "evaluation.json").read_text())["classes"]["3"]["images"] > 1
    )


def test_samples_of_one_class_of_all_and_of_the_datas(run, tmp_path, capsys):
    def drawn(*flags):
        assert (
            main(
                [
                    "sample",
                    str(run),
                    "--out",
                    str(tmp_path),
                    "--overwrite",
                    "--steps",
                    "2",
                    "--quiet",
                    *flags,
                ]
            )
            == 0
        )
        with np.load(tmp_path / "samples.npz") as file:
            return file["samples"], file.get("c")

    assert drawn("--condition", "3", "-n", "4")[1].tolist() == [3] * 4
    samples, c = drawn("--condition", "all", "-n", "3", "--guidance", "2")
    assert samples.shape[0] == 30 and c.tolist() == [k for k in range(10) for _ in range(3)]
    assert read_samples(tmp_path / "samples.npz")[2]["guidance"] == 2
    assert len(set(drawn("-n", "40")[1].tolist())) > 4
    assert drawn("--condition", "none", "-n", "4")[1] is None
    capsys.readouterr()
    for flags, message in (
        (["--condition", "ten"], "c must be one of 0, 1"),
        (["--condition", "0", "--guidance", "nan"], "guidance must be finite"),
    ):
        assert (
            main(["sample", str(run), "--out", str(tmp_path), "--overwrite", "--quiet", *flags])
            == 2
        )
        assert message in capsys.readouterr().err


def test_by_default_a_row_of_each_class_is_drawn_at_the_recipes_guidance(run, tmp_path, capsys):
    guided = shutil.copytree(run, tmp_path / "guided")
    recipe = (run / "recipe.toml").read_text("utf-8")
    assert "[sample]\nguidance = 1.0" in recipe
    (guided / "recipe.toml").write_text(
        recipe.replace("[sample]\nguidance = 1.0", "[sample]\nguidance = 3.0"), "utf-8"
    )

    def drawn(*flags):
        assert main(["sample", str(guided), "--overwrite", "--steps", "2", "--quiet", *flags]) == 0
        with np.load(guided / "samples.npz") as file:
            return (
                file["samples"],
                file.get("c"),
                json.loads((guided / "samples.json").read_text("utf-8"))["options"],
            )

    samples, c, options = drawn()
    assert c.tolist() == [k for k in range(10) for _ in range(8)]
    assert (options["condition"], options["n"], options["guidance"]) == ("all", 8, 3.0)
    assert f"{guided / 'samples.png'}: 80 samples" in capsys.readouterr().out
    with Image.open(guided / "samples.png") as picture:
        height, width = picture.size[::-1]
    assert height > 10 * 64 and 8 * 64 < width < 10 * 64, (
        "ten rows of eight, and their names on the left"
    )
    assert not np.array_equal(samples, drawn("--guidance", "1")[0])
    for flags, n, guidance in (
        (["-n", "12"], 12, 3.0),
        (["--condition", "none"], 64, 1.0),
        (["--condition", "3"], 64, 3.0),
    ):
        samples, _, options = drawn(*flags)
        assert (len(samples), options["guidance"]) == (n, guidance)
    assert inspect.signature(indm.sample).parameters["guidance"].default == 1
