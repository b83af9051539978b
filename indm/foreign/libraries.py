"""Models of other diffusion and flow-matching libraries as INDMs; their objects define the path."""

import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from indm.checks import check_word
from indm.conditions import Classes, Condition
from indm.foreign.denoiser import Preconditioned, from_denoiser
from indm.foreign.paths import PATH_ENDS
from indm.model import INDM
from indm.names import find, name_of
from indm.scaling import Scaling

OF_DIFFUSERS = {"epsilon": "noise", "sample": "data", "v_prediction": "v"}
# How each scheduler of diffusers is read; docs/adapters.md explains this table
SCHEDULERS = {
    "steps": (
        "CogVideoXDDIM", "CogVideoXDPM", "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel",
        "DEISMultistep", "DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep",
        "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete",
        "LMSDiscrete", "PNDM", "SASolver", "UnCLIP", "UniPCMultistep",
    ),
    "edm": ("EDMDPMSolverMultistep", "EDMEuler"),
    "edm with atan": ("CosineDPMSolverMultistep",),
    "flow": ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"),
}  # fmt: skip
CONSISTENCY = (
    "LCM", "TCD", "FlowMatchLCM", "FlowMapEulerDiscrete", "CMStochasticIterative", "ConsistencyDecoder", "SCM",
)  # fmt: skip
OF_DENOISING_DIFFUSION = {"pred_noise": "noise", "pred_x0": "data", "pred_v": "v"}
VARIANCE_TYPES = {
    "fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large", "fixed_large_log": "large",
    "learned_range": "learned",
}  # fmt: skip


class Called(nn.Module):
    """A network of another library, called by ``call(network, x, τ, *c)``."""

    def __init__(self, network: Any, call: Callable[..., Tensor]):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, x: Tensor, tau: Tensor, *c: Tensor) -> Tensor:
        return self.call(self.network, x, tau, *c)


class OfDiffusers(Preconditioned):
    """A network of diffusers as network(x, τ) or, with classes, network(x, τ, c).

    Args:
        unet: the network, or a table of its ``name``, as in :func:`indm.names.find`, and its
            config.
        labels: number of classes of c; the embedding after them, if there is one, stands for a
            hidden class.
        times: timesteps in one unit of τ.
        sigma_data: of EDM's preconditioning, with which the network predicts data.
        sign: of the output with preconditioning, −1 for a network that predicts v.
        noise: see :class:`indm.foreign.denoiser.Preconditioned`.
    """

    network: Any

    def __init__(
        self,
        unet: Any,
        labels: int = 0,
        times: float = 1.0,
        sigma_data: float | None = None,
        sign: float = 1.0,
        noise: str = "log",
    ):
        nn.Module.__init__(self)
        self.table = dict(unet) if isinstance(unet, Mapping) else {}
        options = {key: value for key, value in self.table.items() if key != "name"}
        self.network = find("net", self.table["name"])(**options) if self.table else unet
        self.labels, self.times = labels, times
        self.sigma_data, self.sign, self.noise = sigma_data, sign, noise

    @property
    def unet(self) -> dict[str, Any]:
        """The table from which the network can be made again."""
        if self.table:
            return self.table
        config = {
            key: value for key, value in self.network.config.items() if not key.startswith("_")
        }
        return {"name": name_of("net", type(self.network)), **config}

    def output(self, x: Tensor, time: Tensor, *c: Tensor) -> Tensor:
        """The output of the network, F of EDM's preconditioning."""
        labels = {}
        if c:
            embeddings = self.network.config.num_class_embeds
            labels = {"class_labels": _numbers(c[0], self.labels, embeddings)}
        found = self.network(x, time, **labels)
        return self.sign * (found if isinstance(found, Tensor) else found[0])

    def forward(self, x: Tensor, tau: Tensor, *c: Tensor) -> Tensor:
        if self.sigma_data is None:
            return self.output(x, self.times * tau, *c)
        return super().forward(x, tau, *c)


def from_diffusers(
    unet: Any,
    scheduler: Any,
    *,
    shape: tuple[int, ...] | None = None,
    scaling: Scaling | None = None,
    condition: Condition | None = None,
    eps: float | None = None,
) -> INDM:
    """An INDM from a network of diffusers and the scheduler of its training.

    See :func:`indm.from_denoiser`.

    Args:
        unet: network(x, timestep) of pixels, such as ``pipeline.unet`` of a ``DDPMPipeline``.
        scheduler: of a class in the table of docs/adapters.md, or any object with
            ``alphas_cumprod``. ``clip_sample`` and ``shift`` do not change the likelihood.
        shape: event shape; by default (in_channels, sample_size, sample_size) of the network's
            config.
        scaling: how raw data become the network's x; by default grey levels 0 to 255 of images lie
            in [−1, 1], and other data are x.
        condition: :class:`indm.Classes`, for a network with ``num_class_embeds``. If there is one
            more embedding than classes, the last one stands for a hidden class.
        eps: τ at which likelihoods begin: the step k, σ of EDM, or σ in [0, 1] of flow matching.

    Raises:
        ValueError: another scheduler or setting, or classes that do not fit the network.

    The networks of Stable Diffusion can only give log p of latents: their VAE has no exact decoder.

    Example: v = 0 is exact for data N(0, I). The scheduler stands for one of diffusers.

        >>> bar = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
        >>> scheduler = SimpleNamespace(config={"prediction_type": "v_prediction"}, alphas_cumprod=bar)
        >>> model = from_diffusers(lambda x, k: 0 * x, scheduler, shape=(2,))
        >>> x = torch.randn(3, 2)
        >>> expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
        >>> torch.allclose(model.log_prob(x), expected, atol=1e-3)
        True
    """
    known, call = _read(scheduler)
    _check_classes(getattr(getattr(unet, "config", None), "num_class_embeds", None), condition)
    call["labels"] = len(condition.labels) if isinstance(condition, Classes) else 0
    if shape is None:
        side = unet.config.sample_size
        shape = (unet.config.in_channels, *((side, side) if isinstance(side, int) else side))
    return _indm(OfDiffusers(unet, **call), shape, scaling, condition=condition, eps=eps, **known)


def _read(scheduler: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of from_denoiser and of :class:`OfDiffusers` that a scheduler decides."""
    kind, name = _kind_of(scheduler), type(scheduler).__name__
    config = scheduler.config
    predicts = str(config.get("prediction_type"))
    path: Any
    if kind == "flow" or (config.get("use_flow_sigmas") and predicts == "flow_prediction"):
        # with inverted sigmas, time is 0 at the noise, and the velocity leads to the data
        path = "linear-reversed" if config.get("invert_sigmas") else "linear"
        return {"predicts": "velocity", "path": path}, {"times": config["num_train_timesteps"]}
    if config.get("use_flow_sigmas"):
        wanted = "'flow_prediction' if use_flow_sigmas is True"
        raise ValueError(f"prediction_type must be {wanted}, got {predicts!r} of {name}")
    if kind.startswith("edm"):
        check_word("prediction_type", predicts, ("epsilon", "v_prediction"))
        path = {"sigmas": (config["sigma_min"], config["sigma_max"])}
        sign = -1.0 if predicts == "v_prediction" else 1.0
        noise = "log" if kind == "edm" else "atan"
        call = {"sigma_data": config["sigma_data"], "sign": sign, "noise": noise}
        return {"predicts": "data", "path": path}, call
    check_word("prediction_type", predicts, OF_DIFFUSERS)
    bar = scheduler.alphas_cumprod.clone()
    if config.get("rescale_betas_zero_snr"):
        bar[-1] = 0.0  # some schedulers have a small number there, larger than the one before
    if config.get("timestep_type") == "continuous" and predicts == "v_prediction":
        # it predicts v from x/√(σ² + 1) and ¼ log σ: EDM's preconditioning with σ_data = 1
        ends = ((1 - bar[bar > 0]) / bar[bar > 0]).sqrt()[[0, -1]].tolist()
        given = (config.get("sigma_min"), config.get("sigma_max"))
        sigmas = [end if own is None else own for own, end in zip(given, ends, strict=True)]
        path = {"sigmas": tuple(sigmas)}
        return {"predicts": "data", "path": path}, {"sigma_data": 1.0, "sign": -1.0}
    variance = config.get("variance_type") or "fixed_large"
    check_word("variance_type", variance, VARIANCE_TYPES)
    return {
        "predicts": OF_DIFFUSERS[predicts],
        "path": {"alphas_bar": bar},
        "variance": VARIANCE_TYPES[variance],
    }, {}


def _kind_of(scheduler: Any) -> str:
    """The key of :data:`SCHEDULERS` for the class of a scheduler, or for a parent of it."""
    parents = [parent.__name__.removesuffix("Scheduler") for parent in type(scheduler).__mro__]
    kinds = {name: kind for kind, names in SCHEDULERS.items() for name in names}
    for name in parents:
        if name in kinds:
            return kinds[name]
    if "SchedulerMixin" not in parents and hasattr(scheduler, "alphas_cumprod"):
        return "steps"
    why = "use from_denoiser"
    if not set(CONSISTENCY).isdisjoint(parents):
        why = "its networks give the end of a path, not a mean of the noise"
    raise ValueError(
        f"scheduler must be one of the table in docs/adapters.md, got {type(scheduler).__name__}: {why}"
    )


def from_denoising_diffusion(
    diffusion: Any, *, scaling: Scaling | None = None, eps: float | None = None
) -> INDM:
    """An INDM from a model of denoising-diffusion-pytorch. See :func:`indm.from_denoiser`.

    Args:
        diffusion: a ``GaussianDiffusion``, a ``LearnedGaussianDiffusion`` or an
            ``ElucidatedDiffusion``. Self-conditioning is not used.
        scaling: how raw data become the network's x; by default grey levels 0 to 255 lie in [−1,
            1], which is where the library puts [0, 1].
        eps: τ at which likelihoods begin: the step k, or σ of an ``ElucidatedDiffusion``.

    Raises:
        ValueError: offset noise, which is not white, or ``auto_normalize=False`` without a scaling.

    Example: v = 0 is exact for data N(0, I).

        >>> from denoising_diffusion_pytorch import GaussianDiffusion
        >>> class Zero(nn.Module):
        ...     channels, out_dim, self_condition = 1, 1, False
        ...     def forward(self, x, k, _=None):
        ...         return 0 * x
        >>> model = from_denoising_diffusion(GaussianDiffusion(Zero(), image_size=2), scaling=Scaling())
        >>> x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        >>> expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).flatten(1).sum(1)
        >>> torch.allclose(model.log_prob(x), expected, atol=1e-3)
        True
    """
    from denoising_diffusion_pytorch import ElucidatedDiffusion, LearnedGaussianDiffusion

    if isinstance(diffusion, ElucidatedDiffusion):
        shape = (diffusion.channels, diffusion.image_size, diffusion.image_size)
        network = Called(diffusion, type(diffusion).preconditioned_network_forward)
        path = {"sigmas": (diffusion.sigma_min, diffusion.sigma_max)}
        return _indm(network, shape, scaling, eps=eps, predicts="data", path=path)
    if diffusion.offset_noise_strength:
        strength = diffusion.offset_noise_strength
        raise ValueError(f"offset_noise_strength must be 0, got {strength}: it is not white")
    if scaling is None and diffusion.normalize(torch.zeros(())) != -1:
        raise ValueError(
            "scaling must be given if auto_normalize is False, such as Scaling.between(-1, 1)"
        )
    learned = isinstance(diffusion, LearnedGaussianDiffusion)
    objective = "pred_noise" if learned else diffusion.objective  # the former ignores its objective
    return _indm(
        Called(diffusion.model, nn.Module.__call__),
        (diffusion.channels, *diffusion.image_size),
        scaling,
        eps=eps,
        predicts=OF_DENOISING_DIFFUSION[objective],
        path={"betas": diffusion.betas},
        variance="learned" if learned else "small",
    )


def from_torchcfm(
    network: Any, *, shape: tuple[int, ...], sigma: float = 0.0, **options: Any
) -> INDM:
    """An INDM from a velocity that was trained with torchcfm. See :func:`indm.from_denoiser`.

    Args:
        network: network(t, x) or, with classes, network(t, x, y), such as ``UNetModelWrapper``; or
            a network of [x, t] in one tensor, such as ``MLP(time_varying=True)``, also inside a
            ``torch_wrapper``.
        shape: event shape.
        sigma: of the ``ConditionalFlowMatcher``: x_t = t x_1 + (1 − t) x_0 + σ e. Optimal transport
            couples noise and data; then only results of the ODE hold, see docs/adapters.md.
        **options: ``scaling``, see :func:`indm.from_diffusers`, ``eps`` (1 is at the data), and
            ``condition``: :class:`indm.Classes`, for a network with ``num_classes``.

    Raises:
        ValueError: classes that do not fit the network.

    Example: the velocity of N(0, I), E[x_1 − x_0|x], with σ = 0.1.

        >>> def velocity(t, x):
        ...     return ((2 * t - 1) / (t**2 + (1 - t) ** 2 + 0.01))[:, None] * x
        >>> model = from_torchcfm(velocity, shape=(2,), sigma=0.1)
        >>> x = torch.randn(3, 2)  # at both ends x_t has the law N(0, 1.01 I)
        >>> expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
        >>> torch.allclose(model.log_prob(x), expected, atol=1e-3)
        True
    """
    if type(network).__name__ == "torch_wrapper":  # takes one t for all rows
        network = network.model
    count, condition = getattr(network, "num_classes", None), options.get("condition")
    _check_classes(count, condition)
    labels = len(condition.labels) if condition else 0
    together = len(inspect.signature(getattr(network, "forward", network)).parameters) == 1

    def call(network: Any, x: Tensor, t: Tensor, *c: Tensor) -> Tensor:
        numbers = (_numbers(seen, labels, count) for seen in c)
        return network(torch.cat([x, t[:, None]], 1)) if together else network(t, x, *numbers)

    noisy = SimpleNamespace(
        alpha=lambda t: t,
        sigma=lambda t: ((1 - t) ** 2 + sigma**2).sqrt(),
        range=(1.0, PATH_ENDS),
        prior_std=1.0,
    )
    path = noisy if sigma else "linear-reversed"
    return _indm(Called(network, call), shape, predicts="velocity", path=path, **options)


def from_flow_matching(
    model: Any, *, shape: tuple[int, ...], path: Any = "linear-reversed", **options: Any
) -> INDM:
    """An INDM from a velocity that was trained with flow_matching. See :func:`indm.from_denoiser`.

    Args:
        model: model(x=x, t=t), such as a ``ModelWrapper``; with a condition model(x=x, t=t, c=c).
        shape: event shape.
        path: the ``AffineProbPath`` of its training, or its scheduler; by default
            ``CondOTProbPath()``.
        **options: ``scaling``, see :func:`indm.from_diffusers`, ``condition`` and ``eps``; t = 1 is
            at the data.

    Example: the velocity of N(0, I), E[x_1 − x_0|x].

        >>> def velocity(x, t):
        ...     return ((2 * t - 1) / (t**2 + (1 - t) ** 2))[:, None] * x
        >>> x = torch.randn(3, 2)
        >>> expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
        >>> torch.allclose(from_flow_matching(velocity, shape=(2,)).log_prob(x), expected, atol=1e-3)
        True
    """
    scheduler = getattr(path, "scheduler", path)
    if callable(scheduler):
        path = SimpleNamespace(
            alpha=lambda t: scheduler(t).alpha_t,
            sigma=lambda t: scheduler(t).sigma_t,
            range=(1 - PATH_ENDS, PATH_ENDS),
        )

    def call(model: Any, x: Tensor, t: Tensor, *c: Tensor) -> Tensor:
        return model(x=x, t=t, c=c[0]) if c else model(x=x, t=t)

    return _indm(Called(model, call), shape, predicts="velocity", path=path, **options)


def from_azula(denoiser: Any, *, shape: tuple[int, ...], **options: Any) -> INDM:
    """An INDM from a denoiser of azula. See :func:`indm.from_denoiser`.

    Args:
        denoiser: one with a ``schedule``, called as denoiser(x_t, t), whose result has a ``mean``;
            with a condition denoiser(x_t, t, c=c).
        shape: event shape.
        **options: ``scaling``, see :func:`indm.from_diffusers`, ``condition`` and ``eps``; t = 0 is
            at the data.

    Example: E[x_0|x] of N(0, I).

        >>> class Exact:
        ...     def schedule(self, t):
        ...         return 1 - 0.999 * t, 0.001 + 0.999 * t
        ...     def __call__(self, x, t):
        ...         alpha, sigma = self.schedule(t[:, None])
        ...         return SimpleNamespace(mean=alpha / (alpha**2 + sigma**2) * x)
        >>> x = torch.randn(3, 2)
        >>> expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
        >>> torch.allclose(from_azula(Exact(), shape=(2,)).log_prob(x), expected, atol=2e-3)
        True
    """
    schedule = denoiser.schedule
    path = SimpleNamespace(
        alpha=lambda t: schedule(t)[0], sigma=lambda t: schedule(t)[1], range=(0.0, 1.0)
    )

    def call(denoiser: Any, x: Tensor, t: Tensor, *c: Tensor) -> Tensor:
        return (denoiser(x, t, c=c[0]) if c else denoiser(x, t)).mean

    return _indm(Called(denoiser, call), shape, predicts="data", path=path, **options)


def _indm(
    network: nn.Module, shape: tuple[int, ...], scaling: Scaling | None = None, **options: Any
) -> INDM:
    """The model of a network; by default 256 grey levels of images lie in [−1, 1]."""
    if scaling is None and len(shape) == 3:
        scaling = Scaling.between(-1, 1)
    return from_denoiser(network, shape=shape, scaling=scaling, **options)


def _check_classes(count: int | None, condition: Condition | None) -> None:
    """ValueError if a condition does not fit a network with ``count`` embeddings of classes."""
    labels = condition.labels if isinstance(condition, Classes) else ()
    if condition is None and count is None:
        return
    if not 0 < len(labels) <= (count or 0):
        wanted = (
            f"Classes with at most {count} labels"
            if count
            else "None, as the network has no classes"
        )
        raise ValueError(f"condition must be {wanted}, got {type(condition).__name__}")


def _numbers(seen: Tensor, labels: int, count: Any) -> Tensor:
    """The numbers of the embeddings, of ``count``, for what :class:`Classes` of ``labels`` shows."""
    hidden = seen.sum(1) == 0
    if labels < count:
        return torch.where(hidden, labels, seen.argmax(1))
    if bool(hidden.any()):
        wanted = "a class for each sample"
        raise ValueError(
            f"c must be {wanted}, as none of the network's {count} is for a hidden one"
        )
    return seen.argmax(1)
