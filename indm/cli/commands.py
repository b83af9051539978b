"""The commands of ``indm`` by what one wants. A command is a class, imported when it is asked for."""

import functools
import importlib
import warnings
from collections.abc import Mapping
from typing import Any

from indm.cli.common import Common
from indm.config.parts import check_is_here
from indm.messages import nearest, one_line

GROUPS: Mapping[str, Mapping[str, str]] = {
    "Train": {
        "train": "indm.cli.train:Train",
        "train-pair": "indm.cli.train:TrainPair",
        "train-bridge": "indm.cli.train:TrainBridge",
        "recipes": "indm.cli.recipes:Recipes",
    },
    "Look at a run": {
        "sample": "indm.cli.sample:Sample",
        "fit-sampler": "indm.cli.sample:FitSampler",
        "evaluate": "indm.cli.evaluate:Evaluate",
        "classify": "indm.cli.classify:Classify",
        "fid": "indm.cli.sample:Fid",
        "compare": "indm.cli.report:Compare",
        "report": "indm.cli.report:Report",
        "app": "indm.cli.app:App",
    },
    "Translate": {
        "translate": "indm.cli.translate:Translate",
        "strip": "indm.cli.translate:Strip",
    },
    "More": {
        "parts": "indm.cli.parts:Parts",
        "convert": "indm.cli.convert:Convert",
        "push": "indm.cli.push:Push",
        "help": "indm.cli.help:Help",
    },
}
COMMANDS = {name: place for group in GROUPS.values() for name, place in group.items()}


def find(name: str) -> type[Common]:
    """The command of that name.

    Raises:
        ValueError: there is none; names the nearest.
    """
    check_is_here(name)
    if name not in COMMANDS:
        raise ValueError(f"{one_line(name)} is no command of indm{nearest(name, COMMANDS)}")
    module, _, kind = COMMANDS[name].partition(":")
    return getattr(importlib.import_module(module), kind)


def about(name: str) -> str:
    """What the command does, in one line."""
    return str(find(name).__doc__).splitlines()[0]


@functools.cache
def flags(name: str) -> tuple[str, ...]:
    """The options of the command that are not in a table, as they are typed."""
    import tyro

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser: Any = tyro.extras.get_parser(find(name), config=(tyro.conf.FlagCreatePairsOff,))
    return tuple(flag for action in parser._actions for flag in action.option_strings if len(flag) > 2)
