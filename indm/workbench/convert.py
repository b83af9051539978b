"""Released checkpoints as run folders of this library, by the recipe that describes them.

The layout is the one of the paper's code and of score_sde_pytorch.
"""

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

# tables of a recipe that may be changed
SIDES = {"cifar10": 32, "celeba": 64}  # data sets whose size is no option, or has a default
GREY_LEVELS = 256  # grey levels of the released models' data


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    recipe: str | Path,
    flow_checkpoint: str | Path | None = None,
    weights: Weights | None = None,
    changes: Mapping[str, str] | None = None,
) -> dict:
    """Write the run folder ``out`` from a released score checkpoint and, where there is one, its
    flow checkpoint.

    Args:
        checkpoint: file of the score.
        out: the run folder, which must be empty or absent.
        recipe: its data, SDE, network, flow and evaluation, such as "cifar10-vp-nll".
        flow_checkpoint: file of the flow; without one the flow is the identity.
        weights: "ema" or "model" (the last ones) for both; by default "ema" for the score and
            "model" for the flow, as the paper's results were evaluated.
        changes: dotted keys of the tables data, sde, net, flow and evaluate, as on the command
            line.

    Returns:
        What is also written to ``conversion.json``, there with its provenance: the files with their
        weights and what of them is passed over.

    Raises:
        ValueError: files that cannot be read, settings that are unknown, tensors that do not match
            the recipe (all of them listed), or a folder ``out`` that is not empty.
    """
    out = Path(out)
    check_empty(out)
    tables = recipes.override(recipes.load(recipe), changes or {})
    data = tables["data"]
    net = tables["net"]
    sde = tables["sde"]
    check_data(**data)
    require(net["name"] == "ncsnpp", "net.name", net["name"], "ncsnpp, whose checkpoint this is")
    shape = (
        data.get("channels") or 3,
        *height_and_width(data.get("size", SIDES.get(data["name"], 0))),
    )
    source = read_checkpoint(checkpoint)
    files = [_file(source, weights or "ema")]
    score = score_of_checkpoint(source.weights(weights or "ema"), sde, net, shape)
    is_centered = score.backbone.centered
    require(
        data.get("centered", True) == is_centered,
        "data.centered",
        data.get("centered"),
        f"net.centered, {is_centered}",
    )
    flow: Flow = Identity()
    if flow_checkpoint is not None:
        source_of_flow = read_checkpoint(flow_checkpoint)
        files.append(_file(source_of_flow, weights or "model"))
        flow = flow_from_state(source_of_flow.weights(weights or "model"), tables["flow"], shape)
    model = INDM(flow, score, Scaling.images(GREY_LEVELS, is_centered), shape).eval()
    result = {
        "files": files,
        "step": source.step,
        "shape": list(shape),
        "parameters": {
            "score": count_parameters(model.score),
            "flow": count_parameters(model.flow),
        },
        "recipe": str(recipe),
        "data": data,
    }
    _write(out, model, tables, result)
    return result


def _write(out: Path, model: INDM, tables: recipes.AnyTables, result: dict) -> None:
    """Write the run folder of a converted model."""
    files = result["files"]
    made_by = provenance(None, {file["name"]: file["sha256"] for file in files})
    # what has no JSON is an error before all writing
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
        ValueError: listing the tensors that do not fit, or noise levels of another SDE.
    """
    if "sigmas" in state and sde["name"] == "ve":
        levels = state["sigmas"].tolist()
        own = [sde.get("sigma_max", VESDE().sigma_max), sde.get("sigma_min", VESDE().sigma_min)]
        if not all(
            math.isclose(a, b, rel_tol=1e-6)
            for a, b in zip((levels[0], levels[-1]), own, strict=True)
        ):
            raise ValueError(
                f"sde must have sigma_max and sigma_min {levels[0]:g} and {levels[-1]:g}, got {own}"
            )
    network: Any = build({**net, "name": "ncsnpp"}, "net", shape)
    load_published(network, state)
    return PublishedScore(network, cast(LinearSDE, build(sde, "sde", shape))).eval()


def _file(source: Checkpoint, weights: Weights) -> dict[str, Any]:
    digest = sha256(source.path.read_bytes()).hexdigest()
    return {
        "name": source.path.name,
        "sha256": digest,
        "weights": weights,
        "passed_over": source.passed_over,
    }
