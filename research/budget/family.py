"""The differences of test NELBO that the study tests, from the evaluated runs; README.md names them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from indm.evaluation.results import difference
from indm.evaluation.statistics import judged
from research.budget.design import FAMILY, SEEDS


def rows(run: Callable[[str], Path], ended: Callable[[str], bool]) -> list[dict[str, Any]]:
    """A row for each difference, over the seeds of which both trainings have ended; none where there is no seed.

    Args:
        run: the folder of a job.
        ended: whether a job has been measured.
    """
    found = {}
    for study, variant, baseline in FAMILY:
        pairs = [tuple(f"{study}/final/{name}-{seed}" for name in (variant, baseline)) for seed in SEEDS]
        folders = [(run(one), run(other)) for one, other in pairs if ended(one) and ended(other)]
        if folders:
            found[study, variant, baseline] = difference(folders)
    names = [{"study": study, "variant": variant, "baseline": baseline} for study, variant, baseline in found]
    return [name | row for name, row in zip(names, judged(list(found.values())), strict=True)]
