"""Two machines: network namespaces of this one with names and addresses of their own, started as the docs say.

They see one another over a virtual cable and nothing else, and are gone with the test.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from small_runs import ONE_THREAD, TINY, assert_same, change, checkpoint, log_of

from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.folder import read_metrics
from indm.workbench.training.loop import train

HOSTS = {"first-machine": "10.77.0.1", "other-machine": "10.77.0.2"}
LONGEST = 400  # seconds that a launcher may take: it waits up to 300 for the other one to end
INSIDE = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'  # of a namespace of names and mounts
RECIPE = change(TINY, steps=24, checkpoint_every=2, keep_last=100, mixed_precision="no")


class Machine:
    """A machine by its host name."""

    def __init__(self, host, namespace, hosts_file):
        self.namespace = namespace
        self.prefix = ["timeout", "--kill-after=30", str(LONGEST), "ip", "netns", "exec", namespace]
        self.prefix += ["unshare", "--uts", "--mount", "sh", "-c", INSIDE, host, str(hosts_file)]

    def start(self, recipe, out, *more):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{next(iter(HOSTS))}:29500"]
        arguments = ["-m", "indm", "train", str(recipe), "--out", str(out), "--quiet", *more]
        return subprocess.Popen([*self.prefix, *torchrun, *arguments], env=ONE_THREAD)

    def kill(self):
        """End all that runs on it, at once."""
        pids = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True).stdout
        for pid in map(int, pids.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def machines(tmp_path):
    missing = [command for command in ("ip", "unshare", "timeout") if not shutil.which(command)]
    if missing:
        pytest.skip(f"no network namespaces here: there is no command {missing[0]}")
    names = {host: f"indm-{os.getpid()}-{number}" for number, host in enumerate(HOSTS)}
    one, other = names.values()
    cable = ["ip", "link", "add", "cable", "netns", one, "type", "veth", "peer", "name", "cable", "netns", other]
    commands = [["ip", "netns", "add", name] for name in names.values()] + [cable]
    for host, name in names.items():
        commands.append(["ip", "-n", name, "address", "add", f"{HOSTS[host]}/24", "dev", "cable"])
        commands += [["ip", "-n", name, "link", "set", device, "up"] for device in ("lo", "cable")]
    lines = [f"{address} {host}" for host, address in HOSTS.items()]
    (tmp_path / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
    made = [Machine(host, name, tmp_path / "hosts") for host, name in names.items()]
    try:
        for command in [*commands, [*made[0].prefix, "true"]]:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {' '.join(command)}: {done.stderr.strip()}")
        yield made
    finally:
        for machine in made:
            machine.kill()
            subprocess.run(["ip", "netns", "delete", machine.namespace], capture_output=True)


def finish(machines, *arguments):
    started = [machine.start(*arguments) for machine in machines]
    return [process.wait() for process in started]


@pytest.mark.long
@pytest.mark.about_time
@pytest.mark.timeout(4 * LONGEST)
def test_two_machines_share_a_network_and_one_that_dies_ends_both(tmp_path, machines):
    """The launcher of either, the one with the meeting point and the other; then both go on to the same end."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipes.to_toml(RECIPE))
    assert finish(machines, recipe, tmp_path / "whole") == [0, 0]

    for dying, at, more in ((1, 4, []), (0, 12, ["--resume"])):
        left = machines[1 - dying].start(recipe, tmp_path / "run", *more)
        killed = machines[dying].start(recipe, tmp_path / "run", *more)
        while not (tmp_path / "run" / "checkpoints" / f"{at}.pt").exists():
            assert left.poll() is None
            time.sleep(0.05)
        machines[dying].kill()
        began = time.monotonic()
        assert killed.wait() and left.wait()
        assert time.monotonic() - began < 60 and not (tmp_path / "run" / "summary.json").exists()
    assert finish(machines, recipe, tmp_path / "run", "--resume") == [0, 0]
    state, expected = (checkpoint(tmp_path / name) for name in ("run", "whole"))
    for each in (state, expected):
        each.pop("seconds")
    assert_same(state, expected)
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")

    train(RECIPE, tmp_path / "one", progress=False)
    weights = checkpoint(tmp_path / "one")["model"]
    assert all((weights[name] - value).abs().max() < 1e-3 for name, value in expected["model"].items())
    assert read_metrics(tmp_path / "one")[-1]["valid_nelbo"] == pytest.approx(
        read_metrics(tmp_path / "whole")[-1]["valid_nelbo"], rel=1e-4
    )
