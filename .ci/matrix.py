"""The tests under every Python that this machine has, and with the oldest dependencies that are
allowed.

    python .ci/matrix.py [--only 3.12 lowest] [-- arguments of pytest]

Each has an environment of its own, build/matrix/NAME, which is kept. An interpreter that is not
there is said and left out; ``uv python install 3.14`` brings it where it can be downloaded.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LOWEST = "lowest"  # versions of the dependencies, under the first of PYTHONS


def ran(*command: str, **options) -> bool:
    return subprocess.run(command, cwd=ROOT, check=False, **options).returncode == 0


def test(name: str, arguments: list[str]) -> str:
    """What came of one environment."""
    version, place = (PYTHONS[0] if name == LOWEST else name), ROOT / "build" / "matrix" / name
    python = place / "bin" / "python"
    uv = (sys.executable, "-m", "uv")
    new = (*uv, "venv", "--quiet", "--no-python-downloads", "--python", version, str(place))
    if not python.exists() and not ran(*new):
        return "left out: no such Python here"
    resolution = ("--resolution", "lowest-direct") if name == LOWEST else ("--upgrade",)
    if not ran(
        *uv,
        "pip",
        "install",
        "--quiet",
        "--python",
        str(python),
        *resolution,
        "--editable",
        ".[dev]",
    ):
        return "cannot be installed"
    tests = arguments or ["-n", "2", "--dist", "loadfile"]
    passed = ran(str(python), "-m", "pytest", *tests, env={**os.environ, "GOMP_SPINCOUNT": "10000"})
    return "passed" if passed else "failed"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=(*PYTHONS, LOWEST), default=(*PYTHONS, LOWEST))
    parser.add_argument("arguments", nargs="*", help="of pytest")
    o = parser.parse_args()
    results = {name: test(name, o.arguments) for name in o.only}
    print("\n".join(f"{name:8} {result}" for name, result in results.items()))
    return int(any(result in ("failed", "cannot be installed") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
