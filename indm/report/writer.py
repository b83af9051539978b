"""``indm report``: runs side by side on one self-contained page, with its pictures as PNG and its numbers as JSON."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from indm.config import recipes
from indm.data.base import Data
from indm.data.registry import load_data
from indm.evaluation import flow_analysis
from indm.evaluation.comparison import KINDS, check_same_examples
from indm.evaluation.extractor import Extractor, load_or_train
from indm.evaluation.statistics import FOLDS, over_seeds
from indm.files import atomic, untrusted
from indm.report import figures
from indm.report.page import Page
from indm.report.records import Options, Record, by_group, gather, is_vae
from indm.runs.provenance import provenance, weights_hash


def report(
    folders: Sequence[Path],
    out: Path,
    options: Options | None = None,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Compare runs of one data set on a page.

    Args:
        folders: run folders, of INDMs or VAEs, whose ``[data]`` is the same. Those not evaluated yet are.
        out: folder for ``index.html``, its PNGs, ``report.json`` and the extractor of the Fréchet distance.
        options: what to measure.
        overwrite: let ``out`` hold another report, or a page of something else.
        progress: show bars.

    Returns:
        The path of the page.

    Raises:
        ValueError: no run of an INDM, or runs of different data; ``out`` holds another report.
        FileNotFoundError: a folder that is no run.
    """
    if not folders:
        raise ValueError("folders must name at least one run, got none")
    options, first = options or Options(), recipes.load(folders[0])["data"]
    for folder in folders:
        if recipes.load(folder)["data"] != first:
            raise ValueError(f"{folder} and {folders[0]} are runs of different data; report runs of one data set")
    for folder in folders:
        weights_hash(folder)  # says so where there is no model
    if all(is_vae(folder) for folder in folders):
        raise ValueError("folders must name at least one run of an INDM, got VAEs alone")
    if not overwrite:
        check_out(folders, out, options)
    data = load_data(**first)
    if len(data.test) < 2 * FOLDS:
        raise ValueError(
            f"data must have at least {2 * FOLDS} test examples for standard errors, {data.name} has {len(data.test)}; "
            "a larger share of it, --data.test, or more data would do"
        )
    out.mkdir(parents=True, exist_ok=True)
    extractor = load_or_train(out, data, progress=progress) if data.labels else None
    facts = gather(folders, extractor, data, options, progress)
    check_same_examples({f.folder: f.evaluation for f in facts})
    numbers = {str(f.folder): {"group": f.group, "evaluation": f.evaluation} | f.measures for f in facts}
    weights = {str(folder): weights_hash(folder) for folder in folders}
    made_by = provenance(options.seed, weights)
    # First of all that is written: where it is, the page beside it is of the same report.
    atomic.json_object(out / "report.json", {"options": asdict(options), "provenance": made_by, "runs": numbers})
    page = Page(f"Runs of {data.name}")
    add_runs(page, out, facts, data, extractor)
    page.write(out / "index.html")
    return out / "index.html"


def check_out(folders: Sequence[Path], out: Path, options: Options) -> None:
    """ValueError where ``out`` holds another report than that of these runs with these options."""
    made = out / "report.json"
    known = {"options": json.loads(json.dumps(asdict(options))), "runs": list(map(str, folders))}
    if made.exists():
        kept = untrusted.json_object(made)
        if {"options": kept.get("options"), "runs": list(kept.get("runs", ()))} == known:
            return
    elif not (out / "index.html").exists() and not any(out.glob("*.png")):
        return
    raise ValueError(f"{out} holds another report: add --overwrite to write that anew, or name another --out")


def add_runs(page: Page, out: Path, facts: list[Record], data: Data, extractor: Extractor | None, prefix="") -> None:
    """All sections on runs of one data set; pictures go to ``out`` under ``prefix``."""

    def draw(name: str, caption: str, picture: Callable[[Path], None]) -> None:
        picture(out / f"{prefix}{name}.png")
        page.picture(out / f"{prefix}{name}.png", caption)

    groups = list(by_group(facts).values())

    def having(name: str) -> list[list[Record]]:
        return [measured for group in groups if (measured := [f for f in group if name in f.measures])]

    indms = having("errors")
    firsts = [group[0] for group in indms]
    maps = having("flow")  # not the conditional flows, which have a map for each code
    mapped = [group[0] for group in maps]
    page.text(f"{'; '.join(data.notes)}. Numbers are means over a group's seeds ± their standard error; a single run "
              "has that of its examples.")  # fmt: skip
    page.heading("Likelihood and budget")
    page.table(likelihood_rows(facts))
    page.text("With the reconstruction term. NELBO bounds the likelihood of the generative SDE, NLL is that of the "
              "probability-flow ODE: their difference is zero for the exact score, no variational gap.")  # fmt: skip
    draw("curves", "Validation NELBO over steps and over seconds.", lambda path: figures.curves_figure(facts, path))
    draw("gap", "NELBO − NLL (ODE) of the same examples along training.", lambda path: figures.gap_figure(firsts, path))

    page.heading("Samples")
    draw("samples", "Samples, Heun in 25 steps (for a VAE: of its decoder).",
         lambda path: figures.samples_figure(facts, data, path))  # fmt: skip
    if extractor is not None:
        made = extractor.provenance
        page.text(f"Fréchet distances: features of a classifier trained on the real labels, of test accuracy "
                  f"{made['test_accuracy']:.3f}, weights {made['weights_sha256'][:12]}.")  # fmt: skip
    page.table(quality_rows(having("quality")))
    draw("quality", "Distance to the test data over evaluations of the network (dashed: training data).",
         lambda path: figures.quality_figure(indms, path))  # fmt: skip

    if maps:
        page.heading("Transport along the probability flow")
        page.table(transport_rows(maps))
    page.heading("The sampling error by parts")
    page.table(error_rows(indms))
    if not maps:
        return
    if len(data.shape) == 3:
        page.heading("Paths")
        draw("paths", "x_t along one Brownian path, equally spaced on the log-SNR clock from ε to T.",
             lambda path: figures.strips_figure(mapped, data, path, figures.forward_strip))  # fmt: skip
        draw("flow-paths", "x_t along the probability flow: encoded to T, each column decoded by h⁻¹.",
             lambda path: figures.strips_figure(mapped, data, path, figures.flow_strip))  # fmt: skip
        draw("interpolation", "From x to x′ through z_T: both encoded, interpolated on the sphere, decoded.",
             lambda path: figures.strips_figure(mapped, data, path, figures.interpolation_strip))  # fmt: skip
    if data.shape == (2,):
        page.heading("Paths")
        for f in mapped:
            draw(f"plane-{f.group.replace('/', '-')}", f"{f.group}: density; particles along the forward diffusion and "
                 "the generative flow; drift f_φ and volatility G_φ (ellipses).",
                 lambda path, f=f: figures.plane_figure(f, data, path))  # fmt: skip
    page.heading("What the flow does")
    draw("flow", "Spectrum of ∂h/∂x, where its action lies, what x_t tells of the class.",
         lambda path: flow_analysis.save_figure({f.group: f.measures["flow"] for f in mapped}, path))  # fmt: skip


def shown(mean: float, error: float, digits: int = 3) -> str:
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def likelihood_rows(facts: list[Record]) -> list[tuple[str, ...]]:
    unit = facts[0].unit
    kinds = [kind for kind in KINDS if any(f.bound(kind) for f in facts)]
    rows = [("", "seeds", "parameters", "steps", "seconds", *(f"{KINDS[kind]}, {unit}" for kind in kinds))]
    for group, found in by_group(facts).items():
        cells = []
        for kind in kinds:
            bounds = [f.bound(kind) for f in found if f.bound(kind)]
            cells.append(shown(*over_seeds([b[0] for b in bounds], bounds[0][1])) if bounds else "–")
        ends = [f.curve[-1] for f in found if f.curve]
        budget = [f"{statistics.mean(end[key] for end in ends):.0f}" if ends else "–" for key in ("step", "seconds")]
        rows.append((group, str(len(found)), f"{found[0].parameters:,}", *budget, *cells))
    entropy = facts[0].evaluation["entropy_nats"]
    return rows if entropy is None else [*rows, ("entropy of the data", *[""] * 4, *[f"{entropy:.3f}"] * len(kinds))]


def quality_rows(groups: list[list[Record]]) -> list[tuple[str, ...]]:
    """One row for each group, sampler and number of steps."""
    rows = [("", "sampler", "steps", "evaluations", "images", "Fréchet", "sliced Wasserstein")]
    for found in groups:
        group = found[0].group
        for i, row in enumerate(found[0].measures["quality"]):
            same = [f.measures["quality"][i] for f in found]
            cells = []
            for key in ("frechet", "sliced_wasserstein"):
                values = [r[key] for r in same if r[key] is not None]
                error = same[0][f"{key}_standard_error"]
                cells.append(shown(*over_seeds(values, error)) if values else "–")
            name = "training data" if row["sampler"] == "data" else group
            if name == group or found is groups[0]:
                rows.append((name, row["sampler"], str(row["steps"] or ""), str(row["nfe"] or ""), str(row["images"]),
                             *cells))  # fmt: skip
    return rows


def transport_rows(groups: list[list[Record]]) -> list[tuple[str, ...]]:
    rows = [("", "space", "E‖x_T − x_0‖² / d", "optimal / d", "cost / optimal", "samples")]
    for found in groups:
        for space in ("data", "latent"):
            costs = [f.measures["transport"][space] for f in found]
            cells = [
                shown(*over_seeds([c[key] for c in costs], costs[0][f"{key}_standard_error"]))
                for key in ("cost_per_dimension", "optimal_per_dimension", "ratio")
            ]
            rows.append((found[0].group, space, *cells, str(costs[0]["samples"])))
    return rows


def error_rows(groups: list[list[Record]]) -> list[tuple[str, ...]]:
    """Prior, discretization and estimation error; see :func:`indm.evaluation.sampling_error.sampling_errors`."""
    rows = [("", "term", "measured as", "value")]
    for found in groups:
        for term, what, values, alone in error_terms([f.measures["errors"] for f in found]):
            rows.append((found[0].group, term, what, shown(*over_seeds(values, alone), digits=4)))
    return rows


def error_terms(found: list[dict]) -> list[tuple[str, str, list[float], float]]:
    """Term, what it is, its value for each seed, and the standard error of one."""
    terms = [
        ("prior", "KL(law of z_T ‖ π), nats: at most", [e["prior"]["kl_above"] for e in found], math.nan),
        ("prior", "KL(law of z_T ‖ π), nats: at least", [e["prior"]["kl_below"] for e in found], math.nan),
        ("prior", "converged samples from π to those from true z_T of the same noise, RMS, model units",
         [e["prior"]["rms"] for e in found], found[0]["prior"]["rms_standard_error"]),
    ]  # fmt: skip
    for i, row in enumerate(found[0]["discretization"]):
        same = [e["discretization"][i] for e in found]
        terms.append(("discretization", f"{row['steps']} steps of {found[0]['sampler']} to converged, RMS, model units",
                      [r["rms"] for r in same], row["rms_standard_error"]))  # fmt: skip
    estimation = [e["estimation"] for e in found]
    for key, name in (("sliced_wasserstein", "sliced Wasserstein"), ("frechet", "Fréchet")):
        if estimation[0]["samples"][key] is not None:
            for part, what in (("samples", "converged samples from true z_T"), ("floor", "training data")):
                terms.append(("estimation", f"{name}, {what} to test data", [e[part][key] for e in estimation],
                              estimation[0][part][f"{key}_standard_error"]))  # fmt: skip
    if "kl" in estimation[0]:
        terms.append(("estimation", "½∫g²E‖s_θ − ∇log p_t‖² dt by the bound, nats",
                      [e["kl"]["nats"] for e in estimation], estimation[0]["kl"]["standard_error"]))  # fmt: skip
    if "curve" in estimation[0]:
        terms.append(("estimation", "the same, measured where the true score is resolved, nats",
                      [e["curve"]["integral"] for e in estimation],
                      estimation[0]["curve"]["integral_standard_error"]))  # fmt: skip
    return terms
