"""A flow of a table's latents: the density is that of the flow and the diffusion behind it, and both learn."""

import math

import numpy as np
import pytest
import torch

from indm.tables import estimator
from research.tables.flow_worth import behind


@pytest.mark.parametrize("variant", ["spline", "coupling"])
def test_density_integrates_to_one_and_the_flow_learns(variant):
    X = np.random.default_rng(0).gamma(4.0, size=(200, 2))
    before = estimator.Training, estimator.latent_log_prob
    with behind(variant, 1e-2) as model:
        model.set_params(n_models=1, max_steps=100, max_seconds=1e6, max_components=1, random_state=0).fit(X)
        flow = model.models_[0].flow
        z, log_det = flow(torch.ones(1, 2).double())
        axis = np.linspace(-2, 18, 40)
        grid = np.stack(np.meshgrid(axis, axis), 2).reshape(-1, 2)
        mass = np.exp(model.score_samples(grid)).sum() * (axis[1] - axis[0]) ** 2
    assert (z - 1).abs().max() > 1e-3 and log_det.abs() > 1e-3
    assert math.isclose(mass, 1.0, abs_tol=0.02)
    assert (estimator.Training, estimator.latent_log_prob) == before


def test_without_powers():
    X = np.random.default_rng(0).gamma(2.0, size=(200, 1))
    powers = []
    for variant in ("none", "powers"):
        with behind(variant, 0.0) as model:
            powers.append(model.set_params(max_steps=0, n_models=1).fit(X).columns_.power[0])
    assert powers[0] == 1.0 and powers[1] < 0.9
