"""Training: the loop, its state, penalties."""
