"""``indm classify``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from indm.cli.common import DONE, Computes
from indm.config.options import Classifying, default


@dataclass
class Classify(Computes):
    """Say which class images are of, by the likelihoods of a model of p(x|class).

    Prints accuracy, the nats of the labels, and calibration on the test split of the run's data. Writes
    classification.json, classification.npz (log p(x|class), log p(class|x)) and reliability.png. With a SOURCE,
    a folder of images or a samples.npz, whose classes nobody knows, it writes the class of each into
    classification.csv.
    """

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    source: Annotated[Positional[str | None], arg(metavar="SOURCE"), default("the run's test split")] = None
    """What to classify."""
    options: Annotated[Classifying, arg(name="")] = field(default_factory=Classifying, kw_only=True)
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: the run folder)")] = None
    """Where to write."""
    overwrite: bool = False
    """Overwrite an existing classification."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        from indm.evaluation.classified import classify_run

        out = self.out or self.run_folder
        print(
            classify_run(
                self.run_folder, self.options, self.source, out, overwrite=self.overwrite, progress=not self.quiet
            )
        )
        return DONE
