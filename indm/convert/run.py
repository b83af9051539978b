"""Released checkpoints as run folders of this library.

The layout is that of the paper's code, which is that of score_sde_pytorch. What the tensors do not show is taken from
what the caller gives, then from a recipe, then from the published settings.
"""

import functools
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch

from indm.config import recipes
from indm.config.recipes import Recipe
from indm.convert.architecture import Architecture, architecture
from indm.convert.flow import flow_from_state
from indm.convert.network import load_published
from indm.convert.released import Checkpoint, State, Weights, read_checkpoint
from indm.convert.settings import check_finite_types, read_settings, tables_of
from indm.data.registry import check_data
from indm.files import atomic, untrusted
from indm.flows.base import Flow, Identity
from indm.messages import brief
from indm.model import INDM, build, count_parameters
from indm.runs.folder import check_empty
from indm.runs.provenance import describe, provenance
from indm.scaling import Scaling
from indm.score import PublishedScore
from indm.sde.linear import LinearSDE

SIDES = {"cifar10": 32, "celeba": 64, "fashion-mnist": 28, "digits": 8}  # of the images
TABLES = ("data", "sde", "net", "evaluate")  # of a recipe, those that may be changed
LEVELS = 256  # grey levels of the released models' data


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    flow_checkpoint: str | Path | None = None,
    weights: Weights | None = None,
    recipe: str | Path | None = None,
    settings: str | Path | None = None,
    flow_settings: str | Path | None = None,
    image_size: int | None = None,
    changes: Mapping[str, str] | None = None,
) -> dict:
    """Write the run folder ``out`` from a released score checkpoint and, where there is one, its flow checkpoint.

    Args:
        checkpoint: file of the score.
        out: the run folder, which must be empty or absent.
        flow_checkpoint: file of the flow; without one the flow is the identity.
        weights: "ema" or "model" (the last ones) for both; by default "ema" for the score and "model" for the flow, as
            the paper's results were evaluated.
        recipe: whose data, SDE, network and evaluation hold where the tensors and what else is given do not tell.
        settings: JSON file of the original's settings.
        flow_settings: the same for the flow.
        image_size: side of the images.
        changes: dotted keys of the tables data, sde, net and evaluate, as on the command line.

    Returns:
        What is also written to ``conversion.json``, there with its provenance: the files and their weights, and where
        each setting is from.

    Raises:
        ValueError: files that cannot be read, settings that are missing, unknown or contradicted, tensors that do not
            match (all of them listed), or a folder ``out`` that is not empty.
    """
    out = Path(out)
    check_empty(out)
    given = _given_tables(settings, changes or {})
    fallback = recipes.load(recipe) if recipe is not None else {}
    data = given.get("data", {})
    data = data if "name" in data else fallback.get("data", {}) | data
    check_finite_types(data, {"name": str}, "data.")
    size = _side_of_images(image_size, given, data)

    source = read_checkpoint(checkpoint)
    layout = architecture(source.state, given, fallback, size)
    files = [_file(checkpoint, weights or "ema")]
    score = score_of_checkpoint(source.weights(weights or "ema"), layout.sde, layout.net, layout.shape)
    flow: Flow = Identity()
    if flow_checkpoint is not None:
        files.append(_file(flow_checkpoint, weights or "model"))
        flow = read_flow(flow_checkpoint, weights or "model", flow_settings, layout.shape)
    centered = score.backbone.centered
    model = INDM(flow, score, Scaling.images(LEVELS, centered), layout.shape).eval()

    data = (data if "name" in data else _likely_data(layout.shape) | data) | {"centered": centered}
    check_data(**data)
    result = _result(files, source, layout, model, data)
    _write(out, model, _recipe(model, data, given, fallback), result)
    return result


def score_of_checkpoint(state: State, sde: dict, net: dict, shape: tuple[int, ...]) -> PublishedScore:
    """The published score with the weights of the original's ``state``, in evaluation mode.

    Raises:
        ValueError: bad tables, or tensors that do not match, each of them listed.
    """
    make = functools.partial(build, {"name": "ncsnpp", **net}, "net", shape)
    untrusted.check_described(make, {**net, "shape": shape}, state)
    network: Any = make()
    load_published(network, state)
    return PublishedScore(network, cast(LinearSDE, build(sde, "sde", shape))).eval()


def read_flow(path: str | Path, weights: Weights, settings: str | Path | None, shape: tuple[int, ...]) -> Flow:
    """The flow of a released flow checkpoint; ``settings`` is a JSON file of its configuration."""
    state = read_checkpoint(path).weights(weights)
    return flow_from_state(state, {} if settings is None else read_settings(settings), shape)


def _given_tables(settings: str | Path | None, changes: Mapping[str, str]) -> Recipe:
    """The tables of the original's settings with the changes; ValueError for a table that may not be changed."""
    for table in {key.partition(".")[0] for key in changes} - set(TABLES):
        raise ValueError(f"--{table} is not for converting; {', '.join(TABLES)} can be changed")
    given = {} if settings is None else tables_of(read_settings(settings))
    for table, content in recipes.override({}, dict(changes)).items():
        given[table] = content if "name" in content else given.get(table, {}) | content
    return given


def _side_of_images(image_size: int | None, given: Recipe, data: dict) -> int | None:
    """The side of the images in pixels, None where nobody says."""
    sizes = (image_size, given.get("image", {}).get("size"), data.get("size", SIDES.get(data.get("name", ""))))
    size = next((size for size in sizes if size is not None), None)
    if size is not None and (type(size) is not int or size < 1):
        raise ValueError(
            "--image-size (or image_size of --settings, or data.size) must be a whole number of pixels, 1 or more, "
            f"got {brief(repr(size))}"
        )
    return size


def _likely_data(shape: tuple[int, int, int]) -> dict:
    """The published data set of that shape; else a folder of images that is yet to be named."""
    published = {(3, 32, 32): {"name": "cifar10"}, (3, 64, 64): {"name": "celeba"}}
    return published.get(shape, {"name": "folder", "path": "images", "size": shape[1], "channels": shape[0]})


def _file(path: str | Path, weights: Weights) -> dict[str, str]:
    path = Path(path)
    return {"name": path.name, "sha256": sha256(path.read_bytes()).hexdigest(), "weights": weights}


def _recipe(model: INDM, data: dict, given: Recipe, fallback: Recipe) -> Recipe:
    """The recipe of the run folder: the model as it describes itself, with the options that are known."""
    parts = {kind: {k: v for k, v in table.items() if k != "shape"} for kind, table in model.description().items()}
    options = {table: fallback.get(table, {}) | given.get(table, {}) for table in ("train", "evaluate")}
    return recipes.resolve({"data": data} | parts | options)


def _result(files: list[dict], source: Checkpoint, layout: Architecture, model: INDM, data: dict) -> dict:
    return {
        "files": files,
        "step": source.step,
        "ema_decay": source.decay,
        "shape": list(layout.shape),
        "parameters": {"score": count_parameters(model.score), "flow": count_parameters(model.flow)},
        "from_the_tensors": layout.inferred,
        "assumed": layout.assumed,
        "data": data,
    }


def _write(out: Path, model: INDM, recipe: Recipe, result: dict) -> None:
    """Write the run folder."""
    files = result["files"]
    made_by = provenance(None, {file["name"]: file["sha256"] for file in files})
    conversion = atomic.json_into(result | {"provenance": made_by})  # what has no JSON is an error before all writing
    describe(out, recipe, torch.device("cpu"), [f"converted from {file['name']}" for file in files])
    model.save(out)
    atomic.whole(out / "conversion.json", conversion)
