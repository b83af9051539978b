"""The pages of the record: what stands between their markers is made from ``research/records``.

    make records                 # or python -m research.pages

A marker names a row of :data:`SHOWN` and its arguments, with colons between:
``<!-- table closed:budget -->``. Every page of ``research/`` and ``docs/`` and ``README.md`` may
have some.
"""

import csv
from collections.abc import Callable
from pathlib import Path

from research import doors, pretrained, speed, weights
from research.data import real_tables
from research.markdown import in_table, with_tables
from research.posteriors import sbibm
from research.records import RECORDS, Records
from research.tables import fair, gaps, real, regression
from research.translation import answers
from research.verdict import (
    dial,
    heard,
    instrument,
    joint,
    lattice,
    losses,
    pays,
    recorded,
    silenced,
)

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / "research", ROOT / "docs")
READMES = [ROOT / "README.md", ROOT / "examples" / "README.md"]
PAGES = [*READMES, *(page for folder in FOLDERS for page in sorted(folder.rglob("*.md")))]


def of(name: str, **columns: object) -> Records:
    """A table of the records."""
    return Records(RECORDS / f"{name}.csv").at(**columns)


def as_it_was(path: Path) -> str:
    """A table that no code makes any more: of a closed study, or printed by a command whose runs
    were not kept.
    """
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    return in_table(*head, rows=rows)


SHOWN: dict[str, Callable[..., str]] = {
    "closed": lambda name: as_it_was(RECORDS / "closed" / f"{name}.csv"),
    "answers": lambda data: answers.table(of("translation-answers", data=data)),
    "answers-family": lambda: answers.family_table(of("translation-answers")),
    "doors": doors.shown,
    "doors-seconds": doors.seconds,
    "speed": speed.table,
    "sample_steps": speed.sample_steps,
    "ripples": speed.ripples,
    "solver_error": speed.solver_error,
    "multilevel": speed.multilevel,
    "real_tables": lambda seconds, space: real.summary(of("real_tables"), float(seconds), space),
    "real_tables-data": real.listed,
    "fair-data": lambda: real.listed(tuple(real_tables.UNSEEN)),
    "fair": lambda seconds: fair.summary(of("fair_tables", seconds=float(seconds))),
    "fair-rates": lambda seconds: fair.rates_table(of("fair_tables", seconds=float(seconds))),
    "gaps": lambda measure: gaps.summary(of("gaps", seconds=60.0), of("gaps-published"), measure),
    "regression": lambda seconds: regression.summary(of("regression", seconds=float(seconds))),
    "regression-cells": lambda: regression.cell_table(of("regression", seconds=60.0)),
    "sbibm": lambda key, seconds: sbibm.markdown(
        of("sbibm", simulations=10_000, draws=10_000, seconds=float(seconds)), key
    ),
    "sbibm-parents": lambda: sbibm.parents_table(of("sbibm", simulations=10_000, draws=10_000)),
    "gallery": pretrained.gallery,
    "cell": lambda *arguments: cell(*arguments),
    "verdict-joint": lambda: joint.markdown(of("verdict-joint")),
    "verdict-heard": lambda: heard.markdown(of("verdict-heard")),
    "verdict-heard-differences": lambda: heard.differences(of("verdict-heard")),
    "verdict-joint-deviations": lambda: joint.deviation_table(of("verdict-joint-deviations")),
    "recorded": lambda kind: recorded.markdown(of("recorded"), kind),
    "recorded-clothes": lambda: recorded.of_clothes(of("recorded")),
    "recorded-family": lambda setting, ours: recorded.family(
        of("recorded"), spaces_in(setting), spaces_in(ours)
    ),
    "weights-summary": lambda: weights.summary_table(of("weights").rows()),
    "weights-overstatement": lambda: weights.overstatement_table(of("weights").rows()),
    "weights-coverage": lambda: weights.coverage_table(of("weights").rows()),
    "weights-forward": lambda: weights.forward_table(of("weights").rows()),
    "weights-faults": lambda: weights.fault_table(of("weights-faults").rows()),
    "verdict-lattice": lambda: lattice.kl_table(of("verdict-lattice")),
    "verdict-lattice-shares": lambda: lattice.share_table(of("verdict-lattice-shares")),
    "verdict-silenced-places": lambda: silenced.places_table(of("verdict-silenced-places")),
    "verdict-silenced-rates": lambda: silenced.rates_table(of("verdict-silenced")),
    "verdict-silenced-remedies": lambda: silenced.remedies_table(of("verdict-silenced")),
    "verdict-silenced-restarts": lambda: silenced.restarts_table(of("verdict-silenced")),
    "verdict-silenced-seeds": lambda: silenced.seeds_table(of("verdict-silenced")),
    "instrument": lambda variant: instrument.markdown(of("instrument"), spaces_in(variant)),
    "instrument-each": lambda variant: instrument.each(of("instrument"), spaces_in(variant)),
    "instrument-family": lambda variant: instrument.family(of("instrument"), spaces_in(variant)),
    "instrument-means": lambda variant: instrument.means(of("instrument"), spaces_in(variant)),
    "instrument-recovery": lambda variant: instrument.recovered(
        of("instrument"), spaces_in(variant)
    ),
    "verdict-pays": lambda: pays.markdown(of("verdict-pays")),
    "verdict-pays-family": lambda: pays.family_table(of("verdict-pays")),
    "verdict-pays-behaviour": lambda: pays.behaviour_table(of("verdict-pays")),
    "verdict-losses": lambda: losses.markdown(of("verdict-losses")),
    "verdict-losses-deviations": lambda: losses.deviation_table(of("verdict-losses")),
    "verdict-dial": lambda name: dial.markdown(of("verdict-dial"), name),
    "verdict-dial-tuning": lambda: dial.tuning(of("verdict-dial")),
    "verdict-dial-trials": dial.trials,
    "verdict-dial-costs": lambda: dial.cost_table(of("verdict-dial-costs")),
}


def shown(name: str) -> str:
    kind, *arguments = name.split(":")
    return SHOWN[kind](*arguments)


def cell(*arguments: str) -> str:
    """A cell of a table, for a sentence: the table, the beginning of a row, and the beginning of a
    column's title.

    "_" stands for a space, and "/" is between the cells of a row:
    ``cell:closed:budget-curve:fashion/spline:a_third``.
    """
    *table, row, column = arguments
    rows = (
        line.strip("| ") for line in shown(":".join(table)).splitlines() if line.startswith("|")
    )
    titles, _, *lines = ([part.strip() for part in line.split("|")] for line in rows)
    place = next(i for i, title in enumerate(titles) if spaced(title).startswith(column))
    (found,) = (line[place] for line in lines if "/".join(map(spaced, line)).startswith(row))
    return found.replace("-", "−").strip("*")


def spaced(words: str) -> str:
    return words.replace(" ", "_")


def spaces_in(name: str) -> str:
    return name.replace("_", " ")


def main() -> None:
    for path in PAGES:
        page = path.read_text("utf-8")
        made = with_tables(page, shown)
        if made != page:
            path.write_text(made, "utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
