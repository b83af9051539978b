"""A run in the browser."""
