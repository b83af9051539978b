"""Everything with a recipe, a run folder, a command, a page or an app: a customer of the method."""
