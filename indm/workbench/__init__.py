"""The workbench around the method: recipes, run folders, commands, and the app."""
