"""The commands of the studies: a word that no command has prints the help and starts nothing."""

import sys
from pathlib import Path

import pytest

from research.verdict import __main__ as commands


@pytest.fixture
def started(monkeypatch):
    """What a command would have started."""
    names: list[tuple[str, object]] = []
    for name in ("joint", "heard", "losses", "silenced", "lattice", "instrument", "recorded"):
        study = getattr(commands, name)
        monkeypatch.setattr(study, "main", lambda *words, name=name: names.append((name, *words)))
    return names


def command(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["research.verdict", *words])
    commands.main()


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--help",),
        ("recorded", "--help"),
        ("silenced", "--help"),
        ("instrument", "61 s"),
        ("recorded", "HOME"),
    ],
)
def test_other_words_print_the_help_and_start_nothing(words, started, monkeypatch):
    with pytest.raises(SystemExit, match=r"research\.verdict recorded"):
        command(monkeypatch, *words)
    assert started == []


def test_each_command_starts_its_study(started, monkeypatch):
    command(monkeypatch, "recorded")
    command(monkeypatch, "instrument")
    command(monkeypatch, "instrument", "60 s")
    command(monkeypatch, "lattice", "HOME")
    assert started == [
        ("recorded",),
        ("instrument", "20 s"),
        ("instrument", "60 s"),
        ("lattice", Path("HOME")),
    ]
