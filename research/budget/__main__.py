"""The study's commands; see README.md.

    python -m research.budget queue --data DATA --home HOME     # all that is to be done, from where it stopped
    python -m research.budget job NAME --data DATA --home HOME  # one training, and what is measured of it
    python -m research.budget table --home HOME                 # the records as tables, into research/records

``--data`` holds the folders that ``research/budget/data.sh`` makes; ``--home`` keeps runs and records. The queue trains
``--jobs`` side by side with one thread each. Ctrl-C or SIGTERM saves the runs; the same command goes on.
"""

import argparse
import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import indm
from indm.files import atomic
from indm.workbench.cli.main import main as command
from indm.workbench.evaluation.results import read_evaluation
from indm.workbench.recipes.recipe import literal
from indm.workbench.runs.provenance import weights_hash
from indm.workbench.translation.routes import find, open_runs
from research.budget import family, splines
from research.budget.design import ALIKE, SEARCH_SEED, STUDIES, TENTH, Job, Planner, Setting, merged, steps_of
from research.budget.scores import scores
from research.data import recipe_file
from research.lab.costs import cost_in_turns
from research.lab.extractor import general_features
from research.translation.metrics import against_truth

RECORDS = Path(__file__).parents[1] / "records"
SAMPLES, CERTIFIED = 5_000, 256
WAIT = 5.0  # seconds between two looks at what runs


class Home:
    """The folder of the runs and their records."""

    def __init__(self, folder: Path, data: Path):
        self.folder, self.data = folder.resolve(), data.resolve()
        self.planner = Planner(self.valid)

    def record(self, name: str) -> Path:
        return self.folder / "records" / f"{name}.json"

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def beside(self, name: str, suffix: str) -> Path:
        """A file beside a run; its folder is made. Names have dots."""
        self.run(name).parent.mkdir(parents=True, exist_ok=True)
        return self.folder / "runs" / f"{name}.{suffix}"

    def spent(self, name: str) -> dict[str, float]:
        """CPU seconds of the training of a job."""
        return {"training_cpu_seconds": sum(map(float, self.beside(name, "seconds").read_text().split()))}

    def valid(self, name: str) -> float | None:
        """Bits/dim of validation of a job that has ended; 0 where it has no such number."""
        path = self.record(name)
        return json.loads(path.read_text()).get("valid", 0.0) if path.exists() else None

    def cost(self, job: Job) -> float:
        """Of a step, over that of the study's first variant with its first network; measured where it is not known."""
        study, kind = job.about["study"], job.about["structure"]
        s, (first, variant) = STUDIES[study], next(iter(STUDIES[study].variants.items()))
        if kind == first:
            return 1.0
        path = self.folder / "costs" / f"{study} {kind}.json"
        if not path.exists():
            of_unit, own = (
                changes | {"train.steps": 100} for changes in (merged(ALIKE, s.setting, variant.setting), job.setting)
            )
            unit, recipe = (
                indm.recipe(recipe_file(s.recipe), changes | self.path(s.folder)) for changes in (of_unit, own)
            )
            atomic.json_object(path, {"study": study, "structure": kind} | cost_in_turns(unit, recipe))
        return json.loads(path.read_text())["cost"]

    def path(self, folder: str | None) -> Setting:
        return {"data.path": str(self.data / folder)} if folder else {}


def flags(setting: Setting) -> list[str]:
    """Changes of a recipe as the command line takes them."""
    texts = {key: value if isinstance(value, str) else literal(value) for key, value in setting.items()}
    return [text for key, value in texts.items() for text in (f"--{key}", value)]


def ran(*arguments: str) -> None:
    """Run a command of indm in this process; where it fails or is interrupted, this process ends likewise."""
    status = command([*arguments])
    if status:
        sys.exit(status)


def train(home: Home, job: Job) -> None:
    """Train, or go on."""
    out = home.run(job.name)
    if job.command == "train":
        sources, changes = [recipe_file(job.recipe)], job.setting | home.path(job.folder)
        begun = (out / "recipe.toml").exists()
    else:
        sources, changes = [str(home.data / folder) for folder in job.folders], job.setting
        begun = out.exists()
    ran(job.command, *sources, *flags(changes), "--out", str(out), "--quiet", *(["--resume"] if begun else []))


def measure(home: Home, job: Job) -> dict[str, Any]:
    """What the record says of a trained job."""
    out = home.run(job.name)
    if job.command != "train":
        return translated(home, job, out)
    record = trained(out)
    if not job.tested:
        return record
    if not (out / "evaluation.json").exists():
        ran("evaluate", str(out), "--examples", "10000", "--nll-examples", str(CERTIFIED), "--quiet")
    if not (out / "samples.npz").exists():
        ran("sample", str(out), "-n", str(SAMPLES), "--quiet")
    return record | evaluated(out) | {"frechet": scores(out, home.folder / "extractors")}


def trained(out: Path) -> dict[str, Any]:
    """The part of a job's record about its training; empty until the training has ended."""
    summary = json.loads((out / "summary.json").read_text()) if (out / "summary.json").exists() else {}
    if summary.get("interrupted", True):
        return {}
    return {"valid": summary["valid_nelbo"], "unit": summary["unit"], "steps": summary["steps"]}


def evaluated(out: Path) -> dict[str, Any]:
    """The part of a job's record about its likelihood; empty until the run is evaluated."""
    if not (out / "evaluation.json").exists():
        return {}
    result = read_evaluation(out)
    if result["weights_sha256"] != weights_hash(out):
        return {}
    kept = ("nelbo", "nll", "images", "groups", "dims", "dequantization", "baselines")
    return {key: result[key] for key in kept if key in result}


def translated(home: Home, job: Job, out: Path) -> dict[str, Any]:
    """Of a model of pairs: its translations of the test images, beside their true counterparts."""
    source, truth = (home.data / f"{folder}-test" for folder in job.folders)
    results = out.with_name(f"{out.name}-translated")
    if not (results / "translation.json").exists():
        ran("translate", str(out), str(source), "--out", str(results), "--quiet")
    report, runs = json.loads((results / "translation.json").read_text()), open_runs([out])
    names = [row["name"] for row in report["examples"]]

    def images(folder: Path, data: dict) -> torch.Tensor:
        items = {item.name: item for item in find([folder], runs.models[-1], data)}
        return torch.stack([items[name].read().pixels for name in names])

    ends = (source, runs.data), (results, runs.data_b), (truth, runs.data_b)
    features = general_features(levels := runs.models[-1].scaling.levels or 256).features
    return {"translation": report | {"truth": against_truth(*(images(*end) for end in ends), features, levels)}}


def do(home: Home, name: str) -> None:
    """One job: its training, then its record."""
    job = next((job for job in home.planner.jobs() if job.name == name), None)
    if job is None:
        raise SystemExit(f"{name} has ended, or waits for others: {home.record(name)}")
    torch.set_num_threads(1)
    if job.share is not None:
        cost = home.cost(job)
        steps = steps_of(job, cost)
        job = replace(job, setting=job.setting | {"train.steps": steps}, about=job.about | {"cost": cost})
    spent = home.beside(job.name, "seconds")
    try:
        train(home, job)
    finally:
        with spent.open("a") as file:
            print(round(time.process_time(), 1), file=file)
    atomic.json_object(home.record(name), job.about | home.spent(name) | measure(home, job))


def queue(home: Home, data: Path, jobs: int) -> None:
    """Run what is to be done, ``jobs`` side by side, until nothing is left or what is left has failed."""
    running: dict[str, subprocess.Popen] = {}
    failed: set[str] = set()

    def stop(*_: object) -> None:
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            process.wait()
        sys.exit(143)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while True:
        for name in [name for name, process in running.items() if process.poll() is not None]:
            status = running.pop(name).returncode
            print(time.strftime("%F %T"), name, "ended" if status == 0 else f"failed with {status}", flush=True)
            failed |= {name} if status else set()
        waiting = [job.name for job in home.planner.jobs() if job.name not in failed]
        for name in [name for name in waiting if name not in running][: jobs - len(running)]:
            log = home.beside(name, "log")
            arguments = [sys.executable, "-m", "research.budget", "job", name]
            places = ["--data", str(data), "--home", str(home.folder)]
            with log.open("a") as file:
                running[name] = subprocess.Popen(arguments + places, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
            print(time.strftime("%F %T"), name, "begins", flush=True)
        if not running:
            break
        time.sleep(WAIT)
    if failed:
        raise SystemExit(f"failed: {', '.join(sorted(failed))}; their logs are beside their runs")


def table(home: Home) -> None:
    """``budget-costs.csv``, ``-runs``, ``-family`` and ``-splines``, of all trainings that have ended."""
    costs = [json.loads(path.read_text()) for path in sorted((home.folder / "costs").glob("*.json"))]
    write_csv(RECORDS / "budget-costs.csv", costs)
    records = [json.loads(path.read_text()) for path in sorted((home.folder / "records").rglob("*.json"))]
    for job in home.planner.jobs():
        run = home.run(job.name)
        if found := trained(run):
            records.append(job.about | home.spent(job.name) | found | evaluated(run))
    write_csv(RECORDS / "budget-runs.csv", [flat(record) for record in records])
    write_csv(RECORDS / "budget-family.csv", family.rows(home.run))
    learned = []
    for study in (name for name, s in STUDIES.items() if "spline" in s.variants and not s.searched):
        setting, _ = home.planner.search(study, "spline")
        if setting is not None:
            run = home.run(home.planner.job(study, "spline", setting, "search", TENTH, SEARCH_SEED).name)
            learned += [{"study": study} | row for row in splines.rows(run)]
    write_csv(RECORDS / "budget-splines.csv", learned)


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """One row: numbers with their errors in columns of their own."""
    row = {key: value for key, value in record.items() if not isinstance(value, dict)}
    for kind in ("nelbo", "nll"):
        for part, suffix in (("with_reconstruction", ""), ("without_reconstruction", "_without_reconstruction")):
            numbers = record.get(kind, {}).get(part, {})
            if numbers and part == "with_reconstruction":
                row |= {kind: numbers["bits_per_dim"], f"{kind}_error": numbers["bits_per_dim_standard_error"]}
            elif numbers:
                row[kind + suffix] = numbers["bits_per_dim"]
    row |= record.get("frechet", {})
    return row


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    print(path, len(rows))


@indm.trust("research")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("queue", "job", "table"))
    parser.add_argument("name", nargs="?", help="of the job")
    parser.add_argument("--data", type=Path, default=Path("."))
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    o = parser.parse_args()
    home = Home(o.home, o.data)
    if o.command == "queue":
        queue(home, o.data.resolve(), o.jobs)
    elif o.command == "job":
        do(home, o.name)
    else:
        table(home)


if __name__ == "__main__":
    main()
