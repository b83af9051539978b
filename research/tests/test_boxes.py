"""The laws of the study of boxes, against quadrature."""

import numpy as np
import pytest

from research.posteriors import boxes


def test_the_exact_posterior_of_walls_integrates_to_one():
    theta = np.repeat(np.linspace(-1, 2, 4001)[:, None], 6, 1)
    x = np.tile(np.array([-1.4, -0.9, 0.0, 0.6, 1.9, 2.6]), (4001, 1))
    each = [boxes.exact_of_walls(theta[:, i : i + 1], x[:, i : i + 1]) for i in range(6)]
    assert np.trapezoid(np.exp(each), theta[:, 0], axis=1) == pytest.approx(np.ones(6), abs=1e-4)


@pytest.mark.parametrize("law", boxes.LAWS)
def test_parameters_are_inside_of_their_box(law):
    make, low, high = boxes.LAWS[law]
    theta, x = make(500, np.random.default_rng(0))
    assert len(theta) == len(x) == 500 and low <= theta.min() and theta.max() <= high and np.isfinite(x).all()
    assert (make(5, np.random.default_rng(1))[1] != make(5, np.random.default_rng(2))[1]).all()
