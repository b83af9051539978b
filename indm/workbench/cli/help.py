"""``indm help``, ``indm parts`` and ``indm recipes``, and what ``indm`` alone shows."""

import textwrap
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

import indm
from indm import names
from indm.checks import check_name
from indm.messages import nearest, one_line
from indm.workbench.cli import commands, listing
from indm.workbench.cli.common import DONE, Common
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import default
from indm.workbench.recipes.recipe import OPTION_TABLES

TITLE = "Diffusion models whose diffusion is learned: train one, look at it, sample, translate images."
MORE = """To begin:      indm recipes     indm train digits     indm sample runs/digits
To know more:  indm COMMAND --help     indm help train.flow     indm help exit-status"""
EXIT_STATUS = """0    all is done
1    some examples failed, which standard error names; the others are done
2    a mistake of yours, which standard error explains
3    an error in this program; the same command with --debug shows where it came from
130  interrupted: training ends when its step is saved, other commands end soon; a second Ctrl-C ends at once
141  the reader of the output has closed it, as in "indm recipes | head"

No file is overwritten without --overwrite."""
ALONE = {"exit-status": EXIT_STATUS, "version": f"indm {indm.__version__}"}  # topics that are no tables
NOTE = """Times are the recipes' budgets; --train.seconds and --train.steps change them. Memory is that of the whole
process on two cores; that on a GPU is not measured. "indm train RECIPE --dry-run" measures a step on this machine."""


@dataclass
class Help(Common):
    """Explain a command, a table of a recipe, one key, or the exit statuses.

    "indm help train" is "indm train --help". "indm help train.train" lists the keys of [train], "indm help train.flow"
    those of all flows, "indm help flow coupling" those of one, with its description; "indm help train.warmup" is one
    key. "indm help exit-status" says what the exit statuses mean. "indm --version" is "indm help version".
    """

    topics: Annotated[Positional[tuple[str, ...]], arg(metavar="[TOPIC [NAME]]", help_behavior_hint="")] = ()
    """A command, a table, a table and one of its parts, exit-status, or version."""

    def named(self) -> list[str]:
        return list(self.topics[1:])

    def run(self) -> int:
        if len(self.topics) == 1 and self.topics[0] in commands.COMMANDS:
            commands.parse([self.topics[0], "--help"])  # which exits
        print(explained(*self.topics))
        return DONE


@dataclass
class Parts(Common):
    """List flows, SDEs, networks, data, samplers and objectives, or the options of one.

    "indm parts" lists all of them, "indm parts flow coupling" shows the options of one with their defaults. It also
    takes code of yours: "indm parts flow my_flow:Scale".
    """

    kind: Annotated[Positional[str | None], arg(metavar="KIND"), default("all")] = None
    """flow, sde, net, data, sampler or objective."""
    name: Annotated[Positional[str | None], arg(metavar="NAME"), default("all")] = None
    """One of that kind."""

    def named(self) -> list[str]:
        return [self.name or ""]

    def run(self) -> int:
        if self.kind is not None:
            check_name(self.kind, listing.KINDS, "kind of parts", self.kind)
        if self.kind is not None and self.name is not None:
            print(listing.description(self.kind, self.name))
            return DONE
        width = max(map(len, listing.KINDS)) + 2
        for kind in listing.KINDS if self.kind is None else [self.kind]:
            known, margin = ", ".join(names.BUILT_IN[kind]), " " * width
            print(textwrap.fill(known, listing.WIDEST, initial_indent=kind.ljust(width), subsequent_indent=margin))
        return DONE


@dataclass
class Recipes(Common):
    """List the recipes that come with indm, by what you have."""

    def run(self) -> int:
        bundled, unknown = recipes.bundled(), "by budget"  # time and memory of what depends on the user's data
        print(row("", "two cores", "GPU", ""))
        for group, command in recipes.GROUPS.items():
            print(f"{group[0].upper()}{group[1:]}: {command}")
            for name, about in bundled.items():
                if about.group == group:
                    print(row(name, about.two_cores or unknown, about.gpu or unknown, about.description))
            print()
        print(NOTE)
        return DONE


def row(name: str, two_cores: str, gpu: str, description: str) -> str:
    return f"  {name:19}{two_cores:20}{gpu:12}{description}".rstrip()


def overview() -> str:
    """All commands on one screen."""
    lines = ["usage: indm COMMAND …", TITLE, ""]
    for title, group in commands.GROUPS.items():
        lines += [title, *(f"  {name:14}{about(name)}" for name in group)]
    return "\n".join([*lines, "", MORE])


def about(name: str) -> str:
    """What the command does, in one line."""
    return str(commands.find(name).__doc__).splitlines()[0]


def explained(topic: str = "", *words: str) -> str:
    """What there is to say about a topic that is no command.

    Raises:
        ValueError: no such topic; names the nearest.
    """
    if not topic:
        return overview()
    if topic in ALONE and not words:
        return ALONE[topic]
    table, key = (topic, None) if topic in ALONE else table_of(topic)
    if len(words) > 1 or (words and table in (*ALONE, *OPTION_TABLES)):
        raise ValueError(f"indm help takes no {one_line(words[-1])} after {one_line(' '.join((topic, *words[:-1])))}")
    if words:
        return listing.description(table, words[0]) if key is None else listing.of_part(table, words[0], key)
    if table in OPTION_TABLES:
        more = commands.find(table).tables if table in commands.COMMANDS else ()  # what may have been meant
        check_key(table, key, [*(known.name for known in listing.keys_of_options(table)), *more])
        return listing.of_options(table, key)
    built_in = {name: names.find(listing.kind_of(table), name) for name in names.BUILT_IN[listing.kind_of(table)]}
    having = {name: [known.name for known in listing.keys_of_part(table, part)] for name, part in built_in.items()}
    check_key(table, key, sorted({known for keys in having.values() for known in keys}))
    return "\n\n".join(listing.of_part(table, name, key) for name in built_in if key is None or key in having[name])


def check_key(table: str, key: str | None, known: list[str]) -> None:
    if key is not None:
        check_name(key, known, f"key of [{table}]", f"{table}.{key}")


def table_of(topic: str) -> tuple[str, str | None]:
    """The table and the key that "flow", "train.flow", "flow.width" or "train.flow.width" means."""
    first, *others = topic.removeprefix("--").replace("-", "_").split(".")
    command = first.replace("_", "-")
    if others and command in commands.COMMANDS and others[0] in (first, *commands.find(command).tables):
        first, *others = others
    if first not in listing.TABLES or len(others) > 1:
        known = dict.fromkeys([*ALONE, *commands.COMMANDS, *listing.TABLES])
        raise ValueError(f"indm help has nothing on {one_line(topic)}{nearest(topic, known)}")
    return first, others[0] if others else None
