"""Ratios of speed and memory against the straightforward implementation, each measured side by side in one run.

    python bench/performance.py                        # 16×16, all parts, at most 15 minutes on two cores
    python bench/performance.py --parts training,memory --size 32
    python bench/performance.py --full                 # 32×32 training, larger batches

Trains a small model on Fashion-MNIST first (kept in --out) for the parts that need one. Writes ``performance.json`` and
``performance.md`` and prints the table. Nothing else should run meanwhile.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
from functools import partial
from pathlib import Path

import baselines
import torch
from grid import RESIDUAL
from timing import in_new_process, on_gpu, peak_mib, ratio, seconds, shown
from torch import Tensor
from torch.utils.data import TensorDataset

import indm
from indm.config import recipes
from indm.data.base import Data, stack
from indm.data.registry import load_data
from indm.flows import ResidualBlock, ResidualFlow
from indm.flows.base import magnitude
from indm.likelihood import latent_reference
from indm.objective import mle_loss, nelbo
from indm.ode import rademacher
from indm.rng import randn_like
from indm.runs.devices import device
from indm.sampling import AdaptiveODE, Sampler, UniPC, solve_latent
from indm.tensors import evaluation_mode
from indm.training.devices import make_accelerator
from indm.training.trainer import Trainer

NET = {"name": "unet", "channels": 32, "multipliers": [1, 2, 2], "blocks": 2, "attention": [8]}
FLOW = {"name": "residual", "blocks": [4, 4], "width": 64}
BATCH = 64
BITS = math.log(2)
DEVICE = device()


def row(what: str, baseline: str, ours: str, result: str, target: str, note: str = "") -> dict:
    return {"what": what, "baseline": baseline, "ours": ours, "ratio": result, "target": target, "note": note}


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────


def roughen(flow) -> None:
    """Away from the identity, where the log-determinant would be too easy."""
    for block in flow.modules():
        if isinstance(block, ResidualBlock):
            torch.nn.init.normal_(block.maps[-1].weight, std=0.02)


class Ours:
    """The product's own training step on noise images: the trainer of ``indm train``, with synthetic data."""

    def __init__(self, size: int, flow: str = "residual", **options):
        table = FLOW if flow == "residual" else {"name": "identity"}
        train = {"steps": 1e6, "batch_size": BATCH, **options}
        recipe = {"data": {"name": "digits"}, "flow": table, "sde": {"name": "vp"}, "net": NET, "train": train}
        self.recipe = recipes.resolve(recipe)
        images = torch.randint(0, 256, (4 * BATCH, 3, size, size), dtype=torch.uint8)
        split = RawImages(images)
        data = Data("noise", split, split, split, indm.Scaling.images(), (3, size, size))
        self.trainer = Trainer(self.recipe, data, make_accelerator(recipes.options_of(self.recipe, "train")))
        roughen(self.trainer.model.flow)
        self.batches = self.trainer.batches()

    def cycle(self) -> None:
        """As many steps as there are until the flow has had its turn."""
        for _ in range(self.trainer.options.flow_update_every):
            self.trainer.train_step(self.batches)


class RawImages(TensorDataset):
    def __getitem__(self, index):
        return super().__getitem__(index)[0]


class Plain:
    """The same networks trained plainly: float32, separate passes, autograd log-determinant, parameter by parameter."""

    def __init__(self, size: int, flow: str, loss):
        torch.manual_seed(0)
        table = FLOW if flow == "residual" else {"name": "identity"}
        scaling = indm.Scaling.images()
        description = {"flow": table, "sde": {"name": "vp"}, "net": NET}
        model = indm.build_model(description, shape=(3, size, size), scaling=scaling)
        self.model, self.loss = model.to(DEVICE), loss
        roughen(self.model.flow)
        self.optimizer = baselines.PlainAdamW(self.model.parameters())
        self.images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8, device=DEVICE)

    def step(self) -> None:
        self.loss(self.model, self.model.scaling.to_model(self.images)).backward()
        self.optimizer.step()
        self.optimizer.optimizer.zero_grad()


def training(size: int, rounds: int) -> list[dict]:
    every = (1, 3, 4)
    plain = {
        "plain linear": Plain(size, "identity", baselines.plain_linear_loss).step,
        "plain mle": Plain(size, "residual", baselines.plain_mle_loss).step,
        "plain fid": Plain(size, "residual", baselines.plain_fid_loss).step,
    }
    ours = {"linear": Ours(size, "identity").cycle}
    ours |= {
        f"{mode} {k}": Ours(size, objective=mode, flow_update_every=k).cycle for mode in ("mle", "fid") for k in every
    }
    times = seconds(plain | ours, rounds)
    for name in list(times):
        if name[-1].isdigit():
            times[name] = [t / int(name[-1]) for t in times[name]]

    def show(name: str) -> str:
        return f"{sorted(times[name])[rounds // 2]:.3f} s"

    rows = []
    for mode, target in (("mle", "≤ 1.3"), ("fid", "≤ 1.4")):
        base = ratio(times[f"plain {mode}"], times["plain linear"])
        for k in every:
            rows.append(
                row(
                    f"INDM step over linear step, {mode.upper()} mode, flow in every {ordinal(k)}step",
                    f"{show(f'plain {mode}')}, {base[0]:.2f} of its linear step",
                    show(f"{mode} {k}"),
                    shown(ratio(times[f"{mode} {k}"], times["linear"])),
                    target,
                )
            )
    gain = shown(ratio(times["linear"], times["plain linear"]))
    rows.append(row("linear training step", show("plain linear"), show("linear"), gain, "≤ 0.65"))
    return rows


def ordinal(k: int) -> str:
    return "" if k == 1 else f"{k}rd " if k == 3 else f"{k}th "


def memory(size: int) -> list[dict]:
    rows = []
    for mode in ("mle", "fid"):
        peaks = {
            side: in_new_process([__file__, "--peak", f"{side}-{mode}", "--size", str(size)])[0]
            for side in ("plain", "ours")
        }
        rows.append(
            row(
                f"peak training memory, {mode.upper()} mode (above the libraries')",
                f"{peaks['plain']:.0f} MiB",
                f"{peaks['ours']:.0f} MiB",
                f"{peaks['ours'] / peaks['plain']:.2f}",
                "≤ 0.6",
            )
        )
    return rows


def peak(which: str, size: int) -> float:
    """MiB that some training steps add to what the process had before."""
    side, mode = which.split("-")
    loss = {"mle": baselines.plain_mle_loss, "fid": baselines.plain_fid_loss}[mode]
    step = Plain(size, "residual", loss).step if side == "plain" else Ours(size, objective=mode).cycle
    before = peak_mib()
    for _ in range(4):
        step()
    return peak_mib() - before


# ── with a trained model ─────────────────────────────────────────────────────────────────────────────────────────


def trained(out: Path, train_seconds: int) -> tuple[indm.INDM, Data]:
    run = out / "fashion-mnist-16"
    if not (run / "summary.json").exists():
        command = ["train", "fashion-mnist-16", "--out", str(run), "--train.seconds", str(train_seconds), *RESIDUAL]
        resume = ["--resume"] if (run / "checkpoint.pt").exists() else []
        subprocess.run([sys.executable, "-m", "indm", *command, *resume], check=True)
    return indm.INDM.load(run, device=DEVICE), load_data(name="fashion-mnist", size=16)


def variance(model, raw: Tensor, draws: int = 16) -> list[dict]:
    """Gradient variance × seconds of one step, flow and score apart; the trained model, one batch after the other."""
    model.train()
    parts = {"flow": list(model.flow.parameters()), "score": list(model.score.parameters())}
    spread = {}
    for name, loss in (("plain", baselines.plain_mle_loss), ("ours", lambda *a: mle_loss(*a)[0])):
        torch.manual_seed(0)
        gradients: dict[str, list[Tensor]] = {part: [] for part in parts}
        for _ in range(draws):
            x = model.scaling.to_model(raw[torch.randperm(len(raw))[:BATCH]].to(DEVICE))
            model.zero_grad()
            loss(model, x).backward()
            for part, parameters in parts.items():
                gradients[part].append(torch.cat([p.grad.flatten() for p in parameters]))
        spread[name] = {part: torch.stack(g).var(0).sum().item() for part, g in gradients.items()}
    model.eval()
    return [
        row(
            f"gradient variance of the {part}, MLE mode (same batch)",
            f"{spread['plain'][part]:.3g}",
            f"{spread['ours'][part]:.3g}",
            f"{spread['ours'][part] / spread['plain'][part]:.2f}",
            "× flow_update_every × seconds: ≤ 1" if part == "flow" else "× seconds: ≤ 1",
        )
        for part in parts
    ]


def nll(model, raw: Tensor, rounds: int) -> list[dict]:
    """The default, whose error is at most 1e-3 bits/dim, and 24 steps, against SciPy; same noise, same probe."""
    law = latent_reference(model, raw)
    with evaluation_mode(model):
        x = model.scaling.to_model(raw[:16].to(DEVICE), generator=torch.Generator(DEVICE).manual_seed(0))
        generator = torch.Generator(DEVICE).manual_seed(1)  # what log_likelihood draws, in its order
        noise, probe = randn_like(x, generator), rademacher(x, 1, generator)[:, 0]

        def ours(**options):
            generator = torch.Generator(DEVICE).manual_seed(1)
            return indm.log_likelihood(model, x, reference=law, generator=generator, **options)

        candidates = {
            "plain": lambda: baselines.plain_log_likelihood(model, x, noise=noise, probe=probe),
            "as by default": ours,
            "24 steps": lambda: ours(steps=24),
        }
        times = seconds(candidates, rounds)
        results = {name: candidate() for name, candidate in candidates.items()}
        exact = ours(steps=768).log_prob

    def off(log_prob: Tensor) -> str:
        return f"off by {(exact - log_prob).mean().item() / (x[0].numel() * BITS):+.4f} bits/dim"

    _, evaluations = results.pop("plain")  # the same noise, but the divergence of the field itself: another estimate
    return [
        row(
            f"NLL of {len(x)} images, {name}",
            f"{min(times['plain']):.1f} s, {evaluations} × 3 passes",
            f"{min(times[name]):.2f} s, {1.5 * report.nfe:.0f} passes, {off(report.log_prob)}, stated "
            f"{report.solver_error.mean().item() / (x[0].numel() * BITS):.4f}",
            shown(ratio(times["plain"], times[name])),
            "≥ 10, off by ≤ 0.005",
        )
        for name, report in results.items()
    ]


def bound(model, raw: Tensor, repeats: int) -> list[dict]:
    """Squared standard error × seconds, from the spread between repeats: of an image, and of the mean of the batch."""
    reference = latent_reference(model, raw)
    x = model.scaling.to_model(raw[:250].to(DEVICE), generator=torch.Generator(DEVICE).manual_seed(0))
    d = x[0].numel() * BITS
    with evaluation_mode(model):
        candidates = {
            "plain": lambda: draws["plain"].append(baselines.plain_nelbo(model, x) / d),
            "ours": lambda: draws["ours"].append(nelbo(model, x, times=4, reference=reference).total / d),
        }
        draws: dict[str, list[Tensor]] = {name: [] for name in candidates}
        times = {name: sorted(t)[repeats // 2] for name, t in seconds(candidates, repeats).items()}
    image = {name: torch.stack(v).var(0).mean().item() for name, v in draws.items()}
    batch = {name: torch.stack(v).mean(1).var().item() for name, v in draws.items()}

    def entry(what: str, spread: dict[str, float]) -> dict:
        return row(
            f"NELBO, squared error × seconds, {what}",
            *(f"{spread[name] ** 0.5:.4f} bits/dim in {times[name]:.2f} s" for name in ("plain", "ours")),
            f"{spread['plain'] * times['plain'] / (spread['ours'] * times['ours']):.0f}",
            "≥ 100",
        )

    return [entry("of one image", image), entry(f"of the mean of {len(x)}", batch)]


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two sets of features (n, k)."""
    (m, s), (n, t) = ((v.mean(0), torch.cov(v.T)) for v in (a, b))
    cross = torch.linalg.eigvals(s @ t).real.clamp_min(0).sqrt().sum()
    return ((m - n).square().sum() + s.trace() + t.trace() - 2 * cross).item()


def sampling(model, test: Tensor, n: int, quality: int, rounds: int, steps: int = 25) -> list[dict]:
    draw = model.sde.prior_sample((n, *model.shape), generator=torch.Generator(DEVICE).manual_seed(0))

    @torch.no_grad()
    def ours(z: Tensor, sampler: Sampler = UniPC()) -> Tensor:  # noqa: B008, frozen
        return model.decode(solve_latent(model, z, sampler, steps)[0])

    with evaluation_mode(model):
        converged = ours(draw, AdaptiveODE(1e-6))
        plain, evaluations = baselines.plain_ode_sample(model, draw)
        grey = model.scaling.scale.item() * 256 / model.scaling.levels
        off = [(x - converged).abs().mean().item() * grey for x in (plain, ours(draw))]
        times = seconds({"plain": lambda: baselines.plain_ode_sample(model, draw), "ours": lambda: ours(draw)}, rounds)
        # the same noise through both: paired in the bootstrap
        many = model.sde.prior_sample((quality, *model.shape), generator=torch.Generator(DEVICE).manual_seed(1))
        solvers = (partial(ours, sampler=AdaptiveODE(1e-4)), ours)
        sets = [torch.cat([solve(z) for z in many.split(250)]) for solve in solvers]
    data = model.scaling.to_model(test.to(DEVICE)).flatten(1)
    _, _, axes = torch.linalg.svd(data - data.mean(0), full_matrices=False)
    real, adaptive, fast = (v.flatten(1) @ axes[:32].T for v in (data, *sets))
    differences = []
    for i in range(200):
        rows = torch.randint(quality, (quality,), generator=torch.Generator().manual_seed(i))
        differences.append(frechet(fast[rows], real) - frechet(adaptive[rows], real))
    low, high = torch.quantile(torch.tensor(differences), torch.tensor([0.025, 0.975])).tolist()
    worst = frechet(adaptive, real)
    return [
        row(
            f"samples: {n} images, inverse of the flow included",
            f"{min(times['plain']):.1f} s, {evaluations} evaluations, {off[0]:.2f} grey levels off",
            f"{min(times['ours']):.2f} s, {steps} evaluations, {off[1]:.2f} grey levels off",
            shown(ratio(times["plain"], times["ours"])),
            "≥ 20, ≤ 0.5 grey levels off",
            f"Fréchet distance (32 principal components, {quality} samples): converged {worst:.2f}, difference of ours "
            f"95 % in [{low:+.3f}, {high:+.3f}]",
        )
    ]


def inverse(model, n: int, rounds: int) -> list[dict]:
    rows = []
    with torch.no_grad():
        steep = steep_flow(model.shape).to(DEVICE)
        for name, flow in (("the trained flow", model.flow), ("a steep flow, slopes up to 0.94", steep)):
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
                    f"{min(times['plain']):.3f} s, {count} evaluations of a block, residual {plain_residual:.1e}",
                    f"{min(times['ours']):.3f} s, mean {iterations.double().mean():.0f} evaluations, residual "
                    f"{residual.max():.1e}, {int(converged.sum())} of {n} certified",
                    shown(ratio(times["plain"], times["ours"])),
                    "≥ 3",
                )
            )
    return rows


@torch.no_grad()
def steep_flow(shape: tuple[int, ...]) -> ResidualFlow:
    """Every map passes its first channels on, as steeply as it may: blocks x ± 0.94 φφ(x), the slowest to invert."""
    flow = ResidualFlow(shape, (4, 4), 64)
    for i, block in enumerate(block for block in flow.modules() if isinstance(block, ResidualBlock)):
        for linear in block.maps:
            torch.nn.init.dirac_(linear.weight)
        block.maps[-1].weight.mul_((-1) ** i)
    return flow


PARTS = ("training", "memory", "variance", "nll", "nelbo", "sampling", "inverse")


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
    lines += [f"| {r['what']} | {r['baseline']} | {r['ours']} | {r['ratio']} | {r['target']} |" for r in rows]
    notes = [f"\n{r['what']}: {r['note']}." for r in rows if r["note"]]
    return "\n".join(lines + notes) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated, of " + ", ".join(PARTS))
    parser.add_argument("--size", type=int, default=16, help="of the images in the training and memory parts")
    parser.add_argument("--full", action="store_true", help="32×32 training, more images and rounds everywhere")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size, scale = (32, 4) if options.full else (options.size, 1)
    if options.peak:
        print(peak(options.peak, size))
        return
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts must be of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []

    def add(new: list[dict]) -> None:
        rows.extend(new)
        result = {"machine": machine(), "size": size, "rows": rows}
        (options.out / "performance.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        (options.out / "performance.md").write_text(f"{machine()}\n\n{markdown(rows)}")
        print(markdown(new), flush=True)

    if "training" in parts:
        add(training(size, rounds=5))
    if "memory" in parts:
        add(memory(size))
    if set(parts) & {"variance", "nll", "nelbo", "sampling", "inverse"}:
        model, data = trained(options.out, 120 * scale)
        test = stack(data.test, 10_000)
    if "variance" in parts:
        add(variance(model, stack(data.train, 4096)))
    if "nll" in parts:
        add(nll(model, test, rounds=2))
    if "nelbo" in parts:
        add(bound(model, test, repeats=40))
    if "sampling" in parts:
        add(sampling(model, test, 16 * scale, 1000 * scale, rounds=2))
    if "inverse" in parts:
        add(inverse(model, 64, rounds=5))


if __name__ == "__main__":
    main()
