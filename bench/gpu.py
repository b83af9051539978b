"""A GPU in ten minutes: its tests, its speed and memory, and two trainings with likelihood, samples
and page.

    make gpu-data DATA=folder        # before, where there is a network
    make gpu DATA=folder             # python bench/gpu.py --data folder --out runs/gpu
    python bench/gpu.py --data folder --out runs/rehearsal --device cpu --scale 0.01        # small
    enough for a CPU

Each part is done once, see ``bench/parts.py``. What is missing (a GPU, a package, data) is why a
part is skipped.
"""

import argparse
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from parts import ROOT, SELDOM, Options, Part, Skipped, do_all

RUNS = {  # recipe → the folder of its data, and the options that take it
    "fashion-mnist": ("fashion-mnist", ["--data.download=false", "--data.root"]),
    "folder": (
        "emoji",
        ["--data.size=64", "--net.multipliers=[1,1,2,2]", "--train.batch_size=16", "--data.path"],
    ),
}
SMALL = [  # settings of every recipe in a rehearsal
    "--net.channels=4", "--net.multipliers=[1,1]", "--net.blocks=1", "--net.attention=[]", "--train.batch_size=4",
    "--train.validate_examples=4",
]  # fmt: skip


def device(o: Options) -> dict:
    import torch

    found = {"device": o.device, "scale": o.scale, "torch": torch.__version__}
    if o.device == "cpu":
        return found
    if torch.version.cuda is None:
        raise Skipped(f"torch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        raise Skipped(f"torch {torch.__version__} for CUDA {torch.version.cuda} finds no GPU")
    gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    return found | {"gpu": torch.cuda.get_device_name(), "gib": gib, "cuda": torch.version.cuda}


def tests(o: Options) -> dict:
    """Counts of the tests marked "cuda", run without what the whole suite needs."""
    report = o.out.absolute() / "tests.xml"
    report.unlink(missing_ok=True)
    options = [
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "-m",
        "cuda",
        f"--junit-xml={report}",
        "tests/test_gpu.py",
    ]
    if status := subprocess.run([sys.executable, "-m", "pytest", *options], cwd=ROOT).returncode:
        sys.exit(status)
    counts: Any = ElementTree.parse(report).find("testsuite")
    return {name: int(counts.get(name)) for name in ("tests", "skipped")}


def speed(o: Options, how: str) -> dict:
    from speed import RECIPES, speed

    from indm.workbench.recipes.recipe import value_of

    if how == "compiled" and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        raise Skipped("missing: a C compiler, for torch.compile")
    changes = {
        key[2:]: value_of(value) for key, _, value in (text.partition("=") for text in SMALL)
    }
    fewer: dict = {"images": 2, "steps": 8, "changes": changes} if o.small else {}
    return {"rows": [speed(name, how, **fewer) for name in RECIPES[: 1 if o.small else None]]}


def memory(o: Options) -> dict:
    from memory import RECIPES, row

    return {"rows": [row(name) for name in RECIPES[: 1 if o.small else None]]}


def ratios(o: Options) -> dict:
    """Costs of training steps relative to the plain implementation's."""
    import training_steps

    if o.small:
        training_steps.BATCH, training_steps.NET = (
            4,
            training_steps.NET | {"channels": 4, "blocks": 1},
        )
    return {"rows": training_steps.training(size=8 if o.small else 32, rounds=1 if o.small else 5)}


def command(o: Options, name: str, recipe: str) -> dict:
    """Do a command of ``indm``; the numbers or the file that it gave."""
    from indm.workbench.cli.main import main

    run, (folder, place) = o.out / recipe, RUNS[recipe]
    budget = [
        f"--train.seconds={120 * o.scale}",
        "--train.checkpoint_every=0.1",
        "--train.validate_every=0.1",
    ]
    resume = ["--resume"] if (run / "recipe.toml").exists() else []
    options = {
        "train": [
            *place,
            str(o.data / folder),
            *budget,
            *(SMALL if o.small else []),
            "--out",
            str(run),
            *resume,
        ],
        "evaluate": [
            "--overwrite",
            *(["--examples=4", "--nll-examples=2", "--steps=8"] if o.small else []),
        ],
        "sample": ["-n", "4" if o.small else "64"],
        "compare": ["--out", str(run / "page")],
    }
    target = recipe if name == "train" else str(run)
    if status := main([name, target, *options[name], "--quiet", "--device", o.device]):
        sys.exit(status)
    if name == "sample":
        return {"picture": f"{recipe}/samples.png"}
    if name == "compare":
        return {"page": f"{recipe}/page/comparison.html"}
    found = json.loads(
        (run / {"train": "summary.json", "evaluate": "evaluation.json"}[name]).read_text("utf-8")
    )
    if name == "train":
        keys = (
            "steps",
            "seconds",
            "valid_nelbo",
            "unit",
            "peak_memory_mib",
            "peak_device_memory_mib",
        )
        return {key: found[key] for key in keys if key in found}
    rows = {kind: found[kind]["with_reconstruction"] for kind in ("nelbo", "nll")} | found[
        "baselines"
    ]
    return {kind: row["bits_per_dim"] for kind, row in rows.items()} | {"unit": "bits/dim"}


def training(recipe: str) -> list[Part]:
    needs = {"train": set(), "evaluate": {"scipy"}, "sample": {"matplotlib"}, "compare": SELDOM}
    return [
        Part(
            f"{recipe}-{name}",
            partial(command, name=name, recipe=recipe),
            frozenset(packages),
            RUNS[recipe][0],
            "device" if name == "train" else f"{recipe}-train",
        )
        for name, packages in needs.items()
    ]


PARTS = [
    Part("device", device),
    Part("tests", tests, frozenset({"pytest"}), after="device"),
    *(
        Part(f"speed-{how}", partial(speed, how=how), after="device")
        for how in ("float32", "bfloat16", "compiled")
    ),
    Part("memory", memory, after="device"),
    *(part for recipe in RUNS for part in training(recipe)),
    Part("ratios", ratios, frozenset({"scipy"}), after="device"),
]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("runs/gpu-data"),
        help="the folder that make gpu-data filled",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--scale",
        type=float,
        default=1,
        help="of the seconds of training; below 1 all else is tiny",
    )
    o = parser.parse_args(arguments)
    o.small = o.scale < 1
    return do_all(PARTS, o)


if __name__ == "__main__":
    sys.exit(main())
