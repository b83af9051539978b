"""``python -m indm`` is the ``indm`` command."""

import sys

from indm.cli import program

sys.exit(program())
