"""A fixture of both estimators of tables."""

import pytest

from indm.likelihood import WhitenedFlow


@pytest.fixture
def coarse(monkeypatch):
    """The ODE in eight steps, whatever its error, where no test asks for its value."""
    solve = WhitenedFlow.solve
    monkeypatch.setattr(WhitenedFlow, "solve", lambda *arguments: solve(*arguments[:-1], 8))
    monkeypatch.setattr("indm.tables.solve.SOLVER_ERROR", 1000.0)
    monkeypatch.setattr("indm.tables.fit.VALIDATION_ROWS", 256)
    monkeypatch.setattr("indm.tables.solve.SAMPLING_STEPS", (4,))
