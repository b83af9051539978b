"""Names of parts: those of this package, and those that entry points of installed packages offer."""

import re
import sys
from pathlib import Path

import pytest
from torch import nn

import indm
from indm import names

PART = """
import torch

class Scale(torch.nn.Module):
    def __init__(self, shape, width):
        super().__init__()
        self.shape, self.size = tuple(shape), width

    def forward(self, z, level):
        return torch.zeros_like(z)
"""
TABLES = {"flow": "identity", "sde": "vp", "net": {"name": "scale", "width": 3}}


def install(folder: Path, package: str) -> None:
    """As pip leaves a package in a folder where Python looks."""
    (folder / f"{package}.py").write_text(PART)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[indm.parts]\nnet.scale = {package}:Scale\n")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder, "scales")
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("scales", None)


def test_each_house_has_its_own_parts_and_each_part_one_name():
    for kind, known in names.BUILT_IN.items():
        assert known and len({*known.values()}) == len(known)
        assert all(place.startswith("indm.") for place in known.values())
        for name in known:
            assert kind == "data" or names.name_of(kind, names.find(kind, name)) == name


def test_an_installed_part_is_found_by_its_name_where_its_package_is_trusted(installed, tmp_path):
    with pytest.raises(names.Untrusted) as refused:
        indm.build_model(TABLES, (2,))
    assert refused.value.package == "scales" and "scales" not in sys.modules
    with indm.trust("scales"):
        model = indm.build_model(TABLES, (2,))
        model.save(tmp_path / "run")
        assert isinstance(
            indm.INDM.load(tmp_path / "run").score.backbone, names.find("net", "scale")
        )
    # A file has the place: it can be read where no package offers the name.
    assert model.description()["net"] == {"name": "scales:Scale", "shape": [2], "width": 3}
    with pytest.raises(names.Untrusted):
        indm.INDM.load(tmp_path / "run")


def test_installed_parts_stand_with_the_others(installed):
    assert names.installed("net") == {"scale": "scales:Scale"} and names.installed("flow") == {}
    assert names.outside_places("scale") == ["scales:Scale"] and names.outside_places("mlp") == []
    with pytest.raises(ValueError, match=r"net\.name .*mlp, .*scale, .*'scale'"):
        names.find("net", "scael")


def test_two_packages_that_offer_one_name(installed):
    install(installed, "others")
    with indm.trust("others"):
        assert issubclass(names.find("net", "others:Scale"), nn.Module)
    del sys.modules["others"]


def test_built_in_names_are_never_taken_by_a_package(tmp_path, monkeypatch):
    install(tmp_path, "thief")
    entries = tmp_path / "thief-1.0.dist-info" / "entry_points.txt"
    entries.write_text(re.sub("net.scale", "net.mlp", entries.read_text()))
    monkeypatch.syspath_prepend(tmp_path)
    with indm.trust("thief"):
        assert names.find("net", "mlp") is indm.MLP


def test_an_objective_of_a_package(tmp_path, monkeypatch):
    install(tmp_path, "losses")
    entries = tmp_path / "losses-1.0.dist-info" / "entry_points.txt"
    entries.write_text("[indm.parts]\nobjective.mixed = losses:mixed\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert indm.recipe("digits", {"train.objective": "mixed"}).train.objective == "mixed"
