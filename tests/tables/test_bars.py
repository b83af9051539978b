"""Bars of calls that last: they move by rows, and nothing is shown where nothing lasts."""

import functools

import numpy as np
import pytest
import tqdm.auto

from indm import DensityEstimator, JointDensityEstimator, PosteriorEstimator
from indm.tables import solve

FAST = {"max_steps": 0, "max_components": 2, "random_state": 0}


@functools.cache
def fitted(kind, **options):
    numbers = np.random.default_rng(0)
    X = numbers.normal(size=(120, 2))
    if kind is PosteriorEstimator:
        return kind(n_models=1, **FAST, **options).fit(X, X + numbers.normal(size=X.shape))
    return kind(**FAST, **options).fit(X)


def gaps():
    X = np.random.default_rng(1).normal(size=(100, 2))
    X[:, 1] = np.nan
    return X


ROWS = np.random.default_rng(1).normal(size=(100, 2))
CALLS = {
    "score_samples": (DensityEstimator, lambda model: model.score_samples(ROWS), "log p", 100),
    "score": (DensityEstimator, lambda model: model.score(ROWS), "log p", 100),
    "sample": (DensityEstimator, lambda model: model.sample(100), "draws", 100),
    "joint.score_samples": (
        JointDensityEstimator,
        lambda model: model.score_samples(gaps(), given=[]),
        "log p",
        100,
    ),
    "log_prob_cells": (
        JointDensityEstimator,
        lambda model: model.log_prob_cells(ROWS),
        "log p",
        200,
    ),
    "joint.sample": (JointDensityEstimator, lambda model: model.sample(100), "draws", 100),
    "impute": (JointDensityEstimator, lambda model: model.impute(gaps(), n=3), "draws", 300),
    "conditional": (
        JointDensityEstimator,
        lambda model: model.conditional({0: 1.0}).sample(100),
        "draws",
        100,
    ),
    "range": (
        JointDensityEstimator,
        lambda model: model.conditional({0: (1, 2)}).sample(100, random_state=0),
        "draws in the ranges",
        100,
    ),
    "log_prob": (PosteriorEstimator, lambda model: model.log_prob(ROWS, [0.0, 0.0]), "log p", 100),
    "posterior.sample": (
        PosteriorEstimator,
        lambda model: model.sample(100, [0.0, 0.0]),
        "draws",
        100,
    ),
    "mode": (PosteriorEstimator, lambda model: model.mode([0.0, 0.0]), "ascent to the mode", 20),
    "calibration": (
        PosteriorEstimator,
        lambda model: model.calibration(ROWS[:20], ROWS[:20], 10),
        "draws",
        200,
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.long
def test_a_call_that_lasts_shows_a_bar_and_others_show_nothing(call, monkeypatch, capsys):
    kind, use, text, total = CALLS[call]
    model = fitted(kind)
    capsys.readouterr()
    monkeypatch.setattr(solve, "DELAY", 60.0)  # no call lasts, however slow the machine is
    use(model)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(solve, "DELAY", 1e-9)  # every call lasts
    monkeypatch.setattr(solve, "tqdm", functools.partial(tqdm.auto.tqdm, mininterval=0))
    monkeypatch.setattr(solve, "ROWS_AT_ONCE", 40)
    use(model)
    shown = capsys.readouterr().err
    assert f"{text}: " in shown and f"/{total} [" in shown
    if text == "log p":
        assert f"10/{total} [" in shown and f"{total}/{total} [" in shown
    use(fitted(kind, progress=False))
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:the network found nothing")
@pytest.mark.long
def test_rows_in_batches_have_the_integral_of_all_at_once(monkeypatch):
    numbers = np.random.default_rng(0)
    X = np.stack(
        [numbers.poisson(4, 300), numbers.normal(size=300), numbers.poisson(2, 300)], 1
    ).astype(float)
    model = DensityEstimator(
        discrete=(0, 2), max_steps=30, n_models=1, max_components=2, random_state=0
    ).fit(X)
    joint_model = JointDensityEstimator(
        discrete=(0, 2), max_steps=30, max_components=2, random_state=0
    ).fit(X)
    whole = [found.score_samples(X[:15]) for found in (model, joint_model)]
    monkeypatch.setattr(solve, "ROWS_AT_ONCE", 60)
    for before, found in zip(whole, (model, joint_model), strict=True):
        np.testing.assert_allclose(found.score_samples(X[:15]), before, atol=1e-4)
