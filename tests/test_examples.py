"""The examples run as they stand, at a tiny budget, and the pages' walk-throughs from the page
itself.
"""

import functools
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import tutorials

import indm
from indm.workbench.cli.main import main, parse
from indm.workbench.runs.folder import read_metrics
from research import doors

pytestmark = pytest.mark.filterwarnings("ignore:the run ended")  # a few steps show what is tested

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# What is of other libraries may be longer.
ADAPTERS = {
    "diffusers_unet": "diffusers",
    "export": "indm",
    "foreign": "denoising_diffusion_pytorch",
}
ADAPTERS |= {"normflows_flow": "normflows", "zuko_flow": "zuko"}
SLOW = {"anomaly_detection", "epidemic", "export", "foreign", "images", "messy_table", "posterior"}
SLOW |= {"super_resolution", "translation"}
WEIGHTED = {"evidence", "lattice", "proposal"}  # these keep importance weights
SLOW |= WEIGHTED
# pictures of those of a simulator
CALIBRATED = {"posterior": ["calibration"], "epidemic": ["series", "by-hand"]}
PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def lines_of(section: str) -> list[list[str]]:
    """The commands of a section, with a few steps in place of those that it asks for."""
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL)).splitlines()
    few = re.compile(r"--train\.steps \d+")
    return [
        shlex.split(few.sub("--train.steps 2 --train.seconds inf", line), comments=True)
        for line in commands
    ]


def write_files(section: str, folder: Path) -> None:
    for name, code in re.findall(r'```python title="(.*?)"\n(.*?)```', section, re.DOTALL):
        (folder / name).write_text(code, "utf-8")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder to work in, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in [
        name for name in sys.modules if name not in before and name.startswith(("my_", "own_"))
    ]:
        del sys.modules[name]


def marks_of(name):
    """The marks of an example; in three steps the network of a posterior finds nothing."""
    found_nothing = pytest.mark.filterwarnings("ignore:the network found nothing")
    untrained = pytest.mark.filterwarnings("ignore:the network loses")
    few_steps = pytest.mark.filterwarnings("ignore:Best performing initialization")
    marks = [pytest.mark.long] * (name in SLOW) + [found_nothing] * (name in CALIBRATED)
    return marks + [untrained] * (name == "denoiser") + [few_steps] * (name == "proposal")


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=marks_of(path.stem)) for path in EXAMPLES]
)
def test_example(path, tmp_path, monkeypatch):
    pytest.importorskip(ADAPTERS.get(path.stem, "indm"))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert inspect.signature(module.main).parameters.keys() == {"steps", "out"}
    few = {"evaluate.examples": 20, "evaluate.nll_examples": 2}
    recipe = indm.recipe
    monkeypatch.setattr(indm, "recipe", lambda name, changes: recipe(name, changes | few))
    module.main(steps=3, out=tmp_path / "run")
    if path.stem == "anomaly_detection":  # an estimator keeps no run
        assert np.loadtxt(tmp_path / "run" / "scores.csv", delimiter=",", skiprows=1).shape == (
            391,
            4,
        )
        return
    if path.stem == "messy_table":
        filled, drawn = (
            pandas.read_csv(tmp_path / "run" / f"{name}.csv") for name in ("filled", "drawn")
        )
        assert (
            filled.shape == (2000, 6)
            and not filled.isna().any().any()
            and filled["income"].max() < 3e6
        )
        assert drawn["age"].dropna().between(30, 40).all() and set(drawn["plan"].dropna()) == {
            "basic"
        }
        return
    if path.stem in WEIGHTED:
        assert list((tmp_path / "run").glob("*.npz"))
        return
    if path.stem in ("denoiser", "foreign"):
        assert json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))["nll"][
            "with_reconstruction"
        ]
        return
    if path.stem in CALIBRATED:
        assert all(
            (tmp_path / "run" / f"{name}.png").stat().st_size > 10_000
            for name in CALIBRATED[path.stem]
        )
        return
    runs = sorted(tmp_path.rglob("summary.json"))
    assert runs and all(read_metrics(run.parent)[-1]["step"] == 3 for run in runs)


@pytest.mark.long
def test_an_example_as_a_script_and_its_run_from_the_command_line(workplace, monkeypatch):
    command = [
        sys.executable,
        str(ROOT / "examples" / "own_network.py"),
        "--steps",
        "2",
        "--out",
        "run",
    ]
    subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True
    )
    monkeypatch.syspath_prepend(ROOT / "examples")
    assert (
        main(["sample", "run", "-n", "4", "--steps", "2", "--trust", "own_network", "--quiet"]) == 0
    )
    assert (workplace / "run" / "samples.npz").is_file()


@pytest.mark.parametrize("title", SECTIONS)
def test_the_walk_through(title, workplace):
    """Write the section's files, then run its commands as the shell would."""
    # it samples the run of the section on SDEs
    prepare = SECTIONS["An SDE"] if title == "A sampler" else ""
    for section in (prepare, SECTIONS[title]):
        write_files(section, workplace)
        for command in lines_of(section):
            assert command[0] == "indm"
            small = {"evaluate": ["--examples", "20", "--nll-examples", "2", "--times", "1"]}.get(
                command[1], []
            )
            assert main([*command[1:], "--quiet", *small]) == 0, command


@pytest.mark.long
def test_the_commands_and_the_python_of_conditions(workplace):
    """In their order, on one run; each command finds what an earlier one wrote, and replaces
    nothing.
    """
    page = (ROOT / "docs" / "conditional.md").read_text("utf-8")
    few = {
        "train": ["--train.steps", "2", "--train.seconds", "inf"],
        "evaluate": ["--examples", "20", "--nll-examples", "2", "--times", "1"],
    }
    for command in lines_of(page.replace("-n 1000", "-n 4")):
        quiet = [] if command[1] == "compare" else ["--quiet"]
        assert main([*command[1:], *quiet, *few.get(command[1], [])]) == 0, command
    assert len(list(Path("eights").glob("*.npz"))) == 1 and Path("many/samples.png").is_file()
    (code,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    raw = torch.arange(128).reshape(2, 1, 8, 8) % 17
    given = {
        "indm": indm,
        "model": indm.INDM.load("runs/classes"),
        "raw": raw,
        "labels": ["3", "8"],
    }
    exec(code.replace("(model, x, c=labels)  #", "(model, x, c=labels, steps=4)  #"), given)
    assert given["samples"].shape == (16, 1, 8, 8)


METHOD = (ROOT / "docs" / "method.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
MANUAL = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


FEW = {
    "model": [
        ("steps=2500", "steps=3"),
        ("(1000,)", "(8,)"),
        ("model, progress", "model, n=500, progress"),
    ],
    "table": [('max_steps": 1000', 'max_steps": 0'), ("4000", "600"), ("[3000:3200]", "[400:]")],
    "simulator": [
        ('max_steps": 1500', 'max_steps": 3'),
        ("(5000, 2)", "(200, 2)"),
        ("(300, 2)", "(20, 2)"),
    ],
}


@pytest.mark.parametrize("door", FEW)
def test_the_python_of_the_readme_runs(door):
    """In three steps and on few rows, so only what it prints is the same, not the numbers."""
    language, text = doors.programs()[door]
    for there, here in FEW[door]:
        assert text.count(there) == 1
        text = text.replace(there, here)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so little training is too short
        printed = doors.output_of(language, text)
    assert doors.values(printed).keys() >= doors.values(doors.recorded(door)["output"]).keys()


@pytest.mark.long
@pytest.mark.parametrize("door", doors.programs())
def test_the_readme_prints_what_its_programs_print(door, workplace):
    """Within three of the errors that are printed."""
    found = doors.values(doors.output_of(*doors.programs()[door]))
    recorded = doors.values(doors.recorded(door)["output"])
    assert found.keys() == recorded.keys() and len(found) >= 2
    for name, (value, error) in recorded.items():
        assert abs(found[name][0] - value) <= 3 * error, name


def test_every_program_of_the_readme_has_its_output():
    """A block of Python without a marker behind it would never be run."""
    assert README.count("```python\n") + README.count("```sh\n") == len(doors.programs()) == 4
    assert "```py\n" not in README


def test_the_readme_shows_the_picture_at_the_end_of_its_tutorial():
    assert (ROOT / "docs" / "figures" / "likelihood.png").read_bytes() == tutorials.end_of(
        "likelihood"
    )


def test_the_readme_begins_with_the_two_commands_that_set_up_everything():
    """On its first screens, each with its time, and as targets of the Makefile that make the
    environment.
    """
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for name in ("demo", "test"):
        (line,) = re.findall(rf"^make {name} +# .*", README, re.MULTILINE)
        assert re.search(r"\d+ minutes", line) and README.index(line) < len(README) // 3
        assert re.search(rf"^{name}:.*\benv$", makefile, re.MULTILINE)


def test_the_python_of_the_method_runs():
    """The model's methods, on two grey-level images; as it stands there."""
    (methods,) = re.findall(r"```python\n(.*?)```", METHOD, re.DOTALL)
    given: dict = {}
    exec(methods, given)
    assert given["y"].shape == given["raw"].shape and torch.isfinite(given["loss"])
    assert given["model"].description() == given["other"].description()


def test_the_training_loop_of_the_manual_runs(workplace, capsys):
    """As it stands there, with two steps and four rows of likelihoods."""
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "loop.md").read_text("utf-8"), re.DOTALL
    )
    assert len(re.findall(r"_loss, \d+,", code)) == 3 and "test = draw(500)" in code
    given: dict = {}
    exec(re.sub(r"_loss, \d+,", "_loss, 4,", code).replace("draw(500)", "draw(4)"), given)
    printed = capsys.readouterr().out
    assert (
        len(re.findall(r"INDM − (?:linear diffusion|flow): -?\d+\.\d nats, error \d", printed)) == 2
    )
    assert given["draws"].shape == (1000, 32)
    x = given["test"]
    assert torch.equal(indm.INDM.load("bits").encode(x)[0], given["model"].encode(x)[0])


def test_the_formulas_of_the_paper_are_where_the_method_says():
    """Each file and each function of its table."""
    rows = re.findall(r"\| `(\w+(?:/\w+)*)\.py` \| (.*?) \|$", METHOD, re.MULTILINE)
    assert len(rows) > 20
    for place, names in rows:
        module = importlib.import_module(f"indm.{place.replace('/', '.')}")
        for name in re.findall(r"`([\w.]+)`", names):
            found = functools.reduce(getattr, name.split("."), module)
            assert found.__module__ == module.__name__, name


@pytest.mark.long
def test_the_python_of_a_network_runs(workplace, monkeypatch):
    """The network of the walk-through, given from Python."""
    write_files(SECTIONS["A network"], workplace)
    (code,) = re.findall(r"```py\n(.*?)```", SECTIONS["A network"], re.DOTALL)
    monkeypatch.syspath_prepend(workplace)
    given = {"torch": torch, "indm": indm}
    exec(code.replace('"train.steps": 500', '"train.steps": 2'), given)
    assert type(given["model"].score.backbone).__name__ == "Net"


@pytest.mark.parametrize("page", MANUAL, ids=lambda path: path.stem)
def test_the_commands_of_the_manual_are_commands(page):
    """Every line of code that begins with indm is taken by the parser."""
    lines = [line.removeprefix("    ") for line in page.read_text("utf-8").splitlines()]
    commands = [
        shlex.split(line, comments=True)
        for line in lines
        if line.startswith("indm ") and "…" not in line
    ]
    for _, *arguments in commands:
        parse(arguments)
    assert len(commands) >= 5 or page != ROOT / "README.md"
