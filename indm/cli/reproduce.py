"""``indm reproduce``."""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from indm.cli.common import DONE, INTERRUPTED, Common


@dataclass
class Reproduce(Common):
    """Reproduce the paper's claims: train INDM and its linear twin at equal seconds, and judge each claim.

    Also the plain flow, a VAE, pre-trained INDM, and both under VE; three seeds each. Writes index.html, claims.md and
    claims.json. It can be killed at any time: the same command goes on. On two cores the whole takes one and a half
    hours, --fast a quarter of an hour.
    """

    data: tuple[Literal["eight-gaussians", "digits", "fashion-mnist-16", "fashion-mnist"], ...] = (
        "eight-gaussians", "digits", "fashion-mnist-16",
    )  # fmt: skip
    """Data sets; fashion-mnist is the one of 28×28."""
    out: Path = Path("runs/reproduce")
    """Where to write."""
    fast: bool = False
    """A tenth of the budget: whether all works, not whether the claims hold."""
    seeds: int = 3
    jobs: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one a core; 1 with a GPU)")] = None
    """Runs side by side."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        from indm.reproduction.plan import Plan
        from indm.reproduction.reproduce import reproduce
        from indm.reproduction.verdicts import summary

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: all units save what they have
        plan = Plan(self.data, self.seeds, self.fast)
        try:
            verdicts = reproduce(self.out, plan, jobs=self.jobs, progress=not self.quiet)
        except KeyboardInterrupt:
            print("Interrupted. What is done is kept, and the same command goes on.", file=sys.stderr)
            return INTERRUPTED
        print(f"{summary(verdicts)}\n{self.out / 'index.html'}")
        return DONE
