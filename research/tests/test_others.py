"""Flows and mixtures of others: bits/dim are of the raw data, validation chooses, and a search goes on."""

import argparse
import itertools
import math

import pytest
import torch

from indm.workbench.data.base import as_data
from research.flow_gain import others
from research.records import Records


@pytest.mark.parametrize("logit", [None, 1e-6, 0.05])
def test_log_determinants_of_the_space_are_those_of_autograd(logit):
    x = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double() * 1.9 - 0.95
    space = others.Space(logit).standardised(x)
    y, log_det = space(x)
    torch.testing.assert_close(torch.stack([y.mean(), y.std()]), torch.tensor([0.0, 1.0]).double())
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda one: space(one[None])[0][0], row) for row in x])
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobians.reshape(5, 4, 4))[1])


@pytest.mark.parametrize(
    "model, setting",
    [
        ("mixture", {"logit": None, "covariance": "full", "components": 4, "floor": 1e-4}),
        ("mixture", {"logit": 0.05, "covariance": "diag", "components": 8, "floor": 1e-3}),
        ("maf", {"logit": 1e-6, "lr": 1e-2, "transforms": 2, "width": 16}),
    ],
)
def test_probabilities_of_all_states_sum_to_nearly_one(model, setting, monkeypatch):
    monkeypatch.setattr(others, "REPEATS", 200)  # draws of the noise: a geometric mean of few can sum to more than one
    law = torch.tensor([[0.3, 0.0, 0.1, 0.1], [0.1, 0.2, 0.1, 0.1]]).flatten()
    states = torch.tensor(list(itertools.product(range(2), range(4))))
    drawn = states[torch.multinomial(law, 3000, replacement=True, generator=torch.Generator().manual_seed(0))]
    data = as_data((drawn[:2500], drawn[2500:], states), levels=4)
    record = others.train(data, model, setting, 0, 0.3, "test", 500)
    bits = torch.tensor(record["test_bits"], dtype=torch.float64)
    total = (-bits * 2 * math.log(2)).exp().sum()
    assert 0.5 < total < 1.01 and record["test"][0] == pytest.approx(bits.mean().item(), abs=1e-4)
    entropy = -(law * law.clamp_min(1e-9).log2()).sum() / 2
    assert entropy - 0.1 < record["valid"] < entropy + 0.5


def test_a_search_goes_by_validation_and_what_has_a_record_is_not_made_again(tmp_path, monkeypatch, capsys):
    best, made = {"logit": 0.05, "lr": 3e-3, "transforms": 3, "width": 256}, []

    def train(data, model, setting, seed, seconds, part, most):
        made.append((part, setting, seed, seconds))
        wrong = sum(setting[key] != value for key, value in best.items())
        return {"valid": None if wrong == 4 else 1.0 + wrong, "setting": setting, "steps": 3, "parameters": 5} | (
            {"test": (2.0 + seed, 0.1), "test_bits": [seed + 1.5, seed + 2.5]} if part == "test" else {}
        )

    monkeypatch.setattr(others, "train", train)
    monkeypatch.setattr(others, "data_of", lambda name, path: None)
    o = argparse.Namespace(seconds=None, seeds=2, path=None, records=tmp_path)
    others.run(o, "digits", "maf")
    assert [part for part, *_ in made] == ["valid"] * 5 + ["test"] * 2, "1 + Σ (values − 1), and the seeds"
    assert [(setting, seed) for _, setting, seed, _ in made[5:]] == [(best, 1), (best, 2)]
    assert {seconds for *_, seconds in made} == {60}
    others.run(argparse.Namespace(**{**vars(o), "seeds": 3}), "digits", "maf")
    assert made[7:] == [("test", best, 3, 60)]
    assert "| digits | masked autoregressive flow | 4.000 ± 0.577 ± 0.500 | 3 |" in others.table(
        others.table_of(o), Records(tmp_path / "final.csv")
    )
