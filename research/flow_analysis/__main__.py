"""python -m research.flow_analysis RUN LINEAR_RUN"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from indm.checks import check_options
from indm.files import atomic
from indm.workbench.cli.common import DONE, Computes
from indm.workbench.runs.folder import check_absent, data_of, open_run
from indm.workbench.runs.provenance import provenance, weights_hash
from research.command import main
from research.flow_analysis.analysis import analyse
from research.flow_analysis.plots import save_flow_figure


@dataclass
class FlowAnalysis(Computes):
    """Look at what the flow of a run does: flow.png, flow.json.

    Shows the singular values of its Jacobian, where it acts (colour, low and high frequencies, position), and up to
    which t a classifier tells the class from x_t. Add a linear run (--flow identity) to compare with. A flow that sees
    c is shown at the c of the data.
    """

    module: ClassVar[str] = "research.flow_analysis"

    run_folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN RUN…", help_behavior_hint="(required)")]
    """One or more run folders, all of the same data."""
    examples: int = 2000
    """Examples of each split, at most."""
    seed: int = 0
    """Seed of dequantization and noise."""
    out: Path = Path(".")
    """Where to write flow.png and flow.json."""
    overwrite: bool = False
    """Overwrite existing files."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        if not self.run_folders:
            raise ValueError("run folders must be at least one, got none")
        check_options(self)
        check_absent(self.out, ["flow.json", "flow.png"], self.overwrite)
        analyses = {}
        for folder in self.run_folders:
            model, _ = open_run(folder)
            options = {"examples": self.examples, "seed": self.seed, "progress": not self.quiet}
            analyses[str(folder)] = analyse(model, data_of(folder, model), **options)
        self.out.mkdir(parents=True, exist_ok=True)
        made_by = provenance(self.seed, {str(folder): weights_hash(folder) for folder in self.run_folders})
        atomic.json_object(self.out / "flow.json", {"provenance": made_by, "runs": analyses})
        save_flow_figure(analyses, self.out / "flow.png")
        for name, result in analyses.items():
            print(name, ", ".join(f"{key} {value:.3f}" for key, value in result["action"].items()))
        print(self.out / "flow.png")
        return DONE


if __name__ == "__main__":
    sys.exit(main(FlowAnalysis))
