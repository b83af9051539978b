"""Bounds of −log P against a known entropy: small images of a discrete law, trained for real with each dequantization.

    python -m research.discrete_laws                       # whatever has no record yet, then the table
    python -m research.discrete_laws --only markov-17      # the cells whose name has that in it
    python -m research.discrete_laws --only none           # the table alone

A cell is a law (``research/known_laws.py``), a flow and a dequantization. It takes about a minute of one core, with the
larger network six: a training on 200,000 draws of the law, then all bounds of the same fresh images. Each image's bound
is compared with its own −log P, so that the difference from the entropy has no noise of the images' own. No bound may
be below the entropy by more than its error, and importance-weighted ones fall with the number of draws, each of which
is computed anew.

A cell is a row of ``discrete_laws.csv``. Killed and started again, it goes on.
"""

import argparse
import math
import tempfile
import time
from itertools import pairwise, product
from pathlib import Path

import torch

import indm
from indm.evaluation.statistics import mean_and_error
from indm.model import INDM, count_parameters
from indm.workbench.runs.provenance import weights_hash
from research.known_laws import DiscreteLaw, Independent, Markov, Mixture, bell, random_walk
from research.markdown import in_table
from research.records import RECORDS, Records, made_by

BLACK_AND_WHITE = 0.6 * bell(17, 8.5, 3.0) + torch.eye(17)[0] * 0.25 + torch.eye(17)[16] * 0.15
LAWS: dict[str, DiscreteLaw] = {
    "markov-17": Markov(0.4 * bell(17, 4.5, 1.6) + 0.6 * bell(17, 12.0, 1.8), random_walk(17, 1.5, 0.8), (1, 2, 2)),
    "mixture-17": Mixture(
        torch.tensor([0.5, 0.3, 0.2]), [Independent(bell(17, c, 1.6), (1, 2, 2)) for c in (4.5, 8.5, 12.5)]
    ),
    "independent-17": Independent(BLACK_AND_WHITE, (1, 2, 2)),
    "independent-256": Independent(bell(256, 120.0, 45.0), (1, 2, 2)),
    "markov-256": Markov(bell(256, 128.0, 35.0), random_walk(256, 25.0, 0.7), (1, 2, 2)),
    "mixture-256": Mixture(
        torch.tensor([0.6, 0.4]), [Independent(bell(256, c, 22.0), (1, 1, 2)) for c in (80.0, 170.0)]
    ),
}
SAYS = {
    "markov-17": "a chain along 2×2 pixels that starts at one of two levels",
    "mixture-17": "2×2 pixels, all dark, grey or bright",
    "independent-17": "2×2 independent pixels, a quarter of them black and a seventh white",
    "independent-256": "2×2 independent pixels, one bell of levels",
    "markov-256": "a chain along 2×2 pixels",
    "mixture-256": "two pixels, both dark or both bright",
}
FLOWS = {
    "linear": ({"name": "identity"}, {"steps": 1200}),
    "INDM": ({"name": "coupling"}, {"steps": 400, "flow_lr": 5e-3}),
    "elementwise": ({"name": "elementwise", "bins": 16}, {"steps": 600, "flow_lr": 1e-2}),
    "linear-larger": ({"name": "identity"}, {"steps": 4800}),
}
NETS = {"linear-larger": {"width": 96}}
LARGER = ("mixture-17",)  # laws of which no bound of the others comes within 0.01 bits/dim of the entropy
NOISES = {
    "uniform": {"name": "uniform"},
    "variational": {"name": "variational", "width": 16, "depth": 2},
    "truncated-normal": {"name": "research.noise:TruncatedNormal"},
}
TABLES = {
    "sde": {"name": "vp", "beta_max": 10.0, "eps": 3e-4},  # a shorter clock: less for the score to learn
    "net": {"name": "mlp", "width": 48, "depth": 2, "fourier": 2},
}
TRAINING = {
    "batch_size": 2048, "lr": 5e-3, "dequantization_lr": 1e-2, "decay": 0.5, "ema": 0.99, "mixed_precision": "no",
    "validate_every": 0.5, "checkpoint_every": 0.99,
}  # fmt: skip
DRAWS = (1, 2, 4, 8, 16, 32)
EXAMPLES, NELBO_EXAMPLES = 500, 4000


def cells() -> list[tuple[str, str, str]]:
    """Law, flow and noise of each cell, the most telling first; couplings need an even number of rows."""

    def is_one(law: str, flow: str, noise: str) -> bool:
        if flow == "linear-larger":
            return law in LARGER and noise != "truncated-normal"
        return flow != "INDM" or LAWS[law].shape[1] % 2 == 0

    all_cells = [(law, flow, noise) for flow, noise, law in product(FLOWS, NOISES, LAWS)]
    return [cell for cell in all_cells if is_one(*cell)]


def measured(law: DiscreteLaw, flow: str, noise: str, seed: int = 0) -> dict:
    """One training and all its bounds, minus the entropy, in bits of an entry, each with its standard error."""
    table, options = FLOWS[flow]
    recipe = TABLES | {"flow": table, "dequantization": NOISES[noise], "train": TRAINING | options | {"seed": seed}}
    recipe["net"] = recipe["net"] | NETS.get(flow, {})
    with indm.trust("research"), tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        if indm.train(recipe, f"{folder}/run", data=law.data(seed=seed))["interrupted"]:
            raise SystemExit("interrupted: the cell has no record")
        seconds = time.process_time() - start
        model, weights = INDM.load(f"{folder}/run"), weights_hash(Path(folder, "run"))
    raw = law.sample(NELBO_EXAMPLES, torch.Generator().manual_seed(seed + 1))
    solver = {"exact": True, "batch_size": 5000}
    measures = [indm.Bound(times=8), indm.NLL(examples=EXAMPLES, each=True, exact=True)]
    nats = indm.evaluate(model, raw, measures, batch_size=5000, progress=False, seed=seed).nats
    bounds = {kind: mean_and_error(law.excess(nats[kind], raw[: len(nats[kind])])) for kind in ("nelbo", "nll")}
    generator, some = torch.Generator().manual_seed(seed), raw[:EXAMPLES]
    for draws in DRAWS:
        report = indm.importance_bound(model, some, draws=draws, generator=generator, **solver)
        bounds[f"iw-{draws}"] = mean_and_error(law.excess(report.nats, some))
    return {
        "entropy_bits_per_dim": law.bits_per_dim(law.entropy),
        "bound_minus_entropy_bits_per_dim": bounds,
        "examples": {"nelbo": NELBO_EXAMPLES, "nll": EXAMPLES, "iw": EXAMPLES},
        "recipe": recipe,
        "parameters": count_parameters(model),
        "cpu_seconds_of_training": round(seconds, 1),
        "weights_sha256": weights,
        **made_by(seed),
    }


def read(made: Records) -> dict[tuple[str, str, str], dict]:
    """The records that there are."""
    found = {(row["law"], row["flow"], row["noise"]): row for row in made.rows()}
    return {cell: found[cell] for cell in cells() if cell in found}


def table(records: dict[tuple[str, str, str], dict]) -> str:
    """Markdown: a row for each cell, and under it whether the claims hold."""
    columns = ["NELBO", "NLL", *(f"IW {draws}" for draws in DRAWS)]
    rows = []
    for law in LAWS:
        for cell, record in sorted((c, r) for c, r in records.items() if c[0] == law):
            bounds = record["bound_minus_entropy_bits_per_dim"].values()
            numbers = (f"{value:.4f} ± {error:.4f}" for value, error in bounds)
            rows.append((f"{law} ({record['entropy_bits_per_dim']:.3f})", *cell[1:], *numbers))
    made = in_table("law (entropy)", "flow", "dequantization", *columns, rows=rows)
    return "\n".join([made, "", *claims(records), "", *(f"- {law}: {SAYS[law]}" for law in LAWS)]) + "\n"


def claims(records: dict[tuple[str, str, str], dict]) -> list[str]:
    """Sentences about the records: the lowest bound in errors, the best cell of each law, the steepest rise along K."""
    below, rises, best = [], [], {}
    for cell, record in records.items():
        bounds, name = record["bound_minus_entropy_bits_per_dim"], ", ".join(cell)
        below += [(value / error, f"{name}, {kind}") for kind, (value, error) in bounds.items()]
        curve = [bounds[f"iw-{draws}"] for draws in DRAWS]
        rises += [((m - f) / math.hypot(s, t), m - f, name) for (f, s), (m, t) in pairwise(curve)]
        best[cell[0]] = min(best.get(cell[0], (9.0, 0.0, "")), (*curve[-1], " with ".join(cell[1:])))
    if not records:
        return ["No records yet."]
    return [
        f"Lowest bound: {min(below)[0]:+.1f} standard errors from the entropy ({min(below)[1]}).",
        f"Largest rise from one K to the next: {max(rises)[1]:+.4f} bits/dim, {max(rises)[0]:.1f} standard errors "
        f"({max(rises)[2]}).",
        "Best of each law: " + "; ".join(f"{k} {v:.4f} ± {e:.4f} ({who})" for k, (v, e, who) in best.items()) + ".",
    ]


def best_cell(records: dict[tuple[str, str, str], dict], law: str, noise: str) -> tuple[str, str, str]:
    """The cell of a law and noise whose bound of most draws is lowest."""
    cells = [cell for cell in records if (cell[0], cell[2]) == (law, noise)]
    return min(cells, key=lambda cell: records[cell]["bound_minus_entropy_bits_per_dim"][f"iw-{DRAWS[-1]}"][0])


def best_table(records: dict[tuple[str, str, str], dict]) -> str:
    """The :func:`best_cell` of each law and noise: bounds above the entropy, bits/dim."""
    kinds = ("nelbo", "nll", "iw-1", f"iw-{DRAWS[-1]}")
    rows = []
    for law, noise in product(LAWS, NOISES):
        cell = best_cell(records, law, noise)
        bounds = records[cell]["bound_minus_entropy_bits_per_dim"]
        numbers = ("{:+.4f} ± {:.4f}".format(*bounds[kind]) for kind in kinds)
        rows.append((law, f"{records[cell]['entropy_bits_per_dim']:.3f}", noise, cell[1], *numbers))
    columns = ("law", "entropy", "noise", "best flow", "NELBO", "NLL", "1 draw", f"{DRAWS[-1]} draws")
    return in_table(*columns, rows=rows) + "\n\n" + "\n".join(f"- {claim}" for claim in claims(records))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name LAW.FLOW.NOISE has this in it")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = Records(options.records / "discrete_laws.csv")
    for law, flow, noise in cells():
        if options.only in f"{law}.{flow}.{noise}":
            made.at(law=law, flow=flow, noise=noise).kept(lambda cell=(LAWS[law], flow, noise): measured(*cell))
    print(table(read(made)))


if __name__ == "__main__":
    main()
