"""What the flow of a trained model does: its Jacobian, where its action lies, how well x_t still shows the class."""

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from indm.conditions import at, at_data, at_rows, rows_of_data
from indm.flows import Flow
from indm.flows.check import LARGEST, singular_values
from indm.rng import randn_like
from indm.sampling import log_snr_grid
from indm.tensors import double, evaluation_mode, float64_device
from indm.workbench.data.base import Data, stack
from indm.workbench.evaluation.records import Setup
from indm.workbench.evaluation.statistics import share_error
from indm.workbench.runs.folder import open_model

SPECTRA = 16  # samples whose Jacobian is looked at
LOW = 1 / 8  # cycles a pixel up to which a frequency is called low; 1/2 is the highest along an axis
TINY = 1e-30  # an energy: of data that are all the same, or a flow that moves nothing
Batch = Float[Tensor, "batch *event"]


def action(flow: Flow, x: Batch) -> dict[str, float]:
    """Where the displacement Δ = h(x) − x lies, as shares of its energy E‖Δ‖² (the shares overlap).

    Returns:
        ``size``: the root of E‖Δ‖²/E‖x‖². ``position``: the part that is the same for every sample. For images also
        ``colour``: the mean of each channel over the image, ``low`` and ``high``: the other spatial frequencies up to
        1/8 cycle a pixel and above. ``x_position``, …: the same shares of x itself, to compare with.
    """
    with torch.no_grad():
        delta = flow.latent(x) - x
    size = {"size": math.sqrt(_energy(delta) / max(_energy(x), TINY))}
    return size | _shares(delta) | {f"x_{name}": share for name, share in _shares(x).items()}


def _energy(v: Tensor) -> float:
    return double(v).square().flatten(1).sum(1).mean().item()


def _shares(v: Tensor) -> dict[str, float]:
    total = max(_energy(v), TINY)
    shares = {"position": _energy(v.mean(0, keepdim=True)) / total}
    if v.ndim == 4:
        power, radius = _power(v), _radius(v)
        bands = {"colour": radius == 0, "low": (radius > 0) & (radius <= LOW), "high": radius > LOW}
        shares |= {name: (power * band).sum().item() / total for name, band in bands.items()}
    return shares


def _power(v: Float[Tensor, "batch c h w"]) -> Float[Tensor, "c h w"]:
    """Mean energy of each channel at each frequency; sums to the energy."""
    return torch.fft.fft2(double(v), norm="ortho").abs().square().mean(0)


def _radius(v: Tensor) -> Float[Tensor, "h w"]:
    """Cycles a pixel of each frequency."""
    rows, columns = (
        torch.fft.fftfreq(side, dtype=torch.float64, device=float64_device(v.device)) for side in v.shape[2:]
    )
    return torch.hypot(rows[:, None], columns)


def spectrum(flow: Flow, x: Float[Tensor, "batch c h w"]) -> dict[str, list]:
    """Energy that h moves, E‖h(x) − x‖², and that of x, by frequency and channel.

    Returns:
        ``frequency``: the middles of bands a pixel wide, cycles a pixel; ``moved`` and ``x``: a list for each channel
        with the energy in each band; they sum to E‖h(x) − x‖² and E‖x‖².
    """
    with torch.no_grad():
        delta = flow.latent(x) - x
    side = max(x.shape[2:])
    band = (_radius(x) * side).round().long()
    bands = int(band.max()) + 1

    def by_band(v: Tensor) -> list[list[float]]:
        power = _power(v).flatten(1)
        return power.new_zeros(len(power), bands).index_add(1, band.flatten(), power).tolist()

    return {"frequency": [i / side for i in range(bands)], "moved": by_band(delta), "x": by_band(x)}


def class_information(
    model, data: Data, *, times: int = 9, examples: int = 2000, seed: int = 0, progress: bool = True
) -> list[dict[str, float]]:
    """The accuracy of a linear classifier of x_t = h⁻¹(z_t), at times equally spaced on the log-SNR clock.

    At each time a new classifier is trained on noised training examples and scored on noised test examples.

    Returns:
        For each time: ``t``, ``clock`` (from 0 at ε to 1 at T), ``accuracy`` and ``standard_error``.
    """
    generator = torch.Generator(model.scaling.scale.device).manual_seed(seed)
    positions, grid = torch.linspace(0, 1, times, dtype=torch.float64), log_snr_grid(model.sde, times - 1).flip(0)
    points = []
    with evaluation_mode(model):
        models = {split: at_data(model, data, split, examples) for split in ("train", "test")}
        latents = {}
        for split, here in models.items():
            raw = stack(getattr(data, split), examples).to(model.scaling.scale.device)
            latents[split] = here.flow.latent(here.from_data(raw, generator=generator)[0])
        labels = {split: data.labels[split][: len(z)].numpy() for split, z in latents.items()}
        for clock, t in tqdm(list(zip(positions.tolist(), grid, strict=True)), desc="probe", disable=not progress):
            x_t = {split: _noised(models[split], z, t, generator) for split, z in latents.items()}
            accuracy = _linear_accuracy(x_t, labels)
            error = share_error(accuracy, len(labels["test"]))
            points.append({"t": t.item(), "clock": clock, "accuracy": accuracy, "standard_error": error})
    return points


def _noised(model, z: Batch, t: Float[Tensor, ""], generator: torch.Generator) -> np.ndarray:
    """x_t of latents, (n, d)."""
    z_t = model.sde.perturb(z, t.to(z).expand(len(z)), randn_like(z, generator))
    return model.flow.solve_inverse(z_t, tol=1e-3)[0].flatten(1).cpu().numpy()


def _linear_accuracy(x: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> float:
    """The test accuracy of a logistic regression trained on the training split."""
    from sklearn.linear_model import LogisticRegression

    scale = x["train"].std() + 1e-12
    classifier = LogisticRegression(C=0.1, max_iter=300).fit(x["train"] / scale, labels["train"])
    return float(classifier.score(x["test"] / scale, labels["test"]))


def analyse(model, data: Data, *, examples: int = 2000, seed: int = 0, progress: bool = True) -> dict:
    """All of the above for one model: ``action``, ``spectrum``, ``singular_values`` (where feasible) and ``probe``.

    A flow that sees c is looked at at the c of each example.

    Raises:
        ValueError: a flow that draws its map anew in every call, or fewer than 2 examples.
    """
    if examples < 2:
        raise ValueError(f"examples must be at least 2, got {examples}")
    model.flow.check_one_map("its analysis")
    generator = torch.Generator(model.scaling.scale.device).manual_seed(seed)
    x = model.from_data(stack(data.test, examples).to(model.scaling.scale.device), generator=generator)[0]
    c = rows_of_data(model, data, "test", len(x))
    with evaluation_mode(model):
        flow = at(model, c, len(x)).flow
        analysis: dict = {"action": action(flow, x)}
        if x.ndim == 4:
            analysis["spectrum"] = spectrum(flow, x)
        if x[0].numel() <= LARGEST:
            rows = torch.arange(min(SPECTRA, len(x))).split(1)
            each = [singular_values(at_rows(model, c, row).flow, x[row]) for row in rows]
            analysis["singular_values"] = torch.cat(each).tolist()
    if data.labels:
        analysis["probe"] = class_information(model, data, examples=examples, seed=seed, progress=progress)
    return analysis


def flow_of_run(run: Path, setup: Setup) -> dict:
    """What the flow does, see :func:`analyse`."""
    options = setup.options
    return analyse(open_model(run), setup.data, examples=options.examples, seed=options.seed, progress=setup.progress)
