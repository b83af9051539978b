"""A model trained elsewhere, saved, under the commands."""

import json

import pytest
import torch

import indm
from indm.workbench.cli.main import main


@pytest.mark.filterwarnings("ignore:the network loses at least")
def test_a_saved_model_is_evaluated_and_sampled_without_a_recipe(tmp_path, capsys):
    """Its score is that of N(0, I): v = 0."""
    options = {"factory": "zero", "predicts": "v", "path": "linear", "shape": (1, 8, 8), "eps": 0.1}
    folder = tmp_path / "model"
    indm.from_denoiser(**options, scaling=indm.Scaling.between(-1, 1, 17)).save(folder)
    assert (
        main(
            [
                "evaluate",
                str(folder),
                "--data",
                "digits",
                "--examples",
                "8",
                "--nll-examples",
                "0",
                "--quiet",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "decoded by P(level|z_ε)" in out and "network: the network loses at least" in out
    result = json.loads((folder / "evaluation.json").read_text())
    assert (
        result["data"]["name"] == "digits"
        and result["nelbo"]["with_reconstruction"]["bits_per_dim"] > 0
    )
    assert main(["sample", str(folder), "-n", "3", "--steps", "4", "--quiet"]) == 0
    assert (folder / "samples.png").is_file()
    assert main(["evaluate", str(folder), "--overwrite", "--quiet"]) == 2
    assert "give it again" in capsys.readouterr().err


def test_code_of_others_runs_only_where_it_is_trusted(tmp_path, capsys):
    with indm.trust("torch"):
        model = indm.from_denoiser(
            factory="torch.nn:CosineSimilarity", predicts="noise", path="edm", shape=(2,)
        )
    model.save(tmp_path)
    assert main(["sample", str(tmp_path), "-n", "2", "--quiet"]) == 2
    assert "--trust torch" in capsys.readouterr().err
    with indm.trust("torch"):
        assert isinstance(
            indm.INDM.load(tmp_path).score.backbone.network, torch.nn.CosineSimilarity
        )
