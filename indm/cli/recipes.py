"""``indm recipes``."""

from dataclasses import dataclass

from indm.cli.common import DONE, Common
from indm.config import recipes


@dataclass
class Recipes(Common):
    """List the recipes that come with indm."""

    def run(self) -> int:
        for name, description in recipes.bundled().items():
            print(f"{name:18} {description}")
        return DONE
