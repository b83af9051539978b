"""The ``indm`` command."""
