"""How costs grow: seconds and memory of a training step, seconds of a likelihood.

    python bench/scaling.py --out runs/bench-full

One quantity is varied at a time, the others stay at 16×16×3, a flow of 4–4 blocks, batch 64, one probe, tolerance 1e-4.
Writes ``scaling.json``, ``scaling.md`` and ``scaling.png``. The network is untrained: its costs are those of a trained
one except for the number of the solver's steps.
"""

import argparse
import json
import time
from pathlib import Path

import performance
import torch
from matplotlib.figure import Figure
from performance import NET, Ours, machine, roughen
from timing import in_new_process, peak_mib

import indm

STEP = {
    "resolution": (8, 16, 32, 64),
    "blocks of a group": (1, 2, 4, 8),
    "batch": (16, 32, 64, 128),
}
NLL = {"resolution": (8, 16, 32), "probes": (1, 2, 4, 8), "tolerance": (1e-2, 1e-3, 1e-4, 1e-5)}
USUAL = {"resolution": 16, "blocks of a group": 4, "batch": 64, "probes": 1, "tolerance": 1e-4}


def training_step(resolution: int, blocks: int, batch: int) -> tuple[float, float]:
    """Seconds of one step with the flow in it, and MiB that training adds to the process."""
    performance.FLOW, performance.BATCH = performance.FLOW | {"blocks": [blocks, blocks]}, batch
    ours = Ours(resolution)
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
    report = indm.log_likelihood(model, x, probes=probes, rtol=tolerance, atol=tolerance)
    return (time.perf_counter() - started) / len(x), report.nfe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--step", nargs=3, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(*training_step(*options.step))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, values in STEP.items():
        for value in values:
            setting = USUAL | {name: value}
            arguments = [str(setting[key]) for key in ("resolution", "blocks of a group", "batch")]
            seconds, mib = in_new_process([__file__, "--step", *arguments])
            rows.append({"of": "training step", "varied": name, "value": value, "seconds": seconds, "mib": mib})
            print(rows[-1], flush=True)
    for name, values in NLL.items():
        for value in values:
            setting = USUAL | {name: value}
            seconds, nfe = likelihood(setting["resolution"], setting["probes"], setting["tolerance"])
            rows.append({"of": "NLL of an image", "varied": name, "value": value, "seconds": seconds, "nfe": nfe})
            print(rows[-1], flush=True)
    (options.out / "scaling.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    write_table(rows, options.out / "scaling.md")
    plot(rows, options.out / "scaling.png")


def write_table(rows: list[dict], path: Path) -> None:
    lines = ["| of | varied | value | seconds | MiB or evaluations |", "|---|---|---|---|---|"]
    for r in rows:
        last = f"{r['mib']:.0f} MiB" if "mib" in r else f"{r['nfe']} evaluations"
        lines.append(f"| {r['of']} | {r['varied']} | {r['value']:g} | {r['seconds']:.3f} | {last} |")
    path.write_text("\n".join(lines) + "\n")


def plot(rows: list[dict], path: Path) -> None:
    kinds = list(dict.fromkeys((r["of"], r["varied"]) for r in rows))
    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, (of, varied) in zip(figure.subplots(2, 3).flat, kinds, strict=True):
        chosen = [r for r in rows if (r["of"], r["varied"]) == (of, varied)]
        values = [r["value"] for r in chosen]
        axes.plot(values, [r["seconds"] for r in chosen], "o-")
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.set(xlabel=varied, ylabel="seconds", title=of, ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
