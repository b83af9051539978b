"""The records of the study as tables in Markdown."""

from research.markdown import in_table
from research.records import Records


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


def splines(made: Records) -> str:
    """Each group of grey levels: its share of the pixels, and of the latent's interval."""
    columns = ("study", "grey levels", "share of the pixels", "share of the latent's interval")
    return in_table(
        *columns,
        rows=[(row["study"], row["levels"], f"{row['frequency']:.1%}", f"{row['length']:.1%}") for row in made.rows()],
    )
