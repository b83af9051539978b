"""Released flows, converted: against their recorded outputs, and against the original layout
evaluated as it stands.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from indm.flows import ExactLogDet, ResidualFlow, use_log_det
from indm.model import INDM, build_model
from indm.published import ConditionalResidualFlow
from indm.published.checkpoint import read_checkpoint
from indm.published.flow import flow_from_state

FIXTURES = Path(__file__).parents[1] / "fixtures"
PLAIN, CONDITIONAL = "resflow_16-16", "wolf_resflow"
TABLES = {
    PLAIN: {"name": "residual", "blocks": (2, 2), "width": 16, "norm": "rows"},
    CONDITIONAL: {"name": "conditional-residual", "blocks": (1, 1), "width": 16, "norm": "rows", "code_dim": 64,
                  "encoder_planes": (8, 8, 8), "encoder_channels": 2, "prior_steps": 2, "prior_width": 32},
}  # fmt: skip


def recorded(name):
    """State, what is given of the flow, inputs and outputs, and the event shape of a fixture."""
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        values = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    settings = json.loads((FIXTURES / f"{name}.json").read_text())
    state = {
        key.removeprefix("state/"): value
        for key, value in values.items()
        if key.startswith("state/")
    }
    shape = (settings["num_channels"], settings["image_size"], settings["image_size"])
    return (
        state,
        TABLES[name] | {"activation": settings["act_fn"], "coeff": settings["coeff"]},
        {key: value for key, value in values.items() if not key.startswith("state/")},
        shape,
    )


def converted(state, settings, shape):
    flow = flow_from_state(state, settings, shape)
    use_log_det(flow, evaluation=ExactLogDet())
    return flow


def assert_near(found, expected, tolerance):
    assert (found.double() - expected).abs().max().item() <= tolerance


# ── Recorded outputs ──────────────────────────────────────────────────────────────────────────────


def test_plain_flow_as_recorded():
    state, settings, values, shape = recorded(PLAIN)
    flow = converted(state, settings, shape)
    assert isinstance(flow, ResidualFlow) and not flow.training
    assert (flow.blocks, flow.width, flow.norm, flow.squeeze) == ((2, 2), 16, "rows", False)
    x = values["input/x"].float()
    with torch.no_grad():
        z, log_det = flow(x)
        assert_near(z, values["output/z"], 1e-5)
        assert_near(log_det, values["output/log_det_exact"], 1e-4)
        assert_near(flow.inverse(z), values["input/x"], 2e-5)


def test_conditional_flow_as_recorded():
    state, settings, values, shape = recorded(CONDITIONAL)
    flow = converted(state, settings, shape)
    assert isinstance(flow, ConditionalResidualFlow) and not flow.training
    assert (flow.code_dim, flow.encoder_planes, flow.prior_steps, flow.prior_width) == (
        64,
        (8, 8, 8),
        2,
        32,
    )
    x, noise, recorded_code = (
        values["input/x"].float(),
        values["input/code_noise"].float(),
        values["output/code"],
    )
    with torch.no_grad():
        mean, log_variance = flow.posterior(x)
        assert_near(mean, values["output/code_mean"], 1e-5)
        assert_near(log_variance, values["output/code_log_variance"], 1e-5)
        code = mean + (0.5 * log_variance).exp() * noise
        assert_near(code, recorded_code, 1e-5)
        assert_near(flow.kl(x, code), values["output/kl"], 1e-4)
        assert_near(
            flow.prior.code_of(values["input/prior_noise"].float()),
            values["output/prior_code"],
            1e-4,
        )
        z, log_det = flow(x[:1], code[:1])
        assert_near(z, values["output/z"][:1], 1e-5)
        assert_near(log_det, values["output/log_det_exact"][:1], 1e-4)
        assert_near(flow.inverse(z, code=code[:1]), values["input/x"][:1], 2e-5)


@pytest.mark.parametrize("name", [PLAIN, CONDITIONAL])
def test_a_checkpoint_file_in_the_released_format(name, tmp_path):
    state, settings, values, shape = recorded(name)
    # not averaged
    kept = re.compile(r"\.(running_\w+|num_batches_tracked|weight_inv|scale|last_\w+)$")
    shadow = [2 * value.float() for key, value in state.items() if not kept.search(key)]
    ema = {"decay": 0.999, "num_updates": 3, "shadow_params": shadow}
    checkpoint = {
        "optimizer": {},
        "model": {k: v.float() for k, v in state.items()},
        "ema": ema,
        "step": 123,
    }
    torch.save(checkpoint, tmp_path / "flow_checkpoint_1.pth")
    read = read_checkpoint(tmp_path / "flow_checkpoint_1.pth")
    loaded, averages = read.weights("model"), read.weights("ema")
    for key, value in loaded.items():
        assert torch.equal(averages[key], value if kept.search(key) else 2 * value)
    code = () if name == PLAIN else (values["output/code"].float(),)
    with torch.no_grad():
        z = flow_from_state(loaded, settings, shape).latent(values["input/x"].float(), *code)
    assert_near(z, values["output/z"], 1e-5)


def test_a_converted_flow_is_saved_and_loaded_as_any_other(tmp_path):
    state, settings, values, shape = recorded(CONDITIONAL)
    model = build_model(
        {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}, shape
    )
    INDM(flow_from_state(state, settings, shape), model.score, shape=shape).save(tmp_path)
    with torch.no_grad():
        z = INDM.load(tmp_path).flow.latent(
            values["input/x"].float(), values["output/code"].float()
        )
    assert_near(z, values["output/z"], 1e-5)


# ── The original layout, with other settings ──────────────────────────────────────────────────────

PHI = {
    "sin": lambda v, _: torch.sin(2 * math.pi * v) / (2 * math.pi),
    "softplus": lambda v, _: F.softplus(v),
    "elu": lambda v, _: F.elu(v),
    "relu": lambda v, _: F.relu(v),
    "identity": lambda v, _: v,
    "swish": lambda v, beta: v * torch.sigmoid(F.softplus(beta) * v) / 1.1,
    "lcube": lambda v, _: torch.where(v.abs() < 1, v**3 / 3, v - 2 / 3 * v.sign()),
}
GATE = {"elu": F.elu, "relu": F.relu, "leaky_relu": lambda v: F.leaky_relu(v, 0.1)}


class Original:
    """A random state in the layout of the released flows, and what it computes, in double
    precision.
    """

    def __init__(self, seed=0, prefix="module."):
        self.generator, self.state, self.prefix = torch.Generator().manual_seed(seed), {}, prefix

    def add(self, name, *shape, scale=0.5, start=0.0):
        value = start + scale * torch.randn(shape, generator=self.generator, dtype=torch.float64)
        self.state[self.prefix + name] = value.float()

    def get(self, name):
        return self.state[self.prefix + name].double()

    def has(self, name):
        return self.prefix + name in self.state

    def blocks(self, root, channels, groups, width, act="sin", actnorm=False, code=0):
        """``groups``: number of blocks in each; squeezes between them have no entries, but a place."""
        self.layers, self.root, self.act, self.code = [], root, act, code
        for i, count in enumerate(groups):
            place, kinds = 0, (["actnorm"] if actnorm and i == 0 else [])
            for _ in range(count):
                kinds += ["block"] + (["actnorm"] if actnorm else [])
            for kind in kinds:
                name = f"{root}transforms.{i}.chain.{place}"
                self.layers.append((kind, name))
                place += 1
                if kind == "actnorm":
                    self.add(f"{name}.weight", channels, scale=0.2)
                    self.add(f"{name}.bias", channels)
                    self.state[f"{self.prefix}{name}.initialized"] = torch.tensor(1)
                    continue
                first = 0 if (i, sum(k == "block" for k, _ in self.layers)) == (0, 1) else 1
                for j, (a, b, k) in enumerate(
                    [(channels, width, 3), (width, width, 1), (width, channels, 3)]
                ):
                    linear = f"{name}.nnet.{first + 2 * j}"
                    self.add(f"{linear}.weight", b, a, k, k, scale=0.1)
                    self.add(f"{linear}.bias", b)
                    self.state[f"{self.prefix}{linear}.scale"] = torch.tensor(3.0)
                    if code and j == 1:
                        self.add(f"{linear}.h_net.net.weight", width, code)
                        self.add(f"{linear}.h_net.net.bias", width)
                if act == "swish":
                    for j in range(1 - first, 6, 2):
                        if j < 5:
                            self.add(f"{name}.nnet.{j}.beta", 1)
                for name_, value in (("geom_p", 0.0), ("lamb", 2.0), ("last_n_samples", 0.0)):
                    self.state[f"{self.prefix}{name}.{name_}"] = torch.tensor(value)
            if i < len(groups) - 1:
                self.layers.append(("squeeze", ""))
                channels *= 4
        return self

    def z(self, x, code=None, squeeze=False):
        """Layer after layer; the norm of each row of a map is bounded by 0.98."""
        h = F.pixel_unshuffle(x, 2) if squeeze else x
        depth = int(squeeze)
        for kind, name in self.layers:
            if kind == "squeeze":
                h, depth = F.pixel_unshuffle(h, 2), depth + 1
            elif kind == "actnorm":
                weight, bias = (
                    self.get(f"{name}.{part}")[None, :, None, None] for part in ("weight", "bias")
                )
                h = (h + bias) * weight.exp()
            else:
                h = h + self.g(h, name, code)
        for _ in range(depth):
            h = F.pixel_shuffle(h, 2)
        return h

    def g(self, v, name, code):
        for j in range(6):
            linear = f"{name}.nnet.{j}"
            if self.has(f"{linear}.bias"):
                weight = self.get(f"{linear}.weight")
                rows = weight.abs().sum((1, 2, 3), keepdim=True)
                if self.has(f"{linear}.h_net.net.bias"):
                    entering = code @ self.get(f"{linear}.h_net.net.weight").T + self.get(
                        f"{linear}.h_net.net.bias"
                    )
                    v = v + entering[:, :, None, None]
                weight = weight / (rows / 0.98).clamp(min=1)
                v = F.conv2d(v, weight, self.get(f"{linear}.bias"), padding=weight.shape[-1] // 2)
            elif j < 5 and (j > 0 or self.has(f"{name}.nnet.1.bias")):
                v = PHI[self.act](v, self.get(f"{linear}.beta") if self.act == "swish" else None)
        return v

    def encoder(self, inputs, planes, channels, features, code, gate):
        self.planes, self.gate = planes, GATE[gate]
        for level, outputs in enumerate(planes):
            for block, (a, b, stride) in enumerate([(inputs, outputs, 1), (outputs, outputs, 2)]):
                name = f"discriminator.encoder.net.resnet{level}.main.{block}"
                self.convolution(f"{name}.conv1", f"{name}.bn1", a, b, 3)
                self.convolution(f"{name}.conv2", f"{name}.bn2", b, b, 3)
                if stride == 2 or a != b:
                    self.convolution(f"{name}.downsample.0", f"{name}.downsample.1", a, b, 1)
            inputs = outputs
        self.add("discriminator.encoder.net.top.weight", channels, inputs, 1, 1)
        self.add("discriminator.encoder.net.top.bias", channels)
        self.weight_norm("discriminator.fc", features, 2 * code)
        return self

    def convolution(self, name, norm, a, b, kernel):
        self.add(f"{name}.weight", b, a, kernel, kernel, scale=0.3)
        for part, start, scale in (("weight", 1, 0.1), ("bias", 0, 0.1), ("running_mean", 0, 0.1)):
            self.add(f"{norm}.{part}", b, start=start, scale=scale)
        self.state[f"{self.prefix}{norm}.running_var"] = (
            torch.rand(b, generator=self.generator) + 0.5
        )
        self.state[f"{self.prefix}{norm}.num_batches_tracked"] = torch.tensor(5)

    def weight_norm(self, name, a, b):
        self.add(f"{name}.linear.bias", b, scale=0.1)
        self.state[f"{self.prefix}{name}.linear.weight_g"] = (
            torch.rand(b, 1, generator=self.generator) * 0.3
        )
        self.add(f"{name}.linear.weight_v", b, a)

    def dense(self, name, h):
        v = self.get(f"{name}.linear.weight_v")
        weight = self.get(f"{name}.linear.weight_g") * v / v.norm(dim=1, keepdim=True)
        return h @ weight.T + self.get(f"{name}.linear.bias")

    def posterior(self, x):
        def convolve(h, name, norm, stride=1):
            weight = self.get(f"{name}.weight")
            h = F.conv2d(h, weight, stride=stride, padding=weight.shape[-1] // 2)
            statistics = (
                self.get(f"{norm}.{part}")
                for part in ("running_mean", "running_var", "weight", "bias")
            )
            return F.batch_norm(h, *statistics)

        for level in range(len(self.planes)):
            for block, stride in enumerate((1, 2)):
                name = f"discriminator.encoder.net.resnet{level}.main.{block}"
                h = self.gate(convolve(x, f"{name}.conv1", f"{name}.bn1", stride))
                h = convolve(h, f"{name}.conv2", f"{name}.bn2")
                if self.has(f"{name}.downsample.0.weight"):
                    x = convolve(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
                x = self.gate(h + x)
        top = "discriminator.encoder.net.top"
        h = F.elu(F.conv2d(x, self.get(f"{top}.weight"), self.get(f"{top}.bias"))).flatten(1)
        return self.dense("discriminator.fc", h).chunk(2, 1)

    def prior(self, code, width, steps, gate):
        self.prior_steps, self.prior_gate = steps, GATE[gate]
        for i in range(steps):
            step = f"discriminator.prior.flow.steps.{i}"
            for norm in ("actnorm", "unit.actnorm"):
                self.add(f"{step}.{norm}.log_scale", code, scale=0.1)
                self.add(f"{step}.{norm}.bias", code, scale=0.1)
            self.add(f"{step}.linear.weight", code, code)
            self.add(f"{step}.linear.weight_inv", code, code)
            for coupling in ("coupling1_up", "coupling1_dn", "coupling2_up", "coupling2_dn"):
                net = f"{step}.unit.{coupling}.net"
                for layer, a in (("fc1", code // 2), ("fc2", width)):
                    self.add(f"{net}.{layer}.weight", width, a)
                    self.add(f"{net}.{layer}.bias", width)
                self.weight_norm(f"{net}.fc3", width, code)
        return self

    def log_prior(self, u):
        log_det = torch.zeros(len(u), dtype=torch.float64)
        for i in range(self.prior_steps):
            step = f"discriminator.prior.flow.steps.{i}"
            for layer in ("actnorm", "linear", "coupling1_up", "coupling1_dn", "unit.actnorm", "coupling2_up",
                          "coupling2_dn"):  # fmt: skip
                if layer.endswith("actnorm"):
                    log_scale = self.get(f"{step}.{layer}.log_scale")
                    u, log_det = (
                        u * log_scale.exp() + self.get(f"{step}.{layer}.bias"),
                        log_det + log_scale.sum(),
                    )
                elif layer == "linear":
                    weight = self.get(f"{step}.linear.weight")
                    u, log_det = u @ weight.T, log_det + torch.linalg.slogdet(weight)[1]
                else:
                    halves, moved, shift, scale = self.coupling(u, f"{step}.unit.{layer}.net")
                    halves[moved], log_det = (
                        halves[moved] * scale + shift,
                        log_det + scale.log().sum(1),
                    )
                    u = self.joined(halves, layer)
        return log_det - 0.5 * (u.square() + math.log(2 * math.pi)).sum(1)

    def coupling(self, u, net):
        """The halves of u, which of them moves, and its shift and scale."""
        halves = [u[:, 0::2], u[:, 1::2]] if "coupling2" in net else list(u.chunk(2, 1))
        kept, moved = (0, 1) if "_up" in net else (1, 0)
        h = halves[kept]
        for part in ("fc1", "fc2"):
            h = self.prior_gate(
                h @ self.get(f"{net}.{part}.weight").T + self.get(f"{net}.{part}.bias")
            )
        shift, raw = self.dense(f"{net}.fc3", h).chunk(2, 1)
        return halves, moved, shift, torch.sigmoid(raw + 2) + 1e-3

    def joined(self, halves, layer):
        return (
            torch.stack(halves, 2).flatten(1)
            if layer.startswith("coupling2")
            else torch.cat(halves, 1)
        )


PLAINS = {
    "4-4": ((3, 8, 8), {"groups": (4, 4), "width": 8}),
    "one group": ((1, 6, 6), {"groups": (3,), "width": 5}),
    "squeezed": ((1, 8, 8), {"groups": (2, 1), "width": 8}),
    "squeezed colour": ((3, 4, 4), {"groups": (1,), "width": 8}),
    "actnorm": ((2, 4, 4), {"groups": (2, 1), "width": 4, "actnorm": True}),
    "eleven blocks": ((1, 4, 4), {"groups": (11,), "width": 4}),
} | {act: ((2, 4, 4), {"groups": (1, 1), "width": 4, "act": act}) for act in PHI}


@pytest.mark.parametrize("name", PLAINS)
def test_plain_flows_of_other_settings(name):
    shape, arguments = PLAINS[name]
    squeeze = name.startswith("squeezed")
    original = Original().blocks("", shape[0] * (4 if squeeze else 1), **arguments)
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    settings = {
        "name": "residual", "norm": "rows", "blocks": arguments["groups"], "width": arguments["width"],
        "squeeze": squeeze,
        "activation": arguments.get("act", "sin"), "actnorm": arguments.get("actnorm", False),
    }  # fmt: skip
    flow = converted(original.state, settings, shape)
    expected = original.z(x, squeeze=squeeze)
    with torch.no_grad():
        z, log_det = flow(x.float())
    assert_near(z, expected, 1e-5)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: original.z(v, squeeze=squeeze), x[i : i + 1]
        )
        assert_near(
            log_det[i], torch.linalg.slogdet(jacobian.reshape(expected[0].numel(), -1))[1], 1e-4
        )


CONDITIONALS = {
    "small": ((1, 8, 8), {}, {"planes": (3, 4), "channels": 2, "features": 8, "gate": "elu"}, (2, 6, "elu")),
    "colour": ((3, 16, 16), {"groups": (2, 2)}, {"planes": (4, 4, 6), "channels": 3, "features": 12, "gate": "relu"},
               (3, 5, "relu")),
    "squeezed": ((3, 8, 8), {"act": "elu"}, {"planes": (5,), "channels": 4, "features": 16, "gate": "leaky_relu"},
                 (1, 8, "leaky_relu")),
    "actnorm": ((1, 8, 8), {"groups": (3,), "actnorm": True, "act": "swish"},
                {"planes": (3, 4), "channels": 1, "features": 4, "gate": "elu"}, (2, 6, "relu")),
}  # fmt: skip


@pytest.mark.parametrize("name", CONDITIONALS)
def test_conditional_flows_of_other_settings(name):
    shape, blocks, encoder, (steps, hidden, gate) = CONDITIONALS[name]
    squeeze, code_dim = name == "squeezed", 6
    channels = shape[0] * (4 if squeeze else 1)
    blocks = {"groups": (1, 1), "width": 5} | blocks
    original = Original(prefix="").blocks("generator.flow.", channels, **blocks, code=code_dim)
    original.encoder(channels, code=code_dim, **encoder).prior(code_dim, hidden, steps, gate)
    x = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    settings = {
        "name": "conditional-residual", "norm": "rows", "blocks": blocks["groups"], "width": blocks["width"],
        "squeeze": squeeze, "actnorm": blocks.get("actnorm", False),
        "activation": blocks.get("act", "sin"), "code_dim": code_dim, "encoder_planes": encoder["planes"],
        "encoder_channels": encoder["channels"], "encoder_activation": encoder["gate"], "prior_steps": steps,
        "prior_width": hidden, "prior_activation": gate,
    }  # fmt: skip
    flow = converted(original.state, settings, shape)
    seen = F.pixel_unshuffle(x, 2) if squeeze else x
    with torch.no_grad():
        for found, expected in zip(
            flow.posterior(x.float()), original.posterior(seen), strict=True
        ):
            assert_near(found, expected, 1e-5)
        code = torch.randn(
            3, code_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
        )
        assert_near(flow.prior.log_prob(code.float()), original.log_prior(code), 1e-4)
        z, log_det = flow(x.float(), code.float())
        assert_near(z, original.z(x, code, squeeze), 1e-5)
    if shape[1] == 8:
        jacobian = torch.autograd.functional.jacobian(
            lambda v: original.z(v, code[:1], squeeze), x[:1]
        )
        assert_near(log_det[0], torch.linalg.slogdet(jacobian.reshape(z[0].numel(), -1))[1], 1e-4)


# ── What does not fit ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [PLAIN, CONDITIONAL])
def test_every_tensor_counts(name):
    """One that is missing, extra or of another shape is named; all of them at once."""
    state, settings, _, shape = recorded(name)
    keys = [
        key for key in state if key.endswith((".bias", "running_mean", "weight_g", "linear.weight"))
    ]
    for key in keys[1 :: max(1, len(keys) // 6)]:
        broken = {k: v for k, v in state.items() if k != key}
        with pytest.raises(ValueError, match=f"{key.removeprefix('module.')} is missing"):
            flow_from_state(broken, settings, shape)
    first, second = keys[1], keys[2]
    broken = state | {
        first: torch.zeros(7, 7),
        "module.extra.u": torch.zeros(3),
        "module.extra.v": torch.zeros(3),
    }
    del broken[second]
    with pytest.raises(ValueError) as error:
        flow_from_state(broken, settings, shape)
    for part in (f"{first.removeprefix('module.')} has shape (7, 7)", f"{second.removeprefix('module.')} is missing",
                 "extra.u is not understood", "extra.v is not understood"):  # fmt: skip
        assert part in str(error.value)


def test_states_that_are_no_such_flow():
    _, settings, _, shape = recorded(PLAIN)
    with pytest.raises(ValueError, match=r"conv\.weight is not understood"):
        flow_from_state({"conv.weight": torch.zeros(1)}, settings, shape)
    small = {"name": "residual", "norm": "rows", "width": 4}
    with pytest.raises(ValueError, match="one or two groups of blocks"):
        flow_from_state(
            Original().blocks("", 1, (1, 1, 1), 4).state, small | {"blocks": (1, 1, 1)}, (1, 8, 8)
        )
    fresh = Original().blocks("", 1, (1,), 4, actnorm=True).state
    fresh["module.transforms.0.chain.0.initialized"] = torch.tensor(0)
    with pytest.raises(ValueError, match="ActNorm that never saw data"):
        flow_from_state(fresh, small | {"blocks": (1,), "actnorm": True}, (1, 4, 4))
