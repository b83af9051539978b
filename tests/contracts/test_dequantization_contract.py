"""What every noise of the table of parts must do."""

import pytest
import torch
from contract_parts import constructions

import indm
from indm.model import build

TABLE = constructions("dequantization")
SCALING = indm.Scaling.images(17)


def made(table, shape):
    """The noise with learned parameters away from their start."""
    torch.manual_seed(4)
    noise = build(table, "dequantization", shape)
    with torch.no_grad():
        for parameter in noise.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return noise


@pytest.fixture(params=TABLE)
def case(request):
    table, shape = TABLE[request.param]
    return table, made(table, shape), shape


def test_its_density_is_one_of_noise_inside_the_bin(case):
    """u lies in [0, 1], and E[1/q(u)] over its own draws is the volume of the bins, 1."""
    _, noise, shape = case
    raw = torch.randint(0, 17, shape).expand(20_000, *shape)
    with torch.no_grad():
        u, log_q = noise(SCALING.centre(raw), generator=torch.Generator().manual_seed(0))
    assert u.shape == raw.shape and log_q.shape == (20_000,) and u.min() >= 0 and u.max() <= 1
    volume = (-log_q).double().exp()
    assert abs(volume.mean() - 1) < 5 * volume.std() / 20_000**0.5 + 1e-6


def test_the_same_generator_gives_the_same_noise_and_each_row_its_own(case):
    _, noise, shape = case
    centre = SCALING.centre(torch.full((3, *shape), 5))
    with torch.no_grad():
        one, other = (noise(centre, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert noise.decodes or not torch.equal(one[0][0], one[0][1])


def test_a_saved_model_has_it(case, tmp_path):
    table, noise, shape = case
    tables = {
        "flow": {"name": "identity"},
        "sde": {"name": "vp"},
        "net": {"name": "zero"},
        "dequantization": table,
    }
    model = indm.build_model(tables, shape, SCALING)
    model.dequantization.load_state_dict(noise.state_dict())
    model.save(tmp_path)
    raw = torch.randint(0, 17, (4, *shape))
    loaded = indm.INDM.load(tmp_path)
    assert loaded.description() == model.description() and noise.in_words
    with torch.no_grad():
        pairs = [
            m.from_data(raw, generator=torch.Generator().manual_seed(2)) for m in (model, loaded)
        ]
    assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))
    assert torch.equal(model.scaling.to_data(pairs[0][0]), raw.to(torch.uint8)), (
        "noise leaves no value in another level"
    )
    with pytest.raises(ValueError, match="dequantization must be left out for continuous data"):
        indm.build_model(tables, shape)
