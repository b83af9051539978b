"""The differences of test NELBO that the study tests, from the evaluated runs; README.md names them.

Holm's family has the eight members that were planned, however many are trained.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from indm.workbench.evaluation.results import difference
from research.budget.design import FAMILY, SEEDS
from research.lab.statistics import judged_as_planned


def rows(run: Callable[[str], Path]) -> list[dict[str, Any]]:
    """A row for each difference of which some seed has both runs evaluated; it takes all such seeds.

    ``run`` gives the folder of a job.
    """
    found = {}
    for study, variant, baseline in FAMILY:
        pairs = [[run(f"{study}/final/{name}-{seed}") for name in (variant, baseline)] for seed in SEEDS]
        ended = [(one, other) for one, other in pairs if all((f / "evaluation.json").exists() for f in (one, other))]
        if ended:
            found[study, variant, baseline] = difference(ended)
    names = [{"study": study, "variant": variant, "baseline": baseline} for study, variant, baseline in found]
    verdicts = judged_as_planned([*found.values()], len(FAMILY))
    return [name | row for name, row in zip(names, verdicts, strict=True)]
