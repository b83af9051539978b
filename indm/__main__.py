"""``python -m indm`` is the ``indm`` command."""

import sys

from indm.cli import main

sys.exit(main())
