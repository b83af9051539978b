"""``indm recipes``."""

from dataclasses import dataclass

from indm.cli.common import DONE, Common
from indm.config import recipes

UNKNOWN = "by budget"  # time and memory of what depends on the user's data
NOTE = """Times are the recipes' budgets; --train.seconds and --train.steps change them. Memory is that of the whole
process on two cores; that on a GPU is not measured. "indm train RECIPE --dry-run" measures a step on this machine."""


@dataclass
class Recipes(Common):
    """List the recipes that come with indm, by what you have."""

    def run(self) -> int:
        bundled = recipes.bundled()
        print(row("", "two cores", "GPU", ""))
        for group, command in recipes.GROUPS.items():
            print(f"{group[0].upper()}{group[1:]}: {command}")
            for name, about in bundled.items():
                if about.group == group:
                    print(row(name, about.two_cores or UNKNOWN, about.gpu or UNKNOWN, about.description))
            print()
        print(NOTE)
        return DONE


def row(name: str, two_cores: str, gpu: str, description: str) -> str:
    return f"  {name:19}{two_cores:20}{gpu:12}{description}".rstrip()
