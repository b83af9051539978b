"""``indm translate``: files of A as files of B."""
