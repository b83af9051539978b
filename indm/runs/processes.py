"""Decisions of the main process, shared with all."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def by_main_process(decide: Callable[[], T]) -> T:
    """Call ``decide`` in the main process; all processes return its result, or raise its error. Collective."""
    outcome: list = [None, None]  # the result, and the error
    if PartialState().is_main_process:
        try:
            outcome = [decide(), None]
        except Exception as error:
            outcome = [None, error]
    broadcast_object_list(outcome)
    result, failure = outcome
    if failure is not None:
        raise failure
    return result
