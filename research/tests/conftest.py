"""Keeps the tests repeatable and on one thread, as tests/conftest.py does."""

import os

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # of processes, too
torch.set_num_threads(1)


def pytest_runtest_setup(item):
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def quick_costs():
    """What a step costs is measured in a moment, and badly: no test depends on it."""
    from indm.training import costs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "ROUNDS", 2)
        patch.setattr(costs, "TURN", 0.0)
        yield
