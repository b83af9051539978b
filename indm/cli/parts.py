"""``indm parts``."""

import textwrap
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from indm.cli import listing
from indm.cli.common import DONE, Common, outside
from indm.config import parts
from indm.config.checks import check_name


@dataclass
class Parts(Common):
    """List flows, SDEs, networks, data, samplers and objectives, or the options of one.

    "indm parts" lists all of them, "indm parts flow coupling" shows the options of one with their defaults. It also
    takes code of yours: "indm parts flow my_flow:Scale".
    """

    kind: Annotated[Positional[str | None], arg(metavar="KIND", help_behavior_hint="(default: all)")] = None
    """flow, sde, net, data, sampler or objective."""
    name: Annotated[Positional[str | None], arg(metavar="NAME", help_behavior_hint="(default: all)")] = None
    """One of that kind."""

    def trusted(self) -> list[str]:
        return super().trusted() + outside([self.name or ""])

    def run(self) -> int:
        if self.kind is not None:
            check_name(self.kind, listing.KINDS, "kind of parts", self.kind)
        if self.kind is not None and self.name is not None:
            print(listing.description(self.kind, self.name))
            return DONE
        for kind in listing.KINDS if self.kind is None else [self.kind]:
            names = ", ".join(parts.BUILT_IN[kind])
            print(textwrap.fill(names, listing.WIDEST, initial_indent=f"{kind:10}", subsequent_indent=" " * 10))
        return DONE
