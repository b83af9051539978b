"""Errors of a run under TF32: convolutions of factors rounded to 10 bits, as PyTorch lets GPUs make
them.

    indm train fashion-mnist-16 --train.steps 250 --train.seconds inf --out runs/tf32
    python bench/tf32.py runs/tf32

Emulated on any machine. Then a residual flow with slopes up to 0.94, whose inverse is iterative.
"""

import argparse
import math
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import indm
from indm.likelihood import latent_reference
from indm.workbench.data.base import stack
from indm.workbench.runs.folder import data_of, open_run

IMAGES = 16


class TF32(TorchDispatchMode):
    """Rounds the factors of every convolution in float32, forward and backward, while ``is_on()``."""

    def __init__(self, is_on=lambda: True):
        super().__init__()
        self.is_on = is_on

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if (
            func
            in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)
            and self.is_on()
        ):
            args = tuple(map(rounded, args))
        return func(*args, **(kwargs or {}))


def rounded(value):
    """A tensor in float32, rounded to even at 10 bits; anything else as it is.

    >>> rounded(torch.tensor([1 + 2**-10, 1 + 2**-11, 1 + 2**-12])).sub(1).mul(2**10).tolist()
    [1.0, 0.0, 0.0]
    """
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    bits = value.contiguous().view(torch.int32)
    return (bits + 0xFFF + (bits >> 13 & 1) & ~0x1FFF).view(torch.float32)


def results(model: indm.INDM, raw: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Bits/dim of images, and samples in model units."""
    law, bits = latent_reference(model, reference), math.prod(model.shape) * math.log(2)
    x, log_q = model.from_data(raw, generator=torch.Generator().manual_seed(0))
    report = indm.nll(
        model, x, reference=law, log_q=log_q, generator=torch.Generator().manual_seed(1)
    )
    bound = indm.nelbo(model, x, reference=law, generator=torch.Generator().manual_seed(2)).total
    samples = indm.sample(model, IMAGES, generator=torch.Generator().manual_seed(3))
    return {"NLL": report.total / bits, "NELBO": bound / bits, "samples": samples}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    from performance import steep_flow

    model, _ = open_run(run)
    test = stack(data_of(run, model).test, 500)
    exact = results(model, test[:IMAGES], test)
    with TF32():
        tf32 = results(model, test[:IMAGES], test)
    for name, values in exact.items():
        off = tf32[name] - values
        print(f"{name}: off by {off.mean():+.5f} on average, {off.abs().max():.5f} at most")
    with torch.no_grad():
        flow = steep_flow(model.shape).eval()
        z = flow.latent(torch.rand(IMAGES, *model.shape) * 2 - 1)
        for name, arithmetic in {"float32": nullcontext(), "TF32": TF32()}.items():
            with arithmetic:
                _, residual, evaluations, converged = flow.solve_inverse(z)
            print(
                f"inverse in {name}: {int(converged.sum())} of {IMAGES} certified, residual {residual.max():.1e}, "
                f"{evaluations.double().mean():.0f} evaluations"
            )


if __name__ == "__main__":
    main()
