"""INDM against its linear twin: same network, same data, at equal seconds and at equal steps, paired over seeds.

    python bench/twins.py digits --seconds 100 --out runs/twins-digits

For every seed it trains the recipe's INDM (``--flows indm``), or residual flows under both norm constraints, and the
linear diffusion for the same seconds, then the linear diffusion again for as many steps as INDM made. Each run has one
thread and ``--jobs`` run side by side. Killed and started again, it goes on. Writes ``twins.json``, prints the table:
the differences are one family, each with Student's p over seeds, Holm's p and a verdict.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from grid import RESIDUAL, run, summary

from indm.evaluation.results import difference, per_example
from indm.evaluation.statistics import judged

FLOWS = {
    "linear": ["--flow", "identity"],
    "indm": [],
    "indm-2": [*RESIDUAL, "--flow.norm", "2"],
    "indm-inf": [*RESIDUAL, "--flow.norm", "inf"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--flows", default="indm-2,indm-inf", help="comma-separated, of indm, indm-2 and indm-inf")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--evaluate", default="--nll-examples 0 --times 4", help="options of indm evaluate")
    options = parser.parse_args()
    evaluation, seeds = options.evaluate.split(), range(options.seeds)
    flows = options.flows.split(",")

    def folder(name: str, seed: int) -> Path:
        return options.out / f"{name}-{seed}"

    def submit(pool: ThreadPoolExecutor, name: str, flow: str, seed: int, *budget: str):
        return pool.submit(run, folder(name, seed), options.recipe, seed, [*budget, *FLOWS[flow]], evaluation)

    with ThreadPoolExecutor(options.jobs) as pool:
        limit = ("--train.steps", "inf", "--train.seconds", str(options.seconds))
        jobs = [submit(pool, name, name, seed, *limit) for seed in seeds for name in ("linear", *flows)]
        for job in jobs:
            job.result()
        jobs = []
        for seed in seeds:
            for name in flows:
                steps = str(summary(folder(name, seed))["steps"])
                limit = ("--train.steps", steps, "--train.seconds", "inf")
                jobs.append(submit(pool, f"linear-as-{name}", "linear", seed, *limit))
        for job in jobs:
            job.result()

    report = {"recipe": options.recipe, "seconds": options.seconds, "seeds": options.seeds, "runs": {}}
    for name in ("linear", *flows, *(f"linear-as-{flow}" for flow in flows)):
        report["runs"][name] = {
            "nelbo": [float(per_example(folder(name, seed)).mean()) for seed in seeds],
            "steps": [summary(folder(name, seed))["steps"] for seed in seeds],
            "seconds": [summary(folder(name, seed))["seconds"] for seed in seeds],
            "peak_memory_mib": max(summary(folder(name, seed))["peak_memory_mib"] for seed in seeds),
        }
    family = {}
    for flow in flows:
        for title, twin in (("equal seconds", "linear"), ("equal steps", f"linear-as-{flow}")):
            family[f"{flow}, {title}"] = difference([(folder(flow, seed), folder(twin, seed)) for seed in seeds])
    if len(flows) == 2:
        pairs = [(folder(flows[0], seed), folder(flows[1], seed)) for seed in seeds]
        family[f"{flows[0]} − {flows[1]}, equal seconds"] = difference(pairs)
    report["paired"] = dict(zip(family, judged(list(family.values())), strict=True))
    (options.out / "twins.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
