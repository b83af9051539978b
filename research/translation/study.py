"""Ways to translate between two classes, in one table: two INDMs, DDIB, a bridge, one model of both, a plain copy.

    python -m research.translation digits-3-8 --steps 250 --seeds 3 --out runs/translation # whatever has no record yet
    python -m research.translation emoji-32 --paths GOOGLE TWITTER --steps 750             # two artists, with the truth
    python -m research.translation digits-3-8 sneaker-boot --table                         # of the records alone

All have the recipe's network and, but for the bridge, whose TarFlow takes longer, about the same seconds: each of
INDM's two models makes ``--steps`` steps, each of DDIB's (the same with the identity flow) 1.15 times as many, about
what a step of INDM costs of a linear one. What is one model makes twice as many: the bridge of the form terminal, and
the same with the weight of B that A has, with noise in B alone, with half of the noise, and with about half of two
INDMs' parameters; an INDM and a linear diffusion that are told the class. The last two go up as class A and down as
class B, the linear one also by SDEdit: noise up to t, then down as class B. Test images of A are translated and
compared with B, see ``research/translation/metrics.py``; the classifier is that of all the data set's
classes, of emoji that of the two artists. There each source has a true counterpart, the same thing by the other artist,
and records say how near results come to it. Trainings differ in their seed, and are taken as they are after their last
step, never the best one.

Each method of each training is a row of ``translation.csv``, which is not made again; killed and started again, it
goes on. ``RECIPE.png`` in ``--out`` has pictures of the first training. With ``--cycles`` it
takes the pairs and the bridge of the first training alone, and looks at the error of A → B → A along the steps.
"""

import argparse
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import indm
from indm.model import INDM, count_parameters
from indm.translation import Route, sdedit, two_models
from indm.workbench.data.base import Data, load_data, stack
from indm.workbench.evaluation.statistics import over_seeds, paired
from indm.workbench.figures.plots import save_pixels
from indm.workbench.figures.sheets import Panel, sheet
from indm.workbench.recipes import recipe as recipes
from indm.workbench.training.checkpoints import has_state
from indm.workbench.training.loop import train
from indm.workbench.training.pairs import as_bridge, train_pair
from indm.workbench.translation.routes import TranslationRuns, open_runs
from research.data import recipe_file
from research.lab.extractor import general_features, load_or_train
from research.markdown import in_table, with_error
from research.records import RECORDS, Records, made_by
from research.translation.metrics import COLUMNS, RECALL, against_truth, limits, translation_metrics, two_classes

LINEAR = 1.15  # steps of a linear diffusion in the time of one of INDM
IMAGES = 200  # of A's test split, at most
ARTISTS = "emoji-32"  # of two packages, whose test splits have the same things in the same order
EVERY = 302  # test images of emoji: among so many is a counterpart looked for
SHOWN = 10
CYCLED = 32  # images that also go back
STEPS, CONVERGED = (20, 30, 40, 50, 60, 80, 120), 300  # of the cycle
WITH_CYCLES = ("indm", "ddib", "bridge")
STRENGTHS = (0.3, 0.5)  # of SDEdit
GUIDANCES = (4, 6)  # away from class A, of one model of both: chosen on validation emoji among 4, 5, 6 and 8
TRUTH = {  # columns beside COLUMNS where the truth is known
    "truth_distance": "to the counterpart, levels",
    "truth_features": "features",
    "truth_ssim": "SSIM",
    **{f"truth_recall_{k}": f"recall at {k}" for k in RECALL},
}
NAMES = {
    "indm": "two INDMs",
    "indm 0.5": "two INDMs, strength 0.5",
    "ddib": "DDIB (linear)",
    "ddib 0.5": "DDIB, strength 0.5",
    "bridge": "bridge",
    "bridge weight 1": "bridge, B of weight 1",
    "bridge clean": "bridge, A without noise",
    "bridge noise 0.05": "bridge, noise of 0.05",
    "bridge once": "bridge, A with noise of one sign",
    "bridge half": "bridge, half of two INDMs' parameters",
    "classes": "one INDM of both classes",
    "classes guided 4": "one INDM of both classes, guidance 4",
    "classes guided 6": "one INDM of both classes, guidance 6",
    "linear classes": "one linear model of both",
    "sdedit 0.3": "one linear model, SDEdit 0.3",
    "sdedit 0.5": "one linear model, SDEdit 0.5",
}
AGAINST_LINEAR = (("indm", "ddib"), ("classes", "linear classes"))
INDM_OF_IMAGES = {"flow": "coupling", "train.flow_lr": "1e-3", "train.flow_update_every": "3"}
BRIDGES: dict[str, dict[str, str]] = {
    "bridge": {},
    "bridge weight 1": {"train.terminal": "1"},
    "bridge half": {"net.channels": "24", "flow.width": "64"},
    "bridge clean": {"train.initial_noise": "0"},
    "bridge noise 0.05": {"train.initial_noise": "0.05", "train.terminal_noise": "0.05"},
}
OF_NOISE = ("bridge clean", "bridge noise 0.05", "bridge once")  # of recipes alone whose bridge has noise in A
LINEAR_FLOW = {"flow": "identity", "train.flow_update_every": "1"}


def of_classes(recipe: dict, changes: dict[str, str], out: Path) -> Route:
    """The route from A to B by one model of both, which is told the class; trained or read."""
    data = two_classes(*(load_data(**recipe[table]) for table in ("data", "data_b")))
    changes = {"condition": "classes"} | changes
    alone = recipes.override({name: table for name, table in recipe.items() if name != "data_b"}, changes)
    if not (out / "summary.json").exists():
        whole({out.name: indm.train(alone, out, data=data, resume=has_state(out))})
    model = INDM.load(out)
    return two_models(model, model, c=data.classes)


def recipe_of(name: str, paths: Sequence[str] | None, seed: int) -> dict:
    """A recipe of two data sets: a bundled one, or emoji of two packages."""
    recipe = recipes.override(recipes.load(recipe_file(name)), {"train.seed": str(seed)})
    if name != ARTISTS:
        return recipe
    if paths is None:
        raise SystemExit(f"{ARTISTS} needs --paths: the packages of two artists, unpacked")
    first, second = paths
    recipe = recipes.override(recipe, {"data.path": first} | INDM_OF_IMAGES)
    bridge = recipes.load("translate-folders")["bridge"]
    return recipe | {"data_b": recipe["data"] | {"path": second}, "bridge": bridge}


def classified(recipe: dict, a: Data, b: Data) -> tuple[Data, int]:
    """The data that the classifier is trained on, and the class of B there."""
    if "label" not in recipe["data"]:
        return two_classes(a, b), 1
    of_all = load_data(**{key: value for key, value in recipe["data"].items() if key != "label"})
    return of_all, recipe["data_b"]["label"]


def untimed(recipe: dict, steps: int) -> dict:
    """``recipe`` for so many steps, however long they take."""
    options = {"train.seconds": "inf", "train.validate_every": "1000000", "train.steps": str(steps)}
    return recipes.override(recipe, options | {"train.final": "last"})


def pair(recipe: dict, steps: int, out: Path, name: str) -> TranslationRuns:
    """The two INDMs ("indm") or the two linear models ("ddib"), trained where they are not yet."""
    linear = recipes.override(untimed(recipe, round(LINEAR * steps)), LINEAR_FLOW)
    changed = {"indm": untimed(recipe, steps), "ddib": linear}[name]
    whole(train_pair(changed, out / name, resume=(out / name).exists()))
    return open_runs([out / name])


def bridge(recipe: dict, steps: int, out: Path, name: str = "bridge") -> TranslationRuns:
    """The bridge of one of :data:`BRIDGES`, trained where it is not yet."""
    run, changed = out / name, recipes.override(untimed(as_bridge(recipe), 2 * steps), BRIDGES[name])
    whole({name: train(changed, run, resume=has_state(run))})
    return open_runs([run])


def routes(recipe: dict, steps: int, out: Path) -> dict[str, Callable[[], Route]]:
    """What makes the route of each method; a model that it needs is trained where it is not yet."""

    @functools.cache
    def two(name: str) -> TranslationRuns:
        return pair(recipe, steps, out, name)

    @functools.cache
    def one(name: str) -> Route:
        count, changes = {"classes": (steps, {}), "linear classes": (round(LINEAR * steps), LINEAR_FLOW)}[name]
        return of_classes(untimed(recipe, 2 * count), changes, out / name)

    def guided(weight: float) -> Route:
        up, down = one("classes").legs
        return two_models(up.model, down.model, c=(up.c, down.c), guidance=weight)

    def noised(strength: float) -> Route:
        _, down = one("linear classes").legs
        return sdedit(down.model, c=down.c, strength=strength)

    makers: dict[str, Callable[[], Route]] = {
        **{name: lambda name=name: two(name).route() for name in ("indm", "ddib")},
        **{f"{name} 0.5": lambda name=name: two(name).route(strength=0.5) for name in ("indm", "ddib")},
        **{name: lambda name=name: one(name) for name in ("classes", "linear classes")},
        **{f"classes guided {w}": lambda w=w: guided(w) for w in GUIDANCES},
        **{f"sdedit {s}": lambda s=s: noised(s) for s in STRENGTHS},
        **{name: lambda name=name: bridge(recipe, steps, out, name).route() for name in BRIDGES},
        "bridge once": lambda: bridge(recipe, steps, out).route(),
    }
    return makers


def whole(summaries: dict[str, dict]) -> None:
    """Stop where a training was told to."""
    if any(summary["interrupted"] for summary in summaries.values()):
        raise KeyboardInterrupt


def study(name: str, recipe: dict, steps: int, seed: int, out: Path, records: Records, methods: Sequence[str]) -> None:
    """Train, translate and compare for one recipe and seed; what has a record is not done again."""
    a, b = (load_data(**recipe[table]) for table in ("data", "data_b"))
    of_all, label = classified(recipe, a, b)
    extractor = load_or_train(out / "extractor", of_all)
    raw = stack(a.test, EVERY if name == ARTISTS else IMAGES)
    reader = {key: value for key, value in extractor.provenance.items() if key != "data"}  # which has paths
    about = {"steps": steps, "extractor": reader} | made_by(seed)
    place, drawn, pictures = records.at(seed=seed), out / f"{name}.png", {"source": raw[:SHOWN]}
    nothing = {"nfe": 0, "seconds_per_image": 0.0}

    def compared(result: Tensor) -> dict:
        if name != ARTISTS:
            return translation_metrics(raw, result, b, extractor, label)
        general = general_features()
        found = against_truth(raw, result, stack(b.test, EVERY), general.features, a.scaling.levels)
        truth = {f"truth_{key}": value for key, value in found["result"].items()}
        metrics = translation_metrics(raw, result, b, extractor, label, general.features)
        return metrics | truth | {"general": general.provenance}

    place.at(method="copy").kept(lambda: compared(raw) | nothing | about)
    makers = routes(recipe, steps, out / str(seed))
    for method in methods:
        if place.at(method=method).rows() and (seed or drawn.exists()):
            continue
        result, values = translated(makers[method](), raw, once=method == "bridge once")
        pictures[method] = result[:SHOWN]
        measured = compared(result) | values
        place.at(method=method).kept(lambda measured=measured: measured | about)
        print(method, measured["frechet"], measured["accuracy"], measured.get("cycle_error_max"), flush=True)
    if not (seed or drawn.exists()):
        picture(pictures, a.scaling.levels, drawn)


def translated(route: Route, raw: Tensor, once: bool = False) -> tuple[Tensor, dict[str, float]]:
    """What a route makes of images, and its cost, its parameters and the error of its cycle, where it has one."""
    x, generator = route.source(raw), torch.Generator().manual_seed(0)
    started = time.perf_counter()
    there = route.follow(x, generator=generator) if once else route.translate(raw, generator=generator)
    seconds = (time.perf_counter() - started) / len(raw)
    models = {id(leg.model): leg.model for leg in route.legs if not leg.noise}
    values = {
        "nfe": there.nfe,
        "seconds_per_image": round(seconds, 4),
        "parameters": sum(count_parameters(model) for model in models.values()),
    }
    if not any(leg.noise for leg in route.legs):
        back = route.back().follow(there.end[:CYCLED])
        error = ((back.end - x[:CYCLED]) * route.models[0].scaling.scale).flatten(1).abs().amax(1)
        values |= {"cycle_error_max": error.max().item(), "cycle_error_median": error.median().item()}
    return route.models[1].scaling.to_data(there.x), values


def cycles(opened: TranslationRuns, raw: Tensor) -> list[dict]:
    """The error of A → B → A and the distance of B from its converged solution along the steps: in grey levels, the
    largest over an image, its median and largest over images; and the share of images that come back in all bits."""

    def levels(error: Tensor) -> dict[str, float]:
        largest = (error * opened.models[0].scaling.scale).flatten(1).abs().amax(1)
        return {"median": largest.median().item(), "largest": largest.max().item()}

    rows, scaling = [], opened.models[0].scaling
    x = opened.route().source(raw)
    converged = opened.route(steps=CONVERGED).follow(x).x
    for steps in STEPS:
        route = opened.route(steps=steps)
        there = route.follow(x)
        back = route.back().follow(there.end).end
        same = (scaling.to_data(back) == scaling.to_data(x)).flatten(1).all(1).double().mean().item()
        line = {"steps": steps, "nfe": there.nfe, "cycle": levels(back - x), "same": same}
        rows.append(line | {"distance": levels(there.x - converged)})
    return rows


def table(records: Records) -> str:
    """Markdown: of each method the means over trainings, ± over trainings and images."""
    by_method, one = methods_of(records), records.at(method="copy").rows()[0]
    keys = [key for key in COLUMNS if one.get(key) is not None]
    rows = [(method, len(each), *columns(each, keys), *costs(each)) for method, each in by_method.items()]
    cells = dict(zip(COLUMNS, limits(one)["B's test images"], strict=True))
    rows.append(("B's own test images", "", *(cells[key] for key in keys), "–", "–", "–"))
    head = ("method", "trainings", *(COLUMNS[key] for key in keys))
    return in_table(*head, "cycle error: median, largest", "parameters", "evaluations", rows=rows)


def paired_table(records: Records) -> str:
    """Markdown: what flows change in the Fréchet distance to B, in pairs of trainings, ± over trainings."""
    rows = []
    for data, (flow, linear) in itertools.product(dict.fromkeys(row["data"] for row in records.rows()), AGAINST_LINEAR):
        a, b = ({r["seed"]: r["frechet"] for r in records.at(data=data, method=m).rows()} for m in (flow, linear))
        if seeds := sorted(a.keys() & b.keys()):
            d = paired([a[seed] for seed in seeds], [b[seed] for seed in seeds])
            error = with_error(d.difference, d.standard_error, "+.1f")
            rows.append((data, f"{NAMES[flow]} − {NAMES[linear]}", len(seeds), error))
    return in_table("data", "difference", "pairs", "Fréchet distance to B", rows=rows)


def truth_table(records: Records) -> str:
    """Markdown: how near each method comes to the true counterparts."""
    by_method, one = methods_of(records), records.at(method="copy").rows()[0]
    rows = [(method, len(each), *columns(each, TRUTH)) for method, each in by_method.items()]
    chances = (f"{one[f'truth_chance_{k}']:.2g}" for k in RECALL)
    rows.append(("guessing", *[""] * (1 + len(TRUTH) - len(RECALL)), *chances))
    return in_table("method", "trainings", *TRUTH.values(), rows=rows)


def methods_of(records: Records) -> dict[str, list[dict]]:
    """The records by the name of their method, the copy of the source last."""
    names = NAMES | {"copy": "copy of the source"}
    found = {name: records.at(method=method).rows() for method, name in names.items()}
    return {name: each[:1] if name == names["copy"] else each for name, each in found.items() if each}


def columns(found: Sequence[dict], keys: Iterable[str]) -> list[str]:
    """Means, each ± √(a² + b²): a over trainings where there are several, b over the images, which they share."""
    cells = []
    for key in keys:
        values = [values[key] for values in found if values.get(key) is not None]
        mean, trainings = over_seeds(values, 0.0) if values else (math.nan, math.nan)
        images = [values[f"{key}_standard_error"] for values in found if f"{key}_standard_error" in values]
        error = math.hypot(trainings, sum(images) / len(images)) if images else math.nan
        cells.append("–" if math.isnan(mean) else f"{mean:.3g}" + ("" if math.isnan(error) else f" ± {error:.1g}"))
    return cells


def costs(found: Sequence[dict]) -> list[str]:
    """The error of a cycle, of the training where it is largest; parameters and evaluations."""
    cycles = [values for values in found if "cycle_error_max" in values]
    largest = (max(values[f"cycle_error_{which}"] for values in cycles) for which in ("median", "max"))
    parameters = found[0].get("parameters")
    return [
        ", ".join(f"{value:.2g}" for value in largest) if cycles else "–",
        f"{parameters:,}" if parameters else "–",
        str(found[0]["nfe"]) if found[0]["nfe"] else "–",
    ]


def study_cycles(recipe: dict, steps: int, out: Path, records: Records) -> None:
    """The cycles of the pairs of one recipe and of its bridge, trained where they are not yet."""
    raw = stack(load_data(**recipe["data"]).test, CYCLED)

    def measured(method: str) -> dict:
        opened = bridge(recipe, steps, out) if method == "bridge" else pair(recipe, steps, out, method)
        return {"steps": steps, "cycles": cycles(opened, raw)} | made_by(0)

    for method in WITH_CYCLES:
        records.at(method=method).kept(lambda method=method: measured(method))


def cycle_table(records: Records) -> str:
    """Markdown: a row for each recipe and method, the steps across; the cycle, then B from its converged solution."""
    made = records.rows()
    measured = {
        f"{row['data']}, {NAMES[method]}": {line["steps"]: line for line in row["cycles"]}
        for data in sorted({row["data"] for row in made}, reverse=True)
        for method in WITH_CYCLES
        for row in made
        if (row["data"], row["method"]) == (data, method)
    }

    def across(key: str, words: str) -> str:
        rows = [[title, *("{median:.2g} / {largest:.2g}".format(**by_steps[steps][key]) for steps in STEPS)]
                for title, by_steps in measured.items()]  # fmt: skip
        return in_table(words, *(f"{steps} steps" for steps in STEPS), rows=rows)

    return across("cycle", "A → B → A") + "\n\n" + across("distance", "B from the converged")


def picture(pictures: dict[str, Tensor], levels: int, path: Path) -> None:
    names = [NAMES.get(name, name) for name in pictures]
    save_pixels(sheet([Panel(torch.cat(list(pictures.values())), SHOWN, rows=names)], levels), path)


@indm.trust("research")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--steps", type=int, default=600, help="of each of INDM's two models")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each method")
    parser.add_argument("--methods", nargs="+", choices=list(NAMES), help="to translate with; all by default")
    parser.add_argument("--paths", nargs=2, help="of the images, for emoji-32: the packages of two artists, unpacked")
    parser.add_argument("--out", type=Path, default=Path("runs/translation"), help="where the runs are or shall be")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the tables")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--cycles", action="store_true", help="the error of the cycle along the steps alone")
    alone.add_argument("--table", action="store_true", help="of the records alone")
    o = parser.parse_args()
    made, with_cycles = (Records(o.records / f"translation{kind}.csv") for kind in ("", "-cycles"))
    for name in o.recipes:
        out = o.out / name
        if o.cycles:
            (out / "0").mkdir(parents=True, exist_ok=True)
            study_cycles(recipe_of(name, o.paths, 0), o.steps, out / "0", with_cycles.at(data=name))
            continue
        for seed in range(0 if o.table else o.seeds):
            (out / str(seed)).mkdir(parents=True, exist_ok=True)
            recipe = recipe_of(name, o.paths, seed)
            known = [m for m in NAMES if m not in OF_NOISE or as_bridge(recipe)["train"].get("initial_noise")]
            study(name, recipe, o.steps, seed, out, made.at(data=name), o.methods or known)
        print(f"{name}\n{table(made.at(data=name))}")
        if name == ARTISTS:
            print(truth_table(made.at(data=name)))
    if o.cycles:
        print(cycle_table(with_cycles))
