"""Whether the error that a likelihood states covers its true one: trained models of every kind.

    python bench/solver_error.py runs/digits runs/ddpmpp runs/ncsnpp-ve …      # and prints the
    table of all python bench/solver_error.py

The true error is the difference from a solve in ``--converged`` steps with the same noise and
probes: its root mean square over images, beside the mean of the stated errors and the share of
images within them, by default options and in fixed steps. A run has rows in
``bench/records/solver_error.csv``, which are not made again.
"""

import argparse
import csv
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import indm
from indm.dequantization import from_data
from indm.likelihood import LikelihoodReport, latent_reference
from indm.workbench.data.base import load_data, stack
from indm.workbench.recipes import recipe as recipes

SOLVES: dict[str, dict[str, Any]] = {"default": {}, "24 steps": {"steps": 24}}
RECORDS = Path(__file__).parent / "records"
Row = dict[str, Any]


def rows_of(run: Path, images: int, converged: int) -> list[Row]:
    """True and stated errors of ``images`` validation examples under a run, bits/dim: a row for
    each of the solves.
    """
    model, recipe = indm.INDM.load(run), recipes.load(run)
    data = load_data(**recipe["data"])
    law = latent_reference(model, stack(data.train, 2000))
    x, log_q = from_data(
        model, stack(data.valid, images), generator=torch.Generator().manual_seed(0)
    )

    def solved(**options) -> LikelihoodReport:
        generator = torch.Generator().manual_seed(1)
        return indm.nll(model, x, log_q=log_q, reference=law, generator=generator, **options)

    bits, rows = math.prod(x.shape[1:]) * math.log(2), []
    exact = solved(steps=converged).total.double()
    for name, options in SOLVES.items():
        started = time.process_time()
        report = solved(**options)
        seconds = time.process_time() - started
        error, stated = (report.total.double() - exact) / bits, report.solver_error / bits
        covered = f"{int((error.abs() <= stated).sum())} of {len(error)}"
        row = {
            "solve": name,
            "evaluations": report.nfe,
            "error": f"{error.square().mean().sqrt():.5f}",
        }
        rows.append(
            row
            | {
                "stated": f"{stated.mean():.5f}",
                "covered": covered,
                "cpu_seconds": round(seconds, 1),
            }
        )
    about = {"model": described(run.name, recipe, ("net", "sde", "flow"), x.shape[1:])}
    return [about | row | {"converged": converged, "torch": torch.__version__} for row in rows]


def described(name: str, recipe: dict, parts: Sequence[str], shape: Sequence[int]) -> str:
    """A run as tables name it."""
    words = [
        recipe[part]["name"].upper() if part == "sde" else recipe[part]["name"] for part in parts
    ]
    return f"{name} ({', '.join([*words, '×'.join(map(str, shape))])})"


def markdown(rows: list[Row], columns: dict[str, str]) -> str:
    lines = [
        [*columns.values()],
        ["---"] * len(columns),
        *([row[name] for name in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


COLUMNS = {
    "model": "model",
    "solve": "solve",
    "evaluations": "evaluations",
    "error": "true error (RMS), bits/dim",
    "stated": "stated, mean",
    "covered": "covered",
}


def command(
    about: str,
    rows_of: Callable[[Path, int, int], list[Row]],
    columns: dict[str, str],
    *,
    images: int,
    converged: int,
    table: str,
) -> None:
    """Rows for each run of the command line that has none yet, and the table of all; numbers are
    defaults.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="run folders; rows are named after each"
    )
    parser.add_argument("--images", type=int, default=images)
    parser.add_argument(
        "--converged", type=int, default=converged, help="steps of the converged solution"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RECORDS / table, help="the table, a CSV file")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    rows = read(o.out)
    for run in o.runs:
        if not any(row["model"].startswith(f"{run.name} (") for row in rows):
            rows = sorted(
                [*rows, *rows_of(run, o.images, o.converged)], key=lambda row: row["model"]
            )
            write(o.out, rows)
    print(markdown(rows, columns))


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(
            file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    command(__doc__ or "", rows_of, COLUMNS, images=32, converged=1536, table="solver_error.csv")
