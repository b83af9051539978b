"""The log-likelihoods of networks that other people trained and published, unchanged.

    python -m research.strangers FOLDER                # whatever has no record yet, then the table
    python -m research.strangers FOLDER --only moons   # the networks whose name has that in it

:data:`FILES` says what FOLDER holds, from which repositories and commits. A network whose files are absent is skipped
with a line, and a file with other bytes is refused. Weights are read by ``weights_only``. Networks of points are also
solved by SciPy, from the network's own velocity alone.
"""

import argparse
import gzip
import hashlib
import importlib.util
import math
import re
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn
from torchvision.transforms.functional import resize

import indm
from indm.evaluation.statistics import mean_and_error
from indm.workbench.evaluation.baselines import fit_gaussian, png_nats
from research.descriptions import LINEAR, Theirs, of_strangers
from research.markdown import in_table, with_error
from research.records import RECORDS, Records, Row, made_by

CFM = "atong01/conditional-flow-matching a9e3033e examples/models/gaussian-moons"
PULFER = "BrianPulfer/PapersReimplementations 9ebf59a ddpm"
NIUWENGANG = "niuwengang/mnist_ddpm 5984b63"
SLIM = "HendricSch/Slim-Diffusion 2a04c42"
# file of FOLDER: the first digits of its SHA-256, and where it is from
FILES = {
    "torchcfm/cfm_v1.pt": ("8065a23a8a4b0b82", CFM),
    "torchcfm/flow_matching_v1.pt": ("96cee090dbfa8fa8", CFM),
    "torchcfm/otcfm_v1.pt": ("4e9b82ad3a9176d1", CFM),
    "torchcfm/sbcfm_v1.pt": ("b572d68c5cf6a467", CFM),
    "torchcfm/stochastic_interpolant_v1.pt": ("1de1932eaf75a5c1", CFM),
    "torchcfm/vp_flow_v1.pt": ("7f35ee5c8f00ad8b", CFM),
    "BrianPulfer/ddpm_mnist.pt": ("384f86fd83b97f05", PULFER),
    "BrianPulfer/ddpm_fashion.pt": ("2808c36abc1dd163", PULFER),
    "BrianPulfer/models.py": ("b4430d5f3abae5a6", PULFER),
    "niuwengang/ddpm_mnist.pt": ("f7c506e4fd00981e", NIUWENGANG),
    "niuwengang/ddpm_fashion.pt": ("6608ac18a9b806de", NIUWENGANG),
    "niuwengang/models.py": ("b9bb8ab284c76e4d", NIUWENGANG),
    "slim/weights/cifar-10.pt": ("2bb693827b52f60b", SLIM),
    "slim/weights/mnist.pt": ("cea17e659883ad9f", SLIM),
    "slim/slim_diffusion/models/__init__.py": ("a5ca2cf1e1b24501", SLIM),
    "slim/slim_diffusion/models/conv_down.py": ("c00cbf8b30ee0850", SLIM),
    "slim/slim_diffusion/models/conv_up.py": ("1242277135ea3026", SLIM),
    "slim/slim_diffusion/models/double_conv.py": ("490f149edccae295", SLIM),
    "slim/slim_diffusion/models/double_conv_attention.py": ("2a53bd8b412f449d", SLIM),
    "slim/slim_diffusion/models/multihead_attention.py": ("9c633c77f75f078a", SLIM),
    "slim/slim_diffusion/models/time_embedding.py": ("f88efd72b0aefbc3", SLIM),
    "slim/slim_diffusion/models/unet.py": ("8400f0b1cecce825", SLIM),
    "slim/slim_diffusion/models/unet_attention.py": ("065f1ccd00ba47e9", SLIM),
    "cifar10.npz": ("d6ae3f5bf394298a", "python -m research.data.cifar10"),
    "mnist.gz": ("8d422c7b0a1c1c79", "xdong99/ScoreBasedGenerativeModels afaf62e MNIST/raw/t10k-images-idx3-ubyte.gz"),
    "fashion.gz": ("cc1d090a38ace84d", "Debian's dataset-fashion-mnist, t10k-images-idx3-ubyte.gz"),
}
SLIM_PATH = {"betas": 1e-4 + 0.0199 * torch.arange(200) / 200}
POINTS, IMAGES, SOLVED, TIMES = 512, 256, 8, 16  # rows of a bound, images of an NLL, network evaluations of a bound
BY_SCIPY = 4  # points that SciPy solves, too
LOSS = re.compile(r".*?at least ([\d.e+-]+) bits/dim.*", re.DOTALL)  # what check_denoiser says is lost
KNOWN = ("cfm", "flow_matching", "stochastic_interpolant")  # networks of independent noise whose path is known
ENTROPY = math.log(2 * math.pi) + math.log(9 * 0.2) - 0.5 * math.log(2)  # the moons have at most this: both as if apart


def read(folder: Path, name: str) -> Path:
    """A file of FOLDER; FileNotFoundError where it is absent, ValueError where it has other bytes."""
    path = folder / name
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if digits != FILES[name][0]:
        raise ValueError(f"{path} must have a SHA-256 that begins with {FILES[name][0]}, got {digits}")
    return path


def moons(n: int, seed: int = 0) -> Tensor:
    """Points of torchcfm's ``sample_moons``: two half circles, moved along the diagonal by up to 0.2, times 3, minus 1.

    >>> moons(1000).mean(0).round().tolist()
    [1.0, 0.0]
    """
    numbers = np.random.default_rng(seed)
    angle, side = numbers.uniform(0, math.pi, n), numbers.integers(0, 2, n)
    x = np.where(side, 1 - np.cos(angle), np.cos(angle))
    y = np.where(side, 0.5 - np.sin(angle), np.sin(angle))
    return torch.tensor(3 * (np.stack([x, y], 1) + numbers.uniform(0, 0.2, (n, 1))) - 1).float()


def network_of_points(folder: Path, name: str) -> nn.Module:
    """A velocity (x, t) that was pickled as ``__main__.MLP``, with its classes named one by one."""
    known = [(Theirs, "__main__.MLP"), nn.Sequential, nn.Linear, nn.SELU, set]
    with torch.serialization.safe_globals(known):
        return torch.load(read(folder, f"torchcfm/{name}_v1.pt"), weights_only=True, map_location="cpu").eval()


def slim_network(folder: Path, data: str) -> nn.Module:
    """A U-Net of Slim-Diffusion, 200 steps."""
    for name in FILES:
        if name.startswith("slim/slim_diffusion/"):
            read(folder, name)
    sys.path.insert(0, str(folder / "slim"))
    module = importlib.import_module("slim_diffusion.models.unet")
    net = module.UNet(3 if data == "cifar-10" else 1, 32, 200)
    net.load_state_dict(torch.load(read(folder, f"slim/weights/{data}.pt"), weights_only=True, map_location="cpu"))
    return net.eval().requires_grad_(False)


def network_of_images(folder: Path, whose: str, data: str) -> nn.Module:
    """A U-Net of noise, called as (x, k) at whole k, whose code is in the folder beside its weights."""
    spec = importlib.util.spec_from_file_location("theirs", read(folder, f"{whose}/models.py"))
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    weights = torch.load(read(folder, f"{whose}/ddpm_{data}.pt"), weights_only=True, map_location="cpu")
    net = module.MyUNet()
    net.load_state_dict({key.removeprefix("network."): v for key, v in weights.items() if key.startswith("network.")})
    return net.eval().requires_grad_(False)


def images(folder: Path, data: str) -> Tensor:
    """Test images in grey levels, (N, 1, 28, 28)."""
    with gzip.open(read(folder, f"{data}.gz")) as file:
        content = np.frombuffer(file.read(), np.uint8)
    return torch.from_numpy(content[16:].reshape(-1, 1, 28, 28).copy())  # after the header of an IDX file


def slim_images(folder: Path, data: str) -> Tensor:
    """Test images as Slim-Diffusion takes them, (N, C, 32, 32); MNIST's by bilinear resizing."""
    if data == "mnist":
        return resize(images(folder, data), [32, 32], antialias=True)
    made = np.load(read(folder, "cifar10.npz"))
    return torch.from_numpy(made["x"][made["sizes"][0] :])


def by_scipy(velocity: nn.Module, x: Tensor) -> Tensor:
    """log density of x at t = 1, carried there from N(0, I) at t = 0, by RK45 to 1e-6 in float64.

    SELU makes the divergence jump, so that 1e-9 would take thousands of evaluations.
    """
    velocity = velocity.double()

    def slope(t: float, state: np.ndarray) -> np.ndarray:
        y = torch.tensor(state.reshape(-1, 3)[:, :2], requires_grad=True)
        u = velocity(y, torch.full((len(y),), t).double())
        trace = sum(torch.autograd.grad(u[:, i].sum(), y, retain_graph=True)[0][:, i] for i in range(2))
        return torch.cat([u.detach(), trace[:, None]], 1).numpy().ravel()

    start = torch.cat([x.double(), torch.zeros(len(x), 1)], 1).numpy().ravel()
    end = torch.tensor(solve_ivp(slope, (1.0, 0.0), start, rtol=1e-6, atol=1e-6).y[:, -1].reshape(-1, 3))
    return -0.5 * end[:, :2].square().sum(1) - math.log(2 * math.pi) + end[:, 2]


def of_points(folder: Path, name: str) -> Row:
    """The density of the library's own ODE, nats, SciPy's, and where the network learned a known path its NELBO."""
    velocity, x = network_of_points(folder, name), moons(POINTS)
    made: Row = {"call": "from_denoiser(predicts='velocity')", "unit": "nats"}
    if name in KNOWN:
        model = indm.from_denoiser(velocity, **of_strangers(f"torchcfm-{name}"))
        made["check"] = indm.check_denoiser(model, moons(4096, seed=1)).verdict
        with torch.no_grad():
            bound = indm.nelbo(model, x, times=TIMES, generator=torch.Generator().manual_seed(0)).nats
        made["nelbo"] = mean_and_error(bound)
    same_ode = indm.from_denoiser(velocity, **of_strangers("torchcfm-flow_matching"))  # dx/dτ is the output on any path
    with torch.no_grad():
        nll = -same_ode.log_prob(x, steps=256)
    exact = by_scipy(velocity, x[:BY_SCIPY])
    off = (-nll[:BY_SCIPY].double() - exact).abs()
    normal = gaussian(moons(4096, seed=1), x, 0.0).mean().item()
    return made | {"nll": mean_and_error(nll), "scipy_off": off.max().item(), "gaussian": normal, "least": ENTROPY}


def gaussian(rest: Tensor, x: Tensor, noise: float) -> Tensor:
    """−log density of each of x, nats in their units, under a Gaussian fitted to the rest, (N,)."""
    train, valid = rest[500:].flatten(1).double(), rest[:500].flatten(1).double()
    fit, _ = fit_gaussian(train, valid, torch.full((train.shape[1],), noise).double(), full=True)
    return fit.nats(fit.squares(x.flatten(1).double()))


def of_images(net: nn.Module, raw: Tensor, path: dict[str, Tensor]) -> Row:
    """NELBO, the bound of K steps and the NLL, bits/dim, of a network that indexes an embedding by whole k."""
    shape, scaling = tuple(raw.shape[1:]), indm.Scaling.between(-1, 1)
    model = indm.from_denoiser(net, predicts="noise", path=path, shape=shape, scaling=scaling, steps="whole")
    checked = indm.check_denoiser(model, raw[-IMAGES:])
    raw, rest = raw[:IMAGES], raw[IMAGES:]
    x, log_q = model.from_data(raw)
    generator = torch.Generator().manual_seed(0)
    bits = math.log(2) * math.prod(shape)
    with torch.no_grad():
        bounds = {
            key: mean_and_error(of(model, x, times=TIMES, log_q=log_q, generator=generator).nats / bits)
            for key, of in (("nelbo", indm.nelbo), ("bound_of_steps", indm.discrete_nelbo))
        }
    report = indm.nll(model, x[:SOLVED], log_q=log_q[:SOLVED], steps=64, generator=generator)
    png = png_nats(raw, 256)
    assert png is not None
    normal = gaussian(rest + torch.rand(rest.shape, generator=generator), raw + 0.5, 1 / 12)
    return {
        "call": "from_denoiser(steps='whole')", "check": checked.verdict, "unit": "bits/dim", **bounds,
        "nll": mean_and_error(report.nats / bits), "solver_error": report.solver_error.mean().item() / bits,
        "gaussian": (normal / bits).mean().item(), "least": (png / bits).mean().item(),
    }  # fmt: skip


def networks() -> Iterator[tuple[str, Any]]:
    """Names, and what makes the row of each from FOLDER."""
    for name in ("cfm", "otcfm", "sbcfm", "flow_matching", "vp_flow", "stochastic_interpolant"):
        yield f"moons, {name}", lambda folder, name=name: of_points(folder, name)
    for whose in ("BrianPulfer", "niuwengang"):
        for data in ("mnist", "fashion"):
            yield (
                f"{data}, {whose}",
                lambda folder, whose=whose, data=data: of_images(
                    network_of_images(folder, whose, data), images(folder, data), LINEAR
                ),
            )
    for data in ("mnist", "cifar-10"):
        yield (
            f"{data} 32×32, slim",
            lambda folder, data=data: of_images(slim_network(folder, data), slim_images(folder, data), SLIM_PATH),
        )


def study(made: Records, folder: Path, only: str = "") -> None:
    """A row for each network whose files are there."""
    for name, make in networks():
        if only in name:
            start = time.process_time()
            try:
                row = made.at(network=name).kept(
                    lambda make=make: make(folder) | {"cpu_seconds": round(time.process_time() - start)} | made_by(0)  # noqa: B023
                )
            except FileNotFoundError as error:
                print(f"{name} is skipped: {error}")
                continue
            print(name, {key: row.get(key) for key in ("nelbo", "bound_of_steps", "nll", "cpu_seconds")}, flush=True)


def table(rows: list[Row]) -> str:
    """Likelihoods with standard errors over examples; solver errors and SciPy's distance."""

    def shown(row: Row, key: str) -> str:
        return with_error(*row[key], ".2f") if key in row else ""

    lines = [
        (
            row["network"], row["unit"], *(shown(row, key) for key in ("nelbo", "bound_of_steps", "nll")),
            f"{row['solver_error'] if 'solver_error' in row else row['scipy_off']:.1g}", f"{row['gaussian']:.2f}",
            f"{row['least']:.2f}", LOSS.sub(r"\1", row.get("check", "")), row["cpu_seconds"],
        )
        for row in rows
    ]  # fmt: skip
    titles = (
        "NELBO",
        "bound of K steps",
        "NLL",
        "solver error",
        "a Gaussian",
        "entropy or PNG",
        "check_denoiser: bits/dim lost",
        "CPU seconds",
    )
    return in_table("network", "unit", *titles, rows=lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="files of strangers")
    parser.add_argument("--only", default="", help="part of a network's name")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    made = Records(RECORDS / "strangers.csv")
    study(made, options.folder, options.only)
    print(table(made.rows()))


if __name__ == "__main__":
    main()
