"""``indm sample`` and ``indm fid``."""

import importlib.util
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from indm.cli.common import DONE, Common

if TYPE_CHECKING:
    from indm.runs.samples import Drawing


@dataclass(kw_only=True)
class Draws(Common):
    """How a command draws samples of a run: the options are those of :class:`indm.runs.samples.Drawing`."""

    sampler: str = "unipc"
    """ode, euler-maruyama, pc, heun, dpm++2m, dpm++3m, unipc, or package.module:Class. "ode" is adaptive and chooses
    its own steps. Options of a sampler: --sampler.tol 1e-6 with "ode", --sampler.snr 0.16 (or [0.16,0.14], from the
    first step to the last) with "pc"."""
    steps: int = 25
    """Time steps."""
    eps: Annotated[float | None, arg(metavar="TIME", help_behavior_hint="(default: the model's)")] = None
    """Where the reverse process ends, at or above the model's own truncation."""
    latent_mean: bool = False
    """Centre the prior on the mean latent of the training data."""
    temperature: float = 1.0
    """Factor on the latent before it is decoded; 1 samples the model."""
    last_denoising: bool = True
    """Leave out the last step, from z at the truncation to the mean of z_0 given it."""
    batch_size: int = 256
    """Samples at a time; part of what decides them."""
    seed: int = 0
    """Of the noise."""
    overwrite: bool = False
    """Write over samples that are there and were drawn otherwise."""
    quiet: bool = False
    """No progress bar."""

    def drawing(self, n: int, changes: dict[str, str]) -> "Drawing":
        """``changes``: the options of the sampler as ``{"sampler.snr": "0.16"}``."""
        from indm.config.recipes import value_of
        from indm.runs.samples import Drawing

        for key in changes:
            if not key.startswith("sampler."):
                raise ValueError(f"--{key} is no option of this command, whose dotted options are --sampler.…")
        options = {key.removeprefix("sampler."): value_of(text) for key, text in changes.items()}
        own = {key: value for key, value in vars(self).items() if key in {f.name for f in fields(Drawing)}}
        return Drawing(**own | {"n": n, "sampler_options": options})


@dataclass
class Sample(Draws):
    """Draw samples from a run's model: samples.png (a grid, or a scatter plot beside the data) and samples.npz.

    samples.npz and samples.json tell how they were drawn. Samples that are there already, drawn just so, are not drawn
    again.
    """

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    n: Annotated[int, arg(aliases=["-n"])] = 64
    """How many."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: the run folder)")] = None
    """Where to write."""

    def run(self, changes: dict[str, str]) -> int:
        from indm.data.base import stack
        from indm.data.densities import DENSITIES
        from indm.data.registry import load_data
        from indm.evaluation import plots
        from indm.runs.samples import SAMPLES, draw

        out = self.out or self.run_folder
        options = {"overwrite": self.overwrite, "progress": not self.quiet}
        samples, levels, made_by = draw(self.run_folder, self.drawing(self.n, changes), out, **options)
        if (out / "samples.png").exists():
            pass  # drawn just so before, and shown
        elif samples.ndim == 4:
            plots.save_grid(samples, levels or 256, out / "samples.png")
        elif samples.shape[1] > 1:
            reference = stack(load_data(**made_by["data"]).test, len(samples)).float()
            plots.scatter(samples, reference, DENSITIES.get(made_by["data"]["name"]), out / "samples.png")
        by = f"{self.sampler}, {self.steps} steps" if made_by["steps"] else self.sampler
        shown = "samples.png" if (out / "samples.png").exists() else SAMPLES  # numbers by themselves
        print(f"{out / shown}: {self.n} samples by {by}")
        return DONE


@dataclass
class Fid(Draws):
    """Score samples against a reference by torch-fidelity: FID, Inception score, KID, precision and recall.

    indm fid runs/cifar10 draws samples as "indm sample" does and keeps them in samples.npz; drawn just so before, they
    are not drawn again. The scores are added to fid.json with their provenance: pixels, sampler, split, extractor.
    Needs 'indm[fid]', and Inception's weights in a place that the error names where they are missing.
    """

    source: Annotated[Positional[str], arg(metavar="RUN|FOLDER")]
    """What is scored: a run folder, a folder of images, a samples.npz; or a data set's test split, as a yardstick."""
    reference: Annotated[str | None, arg(metavar="SOURCE", help_behavior_hint="(default: the run's data)")] = None
    """A data set (by its name, a recipe or a run folder), a folder of images or a samples.npz."""
    split: Literal["train+valid", "train", "valid", "test"] = "train+valid"
    """Of the reference's data set; train+valid is all that is not for testing, as published scores have it."""
    extractor: Annotated[str, arg(metavar="FOLDER|FILE|inception")] = "inception"
    """Inception, a file of its weights, or a folder with indm's own extractor, trained there on labels if need be."""
    size: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="(default: as they are)")] = None
    """Resize the images of a folder to this side."""
    resize: Annotated[str, arg(metavar="MODE")] = "bilinear"
    """How: bilinear, bicubic, lanczos, …; antialiased."""
    n: Annotated[int | None, arg(aliases=["-n"], metavar="N", help_behavior_hint="(default: as the reference)")] = None
    """How many samples; by default a run draws as many as the reference has, at most 50,000."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: the run folder, or .)")] = None
    """Where to write."""

    def run(self, changes: dict[str, str]) -> int:
        if importlib.util.find_spec("torch_fidelity") is None:
            raise ValueError("indm fid needs the library torch-fidelity: pip install 'indm[fid]'")
        from indm.evaluation import fid, image_sources
        from indm.evaluation.features import find_features
        from indm.runs.folder import check_absent, is_run

        reading = {"size": self.size, "resize": self.resize}
        of_run, progress = is_run(Path(self.source)), not self.quiet
        idle = [
            f.name for f in fields(Draws) if f.name not in ("quiet", "debug") and getattr(self, f.name) != f.default
        ]
        idle += list(changes)
        if idle and not of_run:
            raise ValueError(f"--{idle[0].replace('_', '-')} is for samples drawn of a run, and {self.source} is none")
        if self.reference is None and not of_run:
            raise ValueError(f"--reference must be given for {self.source}, which is no run folder")
        out = self.out or (Path(self.source) if of_run else Path("."))
        check_absent(out, (), self.overwrite)
        fid.read_records(out / "fid.json")
        if self.n is not None:
            image_sources.check_number("n", self.n)
        reference = image_sources.open_images(self.reference or self.source, split=self.split, **reading)
        image_sources.check_number("reference", len(reference.raw))
        features = find_features(self.extractor, reference.data, progress=progress)
        if of_run:
            drawing = self.drawing(min(len(reference.raw), image_sources.MOST) if self.n is None else self.n, changes)
            samples = image_sources.of_run(Path(self.source), drawing, out, overwrite=self.overwrite, progress=progress)
        else:
            samples = image_sources.open_images(self.source, split="test", **reading).first(self.n)
        record = fid.score(samples, reference, features, progress=progress)
        print(fid.score_table(record))
        fid.add_record(record, out / "fid.json")
        print(out / "fid.json")
        return DONE
