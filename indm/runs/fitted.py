"""Samplers that were fitted to the model of a run, kept in its folder."""

from dataclasses import asdict
from pathlib import Path

import torch

from indm.conditions import rows_of_data
from indm.config.options import FittingOptions
from indm.files import atomic, untrusted
from indm.fitting import Fit, FittedSampler, check_can_fit, fit_sampler
from indm.messages import reason
from indm.runs.data import data_of
from indm.runs.folder import check_absent, open_run
from indm.runs.provenance import provenance, weights_hash

FITTED = "fitted"  # the name of these samplers where a run is named, too
FOLDER = "samplers"  # in the run folder


def file_name(steps: int, guidance: float = 1.0) -> str:
    return f"fitted-{steps}{'' if guidance == 1 else f'-guidance-{guidance:g}'}.json"


def fit_samplers(
    run: Path, options: FittingOptions, *, overwrite: bool = False, progress: bool = True
) -> dict[int, Fit]:
    """Fit a sampler for each number of steps to the averaged model of a run, and keep it in ``samplers/fitted-N.json``.

    Each file has the times and the weights, how far the samples are from the converged ones, what the fit was made
    with, and the SHA-256 of the model's weights. A model of p(x|c) is fitted at the c of its training data.

    Raises:
        ValueError: bad options, an SDE that no sampler can be fitted to, or files that are there without ``overwrite``.
    """
    model, _ = open_run(run)
    check_can_fit(model.sde)
    check_absent(run / FOLDER, [file_name(steps, options.guidance) for steps in options.steps], overwrite)
    c = None if getattr(model, "condition", None) is None else rows_of_data(model, data_of(run, model), "train")
    weights, fits = weights_hash(run), {}
    given = {name: value for name, value in asdict(options).items() if name not in ("steps", "seed")}
    for steps in options.steps:
        generator = torch.Generator(model.scaling.scale.device).manual_seed(options.seed)
        fits[steps] = fit = fit_sampler(model, steps, c=c, generator=generator, progress=progress, **given)
        # JSON has no infinity
        settings = {"steps": steps, "seed": options.seed} | {k: v for k, v in given.items() if v != float("inf")}
        record = {"weights_sha256": weights} | asdict(fit) | {"options": settings}
        (run / FOLDER).mkdir(exist_ok=True)
        made_by = provenance(options.seed, {str(run): weights})
        atomic.json_object(run / FOLDER / file_name(steps, options.guidance), record | {"provenance": made_by})
    return fits


def fitted_sampler(run: str | Path, steps: int, guidance: float = 1.0) -> FittedSampler:
    """The sampler of ``steps`` evaluations that "indm fit-sampler" fitted to the model of a run, with its guidance.

    Raises:
        ValueError: there is none, it was fitted to other weights than the run has now, or its file is damaged.

    Example: that of a run of one step, for ``indm.sample(model, 8, sampler=…)``.

        >>> import tempfile, indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "mlp", "width": 8}}
        >>> tables["train"], options = {"batch_size": 32}, FittingOptions(steps=(2,), samples=8, iterations=2)
        >>> with tempfile.TemporaryDirectory() as run:
        ...     _ = indm.train(tables, run, data=torch.randn(100, 2), callbacks=[lambda *_: True], progress=False)
        ...     fits = fit_samplers(Path(run), options, progress=False)
        ...     fitted_sampler(run, 2) == fits[2].sampler
        True
    """
    run = Path(run)
    at, option = ("", "") if guidance == 1 else (f" at guidance {guidance:g}", f" --guidance {guidance:g}")
    file, command = run / FOLDER / file_name(steps, guidance), f"'indm fit-sampler {run} --steps {steps}{option}"
    if not file.exists():
        there = [path.stem.removeprefix("fitted-") for path in (run / FOLDER).glob("fitted-*.json")]
        names = [name.replace("-guidance-", " at guidance ") for name in sorted(there, key=lambda n: (len(n), n))]
        have = f"; there is one of {', '.join(names)}" if names else ""
        raise ValueError(f"{run} has no fitted sampler of {steps} steps{at}{have}: {command}' makes it")
    record = untrusted.json_object(file)
    if record.get("weights_sha256") != weights_hash(run):
        raise ValueError(f"{file} was fitted to other weights than {run} has now: {command} --overwrite' fits it anew")
    try:
        return FittedSampler(**record["sampler"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} cannot be read as a fitted sampler: {reason(error)}") from error
