"""Ways to translate between two classes, in one table: two INDMs, DDIB, a bridge, one model of both, a plain copy.

    python bench/translation.py sneaker-boot pullover-dress digits-3-8 --out runs/translation

All have the recipe's network and about the same seconds: each of INDM's two models makes ``--steps`` steps, each of
DDIB's (the same with the identity flow) 1.15 times as many, about what a step of INDM costs of a linear one. What is
one model makes twice as many: the bridge, and an INDM and a linear diffusion that are told the class. These go up as
class A and down as class B, the linear one also by SDEdit: noise up to t, then down as class B. Test images of A are
translated and compared with B, see ``indm/evaluation/translation_metrics.py``; the classifier is that of all the data
set's classes. Killed and started again, it goes on. Writes ``RECIPE.json``, ``RECIPE.md`` and ``RECIPE.png``;
with ``--cycles`` it trains the pairs alone, and looks at the error of A → B → A along the steps.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

import indm
from indm.config import recipes
from indm.data.base import stack
from indm.data.registry import load_data
from indm.evaluation.extractor import load_or_train
from indm.evaluation.plots import save_pixels
from indm.evaluation.sheets import Panel, sheet
from indm.evaluation.translation_metrics import COLUMNS, limits, row, translation_metrics, two_classes
from indm.evaluation.translation_runs import TranslationRuns, open_runs
from indm.files import atomic
from indm.model import INDM
from indm.training.loop import train
from indm.training.pairs import train_pair
from indm.translation import Route, sdedit, two_models

LINEAR = 1.15  # steps of a linear diffusion in the time of one of INDM
IMAGES = 200  # of A's test split, at most
SHOWN = 10
CYCLED = 32  # images whose error is looked at along the steps
STEPS, CONVERGED = (50, 75, 100, 120, 200), 300  # of the cycle
STRENGTHS = (0.3, 0.5)  # of SDEdit
NAMES = {
    "indm": "two INDMs",
    "indm 0.5": "two INDMs, strength 0.5",
    "ddib": "DDIB (linear)",
    "ddib 0.5": "DDIB, strength 0.5",
    "bridge": "bridge",
    "classes": "one INDM of both classes",
    "linear classes": "one linear model of both",
    "sdedit 0.3": "one linear model, SDEdit 0.3",
    "sdedit 0.5": "one linear model, SDEdit 0.5",
}
LINEAR_FLOW = {"flow": "identity", "train.flow_update_every": "1"}


def of_classes(recipe: dict, changes: dict[str, str], out: Path) -> Route:
    """The route from A to B by one model of both, which is told the class; trained or read."""
    data = two_classes(*(load_data(**recipe[table]) for table in ("data", "data_b")))
    changes = {"condition": "classes", "train.terminal": "0"} | changes
    alone = recipes.override({name: table for name, table in recipe.items() if name != "data_b"}, changes)
    if not (out / "summary.json").exists():
        whole({out.name: indm.train(alone, out, data=data, resume=(out / "checkpoint.pt").exists())})
    model = INDM.load(out)
    return two_models(model, model, c=data.classes)


def untimed(recipe: dict, steps: int) -> dict:
    """``recipe`` for so many steps, however long they take."""
    options = {"train.seconds": "inf", "train.validate_every": "1000000", "train.steps": str(steps)}
    return recipes.override(recipe, options)


def pairs(recipe: dict, steps: int, out: Path) -> dict[str, TranslationRuns]:
    """The two INDMs and the two linear models, trained where they are not yet."""
    linear = recipes.override(untimed(recipe, round(LINEAR * steps)), LINEAR_FLOW)
    for name, changed in {"indm": untimed(recipe, steps), "ddib": linear}.items():
        whole(train_pair(changed, out / name, resume=(out / name).exists()))
    return {name: open_runs([out / name]) for name in ("indm", "ddib")}


def routes(recipe: dict, steps: int, out: Path) -> dict[str, Route]:
    """Every method, trained where it is not yet."""
    trained = pairs(recipe, steps, out)
    changed = untimed(recipe, 2 * steps)
    whole({"bridge": train(changed, out / "bridge", resume=(out / "bridge" / "checkpoint.pt").exists())})
    found = {
        name: of_classes(untimed(recipe, 2 * count), changes, out / name)
        for name, count, changes in (("classes", steps, {}), ("linear classes", round(LINEAR * steps), LINEAR_FLOW))
    }
    _, down = found["linear classes"].legs
    found |= {name: opened.route() for name, opened in trained.items()}
    found["bridge"] = open_runs([out / "bridge"]).route()
    found |= {f"{name} 0.5": opened.route(strength=0.5) for name, opened in trained.items()}
    found |= {f"sdedit {s}": sdedit(down.model, c=down.c, strength=s) for s in STRENGTHS}
    return {name: found[name] for name in NAMES}


def whole(summaries: dict[str, dict]) -> None:
    """Stop where a training was told to."""
    if any(summary["interrupted"] for summary in summaries.values()):
        raise KeyboardInterrupt


def study(name: str, steps: int, out: Path) -> dict:
    """Train, translate and compare for one recipe."""
    recipe = recipes.load(name)
    a, b = (load_data(**recipe[table]) for table in ("data", "data_b"))
    whole = load_data(**{key: value for key, value in recipe["data"].items() if key != "label"})
    extractor, label = load_or_train(out / "extractor", whole), recipe["data_b"]["label"]
    raw = stack(a.test, IMAGES)
    found: dict = {"images": len(raw), "steps": steps, "extractor": extractor.provenance, "methods": {}}
    pictures = {"source": raw[:SHOWN]}
    copied = translation_metrics(raw, raw, b, extractor, label)
    for method, route in routes(recipe, steps, out).items():
        x, generator = route.models[0].scaling.centre(raw), torch.Generator().manual_seed(0)
        started = time.perf_counter()
        there = route.follow(x, generator=generator)
        seconds = (time.perf_counter() - started) / len(raw)
        result = route.models[1].scaling.to_data(there.x)
        values = translation_metrics(raw, result, b, extractor, label) | {
            "nfe": there.nfe,
            "seconds_per_image": seconds,
        }
        if not any(leg.noise for leg in route.legs):
            back = route.back().follow(there.x)
            error = ((back.x - x) * route.models[0].scaling.scale).flatten(1).abs().amax(1)
            values |= {"cycle_error_max": error.max().item(), "cycle_error_median": error.median().item()}
        found["methods"][method] = values
        pictures[method] = result[:SHOWN]
        print(method, row(values), values.get("cycle_error_max"), flush=True)
    found |= {"copy": copied, "cycle": cycles(open_runs([out / "indm"]), raw[:CYCLED])}
    atomic.json_object(out / f"{name}.json", found)
    atomic.text(out / f"{name}.md", table(found))
    picture(pictures, a.scaling.levels, out / f"{name}.png")
    return found


def cycles(opened: TranslationRuns, raw: Tensor) -> list[dict]:
    """The error of A → B → A and the distance of B from its converged solution along the steps: in grey levels, the
    largest over an image, its median and largest over images; and the share of images that come back in all bits."""

    def levels(error: Tensor) -> dict[str, float]:
        largest = (error * opened.models[0].scaling.scale).flatten(1).abs().amax(1)
        return {"median": largest.median().item(), "largest": largest.max().item()}

    rows, scaling = [], opened.models[0].scaling
    x = scaling.centre(raw)
    converged = opened.route(steps=CONVERGED).follow(x).x
    for steps in STEPS:
        route = opened.route(steps=steps)
        there = route.follow(x)
        back = route.back().follow(there.x).x
        same = (scaling.to_data(back) == raw).flatten(1).all(1).double().mean().item()
        line = {"steps": steps, "nfe": there.nfe, "cycle": levels(back - x), "same": same}
        rows.append(line | {"distance": levels(there.x - converged)})
    return rows


def table(found: dict) -> str:
    """The table as Markdown."""
    head = ["method", *COLUMNS.values(), "cycle error, levels", "evaluations", "s/image"]
    rows = []
    for method, values in found["methods"].items():
        cycle = f"{values['cycle_error_max']:.2g}" if "cycle_error_max" in values else "–"
        rows.append([NAMES[method], *row(values), cycle, str(values["nfe"]), f"{values['seconds_per_image']:.2g}"])
    rows.append(["copy of the source", *row(found["copy"]), "0", "0", "0"])
    rows.append(["B's own test images", *limits(found["copy"])["B's test images"], "–", "–", "–"])
    return f"{markdown([head, *rows])}\n{cycle_table(found['cycle'])}"


def study_cycles(name: str, steps: int, out: Path) -> None:
    """Train the pairs of one recipe, and print the error of their cycles."""
    recipe = recipes.load(name)
    raw = stack(load_data(**recipe["data"]).test, CYCLED)
    for method, opened in pairs(recipe, steps, out).items():
        print(f"{name}, {NAMES[method]}\n{cycle_table(cycles(opened, raw))}", flush=True)


def cycle_table(rows: list[dict]) -> str:
    """The table of :func:`cycles`."""
    head = [
        "evaluations",
        "cycle: median",
        "largest",
        "images back in all bits",
        "from the converged: median",
        "largest",
    ]
    lines = [
        [str(row["nfe"]), *(f"{v:.2g}" for v in (*row["cycle"].values(), row["same"], *row["distance"].values()))]
        for row in rows
    ]
    return markdown([head, *lines])


def markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body)) + "\n"


def picture(pictures: dict[str, Tensor], levels: int, path: Path) -> None:
    names = [NAMES.get(name, name) for name in pictures]
    save_pixels(sheet([Panel(torch.cat(list(pictures.values())), SHOWN, rows=names)], levels), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--steps", type=int, default=600, help="of each of INDM's two models")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cycles", action="store_true", help="the error of the cycle along the steps alone")
    options = parser.parse_args()
    for name in options.recipes:
        out = options.out / name
        out.mkdir(parents=True, exist_ok=True)
        if options.cycles:
            study_cycles(name, options.steps, out)
            continue
        found = study(name, options.steps, out)
        print(f"{name}\n{json.dumps({k: v['frechet'] for k, v in found['methods'].items()})}\n{table(found)}")


if __name__ == "__main__":
    main()
