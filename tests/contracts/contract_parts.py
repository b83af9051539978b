"""The parts of the tables as the contract tests build them: a new row of ``BUILT_IN`` is built from
its name alone.

A part that needs options, or would be slow by default, has a small set in :data:`OPTIONS`; nothing
else is listed.
"""

from indm.model import build
from indm.names import BUILT_IN
from indm.workbench.data.densities import DENSITIES

SHAPES = {  # of the events that are tried
    "flow": [(4,), (4, 4, 4)],
    "net": [(3,), (1, 8, 8)],
    "sde": [(3,)],
    "dequantization": [(2,), (1, 1, 2)],
    "condition": [(1, 8, 8)],
}
# Those of parts that do not refuse, when they are built, what they cannot take.
EVENTS = {("flow", "squeeze"): [(4, 4, 4)], ("flow", "unsqueeze"): [(4, 4, 4)]}
FEW = {"samples": 300, "valid_samples": 50, "test_samples": 60}
OPTIONS = {
    "flow": {
        "residual": {"blocks": [1, 1], "width": 8},
        "conditional-residual": {
            "blocks": [1, 1], "width": 8, "code_dim": 4, "encoder_planes": [4], "prior_steps": 1, "prior_width": 8,
        },
        "coupling": {"depth": 2, "width": 8},
        "elementwise": {"bins": 2},
        "masked": {"depth": 2, "width": 16, "layers": 1},
        "actnorm": {"channels": 4},
        "linear": {"channels": 4},
        "squeeze": {"name": "compose", "flows": [{"name": "squeeze"}, {"name": "unsqueeze"}]},
        "unsqueeze": {"name": "compose", "flows": [{"name": "unsqueeze"}, {"name": "squeeze"}]},
        "compose": {"flows": [{"name": "actnorm", "channels": 4}, {"name": "linear", "channels": 4}]},
    },
    "net": {
        "mlp": {"width": 16, "depth": 1},
        "mixture": {"components": 2, "width": 16, "depth": 1},
        "unet": {"channels": 4, "multipliers": [1, 2], "blocks": 1, "attention": [4], "fourier": [8.0]},
        "of-diffusers": {"unet": {"name": "zero"}},
        "denoiser": {"factory": "zero", "predicts": "v", "path": "edm"},
        "ncsnpp": {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
    },
    "sde": {},
    "dequantization": {"variational": {"width": 8, "depth": 2}},
    "condition": {"classes": {"labels": ["a", "b", "c"]}, "vector": {"size": 2}, "image": {"channels": 2}},
    "data": {
        "array": {"path": "vectors.npy"},
        "folder": {"path": "images", "size": 8},
        "datasets": {"path": "images", "size": 8},
        **{name: FEW for name in DENSITIES},
    },
    "objective": {},  # tables of the recipe
}  # fmt: skip


def table_of(kind, name):
    """The table of a recipe by which that part is built here."""
    return {"name": name} | OPTIONS[kind].get(name, {})


def constructions(kind):
    """(table, event shape) of every part of that kind, by a name for pytest: one for each shape
    that the part takes.
    """
    cases = {}
    for name in BUILT_IN[kind]:
        fits = [
            shape
            for shape in EVENTS.get((kind, name), SHAPES[kind])
            if takes(table_of(kind, name), kind, shape)
        ]
        assert fits, (
            f"{kind} {name!r} takes none of the events {SHAPES[kind]}: give it options in {__file__}"
        )
        cases |= {
            f"{name}-{'x'.join(map(str, shape))}": (table_of(kind, name), shape) for shape in fits
        }
    return cases


def takes(table, kind, shape):
    """Whether a part can be built for events of that shape."""
    try:
        build(table, kind, shape)
    except ValueError:
        return False
    return True
