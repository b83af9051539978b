"""A run as others get it: its model and recipe, samples, and a card that says what they are."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from indm.checks import counted, one_line, require
from indm.files import atomic, untrusted
from indm.model import DESCRIPTION, WEIGHTS
from indm.names import OPTIONAL_KINDS, PART_KINDS
from indm.workbench.evaluation.results import read_evaluation
from indm.workbench.evaluation.text import likelihood_table
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.recipe import Recipe
from indm.workbench.runs.folder import RECIPE, end_of, recipe_of
from indm.workbench.runs.provenance import weights_hash
from indm.workbench.runs.samples import SAMPLE_FILES
from indm.workbench.training.pairs import SIDES, is_pair

CARD, PICTURE = "README.md", "samples.png"
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
TAGS = ("diffusion", "normalizing-flow", "density-estimation", "indm")


def write(run: Path, folder: Path, name: str, license: str | None = None, more: Sequence[str] = ()) -> None:
    """Write into ``folder`` what others get of a run: model, recipe without the paths of its data, samples, card.

    The card loads the model by ``name``, user/name, and may have ``more`` sections in Markdown.

    Raises:
        ValueError: the run has no model or no end yet, its evaluation is of other weights, the licence is unknown, or
            it is a pair of runs, which is two models.
    """
    known = license is None or bool(LICENSE.fullmatch(license))
    require(known, "license", license, "an identifier as the hub has them", "apache-2.0 is one")
    if is_pair(run):
        each = " and ".join(f"'indm push {run / side} {name}-{side}'" for side in SIDES)
        raise ValueError(f"{run} is a pair of runs, and each is a model of its own: {each}")
    recipe, weights = recipe_of(run), weights_hash(run)
    drawn = untrusted.json_object(run / SAMPLE_FILES[0]) if (run / SAMPLE_FILES[0]).exists() else {}
    is_of_model = weights in dict(drawn.get("provenance", {}).get("weights_sha256", {})).values()
    pictures = [PICTURE] if (run / PICTURE).exists() and is_of_model else []
    fields = ["library_name: indm", "tags:", *(f"- {tag}" for tag in TAGS)]
    fields += [] if license is None else [f"license: {license}"]
    sections = [
        "\n".join(["---", *fields, "---"]),
        f"# {name.rpartition('/')[2]}",
        _about(recipe, end_of(run)["steps"]),
        "## Likelihood\n\n" + _likelihood(run, weights),
        *(f"## Samples\n\n![Samples of the model]({file})" for file in pictures),
        *more,
        how_to_load(name, recipe),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for file in (DESCRIPTION, WEIGHTS, *pictures):
        shutil.copyfile(run / file, folder / file)
    atomic.text(folder / RECIPE, recipes.to_toml(recipes.without_places(recipe)))
    atomic.text(folder / CARD, "\n\n".join(sections) + "\n")


def _about(recipe: Recipe, steps: int) -> str:
    """The model's parts, its data and its steps of training, in a line each."""
    kinds = {kind: getattr(recipe, kind) for kind in (*PART_KINDS, *OPTIONAL_KINDS)}
    parts = ", ".join(f"{kind} `{part.name}`" for kind, part in kinds.items() if part is not None)
    classes = f", classes {one_line(', '.join(recipe.labels))}" if recipe.labels else ""
    return f"- model: {parts}\n- data: `{recipe.data.name}`{classes}\n- training: {counted(steps, 'step')}"


def _likelihood(run: Path, weights: str) -> str:
    if not (run / "evaluation.json").exists():
        return "It has not been evaluated."
    result = read_evaluation(run)
    if result["weights_sha256"] != weights:
        raise ValueError(f"{run} was evaluated with other weights than it has now: evaluate it again first")
    return f"−log p of the raw data, lower is better.\n\n```\n{likelihood_table(result)}\n```"


def how_to_load(name: str, recipe: Recipe) -> str:
    """The section of a card that loads the model and draws from it."""
    given = "" if recipe.condition is None else ", c=0" if recipe.labels else ", c=row"
    return f"""## How to load

```python
import indm

model = indm.from_pretrained("{name}")
raw = model.scaling.to_data(indm.sample(model, 16{given}))
```"""
