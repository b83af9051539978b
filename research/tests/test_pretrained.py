"""Shipping a finished run: rounding, the card, and the checks of copies and of classes."""

import json
import re
import shutil

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import indm
from indm.files import untrusted
from indm.workbench import hub
from indm.workbench.cli.main import main
from indm.workbench.data.base import as_data, load_data, stack
from research import copies, pretrained
from research.lab.extractor import Extractor, FeatureNetwork

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

TINY = {
    "net.channels": 8, "net.multipliers": [1], "net.attention": [], "train.steps": 2, "train.seconds": float("inf"),
    "train.batch_size": 8, "train.validate_examples": 8, "condition": "classes", "condition.drop": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run of p(x|class)."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    indm.train(indm.recipe("digits", TINY), folder, progress=False)
    return folder


@pytest.fixture
def small(monkeypatch):
    """Few examples of everything, and a classifier that has learned nothing."""
    for name, value in {"EVALUATED": 4, "SOLVED": 2, "DRAWN": 60, "GUIDANCE": (1.0, 2.0)}.items():
        monkeypatch.setattr(pretrained, name, value)
    extractor = Extractor((1, 8, 8), 17, 10).eval()
    extractor.provenance = {"test_accuracy": 0.5, "test_accuracy_standard_error": 0.1}
    monkeypatch.setattr(pretrained, "load_or_train", lambda folder, data: extractor)


def smooth(n, seed, side=12):
    """Images of a few waves."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (255 * F.interpolate(coarse, side, mode="bicubic").clamp(0, 1)).to(torch.uint8)


def test_a_network_is_rounded_once_and_the_rest_is_as_it_was(run):
    model, rounded = indm.INDM.load(run), pretrained.rounded(run)
    stored, loaded = untrusted.weights(rounded / "model.safetensors"), indm.INDM.load(rounded)
    network = {f"score.backbone.{name}" for name, _ in model.score.backbone.named_parameters()}
    assert network < stored.keys() and stored.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert stored[name].dtype == (torch.bfloat16 if name in network else value.dtype)
        wanted = value.bfloat16().float() if name in network else value
        assert loaded.state_dict()[name].dtype == value.dtype and torch.equal(
            loaded.state_dict()[name], wanted
        )
    size, full = ((folder / "model.safetensors").stat().st_size for folder in (rounded, run))
    assert full - size == pytest.approx(
        2 * sum(model.state_dict()[name].numel() for name in network), abs=100
    )


def test_the_nearest_training_image_is_found_mirrored_and_shifted():
    train, test = smooth(300, 0), smooth(100, 1)
    # a sample is a shifted cut of what a training image is cut from
    canvas = smooth(100, 2, side=14)
    train[:100] = canvas[..., 1:-1, 1:-1]
    samples = canvas[..., 2:, :-2].flip(3)
    found = copies.nearest(samples, train)
    assert torch.equal(found.number, torch.arange(100)) and found.similarity.min() > 0.9999
    brighter = copies.nearest((samples.float() * 0.5 + 20).round(), train)
    assert torch.equal(brighter.number, torch.arange(100)) and brighter.similarity.min() > 0.99
    honest, of_test = copies.nearest(smooth(100, 3), train), copies.nearest(test, train)
    assert (
        copies.check(honest, of_test)["near"]
        <= copies.MOST
        < copies.check(found, of_test)["near"]
        == 1.0
    )
    plain = torch.full((1, 3, 12, 12), 7)
    assert copies.nearest(plain, train).similarity.item() == 0.0


def test_planted_copies_stop_a_model(tmp_path):
    data = as_data((smooth(200, 0), smooth(2, 1), smooth(100, 2)))
    samples, others = smooth(100, 3), stack(data.test)
    numbers = pretrained.check_of_copies(samples, data, others, tmp_path / "neighbours.png")
    assert numbers["near"] <= copies.MOST and numbers["images"] == numbers["test_images"] == 100
    samples[:6] = stack(data.train)[:6]
    with pytest.raises(
        ValueError, match=r"of the samples are near a training image: look at .*neighbours\.png"
    ):
        pretrained.check_of_copies(samples, data, others, tmp_path / "neighbours.png")


def test_unseen_images_are_of_films_that_were_trained_on(tmp_path):
    for part, shades in (("data", range(0, 40, 2)), ("between", range(1, 40, 2))):
        for kind in range(6):
            for shade in shades:
                file = tmp_path / part / "ab"[kind % 2] / f"kind{kind}" / f"{shade}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), 40 * kind + shade).save(file)
    data = load_data("folder", path=tmp_path / "data", size=8, classes=True, groups="subfolder")
    (found, c), train = pretrained.unseen(data, tmp_path / "between"), stack(data.train)
    kinds = found[:, 0, 0, 0] // 40
    assert len(found) == len(train) and not torch.isin(found, train).any()
    assert set(kinds.tolist()) == set((train // 40).unique().tolist()) and torch.equal(
        c, kinds.long() % 2
    )
    test, c = pretrained.unseen(data, None)
    assert torch.equal(test, stack(data.test)) and torch.equal(c, data.labels["test"])


class Brightness(FeatureNetwork):
    """Calls dark images class 0 and bright ones class 1."""

    name, size, batch_size, levels, channels, input = "brightness", 2, 64, 256, 1, "as they are"

    def __init__(self):
        super().__init__()
        self.provenance, self.head = {}, nn.Linear(2, 2, bias=False)
        nn.init.eye_(self.head.weight)

    def compute(self, raw):
        bright = raw.float().mean((1, 2, 3)) / 255
        return torch.stack([1 - bright, bright], 1)


def test_the_share_of_samples_of_the_class_that_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("INDM_DATA", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 100, (40, 1, 1, 1), generator=generator) + torch.tensor(
        [0, 150]
    ).repeat(20).view(-1, 1, 1, 1)
    raw = levels.expand(-1, 1, 8, 8).to(torch.uint8)
    c = torch.tensor([0, 1]).repeat(20)
    c[:10] = 1 - c[:10]
    found = pretrained.agreement(raw, c, Brightness(), raw)
    assert found["agreement"] == 0.75 and found["agreement_standard_error"] == pytest.approx(
        (0.75 * 0.25 / 40) ** 0.5
    )
    assert (
        found["frechet_distance"] == pytest.approx(0, abs=1e-6)
        and found["recall"] == found["precision"] == 1.0
    )


def test_a_run_is_shipped_and_its_samples_are_drawn_by_name(run, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INDM_DATA", str(tmp_path / "cache"))
    folder = pretrained.ship(run, tmp_path, tmp_path / "shipped")
    pictures = {"samples.png", "neighbours.png"}
    assert {file.name for file in folder.iterdir()} == pictures | {
        "README.md", "model.json", "model.safetensors", "numbers.json", "recipe.toml"
    }  # fmt: skip
    for name in pictures:
        with Image.open(folder / name) as picture:
            assert picture.mode == "P" and f"]({name})" in (folder / "README.md").read_text("utf-8")
    numbers = json.loads((folder / "numbers.json").read_text())
    assert list(numbers["classes"]["rows"]) == ["samples, w = 1", "samples, w = 2", "test images"]
    pretrained.banner(run.with_name("digits-rounded"), tmp_path / "banner.png", each=2)
    with Image.open(tmp_path / "banner.png") as picture:
        assert picture.size == (10 * (2 * 8 + 6) + 6, 2 * (2 * 8 + 6) + 6), (
            "a column for each class"
        )
    assert (
        numbers["steps"] == 2
        and numbers["copies"]["images"] == 60
        and numbers["nelbo"]["bits_per_dim"] > 0
    )
    before = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder)
    pretrained.ship(run, tmp_path, tmp_path / "shipped")
    assert (folder / "model.safetensors").read_bytes() == before

    monkeypatch.setattr(hub, "SHIPPED", tmp_path / "shipped")
    assert "| `digits-pretrained` | " in pretrained.gallery()
    asked = "sample digits-pretrained --condition all -n 2 --guidance 2 --steps 2 --quiet"
    assert main(asked.split()) == 0
    samples = untrusted.arrays(tmp_path / "runs" / "digits-pretrained" / "samples.npz")
    assert samples["samples"].shape == (20, 1, 8, 8)
    assert samples["c"].tolist() == [number for number in range(10) for _ in range(2)]


def test_a_run_without_a_licence_does_not_ship(run, tmp_path):
    with pytest.raises(ValueError, match="must be called digits, fashion-mnist, fruits, got other"):
        pretrained.ship(shutil.copytree(run, tmp_path / "other"), tmp_path, tmp_path)


@pytest.mark.parametrize("name", hub.shipped_names())
def test_a_card_names_the_command_and_the_licence_of_the_data(name):
    text = (hub.shipped(name) / "README.md").read_text("utf-8")
    origin = pretrained.MODELS[name.removesuffix(pretrained.END)]
    (command,) = re.findall(r"^Made by `(.+)`\.$", text, re.MULTILINE)
    assert command == origin.command and origin.data in text
    near = json.loads((hub.shipped(name) / pretrained.NUMBERS).read_text("utf-8"))["copies"]["near"]
    assert near <= copies.MOST and f"{100 * near:.1f} % of" in text
