"""Readers of files from strangers under fuzzing: whatever is in a file, only ValueError or OSError is raised.

There is one test for each reader that parses by itself: 62,000 cases under ``make test-long``. Weights are read by
safetensors, released checkpoints by PyTorch.
"""

import copy
import io
import json
import tempfile
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from indm.model import INDM, build_model
from indm.scaling import Scaling
from indm.workbench.data import images
from indm.workbench.data.base import load_data
from indm.workbench.recipes import recipe as recipes

HOME = Path(tempfile.mkdtemp(prefix="indm-fuzz-"))
KNOWN = (ValueError, OSError)


pytestmark = pytest.mark.long


def fuzzed(cases: int, **strategies):
    """A test of a check in so many cases."""
    limits = settings(max_examples=cases, suppress_health_check=list(HealthCheck), database=None)
    return lambda check: limits(given(**strategies)(pytest.mark.filterwarnings("ignore")(check)))


# ── What is changed in a good file: bytes overwritten, left out, put in, the end cut off

EDITS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 65535), st.binary(max_size=6)), max_size=5)


def edited(content: bytes, edits) -> bytes:
    for kind, place, new in edits:
        at = place % (len(content) + 1)
        skipped = {0: len(new), 1: len(new) + 1, 2: 0, 3: len(content)}[kind]
        content = content[:at] + (new if kind in (0, 2) else b"") + content[at + skipped :]
    return content


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.floats(), st.text(max_size=8), st.integers(-2, 5), st.integers(),
        st.sampled_from([2**31, 2**63, 10**12, 10**30, 1e300, "inf", "nan", "vp", "identity", "\n", "../..", ""]),
    ),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5), parts, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value, path=()):
    """The paths to every value inside a value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def replaced(value, place: int, new):
    value, found = copy.deepcopy(value), list(places(value))
    path = found[place % len(found)]
    if not path:
        return new
    inside = value
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = new
    return value


# ── Recipes

BUNDLED = {name: (recipes.BUNDLED / f"{name}.toml").read_bytes() for name in recipes.bundled()}


def read_recipe(content: bytes) -> None:
    (HOME / "mine.toml").write_bytes(content)
    try:
        recipe = recipes.resolve(recipes.load(HOME / "mine.toml"))
        text = recipes.to_toml(recipe)
    except KNOWN as error:
        assert len(str(error)) > 10
        return
    again = tomllib.loads(text)
    assert recipes.differing_keys(recipe, again) == [] or "nan" in text
    assert recipes.to_toml(recipes.resolve(again)) == text


@fuzzed(12_000, name=st.sampled_from(sorted(BUNDLED)), edits=EDITS)
def test_recipes_with_changed_bytes(name, edits):
    read_recipe(edited(BUNDLED[name], edits))


# ── Arrays


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


ARRAYS = {
    "vectors.npy": npy(np.arange(60.0).reshape(30, 2)),
    "images.npy": npy(np.arange(30 * 64, dtype=np.uint8).reshape(30, 8, 8)),
    "several.npz": npz(samples=np.arange(60.0).reshape(30, 2), levels=np.array(0)),
    "one.npz": npz(images=np.zeros((12, 8, 8, 3), np.uint8)),
}


@fuzzed(20_000, name=st.sampled_from(sorted(ARRAYS)), edits=EDITS)
def test_arrays_with_changed_bytes(name, edits):
    (HOME / name).write_bytes(edited(ARRAYS[name], edits))
    try:
        load_data("array", path=HOME / name)
    except KNOWN as error:
        assert "\n" not in str(error)


# ── Images


def encoded(kind: str, mode: str, **options) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, format=kind, **options)
    return file.getvalue()


IMAGES = [
    encoded(kind, mode, **options)
    for kind, mode, options in (
        ("PNG", "RGB", {}), ("PNG", "P", {"transparency": 0}), ("PNG", "I;16", {}), ("PNG", "LA", {}),
        ("JPEG", "RGB", {}), ("JPEG", "CMYK", {}), ("WEBP", "RGBA", {"lossless": True}), ("BMP", "RGB", {}),
        ("GIF", "P", {}), ("TIFF", "RGB", {}), ("TIFF", "F", {}), ("TIFF", "L", {"compression": "tiff_lzw"}),
        ("PPM", "L", {}),
    )
]  # fmt: skip


@fuzzed(25_000, which=st.integers(0, len(IMAGES) - 1), edits=EDITS)
def test_images_with_changed_bytes(which, edits):
    path = HOME / "a.png"
    path.write_bytes(edited(IMAGES[which], edits))
    try:
        kind = images.read_kind(path)
    except KNOWN:
        kind = None
    try:
        image = images.read_image(path)
        assert image.mode == kind and images.fitted(image, (3, 8, 8)).shape == (3, 8, 8)
    except KNOWN:
        pass


# ── Models

TABLES = {
    "flow": {"name": "residual", "blocks": [1], "width": 4},
    "sde": {"name": "vp"},
    "net": {"name": "mlp", "width": 8, "depth": 1},
}
build_model(TABLES, (2,), Scaling()).save(HOME / "model")
DESCRIPTION = json.loads((HOME / "model" / "model.json").read_text())


@fuzzed(5000, place=st.integers(0, 99), new=VALUES)
def test_descriptions_with_changed_values(place, new):
    (HOME / "model" / "model.json").write_text(json.dumps(replaced(DESCRIPTION, place, new)))
    try:
        INDM.load(HOME / "model")
    except KNOWN as error:
        assert "\n" not in str(error) and str(HOME / "model") in str(error)
