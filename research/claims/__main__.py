"""The paper's claims, each with a number and a verdict; see README.md.

python -m research.claims --out runs/claims         # all of it; --fast shows in a quarter of an hour that it works
python -m research.claims --help
"""

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import arg

from indm.workbench.cli.common import DONE, INTERRUPTED, Computes
from research import command
from research.claims.plan import Plan
from research.claims.reproduce import reproduce
from research.claims.verdicts import summary


@dataclass
class Claims(Computes):
    """Reproduce the paper's claims, each with a number and a verdict.

    Trains INDM and its linear twin at equal seconds, also the plain flow, a VAE, pre-trained INDM, and both under VE. A
    verdict is that of a paired t over seeds, adjusted by Holm's method over all differences that are judged; plan.json
    lists them before anything is trained. Writes index.html, claims.md and claims.json. It can be killed at any time;
    the same command then continues. On two cores the whole takes hours, --fast a quarter of an hour.
    """

    module: ClassVar[str] = "research.claims"

    plan: Annotated[Plan, arg(name="")] = field(default_factory=Plan)
    out: Path = Path("runs/reproduce")
    """Where to write."""
    jobs: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one a core; 1 with a GPU)")] = None
    """Runs side by side."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: all units save what they have
        try:
            verdicts = reproduce(self.out, self.plan, jobs=self.jobs, progress=not self.quiet)
        except KeyboardInterrupt:
            print("Interrupted. What is done is kept, and the same command continues.", file=sys.stderr)
            return INTERRUPTED
        print(f"{summary(verdicts)}\n{self.out / 'index.html'}")
        return DONE


def main(arguments: list[str] | None = None) -> int:
    """Run the command; a mistake is one line on standard error."""
    return command.main(Claims, arguments)


if __name__ == "__main__":
    sys.exit(main())
