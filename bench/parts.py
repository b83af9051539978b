"""Parts of a long job, each done once, in a process of its own.

``OUT/records/PART.json`` has what came of a part. Killed and started again, a job goes on with the
part that was not done. One that lacks something (a package, data, an earlier part) is skipped and
says what; of one that failed, ``OUT/logs/PART.txt`` says why. The next call tries both again.
``OUT/summary.json`` and ``summary.md`` are of all.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import shlex
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# dependencies that only the parts which name them import
SELDOM = {"matplotlib", "scikit-learn", "scipy"}
Options = argparse.Namespace  # with ``data`` and ``out``, folders, and ``device``


class Skipped(Exception):
    """The reason why a part is skipped: what it lacks."""


@dataclass(frozen=True)
class Part:
    """Something to do once; ``work`` returns its results, as JSON holds them."""

    name: str
    work: Callable[[Options], dict]
    # packages that it imports, beside those that all parts do
    packages: frozenset[str] = frozenset()
    data: str = ""  # the folder in --data that it reads
    after: str = ""  # the part that must be done before

    def lacks(self, o: Options) -> str:
        """The missing packages, data or part, in words; empty where nothing is missing."""
        if self.after and record(o, self.after)["status"] != "done":
            return f"{self.after} is not done"
        if packages := missing(self.packages):
            install = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--no-index",
                "--find-links",
                str(o.data / "wheels"),
            ]
            return f"missing packages: {shlex.join([*install, *packages])}"
        if self.data and not (o.data / self.data).is_dir():
            return f"missing data: {o.data / self.data} (make gpu-data DATA={o.data})"
        return ""


def missing(more: frozenset[str]) -> list[str]:
    """The requirements of ``pyproject.toml`` that this Python does not meet, of usual packages and
    of ``more``.
    """
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    usual, others = project["dependencies"], project["optional-dependencies"]["dev"]
    names = {Requirement(text).name for text in usual} - SELDOM | more

    def is_met(wanted: Requirement) -> bool:
        try:
            return wanted.specifier.contains(
                importlib.metadata.version(wanted.name), prereleases=True
            )
        except importlib.metadata.PackageNotFoundError:
            return False

    return [
        text
        for text in usual + others
        if Requirement(text).name in names and not is_met(Requirement(text))
    ]


def record(o: Options, name: str) -> dict:
    """The record of a part, or that it is not done."""
    path = o.out / "records" / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {"status": "not done"}


def keep(path: Path, content: str | dict) -> None:
    """Write a file that is whole or not there."""
    beside = path.with_suffix(".new")
    text = (
        content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
    )
    beside.write_text(text + "\n", "utf-8")
    beside.replace(path)


def child(part: Part, o: Options, log: Path, path: Path) -> None:
    """Do a part in this process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["ACCELERATE_TORCH_DEVICE"] = o.device
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    for descriptor in (1, 2):  # standard output and errors of what the part starts
        os.dup2(sys.stdout.fileno(), descriptor)
    started = time.perf_counter()
    try:
        found = {"status": "done", "result": part.work(o)}
    except Skipped as why:
        found = {"status": "skipped", "why": str(why)}
    keep(path, found | {"seconds": round(time.perf_counter() - started, 1)})


def do(part: Part, o: Options) -> None:
    """Do a part in a process of its own, forked from this one, which never touches the GPU."""
    path, log = (
        o.out / folder / f"{part.name}.{kind}"
        for folder, kind in (("records", "json"), ("logs", "txt"))
    )
    if why := part.lacks(o):
        return keep(path, {"status": "skipped", "why": why})
    print(f"{part.name} …", flush=True)
    keep(path, {"status": "failed", "why": "killed"})
    process = multiprocessing.get_context("fork").Process(target=child, args=(part, o, log, path))
    process.start()

    def end(number: int, frame: object) -> None:
        process.terminate()  # a training saves
        process.join()
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        process.join()
    except KeyboardInterrupt:  # the part has got Ctrl-C, too
        process.join()
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)
    if process.exitcode:
        lines = log.read_text("utf-8", errors="replace").split("\n") if log.exists() else []
        why = next((line for line in reversed(lines) if line.strip()), "")
        keep(path, {"status": "failed", "why": why or f"exit status {process.exitcode}"})


def shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(records: dict[str, dict]) -> str:
    """A line for each part, then the tables of those that have rows, and pictures."""
    lines, more = ["| part | | seconds | |", "|---|---|---|---|"], []
    for name, known in records.items():
        result = dict(known.get("result", {}))
        rows = result.pop("rows", [])
        what = known.get("why") or ", ".join(
            f"{key} {shown(value)}" for key, value in result.items()
        )
        lines.append(f"| {name} | {known['status']} | {known.get('seconds', '')} | {what} |")
        if rows:
            more += ["", f"{name}:", "", f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
            more += [f"| {' | '.join(map(shown, row.values()))} |" for row in rows]
        if "picture" in result:
            more += ["", f"![{name}]({result['picture']})"]
    return "\n".join(lines + more)


def do_all(parts: Sequence[Part], o: Options) -> int:
    """Do the parts that are not done, in turn; 1 if one failed, else 0."""
    for folder in ("records", "logs"):
        (o.out / folder).mkdir(parents=True, exist_ok=True)
    for part in parts:
        if record(o, part.name)["status"] != "done":
            do(part, o)
            known = record(o, part.name)
            print(
                f"{part.name}: {known['status']} {known.get('why') or known['seconds']}", flush=True
            )
        records = {part.name: record(o, part.name) for part in parts}
        keep(o.out / "summary.json", records)
        keep(o.out / "summary.md", markdown(records))
    print(o.out / "summary.md")
    return int(any(known["status"] == "failed" for known in records.values()))
