"""Checkpoints in the layout of the paper's code, which is that of score_sde_pytorch, as run folders of ours.

The original keeps its layers in one list, ``all_modules.N``; :func:`published_order` walks ours in that order. What
the tensors cannot tell is taken, in this order, from what the caller gives, a recipe, or the published settings.
"""

import functools
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch

from indm.config import recipes
from indm.convert.architecture import SIDES, TABLES, architecture
from indm.convert.network import load_published
from indm.convert.released import State, Weights, read_checkpoint
from indm.convert.settings import check_finite_kinds, read_settings, tables_of
from indm.data.registry import check_data
from indm.files import atomic, untrusted
from indm.flows import Flow, Identity
from indm.messages import brief
from indm.model import INDM, build, count_parameters
from indm.runs.folder import check_empty
from indm.runs.provenance import describe, provenance
from indm.scaling import Scaling
from indm.score import PublishedScore


def score_of_checkpoint(state: State, sde: dict, net: dict, shape: tuple[int, ...]) -> PublishedScore:
    """The published score with the weights of the original's ``state``, in evaluation mode.

    Raises:
        ValueError: bad tables, or tensors that do not match, each of them listed.
    """
    make = functools.partial(build, {"name": "ncsnpp", **net}, "net", shape)
    untrusted.check_described(make, {**net, "shape": shape}, state)
    network = make()
    load_published(network, state)
    return PublishedScore(network, build(sde, "sde", shape)).eval()


def read_flow(path: str | Path, weights: Weights, settings: str | Path | None, shape: tuple[int, ...]) -> Flow:
    """The flow of a released flow checkpoint; ``settings`` is a JSON file of its configuration."""
    from indm.convert.flow import flow_from_state

    state = read_checkpoint(path).weights(weights)
    return flow_from_state(state, {} if settings is None else read_settings(settings), shape)


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
    """Write the run folder ``out`` of a released score checkpoint and, where there is one, its flow checkpoint.

    Args:
        weights: "ema" or "model" (the last ones) for both; by default "ema" for the score and "model" for the flow, as
            the paper's results were evaluated.
        recipe: whose data, SDE, network and evaluation hold where the tensors and what else is given do not tell.
        settings, flow_settings: JSON files of the original's settings.
        image_size: side of the images.
        changes: dotted keys of the tables data, sde, net and evaluate, as on the command line.

    Returns:
        What is also written to ``conversion.json``, there with its provenance: the files and their weights, and where
        each setting is from.

    Raises:
        ValueError: files that cannot be read, settings that are missing, unknown or contradicted, tensors that do not
            match (all of them listed), or a folder ``out`` that is not empty.
    """
    out, changes = Path(out), changes or {}
    check_empty(out)
    for table in {key.partition(".")[0] for key in changes} - set(TABLES):
        raise ValueError(f"--{table} is not for converting; {', '.join(TABLES)} can be changed")
    fallback = recipes.load(recipe) if recipe is not None else {}
    given = {} if settings is None else tables_of(read_settings(settings))
    for table, content in recipes.override({}, dict(changes)).items():
        given[table] = content if "name" in content else given.get(table, {}) | content
    data = given.get("data", {})
    data = data if "name" in data else fallback.get("data", {}) | data
    check_finite_kinds(data, {"name": str}, "data.")
    sizes = (image_size, given.get("image", {}).get("size"), data.get("size", SIDES.get(data.get("name"))))
    size = next((size for size in sizes if size is not None), None)
    if size is not None and (type(size) is not int or size < 1):
        raise ValueError(
            "--image-size (or image_size of --settings, or data.size) must be a whole number of pixels, 1 or more, "
            f"got {brief(repr(size))}"
        )

    source = read_checkpoint(checkpoint)
    found = architecture(source.state, given, fallback, size)
    files = [_provenance(checkpoint, weights or "ema")]
    score = score_of_checkpoint(source.weights(weights or "ema"), found.sde, found.net, found.shape)
    flow: Flow = Identity()
    if flow_checkpoint is not None:
        files.append(_provenance(flow_checkpoint, weights or "model"))
        flow = read_flow(flow_checkpoint, weights or "model", flow_settings, found.shape)
    centered = score.backbone.centered
    model = INDM(flow, score, Scaling.images(256, centered), found.shape).eval()

    described = {kind: {k: v for k, v in table.items() if k != "shape"} for kind, table in model.description().items()}
    options = {table: fallback.get(table, {}) | given.get(table, {}) for table in ("train", "evaluate")}
    data = (data if "name" in data else _likely_data(found.shape) | data) | {"centered": centered}
    check_data(**data)
    made = recipes.resolve({"data": data} | described | options)
    result = {
        "files": files,
        "step": source.step,
        "ema_decay": source.decay,
        "shape": list(found.shape),
        "parameters": {"score": count_parameters(score), "flow": count_parameters(flow)},
        "from_the_tensors": found.inferred,
        "assumed": found.assumed,
        "data": data,
    }
    made_by = provenance(None, {file["name"]: file["sha256"] for file in files})
    told = atomic.json_into(result | {"provenance": made_by})  # what cannot be told is an error before all writing
    describe(out, made, torch.device("cpu"), [f"converted from {file['name']}" for file in files])
    model.save(out)
    atomic.whole(out / "conversion.json", told)
    return result


def _provenance(path: str | Path, weights: Weights) -> dict[str, str]:
    path = Path(path)
    return {"name": path.name, "sha256": sha256(path.read_bytes()).hexdigest(), "weights": weights}


def _likely_data(shape: tuple[int, int, int]) -> dict:
    """The published data set of that shape; else a folder of images that is yet to be named."""
    published = {(3, 32, 32): {"name": "cifar10"}, (3, 64, 64): {"name": "celeba"}}
    return published.get(shape, {"name": "folder", "path": "images", "size": shape[1], "channels": shape[0]})
