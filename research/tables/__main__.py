"""Studies of tables: python -m research.tables COMMAND, of which each has --help."""

import sys

from research.tables import fair, gaps, regression

COMMANDS = {
    "fair": fair.main,
    "gaps": gaps.main,
    "regression": regression.main,
}

if sys.argv[1:2] == [] or sys.argv[1] not in COMMANDS:
    sys.exit(f"python -m research.tables needs one of {', '.join(COMMANDS)}")
COMMANDS[sys.argv[1]](sys.argv[2:])
