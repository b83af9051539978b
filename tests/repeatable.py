"""Makes all tests repeatable, those of research/ too: one thread, one random state, quick
measurements of costs.
"""

import os

import pytest
import torch

# else each training would measure its own
os.environ["OMP_NUM_THREADS"] = os.environ.get("INDM_TEST_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_runtest_setup(item):
    """Every test starts from the same global random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def quick_costs():
    """What a step costs is measured in a moment, and badly: no test depends on it."""
    from indm.workbench.training import costs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "TIMED_ROUNDS", 2)
        patch.setattr(costs, "TURN", 0.0)
        yield
