"""``indm parts``."""

import inspect
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from indm.cli.common import DONE, Common, outside
from indm.config import parts
from indm.config.checks import check_name

SHOWN = [kind for kind in parts.BUILT_IN if kind not in ("model", "claim")]


@dataclass
class Parts(Common):
    """List the parts of which recipes are made, and the options of each.

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
            check_name(self.kind, SHOWN, "kind of parts", self.kind)
        if self.kind is None or self.name is None:
            for kind in SHOWN if self.kind is None else [self.kind]:
                print(f"{kind:10}{', '.join(parts.BUILT_IN[kind])}")
            return DONE
        part = parts.find(self.kind, self.name)
        options = {} if self.kind == "objective" else inspect.signature(part).parameters  # an objective has none
        for name, parameter in options.items():
            if parameter.kind is not parameter.POSITIONAL_ONLY and name != "shape":
                default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
                print(f"--{self.kind}.{name}{default}")
        print(f"\n{inspect.getdoc(getattr(part, 'func', part)) or 'No description.'}")
        return DONE
