"""A run as others get it: its model and recipe, samples, and a card that says what they are."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from indm.files import atomic, untrusted
from indm.messages import one_line
from indm.model import DESCRIPTION, WEIGHTS
from indm.names import KINDS, OPTIONAL_KINDS
from indm.workbench import hub
from indm.workbench.evaluation.results import likelihood_table, read_evaluation
from indm.workbench.recipes import paths
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.recipe import Recipe
from indm.workbench.runs.folder import RECIPE, end_of, recipe_of
from indm.workbench.runs.provenance import weights_hash
from indm.workbench.runs.samples import SAMPLE_FILES
from indm.workbench.training.pairs import SIDES, is_bridge, is_pair, noise_of

CARD, PICTURE = "README.md", "samples.png"
CONVENTIONS = """
Numbers are −log p of the raw data in the unit of the table, lower is better. The NELBO is an upper bound of it under
the generative SDE. The NLL is by the probability-flow ODE, to the solver's error of the last column. Numbers
"without reconstruction" are not likelihoods of the data. Compare them with numbers published this way. The standard
error is over the examples; the estimator's noise is the part of it that more draws would take away."""
RECORDED = ("indm", "git", "torch", "python", "device", "seed")  # of the provenance; a command may name private paths


def write(
    run: Path,
    folder: Path,
    name: str,
    license: str | None = None,
    command: str | None = None,
    more: Sequence[str] = (),
) -> None:
    """Write into ``folder`` what others get of a run: model, recipe without the paths of its data, samples, card.

    Args:
        run: a run folder with a model.
        folder: an empty one, or one that is to be made.
        name: user/name, by which the card loads it.
        license: as the hub calls it.
        command: that made it, where others can run it.
        more: further sections of the card, in Markdown.

    Raises:
        ValueError: the run has no model or no end yet, its evaluation is of other weights, the licence is unknown, or
            it is a pair of runs, which is two models.
    """
    if is_pair(run):
        each = " and ".join(f"'indm push {run / side} {name}-{side}'" for side in SIDES)
        raise ValueError(f"{run} is a pair of runs, and each is a model of its own: {each}")
    recipe, weights = recipe_of(run), weights_hash(run)
    pictures = _picture(run, weights)
    kinds = {kind: getattr(recipe, kind) for kind in (*KINDS, *OPTIONAL_KINDS)}
    parts = [f"{kind} `{part.name}`" for kind, part in kinds.items() if part is not None]
    kind = "A bridge: one diffusion from A at t = 0 to B at t = T," if is_bridge(recipe) else "A diffusion"
    about = f"{kind} on the latent of a normalizing flow, by indm: {', '.join(parts)}."
    shown = [f"## Samples\n\n![Samples of the model]({file})" for file in pictures]
    record = _stored(run / paths.RECORD)
    made_by = {"made by": command and f"`{command}`"} | {key: record.get(key) for key in RECORDED}
    sections = [
        about,
        "## Data and budget\n\n" + _items(_ends(recipe) | _data(recipe, record) | _budget(run)),
        "## Likelihood\n\n" + _likelihood(run, weights),
        *shown,
        *more,
        hub.how_to_load(name, recipe.condition.options if recipe.condition else None),
        *_how_to_translate(name, recipe),
        "## Provenance\n\n" + _items(made_by | {"SHA-256 of the weights": weights}),
    ]
    text = hub.card(name, license, sections)
    folder.mkdir(parents=True, exist_ok=True)
    for file in (DESCRIPTION, WEIGHTS, *pictures):
        shutil.copyfile(run / file, folder / file)
    atomic.text(folder / RECIPE, recipes.to_toml(paths.without_places(recipe)))
    atomic.text(folder / CARD, text)


def _ends(recipe: Recipe) -> dict[str, object]:
    """What A and B of a bridge are, by what differs between them."""
    if not is_bridge(recipe):
        return {}
    a, b = (paths.without_places(recipe)[table] for table in paths.TABLES)
    ends: dict[str, object] = {}
    for side, own, other in (("A", a, b), ("B", b, a)):
        differing = [key for key, value in own.items() if key != "name" and value != other.get(key)]
        options = [f"`{key} = {recipes.literal(own[key])}`" for key in differing]
        ends[side] = ", ".join([f"`{own['name']}`", *options])
    return ends


def _how_to_translate(name: str, recipe: Recipe) -> list[str]:
    """The section on that, of a bridge and of a model of two classes."""
    labels = recipe.labels
    if is_bridge(recipe):
        a, b, route, arguments = "A", "B", "bridge", f'model, "forward", noise={noise_of(recipe)}'
    elif len(labels) == 2:
        (a, b), route, arguments = map(one_line, labels), "two_models", f"model, model, c={tuple(labels)}"
    else:
        return []
    return [
        f"""## How to translate

```sh
indm translate {name} IMAGES --out FOLDER                        # {a} as {b}
indm translate {name} IMAGES --out FOLDER --direction backward   # {b} as {a}
```

```python
from indm.translation import {route}

route = {route}({arguments})
result = model.scaling.to_data(route.translate(raw).x)
```"""
    ]


def _picture(run: Path, weights: str) -> list[str]:
    """The picture of samples, where there is one of these weights."""
    made_by = _stored(run / SAMPLE_FILES[0]).get("provenance", {})
    is_of_these = weights in dict(made_by.get("weights_sha256", {})).values()
    return [PICTURE] if is_of_these and (run / PICTURE).exists() else []


def _stored(file: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is none, as in a run that was fetched."""
    return untrusted.json_object(file) if file.exists() else {}


def _data(recipe: Recipe, record: Mapping[str, Any]) -> dict[str, object]:
    """What the data are, without the notes of their record that may say where they are."""
    notes: Sequence[object] = record.get("data") or ()
    kept = [str(note) for note in notes if not {"/", "\\"} & {*str(note)}]
    return {"data": ", ".join([f"`{recipe.data.name}`", *kept]), "classes": ", ".join(recipe.labels) or None}


def _budget(run: Path) -> dict[str, object]:
    summary = _stored(run / "summary.json")
    count = {f"parameters of the {part}": summary.get(f"{part}_parameters") for part in ("flow", "score")}
    seconds = summary.get("seconds")
    return {"steps": end_of(run)["steps"], "time": None if seconds is None else f"{seconds:.0f} seconds"} | count


def _likelihood(run: Path, weights: str) -> str:
    if not (run / "evaluation.json").exists():
        return "It has not been evaluated."
    result = read_evaluation(run)
    if result["weights_sha256"] != weights:
        raise ValueError(
            f"{run} was evaluated with other weights than it has now: run 'indm evaluate {run} --overwrite' first"
        )
    return f"```\n{likelihood_table(result)}\n```\n{CONVENTIONS}"


def _items(values: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {one_line(value)}" for name, value in values.items() if value is not None)
