"""A command of research/: its options by tyro, a mistake as one line on standard error."""

import sys
import traceback
from typing import Any

import tyro

import indm
from indm.checks import one_line
from indm.workbench.cli.common import MISTAKE


def main(kind: Any, arguments: list[str] | None = None) -> int:
    """Run the command ``python -m`` ``kind.module``, a dataclass of ``Computes``; its status."""
    name = kind.module
    try:
        config = (tyro.conf.FlagCreatePairsOff,)
        command = tyro.cli(kind, prog=f"python -m {name}", args=arguments, config=config)
        with indm.trust(*command.trusted()), command.computing():
            return command.run()
    except (ValueError, OSError, RuntimeError) as error:
        if "--debug" in (sys.argv if arguments is None else arguments):
            traceback.print_exc()
        print(f"{name}: error: {one_line(error)}", file=sys.stderr)
        return MISTAKE
