"""Laws of known density with a network that begins anew where it dies: joint.md, *When the network is heard*.

python -m research.verdict heard     # half an hour of one core; it goes on where it stopped
"""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from indm import INDM, flow_loss
from indm.evaluation.statistics import mean_and_error
from indm.flows import Flow
from indm.nets import MLP, Zero
from indm.score import ScoreModel
from indm.sde import VPSDE
from indm.tables.mixture import best_mixture
from indm.training import progress_until
from research.lab.seeds import over_seeds, paired
from research.markdown import in_table, with_error
from research.records import RECORDS, Records, Row, made_by
from research.verdict import joint
from research.verdict.dial import Rows, descended, flow_of, gaps
from research.verdict.silenced import Attempt, mapped, restarted, without_c

TABLE = Records(RECORDS / "verdict-heard.csv")
SEEDS = (3, 4, 5)
FLOW_RATES, RATE, ROWS = (2e-2, 2e-3), 1e-3, 128
COMPONENTS, VALID, LOOKED_AT = 64, 2_400, 256
MIXTURE, HEARD = "mixture behind the flow", "INDM, flow first, restarts"
OF_JOINT = {
    "linear": "linear",
    "flow alone": "flow alone, rates of flow first",
    "INDM, flow first": "INDM, flow first",
}


def flow_fitted(x: Tensor, seconds: float, generator: torch.Generator) -> Flow:
    """A coupling flow after its own likelihood, at two rates for half of the seconds each."""
    model = INDM(flow_of("coupling", x.shape[1]), ScoreModel(Zero(), VPSDE()), shape=x.shape[1:])
    for rate in FLOW_RATES:
        shares = progress_until(deadline=time.process_time() + seconds / 2, clock=time.process_time)
        given = (flow_loss, x, joint.ROWS, generator)
        descent = descended(model, (rate, 0.0), shares, *given)
        model.load_state_dict(descent.ema.model.state_dict())
    return model.flow


def behind(flow: Flow, law: str, seed: int) -> Iterator[tuple[str, Row]]:
    """The rows of the mixture and of the network behind a flow, which stays as it is."""
    rows = Rows.of(joint.LAWS[law], seed)
    z = mapped(flow, without_c(rows.train))[0]
    seconds, d = joint.SECONDS / 2, z.shape[1]

    pairs = [
        (part.double().numpy(), part[:, :0].double().numpy()) for part in (z[VALID:], z[:VALID])
    ]
    mixture = best_mixture(*pairs, COMPONENTS, seed, time.perf_counter() + seconds)
    latents, nats = mapped(flow, without_c(rows.test))
    gain = mixture.log_prob(latents.double().numpy(), latents[:, :0].double().numpy())
    gain = torch.as_tensor(gain) - VPSDE().prior_log_prob(latents)
    gap, error = mean_and_error(nats + rows.log_prob - gain)
    yield MIXTURE, {"gap": gap, "error": error, "components": len(mixture.weight)}

    torch.manual_seed(seed)

    def begun(rate: float) -> Attempt:
        return Attempt(MLP((d,), width=128), without_c(z), rate, ROWS)

    attempt = restarted(begun, RATE, z[:: len(z) // LOOKED_AT], seconds)
    model = INDM(flow, attempt.descent.ema.model.score, shape=(d,))
    gap, error = gaps(model, rows)["nelbo"]
    yield HEARD, {"gap": gap, "error": error, "last_rate": attempt.rate}


def run(law: str, seed: int) -> None:
    """Write the rows of a law and a seed that are missing."""
    torch.set_num_threads(1)
    for name, variant in OF_JOINT.items():
        cell = TABLE.at(law=law, method=name, seed=seed)
        if not cell.rows():
            model, steps = joint.trained(joint.LAWS[law], variant, seed)
            gap, error = gaps(model, Rows.of(joint.LAWS[law], seed))["nelbo"]
            cell.add({"gap": gap, "error": error, "steps": steps} | made_by(seed))
    if TABLE.at(law=law, method=HEARD, seed=seed).rows():
        return
    torch.manual_seed(seed)
    x, generator = Rows.of(joint.LAWS[law], seed).train, torch.Generator().manual_seed(seed)
    flow = flow_fitted(x, joint.SECONDS / 2, generator).requires_grad_(False)
    for name, row in behind(flow, law, seed):
        TABLE.at(law=law, method=name, seed=seed).add(row | made_by(seed))


def main() -> None:
    for seed in SEEDS:
        for law in joint.LAWS:
            run(law, seed)


def markdown(table: Records) -> str:
    """Gaps in nats by law: mean and error over seeds."""
    lines = []
    for name in (*OF_JOINT, MIXTURE, HEARD):
        found = [
            [row["gap"] for row in table.at(law=law, method=name).rows()] for law in joint.LAWS
        ]
        lines.append((name, *(with_error(*over_seeds(g), ".3f") if g else "" for g in found)))
    return in_table("model", *joint.LAWS, rows=lines)


def differences(table: Records) -> str:
    """The INDM with restarts minus each other method, nats, paired by seeds."""
    lines = []
    for name in (*OF_JOINT, MIXTURE):
        cells = []
        for law in joint.LAWS:
            ours, theirs = (
                {row["seed"]: row["gap"] for row in table.at(law=law, method=method).rows()}
                for method in (HEARD, name)
            )
            seeds = sorted(ours.keys() & theirs.keys())
            if len(seeds) < 2:
                cells.append("")
                continue
            found = paired([ours[s] for s in seeds], [theirs[s] for s in seeds])
            cells.append(with_error(found.difference, found.standard_error, "+.3f"))
        lines.append((f"INDM with restarts − {name}", *cells))
    return in_table("difference", *joint.LAWS, rows=lines)
