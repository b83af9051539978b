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
    if not table:
        return recipe
    kind = find("condition", table["name"])
    decided = kind.of_data(data.c("train", kind.is_class), data.classes)
    return recipe | {"condition": {"name": table["name"], **decided, **table}}
