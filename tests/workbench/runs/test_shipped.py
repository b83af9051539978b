"""The models that come with the package: small, whole, and as good as their card says."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

import indm
from indm.files import untrusted
from indm.workbench import hub
from indm.workbench.cli.main import main
from indm.workbench.data import as_data, load_data
from indm.workbench.data.base import stack
from indm.workbench.runs.folder import open_run, run_folder

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

NAMES = hub.shipped_names()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_has_a_card_with_its_samples(name):
    folder = hub.shipped(name)
    text = (folder / "README.md").read_text("utf-8")
    assert (
        f'from_pretrained("{name}")' in text
        and "samples.png" in text
        and (folder / "samples.png").exists()
    )
    assert "license: apache-2.0" in text
    assert (
        "## Licence of the data" in text
        and "neighbours.png" in text
        and (folder / "neighbours.png").exists()
    )
    data = tomllib.loads((folder / "recipe.toml").read_text("utf-8"))["data"]
    places = [str(data.get(key, "")) for key in ("path", "root")]
    assert not [place for place in places if {"/", "\\"} & {*place}], "it says where the data were"
    assert {value.dtype for value in indm.from_pretrained(name).parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:the picture shows no data")
def test_a_model_of_classes_is_sampled_by_its_name_without_data(tmp_path, monkeypatch, capsys):
    c = torch.arange(60) % 3
    data = as_data(torch.randn(60, 2), c=[("left", "middle", "right")[k] for k in c])
    tables = {
        "flow": {"name": "identity"},
        "sde": {"name": "vp"},
        "net": {"name": "mlp", "width": 8, "depth": 1},
    }
    tables |= {
        "condition": {"name": "classes", "drop": 0.1},
        "train": {"steps": 1, "batch_size": 8},
    }
    indm.train(tables, tmp_path / "models" / "sides-pretrained", data=data, progress=False)
    monkeypatch.setattr(hub, "SHIPPED", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    command = ["sample", "sides-pretrained", "--steps", "2", "--quiet", "--out"]
    assert main([*command, "one", "--condition", "right", "-n", "4"]) == 0
    assert main([*command, "guided", "--condition", "all", "-n", "2", "--guidance", "3"]) == 0
    assert main([*command, "any", "-n", "30"]) == 0
    assert (
        "every class is drawn as often as the others, as there are no data"
        in capsys.readouterr().err
    )
    one, guided, every = (
        untrusted.array(tmp_path / out / "samples.npz", "c") for out in ("one", "guided", "any")
    )
    assert (
        one.tolist() == [2] * 4 and guided.tolist() == [0, 0, 1, 1, 2, 2] and {*every} == {0, 1, 2}
    )


def test_digits_are_loaded_by_name_and_have_the_likelihood_of_the_card(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run_folder(Path("digits-pretrained"))
    assert folder.as_posix() == "runs/digits-pretrained"
    model, recipe = open_run(folder)
    assert torch.equal(
        next(indm.from_pretrained("digits-pretrained").parameters()), next(model.parameters())
    )
    data = load_data(**recipe["data"])
    x, log_q = model.from_data(stack(data.test), generator=torch.Generator().manual_seed(0))
    nats = indm.nelbo(
        model, x, times=2, log_q=log_q, generator=torch.Generator().manual_seed(1)
    ).nats
    bits = nats / (64 * torch.tensor(2.0).log())
    card = (hub.shipped("digits-pretrained") / "README.md").read_text("utf-8")
    stated = float(re.search(r"NELBO\s+(\d\.\d+)", card)[1])
    error = bits.std() / len(bits) ** 0.5
    assert abs(bits.mean() - stated) < 5 * error
