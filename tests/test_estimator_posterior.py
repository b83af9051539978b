"""Posteriors p(θ|x) from simulated pairs, where they have a closed form: a small benchmark."""

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier

from indm import DensityEstimator

SIMULATIONS, DRAWS = 1_500, 300


class LinearGaussian:
    """θ ~ N(0, I), x ~ N(A θ, I/4): the posterior is a normal law."""

    A = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -0.5], [0.3, 0.0, 0.7]])
    x = np.array([0.4, -0.3, 0.8])

    def pairs(self, n, numbers):
        theta = numbers.normal(size=(n, 3))
        return theta, theta @ self.A.T + 0.5 * numbers.normal(size=(n, 3))

    def law(self):
        covariance = np.linalg.inv(np.eye(3) + 4 * self.A.T @ self.A)
        return multivariate_normal(4 * covariance @ self.A.T @ self.x, covariance)

    def posterior(self, n, numbers):
        return self.law().rvs(n, random_state=numbers)

    def log_posterior(self, theta):
        return self.law().logpdf(theta)


class TwoMoons:
    """x = p + y(θ), p on a half circle, y a rotation of θ except for a sign; at this x the prior cuts neither moon."""

    x = np.zeros(2)

    def crescent(self, n, numbers):
        angle, r = numbers.uniform(-math.pi / 2, math.pi / 2, n), numbers.normal(0.1, 0.01, n)
        return np.stack([0.25 + r * np.cos(angle), r * np.sin(angle)], 1)

    def shift(self, theta):
        return np.stack([-np.abs(theta.sum(1)), theta[:, 1] - theta[:, 0]], 1) / math.sqrt(2)

    def pairs(self, n, numbers):
        theta = numbers.uniform(-1, 1, (n, 2))
        return theta, self.crescent(n, numbers) + self.shift(theta)

    def posterior(self, n, numbers):
        y = self.x - self.crescent(n, numbers)
        total = numbers.choice([-1, 1], n) * y[:, 0]
        return np.stack([total - y[:, 1], total + y[:, 1]], 1) / math.sqrt(2)

    def log_posterior(self, theta):
        p = self.x - self.shift(theta) - [0.25, 0]
        r = np.linalg.norm(p, axis=1)
        return norm.logpdf(r, 0.1, 0.01) - np.log(math.pi * r) - math.log(2)


def told_apart(first, second):
    """The share of right answers of a classifier that tells two sets of rows apart; 1/2 is best."""
    rows, labels = np.concatenate([first, second]), np.repeat([0, 1], [len(first), len(second)])
    classifier = MLPClassifier((20, 20), learning_rate_init=0.01, max_iter=100, random_state=0)
    order = np.random.default_rng(0).permutation(len(rows))
    return cross_val_score(classifier, ((rows - first.mean(0)) / first.std(0))[order], labels[order], cv=3).mean()


CASES = [(LinearGaussian(), 50, 0.6, 0.1), (TwoMoons(), 250, 0.7, 1.0)]


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer", "ignore:the network found nothing")  # nor does it matter
@pytest.mark.parametrize("simulator, steps, share, nats", CASES, ids=["linear-gaussian", "two-moons"])
def test_draws_and_densities_are_those_of_the_true_posterior(simulator, steps, share, nats):
    """Draws are hardly told apart from true ones, and E log p(θ|x)/q(θ|x) over true ones is small."""
    numbers = np.random.default_rng(0)
    theta, x = simulator.pairs(SIMULATIONS, numbers)
    found = DensityEstimator(n_models=1, max_steps=steps, random_state=0).fit(theta, c=x)
    truth = simulator.posterior(DRAWS, numbers)
    assert told_apart(truth, found.sample(DRAWS, random_state=0, c=simulator.x)) < share
    log_q = found.score_samples(truth, c=simulator.x)
    assert -0.05 < (simulator.log_posterior(truth) - log_q).mean() < nats
