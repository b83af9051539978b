"""Mixtures of rows and conditions: densities against scipy's, and the choice of components."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from indm.tables.mixture import Mixture, best_mixture


def test_the_law_of_rows_at_c_is_the_joint_one_over_that_of_c():
    numbers = np.random.default_rng(0)
    root = numbers.normal(size=(3, 4, 4))
    law = Mixture(
        np.array([0.2, 0.5, 0.3]),
        numbers.normal(size=(3, 4)),
        root @ root.swapaxes(1, 2) + np.eye(4),
        3,
    )
    rows = numbers.normal(size=(6, 4))

    def density(columns):
        laws = zip(
            law.weight, law.mean[:, columns], law.covariance[:, columns, columns], strict=True
        )
        return sum(
            w * multivariate_normal(mean, matrix).pdf(rows[:, columns]) for w, mean, matrix in laws
        )

    expected = np.log(density(slice(None)) / density(slice(3, None)))
    np.testing.assert_allclose(law.log_prob(rows[:, :3], rows[:, 3:]), expected, rtol=1e-10)


def test_without_conditions_it_is_a_mixture_of_rows():
    rows = np.random.default_rng(0).normal(size=(400, 2)) + np.repeat([[0.0], [9.0]], 200, 0)
    fitted = Mixture.fitted(rows, np.zeros((400, 0)), 2, 1e-3, 0)
    # and the one of all rows
    assert np.sort(fitted.mean[:, 0]) == pytest.approx([0, 4.5, 9], abs=0.3)
    assert fitted.log_prob(rows, np.zeros((400, 0))).mean() == pytest.approx(
        -np.log(2 * 2 * np.pi * np.e), abs=0.1
    )


def test_components_are_chosen_by_the_density_at_c():
    """Of x = ±1 by the sign of c, two components know all; the law of c alone wants more and does
    not count.
    """
    numbers = np.random.default_rng(0)
    c = numbers.choice([-3.0, -1.0, 1.0, 3.0], (1_200, 1)) + 0.05 * numbers.normal(size=(1_200, 1))
    z = np.sign(c) + 0.3 * numbers.normal(size=(1_200, 1))
    parts = (z[:1000], c[:1000]), (z[1000:], c[1000:])
    found = best_mixture(*parts, 8, 0, np.inf)
    entropy = 0.5 * np.log(2 * np.pi * np.e * 0.09)
    assert found.log_prob(*parts[1]).mean() == pytest.approx(-entropy, abs=0.15)
    assert (
        len(best_mixture(*parts, 1, 0, np.inf).weight)
        == len(best_mixture(*parts, 8, 0, -np.inf).weight)
        == 1
    )
