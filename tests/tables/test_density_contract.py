"""What every estimator of tables has: the contract of a conditional density."""

import inspect

import numpy as np
import pytest
from sklearn.base import clone

from indm import DensityEstimator, JointDensityEstimator, PosteriorEstimator
from indm.tables.density import ConditionalDensity, LatentDensity, TableDensity

ROWS = np.random.default_rng(0).normal(size=(40, 2))
OPTIONS = {"max_steps": 0, "max_components": 1, "random_state": 0, "progress": False}
KINDS = {
    "density": (lambda: DensityEstimator(n_models=1, **OPTIONS), (ROWS,)),
    "joint": (lambda: JointDensityEstimator(**OPTIONS), (ROWS,)),
    "posterior": (lambda: PosteriorEstimator(n_models=1, **OPTIONS), (ROWS[:, :1], ROWS[:, 1:])),
    "joint posterior": (
        lambda: PosteriorEstimator(estimator=JointDensityEstimator(**OPTIONS)),
        (ROWS[:, :1], ROWS[:, 1:]),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_estimator_is_a_conditional_density(kind):
    make, data = KINDS[kind]
    estimator = make()
    assert isinstance(estimator, ConditionalDensity)
    fitted = clone(estimator).fit(*data)
    log_p = fitted.score_samples(*data)
    assert log_p.shape == (40,) and fitted.score(*data) == pytest.approx(log_p.mean())
    given = [data[1][0]] if len(data) == 2 else []
    assert fitted.sample(3, *given, random_state=0).shape == (3, data[0].shape[1])
    assert len(fitted.gains_) == 1 and fitted.ended_by_ == "steps"


@pytest.mark.parametrize("kind", [DensityEstimator, JointDensityEstimator])
def test_options_are_those_of_the_constructor(kind):
    names = {*inspect.signature(kind).parameters}
    assert names == {*kind().get_params()} and kind().set_params(width=7).width == 7
    assert {*inspect.signature(TableDensity).parameters} <= names


def test_a_posterior_of_one_model_of_both_has_that_model():
    make, data = KINDS["joint posterior"]
    posterior = make().fit(*data)
    assert type(posterior.estimator_) is JointDensityEstimator
    assert not isinstance(posterior.estimator_, LatentDensity)
    both = np.concatenate(data, 1)
    expected = posterior.estimator_.score_samples(both, given=[1])
    np.testing.assert_allclose(posterior.score_samples(*data), expected)
