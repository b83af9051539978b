"""Scores of a classification."""

import math

import pytest
import torch

from indm.evaluation.classification import Classification
from research.conditional import scores


def test_scores_of_a_classification_by_hand():
    log_posterior = torch.tensor([[0.95, 0.05], [0.85, 0.15], [0.35, 0.65], [0.05, 0.95]]).double().log()
    found = Classification(log_posterior, torch.zeros(4, 2), log_posterior, 1)
    labels = torch.tensor([0, 1, 1, 1])
    numbers = scores(found, labels)
    assert numbers["accuracy"] == 0.75
    assert numbers["nats"] == pytest.approx(-(math.log(0.95) * 2 + math.log(0.15) + math.log(0.65)) / 4)
    assert numbers["calibration_error"] == pytest.approx((2 * 0.05 + 0.85 + 0.35) / 4)
