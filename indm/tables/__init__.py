"""Tables of numbers: their density, given or not given conditions."""
