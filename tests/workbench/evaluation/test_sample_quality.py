"""Distances of samples to data over samplers and steps, with the exact score."""

import json

import pytest
import torch
from closed_form import GaussianScore, gaussian
from exact_models import model_of, normal_data

from indm import INDM
from indm.flows import Identity
from indm.scaling import Scaling
from indm.sde.linear import VPSDE
from indm.workbench.data.base import stack
from indm.workbench.data.registry import load_data
from indm.workbench.evaluation import sample_quality
from indm.workbench.evaluation.extractor import train_extractor
from indm.workbench.evaluation.sample_quality import frechet_distance


def test_distances_are_in_units_of_the_scaling():
    raw = torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8)
    found = sample_quality.distances(raw, raw.flip(0) // 2, Scaling.images(256))
    halves = sample_quality.distances(raw, raw.flip(0) // 2, Scaling(0.0, 256.0))
    assert found["sliced_wasserstein"] == pytest.approx(2 * halves["sliced_wasserstein"], rel=1e-4)
    assert sample_quality.distances(raw, raw, Scaling.images(256))["sliced_wasserstein"] == 0.0
    assert found["frechet"] is None and found["images"] == 60


def test_quality_of_the_exact_score_reaches_the_floor():
    score = gaussian("vp")
    data = normal_data(score, 1200)
    rows = sample_quality.quality(model_of(score), data, steps=(3, 40), images=600, progress=False)
    json.dumps(rows, allow_nan=False)
    assert [row["sampler"] for row in rows[::2]] == ["data", "unipc", "heun", "euler-maruyama"]
    assert [row["nfe"] for row in rows] == [0, 4, 41, 7, 81, 4, 41]
    floor = rows[0]
    assert floor["sets"] == 2 and floor["frechet"] is None
    for row in rows[2::2]:
        assert row["sliced_wasserstein"] < floor["sliced_wasserstein"] + 4 * row["sliced_wasserstein_standard_error"]
    assert rows[5]["sliced_wasserstein"] > 3 * rows[6]["sliced_wasserstein"]


def test_quality_starts_every_number_of_steps_from_the_same_noise():
    """A recorded z_T: the same for all rows, and in batches the same as whole."""
    seen = {}

    class Recording(GaussianScore):
        def forward(self, z, t):
            if bool((t == self.sde.T).all()):
                seen.setdefault(z.shape, []).append(z.clone())
            return super().forward(z, t)

    score = Recording(VPSDE(), torch.zeros(2), torch.ones(2))
    sample_quality.quality(model_of(score), normal_data(score, 300), steps=(5, 10), images=300, progress=False)
    for starts in seen.values():
        assert len(starts) == 6 and all(torch.allclose(starts[0], other) for other in starts)


def test_quality_of_images_has_frechet_distances():
    data = load_data("digits")
    extractor = train_extractor(data, epochs=1, most=500, progress=False)
    raw = data.scaling.to_model(stack(data.train))
    score = GaussianScore(VPSDE(), raw.mean(0), raw.var(0))
    model = INDM(Identity(), score, data.scaling, data.shape)
    floor, row = sample_quality.quality(
        model, data, extractor, samplers=("unipc",), steps=(20,), images=150, progress=False
    )
    assert floor["sets"] == 5 and row["frechet"] > floor["frechet"] + 4 * floor["frechet_standard_error"]
    samples, _ = sample_quality.solve(model, sample_quality.prior_draws(model, 150, 0), "unipc", 20)
    features = [extractor.features(part) for part in (data.scaling.to_data(samples), stack(data.test, 150))]
    assert row["frechet"] == pytest.approx(frechet_distance(*features), rel=1e-6)
