"""Paired differences of test bounds over seeds, tested as one family of a planned size by Holm's
method.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from research.lab.seeds import paired_by_examples
from research.lab.statistics import judged_as_planned

Member = tuple[str, str, str]  # data, variant, baseline
Bits = Float[np.ndarray, "seeds n"]


def family(
    planned: Sequence[Member], bits: Mapping[Member, tuple[Bits, Bits]]
) -> list[dict[str, Any]]:
    """Tests of variant − baseline; Holm's adjustment counts every planned member, also those that
    were not measured.

    Args:
        planned: the members, fixed before the first training.
        bits: the bounds of variant and baseline, bits/dim of the same test images in each row, a
            row for each seed.

    Returns:
        A row for each measured member, in the planned order: ``data``, ``variant``, ``baseline``
        and the numbers of :func:`research.lab.seeds.judged`.

    Raises:
        ValueError: a measured member that was not planned.
    """
    if unplanned := bits.keys() - set(planned):
        raise ValueError(f"bits must be of planned members, got {sorted(unplanned)}")
    made = {member: paired_by_examples(*bits[member]) for member in planned if member in bits}
    verdicts = judged_as_planned([*made.values()], len(planned))
    names = ("data", "variant", "baseline")
    return [
        dict(zip(names, member, strict=True)) | row
        for member, row in zip(made, verdicts, strict=True)
    ]
