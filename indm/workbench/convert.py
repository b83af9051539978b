"""Released checkpoints as run folders of this library.

The layout is the one of the paper's code and of score_sde_pytorch. Settings that the tensors do not show are taken from
the caller's arguments, then from a recipe, then from the published settings.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch

from indm.checks import require
from indm.files import atomic
from indm.flows.base import Flow, Identity
from indm.model import INDM, build, count_parameters
from indm.published.checkpoint import Checkpoint, StateDict, Weights, read_checkpoint
from indm.published.flow import flow_from_state
from indm.published.ncsnpp import PublishedScore
from indm.published.network import Architecture, architecture, load_published
from indm.scaling import Scaling
from indm.sde.linear import LinearSDE
from indm.workbench.data.base import check_data
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.recipe import Tables
from indm.workbench.runs.folder import CONVERSION, check_empty
from indm.workbench.runs.provenance import describe_run, provenance

CHANGEABLE_TABLES = ("data", "sde", "net", "flow", "evaluate")  # tables of a recipe that may be changed
PUBLISHED: dict[tuple[int, ...], dict] = {(3, 32, 32): {"name": "cifar10"}, (3, 64, 64): {"name": "celeba"}}
GREY_LEVELS = 256  # grey levels of the released models' data


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    flow_checkpoint: str | Path | None = None,
    weights: Weights | None = None,
    recipe: str | Path | None = None,
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
        changes: dotted keys of the tables data, sde, net, flow and evaluate, as on the command line. ``data.size``
            is the side of the images, which the tensors do not show.

    Returns:
        What is also written to ``conversion.json``, there with its provenance: the files with their weights and what
        of them is passed over, and where each setting is from (``from_the_tensors``; ``assumed``: from the recipe, or
        as published).

    Raises:
        ValueError: files that cannot be read, settings that are missing, unknown or contradicted, tensors that do not
            match (all of them listed), data of another shape, or a folder ``out`` that is not empty.
    """
    out = Path(out)
    check_empty(out)
    for name in {key.partition(".")[0] for key in changes or {}} - set(CHANGEABLE_TABLES):
        raise ValueError(f"{name} is not for converting; {', '.join(CHANGEABLE_TABLES)} can be changed")
    given = recipes.override({}, changes or {})
    if "flow" in given and flow_checkpoint is None:
        raise ValueError("flow must be left out where there is no flow checkpoint: the flow is the identity")
    fallback = recipes.load(recipe) if recipe is not None else {}
    data = given.get("data", {})
    data = data if "name" in data else fallback.get("data", {}) | data
    if "name" in data:
        check_data(**data)
    size = _side_of(data)
    is_side = size is None or (type(size) is int and size >= 1)
    require(is_side, "data.size", size, "a whole number of pixels, 1 or more")
    source = read_checkpoint(checkpoint)
    layout = architecture(source.state, given, fallback, size)
    if "name" not in data:
        folder = {"name": "folder", "path": "images", "size": layout.shape[1], "channels": layout.shape[0]}
        data = PUBLISHED.get(layout.shape, folder) | {key: value for key, value in data.items() if key != "size"}
    data = _checked_data(data, layout, given.get("data", {}))
    files = [_file(source, weights or "ema")]
    score = score_of_checkpoint(source.weights(weights or "ema"), layout.sde, layout.net, layout.shape)
    flow: Flow = Identity()
    if flow_checkpoint is not None:
        source_of_flow = read_checkpoint(flow_checkpoint)
        files.append(_file(source_of_flow, weights or "model"))
        state = source_of_flow.weights(weights or "model")
        flow = flow_from_state(state, given.get("flow", {}), layout.shape)
    model = INDM(flow, score, Scaling.images(GREY_LEVELS, score.backbone.centered), layout.shape).eval()

    result = {
        "files": files,
        "step": source.step,
        "shape": list(layout.shape),
        "parameters": {"score": count_parameters(model.score), "flow": count_parameters(model.flow)},
        "recipe": None if recipe is None else str(recipe),
        "from_the_tensors": layout.inferred,
        "assumed": layout.assumed | _assumed(model.description()["sde"], data, layout, given),
        "data": data,
    }
    made_by = provenance(None, {file["name"]: file["sha256"] for file in files})
    conversion = atomic.json_into(result | {"provenance": made_by})  # what has no JSON is an error before all writing
    notes = [f"converted from {file['name']}" for file in files]
    parts = {kind: {k: v for k, v in table.items() if k != "shape"} for kind, table in model.description().items()}
    tables = {table: fallback.get(table, {}) | given.get(table, {}) for table in ("train", "evaluate")}
    describe_run(out, recipes.resolve({"data": data} | parts | tables), torch.device("cpu"), notes)
    model.save(out)
    atomic.whole(out / CONVERSION, conversion)
    return result


def score_of_checkpoint(state: StateDict, sde: dict, net: dict, shape: tuple[int, ...]) -> PublishedScore:
    """The published score with the weights of the original's ``state``, in evaluation mode."""
    network: Any = build({"name": "ncsnpp", **net}, "net", shape)
    load_published(network, state)
    return PublishedScore(network, cast(LinearSDE, build(sde, "sde", shape))).eval()


def _side_of(data: dict) -> Any:
    """The side of the images of ``data``, None where it is not known."""
    sides = {published["name"]: shape[1] for shape, published in PUBLISHED.items()}
    return data.get("size", sides.get(data.get("name", "")))


def _checked_data(data: dict, layout: Architecture, given: dict) -> dict:
    """``data`` in the network's units."""
    if _side_of(data) not in (None, layout.shape[1]):
        raise ValueError(
            f"data must have events of shape {layout.shape}, as the checkpoint has, got {data['name']!r} of side "
            f"{_side_of(data)}; give other data, such as 'folder' with its path"
        )
    centered = layout.net["centered"]
    if given.get("centered", centered) != centered:
        raise ValueError(f"data.centered must be net.centered, {centered}, got {given['centered']}")
    check_data(**data | {"centered": centered})
    return data | {"centered": centered}


def _file(source: Checkpoint, weights: Weights) -> dict[str, Any]:
    digest = sha256(source.path.read_bytes()).hexdigest()
    return {"name": source.path.name, "sha256": digest, "weights": weights, "passed_over": source.passed_over}


def _assumed(sde: dict, data: dict, layout: Architecture, given: Tables) -> dict:
    """By dotted key, what neither the tensors nor the caller say of the SDE and the data."""
    shown = {"sde": ("sigma_min", "sigma_max"), "data": ("centered",)}
    return {
        f"{name}.{key}": value
        for name, content in {"sde": sde, "data": data}.items()
        for key, value in content.items()
        if key not in (*given.get(name, {}), *shown[name])
    }
