"""Whole training steps of ``indm train`` and of a straightforward implementation, and their memory.

Parts of ``bench/performance.py``. By itself it measures memory, in a process of its own:

    python bench/training_steps.py ours-mle 64         # peak MiB of steps on 64×64 images; or
    plain, fid
"""

import sys

import baselines
import torch
from timing import in_new_process, peak_mib, ratio, row, seconds, shown
from torch.utils.data import TensorDataset

import indm
from indm.flows import ResidualBlock
from indm.workbench.data.base import Data
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.devices import device
from indm.workbench.training.costs import trainer_of

NET = {"name": "unet", "channels": 32, "multipliers": [1, 2, 2], "blocks": 2, "attention": [8]}
FLOW = {"name": "residual", "blocks": [4, 4], "width": 64}
CONDITIONAL = {"name": "conditional-residual", "blocks": [4, 4], "width": 64}
BATCH = 64
HALVES = {"accumulate": 2}  # the batch is that of both
DEVICE = device()


def roughen(flow) -> None:
    """Away from the identity, where the log-determinant would be too easy."""
    for block in flow.modules():
        if isinstance(block, ResidualBlock):
            torch.nn.init.normal_(block.maps[-1].weight, std=0.02)


class Ours:
    """The product's own training step on noise images: the trainer of ``indm train``, with
    synthetic data.
    """

    def __init__(self, size: int, flow: dict, **options):
        train = {"steps": 1e6, "batch_size": BATCH} | options
        recipe = {
            "data": {"name": "digits"},
            "flow": flow,
            "sde": {"name": "vp"},
            "net": NET,
            "train": train,
        }
        self.recipe = recipes.resolve(recipe)
        images = torch.randint(0, 256, (4 * BATCH, 3, size, size), dtype=torch.uint8)
        split = RawImages(images)
        data = Data("noise", split, split, split, indm.Scaling.images(), (3, size, size))
        self.trainer = trainer_of(self.recipe, data=data)
        roughen(self.trainer.model.flow)
        self.batches = self.trainer.batches()

    def cycle(self) -> None:
        """Make the steps until the flow has been trained once."""
        for _ in range(self.trainer.schedule.flow_update_every):
            self.trainer.train_step(self.batches)


class RawImages(TensorDataset):
    def __getitem__(self, index):
        return super().__getitem__(index)[0]


class Plain:
    """The same networks trained plainly: float32, separate passes, autograd log-determinant,
    parameter by parameter.
    """

    def __init__(self, size: int, flow: dict, loss):
        torch.manual_seed(0)
        scaling = indm.Scaling.images()
        description = {"flow": flow, "sde": {"name": "vp"}, "net": NET}
        model = indm.build_model(description, shape=(3, size, size), scaling=scaling)
        self.model, self.loss = model.to(DEVICE), loss
        roughen(self.model.flow)
        self.optimizer = baselines.PlainAdamW(self.model.parameters())
        self.images = torch.randint(
            0, 256, (BATCH, 3, size, size), dtype=torch.uint8, device=DEVICE
        )

    def step(self) -> None:
        self.loss(self.model, self.model.scaling.to_model(self.images)).backward()
        self.optimizer.step()
        self.optimizer.optimizer.zero_grad()


def training(size: int, rounds: int) -> list[dict]:
    """Rows of a step with a flow over one without, and of the linear step over the plain one."""
    linear, every = {"name": "identity"}, (1, 3, 4)
    flows = {"mle": FLOW, "fid": FLOW, "mle conditional": CONDITIONAL}
    names = {
        "mle": "NLL mode",
        "fid": "FID mode",
        "mle conditional": "NLL mode, conditional residual flow",
    }
    targets = {"mle": "≤ 1.3", "fid": "≤ 1.3", "mle conditional": "≤ 1.4"}
    steps = {
        ("plain linear", 1): Plain(size, linear, baselines.plain_linear_loss).step,
        ("plain mle", 1): Plain(size, FLOW, baselines.plain_mle_loss).step,
        ("plain fid", 1): Plain(size, FLOW, baselines.plain_fid_loss).step,
        ("linear", 1): Ours(size, linear).cycle,
    }
    for kind, flow in flows.items():
        steps |= {
            (kind, k): Ours(size, flow, objective=kind[:3], flow_update_every=k).cycle
            for k in every
        }
    times = {(kind, k): measured.per(k) for (kind, k), measured in seconds(steps, rounds).items()}

    def against_linear(kind: str, k: int) -> dict:
        base = times.get((f"plain {kind}", 1))
        factor = base and ratio(base, times["plain linear", 1])[0]
        return row(
            f"INDM step over linear step, {names[kind]}, flow in every {ordinal(k)}step",
            f"{base}, {factor:.2f} of its linear step" if base else "–",
            str(times[kind, k]),
            shown(ratio(times[kind, k], times["linear", 1])),
            targets[kind],
        )

    plain, ours = times["plain linear", 1], times["linear", 1]
    linear_step = row(
        "linear training step", str(plain), str(ours), shown(ratio(ours, plain)), "≤ 0.65"
    )
    return [against_linear(kind, k) for kind in flows for k in every] + [linear_step]


def halves(size: int, rounds: int) -> list[dict]:
    """A row of a step that takes its batch in two halves, over one that takes it at once: seconds
    and memory.
    """
    ways: dict[str, dict] = {"whole": {}, "halves": HALVES}
    times = seconds(
        {way: Ours(size, FLOW, **options).cycle for way, options in ways.items()}, rounds
    )
    mib = {way: in_new_process([__file__, f"{way}-mle", str(size)])[0] for way in ways}
    cells = [f"{times[way]}, {mib[way]:.0f} MiB" for way in ways]
    what = (
        f"INDM step at {size}×{size}, batch {BATCH}, at once and in two halves (train.accumulate 2)"
    )
    return [row(what, *cells, shown(ratio(times["halves"], times["whole"])), "≤ 1.10, ≤ 1,229 MiB")]


def ordinal(k: int) -> str:
    return "" if k == 1 else f"{k}rd " if k == 3 else f"{k}th "


def memory(size: int) -> list[dict]:
    """Rows of the peak memory of training, each side in a process of its own."""
    rows = []
    for mode in ("mle", "fid"):
        plain, ours = (
            in_new_process([__file__, f"{side}-{mode}", str(size)])[0] for side in ("plain", "ours")
        )
        rows.append(
            row(
                f"peak training memory, {size}×{size}, {mode.upper()} mode (above the libraries')",
                f"{plain:.0f} MiB",
                f"{ours:.0f} MiB",
                f"{ours / plain:.2f}",
                "≤ 0.6",
            )
        )
    return rows


def peak(which: str, size: int) -> float:
    """MiB that some training steps add to what the process had before."""
    side, mode = which.split("-")
    loss = {"mle": baselines.plain_mle_loss, "fid": baselines.plain_fid_loss}[mode]
    options = HALVES if side == "halves" else {}
    step = (
        Plain(size, FLOW, loss).step
        if side == "plain"
        else Ours(size, FLOW, objective=mode, **options).cycle
    )
    before = peak_mib()
    for _ in range(4):
        step()
    return peak_mib() - before


if __name__ == "__main__":
    print(peak(sys.argv[1], int(sys.argv[2])))
