"""Probability flows where it does not matter how exact they are."""

from indm.ode import converge
from indm.sampling import deterministic


def solve_roughly(patch):
    """To an error of 0.01 in place of the tolerance that was asked for."""
    patch.setattr(
        deterministic,
        "converge",
        lambda *given, tol, **options: converge(*given, tol=1e-2, **options),
    )
