"""What every condition of the table of parts must do."""

import pytest
import torch
from contract_parts import constructions

import indm
from indm.model import build

TABLE = constructions("condition")
SHAPE = (1, 8, 8)


def draws(condition, n):
    """``n`` conditions of that kind, as data have them."""
    if condition.is_class:
        return torch.randint(len(condition.labels), (n,))
    return 3 + 2 * torch.randn(n, *condition.event)


@pytest.fixture(params=TABLE)
def case(request):
    table, shape = TABLE[request.param]
    condition = build(table, "condition", shape)
    condition.fit(draws(condition, 200))
    return table, condition


def test_data_decide_its_arguments(case):
    table, condition = case
    decided = type(condition).of_data(draws(condition, 50), getattr(condition, "labels", ()))
    assert decided == {key: table[key] for key in decided} and len(decided) == 1


def test_what_is_seen_has_its_shape_differs_and_is_never_that_of_none(case):
    _, condition = case
    c = draws(condition, 60)
    seen = condition(condition.rows(c, 60))
    assert tuple(seen.shape) == (60, *condition.seen_shape) == tuple(condition.absent(60).shape)
    assert len(seen.unique(dim=0)) == len(c.unique(dim=0))
    assert seen.flatten(1).any(1).all() and not condition.absent(60).any()


def test_one_condition_is_that_of_all(case):
    _, condition = case
    c = draws(condition, 1)
    assert torch.equal(
        condition(condition.rows(c[0], 3)),
        condition(condition.rows(c, 1)).expand(3, *condition.seen_shape),
    )
    with pytest.raises(ValueError, match="the rows of c"):
        condition.rows(draws(condition, 2), 5)


def test_a_saved_model_has_it(case, tmp_path):
    table, condition = case
    net = {"name": "unet", "channels": 4, "multipliers": [1], "blocks": 1, "attention": []}
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": net, "condition": table}
    model = indm.build_model(tables, SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.condition.load_state_dict(condition.state_dict())
    model.eval().save(tmp_path)
    loaded, c = indm.INDM.load(tmp_path), draws(condition, 3)
    assert loaded.description() == model.description()
    z, t = torch.randn(3, *SHAPE), torch.tensor([0.1, 0.5, 0.9])
    with torch.no_grad():
        scores = [m.given(c).score(z, t) for m in (model, loaded)]
        other = model.given(draws(condition, 3)).score(z, t)
    assert torch.equal(*scores) and not torch.equal(scores[0], other)
