"""What every data set of the table of parts must do, where its files can be had or made."""

import numpy as np
import pytest
import torch
from contract_parts import OPTIONS
from PIL import Image

from indm.names import BUILT_IN
from indm.workbench.data.base import SPLITS, Data, load_data, stack
from indm.workbench.data.examples import loader

FILES = {
    "fashion-mnist",
    "cifar10",
    "celeba",
}  # of no use here without their files: see tests/workbench/data/test_data.py


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with vectors and with images."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    np.save(folder / "vectors.npy", 3 + 2 * random.standard_normal((80, 3)).astype(np.float32))
    (folder / "images").mkdir()
    for i in range(20):
        Image.fromarray(random.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(
            folder / "images" / f"{i}.png"
        )
    return folder


@pytest.fixture(params=[name for name in BUILT_IN["data"] if name not in FILES])
def load(request, files, monkeypatch):
    """Loads the data set anew, with more options."""
    monkeypatch.chdir(files)
    return lambda **more: load_data(request.param, **OPTIONS["data"].get(request.param, {}) | more)


def rows(examples):
    return {tuple(row.flatten().tolist()) for row in stack(examples)}


def test_three_splits_of_one_shape_without_a_common_example(load):
    data = load()
    assert isinstance(data, Data) and data.name
    for part in SPLITS:
        examples = getattr(data, part)
        assert len(examples) > 0 and examples[0].shape == data.shape == stack(examples).shape[1:]
        assert torch.equal(stack(examples)[len(examples) - 1], examples[len(examples) - 1])
        if data.labels:
            assert len(data.labels[part]) == len(examples)
    first, second, third = (rows(getattr(data, part)) for part in SPLITS)
    common = len(first & second) + len(first & third) + len(second & third)
    assert common <= 0.001 * len(first), "but for examples that are in the pool twice"


def test_model_units_are_of_order_one_and_lead_back(load):
    data = load()
    raw, scaling = stack(data.train), data.scaling
    x = scaling.to_model(raw, generator=torch.Generator().manual_seed(0))
    assert x.dtype == torch.float32 and 0.2 < x.square().mean().sqrt() < 5
    if scaling.levels:
        assert (
            not raw.is_floating_point() and int(raw.min()) >= 0 and int(raw.max()) < scaling.levels
        )
        assert torch.equal(scaling.to_data(x).long(), raw.long())
    else:
        torch.testing.assert_close(scaling.to_data(x), raw, rtol=1e-5, atol=1e-5)


def test_loaded_again_it_is_the_same_and_another_seed_is_another_draw(load):
    one, same, other = load(), load(), load(seed=1)
    assert one.fingerprint == same.fingerprint and one.notes == same.notes
    for part in SPLITS:
        assert torch.equal(stack(getattr(one, part)), stack(getattr(same, part)))
        assert rows(getattr(one, part)) != rows(getattr(other, part))


def test_batches_hold_each_example_once(load):
    data = load()
    batches = list(loader(data.train, 7, shuffle=True))
    assert all(len(batch) == 7 for batch in batches[:-1])
    seen = torch.cat(batches).flatten(1)
    assert sorted(map(tuple, seen.tolist())) == sorted(
        map(tuple, stack(data.train).flatten(1).tolist())
    )
