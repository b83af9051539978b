"""Networks of studies that are not part of the package."""
