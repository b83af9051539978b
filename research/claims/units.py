"""A unit of the reproduction is one run: it is trained, evaluated and measured.

Each unit is a process of its own (``python -m research.claims.units OUT DATA VARIANT SEED``) and keeps what
it has made, so that a reproduction that was killed continues where it was.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from filelock import FileLock
from tqdm.auto import tqdm

import indm
from indm.workbench.data.base import Data
from indm.workbench.data.registry import load_data
from indm.workbench.evaluation.extractor import Extractor, load_or_train
from indm.workbench.evaluation.records import Setup, measure
from indm.workbench.evaluation.results import evaluate_run
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.folder import finished
from indm.workbench.training import checkpoints
from indm.workbench.training.loop import train
from research.claims.plan import PLAN, Budget, Plan, claims_of, measurements_of, recipe_of, run_folder
from research.claims.studies import STUDIES
from research.measurements import MEASUREMENTS

DONE, INTERRUPTED = 0, 130  # exit statuses


def work(out: Path, data: str, variant: str, seed: int) -> int:
    """Train, evaluate and measure one run, or what is left of it.

    Returns:
        The exit status: 0, or 130 where the run was interrupted.

    Raises:
        ValueError: ``out`` holds no plan.
    """
    folder, budget = run_folder(out, data, variant, seed), Budget.load(out)
    if budget is None:
        raise ValueError(f"{out} holds no {PLAN}: 'python -m research.claims --out {out}' makes it")
    recipe = recipe_of(budget.plan, data, variant, seed, budget.steps[data][variant])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # the process of a unit may outlive the one that started it
        if folder.exists() and checkpoints.nothing_saved(folder):
            shutil.rmtree(folder)  # killed before its first checkpoint
        if not finished(folder, recipe):
            summary = train(recipe, folder, resume=folder.exists(), progress=False)
            if summary.signal_received:
                return INTERRUPTED
        if not (folder / "evaluation.json").exists():
            evaluate_run(folder, progress=False)
        material, extractor = material_of(out, data)
        for name in measurements_of(claims_of(budget.plan), variant, seed):
            measure(folder, name, Setup(material, extractor, budget.plan.options(data, seed), False, MEASUREMENTS))
    return DONE


def material_of(out: Path, data: str) -> tuple[Data, Extractor | None]:
    """A data set and, where it has labels, its extractor, which is trained once."""
    material = load_data(**recipes.load(STUDIES[data].recipe)["data"])
    return material, load_or_train(out / data, material, progress=False) if material.labels else None


def run_units(out: Path, plan: Plan, jobs: int, threads: int, progress: bool) -> None:
    """All units of a plan, ``jobs`` side by side on ``threads`` each.

    Raises:
        RuntimeError: a unit failed; its log is named.
        KeyboardInterrupt: after a signal to every running unit, which saves its state and ends.
    """
    units, running = plan.units(), set[subprocess.Popen]()
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(_run_unit, out, unit, threads, running) for unit in units]
        try:
            for done in tqdm(as_completed(waiting), total=len(units), desc="runs", disable=not progress):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            raise


def _run_unit(out: Path, unit: tuple[str, str, int], threads: int, running: set[subprocess.Popen]) -> None:
    """:func:`work` in a process of its own, which is in ``running`` meanwhile."""
    data, variant, seed = unit
    log = run_folder(out, data, variant, seed).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "research.claims.units", str(out), data, variant, str(seed)]
    with log.open("w") as file:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen(  # in a session of its own: Ctrl-C reaches it once, through run_units
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        running.add(process)
        status = process.wait()
        running.discard(process)
    if status:
        raise RuntimeError(f"{data}, {variant}, seed {seed} ended with status {status}; {log} says why")


if __name__ == "__main__":
    out, data, variant, seed = sys.argv[1:]
    with indm.trust(__package__):
        sys.exit(work(Path(out), data, variant, int(seed)))
