"""``indm.audit`` over the densities of libraries, as they are installed.

    pip install zuko normflows flow_matching sbi
    python -m research.audits                  # whatever has no record yet, then the table
    python -m research.audits --only zuko      # the densities whose name has that in it

Each library fits points of a known law, eight Gaussians on a ring, by its own training, or a posterior. What is not
installed is skipped with a line.
"""

import argparse
import importlib.metadata
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import indm
from research.markdown import in_table
from research.records import RECORDS, Records, Row, made_by

ANGLES = torch.arange(8) * torch.pi / 4
CENTRES = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
LAW = MixtureSameFamily(Categorical(torch.ones(8)), Independent(Normal(CENTRES, 0.3 * torch.ones(8, 2)), 1))
STEPS, BATCH, RATE = 1_000, 256, 3e-3
ZUKO = ("NICE", "MAF", "NSF", "NAF", "SOSPF", "GF", "BPF", "CNF")


@dataclass
class Density:
    """Input of the audit: log p and draws, the law that was fitted, and parameters to differentiate in."""

    log_prob: Callable[[Any], Any]
    sample: Callable[[int], Any]
    law: Any = LAW
    parameters: list[Tensor] = field(default_factory=list)


def descent(
    module: nn.Module, loss: Callable[[Tensor], Tensor], steps: int = STEPS, after: Callable[[], None] = lambda: None
) -> None:
    """Adam on fresh points of the law; ``after`` each step."""
    optimizer = torch.optim.Adam(module.parameters(), RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(LAW.sample((BATCH,))).backward()
        optimizer.step()
        after()
    module.eval()


def of_zuko(name: str) -> Density:
    import zuko

    flow = getattr(zuko.flows, name)(2)
    descent(flow, lambda x: -flow().log_prob(x).mean(), STEPS // 10 if name == "CNF" else STEPS)
    return Density(
        lambda x: flow().log_prob(x), lambda n: flow().sample((n,)).detach(), parameters=[*flow.parameters()]
    )


def of_normflows(name: str) -> Density:
    import normflows as nf

    after = lambda: None  # noqa: E731
    if name == "residual flow":
        after = lambda: nf.utils.update_lipschitz(flow, 5)  # noqa: E731  # as the library's examples do
        nets = [nf.nets.LipschitzMLP([2, 64, 64, 2], init_zeros=True, lipschitz_const=0.9) for _ in range(4)]
        steps = [nf.flows.Residual(net, reduce_memory=False) for net in nets]
    elif name == "spline coupling":
        steps = [nf.flows.CoupledRationalQuadraticSpline(2, 2, 64, reverse_mask=bool(i % 2)) for i in range(4)]
    else:
        nets = [nf.nets.MLP([1, 64, 64, 2], init_zeros=True) for _ in range(8)]
        steps = [
            part
            for net in nets
            for part in (nf.flows.AffineCouplingBlock(net, scale_map="sigmoid"), nf.flows.Permute(2, mode="swap"))
        ]
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(2, trainable=False), steps)
    descent(flow, flow.forward_kld, after=after)
    learned = [p for key, p in flow.named_parameters() if not key.endswith(("geom_p", "lamb"))]  # lengths of series
    return Density(flow.log_prob, lambda n: flow.sample(n)[0].detach(), parameters=learned)


class Velocity(nn.Module):
    """A velocity of points, called as (x, t)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([x, torch.as_tensor(t).to(x).expand(len(x))[:, None]], 1))

    def loss(self, x: Tensor) -> Tensor:
        """The loss of flow matching, along straight lines from N(0, I) at t = 0."""
        noise, t = torch.randn_like(x), torch.rand(len(x))
        return (self(t[:, None] * x + (1 - t[:, None]) * noise, t) - x + noise).square().mean()


def of_flow_matching(exact: bool) -> Density:
    from flow_matching.solver import ODESolver

    velocity = Velocity()
    descent(velocity, velocity.loss, 3 * STEPS)
    solver = ODESolver(velocity_model=velocity)
    options: dict[str, Any] = {"method": "dopri5", "step_size": None, "atol": 1e-6, "rtol": 1e-6}
    base = Independent(Normal(torch.zeros(2), 1.0), 1).log_prob

    def log_prob(x: Tensor) -> Tensor:
        return solver.compute_likelihood(x, base, exact_divergence=exact, enable_grad=True, **options)[1]

    def sample(n: int) -> Tensor:
        return solver.sample(torch.randn(n, 2), **options)

    return Density(log_prob, sample, parameters=[*velocity.parameters()])


def of_ours(name: str) -> Density:
    if name == "DensityEstimator":
        fit = indm.DensityEstimator(max_seconds=30, random_state=0).fit(LAW.sample((5_000,)).numpy())
        return Density(fit.score_samples, fit.sample)
    velocity = Velocity()
    descent(velocity, velocity.loss, 3 * STEPS)
    model = indm.from_denoiser(velocity, predicts="velocity", path="linear-reversed", shape=(2,))
    return Density(
        partial(model.log_prob, steps=64), lambda n: indm.sample_with_log_prob(model, n)[0],
        parameters=[*velocity.parameters()],
    )  # fmt: skip


def of_sbi(name: str) -> Density:
    """p(θ | x) at one x, of x = |θ| + noise and θ in a box, whose ends the posterior touches."""
    from sbi.inference import NPE
    from sbi.utils import BoxUniform

    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((5_000,))
    inference = NPE(prior, density_estimator=name, show_progress_bars=False)
    inference.append_simulations(theta, theta.abs() + 0.2 * torch.randn(5_000, 2)).train(max_num_epochs=40)
    posterior = inference.build_posterior().set_default_x(torch.tensor([[0.9, 0.5]]))
    log_prob = partial(posterior.log_prob, track_gradients=True)
    return Density(log_prob, lambda n: posterior.sample((n,), show_progress_bars=False), law=None)


def of_sklearn(name: str) -> Density:
    x = LAW.sample((5_000,)).numpy()
    if name == "kernel density":
        density = KernelDensity(bandwidth=0.15).fit(x)
        return Density(density.score_samples, density.sample)
    mixture = GaussianMixture(8, random_state=0).fit(x)  # it draws one component after the other
    return Density(mixture.score_samples, lambda n: np.random.default_rng(0).permutation(mixture.sample(n)[0]))


def densities() -> Iterator[tuple[str, str, Callable[[], Density]]]:
    """Libraries, densities, and what makes each."""
    for name in ZUKO:
        yield "zuko", name, partial(of_zuko, name)
    for name in ("affine coupling", "spline coupling", "residual flow"):
        yield "normflows", name, partial(of_normflows, name)
    yield "flow_matching", "compute_likelihood", partial(of_flow_matching, False)
    yield "flow_matching", "compute_likelihood, exact_divergence", partial(of_flow_matching, True)
    for name in ("maf", "nsf"):
        yield "sbi", f"NPE, {name}", partial(of_sbi, name)
    for name in ("mixture", "kernel density"):
        yield "scikit-learn", name, partial(of_sklearn, name)
    for name in ("DensityEstimator", "from_denoiser"):
        yield "indm", name, partial(of_ours, name)


def row_of(make: Callable[[], Density]) -> Row:
    torch.manual_seed(0)
    start = time.process_time()
    density = make()
    found = indm.audit(density.log_prob, density.sample, density.law, parameters=density.parameters)
    failed = {row.check: f"{row.value:.3g} ± {row.error:.1g}" for row in found.rows if row.passed is False}
    return {
        "checks": sum(row.passed is not None for row in found.rows), "failed": failed,
        "cpu_seconds": round(time.process_time() - start),
    }  # fmt: skip


def study(made: Records, only: str = "") -> None:
    """A row for each density whose library is installed."""
    for library, name, make in densities():
        if only not in f"{library} {name}":
            continue
        try:
            version = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            print(f"{library} {name} is skipped: {library} is not installed")
            continue
        table = made.at(library=library, density=name)
        row = table.kept(lambda make=make, version=version: row_of(make) | {"version": version} | made_by(0))  # type: ignore[misc]
        print(library, name, row["failed"], row["cpu_seconds"], flush=True)


def table(rows: list[Row]) -> str:
    """Checks made, and those that failed, with value and error."""
    lines = []
    for row in sorted(rows, key=lambda row: (row["library"], row["density"])):
        failed = [f"{check}: {value}" for check, value in row["failed"].items()]
        name = f"{row['library']} {row['version']}" if row["library"] != "indm" else "indm"
        lines.append((name, row["density"], row["checks"], "; ".join(failed) or "none"))
    return in_table("library", "density", "checks", "failed", rows=lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", help="part of a library and density's name")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    made = Records(RECORDS / "audits.csv")
    study(made, options.only)
    print(table(made.rows()))


if __name__ == "__main__":
    main()
