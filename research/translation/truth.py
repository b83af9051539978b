"""Translations whose truth is known: between Gaussians, and from digits to their negatives.

    python -m research.translation.truth --steps 1000 --out runs/truth

*Gaussians* N(0, Σ_A) and N(0, Σ_B) in the plane, of deviations 2 and 1/2, B turned by 45°. The optimal transport map is
O = Σ_A^(-1/2) (Σ_A^(1/2) Σ_B Σ_A^(1/2))^(1/2) Σ_A^(-1/2). Two models with exact scores give M = Σ_B^(1/2) Σ_A^(-1/2) up
to what is left of the data at T: it carries A to B, too, but is O only where both covariances commute. Printed is the
RMS distance of translations of 2000 points from M and from O: with exact scores, and of two trained models.

*Digits* of 17 levels and their negatives, 16 − x: the distance of translations from the negative of the source and from
the negatives of all test digits, with the share whose own negative is the nearest.

Each is a row of ``translation-truth.csv``, which is not made again.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import indm
from indm.flows import Identity
from indm.model import INDM
from indm.scaling import Scaling
from indm.sde.linear import VPSDE, LinearSDE
from indm.tensors import expand_like
from indm.translation import two_models
from indm.workbench.data.base import as_data, load_data, stack
from indm.workbench.recipes import recipe as recipes
from indm.workbench.training.pairs import train_pair
from indm.workbench.translation.routes import open_runs
from research.markdown import in_table
from research.records import RECORDS, Records, made_by
from research.translation.metrics import others_as_near

DEVIATIONS, ANGLE, POINTS = (2.0, 0.5), math.pi / 4, 2000


def power(matrix: Tensor, exponent: float) -> Tensor:
    """Of a symmetric positive one."""
    values, basis = torch.linalg.eigh(matrix)
    return basis @ (values**exponent).diag() @ basis.T


def maps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """M of two models with exact scores, and O, the optimal transport map, from N(0, ``a``) to N(0, ``b``)."""
    root, inverse = power(a, 0.5), power(a, -0.5)
    return power(b, 0.5) @ inverse, inverse @ power(root @ b @ root, 0.5) @ inverse


class Exact(nn.Module):
    """The score of z_t for data N(0, covariance)."""

    def __init__(self, sde: LinearSDE, covariance: Tensor):
        super().__init__()
        self.sde = sde
        self.register_buffer("covariance", covariance)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (expand_like(of(t), z)[..., None] for of in (self.sde.alpha, self.sde.sigma))
        whole = alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.covariance)).to(z)
        return -torch.linalg.solve(whole, z)


def covariances(angle: float = ANGLE) -> tuple[Tensor, Tensor]:
    a = torch.tensor(DEVIATIONS, dtype=torch.float64).square().diag()
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    return a, turn @ a @ turn.T


def exact_models(a: Tensor, b: Tensor) -> tuple[INDM, INDM]:
    first, second = (INDM(Identity(), Exact(VPSDE(), each), shape=(len(each),)).double() for each in (a, b))
    return first, second


def distances(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> dict[str, float]:
    """RMS over points: of ``y`` from M x and from O x, of both from one another, of O x from x."""
    model, optimal = (x.double() @ matrix.T for matrix in maps(a, b))
    pairs = {"from M": y - model, "from O": y - optimal, "M from O": model - optimal, "O from x": optimal - x}
    return {name: v.double().square().sum(1).mean().sqrt().item() for name, v in pairs.items()}


def drawn(covariance: Tensor, n: int, seed: int) -> Tensor:
    noise = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return noise @ power(covariance, 0.5)


def gaussians(steps: int, out: Path) -> dict:
    a, b = covariances()
    x = drawn(a, POINTS, 0)
    exact = distances(x, two_models(*exact_models(a, b)).follow(x).x, a, b)
    trained = []
    for seed, (side, covariance) in enumerate({"a": a, "b": b}.items(), 1):
        data = replace(as_data(drawn(covariance, 20_000, seed).float()), scaling=Scaling())
        changes = {"flow": "coupling", "train.steps": steps, "train.seconds": math.inf, "train.batch_size": 256}
        recipe = indm.recipe("eight-gaussians", changes)
        if not (out / side / "summary.json").exists():
            indm.train(recipe, out / side, data=data, progress=False)
        trained.append(INDM.load(out / side))
    x = x.float()
    return {"exact scores": exact, "trained": distances(x, indm.translate(*trained, x), a, b)}


def negatives(steps: int, out: Path) -> dict:
    """In grey levels of 17, root mean squares over pixels: of what is translated, and of the source as it is."""
    changes = {"data": "digits", "data_b": "digits", "data_b.negative": "true", "train.seconds": "inf"}
    recipe = recipes.override(recipes.load("digits-3-8"), changes | {"train.steps": str(steps)})
    train_pair(recipe, out, resume=out.exists(), progress=False)
    route = open_runs([out]).route()
    raw, truth = (stack(load_data(**recipe[table]).test) for table in ("data", "data_b"))
    first, last = route.models
    result, found = last.scaling.to_data(route.follow(first.scaling.centre(raw)).x), {}
    for name, images in {"translated": result, "source as it is": raw}.items():
        apart = torch.cdist(images.flatten(1).double(), truth.flatten(1).double()) / 8  # RMS of 64 pixels
        nearest = (others_as_near(apart) == 0).double().mean()
        values = {"to its negative": apart.diagonal().mean(), "to all": apart.mean(), "nearest": nearest}
        found[name] = {key: round(value.item(), 4) for key, value in values.items()}
    return found


def table(made: Records) -> str:
    """The RMS distances of both studies: in the units of the plane, and in grey levels of 17."""
    (plane,), (grey,) = (made.at(study=name).rows() for name in ("gaussians", "negatives"))
    rows = [
        (f"Gaussians, {name}", "the models' map", plane[name]["from M"], "the optimal map", plane[name]["from O"])
        for name in ("exact scores", "trained")
    ]
    rows += [
        (f"digits, {name}", "its own negative", grey[name]["to its negative"], "all negatives", grey[name]["to all"])
        for name in ("translated", "source as it is")
    ]
    shown = [(what, f"{a:.4g} from {first}", f"{b:.4g} from {second}") for what, first, a, second, b in rows]
    return in_table("what", "RMS distance", "RMS distance", rows=shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="of each model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the table")
    o = parser.parse_args()
    torch.set_num_threads(1)
    for study in (gaussians, negatives):
        name, table = study.__name__, Records(o.records / "translation-truth.csv")
        cell = table.at(study=name, steps=o.steps)
        found = cell.kept(lambda s=study: s(o.steps, o.out / s.__name__) | made_by(0))
        print(name, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
