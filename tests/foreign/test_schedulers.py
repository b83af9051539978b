"""Every scheduler of diffusers is read as its own sampler reads it, or refused by name.

A row has the exact network of N(MEAN, STD² I), written in the convention of the scheduler: what it
gets, what it gives. The library's own sampler must draw that law with it, and log p of the model
must be that of the law.
"""

import inspect
import math
import warnings

import pytest
import torch
from torch.distributions import Normal

import indm
from indm.foreign.libraries import SCHEDULERS

diffusers = pytest.importorskip(
    "diffusers", reason="needs pip install -e '.[foreign]', for diffusers"
)
MEAN, STD = 0.3, 0.5
LAW = Normal(torch.tensor(MEAN).double(), STD)


def wide(v, x):
    return torch.as_tensor(v).to(x).reshape(-1, *[1] * (x.ndim - 1))


def mean_of_data(x, alpha, sigma):
    """E[x_0|x]."""
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)


def of_steps(scheduler):
    """f(x, k) of a table: noise, data or v, where k may be a fraction."""
    bar = scheduler.alphas_cumprod.double()
    levels, kind = 0.5 * ((1 - bar) / bar).log(), scheduler.config["prediction_type"]

    def network(x, k, _=None):
        k = wide(k, x).double().clamp(0, len(bar) - 1)
        below = k.floor().long().clamp(0, len(bar) - 2)
        level = torch.where(
            k > below,
            levels[below] + (k - below) * (levels[below + 1] - levels[below]),
            levels[below],
        )
        alpha, sigma = (-2 * level).sigmoid().sqrt(), (2 * level).sigmoid().sqrt()
        data = mean_of_data(x, alpha, sigma)
        noise = (x - alpha * data) / sigma
        return {"epsilon": noise, "sample": data, "v_prediction": alpha * noise - sigma * data}[
            kind
        ].to(x)

    return network


def of_edm(scheduler, sigma_of, sigma_data, sign):
    """F of x/√(σ² + σ_data²) and a number that tells σ."""

    def network(x, c):
        sigma = sigma_of(wide(c, x).double())
        total = (sigma**2 + sigma_data**2).sqrt()
        data = mean_of_data(total * x, 1.0, sigma)
        return (sign * (data - sigma_data**2 / total * x) * total / (sigma * sigma_data)).to(x)

    return network


def of_flow(scheduler, data_at=0.0):
    """Velocity at 1000 τ, dx/dτ, where the data are at τ = ``data_at``."""

    def network(x, t):
        tau = wide(t, x).double() / 1000
        sigma = (tau - data_at).abs()
        alpha = 1 - sigma
        data = mean_of_data(x, alpha, sigma)
        noise = (x - alpha * data) / sigma.clamp_min(1e-9)
        return ((noise - data) * (1 if data_at == 0 else -1)).to(x)

    return network


def edm(sigma_of=lambda c: (4 * c).exp(), sigma_data=0.5, sign=1.0):
    return lambda scheduler: of_edm(scheduler, sigma_of, sigma_data, sign)


def inverted(scheduler):
    return of_flow(scheduler, data_at=1.0)


V, ZERO = (
    {"prediction_type": "v_prediction"},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
)
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
ROWS = {
    **{name: (name, {}, of_steps) for name in SCHEDULERS["steps"]},
    "data": ("DDIM", {"prediction_type": "sample"}, of_steps),
    "v": ("DDPM", V, of_steps),
    "sigmoid": ("DDPM", {"beta_schedule": "sigmoid"}, of_steps),
    "steps offset": ("DDIM", {"steps_offset": 1, "timestep_spacing": "trailing"}, of_steps),
    **{f"zero terminal SNR, {name}": (name, ZERO, of_steps)
       for name in ("DDPM", "DDIM", "EulerDiscrete", "EulerAncestralDiscrete", "UniPCMultistep", "DPMSolverMultistep")},
    "Karras' sigmas": ("EulerDiscrete", {"use_karras_sigmas": True}, of_steps),
    "continuous, noise": ("EulerDiscrete", {"timestep_type": "continuous"}, of_steps),
    "continuous, v": ("EulerDiscrete", V | {"timestep_type": "continuous"}, edm(sigma_data=1.0, sign=-1.0)),
    "continuous, v, sigmas": (
        "EulerDiscrete", V | {"timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0,
                              "use_karras_sigmas": True}, edm(sigma_data=1.0, sign=-1.0)),
    **{name: (name, {}, edm()) for name in SCHEDULERS["edm"]},
    "EDM, v": ("EDMEuler", V | {"sigma_data": 0.7}, edm(sigma_data=0.7, sign=-1.0)),
    "atan": (
        "CosineDPMSolverMultistep",
        V | {"sigma_min": 0.01, "sigma_max": 500.0, "sigma_data": 1.0},
        edm(lambda c: (c * math.pi / 2).tan(), 1.0, -1.0),
    ),
    "flow": ("FlowMatchEulerDiscrete", {}, of_flow),
    "flow, Heun": ("FlowMatchHeunDiscrete", {}, of_flow),
    "flow, shift": ("FlowMatchEulerDiscrete", {"shift": 3.0}, of_flow),
    "flow, inverted": ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, inverted),
    **{f"flow sigmas, {name}": (name, FLOW, of_flow)
       for name in ("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "DPMSolverSinglestep")},
}  # fmt: skip
# from data to noise; others have no sampler of this form here
INVERSE = ("DDIMInverse", "DPMSolverMultistepInverse")
NOT_SAMPLED = (
    *INVERSE,
    "CogVideoXDPM",
    "CogVideoXDDIM",
    "DPMSolverSDE",
    "CosineDPMSolverMultistep",
)  # another signature, or a missing library


def made(name, options):
    cls = getattr(diffusers, f"{name}Scheduler")
    if "clip_sample" in inspect.signature(cls.__init__).parameters:
        options = {"clip_sample": False} | options
    try:
        return cls(**options)
    except ImportError:  # a library that only its sampler needs
        stub = type(
            f"{name}Scheduler", (), {"alphas_cumprod": diffusers.DDIMScheduler().alphas_cumprod}
        )()
        stub.config = {"prediction_type": "epsilon"} | options
        return stub


def drawn(scheduler, network, steps):
    """Draws of the library's own sampler."""
    torch.manual_seed(0)
    scheduler.set_timesteps(steps)
    x = torch.randn(2000, 1, 1, 2) * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(seen, t), t, x).prev_sample
    return x.double()


@pytest.mark.filterwarnings("ignore")  # diffusers' of its own schedulers, and of zero terminal SNR
@pytest.mark.parametrize("row", ROWS)
def test_a_scheduler_is_read_as_its_own_sampler_reads_it(row):
    name, options, exact = ROWS[row]
    network = exact(made(name, options))
    if name not in NOT_SAMPLED:
        # UnCLIP's default is every step
        x = drawn(made(name, options), network, 1000 if name == "UnCLIP" else 100)
        assert x.mean().item() == pytest.approx(MEAN, abs=0.06) and x.std().item() == pytest.approx(
            STD, rel=0.1
        )
    model = indm.from_diffusers(network, made(name, options), shape=(2,)).double()
    x = torch.tensor([[0.3, 0.3], [0.9, -0.2], [-0.5, 1.2]]).double()
    torch.testing.assert_close(model.log_prob(x), LAW.log_prob(x).sum(1), rtol=0, atol=0.03)


def names():
    """All schedulers of diffusers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [
            name.removesuffix("Scheduler") for name in dir(diffusers) if name.endswith("Scheduler")
        ]
    return [name for name in found if not name.startswith("Flax")]


READ = [name for kind in SCHEDULERS.values() for name in kind]


def test_each_scheduler_has_a_row():
    assert set(READ) <= {name for name, *_ in ROWS.values()}


@pytest.mark.parametrize("name", sorted(set(names()) - set(READ)))
def test_every_other_scheduler_is_refused_by_name(name):
    cls = getattr(diffusers, f"{name}Scheduler")
    scheduler = cls.__new__(cls)  # some need arguments, and none of them matters here
    with pytest.raises(
        ValueError, match=f"scheduler must be one of the table .* got {name}Scheduler"
    ):
        indm.from_diffusers(lambda x, k: x, scheduler, shape=(2,))


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "UniPCMultistep"])
@pytest.mark.parametrize("options, said", [
    ({"use_flow_sigmas": True, "prediction_type": "epsilon"}, "prediction_type must be 'flow_prediction'"),
    ({"prediction_type": "flow_prediction"}, "prediction_type must be one of"),
])  # fmt: skip
def test_settings_that_no_row_describes_are_refused(name, options, said):
    with pytest.raises(ValueError, match=said):
        indm.from_diffusers(lambda x, k: x, made(name, options), shape=(2,))
