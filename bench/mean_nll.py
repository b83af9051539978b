"""Measure the cost of the mean NLL of many images: by SciPy, by a certified solve of each, by few
fine solves.

    python bench/mean_nll.py RUN … --images 1000    # writes bench/records/mean_nll.csv, one row a
    run

The three take turns in ``--rounds`` rounds. The few solves treat all images, and may add an error
of ``--mean-error`` bits/dim, by default a fifth of the standard error over images. The other two
cost each image the same, so they solve the first ones only, and their seconds are scaled up.
"""

import argparse
import csv
import math
from collections.abc import Callable
from pathlib import Path

import baselines
import torch
from multilevel import draws_of
from timing import ratio, seconds

from indm.evaluation.evaluate import shared
from indm.evaluation.mean_nll import ERROR_SHARE, RepeatableDraws, corrected, first_steps
from indm.ode import rademacher
from indm.tensors import evaluation_mode
from indm.workbench.runs.folder import run_folder

RECORD = Path(__file__).parent / "records" / "mean_nll.csv"


def by_few(draws: RepeatableDraws, mean_error: float | None) -> tuple[float, float, float]:
    """The mean without reconstruction, the error that corrections add, nats, and evaluations an
    image.

    ``mean_error`` is what corrections may add, nats; by default a fifth of the standard error over
    images.
    """
    n, first = len(draws.raw), first_steps(draws.model.score)
    parts = [draws.solve(part, [first]) for part in torch.arange(n).split(draws.batch_size)]
    coarse, stated = (
        torch.cat([nats[0] for nats, _, _ in parts]),
        torch.cat([error for _, error, _ in parts]),
    )
    spent = sum(cost for _, _, cost in parts)
    allowed = ERROR_SHARE * coarse.std().item() / math.sqrt(n) if mean_error is None else mean_error
    solve = shared(draws, draws.model.score, False, False)
    found = corrected(coarse, stated, first, spent / n, allowed, 0, solve)
    mean = coarse.mean().item() + found.correction.value
    return mean, found.correction.added_error, (spent + found.evaluations) / n


def by_scipy(draws: RepeatableDraws, n: int) -> tuple[float, int]:
    """The mean of the first ``n`` images with reconstruction, nats, and evaluations of the field."""
    model = draws.model
    with evaluation_mode(model):
        x = model.scaling.to_model(draws.raw[:n], generator=torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(1)
        noise, probe = torch.randn(x.shape, generator=generator), rademacher(x, 1, generator)[:, 0]
        log_prob, evaluations = baselines.plain_log_prob(model, x, noise=noise, probe=probe)
    return -log_prob.mean().item(), evaluations


def row(
    name: str, images: int, few: int, mean_error: float | None, rounds: int
) -> dict[str, object]:
    """CPU seconds of ``images`` of a run, and the error of the mean that few solves give."""
    draws = draws_of(name, images)
    n, bits = len(draws.raw), math.log(2) * math.prod(draws.raw.shape[1:])
    kept: dict[str, tuple] = {}

    def keep(what: str, found: Callable[[], tuple]) -> Callable[[], None]:
        return lambda: kept.update({what: found()})

    each = torch.arange(few)
    times = seconds(
        {
            "scipy": keep("scipy", lambda: by_scipy(draws, few)),
            "each": keep("each", lambda: draws.solve(each, [None])),
            "few": keep("few", lambda: by_few(draws, mean_error and mean_error * bits)),
        },
        rounds,
    )
    scaled = {
        what: times[what] if what == "few" else times[what].per(few).per(1 / n) for what in times
    }
    return {
        "model": run_folder(Path(name)).name,
        "images": n,
        "may_add": "" if mean_error is None else mean_error,
        "scipy_seconds": f"{scaled['scipy'].median:.0f}",
        "scipy_evaluations": kept["scipy"][1],
        "each_seconds": f"{scaled['each'].median:.0f}",
        "each_evaluations": f"{kept['each'][2] / few:.0f}",
        "few_seconds": f"{scaled['few'].median:.0f}",
        "few_evaluations": f"{kept['few'][2]:.0f}",
        "added_error": f"{kept['few'][1] / bits:.5f}",
        "scipy_over_few": " to ".join(
            f"{r:.1f}" for r in ratio(scaled["scipy"], scaled["few"])[1:]
        ),
        "each_over_few": " to ".join(f"{r:.1f}" for r in ratio(scaled["each"], scaled["few"])[1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="run folders, or models that come with the package")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument(
        "--few", type=int, default=16, help="images that SciPy and certified solves treat"
    )
    parser.add_argument(
        "--mean-error", type=float, help="bits/dim; default: a fifth of the standard error"
    )
    parser.add_argument("--rounds", type=int, default=2)
    o = parser.parse_args()
    kept = list(csv.DictReader(RECORD.open())) if RECORD.exists() else []
    for name in o.runs:
        new = row(name, o.images, o.few, o.mean_error, o.rounds)
        kept = [
            old
            for old in kept
            if (old["model"], old["may_add"]) != (new["model"], str(new["may_add"]))
        ] + [new]
        with RECORD.open("w", newline="") as file:
            writer = csv.DictWriter(file, kept[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
        print(*new.values(), sep=", ", flush=True)


if __name__ == "__main__":
    main()
