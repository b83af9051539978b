"""The command: the claim of one's own that a page walks through, and its mistakes, each one line."""

import json
import re
import shlex
from pathlib import Path

import pytest

from indm.workbench.evaluation.records import Record
from research.claims import reproduce
from research.claims.__main__ import main
from research.claims.claims import CLAIMS, Evidence
from research.claims.plan import claims_of, measurements_of
from research.claims.verdicts import Judged, judge

OWN = (Path(reproduce.__file__).parent / "own.md").read_text("utf-8")


def test_the_walk_through_of_a_claim(tmp_path, monkeypatch, capsys):
    """All but the training of the runs, which takes minutes: its records are made up."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    ((file, code),) = re.findall(r'```python title="(.*?)"\n(.*?)```', OWN, re.DOTALL)
    Path(file).write_text(code, "utf-8")
    (command,) = re.findall(r"```sh\n(.*?)\n```", OWN, re.DOTALL)
    records = {
        name: [Record(tmp_path, name, {}, {}, 0, {"transport": {"data": {"cost": cost}}})]
        for name, cost in {"indm": 1.0, "linear": 3.0}.items()
    }

    def write_report(out, plan, progress):
        *paper, own = claims_of(plan)
        assert tuple(paper) == CLAIMS and "transport" in measurements_of([own], "linear", 1)
        (row,) = own.rows
        comparison = row.measure(Evidence("eight-gaussians", (records["indm"], records["linear"])))
        return judge([Judged(own.name, "eight-gaussians", row.quantity, comparison, (2, 2))])

    monkeypatch.setattr(reproduce, "prepare", lambda out, plan, threads, progress: plan)
    monkeypatch.setattr(reproduce, "run_units", lambda *_: None)
    monkeypatch.setattr(reproduce, "write_report", write_report)
    assert shlex.split(command)[:3] == ["python", "-m", "research.claims"]
    assert main([*shlex.split(command)[3:], "--quiet"]) == 0
    assert "7 transport" in capsys.readouterr().out
    for name in ("my_claim:paired", "my_claim:nothing", "no_such:claim", "my claim"):
        assert main(["--claims", name, "--out", "other", "--quiet"]) == 2
        assert f"claims: {name} must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--data mnist", "data must be of eight-gaussians, digits, fashion-mnist-16, fashion-mnist, got 'mnist'"),
        ("--data", "data must name at least one of eight-gaussians, digits"),
        ("--seeds 0", "seeds must be at least 1, got 0"),
        ("--jobs 0", "jobs must be at least 1, got 0"),
        ("--device cuda:99", "device must be auto or one that this machine has (cpu"),
        ("--seeds 2 --out begun", "begun holds another reproduction"),
        ("--out mine", "holds something else than a reproduction"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(arguments, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plan = {"plan": {"data": ["digits"], "seeds": 3, "fast": False}, "threads": 1, "family": []}
    for folder, file, text in (
        ("begun", "plan.json", json.dumps(plan | {"seconds_per_step": {}, "log_cost": {}, "steps": {}})),
        ("mine", "thesis.tex", "x"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text(text)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert main(arguments.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("research.claims: error: ") and complaint in said and said.count("\n") == 1
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
