"""Paired differences of test bounds over seeds, tested as one family of a planned size by Holm's method."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from indm.workbench.evaluation.statistics import Difference, judged, paired_by_examples

UNMADE = Difference(0.0, 2, 1.0)  # p = 1
Member = tuple[str, str, str]  # data, variant, baseline
Bits = Float[np.ndarray, "seeds n"]


def family(planned: Sequence[Member], bits: Mapping[Member, tuple[Bits, Bits]]) -> list[dict[str, Any]]:
    """Tests of variant − baseline; Holm's adjustment counts every planned member, also those that were not measured.

    Args:
        planned: the members, fixed before the first training.
        bits: the bounds of variant and baseline, bits/dim of the same test images in each row, a row for each seed.

    Returns:
        A row for each measured member, in the planned order: ``data``, ``variant``, ``baseline`` and the numbers of
        :func:`indm.workbench.evaluation.statistics.judged`.

    Raises:
        ValueError: a measured member that was not planned.
    """
    if unplanned := bits.keys() - set(planned):
        raise ValueError(f"bits must be of planned members, got {sorted(unplanned)}")
    made = {member: paired_by_examples(*bits[member]) for member in planned if member in bits}
    tested = sum(difference.seeds > 1 for difference in made.values())
    verdicts = judged([*made.values(), *[UNMADE] * (len(planned) - tested)])
    names = ("data", "variant", "baseline")
    return [dict(zip(names, member, strict=True)) | row for member, row in zip(made, verdicts, strict=False)]
