"""``indm reproduce``: train INDM, its linear twin and the other baselines at equal seconds, and judge every claim.

The work is a list of units, one for each data set, variant and seed: train, evaluate, measure. Each runs in a process
of its own (``python -m indm.reproduction.reproduce OUT DATA VARIANT SEED``) and keeps what it has, so that
a reproduction that was killed goes on where it was. The budget is one of steps: what a step costs is measured first,
variant beside variant and with nothing else running, and every variant then makes as many steps as fit the seconds of INDM's. So the outcome
does not depend on what else the machine does meanwhile. Rates are constant (no decay), so that every point of a
learning curve is what a run that ended there would have reached.
"""

import contextlib
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock
from tqdm import tqdm

from indm.config import recipes
from indm.config.recipes import Recipe
from indm.data.base import Data
from indm.data.registry import load_data
from indm.evaluation.extractor import Extractor, load_or_train
from indm.evaluation.runs import evaluate_run
from indm.files import atomic, untrusted
from indm.messages import reason
from indm.model import build_model, count_parameters
from indm.report.page import Page
from indm.report.records import MEASURES, Options, Record, measure, record_of
from indm.report.writer import add_runs
from indm.reproduction import claims, vae
from indm.reproduction.claims import Verdict
from indm.runs.folder import finished
from indm.runs.lock import LOCK, run_lock
from indm.runs.provenance import provenance, weights_hash
from indm.training import checkpoints
from indm.training.devices import make_accelerator
from indm.training.loop import train
from indm.training.trainer import Trainer

VARIANTS: dict[str, dict[str, str]] = {
    "linear": {"flow": "identity", "train.flow_update_every": "1"},
    "indm": {},
    "indm-pretrained": {"train.pretrain": "0.33"},
    "linear-ve": {"flow": "identity", "train.flow_update_every": "1", "sde": "ve"},
    "indm-ve": {"sde": "ve"},
    "flow": {"net": "zero", "train.objective": "flow", "train.flow_update_every": "1"},
    "vae": {"net": "vae"},
}
SAME_COST = {"linear-ve": "linear", "indm-ve": "indm"}
BASELINES = ("linear", "indm", "flow", "vae")


@dataclass(frozen=True)
class Study:
    """One data set's part: its recipe, INDM's steps, what is measured of which variants; ``fast_``: a quick look."""

    recipe: str
    steps: int
    fast_steps: int
    images: int
    fast_images: int
    evaluate: dict[str, str]
    variants: tuple[str, ...] = tuple(VARIANTS)


STUDIES = {
    "eight-gaussians": Study("eight-gaussians", 1200, 150, 1000, 100, {"examples": "10_000", "nll_examples": "2000"}),
    "digits": Study("digits", 500, 40, 256, 40, {"nll_examples": "64", "repeats": "4", "times": "8"}),
    "fashion-mnist-16": Study(
        "fashion-mnist-16", 300, 20, 128, 40, {"examples": "2000", "nll_examples": "50"}, BASELINES
    ),
    "fashion-mnist": Study("fashion-mnist", 300, 20, 128, 40, {"examples": "1000", "nll_examples": "50"}, BASELINES),
}
STEPS, FAST_STEPS = (5, 10, 20, 50, 100, 1000), (5, 10, 20, 50)
SAMPLERS = ("unipc", "euler-maruyama")


@dataclass(frozen=True)
class Plan:
    """What a reproduction is, kept in ``OUT/plan.json``: the same to the end."""

    data: tuple[str, ...]
    seeds: int
    fast: bool

    def options(self, data: str, seed: int) -> Options:
        """What is measured; every seed has noise of its own, so that the spread over seeds shows that, too."""
        study = STUDIES[data]
        images, steps = (study.fast_images, FAST_STEPS) if self.fast else (study.images, STEPS)
        return Options(images, steps, SAMPLERS, seed)

    @property
    def validations(self) -> int:
        """Points of a learning curve."""
        return 10 if self.fast else 20

    @property
    def snapshots(self) -> int:
        """Models that are kept along training, of the first seed."""
        return 2 if self.fast else 4

    def steps(self, data: str) -> int:
        return STUDIES[data].fast_steps if self.fast else STUDIES[data].steps


def recipe_of(plan: Plan, data: str, variant: str, seed: int, steps: int) -> Recipe:
    """The recipe of a run: that of the data, the variant's changes, the budget."""
    study, changes = STUDIES[data], dict(VARIANTS[variant])
    recipe = recipes.load(study.recipe)
    if variant == "vae":
        changes |= vae_changes(recipe)
    evaluate = study.evaluate | ({"examples": "200", "nll_examples": "0"} if plan.fast else {})
    changes |= {f"evaluate.{key}": value for key, value in evaluate.items()}
    changes |= {
        "train.seed": str(seed),
        "train.steps": str(steps),
        "train.seconds": "inf",
        "train.decay": "0.0",
        "train.validate_every": str(max(1, steps // plan.validations)),
        "train.validate_examples": "500",
        "train.snapshot_every": str(max(1, steps // plan.snapshots) if seed == 0 else 0),
        "train.checkpoint_every": "200",
    }
    return recipes.resolve(recipes.override(recipe, changes))


def vae_changes(recipe: Recipe) -> dict[str, str]:
    """A VAE with as many parameters as the recipe's INDM, within a few per cent, at the rate that was best for it."""
    data = load_data(**recipe["data"])
    kind = "vae-conv" if len(data.shape) == 3 else "vae-mlp"
    parameters = count_parameters(build_model(recipes.model_of(recipe), data.shape))
    return {
        "train.lr": "1e-3",
        "net": kind,
        "net.width": str(vae.matching_width({"name": kind}, data.shape, parameters)),
    }


def trainer_class(variant: str) -> type[Trainer]:
    return vae.VAETrainer if variant == "vae" else Trainer


def seconds_per_step(plan: Plan, data: str, rounds: int, steps: int = 12) -> dict[str, list[float]]:
    """Seconds of a training step of every variant, in rounds in which each makes so many in turn."""
    trainers, batches = {}, {}
    for variant in (v for v in STUDIES[data].variants if v not in SAME_COST and v != "indm-pretrained"):
        recipe = recipe_of(plan, data, variant, 0, 100)
        accelerator = make_accelerator(recipes.options_of(recipe, "train"))
        trainers[variant] = trainer_class(variant)(recipe, load_data(**recipe["data"]), accelerator)
        batches[variant] = trainers[variant].batches()
    taken: dict[str, list[float]] = {variant: [] for variant in trainers}
    for _ in range(rounds):
        for variant, trainer in trainers.items():
            started = time.perf_counter()
            for _ in range(steps):
                losses = trainer.train_step(batches[variant])
            float(next(iter(losses.values())))  # waits for the device
            taken[variant].append((time.perf_counter() - started) / steps)
    return {variant: seconds[1:] for variant, seconds in taken.items()}  # the first round warms up


def costs_of(taken: dict[str, list[float]]) -> dict[str, float]:
    """Median seconds of a step of each variant, those that are not measured from what they are made of."""
    costs = {variant: statistics.median(seconds) for variant, seconds in taken.items()}
    share = float(VARIANTS["indm-pretrained"]["train.pretrain"])
    costs["indm-pretrained"] = share * costs["linear"] + (1 - share) * costs["indm"]
    return costs | {variant: costs[like] for variant, like in SAME_COST.items()}


def measured(variant: str, seed: int) -> list[str]:
    """What is measured of a run: all of INDM and its twin, the samples of one seed of the other baselines."""
    if variant in ("linear", "indm"):
        return list(MEASURES)
    return ["quality"] if variant in ("flow", "vae") and seed == 0 else []


def run_folder(out: Path, data: str, variant: str, seed: int) -> Path:
    return out / data / variant / str(seed)


def work(out: Path, data: str, variant: str, seed: int) -> int:
    """Train, evaluate and measure one run, or what is left of it; exit status 130 where it was interrupted."""
    folder, kept = run_folder(out, data, variant, seed), untrusted.json_object(out / "plan.json")
    plan = read_plan(kept)
    recipe = recipe_of(plan, data, variant, seed, kept["steps"][data][variant])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # of a unit whose parent was killed, too
        if folder.exists() and checkpoints.nothing_saved(folder):
            shutil.rmtree(folder)  # killed before that
        if not finished(folder, recipe):
            summary = train(recipe, folder, resume=folder.exists(), progress=False, trainer=trainer_class(variant))
            if summary["signal_received"]:
                return 130
        if not (folder / "evaluation.json").exists():
            evaluate_run(folder, progress=False) if variant != "vae" else vae.evaluate_vae_run(folder)
        material, extractor = material_of(out, data)
        for name in measured(variant, seed):
            measure(folder, name, material, extractor, plan.options(data, seed), progress=False)
    return 0


def material_of(out: Path, data: str) -> tuple[Data, Extractor | None]:
    """A data set and, where it has labels, its extractor, which is trained once."""
    material = load_data(**recipes.load(STUDIES[data].recipe)["data"])
    return material, load_or_train(out / data, material, progress=False) if material.labels else None


def read_plan(kept: dict) -> Plan:
    return Plan(**kept["plan"] | {"data": tuple(kept["plan"]["data"])})


def kept_plan(out: Path, plan: Plan) -> dict | None:
    """What ``plan.json`` in ``out`` holds; None where there is none.

    Raises:
        ValueError: it is damaged, or of another plan.
    """
    path = out / "plan.json"
    if not path.exists():
        return None
    kept = untrusted.json_object(path)
    try:
        same = read_plan(kept) == plan
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no plan of a reproduction: {reason(error)}") from error
    if not same:
        raise ValueError(f"{out} holds another reproduction, {kept['plan']}; go on with that, or use another --out")
    return kept


def prepare(out: Path, plan: Plan, threads: int, progress: bool) -> dict:
    """Read or make ``plan.json``, with what a step costs and how many each variant makes."""
    kept = kept_plan(out, plan)
    if kept is not None:
        return kept
    for data in tqdm(plan.data, desc="extractors", disable=not progress):
        material_of(out, data)
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)  # as the units will have
    costs: dict[str, dict[str, float]] = {}
    log_cost: dict[str, tuple[float, float]] = {}
    for data in tqdm(plan.data, desc="cost of a step", disable=not progress):
        taken = seconds_per_step(plan, data, rounds=3 if plan.fast else 8)
        costs[data] = costs_of(taken)
        logs = [math.log(a / b) for a, b in zip(taken["indm"], taken["linear"], strict=True)]
        log_cost[data] = statistics.mean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    torch.set_num_threads(usual)
    steps = {
        data: {variant: round(plan.steps(data) * found["indm"] / cost) for variant, cost in found.items()}
        for data, found in costs.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    kept = {
        "plan": asdict(plan),
        "seconds_per_step": costs,
        "log_cost": log_cost,  # of an INDM step over a linear one, and its standard error
        "steps": steps,
        "threads": threads,
    }
    atomic.json_object(out / "plan.json", kept)
    return kept


def run_units(out: Path, plan: Plan, jobs: int, threads: int, progress: bool) -> None:
    """All units, ``jobs`` side by side on ``threads`` each, the main pair of each data set first.

    Raises:
        RuntimeError: a unit failed; its log is named.
        KeyboardInterrupt: passed on, when all units have saved what they have.
    """
    order = sorted(VARIANTS, key=lambda variant: variant not in ("linear", "indm"))
    units = [
        (data, variant, seed)
        for data in plan.data
        for variant in order
        if variant in STUDIES[data].variants
        for seed in range(plan.seeds)
    ]
    running: set[subprocess.Popen] = set()

    def unit(data: str, variant: str, seed: int) -> None:
        log = run_folder(out, data, variant, seed).with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "indm.reproduction.reproduce", str(out), data, variant, str(seed)]
        with log.open("w") as file:
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            process = subprocess.Popen(  # in a session of its own: Ctrl-C reaches it once, from here
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            running.add(process)
            status = process.wait()
            running.discard(process)
        if status:
            raise RuntimeError(f"{data}, {variant}, seed {seed} ended with status {status}; {log} says why")

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(unit, *names) for names in units]
        try:
            for done in tqdm(as_completed(waiting), total=len(units), desc="runs", disable=not progress):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            raise


def gather(
    out: Path, plan: Plan, data: str, material: Data, extractor: Extractor | None, costs: dict[str, float]
) -> dict[str, list[Record]]:
    """The facts of all runs of a data set, by variant, in the order of seeds; seconds by what a step ``costs``."""
    found = {}
    for variant in STUDIES[data].variants:
        folders = [run_folder(out, data, variant, seed) for seed in range(plan.seeds)]
        found[variant] = [
            replace(
                record_of(
                    folder, variant, extractor, material, plan.options(data, seed), measured(variant, seed), False
                ),
                cost=costs[variant],
            )
            for seed, folder in enumerate(folders)
        ]
    return found


def verdicts_of(data: str, found: dict[str, list[Record]], cost: float, cost_error: float) -> list[Verdict]:
    """Every claim on one data set; ``cost`` is the log of an INDM step's seconds over a linear one's."""
    indm, linear = found["indm"], found["linear"]
    verdicts = [
        *claims.fast_training(data, indm, linear, cost, cost_error),
        *claims.mle_training(data, indm, linear),
        *claims.robust_sampling(data, indm, linear),
        *claims.decomposition(data, indm, linear),
    ]
    if "indm-pretrained" in found:
        verdicts += claims.pretraining(data, found["indm-pretrained"], indm)
    if "indm-ve" in found:
        sdes = {"VP": (indm, linear), "VE": (found["indm-ve"], found["linear-ve"])}
        verdicts += claims.both_sdes(data, sdes)
    return verdicts


def reproduce(out: Path, plan: Plan, *, jobs: int | None = None, progress: bool = True) -> list[Verdict]:
    """Do what is left of a reproduction, and write its report.

    Args:
        out: folder for the runs, ``index.html`` with its PNGs, ``claims.json`` and ``claims.md``.
        plan: data sets, seeds, and whether it is the quick one.
        jobs: runs side by side; default one for each core, or one where there is a GPU.
        progress: show bars.

    Returns:
        The verdicts, by claim.

    Raises:
        ValueError: unknown data, or ``out`` holds another reproduction.
        RuntimeError: a unit failed.
    """
    if not plan.data:
        raise ValueError(f"data must name at least one of {', '.join(STUDIES)}, got none")
    for data in plan.data:
        if data not in STUDIES:
            raise ValueError(f"data must be of {', '.join(STUDIES)}, got {data!r}")
    if plan.seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {plan.seeds}; 3 is usual")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    found = {entry.name for entry in out.iterdir()} if out.exists() else set()
    if "plan.json" not in found and not found <= {*plan.data, LOCK}:  # where it was killed before it had a plan
        raise ValueError(f"{out} exists and holds something else than a reproduction: use another --out")
    kept_plan(out, plan)  # a quick no
    jobs = jobs or (1 if torch.cuda.is_available() else os.cpu_count() or 1)
    with run_lock(out):
        return _reproduce(out, plan, jobs, progress)


def _reproduce(out: Path, plan: Plan, jobs: int, progress: bool) -> list[Verdict]:
    """:func:`reproduce` in a folder that no other process works in."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    kept = prepare(out, plan, threads, progress)
    run_units(out, plan, jobs, threads, progress)
    page, verdicts = Page("INDM: the paper's claims, measured"), claims.control()
    sections = []
    for data in tqdm(plan.data, desc="report", disable=not progress):
        material, extractor = material_of(out, data)
        found = gather(out, plan, data, material, extractor, kept["seconds_per_step"][data])
        verdicts += verdicts_of(data, found, *kept["log_cost"][data])
        sections.append((data, material, extractor, [f for group in found.values() for f in group]))
    verdicts.sort(key=lambda verdict: verdict.claim)
    page.text(budget_text(plan, kept))
    page.table([HEADER, *(cells(verdict) for verdict in verdicts)])
    for data, material, extractor, facts in sections:
        page.heading(data, level=1)
        add_runs(page, out, facts, material, extractor, prefix=f"{data}-")
    page.write(out / "index.html")
    numbers = [{key: None if value != value else value for key, value in asdict(v).items()} for v in verdicts]
    weights = {str(f.folder): weights_hash(f.folder) for *_, facts in sections for f in facts}
    made_by = provenance(None, weights)  # each run's seed is its folder's name
    atomic.json_object(out / "claims.json", {"plan": kept, "provenance": made_by, "verdicts": numbers})
    rows = [HEADER, ("---",) * len(HEADER), *(cells(verdict) for verdict in verdicts)]
    atomic.text(out / "claims.md", "".join(f"| {' | '.join(row)} |\n" for row in rows))
    return verdicts


HEADER = ("claim", "data", "verdict", "quantity", "INDM", "linear", "difference", "test")


def cells(v: Verdict) -> tuple[str, ...]:
    indm, linear = ("–" if value != value else f"{value:.4g}" for value in (v.indm, v.linear))
    change = f"{v.difference:+.4f} ± {v.standard_error:.4f}"
    return (v.claim, v.data, v.verdict, v.quantity.replace("|", "∣"), indm, linear, change, v.test)


def summary(verdicts: list[Verdict]) -> str:
    """One line for each verdict."""
    return "\n".join(f"{v.claim:18} {v.data:17} {cells(v)[6]:22} {v.verdict:12} {v.quantity}" for v in verdicts)


def budget_text(plan: Plan, kept: dict) -> str:
    parts = []
    for data in plan.data:
        costs, steps = kept["seconds_per_step"][data], kept["steps"][data]
        counts = ", ".join(
            f"{variant} {steps[variant]} × {1e3 * costs[variant]:.0f} ms" for variant in STUDIES[data].variants
        )
        parts.append(f"{data}: {counts}")
    return (
        f"Equal seconds for all, {plan.seeds} seeds. Steps × cost of a step on {kept['threads']} thread(s): "
        f"{'; '.join(parts)}. Differences are INDM − linear, ± one standard error (over seeds, or over examples where "
        "that is larger); within two of them is a tie. NELBOs of all seeds are of the same test examples, distances of "
        "samples have noise of their own in every seed."
    )


if __name__ == "__main__":
    folder, data_set, name, number = sys.argv[1:]
    sys.exit(work(Path(folder), data_set, name, int(number)))
