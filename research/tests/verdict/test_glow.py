"""The table of random rotations, from rows whose differences are known, and one small training."""

import numpy as np
import pytest
import torch

from research.records import Records
from research.verdict import glow, images


def row(bits):
    nats = (bits + 0.1 * np.sin(np.arange(50))) * glow.UNIT
    return {"curve": [bits + 0.2, bits + 0.1], "bits": bits, "nelbo_nats": nats.tolist()}


def test_differences_are_in_pairs_and_called_by_the_rule(tmp_path):
    table = Records(tmp_path / "glow.csv")
    seed_of = {1: 0.0, 2: 0.3, 3: -0.2}  # the seed moves all variants alike
    for name, shift in zip(glow.VARIANTS, (0.0, 0.01, 0.5, 0.25, 0.125, 0.0), strict=True):
        for seed, moved in seed_of.items():
            sign = (-1) ** seed if shift == 0.01 else 1
            table.at(variant=name, seed=seed).add(row(4.0 + moved + sign * shift))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in glow.markdown(table).splitlines()[2:]]
    linear, identity, learned, fixed, squares, colours = (line[5:] for line in lines)
    assert lines[0][:4] == ["linear", "3", "4.233", "4.133"] and linear == ["", ""]
    assert "**" not in identity[0] and identity[1] == ""
    assert learned[0] == "**+0.5000 ± 0.0000**" and learned[1].startswith("**+0.5033 ± 0.0067")
    assert fixed[0] == "**+0.2500 ± 0.0000**" and fixed[1].startswith("**+0.2533")
    assert squares == ["**+0.1250 ± 0.0000**"] * 2 and "**" not in colours[0]


def test_a_training_writes_its_row_once(tmp_path, monkeypatch):
    raw = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    few = images.Images(raw, raw[:8], raw[:8], {})
    monkeypatch.setattr(glow, "load", lambda name, root: few)
    monkeypatch.setattr(glow, "TABLE", Records(tmp_path / "glow.csv"))
    monkeypatch.setattr(glow, "STEPS", 2)
    job = ("coupling, fixed rotations", 1)
    assert job in [*glow.jobs()] and len([*glow.jobs()]) == 18
    glow.run(job, None)
    (found,) = glow.TABLE.rows()
    assert len(found["curve"]) == 2 and len(found["nelbo_nats"]) == 8
    assert found["bits"] == pytest.approx(np.mean(found["nelbo_nats"]) / (3 * 8 * 8 * np.log(2)), abs=1e-4)
    assert job not in [*glow.jobs()]
