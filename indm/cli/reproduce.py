"""``indm reproduce``."""

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from indm.cli.common import DONE, INTERRUPTED, Computes, outside
from indm.config.options import ReproductionOptions


@dataclass
class Reproduce(Computes):
    """Reproduce the paper's claims, each with a number and a verdict.

    Trains INDM and its linear twin at equal seconds, also the plain flow, a VAE, pre-trained INDM, and both under VE. A
    verdict is that of a paired t over seeds, adjusted by Holm's method over all differences that are judged; plan.json
    lists them before anything is trained. Writes index.html, claims.md and claims.json. It can be killed at any time;
    the same command then continues. On two cores the whole takes hours, --fast a quarter of an hour.
    """

    options: Annotated[ReproductionOptions, arg(name="")] = field(default_factory=ReproductionOptions)
    out: Path = Path("runs/reproduce")
    """Where to write."""
    jobs: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one a core; 1 with a GPU)")] = None
    """Runs side by side."""
    quiet: bool = False
    """No progress bar."""

    def trusted(self) -> list[str]:
        return super().trusted() + outside(list(self.options.claims))

    def run(self) -> int:
        from indm.reproduction.plan import Plan
        from indm.reproduction.reproduce import reproduce
        from indm.reproduction.verdicts import summary

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: all units save what they have
        plan = Plan(**vars(self.options))
        try:
            verdicts = reproduce(self.out, plan, jobs=self.jobs, progress=not self.quiet)
        except KeyboardInterrupt:
            print("Interrupted. What is done is kept, and the same command continues.", file=sys.stderr)
            return INTERRUPTED
        print(f"{summary(verdicts)}\n{self.out / 'index.html'}")
        return DONE
