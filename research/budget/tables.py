"""The records of the study as tables in Markdown."""

import math

from research.markdown import in_table, with_error
from research.records import Records, Row


def searches(made: Records) -> str:
    """The trainings at a tenth of the budget: validation NELBO of each setting, the lowest of a variant first."""
    found = sorted(made.at(stage="search").rows(), key=lambda row: (row["study"], row["variant"], row["valid"]))
    rows = [
        (
            row["study"],
            row["variant"],
            row["setting"],
            f"{row['cost']:.2f}",
            row["steps"],
            f"{row['valid']:.3f}",
            f"{row['training_cpu_seconds']:.0f}",
        )
        for row in found
    ]
    return in_table("study", "variant", "setting", "cost", "steps", "validation NELBO", "CPU seconds", rows=rows)


def finals(made: Records) -> str:
    """The whole budget: test likelihoods, and distances of samples, each with its error over the examples."""
    found = sorted(made.at(stage="final").rows(), key=lambda row: (row["study"], row["nelbo"]))
    kept = [row for row in found if row["study"] not in ("models", "pairs")]
    columns = (
        "study",
        "variant",
        "seed",
        "steps",
        "validation",
        "test NELBO",
        "test NLL",
        "Fréchet own",
        "Fréchet general",
    )
    return in_table(*columns, rows=[final(row) for row in kept])


def final(row: Row) -> tuple[object, ...]:
    measured = (("nelbo", ".4f"), ("nll", ".4f"), ("frechet_own", ".1f"), ("frechet_general", ".1f"))
    numbers = [number(row, measure, form) for measure, form in measured]
    return row["study"], row["variant"], row["seed"], row["steps"], f"{row['valid']:.3f}", *numbers


def number(row: Row, measure: str, form: str) -> str:
    """A measure with its error; a dash where the record has none."""
    error = row.get(f"{measure}_error", row.get(f"{measure}_standard_error", math.nan))
    return with_error(row[measure], error, form) if measure in row else "–"


def splines(made: Records) -> str:
    """What the spline does to groups of grey levels."""
    columns = ("study", "grey levels", "share of the pixels", "share of the latent's interval")
    return in_table(
        *columns,
        rows=[(row["study"], row["levels"], f"{row['frequency']:.1%}", f"{row['length']:.1%}") for row in made.rows()],
    )
