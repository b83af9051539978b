"""Other libraries' diffusions and flows beside INDM: Fréchet distance after the same seconds of one thread.

    pip install denoising-diffusion-pytorch azula torchcfm pot torchdyn
    python -m research.peers digits fashion-mnist-16      # whatever has no record yet, then the table
    python -m research.peers digits --table

Each has its library's U-Net of 32 channels and the recipe's levels, a batch of 128, Adam in float32, an average of the
weights, and its usual objective and sampler, in 50 evaluations. Each is trained at two rates, its library's own and
1e-3, and the better one counts. Each makes as many steps as cost what a training of ``research.quality`` costs, whose
records give INDM's rows; costs of a step are measured in turns, with nothing else running. None of the others states a
likelihood.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from indm.model import count_parameters
from indm.training import EMA
from indm.workbench.data.base import Data
from indm.workbench.data.examples import loader
from research.lab.costs import costs_in_turns, step_of
from research.lab.trainings import BUDGETS, Training, data_of
from research.markdown import in_table
from research.quality import SAMPLES, from_training
from research.records import RECORDS, Records, made_by

BATCH, EVALUATIONS, DECAY = 128, 50, 0.99
LEVELS = {"digits": (1, 2), "fashion-mnist-16": (1, 2, 2)}
OURS = ("unet, the recipe's", "the score trained for samples")


class Peer(NamedTuple):
    """A model to train, its loss on images in [−1, 1], and samples of a model like it."""

    model: nn.Module
    loss: Callable[[Tensor], Tensor]
    sample: Callable[[nn.Module, int], Tensor]


def denoising_diffusion(shape: tuple[int, ...], levels: tuple[int, ...]) -> Peer:
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    net = Unet(dim=32, dim_mults=levels, channels=shape[0])
    model = GaussianDiffusion(net, image_size=shape[1:], sampling_timesteps=EVALUATIONS)
    return Peer(model, lambda x: model((x + 1) / 2), lambda average, n: 2 * average.sample(n) - 1)


def flow_matching(shape: tuple[int, ...], levels: tuple[int, ...]) -> Peer:
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
    from torchcfm.models.unet import UNetModel

    model = UNetModel(dim=shape, num_channels=32, num_res_blocks=1, channel_mult=levels, attention_resolutions="8")
    matcher = ConditionalFlowMatcher(sigma=0.0)

    def loss(x: Tensor) -> Tensor:
        t, x_t, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(x), x)
        return (model(t, x_t) - velocity).square().mean()

    def sample(average: nn.Module, n: int) -> Tensor:
        x, step = torch.randn(n, *shape), 1 / EVALUATIONS
        for i in range(EVALUATIONS):
            x = x + step * average(torch.full((n,), i * step), x)
        return x

    return Peer(model, loss, sample)


def azula(shape: tuple[int, ...], levels: tuple[int, ...]) -> Peer:
    from azula.denoise import KarrasDenoiser
    from azula.nn.layers import SineEncoding
    from azula.nn.unet import UNet
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Sequential(SineEncoding(64), nn.Linear(64, 128), nn.SiLU())
            widths = [32 * level for level in levels]
            self.net = UNet(shape[0], shape[0], hid_channels=widths, hid_blocks=[1] * len(widths), mod_features=128)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.net(x, self.embedding(t))

    model = KarrasDenoiser(Backbone(), VPSchedule())

    def sample(average: nn.Module, n: int) -> Tensor:
        sampler = DDIMSampler(average, steps=EVALUATIONS)
        return sampler(sampler.init((n, *shape)))

    return Peer(model, lambda x: model.loss(x, torch.rand(len(x))), sample)


PEERS: dict[str, tuple[Callable[[tuple[int, ...], tuple[int, ...]], Peer], float]] = {  # and its own rate
    "denoising-diffusion-pytorch": (denoising_diffusion, 1e-4),
    "torchcfm": (flow_matching, 2e-4),
    "azula": (azula, 1e-3),
}


def peer_of(name: str, data_name: str) -> Peer:
    torch.manual_seed(0)
    return PEERS[name][0](data_of(data_name, None).shape, LEVELS[data_name])


def training(peer: Peer, data: Data, rate: float) -> Iterator[nn.Module]:
    """The averaged model after each training step, without end."""
    optimizer, average = torch.optim.Adam(peer.model.parameters(), rate), EMA(peer.model, DECAY)
    batches = (loader(data.train, BATCH, shuffle=True, drop_last=True, epoch=epoch) for epoch in itertools.count())
    for step, raw in enumerate(itertools.chain.from_iterable(batches), start=1):
        optimizer.zero_grad()
        peer.loss(2 * raw.float() / (data.scaling.levels - 1) - 1).backward()
        optimizer.step()
        average.update(peer.model, step)
        yield average.model


def costs(data_name: str) -> dict[str, float]:
    """The cost of a step of each, relative to the linear diffusion, which is 1 in ``research.quality``, too."""
    data, unit = data_of(data_name, None), Training(data_name, "uniform", "identity", {}, 1)
    steps = {name: partial(next, training(peer_of(name, data_name), data, rate)) for name, (_, rate) in PEERS.items()}
    rows = costs_in_turns(steps | {"unit": step_of(unit.recipe())}, "unit")
    return {name: rows[name]["cost"] for name in PEERS}


def trained(name: str, data_name: str, rate: float, steps: int, extractor: Path) -> dict:
    """The record of a training: the Fréchet distance of samples from the training images."""
    data = data_of(data_name, None)
    peer = peer_of(name, data_name)
    average = next(itertools.islice(training(peer, data, rate), steps - 1, None))
    with torch.no_grad():
        x = peer.sample(average, SAMPLES).clamp(-1, 1)
    raw = ((x + 1) / 2 * (data.scaling.levels - 1)).round()
    about = {"steps": steps, "parameters": count_parameters(peer.model)}
    return about | from_training(raw, data, extractor) | made_by(0)


def table_of(o: argparse.Namespace, name: str) -> Records:
    return Records(o.records / f"{name}.csv")


def compare(o: argparse.Namespace, data_name: str) -> None:
    """Make the records that there are not yet."""
    of_a_step = table_of(o, "peers-costs").at(data=data_name).kept(lambda: costs(data_name))
    for name, (_, own) in PEERS.items():
        steps = round(BUDGETS[data_name] / of_a_step[name])
        for rate in dict.fromkeys((own, 1e-3)):
            cell = table_of(o, "peers").at(data=data_name, peer=name, rate=rate)
            cell.kept(lambda job=(name, data_name, rate, steps): trained(*job, o.extractor / data_name))
            print(data_name, name, rate, flush=True)


def table(records: Path, names: Sequence[str]) -> str:
    """Each library at the better of its two rates, and this project's trainings of the same seconds."""
    rows: list[tuple] = []
    for data in names:
        for peer in PEERS:
            made = Records(records / "peers.csv").at(data=data, peer=peer).rows()
            if made:
                best = min(made, key=lambda record: record["frechet"])
                rows.append((data, f"{peer}, rate {best['rate']:g}", *cells(best, best["parameters"])))
        ours = Records(records / "quality.csv").at(data=data).rows()
        for record in (row for name in OURS for row in ours if row["name"].startswith(name)):
            rows.append((data, f"indm, {record['name']}", *cells(record, sum(record["parameters"].values()))))
    return in_table("data", "what", "parameters", "steps", "Fréchet", rows=rows)


def cells(record: dict, parameters: int) -> tuple[str, int, str]:
    distance = f"{record['frechet']:.1f} ± {record['frechet_standard_error']:.1f}"
    return f"{parameters:,}", record["steps"], distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", choices=list(LEVELS))
    parser.add_argument("--extractor", type=Path, default=Path("runs/extractor"), help="folder of classifiers")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the tables")
    parser.add_argument("--table", action="store_true", help="of the records alone")
    o = parser.parse_args()
    torch.set_num_threads(1)
    for data in o.data:
        if not o.table:
            compare(o, data)
        print(table(o.records, (data,)))


if __name__ == "__main__":
    main()
