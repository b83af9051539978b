"""``indm report`` and ``compare``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from indm.cli.common import DONE, ShowsProgress
from indm.config.options import Equal, ReportOptions


@dataclass
class Compare(ShowsProgress):
    """Compare evaluated runs: a table, paired differences from the first, a picture.

    Runs whose recipes differ in the seed alone are one method. Methods are compared in pairs of equal seeds; a verdict
    needs two seeds or more of each, and Holm's adjusted p over all differences shown to be at most 5 %. Methods whose
    budgets differ by more than 10 % are not comparable and get none. A budget is steps times what a step costs, as
    measured side by side: when a run was trained with --like the other, else now.
    """

    run_folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN RUN…", help_behavior_hint="(required)")]
    """Two or more run folders, each of them evaluated on the same examples."""
    out: Path = Path(".")
    """Where to write comparison.png and comparison.json."""
    overwrite: bool = False
    """Overwrite an existing comparison."""
    equal: Equal = "cost"
    """Budgets that must be equal: cost is steps times their cost, steps is steps whatever they cost."""

    def run(self) -> int:
        from indm.evaluation.compare import compare
        from indm.runs.folder import check_absent

        check_absent(self.out, ["comparison.json", "comparison.png"], self.overwrite)
        print(compare(list(self.run_folders), self.out, equal=self.equal, progress=self.progress))
        print(f"{self.out / 'comparison.png'}")
        return DONE


@dataclass
class Report(ShowsProgress):
    """Set runs of one data set side by side on one page, index.html.

    Learning curves, likelihoods, sample quality over steps for each sampler, samples, paths x_t, interpolation. The
    page is one file: charts show the values at the pointer, sliders go along x_t, tables are sorted and copied. Its
    pictures as PNG and report.json lie beside it.
    Runs that differ in the seed alone are averaged. Models of p(x|c) are shown at the c of the data, those of classes
    class by class, too. Measurements are kept in the run folders, so that a report that was stopped continues.
    """

    run_folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN RUN…", help_behavior_hint="(required)")]
    """One or more run folders of one data set; those without an evaluation are evaluated first."""
    out: Path = Path("report")
    """Where to write."""
    options: Annotated[ReportOptions, arg(name="")] = field(default_factory=ReportOptions)
    overwrite: bool = False
    """Overwrite another report; the same report continues without this."""
    equal: Equal = "cost"
    """Budgets that must be equal, as in "indm compare": cost or steps."""

    def run(self) -> int:
        from indm.evaluation.report import report

        folders, progress = list(self.run_folders), self.progress
        print(report(folders, self.out, self.options, equal=self.equal, overwrite=self.overwrite, progress=progress))
        return DONE
