"""What the data decide of a recipe's condition."""

from typing import Any

from indm.config.parts import find
from indm.config.recipes import Recipe
from indm.data.base import Data


def with_condition(recipe: Recipe, data: Data) -> Recipe:
    """``recipe`` with the arguments of its ``[condition]`` that the data decide, such as labels of classes.

    Raises:
        ValueError: the data have no condition, or another kind of one.
    """
    table: dict[str, Any] = recipe.get("condition", {})
    of_data = getattr(find("condition", table["name"]), "of_data", None) if table else None
    if of_data is None:
        return recipe
    name = table["name"]
    return recipe | {"condition": {"name": name, **of_data(data.c("train"), data.classes), **table}}
