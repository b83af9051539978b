"""Keeps the tests repeatable and on one thread, as those of the package are."""

from repeatable import pytest_runtest_setup, quick_costs  # noqa: F401
