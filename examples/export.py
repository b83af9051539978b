"""Score and flow of a model as programs that run without indm. For ONNX, too: pip install onnx
onnxscript

python examples/export.py
"""

from pathlib import Path
from typing import Any

import torch
import tyro
from torch import nn

import indm

try:
    from onnxscript import opset18 as op
except ImportError:
    op = None


class Latent(nn.Module):
    def __init__(self, flow: indm.flows.Flow):
        super().__init__()
        # without log|det|, which is an estimate where the inverse is not a formula
        self.forward = flow.latent


def export(model: indm.INDM, folder: Path) -> None:
    """score: (z_t (B, *event), t (B,)) → s_θ, and c as networks see it, where there is one; flow: x
    → (z, log|det|).
    """
    model, x, t = (
        model.eval().requires_grad_(False),
        torch.zeros(3, *model.shape),
        torch.full((3,), 0.5),
    )
    c = () if model.condition.is_none else (torch.zeros(3, *model.condition.seen_shape),)
    flow: nn.Module = model.flow if model.flow.inverse_is_formula else Latent(model.flow)
    for name, part, example in (("score", model.score, (x, t, *c)), ("flow", flow, (x,))):
        any_batch = tuple({0: torch.export.Dim("batch")} for _ in example)
        program = torch.export.export(part, example, dynamic_shapes=any_batch, strict=False)
        torch.export.save(program, folder / f"{name}.pt2")
        if op is not None:
            lacking: Any = {
                torch.ops.prims.hypot.default: hypot,
                torch.ops.aten.searchsorted.Tensor: searchsorted,
            }
            torch.onnx.export(
                program,
                (),
                folder / f"{name}.onnx",
                custom_translation_table=lacking,
                verbose=False,
            )


def hypot(a, b):
    return op.Sqrt(op.Add(op.Mul(a, a), op.Mul(b, b)))


def searchsorted(knots, values, out_int32=False, right=False, side=None, sorter=None):
    """The number of knots (…, K) below each of the values (…, N), or with ``right`` not above it."""
    last = op.Constant(value_ints=[-1])
    value, knot = op.Unsqueeze(values, last), op.Unsqueeze(knots, op.Constant(value_ints=[-2]))
    below = op.GreaterOrEqual(value, knot) if right or side == "right" else op.Greater(value, knot)
    return op.ReduceSum(op.Cast(below, to=7), last, keepdims=0)  # 7: int64


def main(steps: int = 300, out: Path = Path("runs/example-export")) -> None:
    """steps: of the optimizer; out: the run folder, in which the programs are written, too."""
    indm.train(indm.recipe("two-spirals", {"flow": "coupling", "train.steps": steps}), out)
    export(indm.INDM.load(out), out)


if __name__ == "__main__":
    tyro.cli(main)
