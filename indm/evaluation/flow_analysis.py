"""What the flow of a trained model does: its Jacobian, where its action lies, and what x_t still tells of the class."""

import math
from pathlib import Path

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from indm.data.base import Data, stack
from indm.evaluation import plots
from indm.evaluation.statistics import share_error
from indm.flows import Flow, require_one_map
from indm.rng import randn_like
from indm.sampling import log_snr_grid
from indm.tensors import evaluation_mode

LARGEST_DENSE = 1024  # dimensions up to which the Jacobian is formed
SPECTRA = 16  # samples whose Jacobian is looked at
LOW = 1 / 8  # cycles a pixel up to which a frequency is called low; 1/2 is the highest along an axis
TINY = 1e-30  # an energy: of data that are all the same, or a flow that moves nothing
Batch = Float[Tensor, "batch *event"]


def singular_values(flow: Flow, x: Batch) -> Float[Tensor, "batch d"]:
    """Singular values of ∂h/∂x at each sample, falling. 1 everywhere is an isometry; the product is |det ∂h/∂x|.

    Raises:
        ValueError: above 1024 dimensions.
    """
    if x[0].numel() > LARGEST_DENSE:
        raise ValueError(f"x must have at most {LARGEST_DENSE} dimensions for a dense Jacobian, got {x[0].numel()}")
    return torch.linalg.svdvals(torch.stack([_jacobian(flow, sample) for sample in x]))


def _jacobian(flow: Flow, sample: Tensor) -> Float[Tensor, "d d"]:
    d = sample.numel()
    with torch.enable_grad():
        x = sample[None].detach().requires_grad_()
        rows = torch.eye(d, dtype=x.dtype, device=x.device)[:, None]
        (jacobian,) = torch.autograd.grad(flow.latent(x).flatten(1), x, rows, is_grads_batched=True)
    return jacobian.reshape(d, d)


def action(flow: Flow, x: Batch) -> dict[str, float]:
    """Where the displacement Δ = h(x) − x lies, as shares of its energy E‖Δ‖² (the shares overlap).

    Returns:
        ``size``: the root of E‖Δ‖²/E‖x‖². ``position``: the part that is the same for every sample. For images also
        ``colour``: the mean of each channel over the image, ``low`` and ``high``: the other spatial frequencies up to
        1/8 cycle a pixel and above. ``x_position``, …: the same shares of x itself, to compare with.
    """
    with torch.no_grad():
        delta = flow.latent(x) - x
    found = {"size": math.sqrt(_energy(delta) / max(_energy(x), TINY))}
    return found | _shares(delta) | {f"x_{name}": share for name, share in _shares(x).items()}


def _energy(v: Tensor) -> float:
    return v.double().square().flatten(1).sum(1).mean().item()


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
    return torch.fft.fft2(v.double(), norm="ortho").abs().square().mean(0)


def _radius(v: Tensor) -> Float[Tensor, "h w"]:
    """Cycles a pixel of each frequency."""
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64, device=v.device) for side in v.shape[2:])
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
    """How well a linear classifier of x_t = h⁻¹(z_t) knows the class, at times equally spaced on the log-SNR clock.

    Each time it is trained anew on noised training examples and scored on noised test examples.

    Returns:
        For each time: ``t``, ``clock`` (from 0 at ε to 1 at T), ``accuracy`` and ``standard_error``.
    """
    from sklearn.linear_model import LogisticRegression

    sde, generator = model.sde, torch.Generator(model.scaling.scale.device).manual_seed(seed)
    position, grid = torch.linspace(0, 1, times, dtype=torch.float64), log_snr_grid(sde, times - 1).flip(0)
    results = []
    with evaluation_mode(model):
        latents = {}
        for part in ("train", "test"):
            raw = stack(getattr(data, part), examples).to(model.scaling.scale.device)
            latents[part] = model.flow.latent(model.scaling.to_model(raw, generator=generator))
        labels = {part: data.labels[part][: len(z)].numpy() for part, z in latents.items()}
        for where, t in tqdm(list(zip(position.tolist(), grid, strict=True)), desc="probe", disable=not progress):
            seen = {}
            for part, z in latents.items():
                z_t = sde.perturb(z, t.to(z).expand(len(z)), randn_like(z, generator))
                seen[part] = model.flow.solve_inverse(z_t, tol=1e-3)[0].flatten(1).cpu().numpy()
            scale = seen["train"].std() + 1e-12
            probe = LogisticRegression(C=0.1, max_iter=300).fit(seen["train"] / scale, labels["train"])
            accuracy = float(probe.score(seen["test"] / scale, labels["test"]))
            error = share_error(accuracy, len(labels["test"]))
            results.append({"t": t.item(), "clock": where, "accuracy": accuracy, "standard_error": error})
    return results


def inspect(model, data: Data, *, examples: int = 2000, seed: int = 0, progress: bool = True) -> dict:
    """All of the above for one model: ``action``, ``spectrum``, ``singular_values`` (where feasible) and ``probe``.

    Raises:
        ValueError: a flow that draws its map anew in every call, or fewer than 2 examples.
    """
    if examples < 2:
        raise ValueError(f"examples must be at least 2, got {examples}")
    require_one_map(model.flow, "its anatomy")
    generator = torch.Generator(model.scaling.scale.device).manual_seed(seed)
    x = model.scaling.to_model(stack(data.test, examples).to(model.scaling.scale.device), generator=generator)
    with evaluation_mode(model):
        found: dict = {"action": action(model.flow, x)}
        if x.ndim == 4:
            found["spectrum"] = spectrum(model.flow, x)
        if x[0].numel() <= LARGEST_DENSE:
            found["singular_values"] = singular_values(model.flow, x[:SPECTRA]).tolist()
    if data.labels:
        found["probe"] = class_information(model, data, examples=examples, seed=seed, progress=progress)
    return found


def save_figure(found: dict[str, dict], path: Path) -> None:
    """Singular values, the action by share and frequency, and probe accuracies of several models, by name, as a PNG."""
    probes, spectra = (any(part in result for result in found.values()) for part in ("probe", "spectrum"))
    figure = Figure(figsize=(4.75 * (2 + probes + spectra), 4), layout="constrained")
    left, middle, *more = figure.subplots(1, 2 + probes + spectra)
    for name, result in found.items():
        for i, values in enumerate(result.get("singular_values", [])):
            left.plot(values, color=f"C{list(found).index(name)}", alpha=0.4, label=None if i else name)
    left.set(title="singular values of ∂h/∂x, one line a sample", xlabel="index", yscale="log")

    moved = {name: result["action"] for name, result in found.items() if result["action"]["size"] > 1e-6}
    kinds = [key for key in next(iter(found.values()))["action"] if key != "size" and not key.startswith("x_")]
    bars = {name: [shares[key] for key in kinds] for name, shares in moved.items()}
    bars["the data themselves"] = [next(iter(found.values()))["action"][f"x_{key}"] for key in kinds]
    for i, (name, shares) in enumerate(bars.items()):
        offset = (i - (len(bars) - 1) / 2) / (len(bars) + 1)
        middle.bar([k + offset for k in range(len(kinds))], shares, 1 / (len(bars) + 1), label=name)
    middle.set(title="shares of the energy of h(x) − x", xticks=range(len(kinds)), xticklabels=kinds)
    if probes:
        _probes(more[0], found)
    if spectra:
        _spectra(more[-1], found)
    for axes in (left, middle, *more):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    plots.save_figure(figure, path)


def _probes(axes: Axes, found: dict[str, dict]) -> None:
    """What is left of the class over time, a line for each model that has it."""
    for name, result in found.items():
        if "probe" in result:
            lines = {key: [point[key] for point in result["probe"]] for key in result["probe"][0]}
            axes.errorbar(lines["clock"], lines["accuracy"], lines["standard_error"], fmt=".-", label=name)
    axes.set(title="class known from x_t, linear probe", xlabel="log-SNR clock, 0 at ε, 1 at T", ylabel="accuracy")


def _spectra(axes: Axes, found: dict[str, dict]) -> None:
    """Energy by frequency, a line for each model and channel, dotted for the data."""
    for number, (name, result) in enumerate(found.items()):
        lines = result["spectrum"]
        if result["action"]["size"] > 1e-6:
            for i, energy in enumerate(lines["moved"]):
                axes.plot(lines["frequency"], energy, ".-", color=f"C{number}", label=None if i else name)
    for i, energy in enumerate(lines["x"]):
        axes.plot(lines["frequency"], energy, ":", color="black", label=None if i else "the data themselves")
    axes.set(title="energy moved, by frequency and channel", xlabel="cycles a pixel", yscale="log")
