"""The final jobs: which there are, and that a model that was saved is measured and not trained again."""

import pytest
import torch

from research.records import Records
from research.verdict import final
from research.verdict.images import Images
from research.verdict.variants import Variant


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two variants, eight images of 8×8 and measures of one number."""
    raw = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(64, dtype=torch.int64)
    images = Images(raw, raw[:40], raw[:40], {split: labels for split in ("train", "valid", "test")})
    monkeypatch.setattr(final, "CHOSEN", {"linear": Variant(channels=8), "spline": Variant(spline=True, channels=8)})
    monkeypatch.setattr(final, "BUDGET", 10)
    monkeypatch.setattr(final, "CURVE", 2)
    monkeypatch.setattr(final, "TABLE", Records(tmp_path / "final.csv"))
    monkeypatch.setattr(final, "load", lambda name, root: images)
    monkeypatch.setattr(final, "costs", lambda data: {"8 channels": 1.0, "spline + 8 channels": 1.25})
    monkeypatch.setattr(final, "measure", lambda model, *parts: ({"dims": 64}, {"nelbo_nats": torch.arange(3.0)}))
    monkeypatch.setattr(final, "bound_of_test", lambda model, *parts: ({"times": 8}, {"nelbo_nats": torch.arange(2.0)}))
    return tmp_path


def test_seeds_are_whole_before_the_next_begins(small):
    jobs = list(final.jobs())
    assert len(jobs) == 5 * 2 * 2 and {job.seed for job in jobs[:4]} == {1}
    assert set(final.FAMILY) == {(data, "indm", other) for data in final.STUDIES for other in ("linear", "spline")}


def test_a_job_writes_its_row_and_is_not_trained_twice(small, monkeypatch):
    job = final.Job("clothes-16", "spline", 1)
    final.run(job, None, small / "models")
    (row,) = job.table.rows()
    assert row["steps"] == 8 and [n for n, _ in row["curve"]] == [2, 4] and row["nelbo_nats"] == [0.0, 1.0, 2.0]
    monkeypatch.setattr(final, "trained", None)
    final.run(job, None, small / "models")
    assert job.table.rows() == [row]


def test_later_seeds_have_the_bound_alone(small):
    job = final.Job("cifar10-16", "linear", max(final.DESCRIBED) + 1)
    final.run(job, None, small / "models")
    (row,) = job.table.rows()
    assert row["bound"] == {"times": 8} and row["nelbo_nats"] == [0.0, 1.0] and "dims" not in row
