"""The schedule of a run: its budget, the part that a step trains, the rates, and the intervals."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from indm.training import FlowUse, NetworkHealth, learning_rate_factor

FLOW_PATIENCE = 3  # validations without a gain, after which the flow is no longer trained alone
ROUNDING_OF_SHARES = 1e-9  # tolerance of shares: three tenths of ten steps are three steps


@dataclass
class Place:
    """The place of a run in its schedule, apart from its steps; checkpoints contain it."""

    seconds: float = 0.0
    opening: bool = False  # until flow and score are trained together
    # the start of the schedule of the rates
    began: int = 0
    began_seconds: float = 0.0
    flow_bounds: list[float] = field(default_factory=list)  # validations of the flow alone
    health: NetworkHealth = field(
        default_factory=NetworkHealth
    )  # of the score behind a flow that was trained first

    def state(self) -> dict[str, Any]:
        """The place as plain values, for :meth:`of`."""
        return asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Place":
        """The place with this :meth:`state`."""
        return cls(**state | {"health": NetworkHealth(**state["health"])})


@dataclass(eq=False)
class Schedule:
    """The budget of a run, its opening, and its rates; see ``[train]`` for each value.

    Args:
        steps, seconds: the budget; whichever is spent first ends the run.
        first: what the opening trains, which is the first share ``alone`` of the run.
        flow_update_every: the flow is trained in every n-th step.
        warmup, decay: rise and fall of the rates.
        joint_factor: on the flow's rate, after the flow was trained first.

    Example: the flow alone is trained in a tenth of 1,000 steps.

        >>> schedule = Schedule(steps=1000, first="flow", alone=0.1)
        >>> schedule.flow_use(99), schedule.flow_use(100)
        (<FlowUse.ALONE: 'alone'>, <FlowUse.TRAINED: 'trained'>)
    """

    steps: float
    seconds: float = math.inf
    first: Literal["both", "score", "flow"] = "both"
    alone: float = 0.0
    flow_update_every: int = 1
    warmup: float = 0.0
    decay: float = 0.0
    joint_factor: float = 1.0

    def __post_init__(self) -> None:
        self.place = Place(opening=self.first != "both")

    def _share(self, step: int, seconds: float) -> float:
        return max(step / self.steps, seconds / self.seconds)

    def progress(self, step: int) -> float:
        """The share of the budget that is spent; the run is over at 1."""
        return self._share(step, self.place.seconds)

    @property
    def is_flow_alone(self) -> bool:
        """Whether the flow alone has been trained so far."""
        return self.place.opening and self.first == "flow"

    def opening_is_over(self, step: int) -> bool:
        """Whether the opening is over, or the flow alone no longer gains."""
        bounds = self.place.flow_bounds
        if self.progress(step) >= self.alone:
            return True
        if len(bounds) <= FLOW_PATIENCE:
            return False
        return min(bounds[-FLOW_PATIENCE:]) >= min(bounds[:-FLOW_PATIENCE])

    def end_opening(self, step: int) -> None:
        """Train flow and score together from here on. After the flow alone, the rates begin again."""
        self.place.opening = False
        if self.first == "flow":
            self.place.began = step
            self.place.began_seconds = self.place.seconds

    def flow_use(self, step: int) -> FlowUse:
        """How the coming step uses the flow."""
        if self.place.opening and not self.opening_is_over(step):
            return FlowUse.ALONE if self.first == "flow" else FlowUse.LEFT_OUT
        return FlowUse.FROZEN if step % self.flow_update_every else FlowUse.TRAINED

    def factor(self, step: int) -> float:
        """The share of the highest rates in the coming step, of all parts."""
        place = self.place
        begun = self._share(place.began, place.began_seconds)
        end = self.alone if self.is_flow_alone else 1.0
        progress = (self.progress(step) - begun) / (end - begun)
        return learning_rate_factor(step - place.began, progress, self.warmup, self.decay)

    def factor_of(self, part: str, step: int) -> float:
        """The share of a part's highest rate.

        It is lower for a flow that was trained first, and for a score that has died.
        """
        if part == "score":
            return self.factor(step) * self.place.health.factor
        is_slow = part == "flow" and self.first == "flow" and not self.place.opening
        return self.factor(step) * (self.joint_factor if is_slow else 1.0)


@dataclass(frozen=True)
class Upkeep:
    """When a run logs, validates and saves, and what it keeps; see ``[train]`` for each value.

    With ``keeps_best`` the run ends with the best validated model.
    """

    log_every: float = math.inf
    validate_every: float = math.inf
    checkpoint_every: float = math.inf
    max_skipped_steps: int = 20
    keep_last: int = 2
    threads: int = 0
    keeps_best: bool = False
    latent_mean: bool = False


def is_due(step: int, before: float, progress: float, every: float) -> bool:
    """Whether ``step`` ends an interval of ``every`` steps, or of a share of the run below 1.

    The step has taken the run from ``before`` to ``progress``, shares of it.
    """
    if every >= 1:
        return step % every == 0  # never, if it is infinite
    ended = math.floor(progress / every + ROUNDING_OF_SHARES)
    return ended > math.floor(before / every + ROUNDING_OF_SHARES)
