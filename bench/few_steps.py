"""What samples of few evaluations lose against converged ones: today's rules, and samplers that were fitted to the run.

    indm train digits --train.objective fid --train.seconds 150 --train.threads 1 --out runs/digits-fid
    python bench/few_steps.py runs/digits-fid       # a record for each fit and each draw of z_T, never made again
    python bench/few_steps.py --table

Evaluations are all of a sample: a rule in n − 1 steps has one more, the last denoising. All samples of a draw are from
the same z_T. Fréchet distances are to the test images, of a classifier's features; "above" is less that of the
converged samples.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import torch
from worth_cells import kept

import indm
from indm.config import recipes
from indm.data.base import stack
from indm.data.registry import load_data
from indm.evaluation.distances import frechet_distance
from indm.evaluation.extractor import load_or_train
from indm.evaluation.sample_quality import prior_draws, solve
from indm.runs.provenance import provenance, weights_hash
from indm.sampling import AdaptiveODE

OUT = Path(__file__).parent / "records" / "few-steps"
EVALUATIONS, RULES = (5, 6, 8, 10), ("unipc", "dpm++2m", "dpm++3m")
TOLERANCE = 1e-3  # of the converged samples: a hundredth of a grey level


def made_by(seed: int, run: Path) -> dict:
    """What made a record, less the command, which names folders of one machine."""
    record = provenance(seed, {run.name: weights_hash(run)})
    return {key: value for key, value in record.items() if key != "command"}


def fit_record(run: Path, steps: int) -> dict:
    """A sampler with the defaults of ``indm fit-sampler``, what it loses on held-out latents, and its CPU seconds."""
    model, started = indm.INDM.load(run), time.process_time()
    fit = indm.fit_sampler(model, steps, generator=torch.Generator().manual_seed(0))
    seconds = round(time.process_time() - started, 1)
    return asdict(fit) | {"cpu_seconds": seconds, "provenance": made_by(0, run)}


def draw_record(run: Path, seed: int, images: int, out: Path) -> dict:
    """All samplers from the z_T of one seed, which no fit has seen."""
    model, data = indm.INDM.load(run), load_data(**recipes.load(run)["data"])
    extractor = load_or_train(run / "extractor", data, progress=False)
    test, grey = extractor.features(stack(data.test, images)), model.scaling.scale.item()
    z_T = prior_draws(model, images, seed)
    converged, nfe = solve(model, z_T, AdaptiveODE(TOLERANCE))

    def frechet(x: torch.Tensor) -> float:
        return frechet_distance(extractor.features(model.scaling.to_data(x).cpu()), test)

    reached, rows = frechet(converged), []
    for evaluations in EVALUATIONS:
        fitted = json.loads((out / f"{run.name}.fit-{evaluations}.json").read_text())["sampler"]
        samplers = {rule: (rule, evaluations - 1) for rule in RULES}
        for name, (sampler, steps) in (samplers | {"fitted": (indm.FittedSampler(**fitted), None)}).items():
            x, count = solve(model, z_T, sampler, steps)
            if count != evaluations:
                raise ValueError(f"{name} made {count} evaluations where {evaluations} are compared")
            rms = ((x - converged) * grey).double().square().mean().sqrt().item()
            row = {"sampler": name, "evaluations": count, "above": frechet(x) - reached, "rms_grey_levels": rms}
            rows.append(row)
    about = {"converged": reached, "converged_evaluations": nfe, "provenance": made_by(seed, run)}
    return {"images": images, **about, "rows": rows}


def table(out: Path) -> str:
    """Means over draws; "best rule" is the one of the least mean Fréchet distance at that number."""
    lines = [
        "| model | evaluations | UniPC: Fréchet above converged, RMS in grey levels | best rule of today | fitted "
        "| CPU s of the fit |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted({path.name.partition(".")[0] for path in out.glob("*.draw-*.json")}):
        draws = [json.loads(path.read_text())["rows"] for path in sorted(out.glob(f"{name}.draw-*.json"))]
        for evaluations in EVALUATIONS:
            means: dict[str, list[float]] = {}
            for rows in zip(*draws, strict=True):
                if rows[0]["evaluations"] == evaluations:
                    keys = ("above", "rms_grey_levels")
                    means[rows[0]["sampler"]] = [statistics.mean(row[key] for row in rows) for key in keys]
            best = min(RULES, key=lambda rule: means[rule][0])
            shown = {rule: f"{above:+.2f}, {rms:.2f}" for rule, (above, rms) in means.items()}
            seconds = json.loads((out / f"{name}.fit-{evaluations}.json").read_text())["cpu_seconds"]
            numbers = f"{shown['unipc']} | {best}: {shown[best]} | {shown['fitted']} | {seconds:.0f}"
            lines.append(f"| {name} | {evaluations} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders; records are named after each")
    parser.add_argument("--draws", type=int, default=2, help="draws of z_T")
    parser.add_argument("--images", type=int, default=360, help="samples of each; test images, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    for run in o.runs:
        for steps in EVALUATIONS:
            kept(o.out / f"{run.name}.fit-{steps}.json", lambda run=run, steps=steps: fit_record(run, steps))
        for seed in range(o.draws):
            path = o.out / f"{run.name}.draw-{seed}.json"
            kept(path, lambda run=run, seed=seed: draw_record(run, seed, o.images, o.out))
            print(path, flush=True)
    if o.table:
        print(table(o.out))


if __name__ == "__main__":
    main()
