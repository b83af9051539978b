"""INDM as a whole: what is described, built and saved comes back the same; what cannot be is said
in one line.
"""

import functools
import inspect
import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import indm
from indm import names
from indm.flows import ActNorm, Compose, ExactFlow, Identity, ResidualFlow
from indm.model import INDM, build_model
from indm.nets import MLP
from indm.scaling import Scaling
from indm.score import ScoreModel
from indm.sde.linear import VPSDE

IMAGE, VECTOR = (1, 8, 8), (5,)
UNET = {
    "name": "unet",
    "channels": 8,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention": [4],
    "dropout": 0.1,
}
MLP_TABLE = {"name": "mlp", "width": 16, "depth": 1, "fourier": 1}
NESTED = {
    "name": "compose",
    "flows": [
        {"name": "actnorm", "channels": 1},
        {
            "name": "compose",
            "flows": [{"name": "residual", "blocks": [1, 1], "width": 4}, {"name": "identity"}],
        },
        {"name": "squeeze"},
        {
            "name": "residual",
            "shape": [4, 4, 4],
            "blocks": [1],
            "width": 4,
            "norm": "inf",
            "coeff": 0.9,
        },
        {"name": "unsqueeze"},
    ],
}
DESCRIPTIONS = {
    "identity vp unet": ({"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": UNET}, IMAGE),
    "residual vp unet": (
        {
            "flow": {"name": "residual", "blocks": [1, 1], "width": 8},
            "sde": {"name": "vp", "eps": 1e-3},
            "net": UNET,
        },
        IMAGE,
    ),
    "residual-inf subvp mlp": (
        {
            "flow": {"name": "residual", "blocks": [2], "width": 8, "norm": "inf"},
            "sde": {"name": "subvp", "beta_min": 0.2, "beta_max": 15.0},
            "net": MLP_TABLE,
        },
        VECTOR,
    ),
    "actnorm ve mlp": (
        {
            "flow": {"name": "actnorm", "channels": 5},
            "sde": {"name": "ve", "sigma_max": 20.0},
            "net": MLP_TABLE,
        },
        VECTOR,
    ),
    "nested ve unet": ({"flow": NESTED, "sde": {"name": "ve"}, "net": UNET}, IMAGE),
}


def randomize(model, scale=0.3):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def made(name="residual vp unet", scaling=None):
    description, shape = DESCRIPTIONS[name]
    if scaling is None:
        scaling = (
            Scaling.images(17)
            if len(shape) == 3
            else Scaling.standardise(3 * torch.randn(50, *shape) + 7)
        )
    return randomize(build_model(description, shape, scaling))


@pytest.fixture(params=DESCRIPTIONS)
def model(request):
    return made(request.param)


@torch.no_grad()
def everything(model):
    """All that a model computes, on fixed inputs."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3, *model.shape, generator=generator)
    z, log_det = model.encode(x)
    t = torch.tensor([0.01, 0.4, 0.9])
    return {
        "encoded": z,
        "log_det": log_det,
        "decoded": model.decode(x),
        "score": model.score(x, t),
        "prior": model.sde.prior_log_prob(x),
        "alpha": model.sde.alpha(t),
        "sigma": model.sde.sigma(t),
        "data": model.scaling.to_data(x).double(),
    }


def assert_same(one, other):
    computed = everything(other)
    for key, value in everything(one).items():
        torch.testing.assert_close(
            computed[key], value, rtol=0, atol=0, msg=lambda m, key=key: f"{key}: {m}"
        )


# ---------------------------------------------------------------- description and construction


def test_a_flow_or_a_network_of_another_signature_is_named_with_the_call():
    with pytest.raises(ValueError, match="flow must"):
        INDM(nn.Bilinear(2, 2, 2), ScoreModel(MLP((2,)), VPSDE()), shape=(2,))
    with pytest.raises(ValueError, match="network must"):
        ScoreModel(nn.Linear(2, 2), VPSDE())


def test_description_builds_the_same_model(model):
    table = model.description()
    twin = build_model(json.loads(json.dumps(table, allow_nan=False)), model.shape, model.scaling)
    assert twin.description() == table
    assert str(twin) == str(model)
    twin.load_state_dict(model.state_dict())
    assert_same(twin.eval(), model)


def test_description_holds_the_arguments_that_were_given():
    for description, shape in DESCRIPTIONS.values():
        table = build_model(description, shape).description()
        for kind in ("sde", "net"):
            assert table[kind].items() >= description[kind].items()
        if description["flow"]["name"] != "compose":
            assert table["flow"].items() >= description["flow"].items()
    nested = build_model(*DESCRIPTIONS["nested ve unet"]).description()["flow"]["flows"]
    assert [part["name"] for part in nested] == [
        "actnorm",
        "compose",
        "squeeze",
        "residual",
        "unsqueeze",
    ]
    assert (
        nested[1]["flows"][0]["shape"] == [1, 8, 8]
        and nested[3]["norm"] == "inf"
        and nested[3]["coeff"] == 0.9
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"flow": {"name": "residul"}}, r"flow\.name.*'residul'.*did you mean 'residual'"),
        ({"sde": {"name": "vpp"}}, r"sde\.name.*did you mean 'vp'"),
        ({"net": {"name": "transformer"}}, r"net\.name must be one of .*mlp, unet"),
        ({"flow": {"name": "residual", "widht": 8}}, r"flow\.widht .*'width'"),
        ({"sde": {"name": "ve", "beta_max": 20.0}}, r"sde\.beta_max .*sigma_max"),
        ({"net": {"name": "mlp", "dept": 3}}, r"did you mean 'depth'"),
        ({"flow": {"name": "compose", "flows": [{"name": "actnrm"}]}}, "did you mean 'actnorm'"),
        ({"flow": {"name": "actnorm"}}, "actnorm.*channels"),
        ({"flow": {"width": 8}}, r"flow\.name must"),
        ({"flow": {}}, r"flow\.name must"),
        ({"flow": {"name": ["residual"]}}, r"flow\.name must"),
        ({"flow": {"name": "residual", "coeff": 2.0}}, "coeff must be in"),
        ({"flow": {"name": "residual", "norm": "spectral"}}, "norm must be 2"),
        ({"flow": {"name": "residual", "blocks": 3}}, "blocks"),
        ({"sde": {"name": "vp", "eps": 2.0}}, "eps must be strictly"),
    ],
)
def test_what_cannot_be_built_is_named(change, words):
    description = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": MLP_TABLE} | change
    with pytest.raises(ValueError, match=words):
        build_model(description, VECTOR)


def test_tables_that_are_missing_or_unknown_are_named():
    whole = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": MLP_TABLE}
    for kind in whole:
        with pytest.raises(KeyError, match=kind):
            build_model({k: v for k, v in whole.items() if k != kind}, VECTOR)
    with pytest.raises(ValueError, match=r"'nett'.*did you mean 'net'"):
        build_model(whole | {"nett": {}}, VECTOR)


class Flip(ExactFlow):
    """A user's own flow."""

    def __init__(self, shape: tuple[int, ...], sign: float = -1.0):
        super().__init__()
        self.shape, self.sign = tuple(shape), sign

    def forward(self, x, *, generator=None):
        return self.sign * x, x.new_zeros(len(x))

    def inverse_step(self, z):
        return z / self.sign


def flipped():
    return INDM(
        Compose([Flip(VECTOR), Identity()]), ScoreModel(MLP(VECTOR, 8, 1), VPSDE()), shape=VECTOR
    ).eval()


def test_a_class_of_ones_own_is_saved_inside_a_flow_of_flows(tmp_path):
    model = flipped()
    model.save(tmp_path)
    assert (
        json.loads((tmp_path / "model.json").read_text())["flow"]["flows"][0]["name"]
        == f"{__name__}:Flip"
    )
    with indm.trust(__name__):
        assert_same(INDM.load(tmp_path), model)


# ---------------------------------------------------------------- classes outside the package


class Widened(nn.Module):
    """A network that keeps another number under the name of its argument."""

    def __init__(self, shape, width, bias=True):
        super().__init__()
        self.width = 2 * width
        self.body = nn.Linear(shape[0] + 1, self.width, bias)
        self.head = nn.Linear(self.width, shape[0])

    def forward(self, z, level):
        return self.head(self.body(torch.cat([z, level[:, None]], 1)).tanh())


LIBRARY = """
import os
from functools import partial
from os import system
from torch.nn import Linear

ran = partial(os.mkdir, "ran")


def __getattr__(name):  # it is imported when it is asked for, as large libraries do
    if name == "Widened":
        from stranger.nets import Widened
        return Widened
    raise AttributeError(name)


def run(command: str) -> str:
    os.mkdir("ran")


def unannotated(command):
    os.mkdir("ran")


class Runs:
    def __init__(self, command):
        os.mkdir("ran")


def make(shape, width=4) -> "Linear":
    from stranger.nets import Widened
    return Widened(shape, width)
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder on the path with a package whose import leaves a mark."""
    package = tmp_path / "site" / "stranger"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(LIBRARY)
    source = inspect.getsource(Widened)
    (package / "nets.py").write_text(
        f"import torch\nfrom torch import nn\n\nopen({str(tmp_path / 'imported')!r}, 'w').close()\n\n\n{source}"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield tmp_path / "imported"
    for name in [name for name in sys.modules if name.split(".")[0] == "stranger"]:
        del sys.modules[name]


LINEAR = {"flow": {"name": "identity"}, "sde": {"name": "vp"}}


def test_a_class_outside_is_saved_by_its_name_and_read_only_where_it_is_trusted(tmp_path, outside):
    tables = LINEAR | {"net": {"name": "stranger.nets:Widened", "width": 4}}
    with pytest.raises(
        names.Untrusted, match=r"'stranger.nets:Widened' is code outside indm.*trust\('stranger'\)"
    ):
        indm.build_model(tables, VECTOR)
    assert not outside.exists(), "nothing was imported"
    with indm.trust("stranger"):
        model = indm.build_model(tables, VECTOR).eval()
    assert outside.exists()
    outside.unlink()
    model.save(tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "model.json").read_text())["net"]
    assert saved == {"name": "stranger.nets:Widened", "shape": list(VECTOR), "width": 4}, (
        "the argument, not 2 · 4"
    )
    del sys.modules["stranger.nets"]
    with pytest.raises(names.Untrusted, match=rf"{tmp_path / 'run'}.*trust\('stranger'\)"):
        INDM.load(tmp_path / "run")
    assert not outside.exists()
    with indm.trust("stranger.nets:Widened"):  # its package is meant
        assert_same(INDM.load(tmp_path / "run"), model)
    with pytest.raises(names.Untrusted):
        INDM.load(tmp_path / "run")


def test_a_class_itself_stands_for_its_name():
    model = indm.build_model(LINEAR | {"net": {"name": Widened, "width": 4, "bias": False}}, VECTOR)
    assert model.description()["net"] == {
        "name": f"{__name__}:Widened", "shape": list(VECTOR), "width": 4, "bias": False
    }  # fmt: skip


def test_what_cannot_be_described_says_why(tmp_path):
    class Local(Widened):
        pass

    def described(net):
        return INDM(Identity(), ScoreModel(net, VPSDE()), shape=VECTOR).description()

    with pytest.raises(ValueError, match=r"Local cannot be named.*defined in a function"):
        described(Local(VECTOR, 4))
    with pytest.raises(
        ValueError, match=r"Widened cannot be described: keep its argument 'shape' as an attribute"
    ):
        described(Widened(VECTOR, 4))


@pytest.mark.parametrize(
    "name, message",
    [
        ("nowhere.nets:Mine", "No module named 'nowhere'"),
        ("stranger.nots:Mine", "No module named 'stranger.nots'"),
        ("stranger.nets:Widenned", "stranger.nets has no 'Widenned'; did you mean 'Widened'?"),
        ("stranger.nets:torch", "must be a class or a function, got module"),
        ("stranger.nets:torch.os.system", "must be a class or a function, got module"),
        ("stranger.nets:torch.nn.Linear", "must be a class or a function, got module"),
        ("stranger.nets:nn.Linear", "must be a class or a function, got module"),
        ("stranger:system", r"leads to code of 'posix': .* indm\.trust\('posix'\)"),
        ("stranger:Linear", r"leads to code of 'torch': .* indm\.trust\('torch'\)"),
        ("stranger:ran", "leads to code of 'functools'"),
        (
            "stranger:run",
            "a function annotated to return one, of torch.nn.*Module, got <class 'str'>",
        ),
        (
            "stranger:unannotated",
            "a function annotated to return one, of torch.nn.*Module, got None",
        ),
        (
            "stranger:Runs",
            "must be a class, or .*, of torch.nn.*Module, got <class 'stranger.Runs'>",
        ),
        ("stranger.nets:open", "stranger.nets has no 'open'"),
        (
            "umlp",
            "net.name must be one of .*mlp, .* or package.module:Name, got 'umlp'; did you mean 'mlp'?",
        ),
        ("a b:c", "net.name must be one of"),
    ],
)
def test_names_that_lead_nowhere_or_to_what_makes_no_network(
    outside, tmp_path, monkeypatch, name, message
):
    """A file that names a trusted library must not reach what the library imports, nor its other
    functions.
    """
    monkeypatch.chdir(tmp_path)
    with indm.trust("stranger", "nowhere"), pytest.raises(ValueError, match=message):
        indm.build_model(LINEAR | {"net": {"name": name, "command": "mkdir ran"}}, VECTOR)
    with indm.trust("stranger", "nowhere"), pytest.raises(ValueError, match=message):
        indm.from_denoiser(
            factory=name,
            options={"command": "mkdir ran"},
            predicts="noise",
            path="edm",
            shape=VECTOR,
        )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["stranger:Widened", "stranger:make", "stranger.nets:Widened"])
def test_a_package_s_own_class_is_found_where_the_package_shows_it(outside, name):
    with indm.trust("stranger"):
        model = indm.build_model(LINEAR | {"net": {"name": name, "width": 4}}, VECTOR)
    assert type(model.score.backbone).__module__ == "stranger.nets"


def test_every_built_in_name_is_there():
    for kind, known in names.BUILT_IN.items():
        for name in known:
            part = names.find(kind, name)
            # the loader of a density, which nothing has to name
            if not isinstance(part, functools.partial):
                assert names.name_of(kind, part) == name


# ---------------------------------------------------------------- files


def test_saved_and_loaded_computes_the_same_bits(model, tmp_path):
    model.sde.prior_mean = torch.randn(model.shape)
    model.save(tmp_path / "deep" / "folder")
    loaded = INDM.load(tmp_path / "deep" / "folder")
    assert not loaded.training
    assert_same(loaded, model)
    assert loaded.shape == model.shape and loaded.scaling.levels == model.scaling.levels
    assert torch.equal(loaded.sde.prior_mean, model.sde.prior_mean)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert sorted(p.name for p in (tmp_path / "deep" / "folder").iterdir()) == [
        "model.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    "scaling",
    [
        Scaling(),
        Scaling.images(256),
        Scaling.images(2, centered=False),
        Scaling(torch.arange(5.0), torch.arange(1.0, 6.0)),
        Scaling(0.25, 4.0, 1000),
    ],
    ids=["none", "images", "unit", "vectors", "many levels"],
)
def test_scaling_is_saved_with_the_model(scaling, tmp_path):
    model = made("actnorm ve mlp", scaling)
    model.save(tmp_path)
    loaded = INDM.load(tmp_path).scaling
    raw = torch.arange(10.0).reshape(2, 5)
    x = scaling.to_model(raw, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.to_model(raw, generator=torch.Generator().manual_seed(0)), x)
    back, expected = loaded.to_data(x), scaling.to_data(x)
    assert torch.equal(back, expected) and back.dtype == expected.dtype
    assert loaded.log_volume(VECTOR) == scaling.log_volume(VECTOR)


def test_double_precision_survives_the_files(tmp_path):
    model = made("residual-inf subvp mlp").double()
    x = torch.randn(2, 5, dtype=torch.float64)
    z = model.encode(x)[0]
    model.save(tmp_path)
    loaded = INDM.load(tmp_path)
    assert torch.equal(loaded.encode(x)[0], z)


def edited(folder, **changes):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(folder, key):
    path = folder / "model.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))


def truncated(folder, name, fraction=0.5):
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])


OTHER = {"name": "residual", "blocks": [1, 1], "width": 9}
DAMAGE = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors"),
    "no description": (lambda f: (f / "model.json").unlink(), r"model\.json"),
    "half the weights": (lambda f: truncated(f, "model.safetensors"), ""),
    "weights that are text": (
        lambda f: (f / "model.safetensors").write_text("not weights at all, but text"),
        "",
    ),
    "weights that are a folder": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
        "",
    ),
    "half the description": (lambda f: truncated(f, "model.json"), ""),
    "binary description": (lambda f: (f / "model.json").write_bytes(b"\xff\xfe\x00\x80"), ""),
    "a later format": (lambda f: edited(f, format=2), "format"),
    "no net": (lambda f: without(f, "net"), "net"),
    "no levels": (lambda f: without(f, "levels"), "levels"),
    "no shape": (lambda f: without(f, "shape"), "shape"),
    "levels is a word": (lambda f: edited(f, levels="many"), ""),
    "flow is a number": (lambda f: edited(f, flow=3), ""),
    "unknown flow": (lambda f: edited(f, flow={"name": "glow"}), "glow"),
    "another width": (lambda f: edited(f, flow=OTHER), r"flow\.flows\.0|size mismatch"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_one_line_of_value_error(damage, tmp_path):
    made().save(tmp_path)
    harm, words = DAMAGE[damage]
    harm(tmp_path)
    with pytest.raises(ValueError, match=words or None) as caught:
        INDM.load(tmp_path)
    message = str(caught.value)
    assert (
        str(tmp_path) in message
        and "\n" not in message
        and len(message.replace(str(tmp_path), "")) > 25
    ), message
    assert "None is" not in message, message


def test_places_without_a_model(tmp_path):
    made().save(tmp_path / "run")
    for place in (tmp_path / "nowhere", tmp_path, tmp_path / "run" / "model.json"):
        with pytest.raises(ValueError) as caught:
            INDM.load(place)
        assert str(place) in str(caught.value) and "\n" not in str(caught.value)


def test_a_failed_save_leaves_the_old_model(tmp_path):
    model = made()
    model.save(tmp_path)
    nameless = INDM(model.flow, model.score, model.scaling)
    other = INDM(model.flow, ClosedForm(), model.scaling, IMAGE)
    for broken, error, named in [
        (nameless, ValueError, "shape"),
        (other, AttributeError, "ClosedForm.*backbone"),
    ]:
        with pytest.raises(error, match=named):
            broken.save(tmp_path)
    assert_same(INDM.load(tmp_path), model)


# ---------------------------------------------------------------- the model itself


class ClosedForm(nn.Module):
    """The score of N(0, I) under VP, as any user may give one."""

    def __init__(self):
        super().__init__()
        self.sde = VPSDE()

    def forward(self, z_t, t):
        return -z_t


def test_any_module_with_an_sde_is_a_score():
    model = INDM(ActNorm(5), ClosedForm())
    assert model.sde is model.score.sde and model.scaling.levels is None
    with pytest.raises(ValueError, match="event shape"):
        _ = model.shape


def test_encode_hands_the_generator_on():
    model = randomize(INDM(ResidualFlow((70,), (1,), 8), ClosedForm()))
    x = torch.randn(3, 70)
    draws = [model.encode(x, generator=torch.Generator().manual_seed(s))[1] for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("name", ["residual vp unet", "residual-inf subvp mlp"])
def test_latents_and_log_det_keep_full_precision_under_autocast(name):
    """Only the inside of a residual block is rounded; what a rounded block does to the next one's
    point is small.
    """
    model = made(name)
    x = torch.randn(3, *model.shape)
    with torch.no_grad():
        z, log_det = model.encode(x)
        back = model.decode(z)
        with torch.autocast("cpu", torch.bfloat16):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
            cast, cast_log_det = model.encode(x)
            cast_back = model.decode(z)
            score = model.score(z, torch.full((3,), 0.5))
    assert cast.dtype == cast_log_det.dtype == cast_back.dtype == score.dtype == torch.float32
    assert (cast - z).abs().max() < 0.01 and (cast_log_det - log_det).abs().max() < 0.01
    assert not torch.equal(cast.bfloat16().float(), cast)
    assert torch.equal(cast_back, back)


def test_decode_names_the_samples_that_fail():
    model = made()
    z = torch.zeros(3, *IMAGE)
    z[1, 0, 0, 0] = math.nan
    with pytest.raises(RuntimeError, match=r"1 of 3 samples \(indices 1\); largest residual nan"):
        model.decode(z)


@pytest.mark.long
def test_what_a_script_defines_is_named_after_its_file(tmp_path):
    script = f"""
import sys
import torch
from torch import nn
import indm

{inspect.getsource(Widened)}

if __name__ == "__main__":
    tables = {{"flow": {{"name": "identity"}}, "sde": {{"name": "vp"}}, "net": {{"name": Widened, "width": 4}}}}
    indm.build_model(tables, (5,)).save("run")
"""
    (tmp_path / "mine.py").write_text(script)
    subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, check=True)
    assert (
        json.loads((tmp_path / "run" / "model.json").read_text())["net"]["name"] == "mine:Widened"
    )
    read = (
        'import indm\nwith indm.trust("mine"): print(type(indm.INDM.load("run").score.backbone))\n'
    )
    read += 'from indm.names import name_of\nclass A: pass\nname_of("net", A)'
    done = subprocess.run(
        [sys.executable, "-c", read], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "<class 'mine.Widened'>\n"
    assert "A cannot be named in a file, as it is defined in an interactive session" in done.stderr


@pytest.mark.parametrize("shape", [(3, 1), (2,), (3, 3), (3, 2, 2)])
def test_events_of_another_shape_are_refused(shape):
    """A coupling flow would broadcast a single column, or a row without its batch, to two columns."""
    model = build_model({"flow": "coupling", "sde": "vp", "net": MLP_TABLE}, (2,))
    losses = [functools.partial(loss, model) for loss in (indm.mle_loss, indm.nelbo, indm.nll)]
    for of_x in (*losses, model.log_prob, model.encode):
        with pytest.raises(ValueError, match="x must"):
            of_x(torch.zeros(shape))


def test_images_of_other_sides_are_refused():
    """Without a flow nothing else would notice that another number of pixels is scored."""
    model = build_model({"flow": "identity", "sde": "vp", "net": "zero"}, (1, 8, 8))
    with pytest.raises(ValueError, match=r"of shape \(n, 1, 8, 8\), got shape \(2, 1, 3, 5\)"):
        model.log_prob(torch.zeros(2, 1, 3, 5))


@pytest.mark.parametrize("shape", [2, (), (0,), (-2,), (2.0,), "ab"], ids=str)
@pytest.mark.parametrize("made", ["model", "denoiser", "parts"])
def test_a_shape_that_is_no_tuple_of_counts_is_named(made, shape):
    with pytest.raises(ValueError, match="shape must be a tuple of counts"):
        if made == "model":
            build_model({"flow": "identity", "sde": "vp", "net": "zero"}, shape)
        elif made == "denoiser":
            indm.from_denoiser(lambda x, sigma: x, predicts="noise", path="edm", shape=shape)
        else:
            score = indm.ScoreModel(indm.nets.Zero(), indm.VPSDE())
            indm.INDM(indm.flows.Identity(), score, shape=shape)


def test_draws_with_log_p_have_no_guidance():
    """The error is that of the function that was called."""
    model = build_model({"flow": "identity", "sde": "vp", "net": "zero"}, (2,))
    with pytest.raises(TypeError, match=r"sample_with_log_prob.*guidance"):
        indm.sample_with_log_prob(model, 4, guidance=2.0)


def test_names_of_the_reference_are_found_after_import_indm():
    names = ["indm.foreign.denoiser.Preconditioned", "indm.foreign.paths", "indm.sampling.Sampler"]
    code = f"import indm; [eval(name) for name in {names}]"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
