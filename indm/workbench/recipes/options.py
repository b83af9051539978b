"""All options, each with its default and the sentence that explains it.

The tables of recipes, the command line with its help, and the checks are made from these
dataclasses. Nothing heavy is imported here, so that the help is quick.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tyro.conf import Suppress, arg

from indm import checks
from indm.checks import Must, check_arguments, require

FEW_STEPS = 200  # a training of fewer steps has hardly learned anything


def default(words: str):
    """Annotation with the words that the help shows for a default that is None or empty."""
    return arg(help_behavior_hint=f"(default: {words})")


def _is_interval(value: float) -> bool:
    """Whether ``value`` is a share of a run below 1, a whole number of steps, or inf for never."""
    return 0 < value < 1 or value == math.inf or (value >= 1 and value == int(value))


AT_LEAST_1 = Must("at least 1", lambda v: v >= 1)
AT_LEAST_2 = Must("at least 2", lambda v: v >= 2)
POSITIVE = Must("positive", lambda v: v > 0)
FINITE = Must("positive and finite", lambda v: 0 < v < math.inf)
NOT_NEGATIVE = Must("0 or more", lambda v: v >= 0)
BELOW_1 = Must("in [0, 1)", lambda v: 0 <= v < 1)
Count = Annotated[int, AT_LEAST_1]
Two = Annotated[int, AT_LEAST_2]
Number = Annotated[int, NOT_NEGATIVE]
Positive = Annotated[float, POSITIVE]
Amount = Annotated[float, NOT_NEGATIVE]
Share = Annotated[float, BELOW_1]
STEPS_WANTED = "a whole number of steps, or a share of the run below 1"
Interval = Annotated[float, Must(STEPS_WANTED, _is_interval)]
Warmup = Annotated[float, Must(f"0, {STEPS_WANTED}", lambda v: not v or _is_interval(v))]
Steps = Annotated[
    float, POSITIVE, Must("a whole number, or inf", lambda v: v == math.inf or v == int(v))
]
Decays = Must("two numbers in [0, 1)", lambda v: all(0 <= b < 1 for b in v))


class Checked:
    """Options that are checked, when they are made, by the annotations of their fields."""

    table = ""  # of their names in messages

    def __post_init__(self) -> None:
        check_arguments(type(self), vars(self), table=self.table, what=type(self).__name__)


@dataclass(frozen=True)
class TrainOptions(Checked):
    """Keys of the recipe's [train] table.

    A run ends after ``steps`` or ``seconds``, whichever comes first. Warm-up and intervals are
    numbers of steps; values below 1 are fractions of the run.
    """

    table = "train"

    objective: str = "mle"
    """Loss to minimise: "mle" is the NELBO; "fid" is for samples, the score minimises the
    variance-weighted loss; "flow" trains the flow alone; or a loss of yours as package.module:name,
    see indm.objective.Objective.
    """
    steps: Steps = 10_000
    """Optimizer steps; inf is no limit."""
    seconds: Positive = math.inf
    """Seconds of training. Validation and checkpoints do not count; inf is no limit."""
    batch_size: Count = 128
    """Examples of one optimizer step, over all processes and accumulated batches."""
    accumulate: Count = 1
    """Batches whose gradients are added up for one optimizer step."""
    lr: Positive = 1e-3
    """Learning rate of the score."""
    flow_lr: Positive = 1e-3
    """Learning rate of the flow; lr if another flow replaces the elementwise one of a recipe."""
    dequantization_lr: Positive = 1e-3
    """Learning rate of the noise of grey levels, if that is learned."""
    flow_update_every: Count = 1
    """Train the flow in every n-th step, and only the score in the others."""
    betas: Annotated[tuple[float, float], Decays] = (0.9, 0.99)
    """Decay rates of Adam's averages of the gradient and of its square."""
    weight_decay: Amount = 0.01
    """Decoupled weight decay of the score."""
    flow_weight_decay: Amount = 0.0
    """Decoupled weight decay of the flow."""
    clip: Positive = 1.0
    """Largest norm of the gradient; score and flow are clipped separately."""
    warmup: Warmup = 0
    """Steps in which the learning rates rise linearly; a value below 1 is a fraction of the run."""
    decay: Annotated[float, Must("in [0, 1]", lambda v: 0 <= v <= 1)] = 0.0
    """Last fraction of the run, in which the learning rates fall linearly to 0."""
    ema: Share = 0.999
    """Decay of the averaged weights, which are validated and saved. After n steps it is at most
    (1 + n)/(10 + n), so that the average is over the last tenth of a short run.
    """
    first: Literal["both", "score", "flow"] = "both"
    """What is trained in the first fraction train.alone of the run, before both are. "score" trains
    the score without the flow, which starts at the identity. "flow" trains the flow by its own
    likelihood, until three validations in a row are no better. Both then start from the best
    validated flow, with a new warm-up and decay of the rates, and the run ends with the best
    validated model, which may be the flow alone (train.final). A flow alone needs a high
    train.flow_lr: 2e-2 for a coupling of columns.
    """
    alone: Annotated[float, Must("above 0 and below 1", lambda v: 0 < v < 1)] = 0.5
    """First fraction of the run, in which only the part of train.first is trained."""
    joint_factor: Positive = 0.1
    """Factor on train.flow_lr when both are trained after the flow alone (train.first)."""
    noise_levels: Literal["gradients", "even"] = "gradients"
    """Noise levels of the "mle" objective: more where "gradients" are large, which needs fewer
    steps, or "even" on the log-SNR clock, as for soft truncation and published networks.
    """
    soft_truncation: Amount = 0.0
    """Exponent k of the density τ⁻ᵏ of the random truncation τ (often 1.2); 0 always truncates at
    ε.
    """
    terminal: Amount = 0.0
    """Weight of −log p(x_T), with x_T drawn from [data_b], or from a Gaussian with the data's mean
    and covariance.
    """
    terminal_noise: Amount = 0.0
    """Standard deviation of normal noise on these draws, in model units, in which images reach from
    −1 to 1 (0.1 is usual). With it the flow learns them much sooner. A translation to them ends
    with a step that removes the noise.
    """
    initial_noise: Amount = 0.0
    """Standard deviation of normal noise on the data of a bridge (train.terminal), in training and
    validation. If its flow has learned x_T with noise, its score learns such data much sooner.
    Translations from these data begin with the noise, and translations to them end with a step that
    removes it. Samples contain the noise, and the likelihood of clean data is poor.
    """
    latent_mean: bool = False
    """Centre the final model's prior on the mean latent (useful for VE), but not that of best/."""
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """Precision of the networks; "auto" takes bf16 if this machine computes it fast."""
    threads: Number = 0
    """CPU threads; 0 is PyTorch's number: OMP_NUM_THREADS, or one for each core. Take 1 if other
    processes use the cores. The last bits of the result depend on it.
    """
    workers: Number = 0
    """Processes that load data; 0 loads them in the process that trains."""
    log_every: Interval = 50
    """Steps between two lines of the metrics log; a value below 1 is a fraction of the run."""
    validate_every: Interval = 0.05
    """Steps between two validations; a value below 1 is a fraction of the run, such as 0.1."""
    validate_examples: Count = 1000
    """Largest number of validation examples that a validation uses."""
    checkpoint_every: Interval = 1000
    """Steps between two checkpoints; a value below 1 is a fraction of the run."""
    keep_last: Count = 2
    """Checkpoints to keep; each is about four times the size of the model."""
    max_skipped_steps: Count = 20
    """Steps in a row that may be skipped because a loss or gradient is not finite; then the run
    stops with an error.
    """
    final: Literal["auto", "last", "best"] = "auto"
    """Averaged model that the run ends with: the last one, or the one with the best validation.
    "auto" is "best" with train.first "flow", so that no step can lose what the flow has learned;
    otherwise it is "last".
    """
    seed: Number = 0
    """Seed of the weights, the batches and the noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        noises = {"terminal_noise": self.terminal_noise, "initial_noise": self.initial_noise}
        for name, noise in noises.items():
            fits = not noise or self.terminal > 0
            require(fits, f"train.{name}", noise, "0 where there is no train.terminal")
        finite = math.isfinite(min(self.steps, self.seconds))
        require(finite, "train.seconds", self.seconds, "finite if train.steps is inf")


@dataclass(frozen=True)
class Evaluation(Checked):
    """Keys of the recipe's [evaluate] table: how "indm evaluate" estimates likelihoods."""

    table = "evaluate"

    split: Literal["test", "valid", "train"] = "test"
    """Split to evaluate: test, valid or train."""
    examples: Two = 10_000
    """Examples for the NELBO, at most."""
    nll_examples: Number = 1000
    """How many of these, from the first, for the NLL of the probability-flow ODE; 0 skips it."""
    each: bool = False
    """Solve the NLL of every example to nll_error. Otherwise all are solved in few steps, and the
    mean is corrected by some that are also solved to nll_error.
    """
    mean_error: Annotated[float | None, FINITE] = None
    """Standard error, bits/dim, that this correction may add to the mean NLL; by default a fifth of
    its own.
    """
    draws: Annotated[int | None, AT_LEAST_1] = None
    """Also estimate the importance-weighted bound of that NLL (IW-NLL) from this many draws of
    noise, often 8. Its divergence is exact, so it takes as long as draws × dimensions NLLs.
    """
    iw_examples: Two = checks.IW_EXAMPLES
    """How many examples, from the first, for the IW-NLL."""
    ancestral: Annotated[int | None, AT_LEAST_1] = None
    """Also bound the likelihood of samples by "ancestral" in this many steps."""
    repeats: Two = checks.REPEATS
    """Independent estimates for each example (2 or more), which show the estimator's noise."""
    times: Count = checks.TIMES
    """Score evaluations of one NELBO estimate."""
    probes: Count = checks.PROBES
    """Hutchinson probes of the divergence."""
    nll_error: Annotated[float, FINITE] = checks.NLL_ERROR
    """Largest stated error of the ODE solver, bits/dim of an example; above it the example is solved
    again in more steps.
    """
    steps: Annotated[int | None, Must("8 or more", lambda v: v >= 8)] = None
    """Steps of the ODE solver, whose error is then only printed; by default as many as nll_error
    needs, up to 256.
    """
    eps: Annotated[float | None, POSITIVE] = None
    """Truncation of bound and ODE, at least the model's own, which is the default."""
    batch_size: Count = checks.BATCH_SIZE
    """Examples at a time."""
    seed: Number = 0
    """Seed of dequantization, noise, times and probes."""


@dataclass(frozen=True)
class SampleOptions(Checked):
    """Keys of the recipe's [sample] table: defaults of "indm sample", but not of indm.sample."""

    table = "sample"

    guidance: float = 1.0
    """Above 1, samples of p(x|c) are more typical of c and less diverse, and have no likelihood;
    needs condition.drop in training.
    """


@dataclass(frozen=True, kw_only=True)
class Drawing(Checked):
    """Options that decide the samples of a run; some defaults depend on its recipe."""

    n: Annotated[
        int | None,
        AT_LEAST_1,
        arg(aliases=["-n"], metavar="N"),
        default("64, or up to 8 a class"),
    ] = None
    """How many samples. Without it and a condition, a model of up to 40 classes draws a row of each."""
    condition: Annotated[str | None, arg(metavar="C"), default("drawn from the training data")] = (
        None
    )
    """The c of a model of p(x|c): a class by its name, or by its index from 0 unless a class name
    contains a digit; or numbers such as [0.5,1.2]. "all" draws n of every class. "none" samples
    p(x), for a model trained with condition.drop.
    """
    guidance: Annotated[float | None, default("sample.guidance of the recipe")] = None
    """Above 1, samples of p(x|c) are more typical of c and less diverse, and have no likelihood;
    needs condition.drop in training.
    """
    sampler: str = "unipc"
    """ode, euler-maruyama, ancestral, sde-dpm++2m, pc, heun, dpm++2m, unipc, or
    package.module:Class. "ode" takes as many steps as its tolerance sampler.tol needs; 1e-5 is
    common. "pc" has sampler.snr: 0.16, or [0.16,0.14] from the first to the last step.
    """
    sampler_options: Annotated[dict[str, Any], Suppress] = field(default_factory=dict)
    """Arguments of the sampler."""
    steps: Annotated[
        int | None, AT_LEAST_1, default("25; 400 where the network may have ripples in t")
    ] = None
    """Time steps."""
    eps: Annotated[float | None, default("the model's")] = None
    """Where the reverse process ends, at least the model's own truncation."""
    latent_mean: bool = False
    """Centre the prior on the mean latent of (up to 10,000) training data."""
    temperature: float = 1.0
    """Factor on the latent before it is decoded; 1 samples the model."""
    last_denoising: bool = True
    """Take the last step, from z at the truncation to the mean of z_0 given it."""
    batch_size: Count = 256
    """Samples at a time. A different size gives different samples."""
    seed: int = 0
    """Seed of the noise."""


@dataclass(frozen=True, kw_only=True)
class TranslationOptions(Checked):
    """Options for translating images."""

    method: Literal["flow", "sdedit"] = "flow"
    """With "flow", follow the probability flow of A to noise and that of B back. With "sdedit", add
    noise up to strength, which must be below 1, and follow the flow of B back; this needs no model
    of A and has no inverse.
    """
    strength: float = 1.0
    """How far to go towards noise, as a fraction of T; below 1, more of the source is kept."""
    stochastic: bool = False
    """Add random noise, by seed, in place of following the probability flow of A."""
    seed: int = 0
    """Seed of that noise, and of the noise with which a bridge begins."""
    guidance: float = 1.0
    """For one class-conditional model: above 1, results are farther from A and lose detail. Take 2
    to 4 if A and B look alike. Each step from noise to B then costs two evaluations.
    """
    steps: int = 120
    """Evaluations of the networks. With 75, cycles are off by some tenths of a grey level. A bridge
    that begins with noise takes them twice, for +n and −n.
    """
    tol: Annotated[float | None, default("equal steps")] = None
    """Take as many steps as an error of this size in the latent needs; try 1e-4."""
    cycle: bool = False
    """Also translate back to A: write cycle/NAME.png, and print the largest error in grey levels."""
    batch_size: Count = 64
    """Images at a time."""
