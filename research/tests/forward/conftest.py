import pytest

import indm


@pytest.fixture(autouse=True)
def trusting():
    with indm.trust("research"):
        yield
