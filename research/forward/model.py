"""An INDM whose latents have a forward process of their own: a model of one's own, as docs/extending.md has them.

It is trained and evaluated by the commands of ``indm`` through its objective:

    indm train digits --sde research.forward.learned:Affine --train.objective research.forward.objective:mle

``[sde]`` names the process, with its options; its key ``base`` is the linear SDE on whose clock it runs, a name or a
table (by default "vp"), and ``eps`` its truncation.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import indm
from indm.files import untrusted
from indm.model import build, build_dequantization, describe, reading
from indm.names import name_of
from indm.sampling import Sampler, default_sampler, make_sampler
from indm.score import denoise, score_for
from indm.tensors import Batch, evaluation_mode, expand_like
from research.forward.base import LINEAR, ForwardProcess, process_path
from research.forward.scores import TwoScores, flow_score, law_score, with_drawn_code

Tables = Mapping[str, Mapping[str, Any]]
STEPS = 100  # of a sampler


class ForwardINDM(indm.INDM):
    """INDM with a law of z_t given z_0 that need not be linear.

    Args:
        flow, scaling, shape, dequantization: as of :class:`indm.INDM`.
        score: s_θ of the generative SDE; where the process needs two scores, as
            :class:`~research.forward.scores.TwoScores` has them.
        process: the law of z_t given z_0; by default that of the linear SDE.

    Raises:
        ValueError: a process and a score that do not go together.
    """

    is_diffusion = False  # the core's functions take z_t to be linear: this one has functions of its own

    def __init__(self, flow, score, scaling=None, shape=None, dequantization=None, *, process: ForwardProcess = LINEAR):
        super().__init__(flow, score, scaling, shape, dequantization)
        if not process.is_tight and law_score(score) is score:
            raise ValueError(
                f"process {type(process).__name__} needs two scores, as TwoScores has them, got {type(score).__name__}"
            )
        self.process = process

    @property
    def is_scalar(self) -> bool:
        return self.process.is_scalar(self.sde)

    @property
    def trained_parts(self) -> dict[str, nn.Module]:
        return super().trained_parts | {"process": self.process}

    def along_flow(self) -> indm.INDM:
        """A model with the probability flow of this one: for ``log_prob``, paths and translations.

        Raises:
            ValueError: a process with a code.
        """
        self._check_no_code("a probability flow")
        return indm.INDM(self.flow, flow_score(self.score), self.scaling, self._shape, self.dequantization)

    def with_law(self) -> indm.INDM:
        """A model whose score is that of the law of z_t: for ∇log p_t on the data space.

        Raises:
            ValueError: a process with a code.
        """
        self._check_no_code("one law of z_t")
        return indm.INDM(self.flow, law_score(self.score), self.scaling, self._shape, self.dequantization)

    def _check_no_code(self, purpose: str) -> None:
        if self.process.seen_shape:
            raise ValueError(
                f"process must have no code for {purpose}, got {type(self.process).__name__}; linear, learned mean "
                "and affine have none"
            )

    def log_prob(self, x: Batch, *, eps: float | None = None, **options: Any) -> Tensor:
        """:meth:`indm.INDM.log_prob` of the probability flow."""
        check_truncation(self, eps)
        return self.along_flow().log_prob(x, eps=eps, **options)

    def bound(self, x: Batch, *, generator: torch.Generator | None = None) -> indm.NELBO:
        """A draw of the bound of −log p(x), nats of model units."""
        from research.forward.objective import nelbo

        return nelbo(self, x, times=4, generator=generator)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        sampler: str | Sampler | None = None,
        steps: int | None = STEPS,
        generator: torch.Generator | None = None,
    ) -> Batch:
        """``n`` samples in model units; by default by Heun's method, or UniPC where entries share one SDE."""
        sampler = make_sampler(default_sampler(self) if sampler is None else sampler)
        z_T = self.sde.prior_sample((n, *self.shape), generator=generator, dtype=self.scaling.scale.dtype)
        with evaluation_mode(self):
            return self.decode(solve_latent(self, z_T, sampler, steps, generator=generator)[0], generator=generator)

    def forward_path(self, x: Batch, times: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """x_t = h⁻¹(z_t) from data x at increasing ``times``, (times, B, *event); exact in law."""
        self._check_no_code("a path on the data space")
        with evaluation_mode(self):
            path = process_path(self.process, self.sde, self.flow.latent(x), times, generator=generator)
            return torch.stack([self.decode(z) for z in path])

    def description(self) -> dict:
        parts = {"flow": self.flow, "sde": self.sde, "net": self.score.backbone}
        tables = {kind: describe(part, kind) for kind, part in parts.items()}
        if self.dequantization is not None:
            tables["dequantization"] = describe(self.dequantization, "dequantization")
        return {"model": name_of("model", type(self)), **tables, "process": describe(self.process, "sde")}

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> "ForwardINDM":
        with reading(folder) as saved:
            tables = {kind: table for kind, table in saved.description.items() if isinstance(table, Mapping)}
            make = functools.partial(make_forward, tables, saved.shape, saved.scaling)
            model = untrusted.build_described(make, saved.description, saved.state)
            model.sde.prior_mean = saved.state["score.sde.prior_mean"].clone()
            model.to(saved.state["scaling.scale"].dtype).load_state_dict(saved.state)
        return model.to(device).eval()


def build_forward(recipe: Tables, shape: tuple[int, ...], scaling: indm.Scaling) -> ForwardINDM:
    """The model of a recipe whose ``[sde]`` names a process."""
    if "condition" in recipe:
        raise ValueError("condition must be left out with a forward process, which a condition does not reach")
    process = dict(recipe["sde"])
    base, eps = process.pop("base", "vp"), process.pop("eps", None)
    sde = ({"name": base} if isinstance(base, str) else dict(base)) | ({} if eps is None else {"eps": eps})
    return make_forward({**recipe, "sde": sde, "process": process}, shape, scaling)


def make_forward(tables: Tables, shape: tuple[int, ...], scaling: indm.Scaling | None = None) -> ForwardINDM:
    """A model from the tables "flow", "sde", "net", "process" and, where there is one, "dequantization".

    Raises:
        ValueError: an unknown name or argument, a bad value, or parts that do not go together.
    """
    process = build(tables["process"], "sde", shape)
    if not isinstance(process, ForwardProcess):
        raise ValueError(f"sde must name a forward process for this objective, got {tables['process'].get('name')!r}")
    table = dict(tables["net"])
    if process.seen_shape:
        table = {"condition": process.seen_shape} | table
    flow, sde = (build(tables[kind], kind, shape) for kind in ("flow", "sde"))
    net = build(table, "net", (process.scores * shape[0], *shape[1:]))
    kind = score_for(net)
    if not process.is_tight:
        if kind is not indm.ScoreModel:
            raise ValueError(
                f"process {type(process).__name__} needs a net that gives noise, got {type(net).__name__} with "
                f"parameterization {kind.__name__}; unet and mlp do"
            )
        kind = TwoScores
    if process.seen_shape:
        process.sde_at(sde, torch.zeros(1, *process.seen_shape))  # a ValueError where there is none
    scaling = indm.Scaling() if scaling is None else scaling
    noise = build_dequantization(tables, shape, scaling)
    return ForwardINDM(flow, kind(net, sde), scaling, tuple(shape), noise, process=process)


def check_truncation(model: ForwardINDM, eps: float | None) -> None:
    """ValueError where ``eps`` is not that of the SDE, at which a process begins."""
    if eps is not None and eps != model.sde.eps and not model.process.any_truncation:
        raise ValueError(
            f"eps must be {model.sde.eps:g}, where the forward process {type(model.process).__name__} begins, got "
            f"{eps:g}"
        )


def solve_latent(
    model: ForwardINDM,
    z_T: Batch,
    sampler: Sampler,
    steps: int | None = None,
    last_denoising: bool = True,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Batch, int]:
    """:func:`indm.sampling.solve_latent` by the scores of the process, at codes that are drawn for it."""
    with evaluation_mode(model):
        score = with_drawn_code(model.score, model.process, z_T, generator)
        z, nfe = sampler.solve(
            score if sampler.stochastic else flow_score(score), z_T, steps=steps, generator=generator
        )
        eps = score.sde.endpoints(z)[0]
        if sampler.denoises or not last_denoising:
            return z / expand_like(score.sde.alpha(eps), z), nfe
        return denoise(law_score(score), z, eps), nfe + 1
