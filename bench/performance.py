"""Ratios of speed and memory against the straightforward implementation, each measured side by side
in one run.

    python bench/performance.py                        # 16×16, all parts, some 15 minutes on two
    cores
    python bench/performance.py --parts training,memory --size 32
    python bench/performance.py --full                 # 32×32 training, larger batches

Trains two small models on Fashion-MNIST first (kept in --out) for the parts that need one: its
recipe with a residual flow, and a DDPM++ that sees sines of 999 t as published networks do. Writes
``performance.json`` and ``performance.md`` and prints the table. Nothing else should run meanwhile.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import baselines
import numpy as np
import torch
from PIL import Image
from timing import on_gpu, ratio, row, seconds, shown
from torch import Tensor
from training_steps import BATCH, halves, memory, training

import indm
from indm.flows import ResidualBlock, ResidualFlow
from indm.flows.base import magnitude
from indm.likelihood import latent_reference
from indm.objective import nelbo
from indm.ode import rademacher
from indm.sampling import AdaptiveODE, Sampler, UniPC, solve_latent
from indm.tensors import evaluation_mode, randn_like
from indm.workbench.data.base import Data, load_data, stack
from indm.workbench.data.examples import loader
from indm.workbench.runs.devices import device

BITS = math.log(2)
RESIDUAL = [
    "--flow",
    "residual",
    "--flow.blocks",
    "[4]",
    "--flow.width",
    "16",
    "--train.flow_update_every",
    "4",
]
DEVICE = device()
UNIFORM = ["--dequantization", "uniform"]
PUBLISHED = [  # 400 steps of a small DDPM++ as the public code sets it, linear diffusion
    *("--net", "ncsnpp", "--net.channels", "32", "--net.multipliers", "[1,2]", "--net.blocks", "1"),
    *("--net.attention", "[16]", "--net.dropout", "0", "--net.embedding", "positional"),
    *("--flow", "identity", *UNIFORM, "--train.steps", "400", "--train.batch-size", "32"),
    *("--train.lr", "2e-4", "--train.warmup", "0", "--train.decay", "0", "--train.seconds", "inf"),
]  # fmt: skip
CLOSE = 0.5  # grey levels of 256 from the converged samples
TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)


# ── with a trained model ──────────────────────────────────────────────────────────────────────────


def trained(run: Path, options: list[str]) -> tuple[indm.INDM, Data]:
    """The model of a run on Fashion-MNIST 16×16, which is made or finished where it is not, and the
    data.
    """
    if not (run / "summary.json").exists():
        resume = ["--resume"] if (run / "checkpoints").exists() else []
        command = [
            sys.executable,
            "-m",
            "indm",
            "train",
            "fashion-mnist-16",
            "--out",
            str(run),
            *options,
            *resume,
        ]
        subprocess.run(command, check=True)
    return indm.INDM.load(run, device=DEVICE), load_data(name="fashion-mnist", size=16)


def nll(model, raw: Tensor, rounds: int, whose: str = "", target: str = "≥ 10") -> list[dict]:
    """The default, whose error is at most 1e-3 bits/dim, and 24 steps, against SciPy; same noise,
    same probe.
    """
    law = latent_reference(model, raw)
    with evaluation_mode(model):
        x = model.scaling.to_model(
            raw[:16].to(DEVICE), generator=torch.Generator(DEVICE).manual_seed(0)
        )
        generator = torch.Generator(DEVICE).manual_seed(1)  # what nll draws, in its order
        noise, probe = randn_like(x, generator), rademacher(x, 1, generator)[:, 0]

        def ours(**options):
            generator = torch.Generator(DEVICE).manual_seed(1)
            return indm.nll(model, x, reference=law, generator=generator, **options)

        candidates = {
            "plain": lambda: baselines.plain_log_prob(model, x, noise=noise, probe=probe),
            "as by default": ours,
            "24 steps": lambda: ours(steps=24),
        }
        times = seconds(candidates, rounds)
        results = {name: candidate() for name, candidate in candidates.items()}
        exact = ours(steps=768).total

    def off(nats: Tensor) -> str:
        return f"off by {(nats - exact).mean().item() / (x[0].numel() * BITS):+.4f} bits/dim"

    # the same noise, but the divergence of the field itself: another estimate
    _, evaluations = results.pop("plain")
    return [
        row(
            f"NLL of {len(x)} images{whose}, {name}",
            f"{times['plain']}, {evaluations} × 3 passes",
            f"{times[name]}, {1.5 * report.nfe:.0f} passes, {off(report.total)}, stated "
            f"{report.solver_error.mean().item() / (x[0].numel() * BITS):.4f}",
            shown(ratio(times["plain"], times[name])),
            f"{target}, off by ≤ 0.005",
        )
        for name, report in results.items()
    ]


def bound(model, raw: Tensor, repeats: int) -> list[dict]:
    """Squared standard error × seconds, from the spread between repeats: of an image, and of the
    mean of the batch.
    """
    reference = latent_reference(model, raw)
    x = model.scaling.to_model(
        raw[:250].to(DEVICE), generator=torch.Generator(DEVICE).manual_seed(0)
    )
    d = x[0].numel() * BITS
    with evaluation_mode(model):
        candidates = {
            "plain": lambda: draws["plain"].append(baselines.plain_nelbo(model, x) / d),
            "ours": lambda: draws["ours"].append(
                nelbo(model, x, times=4, reference=reference).total / d
            ),
        }
        draws: dict[str, list[Tensor]] = {name: [] for name in candidates}
        times = {name: t.median for name, t in seconds(candidates, repeats).items()}
    image = {name: torch.stack(v).var(0).mean().item() for name, v in draws.items()}
    batch = {name: torch.stack(v).mean(1).var().item() for name, v in draws.items()}

    def entry(what: str, spread: dict[str, float]) -> dict:
        return row(
            f"NELBO, squared error × seconds, {what}",
            *(
                f"{spread[name] ** 0.5:.4f} bits/dim in {times[name]:.2f} s"
                for name in ("plain", "ours")
            ),
            f"{spread['plain'] * times['plain'] / (spread['ours'] * times['ours']):.0f}",
            "≥ 100",
        )

    return [entry("of one image", image), entry(f"of the mean of {len(x)}", batch)]


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two sets of features (n, k)."""
    (m, s), (n, t) = ((v.mean(0), torch.cov(v.T)) for v in (a, b))
    cross = torch.linalg.eigvals(s @ t).real.clamp_min(0).sqrt().sum()
    return ((m - n).square().sum() + s.trace() + t.trace() - 2 * cross).item()


Solve = Callable[[float], tuple[Tensor, int]]  # a tolerance → samples and evaluations


def loosest(solve: Solve, converged: Tensor, level: float) -> tuple[float, int, float]:
    """The largest tolerance whose samples are within CLOSE of the converged ones, its evaluations
    and distance.
    """
    for tol in TOLERANCES:
        evaluations, off = distance(*solve(tol), converged, level)
        if off <= CLOSE:
            break
    return tol, evaluations, off


def distance(x: Tensor, evaluations: int, converged: Tensor, level: float) -> tuple[int, float]:
    """The evaluations, and the distance from the converged samples in grey levels."""
    return evaluations, (x - converged).abs().mean().item() * level


def sampling(model, n: int, rounds: int, whose: str = "", steps: int = 25) -> list[dict]:
    """The default sampler, and solvers by the largest tolerance that brings them near the converged
    samples.
    """
    draw = model.sde.prior_sample(
        (n, *model.shape), generator=torch.Generator(DEVICE).manual_seed(0)
    )
    level = model.scaling.scale.item() * 256 / model.scaling.levels

    @torch.no_grad()
    def ours(sampler: Sampler) -> tuple[Tensor, int]:
        z, evaluations = solve_latent(model, draw, sampler, steps)
        return model.decode(z), evaluations

    def adaptive(tol: float) -> tuple[Tensor, int]:
        return ours(AdaptiveODE(tol))

    def plain(tol: float) -> tuple[Tensor, int]:
        return baselines.plain_ode_sample(model, draw, tol)

    with evaluation_mode(model):
        converged, _ = adaptive(1e-6)
        solves = {"usual": plain, "as near": plain, "adaptive": adaptive}
        found = {
            name: loosest(solve, converged, level)
            for name, solve in solves.items()
            if name != "usual"
        }
        found["usual"] = (1e-5, *distance(*plain(1e-5), converged, level))
        found["ours"] = (0.0, *distance(*ours(UniPC()), converged, level))
        candidates: dict[str, Callable[[], object]] = {
            name: partial(solve, found[name][0]) for name, solve in solves.items()
        }
        times = seconds(candidates | {"ours": partial(ours, UniPC())}, rounds)

    def cell(name: str) -> str:
        _, evaluations, off = found[name]
        return f"{times[name]}, {evaluations} evaluations, {off:.2f} grey levels off"

    what = f"samples{whose}: {n} images, inverse of the flow included"
    return [
        row(
            what,
            cell("usual"),
            cell("ours"),
            shown(ratio(times["usual"], times["ours"])),
            f"≥ 20, ≤ {CLOSE} levels off",
        ),
        row(
            f"{what}, both adaptive, as loosely as {CLOSE} levels allow",
            cell("as near"),
            cell("adaptive"),
            shown(ratio(times["as near"], times["adaptive"])),
            "≥ 6",
        ),
    ]


def quality(model, test: Tensor, n: int, steps: int = 25) -> list[dict]:
    """The Fréchet distance of the default sampler's images relative to converged ones from the same
    noise.
    """
    noise = model.sde.prior_sample(
        (n, *model.shape), generator=torch.Generator(DEVICE).manual_seed(1)
    )
    data = model.scaling.to_model(test.to(DEVICE)).flatten(1)
    axes = torch.linalg.svd(data - data.mean(0), full_matrices=False)[2][:32].T

    @torch.no_grad()
    def features(sampler: Sampler) -> Tensor:
        batches = [
            model.decode(solve_latent(model, z, sampler, steps)[0]) for z in noise.split(250)
        ]
        return torch.cat(batches).flatten(1) @ axes

    with evaluation_mode(model):
        real, adaptive, fast = data @ axes, features(AdaptiveODE(1e-4)), features(UniPC())
    differences = []
    for i in range(200):
        # paired, as the noise is
        rows = torch.randint(n, (n,), generator=torch.Generator().manual_seed(i))
        differences.append(frechet(fast[rows], real) - frechet(adaptive[rows], real))
    low, high = torch.quantile(torch.tensor(differences), torch.tensor([0.025, 0.975])).tolist()
    return [
        row(
            f"Fréchet distance of {n} samples, 32 principal components: converged, {steps} evaluations",
            f"{frechet(adaptive, real):.2f}",
            f"{frechet(fast, real):.2f}",
            f"difference {low:+.3f} to {high:+.3f}",
            "",
        )
    ]


def inverse(model, n: int, rounds: int) -> list[dict]:
    rows = []
    with torch.no_grad():
        steep = steep_flow(model.shape).to(DEVICE)
        for name, flow in (
            ("the trained flow", model.flow),
            ("a steep flow, slopes up to 0.94", steep),
        ):
            z = flow.eval().latent(torch.rand(n, *model.shape, device=DEVICE) * 2 - 1)
            candidates = {
                "plain": partial(baselines.plain_inverse, flow, z),
                "ours": partial(flow.solve_inverse, z),
            }
            times = seconds(candidates, rounds)
            x, count = candidates["plain"]()
            plain_residual = ((flow.latent(x) - z).flatten(1).abs().amax(1) / magnitude(z)).max()
            _, residual, iterations, converged = candidates["ours"]()
            rows.append(
                row(
                    f"inverse of {name}, {n} images",
                    f"{times['plain']}, {count} evaluations of a block, residual {plain_residual:.1e}",
                    f"{times['ours']}, mean {iterations.double().mean():.0f} evaluations, residual "
                    f"{residual.max():.1e}, {int(converged.sum())} of {n} certified",
                    shown(ratio(times["plain"], times["ours"])),
                    "≥ 3",
                )
            )
    return rows


@torch.no_grad()
def steep_flow(shape: tuple[int, ...]) -> ResidualFlow:
    """Every map passes its first channels on, as steeply as it may: blocks x ± 0.94 φφ(x), the
    slowest to invert.
    """
    flow = ResidualFlow(shape, (4, 4), 64)
    for i, block in enumerate(
        block for block in flow.modules() if isinstance(block, ResidualBlock)
    ):
        for linear in block.maps:
            torch.nn.init.dirac_(linear.weight)
        block.maps[-1].weight.mul_((-1) ** i)
    return flow


def loading(n: int = 2000, size: int = 64) -> list[dict]:
    """Images a second of a folder of PNG files in shuffled batches: as the trainer reads them, and
    each by Pillow.
    """
    with tempfile.TemporaryDirectory() as folder:
        ramp = torch.linspace(0, 255, size)
        # smooth in two colours, noise in the third: files of 6 kB, as of drawings and photographs
        for i in range(n):
            noise = torch.randint(0, 32, (size, size), generator=torch.Generator().manual_seed(i))
            pixels = torch.stack(
                [ramp.expand(size, size), ramp[:, None].expand(size, size), noise], dim=-1
            )
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(f"{folder}/{i:05d}.png")
        examples = load_data(name="folder", path=folder, size=size).train

        def ours() -> None:
            for batch in loader(examples, BATCH, shuffle=True, drop_last=True):
                assert batch.shape[1:] == (3, size, size)

        files = sorted(Path(folder).iterdir())[: len(examples)]

        def plain() -> None:
            for file in files:
                torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)

        started = time.perf_counter()
        ours()
        first = len(examples) / (time.perf_counter() - started)
        times = seconds({"plain": plain, "ours": ours}, rounds=3)
    plain_rate, rate = (
        f"{len(examples) / times[name].median:,.0f} a second" for name in ("plain", "ours")
    )
    result = shown(ratio(times["plain"], times["ours"]))
    return [
        row(
            f"{size}×{size} PNG files read",
            plain_rate,
            f"{first:,.0f} at first, then {rate}",
            result,
            "",
        )
    ]


PARTS = (
    "training",
    "memory",
    "halves",
    "nll",
    "nelbo",
    "sampling",
    "inverse",
    "published",
    "loading",
)


def machine() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), name)
    if on_gpu():
        name = torch.cuda.get_device_name()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def markdown(rows: list[dict]) -> str:
    lines = ["| what | baseline | indm | ratio | target |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['what']} | {r['baseline']} | {r['ours']} | {r['ratio']} | {r['target']} |"
        for r in rows
    ]
    notes = [f"\n{r['what']}: {r['note']}." for r in rows if r["note"]]
    return "\n".join(lines + notes) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="comma-separated, of " + ", ".join(PARTS)
    )
    parser.add_argument(
        "--size", type=int, default=16, help="of the images in the training and memory parts"
    )
    parser.add_argument(
        "--full", action="store_true", help="32×32 training, more images and rounds everywhere"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    size, scale = (32, 4) if options.full else (options.size, 1)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts must be of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []

    def add(new: list[dict]) -> None:
        rows.extend(new)
        result = {"machine": machine(), "size": size, "rows": rows}
        (options.out / "performance.json").write_text(
            json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        )
        (options.out / "performance.md").write_text(f"{machine()}\n\n{markdown(rows)}")
        print(markdown(new), flush=True)

    if "training" in parts:
        add(training(size, rounds=5))
    if "memory" in parts:
        add(memory(size))
    if "halves" in parts:
        add(halves(64, rounds=3))
    if set(parts) & {"nll", "nelbo", "sampling", "inverse"}:
        model, data = trained(
            options.out / "fashion-mnist-16",
            ["--train.seconds", str(120 * scale), *UNIFORM, *RESIDUAL],
        )
        test = stack(data.test, 10_000)
    if "nll" in parts:
        add(nll(model, test, rounds=2))
    if "nelbo" in parts:
        add(bound(model, test, repeats=40))
    if "sampling" in parts:
        add(sampling(model, 16 * scale, rounds=2))
        add(quality(model, test, 1000 * scale))
    if "inverse" in parts:
        add(inverse(model, 64, rounds=5))
    if "published" in parts:
        model, data = trained(options.out / "published", PUBLISHED)
        add(
            nll(
                model, stack(data.test, 16), rounds=1, whose=" by a network of 999 t", target="≥ 15"
            )
        )
        add(sampling(model, 16, rounds=1, whose=" of a network of 999 t"))
    if "loading" in parts:
        add(loading())


if __name__ == "__main__":
    main()
