"""Start-up cost of the command line and the package, beside ``import torch``:
``python bench/imports.py``.

Each starts a Python of its own, in turns. The goal is at most 1.3 times ``import torch``.
"""

import statistics
import subprocess
import sys
import time

PROGRAMS = {
    "import torch": "import torch",
    "import indm": "import indm",
    "import indm; indm.INDM": "import indm; indm.INDM",
    "indm --help": "import sys, indm_command; sys.argv = ['indm', '--help']; indm_command.program()",
    "indm list": "import sys, indm_command; sys.argv = ['indm', 'list']; indm_command.program()",
}
ROUNDS = 5


def seconds(program: str) -> float:
    """Wall time of a Python that runs ``program``."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for turn in range(ROUNDS + 1):
        for name, program in PROGRAMS.items():
            taken = seconds(program)
            if turn > 0:  # the first turn reads the files from the disk
                times[name].append(taken)
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, times["import torch"], strict=True)]
        print(
            f"{name:24} {statistics.median(own):6.2f} s   {statistics.median(ratios):5.2f} × import torch"
        )


if __name__ == "__main__":
    main()
