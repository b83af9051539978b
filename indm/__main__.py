"""``python -m indm`` is the ``indm`` command."""

import sys

from indm.cli.main import program

sys.exit(program())
