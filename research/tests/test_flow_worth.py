"""A flow of a table's latents: the density includes the flow and the diffusion behind it, and both learn."""

import numpy as np
import pytest
import torch

from indm.tables import estimator
from research.tables.flow_worth import behind


@pytest.mark.parametrize("variant", ["spline", "coupling"])
def test_density_integrates_to_one_and_the_flow_learns(variant):
    numbers = np.random.default_rng(0)
    X = numbers.normal(size=(300, 2)) * 0.3 + np.where(numbers.uniform(size=(300, 2)) < 0.5, -2, 2)
    before = estimator.Training, estimator.latent_log_prob
    options = {"n_models": 1, "max_steps": 150, "max_seconds": 1e6, "max_components": 1, "learning_rate": 1e-2}
    axis = np.linspace(-6, 6, 121)
    grid = np.stack(np.meshgrid(axis, axis), 2).reshape(-1, 2)
    with behind(variant, 3e-2) as model:
        model.set_params(random_state=0, **options).fit(X)
        _, log_det = model.models_[0].flow(torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double())
        mass = np.exp(model.score_samples(grid)).sum() * (axis[1] - axis[0]) ** 2
    assert model.n_steps_[0] > 0 and (log_det[0] - log_det[1]).abs() > 0.02
    assert mass == pytest.approx(1.0, abs=0.01)
    assert (estimator.Training, estimator.latent_log_prob) == before


def test_without_powers():
    X = np.random.default_rng(0).gamma(2.0, size=(200, 1))
    powers = []
    for variant in ("none", "powers"):
        with behind(variant, 0.0) as model:
            powers.append(model.set_params(max_steps=0, n_models=1, random_state=0).fit(X).columns_.power[0])
    assert powers[0] == 1.0 and powers[1] < 0.9
