"""The paper's claims, each with a number and a verdict; see README.md.

python -m research.claims --out runs/claims         # all of it; --fast shows in a quarter of an hour that it works
python -m research.claims --help
"""

import signal
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

import indm
from indm.cli.common import DONE, INTERRUPTED, MISTAKE, Computes
from indm.messages import one_line
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
    try:
        command = tyro.cli(
            Claims, prog="python -m research.claims", args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
        )
        with indm.trust(*command.trusted()), command.computing():
            return command.run()
    except (ValueError, OSError, RuntimeError) as error:
        if "--debug" in (sys.argv if arguments is None else arguments):
            traceback.print_exc()
        print(f"research.claims: error: {one_line(error)}", file=sys.stderr)
        return MISTAKE


if __name__ == "__main__":
    sys.exit(main())
