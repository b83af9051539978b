"""``indm translate``: files of A become files of B."""
