"""A flow of zuko as the flow of an INDM, for vectors. pip install zuko

python examples/zuko_flow.py
indm train two-spirals --flow zuko_flow:ZukoFlow --flow.kind MAF --out runs/mine     # in this
folder
"""

from pathlib import Path

import torch
import tyro
import zuko
from torch import Tensor

import indm
from indm.flows import ForeignFlow

FORMULAS = (
    "MAF",
    "NICE",
    "NSF",
    "RealNVP",
)  # zuko.flows whose inverse is a formula; the others search for it


class ZukoFlow(ForeignFlow):
    """A flow of zuko by the name of its class: h is its transform, and its base distribution is not
    used.
    """

    def __init__(
        self, shape: tuple[int, ...], kind: str = "NSF", transforms: int = 3, width: int = 64
    ):
        super().__init__(inverse_is_formula=kind in FORMULAS)
        options = {"transforms": transforms, "hidden_features": (width, width)}
        self.lazy = getattr(zuko.flows, kind)(shape[0], **options).transform
        self.shape, self.kind, self.transforms, self.width = tuple(shape), kind, transforms, width

    def to_latent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.lazy(None).call_and_ladj(x)

    def to_data(self, z: Tensor) -> Tensor:
        return self.lazy(None).inv(z)


def main(steps: int = 300, out: Path = Path("runs/example-zuko")) -> None:
    """steps: of the optimizer; out: the run folder."""
    torch.manual_seed(0)
    model = indm.INDM(ZukoFlow((2,)), indm.ScoreModel(indm.MLP((2,)), indm.VPSDE()), shape=(2,))
    summary = indm.train(indm.recipe("two-spirals", {"train.steps": steps}), out, model=model)
    print(f"validation NELBO {summary['valid_nelbo']:.3f} {summary['unit']}")


if __name__ == "__main__":
    tyro.cli(main)
