"""What every objective of the table of parts must do, on the model that it builds from a small
recipe.
"""

import math
from pathlib import Path

import pytest
import torch
from closed_form import within
from contract_parts import OPTIONS
from flow_tools import perturb

from indm import names
from indm.model import build_model
from indm.names import BUILT_IN
from indm.objective import nelbo, objective_of

SHAPE = (2,)


def made(name):
    """The model that an objective builds, in double precision and away from its start."""
    torch.manual_seed(0)
    objective = objective_of(names.find("objective", name))
    net = {"name": "mlp", "width": 16, "depth": 1} if objective.trains_score else {"name": "zero"}
    recipe = {
        "flow": {"name": "coupling", "depth": 2, "width": 8},
        "sde": {"name": "vp", "beta_max": 3.0},
        "net": net,
    }
    recipe |= OPTIONS["objective"].get(name, {})
    return perturb(build_model(recipe, SHAPE), 0.1).double()


@pytest.fixture(params=BUILT_IN["objective"])
def case(request):
    return objective_of(names.find("objective", request.param)), made(request.param)


def truncations():
    """(name, ε) of every objective without a truncation, and of those that say they take one, with
    two.
    """
    truncating = [
        name
        for name in BUILT_IN["objective"]
        if objective_of(names.find("objective", name)).truncates
    ]
    assert truncating
    return [(name, None) for name in BUILT_IN["objective"]] + [
        (name, eps) for name in truncating for eps in (0.1, 0.9)
    ]


def value(objective, model, x, **step_arguments):
    known = {"eps": None, "progress": 1.0} | step_arguments
    return objective(
        model, x, **{name: given for name, given in known.items() if objective.takes(name)}
    )


def draw(n, seed=1):
    return torch.randn(
        n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def test_gives_a_loss_and_means_that_are_only_to_be_logged(case):
    for dtype, n in ((torch.float64, 16), (torch.float32, 16), (torch.float32, 1)):
        objective, model = case[0], case[1].to(dtype)
        loss, terms = value(objective, model, draw(n).to(dtype))
        assert loss.shape == () and loss.dtype == dtype and bool(loss.isfinite())
        assert {*objective.shown} <= terms.keys()
        for term in terms.values():
            assert term.shape == () and not term.requires_grad and bool(term.isfinite())


def test_trains_what_it_says(case):
    objective, model = case
    value(objective, model, draw(64))[0].backward()
    trained = {"score": objective.trains_score, "flow": objective.trains_flow}
    for name, part in model.trained_parts.items():
        for parameter in part.parameters():
            moved = parameter.grad is not None and bool((parameter.grad != 0).any())
            assert moved == trained.get(name, True), name


def test_trained_parts_are_all_of_the_model_once(case):
    parameters = [p for part in case[1].trained_parts.values() for p in part.parameters()]
    assert len(parameters) == len({*parameters}) and {*parameters} == {*case[1].parameters()}


def test_every_kind_of_part_has_its_contract():
    files = {path.name for path in Path(__file__).parent.glob("test_*.py")}
    others = {"test_measure_contract.py"}  # measures have no names
    assert files == {f"test_{kind}_contract.py" for kind in BUILT_IN} | others


@torch.no_grad()
def test_is_a_mean_over_the_rows(case):
    objective, model = case
    few, many = (value(objective, model, draw(n))[0].item() for n in (1000, 4000))
    assert few == pytest.approx(many, rel=0.2)


@torch.no_grad()
@pytest.mark.parametrize("case, eps", truncations(), indirect=["case"])
def test_the_bound_that_it_logs_is_the_one_that_validation_draws(case, monkeypatch, eps):
    """``nelbo`` is the mean over the batch of the model's bound, whatever weighting the objective
    trains with; at a truncation, that of the SDE truncated there.
    """
    objective, model = case
    x, normal = draw(4000), torch.randn
    # less variance
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: normal(*shape, **options).sign())
    logged = torch.stack([value(objective, model, x, eps=eps)[1]["nelbo"] for _ in range(12)])
    model = model.truncated(eps)
    bound = torch.stack([nelbo(model, x, times=4).total.mean() for _ in range(12)])
    assert (logged - bound).std() / math.sqrt(12) < 0.05, "nats"
    assert within(logged - bound, 0.0, errors=4.5, floor=2e-3)
