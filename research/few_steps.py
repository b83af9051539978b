"""What samples of few evaluations lose against converged ones: today's rules, and samplers that were fitted to the run.

    indm train digits --train.objective fid --train.seconds 150 --train.threads 1 --out runs/digits-fid
    python -m research.few_steps runs/digits-fid       # a row for each fit and each sample, never made again
    python -m research.few_steps --table

Evaluations are all of a sample: a rule in n − 1 steps has one more, the last denoising. All samples of a draw are from
the same z_T. Fréchet distances are to the test images, of a classifier's features; "above" is less that of the
converged samples.
"""

import argparse
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import torch

import indm
from indm.sampling import AdaptiveODE
from indm.workbench.data.base import stack
from indm.workbench.data.registry import load_data
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.provenance import weights_hash
from research.lab.distances import frechet_distance, prior_draws, solve
from research.lab.extractor import load_or_train
from research.records import RECORDS, Records, made_by

EVALUATIONS, RULES = (5, 6, 8, 10), ("unipc", "dpm++2m", "dpm++3m")
TOLERANCE = 1e-3  # of the converged samples: a hundredth of a grey level


def fit_record(run: Path, steps: int) -> dict:
    """A sampler with the defaults of ``indm fit-sampler``, what it loses on held-out latents, and its CPU seconds."""
    model, started = indm.INDM.load(run), time.process_time()
    fit = indm.fit_sampler(model, steps, generator=torch.Generator().manual_seed(0))
    seconds = round(time.process_time() - started, 1)
    return asdict(fit) | {"cpu_seconds": seconds, "weights_sha256": weights_hash(run)} | made_by(0)


def keep_draw(run: Path, seed: int, images: int, fits: Records, samples: Records) -> None:
    """A row for each sampler, from the z_T of one seed, which no fit has seen."""
    model, data = indm.INDM.load(run), load_data(**recipes.load(run)["data"])
    extractor = load_or_train(run / "extractor", data, progress=False)
    test, grey = extractor.features(stack(data.test, images)), model.scaling.scale.item()
    z_T = prior_draws(model, images, seed)
    converged, nfe = solve(model, z_T, AdaptiveODE(TOLERANCE))

    def frechet(x: torch.Tensor) -> float:
        return frechet_distance(extractor.features(model.scaling.to_data(x).cpu()), test)

    reached = frechet(converged)
    about = {"images": images, "converged": reached, "converged_evaluations": nfe, "weights_sha256": weights_hash(run)}
    for evaluations in EVALUATIONS:
        (fitted,) = fits.at(evaluations=evaluations).rows()
        samplers = {rule: (rule, evaluations - 1) for rule in RULES}
        samplers |= {"fitted": (indm.FittedSampler(**fitted["sampler"]), None)}
        for name, (sampler, steps) in samplers.items():
            x, count = solve(model, z_T, sampler, steps)
            if count != evaluations:
                raise ValueError(f"{name} made {count} evaluations where {evaluations} are compared")
            rms = ((x - converged) * grey).double().square().mean().sqrt().item()
            row = {"above": frechet(x) - reached, "rms_grey_levels": rms} | about | made_by(seed)
            samples.at(evaluations=evaluations, sampler=name, seed=seed).add(row)


def table(fits: Records, samples: Records) -> str:
    """Means over draws; "best rule" is the one of the least mean Fréchet distance at that number."""
    lines = [
        "| model | evaluations | UniPC: Fréchet above converged, RMS in grey levels | best rule of today | fitted "
        "| CPU s of the fit |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted({row["run"] for row in samples.rows()}):
        for evaluations in EVALUATIONS:
            means: dict[str, list[float]] = {}
            for sampler in (*RULES, "fitted"):
                rows = samples.at(run=name, evaluations=evaluations, sampler=sampler).rows()
                means[sampler] = [statistics.mean(row[key] for row in rows) for key in ("above", "rms_grey_levels")]
            best = min(RULES, key=lambda rule: means[rule][0])
            shown = {rule: f"{above:+.2f}, {rms:.2f}" for rule, (above, rms) in means.items()}
            (fit,) = fits.at(run=name, evaluations=evaluations).rows()
            numbers = f"{shown['unipc']} | {best}: {shown[best]} | {shown['fitted']} | {fit['cpu_seconds']:.0f}"
            lines.append(f"| {name} | {evaluations} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders; rows are named after each")
    parser.add_argument("--draws", type=int, default=2, help="draws of z_T")
    parser.add_argument("--images", type=int, default=360, help="samples of each; test images, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the tables")
    parser.add_argument("--table", action="store_true")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    fits, samples = (Records(o.records / f"few_steps{kind}.csv") for kind in ("-fits", ""))
    for run in o.runs:
        of_run = fits.at(run=run.name)
        for steps in EVALUATIONS:
            of_run.at(evaluations=steps).kept(lambda run=run, steps=steps: fit_record(run, steps))
        for seed in range(o.draws):
            last = samples.at(run=run.name, evaluations=EVALUATIONS[-1], sampler="fitted", seed=seed)
            if not last.rows():
                keep_draw(run, seed, o.images, of_run, samples.at(run=run.name))
            print(run.name, seed, flush=True)
    if o.table:
        print(table(fits, samples))


if __name__ == "__main__":
    main()
