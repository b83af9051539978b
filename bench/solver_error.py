"""Whether the error that a likelihood states covers its true one: trained models of every kind.

    python bench/solver_error.py runs/digits runs/ddpmpp runs/ncsnpp-ve …      # a record each, never made again
    python bench/solver_error.py --table

The true error is the difference from a solve in ``--converged`` steps with the same noise and probes. Records keep the
true and the stated error of every image, in bits/dim, by default options and in fixed steps.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from worth_cells import kept

import indm
from indm.config import recipes
from indm.data.base import stack
from indm.data.registry import load_data
from indm.dequantization import from_data
from indm.likelihood import LikelihoodReport, latent_reference

SOLVES: dict[str, dict[str, Any]] = {"default": {}, "24 steps": {"steps": 24}}
OUT = Path(__file__).parent / "records" / "solver-error"


def record_of(run: Path, images: int, converged: int) -> dict:
    """True and stated errors of ``images`` validation examples under a run."""
    model, recipe = indm.INDM.load(run), recipes.load(run)
    data = load_data(**recipe["data"])
    law = latent_reference(model, stack(data.train, 2000))
    x, log_q = from_data(model, stack(data.valid, images), generator=torch.Generator().manual_seed(0))

    def solved(**options) -> LikelihoodReport:
        generator = torch.Generator().manual_seed(1)
        return indm.log_likelihood(model, x, log_q=log_q, reference=law, generator=generator, **options)

    bits, rows = math.prod(x.shape[1:]) * math.log(2), {}
    exact = solved(steps=converged).log_prob.double()
    for name, options in SOLVES.items():
        started = time.process_time()
        report = solved(**options)
        seconds = time.process_time() - started
        off = (report.log_prob.double() - exact) / bits
        rows[name] = {
            "error": [round(value, 7) for value in off.tolist()],
            "stated": [round(value, 7) for value in (report.solver_error / bits).tolist()],
            "evaluations": report.nfe,
            "cpu_seconds": round(seconds, 1),
        }
    parts = {"net": recipe["net"]["name"], "sde": recipe["sde"]["name"], "flow": recipe["flow"]["name"]}
    return parts | {"shape": list(x.shape[1:]), "converged": converged, "torch": torch.__version__} | rows


def table(out: Path) -> str:
    """All records: errors are root mean squares over images, covered is the share of images within the stated error."""
    lines = [
        "| model | solve | evaluations | true error (RMS), bits/dim | stated, mean | covered |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted(out.glob("*.json")):
        record = json.loads(path.read_text())
        shape = "×".join(map(str, record["shape"]))
        name = f"{path.stem} ({record['net']}, {record['sde'].upper()}, {record['flow']}, {shape})"
        for solve in SOLVES:
            row = record[solve]
            error, stated = np.array(row["error"]), np.array(row["stated"])
            covered = f"{(np.abs(error) <= stated).sum()} of {len(error)}"
            numbers = f"{np.sqrt((error**2).mean()):.5f} | {stated.mean():.5f} | {covered}"
            lines.append(f"| {name} | {solve} | {row['evaluations']} | {numbers} |")
            name = ""
    return "\n".join(lines)


def command(
    about: str,
    record_of: Callable[[Path, int, int], dict],
    table: Callable[[Path], str],
    *,
    images: int,
    converged: int,
    out: Path,
) -> None:
    """A record for each run of the command line that has none yet, and the table of all; the rest are defaults."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders; a record is named after each")
    parser.add_argument("--images", type=int, default=images)
    parser.add_argument("--converged", type=int, default=converged, help="steps of the converged solution")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--table", action="store_true")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    for run in o.runs:
        path = o.out / f"{run.name}.json"
        kept(path, lambda run=run: record_of(run, o.images, o.converged))
        print(path, flush=True)
    if o.table:
        print(table(o.out))


if __name__ == "__main__":
    command(__doc__ or "", record_of, table, images=32, converged=1536, out=OUT)
