"""The tests that a mutant meets: which of them reach a line, and forked processes in which they run."""

import hashlib
import importlib
import json
import math
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter, defaultdict
from importlib.machinery import SourceFileLoader
from itertools import groupby
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "mutants"
TREE = OUT / "tree"  # a copy of these parts, so that work goes on in the checkout meanwhile
PARTS = ("indm", "tests", "docs", "examples", "pyproject.toml")
PYTEST = ["-q", "-p", "no:cacheprovider", "-o", "timeout=0", "-o", "faulthandler_timeout=0"]
WORKERS = os.cpu_count()
MEMORY = 8 << 30  # bytes
AT_MOST = 30  # seconds of processor time that the tests of a mutant take without it


def copy_tree():
    """Here all is read and run from now on."""
    shutil.rmtree(TREE, ignore_errors=True)
    for folder in (OUT / "baseline", OUT / "logs", TREE):
        folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
        copy(ROOT / part, TREE / part)
    os.chdir(TREE)
    sys.path.insert(0, str(TREE))


def digest(name):
    """Of the contents of a file."""
    return hashlib.sha256((TREE / name).read_bytes()).hexdigest()[:16]


def side_by_side(jobs):
    """Call functions in forked processes; yields each job (function, arguments, limit of its processor time, …), the
    exit code and the processor time it took."""
    waiting, running = list(reversed(jobs)), {}
    try:
        while waiting or running:
            while waiting and len(running) < WORKERS:
                job = waiting.pop()
                running[_fork(*job[:3])] = job, time.monotonic()
            for process, (job, start) in list(running.items()):
                if time.monotonic() - start > 10 * job[2]:  # it waits for something
                    os.killpg(process, signal.SIGXCPU)
                ended, status, used = os.wait4(process, os.WNOHANG)
                if ended:
                    del running[process]
                    yield job, os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
            time.sleep(0.02)
    finally:
        for process in running:
            os.killpg(process, signal.SIGKILL)


def _fork(function, arguments, limit):
    process = os.fork()
    if process:
        return process
    os.setpgrp()
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log = OUT / "logs" / f"{os.getpid()}.txt"
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    try:
        function(*arguments)
        log.unlink()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


class Watch:
    """A pytest plugin: the processor time of tests, the first that fails, and to a tracer, which one is running."""

    def __init__(self, tracer=None):
        self.tracer, self.seconds, self.failed = tracer, Counter(), None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        if self.tracer:
            self.tracer.switch_context(item.nodeid)

    def pytest_runtest_logstart(self, nodeid):
        self.seconds[nodeid] -= time.process_time()

    def pytest_runtest_logfinish(self, nodeid):
        self.seconds[nodeid] += time.process_time()

    def pytest_runtest_logreport(self, report):
        if not report.passed:
            self.seconds[report.nodeid] = math.inf
        if report.failed:
            self.failed = self.failed or report.nodeid


class Tests:
    """What every test takes and reaches in ``modules``: measured again where its file or what it reaches changed."""

    def __init__(self, names, modules):
        self.modules = modules
        self.seconds, self.reach = {}, defaultdict(list)  # of a test; of a line, (module, number): tests
        self.digests = {name: digest(name) for name in names}
        stored = {name: self._stored(name) for name in names}
        self._preload(stored.values())
        list(side_by_side([(pytest.main, (["--collect-only", *PYTEST, *names],), 1200)]))  # compiles the copy
        jobs = [(self._measure, (name,), 1200) for name in names if self._stale(stored[name])]
        for (_, (name,), _), code, seconds in side_by_side(jobs):
            if code:
                raise SystemExit(f"{name} could not be measured: see {OUT / 'logs'}")
            print(f"{name}: {seconds:.0f} s", flush=True)
            stored[name] = self._stored(name)
        for baseline in stored.values():
            for name, test in baseline["tests"].items():
                self.seconds[name] = test["seconds"]
                for module, lines in test["lines"].items():
                    for line in lines:
                        self.reach[module, line].append(name)
        self._preload(stored.values())

    def _preload(self, baselines):
        """Import once what the tests import of other packages, not in every process."""
        for name in sorted(set().union(*(baseline.get("libraries", ()) for baseline in baselines))):
            importlib.import_module(name)

    def _file(self, name):
        return OUT / "baseline" / f"{name.replace('/', '.')}.json"

    def _stored(self, name):
        return json.loads(self._file(name).read_text()) if self._file(name).exists() else {}

    def _stale(self, stored):
        return not stored or any(not (TREE / n).exists() or digest(n) != d for n, d in stored["inputs"].items())

    def _measure(self, name):
        included = [str(TREE / module) for module in self.modules]
        tracer = coverage.Coverage(data_file=None, config_file=False, include=included)
        watch, inputs = Watch(tracer), {name, "tests/conftest.py"}
        tracer.start()
        code = pytest.main([name, *PYTEST], plugins=[watch])
        tracer.stop()
        if code not in (0, 1):
            raise RuntimeError(f"pytest could not run the tests: exit code {code}")
        passed = {test: seconds for test, seconds in watch.seconds.items() if math.isfinite(seconds)}
        tests = {test: {"seconds": seconds, "lines": defaultdict(list)} for test, seconds in passed.items()}
        data = tracer.get_data()
        for path in data.measured_files():
            module = os.path.relpath(path, TREE)
            for line, reached in data.contexts_by_lineno(path).items():
                for test in tests.keys() & set(reached):
                    tests[test]["lines"][module].append(line)
                    inputs.add(module)
        specs = {name: getattr(module, "__spec__", None) for name, module in sys.modules.items()}
        libraries = [n for n, spec in specs.items() if spec and spec.name == n and "site-packages" in str(spec.origin)]
        baseline = {"inputs": {n: digest(n) for n in inputs}, "libraries": libraries, "tests": tests}
        self._file(name).write_text(json.dumps(baseline))

    def reaching(self, mutant):
        """Tests of the mutated statement, else of its function, its class, its module: those of its own file and
        room first, then the fastest; and the seconds they take."""
        names = (f"test_{Path(mutant.module).stem}.py", f"test_{Path(mutant.module).parent.name}.py")
        for first, last in mutant.spans:
            reached = {test for line in range(first, last + 1) for test in self.reach.get((mutant.module, line), ())}
            if reached:
                break
        by_file = defaultdict(list)
        for test in sorted(reached, key=self.seconds.get):
            by_file[test.partition("::")[0]].append(test)
        chosen, total = [], 0.0
        for file in sorted(by_file, key=lambda f: (*(Path(f).name != n for n in names), self._seconds(by_file[f]))):
            for test in by_file[file]:
                if chosen and total + self.seconds[test] > AT_MOST:
                    break
                chosen.append(test)
                total += self.seconds[test]
        return chosen, total

    def _seconds(self, tests):
        return sum(self.seconds[test] for test in tests)

    def version(self, chosen):
        """Changes when one of the tests may have changed."""
        contents = sorted({self.digests[name.partition("::")[0]] for name in chosen})
        return hashlib.sha256(json.dumps([contents, sorted(chosen)]).encode()).hexdigest()[:16]

    def meet(self, mutant, chosen, result):
        """Import the mutant in place of its module and run the tests; write into file ``result`` what kills it."""
        path, read, stats = str(TREE / mutant.module), SourceFileLoader.get_data, SourceFileLoader.path_stats
        sys.dont_write_bytecode = True
        SourceFileLoader.get_data = lambda self, name: mutant.source if name == path else read(self, name)
        SourceFileLoader.path_stats = lambda self, name: stats(self, name) | ({"mtime": -1} if name == path else {})
        for file, tests in groupby(chosen, lambda name: name.partition("::")[0]):
            watch = Watch()
            code = pytest.main([*tests, "-x", *PYTEST], plugins=[watch])
            if code == 4:  # the mutant changes the names of tests
                code = pytest.main([file, "-x", *PYTEST], plugins=[watch])
            if code not in (0, 1, 2):
                raise RuntimeError(f"pytest could not run the tests: exit code {code}")
            if code:
                result.write_text(watch.failed or "import")
                return
