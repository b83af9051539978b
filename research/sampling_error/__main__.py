"""python -m research.sampling_error RUN RUN --out runs/errors"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from indm.files import atomic
from indm.workbench.cli.common import DONE, Computes
from indm.workbench.data.registry import load_data
from indm.workbench.evaluation.extractor import load_or_train
from indm.workbench.evaluation.methods import check_distinct
from indm.workbench.evaluation.page import Page
from indm.workbench.evaluation.plots import colours_of
from indm.workbench.evaluation.records import Setup, by_group, gather
from indm.workbench.evaluation.report import Sections, common_data
from indm.workbench.recipes.options import ReportOptions
from indm.workbench.runs.folder import check_absent
from indm.workbench.runs.provenance import provenance, weights_hash
from research.command import main
from research.measurements import SAMPLING_ERROR
from research.sampling_error.page import add_errors, best_sampler


@dataclass
class SamplingError(Computes):
    """The sampling error of runs of one data set by parts, on one page: index.html, errors.json.

    What few steps lose, by sampler and without noise of the data; the transport along the probability flow beside the
    least; prior, discretization and estimation. Measurements are kept in the run folders, so that what was stopped
    continues.
    """

    module: ClassVar[str] = "research.sampling_error"

    run_folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN RUN…", help_behavior_hint="(required)")]
    """One or more run folders of one data set; those without an evaluation are evaluated first."""
    out: Path = Path("errors")
    """Where to write."""
    options: Annotated[ReportOptions, arg(name="")] = field(default_factory=ReportOptions)
    overwrite: bool = False
    """Overwrite existing files."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        folders, progress = list(self.run_folders), not self.quiet
        check_distinct(folders)
        table = common_data(folders)
        check_absent(self.out, ["index.html", "errors.json", "loss.png"], self.overwrite)
        data = load_data(**table)
        self.out.mkdir(parents=True, exist_ok=True)
        extractor = load_or_train(self.out, data, progress=progress) if data.labels else None
        records = gather(folders, Setup(data, extractor, self.options, progress, SAMPLING_ERROR))
        made_by = provenance(self.options.seed, {str(folder): weights_hash(folder) for folder in folders})
        numbers = {str(record.folder): {"group": record.group} | record.measurements for record in records}
        content = {"options": asdict(self.options), "provenance": made_by, "runs": numbers}
        atomic.json_object(self.out / "errors.json", content)
        page = Page(f"The sampling error of runs of {data.name}")
        page.conclude([best_sampler(records)])
        add_errors(Sections(page, self.out, records, data, extractor, colours_of(by_group(records))))
        page.write(self.out / "index.html")
        print(self.out / "index.html")
        return DONE


if __name__ == "__main__":
    sys.exit(main(SamplingError))
