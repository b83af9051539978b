"""Other people's networks: files are checked, points have the law that their density is compared with."""

import math

import pytest
import torch
from torch import nn

from research import strangers


def test_a_file_of_other_bytes_is_refused(tmp_path):
    (tmp_path / "mnist.gz").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"mnist.gz must have a SHA-256 that begins with 8d422c7b0a1c1c79, got"):
        strangers.read(tmp_path, "mnist.gz")


def test_absent_files_are_skipped(tmp_path, capsys):
    strangers.study(strangers.Records(tmp_path / "made.csv"), tmp_path, "moons, cfm")
    assert "moons, cfm is skipped" in capsys.readouterr().out


def test_scipy_carries_a_known_density():
    """The velocity x takes N(0, I) to N(0, e² I)."""

    class Grows(nn.Module):
        def forward(self, x, t):
            return x

    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Normal(0.0, math.e).log_prob(x.double()).sum(1)
    torch.testing.assert_close(strangers.by_scipy(Grows(), x), expected, rtol=0, atol=1e-4)


def test_the_entropy_of_the_moons_bounds_that_of_a_histogram():
    x, bins = strangers.moons(400_000).double(), 0.04
    counts = torch.unique((x / bins).floor(), dim=0, return_counts=True)[1] / len(x)
    entropy = -(counts * counts.log()).sum() + 2 * math.log(bins)
    assert strangers.ENTROPY - 0.05 < entropy < strangers.ENTROPY + 0.1
