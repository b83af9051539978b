"""``python -m indm`` is the ``indm`` command."""

import sys

from indm_command import program

sys.exit(program())
