"""The extractor of features: what it learns, that it is repeatable, and that its distances order
what is worse.
"""

import pytest
import torch
from torch import nn

from indm.workbench.data.base import load_data, stack
from research.lab.extractor import Extractor, load_or_train, shifted, train_extractor


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def extractor(digits):
    return train_extractor(digits, epochs=6, progress=False)


def test_digits_are_learned_and_the_accuracy_is_that_of_the_test_split(extractor, digits):
    found = extractor(stack(digits.test)).argmax(1) == digits.labels["test"]
    assert extractor.provenance["test_accuracy"] == found.double().mean().item() > 0.93
    assert extractor.provenance["train_images"] == 1257
    assert extractor.provenance["test_accuracy_standard_error"] == pytest.approx(
        found.double().std(correction=0).item() / 360**0.5
    )


def test_one_seed_gives_one_extractor(digits):
    first, second, other = (
        train_extractor(digits, epochs=1, most=300, seed=seed, progress=False) for seed in (3, 3, 4)
    )
    raw = stack(digits.test, 50)
    assert torch.equal(first.features(raw), second.features(raw))
    assert first.provenance == second.provenance
    assert first.provenance["weights_sha256"] != other.provenance["weights_sha256"]
    assert first.provenance["train_images"] == 300


def test_training_leaves_the_global_random_state(digits):
    before = torch.get_rng_state()
    train_extractor(digits, epochs=1, most=128, progress=False)
    assert torch.equal(before, torch.get_rng_state())


def test_features_depend_on_no_other_image_and_on_no_type_of_integer(extractor, digits):
    raw = stack(digits.test, 30)
    whole = extractor.features(raw)
    assert whole.shape == (30, 64)
    torch.testing.assert_close(extractor.features(raw, batch_size=7), whole)
    torch.testing.assert_close(extractor.features(raw.int()), whole, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(extractor.head(whole), extractor(raw))


@pytest.mark.parametrize(("shape", "levels"), [((3, 8, 11), 17), ((1, 28, 28), 256)])
def test_images_of_any_size(shape, levels):
    raw = torch.randint(levels, (5, *shape))
    assert Extractor(shape, levels, 4).eval()(raw).shape == (5, 4)


def test_saved_and_loaded_it_is_the_same(extractor, digits, tmp_path):
    extractor.save(tmp_path / "saved")
    loaded = load_or_train(tmp_path / "saved", digits)
    raw = stack(digits.test, 40)
    assert torch.equal(loaded.features(raw), extractor.features(raw))
    assert loaded.provenance == extractor.provenance
    loaded.save(tmp_path / "again")
    assert (
        Extractor.load(tmp_path / "again").provenance["weights_sha256"]
        == extractor.provenance["weights_sha256"]
    )


def test_what_cannot_be_loaded_says_why(extractor, digits, tmp_path):
    with pytest.raises(ValueError, match=r"no file extractor\.json"):
        Extractor.load(tmp_path)
    extractor.save(tmp_path)
    with pytest.raises(ValueError, match=r"holds an extractor of .*, not of"):
        load_or_train(tmp_path, load_data("digits", seed=1))
    (tmp_path / "extractor.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        Extractor.load(tmp_path)


def test_training_moves_images_by_one_pixel(digits):
    raw, generator = stack(digits.test, 4), torch.Generator().manual_seed(0)
    moved = {tuple(shifted(raw, generator).flatten().tolist()) for _ in range(80)}
    expected = nn.functional.pad(raw.float(), (1, 1, 1, 1), mode="replicate")
    windows = {
        tuple(expected[..., i : i + 8, j : j + 8].flatten().tolist())
        for i in range(3)
        for j in range(3)
    }
    assert moved == windows


def test_wrong_arguments_are_named(extractor):
    with pytest.raises(
        ValueError, match=r"raw must be n images of shape \(1, 8, 8\), got .*\(2, 1, 9, 8\)"
    ):
        extractor.features(torch.zeros(2, 1, 9, 8))
    with pytest.raises(ValueError, match="at least 8"):
        Extractor((1, 7, 8), 17, 10)
    with pytest.raises(ValueError, match="labels to train an extractor, got 'two-spirals'"):
        train_extractor(load_data("two-spirals", samples=10, valid_samples=1, test_samples=1))
