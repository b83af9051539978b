"""What the main process decides for all."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def by_main_process(find: Callable[[], T]) -> T:
    """What ``find`` gives in the main process, for all; what it raises there, all raise. Collective."""
    said: list = [None, None]
    if PartialState().is_main_process:
        try:
            said = [find(), None]
        except Exception as error:
            said = [None, error]
    broadcast_object_list(said)
    if said[1] is not None:
        raise said[1]
    return said[0]
