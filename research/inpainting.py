"""Missing pixels drawn by a model, beside a method without a model: training images that agree on the other pixels.

    python -m research.inpainting digits-pretrained fashion-mnist-pretrained    # rows of inpainting.csv, and pictures

Rows that are there are not made again.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

import indm
from indm.evaluation.statistics import mean_and_error
from indm.workbench.data.base import Data, load_data, stack
from indm.workbench.figures import plots, sheets
from indm.workbench.runs.folder import recipe_of, run_folder
from research.lab import statistics
from research.markdown import in_table, with_error
from research.records import RECORDS, Records, Row, made_by

IMAGES, DRAWS, SEED = 24, 8, 0  # images of the test split; draws of each; seed
SHOWN = 6  # images of a picture, and draws of each
SHOWN_NUMBERS = (("crps", ".2f"), ("than_neighbours", "+.2f"))
Images = Num[Tensor, "n c h w"]
Mask = Bool[Tensor, "c h w"]


def half(shape: tuple[int, ...]) -> Mask:
    """The lower half is missing."""
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:, shape[1] // 2 :] = True
    return mask


def centre(shape: tuple[int, ...]) -> Mask:
    """The middle quarter is missing."""
    mask, (_, height, width) = torch.zeros(shape, dtype=torch.bool), shape
    mask[:, height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return mask


def scattered(shape: tuple[int, ...]) -> Mask:
    """Half of the pixels are missing, drawn once."""
    drawn = torch.rand((1, *shape[1:]), generator=torch.Generator().manual_seed(SEED)) < 0.5
    return drawn.expand(shape)


MASKS = {mask.__name__: mask for mask in (scattered, centre, half)}


def by_model(model: indm.INDM, data: Data, raw: Images, mask: Mask) -> Num[Tensor, "n draws c h w"]:
    """Draws of :func:`indm.inpaint`, of p(x) also where the model knows classes."""
    many, generator = raw.repeat_interleave(DRAWS, 0), torch.Generator().manual_seed(SEED)
    return indm.inpaint(model, many, mask, len(many), generator=generator).unflatten(0, (len(raw), DRAWS))


def by_neighbours(model: indm.INDM, data: Data, raw: Images, mask: Mask) -> Num[Tensor, "n draws c h w"]:
    """The training images that are nearest in the pixels that are there."""
    train = stack(data.train)
    seen = (~mask).flatten()
    distance = torch.cdist(raw.flatten(1)[:, seen].float(), train.flatten(1)[:, seen].float())
    return train[distance.topk(DRAWS, largest=False).indices]


METHODS: dict[str, Callable[..., Tensor]] = {"indm": by_model, "neighbours": by_neighbours}


def crps(draws: Num[Tensor, "n draws k"], truth: Num[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """The mean over pixels of :func:`research.lab.statistics.crps`, in grey levels."""
    of_pixels = statistics.crps(draws.double().transpose(0, 1).flatten(1).numpy(), truth.flatten().numpy())
    return torch.from_numpy(of_pixels).view(truth.shape).mean(1)


def spread(draws: Num[Tensor, "n draws k"], truth: Num[Tensor, "n k"]) -> float:
    """Deviation of the draws over the error of their mean, root mean squares; 1 if draws and truth are of one law."""
    draws = draws.double()
    expected = draws.var(1).mean() * (1 + 1 / draws.shape[1])
    return (expected / (draws.mean(1) - truth).square().mean()).sqrt().item()


def measure(model: indm.INDM, data: Data, kind: str, made: Records) -> None:
    """Write a row for each method; ``than_neighbours`` is the mean difference of its CRPS, paired by image.

    Errors are over the groups of the data, where it has some: patches of one photograph are alike.
    """
    raw, mask = stack(data.test, IMAGES), MASKS[kind](model.shape)
    groups = data.groups["test"][:IMAGES] if data.groups else None
    missing, found, drawn = mask.flatten(), {}, {}
    for method, draw in METHODS.items():
        started = time.process_time()
        draws = draw(model, data, raw, mask)
        seconds = time.process_time() - started
        of_missing, truth = draws.flatten(2)[..., missing], raw.flatten(1)[:, missing]
        drawn[method], found[method] = crps(of_missing, truth), {"spread": spread(of_missing, truth)}
        found[method] |= {"images": len(raw), "draws": DRAWS, "cpu_seconds": round(seconds, 1)}
    for method, row in found.items():
        of = {"crps": drawn[method], "than_neighbours": drawn[method] - drawn["neighbours"]}
        for name, values in of.items():
            row[name], row[f"{name}_error"] = mean_and_error(values, groups)
        made.at(mask=kind, method=method).add(row | made_by(SEED))


def table(made: Records) -> str:
    columns = ("model", "missing", "method", "CRPS", "CRPS − neighbours", "spread", "CPU s a draw")
    return in_table(*columns, rows=[line(row) for row in made.rows()])


def line(row: Row) -> tuple[object, ...]:
    own, less = (with_error(row[name], row[f"{name}_error"], form) for name, form in SHOWN_NUMBERS)
    seconds = row["cpu_seconds"] / row["images"] / row["draws"]
    less = "–" if row["method"] == "neighbours" else less
    return row["model"], row["mask"], row["method"], own, less, f"{row['spread']:.2f}", f"{seconds:.2f}"


def picture(model: indm.INDM, data: Data, path: Path) -> None:
    """Test images, what is left of them, and draws, by the lower half and the middle."""
    levels, raw = int(model.scaling.levels or 0), stack(data.test, SHOWN)
    panels = []
    for kind in ("half", "centre"):
        mask = MASKS[kind](model.shape)
        draws = by_model(model, data, raw, mask)[:, :SHOWN]
        left = torch.where(mask, torch.full_like(raw, levels // 2), raw)
        rows = torch.cat([raw[:, None], left[:, None], draws], 1)
        panels.append(sheets.Panel(rows.flatten(0, 1), rows.shape[1], tops=("image", "given", *["draw"] * SHOWN)))
    plots.save_pixels(sheets.sheet(panels, levels, across=1), path)


@indm.trust("research")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="folders, or models of the package")
    parser.add_argument(
        "--pictures", type=Path, default=Path("research/figures"), help="where inpainting-NAME.png goes"
    )
    o = parser.parse_args()
    made = Records(RECORDS / "inpainting.csv")
    for name in o.runs:
        folder = run_folder(Path(name))
        model, data = indm.INDM.load(folder), load_data(**recipe_of(folder)["data"])
        model_name = folder.name.removesuffix("-pretrained")
        own = made.at(model=model_name)
        for kind in MASKS:
            if not own.at(mask=kind).rows():
                measure(model, data, kind, own)
        picture(model, data, o.pictures / f"inpainting-{model_name}.png")
    print(table(made))


if __name__ == "__main__":
    main()
