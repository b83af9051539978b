"""The models that come with the package: small, whole, and as good as their card says."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

import indm
from indm.data import load_data
from indm.data.base import stack
from indm.files import hub
from indm.runs.folder import open_run, run_folder

NAMES = hub.shipped_names()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_has_a_card_with_its_samples(name):
    folder = hub.shipped(name)
    text = (folder / "README.md").read_text("utf-8")
    assert f'from_pretrained("{name}")' in text and "samples.png" in text and (folder / "samples.png").exists()
    assert "license: apache-2.0" in text
    (command,) = re.findall("^- made by: `(.+)`$", text, re.MULTILINE)
    known = (Path(__file__).parents[2] / "research" / "pretrained.py").read_text("utf-8")
    assert f"    {command}  " in known and name.removesuffix("-pretrained") in command.split()
    data = tomllib.loads((folder / "recipe.toml").read_text("utf-8"))["data"]
    places = [str(data.get(key, "")) for key in ("path", "root")]
    assert not [place for place in places if {"/", "\\"} & {*place}], "it says where the data were"


def test_all_together_are_below_five_megabytes():
    assert sum(file.stat().st_size for name in NAMES for file in hub.shipped(name).iterdir()) < 5e6


def test_digits_are_loaded_by_name_and_have_the_likelihood_of_the_card(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run_folder(Path("digits-pretrained"))
    assert folder.as_posix() == "runs/digits-pretrained"
    model, recipe = open_run(folder)
    assert torch.equal(next(indm.INDM.from_pretrained("digits-pretrained").parameters()), next(model.parameters()))
    data = load_data(**recipe["data"])
    x, log_q = model.from_data(stack(data.test), generator=torch.Generator().manual_seed(0))
    nats = indm.nelbo(model, x, times=2, generator=torch.Generator().manual_seed(1)).total + log_q
    bits = nats / (64 * torch.tensor(2.0).log())
    card = (hub.shipped("digits-pretrained") / "README.md").read_text("utf-8")
    stated = float(re.search(r"NELBO\s+(\d\.\d+)", card)[1])
    error = bits.std() / len(bits) ** 0.5
    assert abs(bits.mean() - stated) < 5 * error


def test_an_unknown_name_is_said():
    with pytest.raises(ValueError, match="or digits-pretrained"):
        indm.INDM.from_pretrained("digits-pretraind")
