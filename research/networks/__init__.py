"""Networks that were tried and are not part of the package."""
