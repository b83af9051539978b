"""Data sets of other projects, read or made into files, and recipes of such data."""

from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"


def recipe_file(name: str) -> str:
    """The recipe of that name in this folder, else ``name`` itself: a recipe that comes with indm."""
    file = RECIPES / f"{name}.toml"
    return str(file) if file.is_file() else name
