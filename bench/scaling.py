"""Growth of costs: seconds and memory of a training step, seconds of a likelihood, several
processes, many GPUs.

    python bench/scaling.py --out runs/bench-full
    python bench/scaling.py --processes           # the same batch by one process and by several,
    alone
    python bench/scaling.py --paper               # what many GPUs exchange, alone, which is
    reckoned and not measured

One quantity is varied at a time, the others stay at 16×16×3, a flow of 4–4 blocks, batch 64, one
probe, tolerance 1e-4. Writes ``scaling.json``, ``scaling.md`` and ``scaling.png``. The network is
untrained: its costs equal a trained one's, except for the number of the solver's steps.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import training_steps
from matplotlib.figure import Figure
from performance import machine
from timing import in_new_process, peak_mib
from training_steps import FLOW, NET, Ours, roughen

import indm
from indm.workbench.figures.plots import save_figure, styled

STEP = {
    "resolution": (8, 16, 32, 64),
    "blocks of a group": (1, 2, 4, 8),
    "batch": (16, 32, 64, 128),
}
NLL = {"resolution": (8, 16, 32), "probes": (1, 2, 4, 8), "tolerance": (1e-2, 1e-3, 1e-4, 1e-5)}
USUAL = {"resolution": 16, "blocks of a group": 4, "batch": 64, "probes": 1, "tolerance": 1e-4}

# What the reckoning takes for granted, of machines of 8 GPUs: bytes/s from a GPU to its neighbour
# within one machine and from one to the next, and seconds until the first byte arrives.
WITHIN, BETWEEN, LATENCY = 300e9, 50e9, 10e-6
GPUS, PER_GPU = (8, 64, 512), 32  # and samples of a step for each of them
MODELS = {  # parameters of score and flow
    "the U-Net of 1.2 M and the flow of make bench, 16×16×3": 1.3e6,
    "DDPM++ of 62 M and the flow of (16, 16) blocks, 32×32×3": 62e6 + 10e6,
}


def exchange(parameters: float, gpus: int) -> tuple[float, float]:
    """Bytes that each GPU sends for the mean of all gradients by a ring, 2 (n − 1)/n of them in
    float32, and seconds.

    The seconds count the slowest link, and the 2 (n − 1) hops. Data parallelism hides most of them
    behind the backward pass.
    """
    sent = 2 * (gpus - 1) / gpus * 4 * parameters
    return sent, sent / (WITHIN if gpus <= 8 else BETWEEN) + 2 * (gpus - 1) * LATENCY


def paper() -> list[str]:
    """A table of what a step exchanges and draws, reckoned."""
    lines = [
        "| model | GPUs | batch | sent by each GPU | at most |",
        "|---|---|---|---|---|",
    ]
    for name, parameters in MODELS.items():
        for gpus in GPUS:
            sent, seconds = exchange(parameters, gpus)
            lines.append(
                f"| {name} | {gpus} | {gpus * PER_GPU} | {sent / 2**20:.0f} MiB | {1e3 * seconds:.1f} ms |"
            )
    return lines


def processes() -> list[str]:
    """A table of seconds a step by 1, 2, … processes that share this machine's cores, the batch
    being the same.
    """
    cores, kinds = os.cpu_count() or 1, [1, 2, 4]
    found: dict[int, list[float]] = {n: [] for n in kinds}
    for _ in range(3):
        for n in kinds:
            found[n].append(step_of_processes(n, max(1, cores // n)))
    lines = [
        f"| processes on {cores} cores | threads of each | seconds a step | of one |",
        "|---|---|---|---|",
    ]
    one = statistics.median(found[1])
    for n, seconds in found.items():
        middle = statistics.median(seconds)
        spread = f"{middle:.3f} ({min(seconds):.3f} to {max(seconds):.3f})"
        lines.append(f"| {n} | {max(1, cores // n)} | {spread} | {middle / one:.2f} |")
    return lines


def step_of_processes(n: int, threads: int, steps: int = 60) -> float:
    """Seconds a step of the recipe ``digits``, with 128 samples over all ``n`` processes."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(n), "-m"]
    options = [
        "--train.seconds=inf",
        f"--train.steps={steps}",
        f"--train.validate-every={steps}",
        "--quiet",
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            *launcher,
            "indm",
            "train",
            "digits",
            *options,
            "--out",
            f"{folder}/run",
        ]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        return json.loads(Path(folder, "run", "summary.json").read_text())["seconds"] / steps


def training_step(resolution: int, blocks: int, batch: int) -> tuple[float, float]:
    """Seconds of one step with the flow in it, and MiB that training adds to the process."""
    training_steps.BATCH = batch
    ours = Ours(resolution, FLOW | {"blocks": [blocks, blocks]})
    before = peak_mib()
    ours.cycle()
    started = time.perf_counter()
    for _ in range(3):
        ours.cycle()
    return (time.perf_counter() - started) / 3, peak_mib() - before


def likelihood(resolution: int, probes: int, tolerance: float) -> tuple[float, int]:
    """Seconds of the NLL of one image, in a batch of 8, and the evaluations of the field."""
    torch.manual_seed(0)
    flow = indm.flows.ResidualFlow((3, resolution, resolution), (4, 4), 64)
    roughen(flow)
    net = indm.UNet((3, resolution, resolution), **{k: v for k, v in NET.items() if k != "name"})
    torch.nn.init.normal_(net.output.weight, std=0.02)  # at zero the flow of probability would rest
    model = indm.INDM(flow, indm.ScoreModel(net, indm.VPSDE()))
    x = torch.rand(8, 3, resolution, resolution) * 2 - 1
    started = time.perf_counter()
    report = indm.nll(model, x, probes=probes, nll_error=tolerance)
    return (time.perf_counter() - started) / len(x), report.nfe


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument(
        "--processes", action="store_true", help="only one process against several, on this machine"
    )
    alone.add_argument(
        "--paper", action="store_true", help="only what many GPUs exchange, reckoned"
    )
    parser.add_argument("--step", nargs=3, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(*training_step(*options.step))
        return
    if options.processes or options.paper:
        print(*(processes() if options.processes else paper()), sep="\n")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, values in STEP.items():
        for value in values:
            setting = USUAL | {name: value}
            arguments = [str(setting[key]) for key in ("resolution", "blocks of a group", "batch")]
            seconds, mib = in_new_process([__file__, "--step", *arguments])
            rows.append(
                {
                    "of": "training step",
                    "varied": name,
                    "value": value,
                    "seconds": seconds,
                    "mib": mib,
                }
            )
            print(rows[-1], flush=True)
    for name, values in NLL.items():
        for value in values:
            setting = USUAL | {name: value}
            seconds, nfe = likelihood(
                setting["resolution"], setting["probes"], setting["tolerance"]
            )
            rows.append(
                {
                    "of": "NLL of an image",
                    "varied": name,
                    "value": value,
                    "seconds": seconds,
                    "nfe": nfe,
                }
            )
            print(rows[-1], flush=True)
    (options.out / "scaling.json").write_text(
        json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n"
    )
    write_table(rows, options.out / "scaling.md")
    plot(rows, options.out / "scaling.png")


def write_table(rows: list[dict], path: Path) -> None:
    lines = ["| of | varied | value | seconds | MiB or evaluations |", "|---|---|---|---|---|"]
    for r in rows:
        last = f"{r['mib']:.0f} MiB" if "mib" in r else f"{r['nfe']} evaluations"
        lines.append(
            f"| {r['of']} | {r['varied']} | {r['value']:g} | {r['seconds']:.3f} | {last} |"
        )
    path.write_text("\n".join([*lines, "", *processes(), "", *paper()]) + "\n")


@styled
def plot(rows: list[dict], path: Path) -> None:
    kinds = list(dict.fromkeys((r["of"], r["varied"]) for r in rows))
    figure = Figure(figsize=(10, 6))
    for axes, (of, varied) in zip(figure.subplots(2, 3).flat, kinds, strict=True):
        chosen = [r for r in rows if (r["of"], r["varied"]) == (of, varied)]
        values = [r["value"] for r in chosen]
        axes.plot(values, [r["seconds"] for r in chosen], "o-")
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.set(xlabel=varied, ylabel="time (s)", title=of, ylim=(0, None))
        axes.grid(alpha=0.3)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
