"""What every kind of model in the table of parts must do: what the trainer, validation and files ask of it."""

import copy
from pathlib import Path

import pytest
import torch
from flow_tools import perturb
from test_objective_contract import made

from indm import names
from indm.names import BUILT_IN
from indm.scaling import Scaling
from indm.workbench.training.trainer import bound_of

SHAPE = (2,)


def models():
    """One of each kind, from the objectives that build it."""
    kinds = {}
    for name in BUILT_IN["objective"]:
        model = made(name).float().eval()
        kinds.setdefault(names.name_of("model", type(model)), model)
    return kinds


@pytest.fixture(scope="module")
def built():
    return models()


@pytest.fixture(params=BUILT_IN["model"])
def model(request, built):
    assert built.keys() == BUILT_IN["model"].keys(), "each kind of model is built by an objective"
    return copy.deepcopy(built[request.param])


def test_saved_and_loaded_it_computes_the_same_bits(model, tmp_path):
    model.scaling = Scaling(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.3]))
    model.save(tmp_path)
    again = type(model).load(tmp_path)
    assert not again.training and again.shape == SHAPE
    state, saved = model.state_dict(), again.state_dict()
    assert state.keys() == saved.keys() and all(torch.equal(state[name], saved[name]) for name in state)
    x = torch.randn(6, *SHAPE)
    with torch.no_grad():
        one, other = (bound_of(m, x, 0)(x, torch.Generator().manual_seed(3)) for m in (model, again))
    assert torch.equal(one, other)


def test_trained_parts_are_all_of_it_once(model):
    parameters = [p for part in model.trained_parts.values() for p in part.parameters()]
    assert len(parameters) == len({*map(id, parameters)}) and {*map(id, parameters)} == {*map(id, model.parameters())}


@torch.no_grad()
def test_the_bound_of_validation_is_one_number_a_row(model):
    x = torch.randn(200, *SHAPE)
    draw = bound_of(model, x, 0)
    bound = draw(x, torch.Generator().manual_seed(0))
    assert bound.shape == (200,) and bool(bound.isfinite().all())
    assert torch.equal(draw(x, torch.Generator().manual_seed(0)), bound), "its noise comes from the generator"
    moved = perturb(copy.deepcopy(model), 0.3)
    assert not torch.allclose(bound_of(moved, x, 0)(x, torch.Generator().manual_seed(0)), bound)


def test_every_kind_of_part_has_its_contract():
    files = {path.name for path in Path(__file__).parent.glob("test_*.py")}
    assert files == {f"test_{kind}_contract.py" for kind in BUILT_IN}
