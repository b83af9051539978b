"""Released checkpoints of the paper's code and of score_sde_pytorch as run folders."""

import math
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
from indm.published.network import load_published
from indm.scaling import Scaling
from indm.sde.linear import VESDE, LinearSDE
from indm.workbench.data.base import check_data
from indm.workbench.data.examples import height_and_width
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.folder import CONVERSION, check_empty
from indm.workbench.runs.provenance import describe_run, provenance

SIDES = {"cifar10": 32, "celeba": 64}  # data sets whose size is no option, or has a default
GREY_LEVELS = 256  # of the data of all released models


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    recipe: str | Path,
    flow_checkpoint: str | Path | None = None,
    weights: Weights | None = None,
    changes: Mapping[str, str] | None = None,
) -> dict:
    """Write a run folder from a released checkpoint of a score, and of a flow if there is one.

    Args:
        checkpoint: file of the score.
        out: the run folder, which must be empty or absent.
        recipe: its data, SDE, network, flow and evaluation, such as "cifar10-vp-nll".
        flow_checkpoint: file of the flow; without one the flow is the identity.
        weights: "ema" or "model" (the last ones) for both; by default "ema" for the score and
            "model" for the flow, like the paper's results.
        changes: dotted keys of the tables data, sde, net, flow and evaluate, as on the command
            line.

    Returns:
        The content of ``conversion.json`` without the provenance: the files with their weights, and
        which of their entries are not used.

    Raises:
        OSError: a file is missing or may not be read.
        ValueError: a file is damaged, a setting is unknown, tensors do not match the recipe (all are
            listed), or ``out`` is not empty.
    """
    out = Path(out)
    check_empty(out)
    tables = recipes.override(recipes.load(recipe), changes or {})
    data, name = tables["data"], tables["net"]["name"]
    check_data(**data)
    require(name == "ncsnpp", "net.name", name, "ncsnpp, whose checkpoint this is")
    size = height_and_width(data.get("size", SIDES.get(data["name"], 0)))
    shape = (data.get("channels") or 3, *size)
    source = read_checkpoint(checkpoint)
    files = [_file(source, weights or "ema")]
    state = source.weights(weights or "ema")
    score = score_of_checkpoint(state, tables["sde"], tables["net"], shape)
    flow: Flow = Identity()
    if flow_checkpoint is not None:
        source_of_flow = read_checkpoint(flow_checkpoint)
        files.append(_file(source_of_flow, weights or "model"))
        flow = flow_from_state(source_of_flow.weights(weights or "model"), tables["flow"], shape)
    model = INDM(flow, score, _scaling(data, score), shape).eval()
    parts = {"score": model.score, "flow": model.flow}
    result = {
        "files": files,
        "step": source.step,
        "shape": list(shape),
        "parameters": {name: count_parameters(part) for name, part in parts.items()},
        "recipe": str(recipe),
        "data": data,
    }
    _write(out, model, tables, result)
    return result


def _scaling(data: Mapping[str, Any], score: PublishedScore) -> Scaling:
    """The scaling of the data; ValueError if the network is for another one."""
    is_centered = score.backbone.centered
    fits = data.get("centered", True) == is_centered
    require(fits, "data.centered", data.get("centered"), f"net.centered, {is_centered}")
    return Scaling.images(GREY_LEVELS, is_centered)


def _write(out: Path, model: INDM, tables: recipes.AnyTables, result: dict) -> None:
    """Write the run folder of a converted model."""
    files = result["files"]
    made_by = provenance(None, {file["name"]: file["sha256"] for file in files})
    # first, as it is an error if something has no JSON
    conversion = atomic.json_into(result | {"provenance": made_by})
    notes = [f"converted from {file['name']}" for file in files]
    parts = {
        kind: {k: v for k, v in table.items() if k != "shape"}
        for kind, table in model.description().items()
    }
    kept = {name: tables[name] for name in ("data", "train", "evaluate") if name in tables}
    describe_run(out, recipes.resolve(parts | kept), torch.device("cpu"), notes)
    model.save(out)
    atomic.whole(out / CONVERSION, conversion)


def score_of_checkpoint(
    state: StateDict, sde: dict, net: dict, shape: tuple[int, ...]
) -> PublishedScore:
    """The published score with the weights of the original's ``state``, in evaluation mode.

    Raises:
        ValueError: tensors that do not fit, which are listed, or noise levels of another SDE.
    """
    if "sigmas" in state and sde["name"] == "ve":
        levels = state["sigmas"][[0, -1]].tolist()
        own = [sde.get("sigma_max", VESDE().sigma_max), sde.get("sigma_min", VESDE().sigma_min)]
        fits = all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(levels, own, strict=True))
        require(fits, "sde.sigma_max and sde.sigma_min", own, f"{levels} of the checkpoint")
    network: Any = build({**net, "name": "ncsnpp"}, "net", shape)
    load_published(network, state)
    return PublishedScore(network, cast(LinearSDE, build(sde, "sde", shape))).eval()


def _file(source: Checkpoint, weights: Weights) -> dict[str, Any]:
    """The record of a file in ``conversion.json``."""
    digest = sha256(source.path.read_bytes()).hexdigest()
    return {
        "name": source.path.name,
        "sha256": digest,
        "weights": weights,
        "passed_over": source.passed_over,
    }
