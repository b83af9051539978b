"""Models as programs that run without this package: by torch.export, and in ONNX."""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 3  # of the example that is traced: neither 1 nor a size of the model


def export(model: Any, folder: str | Path, *, onnx: bool = False) -> list[Path]:
    """Write the score and the flow of a model as programs, for batches of any size, in the model's precision.

    ``score.pt2`` is (z_t (B, *event), t (B,)) → s_θ; of models of p(x|c) it is (z_t, t, c), with c as networks see it.
    ``flow.pt2`` is x → (z, log|det ∂z/∂x| in nats), in model units; or x → z alone where the inverse of the flow is no
    formula, whose log|det| is an estimate. ``torch.export.load(file).module()`` runs them. PyTorch 2.6 cannot export.

    Args:
        model: an INDM.
        folder: where the files go; made where it is not there.
        onnx: write ``score.onnx``, ``flow.onnx`` and so on, too.

    Returns:
        The files.

    Raises:
        ValueError: ``onnx`` without its packages; a part cannot be exported, draws a code in every call, or sees one.

    Example:

        >>> import indm, tempfile
        >>> tables = {"flow": {"name": "elementwise"}, "sde": {"name": "vp"}, "net": {"name": "mlp"}}
        >>> model = indm.build_model(tables, (2,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = export(model, folder)
        ...     flow = torch.export.load(folder + "/flow.pt2").module()
        >>> x = torch.randn(5, 2)
        >>> torch.equal(flow(x)[0], model.encode(x)[0])
        True
    """
    if onnx and any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise ValueError("export to ONNX needs the packages onnx and onnxscript: pip install onnx onnxscript")
    model.flow.check_one_map("export")
    model = copy.deepcopy(model).eval().requires_grad_(False)
    place = Path(folder).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    like = next(model.parameters())
    x, t = like.new_zeros(ROWS, *model.shape), like.new_full((ROWS,), 0.5)
    c = () if model.condition is None else (like.new_zeros(ROWS, *model.condition.seen_shape),)
    parts = {"score": (model.score, (x, t, *c)), "flow": (_flow(model), (x,))}
    files = []
    for name, (part, example) in parts.items():
        program = _exported(part, example, name)
        files.append(place / f"{name}.pt2")
        torch.export.save(program, files[-1])
        if onnx:
            files.append(place / f"{name}.onnx")
            _write_onnx(program, files[-1], name)
    return files


class _Encoder(nn.Module):
    """x → (z, log|det|), without the arguments of other calls."""

    def __init__(self, flow: nn.Module):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow(x)


class _Latent(_Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return self.flow.latent(x)


def _flow(model: Any) -> nn.Module:
    return _Encoder(model.flow) if model.flow.inverse_is_formula else _Latent(model.flow)


def _exported(part: nn.Module, example: tuple[Tensor, ...], name: str) -> torch.export.ExportedProgram:
    rows = torch.export.Dim("batch")
    try:
        return torch.export.export(part, example, dynamic_shapes=tuple({0: rows} for _ in example), strict=False)
    except Exception as error:  # of many kinds
        raise ValueError(f"the {name} cannot be exported: {str(error).splitlines()[0]}") from error


def _write_onnx(program: torch.export.ExportedProgram, file: Path, name: str) -> None:
    table: Any = {torch.ops.prims.hypot.default: _hypot, torch.ops.aten.searchsorted.Tensor: _searchsorted}
    try:
        torch.onnx.export(program, (), file, verbose=False, custom_translation_table=table)
    except Exception as error:  # of torch.onnx, private
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"the {name} has no form in ONNX: {reason}; the .pt2 file is there") from error


def _hypot(a, b):
    """√(a² + b²), which ONNX has no operator for."""
    from onnxscript import opset18 as op

    return op.Sqrt(op.Add(op.Mul(a, a), op.Mul(b, b)))


def _searchsorted(knots, values, out_int32=False, right=False, side=None, sorter=None):
    """How many of ``knots`` (…, K) are below each of ``values`` (…, N), those that are equal too with ``right``."""
    from onnxscript import opset18 as op

    last: Any = op.Constant(value_ints=[-1])
    before: Any = op.Constant(value_ints=[-2])
    value, knot = op.Unsqueeze(values, last), op.Unsqueeze(knots, before)
    below = op.GreaterOrEqual(value, knot) if right or side == "right" else op.Greater(value, knot)
    counted: Any = op.Cast(below, to=7)  # int64
    return op.ReduceSum(counted, last, keepdims=0)
