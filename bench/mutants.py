"""Mutation testing of the method: does a test fail when one place of it is changed?

    python bench/mutants.py --sample 600
    python bench/mutants.py indm/scaling.py --sample all

A mutant (bench/mutation.py) is imported from memory in a forked process that stands in a copy of the tree. It meets the
tests that reach its line (bench/mutation_tests.py); one failure kills it, and so does ten times the processor time that
the tests take, and a minute.

The sample takes every module's mutants in the order of a hash of their code, in proportion to their number: one of 600
is part of one of 1,200, and a change of a function exchanges only its own mutants. ``build/mutants`` keeps the results:
stopped and started again, the command goes on. A killed mutant stays killed until its function changes; a survivor is
tried again when the tests that it meets change. Prints its page, with the judgements of docs/mutants.toml; where all
modules are tried, the page is written to docs/mutants.md, and new survivors are appended to docs/mutants.toml.
"""

import argparse
import glob
import hashlib
import json
import math
import os
import signal
import tomllib
from collections import Counter

from filelock import FileLock

os.environ |= {"CI": "1", "OMP_NUM_THREADS": "1"}  # hypothesis draws the same examples every time

from mutation import mutants
from mutation_tests import OUT, ROOT, TREE, Tests, copy_tree, side_by_side

METHOD = [
    *("scaling", "score", "gaussian", "objective", "ode", "density", "likelihood", "sampling", "translation"),
    *("linearization", "nonlinear", "paths", "model", "rng", "tensors", "sde/*", "flows/*", "nets/*"),
    *("training/ema", "training/step", "training/trainer", "data/batches", "evaluation/statistics"),
]
TESTS = [  # those of the method that start no commands and no groups of processes
    *("test_*", "contracts/test_*", "sde/test_*", "flows/test_*", "nets/test_*", "data/test_data"),
    *("training/test_training", "training/test_given", "training/test_checkpoints", "training/test_penalties"),
    *("evaluation/test_statistics", "evaluation/test_sampling_error"),
]
OTHER_TESTS = {"tests/test_examples.py", "tests/test_imports.py", "tests/test_limits.py"}
RESULTS, PAGE, JUDGEMENTS = OUT / "results.jsonl", ROOT / "docs" / "mutants.md", ROOT / "docs" / "mutants.toml"
HEAD = """# Mutants of the method

    make mutants                # a sample
    make mutants SAMPLE=all     # over night

Written by this command (`bench/mutants.py` says how). A mutant changes one place of the method: an operator, a
comparison, a constant, a condition, the order of arguments, a dropped statement. The tests should fail. "Equivalent"
mutants cannot be killed: they compute the same. The rate is killed / (tried − equivalent), ± its binomial error.
Words (messages, docstrings) and types are no part of the method and are not mutated.

A mutant meets half a minute of the tests that reach it, none of commands or of several processes. A survivor that other
tests kill counts as one; its judgement names them.
"""


def files(folder, names):
    found = sorted(file for name in names for file in glob.glob(f"{folder}/{name}.py", root_dir=TREE))
    return [file for file in found if not file.endswith("__init__.py")]


def sample(by_module, size):
    """Of every module the same share, in the order of a hash."""
    total = sum(map(len, by_module.values()))
    share = 1.0 if size == "all" else min(1.0, int(size) / total)
    order = {m: hashlib.sha256(f"indm {m.key}".encode()).hexdigest() for ms in by_module.values() for m in ms}
    chosen = [m for ms in by_module.values() for m in sorted(ms, key=order.get)[: math.ceil(share * len(ms))]]
    return sorted(chosen, key=order.get)


def run(chosen, tests):
    """Let the mutants that have no valid result meet their tests; results by mutant."""
    stored = {r["key"]: r for r in map(json.loads, RESULTS.read_text().splitlines())} if RESULTS.exists() else {}
    results, jobs = {}, []
    for mutant in chosen:
        meets, seconds = tests.reaching(mutant)
        version = tests.version(meets)
        old = stored.get(mutant.key)
        if old and (old["status"] != "survived" or old["tests"] == version):
            results[mutant] = old
        else:
            jobs.append(
                (tests.meet, (mutant, meets, OUT / "logs" / f"{mutant.key}.killed"), 60 + 10 * seconds, version)
            )
    for done, ((_, (mutant, meets, by), _, version), code, seconds) in enumerate(side_by_side(jobs), 1):
        killer = by.read_text() if by.exists() else ""
        by.unlink(missing_ok=True)
        if code > 0:
            print(f"no result, see {OUT / 'logs'}: {' | '.join(mutant.name)}", flush=True)
            continue
        timeout = code in (-signal.SIGXCPU, -signal.SIGKILL)
        status = "timeout" if timeout else "killed" if killer or code else "survived"
        result = {"key": mutant.key, "status": status, "by": killer, "tests": version, "met": len(meets)}
        results[mutant] = result | {"seconds": round(seconds, 1)}
        with RESULTS.open("a") as file:
            file.write(json.dumps(results[mutant], ensure_ascii=False) + "\n")
        if status == "survived" or done % 50 == 0:
            print(f"{done} of {len(jobs)}: {status}: {' | '.join(mutant.name)}", flush=True)
    return results


def row(name, number, statuses, equivalent):
    count, tried = Counter(statuses), len(statuses)
    killed, possible = count["killed"] + count["timeout"], max(1, tried - equivalent)
    rate = killed / possible
    error = math.sqrt(rate * (1 - rate) / possible)
    return (
        f"| {name} | {number} | {tried} | {killed} | {count['timeout']} | {count['survived']} | {equivalent} "
        f"| {100 * rate:.1f} ± {100 * error:.1f} % |"
    )


def report(by_module, results):
    """The page, and the judgements with an empty one for every new survivor."""
    judged = JUDGEMENTS.read_text() if JUDGEMENTS.exists() else ""
    judgements = {
        (j["module"], j["function"], j["change"]): j["judgement"] for j in tomllib.loads(judged).get("mutant", [])
    }
    survivors = [m for m in sorted(results, key=lambda m: (m.module, m.spans[0])) if results[m]["status"] == "survived"]
    for mutant in survivors:
        if mutant.name not in judgements:
            pairs = zip(("module", "function", "change", "judgement"), (*mutant.name, ""), strict=True)
            judged += "\n[[mutant]]\n" + "".join(f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in pairs)
    equivalent = {m for m in survivors if judgements.get(m.name, "").startswith("equivalent")}
    columns = ["module", "mutants", "tried", "killed", "of these by time", "survived", "equivalent", "rate"]
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for module, found in (by_module | {"all": [m for ms in by_module.values() for m in ms]}).items():
        tried = [m for m in found if m in results]
        if tried:
            rows.append(row(module, len(found), [results[m]["status"] for m in tried], len(equivalent & set(tried))))
    lines = ["## Survivors", "", f"Judgements are written by hand in `{JUDGEMENTS.relative_to(ROOT)}`."]
    for mutant in survivors:
        module, function, change = mutant.name
        judgement = judgements.get(mutant.name) or f"not judged; met {results[mutant]['met']} tests"
        lines += ["", f"- `{module}`, `{function or 'module'}`: `{change}`\\", f"  {judgement}"]
    return "\n".join([HEAD, *rows, "", *lines]) + "\n", judged


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="files; all of the method by default")
    parser.add_argument("--sample", default="all", help="how many mutants, or all")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    with FileLock(OUT / "lock", timeout=0):
        copy_tree()
        method = files("indm", METHOD)
        by_module = {file: mutants(file, (TREE / file).read_bytes()) for file in options.modules or method}
        tests = Tests([file for file in files("tests", TESTS) if file not in OTHER_TESTS], method)
        page, judged = report(by_module, run(sample(by_module, options.sample), tests))
    print(page)
    if not options.modules:
        PAGE.write_text(page)
        JUDGEMENTS.write_text(judged)


if __name__ == "__main__":
    main()
