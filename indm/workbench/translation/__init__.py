"""``indm translate`` and ``indm strip``: files of A become files of B."""
