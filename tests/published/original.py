"""The published networks once more, as the original's layout has them: one list of layers, read by
position.

Nothing here comes from ``indm``: it is what conversions are checked against where there is no
fixture.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

FIXTURES = Path(__file__).parents[1] / "fixtures"
BASE = json.loads((FIXTURES / "ddpmpp_vp.json").read_text())


OURS = {
    "nf": "net.channels", "ch_mult": "net.multipliers", "num_res_blocks": "net.blocks", "dropout": "net.dropout",
    "embedding_type": "net.embedding", "fourier_scale": "net.fourier_scale", "skip_rescale": "net.rescale",
    "centered": "net.centered", "scale_by_sigma": "net.scale_by_sigma", "attn_resolutions": "net.attention",
    "beta_min": "sde.beta_min", "beta_max": "sde.beta_max", "sigma_min": "sde.sigma_min", "sigma_max": "sde.sigma_max",
}  # fmt: skip


def tables_of(settings):
    """The original's settings as tables "sde" and "net" of a recipe."""
    s, tables = settings, {"sde": {"name": settings["sde"].removesuffix("sde")}, "net": {}}
    for key in OURS.keys() & s.keys():
        table, name = OURS[key].split(".")
        tables[table][name] = s[key]
    other = "beta_" if s["sde"] == "vesde" else "sigma_"
    tables["sde"] = {
        name: value for name, value in tables["sde"].items() if not name.startswith(other)
    }
    net = tables["net"]
    if "fir" in s:
        net["fir"] = s["fir_kernel"] if s["fir"] else []
    if "progressive" in s:
        net["input_pyramid"] = s["progressive_input"]
        net["attention"] = net["attention"] if s["attention"] else []
    return tables


def fixture(name):
    """Settings, state (without "module."), and the arrays of inputs and outputs of a stored
    network.
    """
    settings = json.loads((FIXTURES / f"{name}.json").read_text())
    with np.load(FIXTURES / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file}
    state = {
        key.removeprefix("state/module."): value
        for key, value in arrays.items()
        if key.startswith("state/")
    }
    return settings, state, arrays


def checkpoint(state, path, *, averages=None, step=123, **extra):
    """Write ``state`` in the released format; ``averages`` are the moving averages, by default of
    all parameters.
    """
    if averages is None:
        frozen = {
            key
            for key, value in state.items()
            if key == "sigmas" or (key.endswith(".0.W") and value.ndim == 1)
        }
        averages = [value.clone() for key, value in state.items() if key not in frozen]
    model = {f"module.{key}": value for key, value in state.items()}
    ema = {"decay": 0.9999, "num_updates": step, "shadow_params": averages}
    torch.save(
        {
            "optimizer": {"state": {}, "param_groups": []},
            "model": model,
            "ema": ema,
            "step": step,
            **extra,
        },
        path,
    )
    return path


class Layers:
    """The tensors by position and name, drawn at random where they are asked for the first time."""

    def __init__(self, state=None, seed=0):
        self.state, self.position = {} if state is None else state, 0
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, name, *shape):
        key = f"all_modules.{self.position}.{name}"
        if key not in self.state:
            spread = (
                1.0
                if len(shape) == 1
                else (shape[0] if len(shape) == 2 else np.prod(shape[1:])) ** -0.5
            )
            self.state[key] = 0.5 * spread * torch.randn(*shape, generator=self.generator)
        assert self.state[key].shape == shape
        return self.state[key].double()

    def norm(self, h, name=""):
        c = h.shape[1]
        return F.group_norm(
            h, min(c // 4, 32), self(f"{name}weight", c), self(f"{name}bias", c), eps=1e-6
        )

    def conv(self, h, outputs, name="", side=3, **options):
        weight = self(f"{name}weight", outputs, h.shape[1], side, side)
        return F.conv2d(h, weight, self(f"{name}bias", outputs), **options)

    def dense(self, v, outputs, name=""):
        return v @ self(f"{name}weight", outputs, v.shape[1]).T + self(f"{name}bias", outputs)

    def nin(self, h, outputs, name):
        mixed = torch.einsum("bchw,cd->bdhw", h, self(f"{name}.W", h.shape[1], outputs))
        return mixed + self(f"{name}.b", outputs)[:, None, None]


def slow_upfirdn(x, kernel, up, down, before, after):
    """Zeros between samples, padding, convolution, every so-manieth sample: sample by sample, from
    the definition.
    """
    kernel = np.asarray(kernel, dtype=np.float64)
    x = x.double().numpy()
    height, width = x.shape[2] * up + before + after, x.shape[3] * up + before + after
    padded = np.zeros((*x.shape[:2], height, width))
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            if 0 <= before + i * up < height and 0 <= before + j * up < width:
                padded[:, :, before + i * up, before + j * up] = x[:, :, i, j]
    side = len(kernel)
    rows, columns = range(0, height - side + 1, down), range(0, width - side + 1, down)
    out = np.zeros((*x.shape[:2], len(rows), len(columns)))
    for a, i in enumerate(rows):
        for b, j in enumerate(columns):
            out[:, :, a, b] = (padded[:, :, i : i + side, j : j + side] * kernel[::-1, ::-1]).sum(
                (2, 3)
            )
    return torch.from_numpy(out)


def filtered(h, taps, up, down, before, after):
    kernel = np.outer(taps, taps)
    return slow_upfirdn(h, kernel / kernel.sum() * up**2, up, down, before, after)


def halved(h, s):
    if not s["fir"]:
        return (h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]) / 4
    p = len(s["fir_kernel"]) - 2
    return filtered(h, s["fir_kernel"], 1, 2, (p + 1) // 2, p // 2)


def doubled(h, s):
    if not s["fir"]:
        return h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    p = len(s["fir_kernel"]) - 2
    return filtered(h, s["fir_kernel"], 2, 1, (p + 1) // 2 + 1, p // 2)


def strided(h, outputs, layers, s):
    if not s["fir"]:
        return layers.conv(F.pad(h, (0, 1, 0, 1)), outputs, "Conv_0.", stride=2)
    p = len(s["fir_kernel"])
    return layers.conv(
        filtered(h, s["fir_kernel"], 1, 1, (p + 1) // 2, p // 2), outputs, "Conv2d_0.", stride=2
    )


def published_network(x, label, s, layers):
    """The output for images ``x`` at levels ``label`` (B,), in double precision, by the flat
    ``settings`` ``s``.
    """
    silu, scale = F.silu, 2**-0.5 if s["skip_rescale"] else 1.0
    nf = s["nf"]
    widths = [nf * m for m in s["ch_mult"]]
    resolutions = [s["image_size"] // 2**i for i in range(len(widths))]

    def done(value):
        layers.position += 1
        return value

    def block(h, outputs, resample=None):
        change = (lambda v: v) if resample is None else (lambda v: resample(v, s))
        u = layers.conv(change(silu(layers.norm(h, "GroupNorm_0."))), outputs, "Conv_0.", padding=1)
        u = u + layers.dense(silu(temb), outputs, "Dense_0.")[:, :, None, None]
        u = layers.conv(silu(layers.norm(u, "GroupNorm_1.")), outputs, "Conv_1.", padding=1)
        if h.shape[1] != outputs or resample is not None:
            side = change(h)
            h = layers.conv(side, outputs, "Conv_2.", 1)
        return done((h + u) * scale)

    def attention(h):
        c, side = h.shape[1], h.shape[2]
        v = layers.norm(h, "GroupNorm_0.")
        query, key, value = (layers.nin(v, c, f"NIN_{i}").flatten(2) for i in range(3))
        weights = (torch.einsum("bcp,bcq->bpq", query, key) * c**-0.5).softmax(2)
        mixed = torch.einsum("bpq,bcq->bcp", weights, value).unflatten(2, (side, side))
        return done((h + layers.nin(mixed, c, "NIN_3")) * scale)

    def attended(h):
        wanted = s["attention"] and h.shape[3] in s["attn_resolutions"]
        return attention(h) if wanted else h

    if s["embedding_type"] == "fourier":
        phase = 2 * np.pi * label.double().log()[:, None] * layers("W", nf)
        temb = done(torch.cat((phase.sin(), phase.cos()), 1))
    else:
        half = nf // 2
        phase = label.double()[:, None] * 10_000 ** (-torch.arange(half).double() / (half - 1))
        temb = F.pad(torch.cat((phase.sin(), phase.cos()), 1), (0, nf % 2))
    temb = done(layers.dense(temb, 4 * nf))
    temb = done(layers.dense(silu(temb), 4 * nf))
    x = x.double() if s["centered"] else 2 * x.double() - 1
    pyramid = x
    hs = [done(layers.conv(x, nf, padding=1))]
    for i, width in enumerate(widths):
        for _ in range(s["num_res_blocks"]):
            hs.append(attended(block(hs[-1], width)))
        if i == len(widths) - 1:
            continue
        h = hs[-1]
        h = block(h, h.shape[1], halved)
        if s["progressive_input"] == "residual":
            h = pyramid = (done(strided(pyramid, h.shape[1], layers, s)) + h) * scale
        hs.append(h)
    h = block(attention(block(hs[-1], hs[-1].shape[1])), hs[-1].shape[1])
    for i in reversed(range(len(widths))):
        for _ in range(s["num_res_blocks"] + 1):
            h = block(torch.cat((h, hs.pop()), 1), widths[i])
        h = attended(h)
        if i > 0:
            h = block(h, h.shape[1], doubled)
    assert not hs and resolutions[0] == h.shape[2]
    normed = done(silu(layers.norm(h)))
    image = done(layers.conv(normed, x.shape[1], padding=1))
    if s["scale_by_sigma"]:
        image = image / label.double()[:, None, None, None]
    return image


def published_score(z_t, t, s, layers):
    """The score, with the single precision of the original's noise levels."""
    if s["sde"] == "vesde":
        return published_network(
            z_t, s["sigma_min"] * (s["sigma_max"] / s["sigma_min"]) ** t, s, layers
        )
    exponent = -0.25 * t**2 * (s["beta_max"] - s["beta_min"]) - 0.5 * t * s["beta_min"]
    std = 1 - torch.exp(2 * exponent)
    std = std if s["sde"] == "subvpsde" else std.sqrt()
    return -published_network(z_t, 999 * t, s, layers) / std[:, None, None, None]


def drawn(**changes):
    """A random network: settings, state, and images, times and scores that belong to it."""
    settings = BASE | {"image_size": 8, "nf": 8, "attn_resolutions": [4]} | changes
    generator = torch.Generator().manual_seed(1)
    size = settings["image_size"]
    z_t = torch.randn(3, settings["num_channels"], size, size, generator=generator)
    t = torch.tensor([1e-5, 0.2, 1.0])
    layers = Layers()
    score = published_score(z_t, t, settings, layers)
    count = settings["num_scales"]
    deviations = np.exp(
        np.linspace(np.log(settings["sigma_max"]), np.log(settings["sigma_min"]), count)
    )
    return settings, {"sigmas": torch.from_numpy(deviations)} | layers.state, z_t, t, score
