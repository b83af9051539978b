"""INDM: a flow, a score and the data's scaling; built from a description, saved to and loaded from
a folder.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm import likelihood
from indm.checks import (
    arguments_of,
    as_tuples,
    check_arguments,
    check_call,
    nearest,
    reason,
    require,
)
from indm.conditions import Condition, NoCondition, given, sees_condition
from indm.dequantization import (
    Dequantization,
    check_levels_for,
    check_raw,
    checked,
    decoder_of,
    from_data,
)
from indm.files import atomic, untrusted
from indm.flows.base import Flow
from indm.names import OPTIONAL_KINDS, PART_KINDS, Untrusted, find, is_outside, name_of, place_of
from indm.protocols import Score
from indm.scaling import Scaling
from indm.score import GivenScore, score_for, takes_condition
from indm.sde.linear import LinearSDE, truncated
from indm.tensors import check_shape, check_units, with_parts

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
FORMAT = 1  # the version of these files, counted up where an older release could not read them
PLAIN = (bool, int, float, str, tuple, list, dict, type(None))  # what a description can hold


class INDM(nn.Module):
    """The implicit nonlinear diffusion model: x → z = h_φ(x) → linear diffusion of z, and back.

    Args:
        flow: h_φ; :class:`~indm.flows.Identity` makes the model an ordinary linear diffusion.
        score: s_θ, any module with ``.sde`` and forward(z_t, t).
        scaling: how data units become model units; kept and saved with the model.
        shape: event shape, needed to sample by number and to save.
        dequantization: the noise of grey levels; by default uniform. Continuous data have none.
        condition: what the c of p(x|c) is; by default none, :class:`~indm.conditions.NoCondition`.

    A model of p(x|c) is used at given c: :meth:`given`, or an argument ``c`` of what takes a model.

    Raises:
        ValueError: a shape that is not positive, a flow of another signature, noise for data
            without grey levels, or a condition that neither network nor flow takes.

    Source: Kim et al. 2022, "Maximum Likelihood Training of Implicit Nonlinear Diffusion Models",
    https://arxiv.org/abs/2205.13699.

    Example: a flow and a network that start as identity and zero, so that the model starts as N(0,
    I).

        >>> from indm.flows import CouplingFlow
        >>> from indm.nets import MLP
        >>> from indm.score import ScoreModel
        >>> from indm.sde import VPSDE
        >>> model = INDM(CouplingFlow((2,)), ScoreModel(MLP((2,), width=8), VPSDE()), shape=(2,))
        >>> x = torch.randn(5, 2)
        >>> torch.allclose(model.log_prob(x), -0.5 * x.square().sum(1) - math.log(2 * math.pi), atol=1e-3)
        True
        >>> torch.allclose(model.decode(model.encode(x)[0]), x, atol=1e-4)
        True
    """

    def __init__(
        self,
        flow: Flow,
        score: Score,
        scaling: Scaling | None = None,
        shape: tuple[int, ...] | None = None,
        dequantization: Dequantization | None = None,
        condition: Condition | None = None,
    ):
        super().__init__()
        self.flow: Flow = flow
        self.score: Any = score
        self.condition = NoCondition() if condition is None else condition
        self.scaling = Scaling() if scaling is None else scaling
        self.dequantization = checked(dequantization, self.scaling)
        if shape is not None:
            check_shape(shape)
        self._shape = None if shape is None else tuple(shape)
        name, network = type(condition).__name__, type(getattr(score, "backbone", score)).__name__
        if not (self.condition.is_none or takes_condition(score) or sees_condition(flow)):
            raise ValueError(
                f"condition must be None where neither network nor flow takes one, got {name}: a network called as "
                f"network(z, level, c) says so as a Backbone, by takes_condition = True, which {network} has not"
            )
        if decoder_of(self) is not None and not flow.is_identity:
            law = type(dequantization).__name__
            raise ValueError(
                f"flow must be the identity under dequantization {law}, got {type(flow).__name__}"
            )
        check_call(flow, "flow", "x")
        # tables from which build_model made the parts
        self._tables: dict[str, Mapping[str, Any]] = {}

    def for_data(
        self,
        scaling: Scaling,
        shape: tuple[int, ...],
        dequantization: Dequantization | None = None,
    ) -> "INDM":
        """A model of the same flow, score and condition for data of that scaling and shape."""
        model = INDM(self.flow, self.score, scaling, shape, dequantization, self.condition)
        model._tables = self._tables
        return model

    @property
    def sde(self) -> LinearSDE:
        """The linear SDE on the latent."""
        return self.score.sde

    @property
    def trained_parts(self) -> dict[str, nn.Module]:
        """The parts that have learning rates of their own."""
        parts: dict[str, nn.Module] = {"score": self.score, "flow": self.flow}
        if self.dequantization is not None and count_parameters(self.dequantization):
            parts["dequantization"] = self.dequantization
        return parts

    @property
    def has_shape(self) -> bool:
        """Whether the model was made with an event shape."""
        return self._shape is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape; ValueError where the model was made without one."""
        if self._shape is None:
            raise ValueError(
                "this model does not know its event shape: give INDM(..., shape=...) or a whole shape"
            )
        return self._shape

    def rows(self, c: Any, n: int) -> Tensor | None:
        """``c``, as a user gives it, as a tensor with a row for each of ``n`` samples; None stays
        None.
        """
        return None if c is None else self.condition.rows(c, n)

    def given(
        self,
        c: Any,
        n: int | None = None,
        *,
        rows: Tensor | None = None,
        guidance: float = 1.0,
        away_from: Any = None,
        drops: bool = False,
    ) -> "INDM":
        """This model at given conditions, p(x|c) with a row of c for each sample, used like one
        without.

        A model without a condition is returned as it is, and c must be None.

        Args:
            c: classes, vectors or images, a row for each sample, or one for all; None hides it. Of
                classes a whole number is the index and a string the name, also where names are
                numbers.
            n: how many samples; needed where one c is for all.
            rows: numbers of the samples wanted, where c is None or has a row for each of more of
                them.
            guidance: w of :class:`indm.score.GivenScore`, for samples; 1 is the model.
            away_from: other conditions, like ``c``, that guidance leads away from in place of p(x).
            drops: hide a share ``drop`` of the rows at random, as training does.

        Raises:
            ValueError: this model has no condition, or needs one, c is none of its conditions, or
                it cannot be guided.

        Example:

            >>> tables = {"flow": "identity", "sde": "vp", "net": {"name": "mlp", "width": 8}}
            >>> model = build_model(tables | {"condition": {"name": "classes", "labels": ["left", "right"]}}, (2,))
            >>> model.given(["left", "right", "left"]).log_prob(torch.zeros(3, 2)).shape
            torch.Size([3])
        """
        condition = self.condition
        if guidance != 1:
            self.check_guidance(guidance, away_from)
        if condition.is_none and c is None:
            return self
        if rows is not None:
            c, n = None if c is None else c[rows], len(rows)
        seen = condition.seen(c, n)
        if drops:
            seen = condition.dropped(seen)
        score = self.score
        if takes_condition(score):
            other = None if away_from is None else condition(condition.rows(away_from, len(seen)))
            score = GivenScore(score, seen, guidance, other)
        return with_parts(
            self, {"flow": given(self.flow, seen), "score": score, "condition": NoCondition()}
        )

    def truncated(self, eps: float | None) -> "INDM":
        """This model with its SDE truncated at ``eps``, at least its own, which None leaves;
        weights are shared.
        """
        view = truncated(self, eps)
        if eps is not None and view.sde.eps != eps:
            raise ValueError(
                f"score must have its SDE as a submodule to be truncated, got {type(self.score).__name__}"
            )
        return view

    def check_guidance(self, guidance: float, away_from: Any = None) -> None:
        """ValueError where guidance cannot lead away from p(x|away_from), or from p(x) where that
        is None.
        """
        require(math.isfinite(guidance), "guidance", guidance, "finite", "1 samples the model")
        require(not sees_condition(self.flow), "guidance", guidance, "1 where the flow sees c")
        require(
            not self.condition.is_none, "guidance", guidance, "1, as this model has no condition"
        )
        knows = away_from is not None or bool(self.condition.drop)
        require(
            knows,
            "guidance",
            guidance,
            "1 for a model of p(x|c) alone",
            "drop=0.1 in training teaches p(x), too",
        )

    def from_data(
        self, raw: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """x in model units, and log q(x|raw) in nats (B,), such that −log p(raw) ≤ E[−log p(x) +
        log q(x|raw)].

        ``generator`` feeds the noise of grey levels; of continuous data the bound is exact.
        ValueError for wrong ``raw`` data.
        """
        check_raw(self, raw)
        return from_data(self, raw, generator=generator)

    def encode(
        self,
        x: Float[Tensor, "batch *event"],
        *,
        c: Any = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"]]:
        """z = h_φ(x) and log|det ∂z/∂x| in nats (B,); with a conditional flow, minus the KL of its
        drawn code.

        ``c`` is the condition, where the flow sees one, see :meth:`given`. ValueError unless ``x``
        are events of this model.
        """
        check_units(x)
        if self.has_shape and tuple(x.shape[1:]) != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(
                f"x must be a batch of events, of shape (n, {wanted}), got shape {tuple(x.shape)}"
            )
        if x.dtype != (dtype := next(self.parameters(), x).dtype):
            raise ValueError(
                f"x must be {dtype}, as the model is, got {x.dtype}; x.to(…) or model.to(…) does that"
            )
        flow = self.flow if c is None else self.given(c, len(x)).flow
        return flow(x, generator=generator)

    def decode(
        self, z: Float[Tensor, "batch *event"], *, c: Any = None
    ) -> Float[Tensor, "batch *event"]:
        """x = h_φ⁻¹(z), without a gradient where the inverse is iterative; ``c`` as of :meth:`encode`.
        RuntimeError names the samples whose inverse did not converge.
        """
        flow = self.flow if c is None else self.given(c, len(z)).flow
        return flow.inverse(z)

    log_prob = likelihood.log_prob

    def description(self) -> dict:
        """The constructors and arguments that :func:`build_model` needs to make this model anew."""
        made_as = type(self.score)
        goes_with = score_for(self.score.backbone)
        require(
            made_as is goes_with,
            "score",
            made_as.__name__,
            f"the network's {goes_with.__name__} to be described",
        )
        parts: dict[str, nn.Module] = {
            "flow": self.flow,
            "sde": self.sde,
            "net": self.score.backbone,
        }
        parts |= {} if self.dequantization is None else {"dequantization": self.dequantization}
        parts |= {} if self.condition.is_none else {"condition": self.condition}
        return {kind: describe(part, kind, self._tables.get(kind)) for kind, part in parts.items()}

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json``, both or none; OSError leaves what was
        there as it was.
        """
        content = {
            "format": FORMAT,
            "shape": list(self.shape),
            "levels": self.scaling.levels,
            **self.description(),
        }
        files = {
            WEIGHTS: atomic.weights_into(self.state_dict()),
            DESCRIPTION: atomic.json_into(content),
        }
        atomic.together({Path(folder) / name: write for name, write in files.items()})

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> "INDM":
        """Read what :meth:`save` wrote, in evaluation mode; ValueError where a file is missing,
        unreadable or does not fit.
        """
        with reading(folder) as saved:
            tables, shape = {kind: saved.description[kind] for kind in PART_KINDS}, saved.shape
            tables |= {
                kind: saved.description[kind]
                for kind in OPTIONAL_KINDS
                if kind in saved.description
            }
            model = build_model(tables, shape, saved.scaling)
            model.sde.prior_mean = saved.state["score.sde.prior_mean"].clone()
            model.to(saved.state["scaling.scale"].dtype).load_state_dict(saved.state)
        return model.to(device).eval()


@dataclass(frozen=True)
class Saved:
    """A saved model as it is read: its description, its weights, and what both say of data and
    events.
    """

    description: dict[str, Any]
    state: dict[str, Tensor]
    scaling: Scaling
    shape: tuple[int, ...]


@contextmanager
def reading(folder: str | Path) -> Iterator[Saved]:
    """Gives what :meth:`INDM.save` wrote; whatever goes wrong inside is a ValueError that names the
    folder.
    """
    folder = Path(folder)
    try:
        description = untrusted.json_object(folder / DESCRIPTION)
        written = description.get("format")
        require(
            written == FORMAT, "format", written, f"{FORMAT}", "another release of indm wrote it"
        )
        # mapped from the file: Windows keeps it while one of them lives
        state = untrusted.weights(folder / WEIGHTS)
        scaling = Scaling(
            state["scaling.shift"].clone(), state["scaling.scale"].clone(), description["levels"]
        )
        yield Saved(description, state, scaling, tuple(description["shape"]))
    except Untrusted as error:
        raise Untrusted(f"the model in {folder}: {error}", error.package) from None
    # what is damaged, or described by a stranger, surfaces as almost anything
    except Exception as error:
        raise ValueError(f"the model in {folder} cannot be read: {reason(error)}") from error


def build_model(
    description: Mapping[str, Any], shape: tuple[int, ...], scaling: Scaling | None = None
) -> INDM:
    """An INDM from tables "flow", "sde" and "net", each a constructor's ``name`` and its arguments,
    or a name alone.

    Tables "dequantization" and "condition" name the noise of grey levels, by default uniform, and
    the c of p(x|c).

    Raises:
        ValueError: an unknown name or argument (with the nearest that exists), or a bad value.

    Example:

        >>> tables = {"flow": "coupling", "sde": "vp", "net": {"name": "unet", "channels": 8}}
        >>> model = build_model(tables, (1, 8, 8), Scaling.images(levels=17))
        >>> type(model.flow).__name__, type(model.sde).__name__
        ('CouplingFlow', 'VPSDE')
    """
    check_shape(shape)
    description = {
        kind: {"name": table} if isinstance(table, str) else table
        for kind, table in description.items()
    }
    for kind in description:
        if kind not in (*PART_KINDS, *OPTIONAL_KINDS):
            raise ValueError(
                f"description has an unknown table {kind!r}{nearest(kind, PART_KINDS + OPTIONAL_KINDS)}"
            )
    condition = (
        build(description["condition"], "condition", shape)
        if "condition" in description
        else NoCondition()
    )
    for kind in PART_KINDS:
        if tuple(description[kind].get("shape", shape)) != tuple(shape):
            raise ValueError(
                f"{kind}.shape must be the model's, {tuple(shape)}, got {description[kind]['shape']}"
            )
    tables = {**description, **dict(_seeing(description, condition))}
    flow, sde, net = (build(tables[kind], kind, shape) for kind in PART_KINDS)
    noise = build_dequantization(description, shape, Scaling() if scaling is None else scaling)
    model = INDM(flow, score_for(net)(net, sde), scaling, tuple(shape), noise, condition)
    model._tables = {kind: {"shape": tuple(shape), **table} for kind, table in tables.items()}
    return model


def _seeing(
    description: Mapping[str, Mapping[str, Any]], condition: Condition
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The tables of flow, SDE and network with the shape of what they see of a condition."""
    for kind in PART_KINDS:
        table = description[kind]
        if not condition.is_none and (kind == "net" or (kind == "flow" and condition.flow)):
            if "condition" in arguments_of(find(kind, table.get("name"))):
                table = {"condition": condition.seen_shape, **table}
            elif kind == "flow":
                raise ValueError(
                    f"flow must be one that sees a condition, or flow=False, got {table.get('name')!r}"
                )
        yield kind, table


def build_dequantization(
    description: Mapping[str, Mapping[str, Any]], shape: tuple[int, ...], scaling: Scaling
) -> Dequantization | None:
    """The noise that the table "dequantization" names; None, which is the default, where there is
    no such table.
    """
    if (table := description.get("dequantization")) is None:
        return None
    check_levels_for(str(table.get("name")), scaling)
    return build(table, "dequantization", shape)


def build(table: Mapping[str, Any], kind: str, shape: tuple[int, ...]) -> Any:
    """One part of a kind from its table, a ``name`` as :func:`indm.names.find` takes it and
    arguments, among them ``shape``.

    ValueError for an unknown name or argument (with the nearest that exists), or a bad value.
    """
    arguments = dict(table)
    name = arguments.pop("name", None)
    constructor = find(kind, name)
    parameters = arguments_of(constructor)
    if "flows" in parameters:
        parts = arguments.get("flows")
        if not isinstance(parts, Sequence) or not all(isinstance(part, Mapping) for part in parts):
            raise ValueError(
                f"{kind}.flows must be a list of tables, one for each flow, got {parts!r}"
            )
        arguments["flows"] = [build(part, kind, shape) for part in parts]
    check_arguments(
        constructor, arguments, table=kind, what=f"{kind} {name!r}", given_later=("shape",)
    )
    if "shape" in parameters:
        arguments.setdefault("shape", tuple(shape))
    try:
        module = constructor(**as_tuples(arguments))
    except TypeError as error:
        raise ValueError(f"{kind} {name!r} cannot be made from {arguments}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"{kind} {name!r} must make a torch.nn.Module, got {type(module).__name__}"
        )
    return module


def describe(
    module: nn.Module, kind: str, made_by: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The table that :func:`build` takes: constructor arguments are attributes of the same name.

    A class outside this package need not keep them where the table ``made_by`` that made it is
    known. ValueError where the class cannot be named, or an argument is not known.
    """
    table: dict[str, Any] = {"name": name_of(kind, type(module))}
    made_by = made_by or {}
    if place_of(kind, made_by.get("name")) not in (table["name"], type(module)):
        made_by = {}
    outside = made_by if is_outside(table["name"]) else {}
    for key, parameter in arguments_of(type(module)).items():
        value = getattr(module, key, None)
        if isinstance(value, nn.ModuleList):
            parts = made_by.get(key) or [None] * len(value)
            table[key] = [
                describe(part, kind, made) for part, made in zip(value, parts, strict=True)
            ]
        elif key in outside or (isinstance(value, PLAIN) and hasattr(module, key)):
            table[key] = _plain(outside.get(key, value))
        elif not outside or parameter.default is parameter.empty:
            raise ValueError(
                f"{kind} {type(module).__name__} cannot be described: keep its argument {key!r} as an attribute of "
                "that name, or make it by indm.build_model"
            )
    return table


def _plain(value: Any) -> Any:
    """``value`` as JSON and TOML have it."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def count_parameters(module: nn.Module) -> int:
    """The number of scalars in the parameters of ``module``."""
    return sum(p.numel() for p in module.parameters())
