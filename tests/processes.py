"""Processes that need not load PyTorch, which takes seconds: they are forked from the one that runs
the tests.
"""

import os
import socket
import traceback
from collections.abc import Callable

from accelerate.state import AcceleratorState


def fork(work: Callable[[], object]) -> int:
    """Do ``work()`` in another process; its id. Its exit status is 0, or 1 after an exception."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def exit_code(pid: int) -> int:
    """The status with which it ends, or minus the signal that ends it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fork_group(processes: int, work: Callable[[], object]) -> None:
    """Do ``work()`` in so many processes that find one another, as those of torchrun do."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}

    def work_as(rank: int) -> None:
        os.environ |= meeting | size | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        AcceleratorState._reset_state(reset_partial_state=True)
        work()

    pids = [fork(lambda rank=rank: work_as(rank)) for rank in range(processes)]
    assert [exit_code(pid) for pid in pids] == [0] * processes
