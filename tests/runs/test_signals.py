"""A step that takes long ends with the process, although PyTorch lets no handler of Python run in the middle of it."""

import ctypes
import os
import signal
import threading
import time

import pytest
from processes import exit_code, fork

from indm.cli.main import main
from indm.runs import signals
from indm.runs.folder import read_metrics
from indm.runs.signals import interruptible, writing
from indm.training.trainer import Trainer

SMALL = [
    "--flow",
    "identity",
    "--net.width=8",
    "--net.depth=1",
    "--train.batch_size=16",
    "--train.seconds=inf",
    "--quiet",
]


@pytest.fixture(autouse=True)
def on_the_command_line(monkeypatch):
    monkeypatch.setattr(signals, "owns_process", True)


def in_c(*sent):
    """Wait for ever in C, as a backward pass does, where no handler runs; these signals come meanwhile."""

    def send():
        for number in sent:
            time.sleep(0.05)
            os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    mutex = ctypes.create_string_buffer(64)
    while True:
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_step_that_takes_long_ends_with_the_process_after_its_report(monkeypatch, capfd, number):
    monkeypatch.setattr(signals, "GRACE", 0.1)

    def long_step():
        with interruptible(lambda: "saved at step 7"):
            in_c(signal.SIGCHLD, number)

    signal.signal(signal.SIGCHLD, lambda *_: None)
    assert exit_code(fork(long_step)) == 128 + number
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    assert capfd.readouterr().err == "indm: saved at step 7\n"


def test_the_second_signal_ends_a_long_step_at_once(capfd):
    def long_step():
        with interruptible(lambda: "saved"):
            in_c(signal.SIGTERM, signal.SIGINT)

    assert exit_code(fork(long_step)) == 130 and not capfd.readouterr().err


def test_what_is_being_written_is_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr(signals, "GRACE", 0.01)

    def slow_disk():
        with interruptible():
            with writing:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)
                (tmp_path / "whole").touch()
            time.sleep(10)

    assert exit_code(fork(slow_disk)) == 143 and (tmp_path / "whole").exists()


def test_nothing_ends_once_the_steps_are_over_or_indm_is_a_library_or_another_process_is_meant(monkeypatch):
    monkeypatch.setattr(signals, "GRACE", 0.01)

    def over():
        with interruptible() as event:
            os.kill(os.getpid(), signal.SIGTERM)
            event.steps_are_over()
            time.sleep(0.1)
            assert event.is_set()

    def as_a_library():
        signals.owns_process = False
        with interruptible() as event:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            assert event.is_set()

    def another():
        with interruptible() as event:
            assert exit_code(fork(lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.1)))) == 0
            assert not event.is_set()

    for work in (over, as_a_library, another):
        assert exit_code(fork(work)) == 0


def test_a_training_in_a_long_step_says_where_it_is_saved_and_is_resumed_from_there(project, monkeypatch, capfd):
    line = ["train", "array", "--data.path=mine.npy", "--out=runs/b", *SMALL, "--train.steps=6", "--train.threads=1"]
    real = Trainer.forward_backward

    def long_fifth(trainer, *arguments):
        if trainer.step == 4 and trainer.saved_step == 3:  # not one that times a step
            in_c(signal.SIGTERM)
        return real(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(signals, "GRACE", 0.1)
        patch.setattr(Trainer, "forward_backward", long_fifth)
        capfd.readouterr()
        assert exit_code(fork(lambda: main([*line, "--train.checkpoint_every=3"]))) == 143
    said = (
        "indm: interrupted after step 4, in a step or validation that takes long; runs/b is saved at step 3, from which"
    )
    assert said in capfd.readouterr().err
    assert main([*line, "--resume"]) == 0 and read_metrics(project / "runs/b")[-1]["step"] == 6
