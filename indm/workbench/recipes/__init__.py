"""Options, recipes and the names of parts."""
