"""The one call of torch-fidelity, and the samples that it reads."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from indm.workbench.cli.main import main
from indm.workbench.evaluation.fid import Pixels
from indm.workbench.runs.samples import read_samples


def test_inception_sees_colours_of_256_levels():
    seen = Pixels(torch.tensor([0, 1, 16]).reshape(3, 1, 1, 1), 17)
    assert [image.tolist() for image in seen] == [[[[v]]] * 3 for v in (0, 16, 255)]
    with pytest.raises(RuntimeError, match="expanded size"):  # torch's own
        Pixels(torch.zeros(3, 2, 1, 1), 17)


def test_samples_of_a_run_and_a_folder_are_scored(tmp_path, monkeypatch):
    """By torch-fidelity, with the features of its smallest network that needs no download."""
    import torch_fidelity
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Means(torch_fidelity.FeatureExtractorBase):
        def __init__(self, name, features_list, **options):
            super().__init__(name, features_list)

        def forward(self, raw):
            return (raw.double().mean((2, 3)),)

        @staticmethod
        def get_provided_features_list():
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "features"

    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "means", Means)
    whole = torch_fidelity.calculate_metrics
    monkeypatch.setattr(
        torch_fidelity,
        "calculate_metrics",
        lambda **options: whole(**options | {"isc": False, "feature_extractor": "means"}),
    )
    raw = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), np.uint8)
    for folder, images in (
        ("files", raw),
        ("brighter", np.minimum(raw.astype(int) + 40, 255).astype(np.uint8)),
    ):
        (tmp_path / folder / "deep").mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image.transpose(1, 2, 0)).save(
                tmp_path / folder / "deep" / f"{i:02}.png"
            )
    (tmp_path / "run").mkdir()
    np.savez(tmp_path / "run" / "samples.npz", samples=raw, levels=np.array(256))
    found = {}
    for samples, reference in (("run", "files"), ("files", "brighter")):
        command = ["fid", str(tmp_path / samples), str(tmp_path / reference), "--quiet"]
        assert main(command) == 0 and main(command) == 2, "fid.json is not overwritten"
        found[samples] = json.loads((tmp_path / samples / "fid.json").read_text())["scores"]
    assert found["run"]["frechet_inception_distance"] == pytest.approx(0, abs=1e-6)
    assert found["run"]["precision"] == found["run"]["recall"] == 1
    assert found["files"]["frechet_inception_distance"] > 100


SAMPLES = np.zeros((30, 1, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"provenance": "{"}, "Expecting property name"),
        ({"levels": [17, 17]}, ""),
    ],
)
def test_samples_that_are_not_what_they_should_be(changes, complaint, tmp_path):
    made_by = '{"weights_sha256": "a", "seed": 3}'
    content = {"samples": SAMPLES, "levels": 17, "provenance": made_by} | changes
    content["provenance"] = np.frombuffer(content["provenance"].encode(), np.uint8)
    np.savez(tmp_path / "samples.npz", **content)
    with pytest.raises(ValueError, match=rf"samples\.npz cannot be read as samples: .*{complaint}"):
        read_samples(tmp_path / "samples.npz")
    content = {
        "samples": SAMPLES,
        "levels": 17,
        "provenance": np.frombuffer(made_by.encode(), np.uint8),
    }
    np.savez(tmp_path / "samples.npz", **content)
    assert read_samples(tmp_path / "samples.npz")[2] == json.loads(made_by)
