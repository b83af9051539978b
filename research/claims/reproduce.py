"""Train INDM, its linear twin and the other baselines at equal seconds, and judge every claim.

The claims are :data:`research.claims.claims.CLAIMS` and the plan's own. What they need is trained and measured in
units (:mod:`research.claims.units`), each with the steps that its budget allows (:mod:`research.claims.costs`).
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm.auto import tqdm

import indm
from indm.files import atomic
from indm.workbench.data.base import Data
from indm.workbench.evaluation.compare import conclusions, with_error
from indm.workbench.evaluation.extractor import Extractor
from indm.workbench.evaluation.methods import are_equal
from indm.workbench.evaluation.page import Page
from indm.workbench.evaluation.plots import colours_of
from indm.workbench.evaluation.records import Record, Setup, record_of
from indm.workbench.evaluation.report import Sections
from indm.workbench.runs.devices import LOCK, on_cpu, run_lock
from indm.workbench.runs.folder import end_of
from indm.workbench.runs.provenance import provenance, weights_hash
from research.claims.claims import Evidence, family_of
from research.claims.control import CONTROL_DATA
from research.claims.costs import measure_budget
from research.claims.plan import PLAN, Budget, Plan, claims_of, family_of_plan, measurements_of, run_folder
from research.claims.studies import STUDIES, VARIANTS
from research.claims.units import material_of, run_units
from research.claims.verdicts import (
    CHECK_HEADER,
    HEADER,
    ClaimCheck,
    Judged,
    Verdict,
    as_json,
    cells,
    check_cells,
    judge,
    markdown,
)
from research.flow_analysis.plots import add_flow
from research.measurements import MEASUREMENTS
from research.sampling_error.page import add_errors


@dataclass(frozen=True)
class Section:
    """A data set's part of the page: its data and the records of its runs, by variant."""

    data: str
    material: Data
    extractor: Extractor | None
    records: dict[str, list[Record]]

    @property
    def all_records(self) -> list[Record]:
        return [record for group in self.records.values() for record in group]


def reproduce(out: Path, plan: Plan, *, jobs: int | None = None, progress: bool = True) -> list[Verdict]:
    """Do what is left of a reproduction, and write its report.

    Args:
        out: folder for the runs, ``index.html`` with its PNGs, ``claims.json`` and ``claims.md``.
        plan: data sets, seeds, and whether the budget is the small one.
        jobs: runs side by side; default one for each core, or one where there is a GPU.
        progress: show bars.

    Returns:
        The verdicts, by claim.

    Raises:
        ValueError: ``out`` holds something else, or another reproduction.
        RuntimeError: a unit failed.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    check_out(out, plan)
    jobs = jobs or (os.cpu_count() or 1 if on_cpu() else 1)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with indm.trust(__package__), run_lock(out):
        claims_of(plan)  # a mistake in their names is found now
        budget = prepare(out, plan, threads, progress)
        run_units(out, plan, jobs, threads, progress)
        return write_report(out, budget, progress)


def check_out(out: Path, plan: Plan) -> None:
    """ValueError where ``out`` holds something else than a reproduction, or one of another plan."""
    names = {entry.name for entry in out.iterdir()} if out.exists() else set()
    if PLAN not in names and not names <= {*plan.data, LOCK}:  # it may have been killed before it had a plan
        raise ValueError(f"{out} exists and holds something else than a reproduction: use another --out")
    read_budget(out, plan)


def read_budget(out: Path, plan: Plan) -> Budget | None:
    """The budget in ``out``, None where there is none; ValueError where it is that of another plan."""
    budget = Budget.load(out)
    if budget is not None and budget.plan != plan:
        raise ValueError(
            f"{out} holds another reproduction, {asdict(budget.plan)}; continue that one, or use another --out"
        )
    return budget


def prepare(out: Path, plan: Plan, threads: int, progress: bool) -> Budget:
    """The budget in ``out``; where there is none, it is measured and saved."""
    budget = read_budget(out, plan)
    if budget is None:
        for data in tqdm(plan.data, desc="extractors", disable=not progress):
            material_of(out, data)
        budget = measure_budget(plan, threads, progress)
        budget.save(out)
    if budget.family != family_of_plan(plan):
        raise ValueError(
            f"{out / PLAN} states another family of tests than this version of indm judges: use the version that made "
            "it, or another --out"
        )
    return budget


def write_report(out: Path, budget: Budget, progress: bool = True) -> list[Verdict]:
    """Judge the claims by the runs in ``out``, all of which must be there, and write the page and the tables."""
    sections = [gather(out, budget, data) for data in tqdm(budget.plan.data, desc="records", disable=not progress)]
    verdicts, checks = verdicts_of(sections, budget), checks_of(sections, budget)
    tables = {HEADER: list(map(cells, verdicts)), CHECK_HEADER: list(map(check_cells, checks))}
    page = Page("INDM: the paper's claims, measured")
    page.conclude(conclusion_of(verdicts))
    for section in sections:
        page.conclude([f"{section.data}, {line}" for line in conclusions(section.all_records)])
    page.text(budget.text())
    page.heading("Claims")
    page.table([("claim", "what is claimed"), *((claim.name, claim.sentence) for claim in claims_of(budget.plan))])
    for title, (header, rows) in zip(("Verdicts", "Checks"), tables.items(), strict=True):
        page.heading(title)
        page.table([header, *rows])
    for section in tqdm(sections, desc="figures", disable=not progress):
        page.heading(section.data, level=1)
        prefix = f"{section.data}-"
        records, colours = section.all_records, colours_of(VARIANTS)
        added = Sections(page, out, records, section.material, section.extractor, colours, prefix)
        added.add_all()
        add_errors(added)
        add_flow(added)
    page.write(out / "index.html")
    weights = {str(r.folder): weights_hash(r.folder) for section in sections for r in section.all_records}
    made_by = provenance(None, weights)  # the seed of a run is the name of its folder
    rows_of = {"verdicts": list(map(as_json, verdicts)), "checks": list(map(as_json, checks))}
    numbers = {"plan": asdict(budget), "provenance": made_by, **rows_of}
    atomic.json_object(out / "claims.json", numbers)
    atomic.text(out / "claims.md", "\n".join(markdown(header, rows) for header, rows in tables.items()))
    return verdicts


def conclusion_of(verdicts: Sequence[Verdict]) -> list[str]:
    """How many differences have which verdict, and which those are that were decided."""
    words = [v.verdict for v in verdicts]
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    paragraphs = [f"Of {len(words)} differences that the claims name: {counts}."]
    for word in ("reproduced", "opposite"):
        rows = [
            f"{v.claim}, {v.data}, {v.quantity} ({with_error(v.difference, v.standard_error)})"
            for v in verdicts
            if v.verdict == word
        ]
        paragraphs += [f"{word.capitalize()}: {'; '.join(rows)}."] if rows else []
    return paragraphs


def gather(out: Path, budget: Budget, data: str) -> Section:
    """The records of all runs of a data set in the order of seeds, their seconds by what a step costs."""
    material, extractor = material_of(out, data)
    claims = claims_of(budget.plan)

    def record(variant: str, seed: int) -> Record:
        folder = run_folder(out, data, variant, seed)
        setup = Setup(material, extractor, budget.plan.options(data, seed), False, MEASUREMENTS)
        made = record_of(folder, variant, setup, measurements_of(claims, variant, seed))
        return replace(made, cost=budget.seconds_per_step[data][variant])

    seeds, variants = budget.plan.seeds_of(data), STUDIES[data].variants
    return Section(data, material, extractor, {v: [record(v, seed) for seed in seeds] for v in variants})


def verdicts_of(sections: Sequence[Section], budget: Budget) -> list[Verdict]:
    """A verdict on every difference of the family."""
    by_data = {section.data: section for section in sections}
    variants = {data: tuple(section.records) for data, section in by_data.items()}
    family = []
    for claim, data, row in family_of(claims_of(budget.plan), variants):
        left, right = pair = [by_data[data].records[name] for name in row.variants]
        comparison = row.measure(Evidence(data, (left, right), *budget.log_cost[data]))
        steps = [[end_of(record.folder)["steps"] for record in group] for group in pair]
        costs = [budget.seconds_per_step[data][name] for name in row.variants]
        comparable = are_equal(n * cost for runs, cost in zip(steps, costs, strict=True) for n in runs)
        family.append(Judged(claim.name, data, row.shown, comparison, (steps[0][0], steps[1][0]), comparable))
    return judge(family)


def checks_of(sections: Sequence[Section], budget: Budget) -> list[ClaimCheck]:
    """The controls of all claims, and their checks on every data set, in the order of the claims' names."""
    checks = []
    for claim in sorted(claims_of(budget.plan), key=lambda claim: claim.name):
        checks += [ClaimCheck(claim=claim.name, data=CONTROL_DATA, **vars(check)) for check in claim.control()]
        for section in sections:
            pair = section.records["indm"], section.records["linear"]
            found = claim.checks(Evidence(section.data, pair))
            checks += [ClaimCheck(claim=claim.name, data=section.data, **vars(check)) for check in found]
    return checks
