"""The options of training and of evaluation, each declared once."""

import math
from dataclasses import dataclass
from typing import Literal

from indm.config.checks import check_each, check_whole_numbers, require
from indm.config.parts import BUILT_IN, GIVEN, is_outside

TRACKERS = {"tensorboard", "wandb"}


@dataclass(frozen=True)
class Training:
    """The ``[train]`` table. A run ends after ``steps`` or ``seconds``, whichever comes first; ``inf`` is no limit."""

    # "mle": flow and score minimise the NELBO; "fid": the score minimises the variance-weighted loss; "flow": the flow
    # alone maximises its likelihood; or any loss as "package.module:name", see indm.objective.Objective.
    objective: str = "mle"
    steps: float = 10_000  # optimizer steps
    seconds: float = math.inf  # of training alone: validation and checkpoints are not counted
    batch_size: int = 128  # examples of one optimizer step, over all processes and accumulated batches
    accumulate: int = 1  # batches whose gradients make one optimizer step
    lr: float = 1e-3  # of the score
    flow_lr: float = 1e-3
    flow_update_every: int = (
        1  # the flow takes part in every so-many-th step; in between the score trains behind it as it is
    )
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01  # of the score
    flow_weight_decay: float = 0.0
    clip: float = 1.0  # largest gradient norm, of score and flow apart
    warmup: int = 0  # steps in which the learning rates rise linearly
    flow_warmup: int = 0  # the same for the flow alone, where that is longer: the score goes ahead
    decay: float = 0.0  # last fraction of the run, in which they fall linearly to 0
    ema: float = 0.999  # decay of the averaged weights, which are the ones validated and saved
    pretrain: float = 0.0  # first fraction of the run, in which the score is trained without the flow
    soft_truncation: float = 0.0  # exponent k of the law of the truncation (1.2 is usual); 0 truncates at ε
    isometry: float = 0.0  # weight of the flow's distance from an isometry: 0 is free, large is a linear diffusion
    terminal: float = 0.0  # weight of −log p(x_T) under [data_b], or under the data's own mean and covariance
    latent_mean: bool = False  # centre the final model's prior on the mean latent (for VE); not in best/, snapshots/
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"  # auto: bf16 where the machine is fast in it
    workers: int = 0  # processes that load data
    log_every: int = 50  # steps
    validate_every: int = 500  # steps
    validate_examples: int = 1000
    checkpoint_every: int = 1000  # steps
    keep_last: int = 2  # checkpoints that stay, each about four times the model; best/ is the averaged model alone
    max_skipped_steps: int = (
        20  # steps in a row left out for a loss or gradient that is not finite, before the run goes back
    )
    max_rollbacks: int = 3  # times it goes back to its last checkpoint, at half the learning rates, before it gives up
    snapshot_every: int = 0  # steps after which the averaged model is also kept as snapshots/STEP; 0 keeps none
    seed: int = 0
    trackers: tuple[str, ...] = ()  # of "tensorboard", "wandb"

    def __post_init__(self):
        check_whole_numbers(self, "train.")
        check_each(self, "train", lambda v: v >= 1, "at least 1", "batch_size accumulate validate_examples")
        check_each(self, "train", lambda v: v >= 1, "at least 1", "log_every validate_every checkpoint_every")
        check_each(self, "train", lambda v: v >= 1, "at least 1", "keep_last max_skipped_steps")
        check_each(self, "train", lambda v: v > 0, "positive", "steps seconds lr flow_lr clip")
        check_each(self, "train", lambda v: v >= 0, "0 or more", "weight_decay flow_weight_decay warmup workers seed")
        check_each(self, "train", lambda v: v >= 0, "0 or more", "soft_truncation flow_warmup isometry terminal")
        check_each(self, "train", lambda v: v >= 0, "0 or more", "snapshot_every max_rollbacks")
        check_each(self, "train", lambda v: 0 <= v < 1, "in [0, 1)", "ema pretrain")
        check_each(self, "train", lambda v: 0 <= v <= 1, "in [0, 1]", "decay")
        check_each(self, "train", lambda v: all(0 <= b < 1 for b in v), "two numbers in [0, 1)", "betas")
        check_each(self, "train", lambda v: v == math.inf or v == int(v), "a whole number, or inf", "steps")
        check_each(self, "train", lambda v: v % self.accumulate == 0, "a multiple of train.accumulate", "batch_size")
        check_each(self, "train", lambda v: set(v) <= TRACKERS, "of tensorboard, wandb", "trackers")
        names = BUILT_IN["objective"]
        is_name = self.objective in (*names, GIVEN) or is_outside(self.objective)
        wanted = f"{' or '.join(map(repr, names))}, or a loss as package.module:name"
        require(is_name, "train.objective", self.objective, wanted)
        finite = math.isfinite(min(self.steps, self.seconds))
        require(finite, "train.seconds", self.seconds, "finite if train.steps is inf")


@dataclass(frozen=True)
class Evaluation:
    """The ``[evaluate]`` table: what ``indm evaluate`` does unless told otherwise."""

    split: Literal["test", "valid", "train"] = "test"
    examples: int = 10_000  # for the NELBO, at most
    nll_examples: int = 1000  # of these, the first so many for the probability-flow ODE; 0 skips it
    repeats: int = 2  # independent estimates for each example, which tell the estimator's noise
    times: int = 4  # score evaluations of one NELBO estimate
    probes: int = 1  # of the divergence
    rtol: float = 1e-4  # tolerances of the ODE solver
    atol: float = 1e-4
    steps: int = 0  # of the fixed-step ODE solver, fast but without error control; 0 is the adaptive one
    eps: float = 0.0  # truncation of bound and ODE, at least the SDE's own; 0 is the SDE's own
    batch_size: int = 250
    seed: int = 0

    def __post_init__(self):
        check_whole_numbers(self, "evaluate.")
        check_each(self, "evaluate", lambda v: v >= 1, "at least 1", "times probes batch_size")
        check_each(self, "evaluate", lambda v: v >= 2, "at least 2", "examples repeats")
        check_each(self, "evaluate", lambda v: v >= 0, "0 or more", "nll_examples seed steps eps")
        check_each(self, "evaluate", lambda v: 0 < v < math.inf, "positive and finite", "rtol atol")
