"""A flow of normflows as the flow of an INDM; for other classes of it, change the layers. pip
install normflows

python examples/normflows_flow.py
indm evaluate runs/example-normflows --trust normflows_flow     # in this folder; --trust as the
class is yours indm train two-spirals --flow normflows_flow:NormflowsFlow --flow.steps 3 --out
runs/mine
"""

from pathlib import Path

import normflows
import torch
import tyro
from torch import Tensor, nn

import indm
from indm.flows import ForeignFlow


class NormflowsAdapter(ForeignFlow):
    """Any chain of normflows, listed from the latent to the data as that library does: h is its
    *inverse*.
    """

    def __init__(self, *layers: nn.Module, inverse_is_formula: bool = False):
        super().__init__(inverse_is_formula)
        self.layers = nn.ModuleList(layers)

    def to_latent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # some layers ask their input for a gradient, in place
        x = x if x.requires_grad else x.view_as(x)
        # summed here it keeps its precision, which normflows.NormalizingFlow loses
        log_det = x.new_zeros(len(x))
        for layer in reversed(self.layers):
            x, step = layer.inverse(x)
            log_det = log_det + step
        return x, log_det

    def to_data(self, z: Tensor) -> Tensor:
        for layer in self.layers:
            z, _ = layer(z)
        return z


class NormflowsFlow(NormflowsAdapter):
    """Splines and linear maps in turn, for vectors; made by its options, so that recipes and saved
    models name it.
    """

    def __init__(self, shape: tuple[int, ...], steps: int = 2, width: int = 64, bins: int = 8):
        (d,), parts = shape, normflows.flows
        splines = [
            parts.AutoregressiveRationalQuadraticSpline(d, 2, width, num_bins=bins)
            for _ in range(steps)
        ]
        super().__init__(
            *[layer for spline in splines for layer in (spline, parts.LULinearPermute(d))]
        )
        self.shape, self.steps, self.width, self.bins = tuple(shape), steps, width, bins


def main(steps: int = 300, out: Path = Path("runs/example-normflows")) -> None:
    """steps: of the optimizer; out: the run folder."""
    torch.manual_seed(0)
    model = indm.INDM(
        NormflowsFlow((2,)), indm.ScoreModel(indm.MLP((2,)), indm.VPSDE()), shape=(2,)
    )
    summary = indm.train(indm.recipe("two-spirals", {"train.steps": steps}), out, model=model)
    print(f"validation NELBO {summary['valid_nelbo']:.3f} {summary['unit']}")


if __name__ == "__main__":
    tyro.cli(main)
