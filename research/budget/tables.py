"""The records of the study as tables in Markdown."""

import math
import statistics

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
    """The whole budget: costs, test likelihoods, and distances of samples, each with its error over examples."""
    measured = [row for row in of_studies(made.at(stage="final")) if "nelbo" in row]
    found = sorted(measured, key=lambda row: (row["study"], row["nelbo"]))
    columns = ("study", "variant", "seed", "steps", "CPU s", "test NELBO", "test NLL", "Fréchet own", "Fréchet general")
    forms = {"nelbo": ".4f", "nll": ".4f", "frechet_own": ".1f", "frechet_general": ".1f"}
    rows = [
        (
            *(row[name] for name in ("study", "variant", "seed", "steps")),
            f"{row['training_cpu_seconds']:.0f}",
            *(number(row, *form) for form in forms.items()),
        )
        for row in found
    ]
    return in_table(*columns, rows=rows)


def of_studies(made: Records) -> list[Row]:
    """Rows of what is compared: neither models that ship nor pairs."""
    return [row for row in made.rows() if row["study"] not in ("models", "pairs")]


def number(row: Row, measure: str, form: str) -> str:
    """A measure with its error; a dash where the record has none."""
    error = row.get(f"{measure}_error", row.get(f"{measure}_standard_error", math.nan))
    return with_error(row[measure], error, form) if measure in row else "–"


def curve(made: Records) -> str:
    """Validation NELBO at each budget that was trained, and how much less it is than that of *linear*.

    The order is that of the largest budget; variants without it come after the others.
    """
    names = dict.fromkeys((row["study"], row["variant"]) for row in of_studies(made))
    bits = {name: [at_budget(made, *name, stage) for stage in ("search", "third", "final")] for name in names}
    rows = []
    for (study, variant), own in sorted(bits.items(), key=lambda item: (item[0][0], *map(last, reversed(item[1])))):
        linear = bits.get((study, "linear"), [math.nan] * len(own))
        rows.append((study, variant, *(less_than(*pair) for pair in zip(own, linear, strict=True))))
    return in_table("study", "variant", "a tenth", "a third", "the whole", rows=rows)


def last(bits: float) -> float:
    """A number to sort by, at which NaN comes last."""
    return math.inf if math.isnan(bits) else bits


def at_budget(made: Records, study: str, variant: str, stage: str) -> float:
    """Validation NELBO: of the setting that the search chose, or the mean over seeds; NaN before the first."""
    found = [row["valid"] for row in made.at(study=study, variant=variant, stage=stage).rows()]
    return (min(found) if stage == "search" else statistics.fmean(found)) if found else math.nan


def less_than(own: float, linear: float) -> str:
    """A NELBO, and its difference from another in brackets.

    >>> less_than(3.0, 3.25), less_than(3.0, 3.0), less_than(math.nan, 3.0)
    ('3.000 (−0.250)', '3.000', '–')
    """
    if math.isnan(own):
        return "–"
    differs = not math.isnan(linear) and own != linear
    return f"{own:.3f}" + (f" ({own - linear:+.3f})".replace("-", "−") if differs else "")


def spent(made: Records) -> str:
    """The trainings of each study and stage, and the hours of a core that they took."""
    hours: dict[tuple[str, str], list[float]] = {}
    for row in made.rows():
        hours.setdefault((row["study"], row["stage"]), []).append(row["training_cpu_seconds"] / 3600)
    rows = [(*names, len(each), f"{sum(each):.1f}") for names, each in sorted(hours.items())]
    return in_table("study", "stage", "trainings", "hours of a core", rows=rows)


def family(made: Records) -> str:
    """The differences of test NELBO that are tested, with the error over seeds and examples."""
    rows = [
        (
            row["study"],
            f"{row['variant']} − {row['baseline']}",
            row["seeds"],
            with_error(row["difference"], row["standard_error"], "+.4f"),
            f"{row['p_holm']:.3f}" if "p_holm" in row else "–",
            row["verdict"],
        )
        for row in made.rows()
    ]
    return in_table("study", "difference", "seeds", "test NELBO, bits/dim", "Holm's p", "verdict", rows=rows)


def splines(made: Records) -> str:
    """Each group of grey levels: its share of the pixels, and of the latent's interval."""
    columns = ("study", "grey levels", "share of the pixels", "share of the latent's interval")
    return in_table(
        *columns,
        rows=[(row["study"], row["levels"], f"{row['frequency']:.1%}", f"{row['length']:.1%}") for row in made.rows()],
    )
