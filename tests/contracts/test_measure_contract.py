"""What every measure of :func:`indm.evaluate` must do, one that a user writes included."""

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from closed_form import gaussian, normal_log_prob

import indm
from indm.dequantization import from_data
from indm.evaluation.measures import Estimate, Measure
from indm.evaluation.report import unconverged
from indm.flows import Identity

N = 12


@dataclass(frozen=True, kw_only=True)
class Exact(Measure):
    """−log p of data N(mean, variance) in closed form: all that a user writes for a new measure."""

    kind = "exact"
    variance: float = 1.0

    @property
    def title(self):
        return f"exact, variance {self.variance:g}"

    def calls(self, dims):
        return 0.0

    def estimate(self, model, raw, reference, generator):
        x, log_q = from_data(model, raw, generator=generator)
        nats = -normal_log_prob(x.double(), torch.zeros(1), torch.tensor(self.variance).double())
        return Estimate.of(nats, None, log_q, {})


MEASURES = {
    "bound": (indm.Bound(times=2), indm.Bound(times=2, examples=4)),
    "nll": (indm.NLL(steps=8), indm.NLL(steps=8, examples=4)),
    "weighted": (indm.WeightedNLL(draws=2), indm.WeightedNLL(draws=2, examples=4)),
    "few steps": (indm.SamplerBound(steps=4), indm.SamplerBound(steps=4, examples=4)),
    "of a user": (Exact(variance=2.0), Exact(variance=2.0, examples=4)),
}


@pytest.fixture(scope="module")
def model():
    return indm.INDM(Identity(), gaussian("vp"), indm.Scaling(1.0, 2.0), (2,))


def evaluated(model, measures):
    raw = 1 + 2 * torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
    return indm.evaluate(model, raw, measures, batch_size=5, progress=False)


@pytest.fixture(scope="module", params=MEASURES)
def case(request, model):
    """A measure, the same of the first four examples, and what an evaluation by it found."""
    whole, of_four = MEASURES[request.param]
    return whole, of_four, evaluated(model, [whole])


def test_its_number_is_the_mean_of_its_examples(case):
    measure, _, found = case
    nats = found.nats[measure.kind]
    mean, error = found.mean(measure.kind, "nats")
    assert nats.shape == (N,) and found.report.images == {measure.kind: N}
    assert mean == pytest.approx(nats.mean().item())
    assert error == pytest.approx(nats.std().item() / N**0.5)


def test_it_is_printed_with_its_title(case):
    measure, _, found = case
    mean, error = found.mean(measure.kind, "nats")
    row = next(line for line in str(found).splitlines() if line.startswith(measure.title))
    assert row.removeprefix(measure.title).split()[:3] == [str(N), f"{mean:.4f}", f"{error:.4f}"]


def test_it_is_saved_read_and_subtracted(case, tmp_path):
    measure, _, found = case
    found.save(tmp_path)
    again = indm.Likelihoods.load(tmp_path)
    assert again.report == found.report and str(again) == str(found)
    entries = json.loads((tmp_path / "evaluation.json").read_text())[measure.kind]
    assert entries["with_reconstruction"]["nats"] == found.mean(measure.kind, "nats")[0]
    assert again - found == {measure.kind: (0.0, 0.0)}


def test_it_is_computed_for_the_first_examples_alone(case, model):
    measure, of_four, _ = case
    few = evaluated(model, [of_four])
    assert few.report.images == {measure.kind: 4}
    with pytest.raises(ValueError, match="examples of"):
        evaluated(model, [type(measure)(**vars(measure) | {"examples": 1})])


def test_a_measure_of_a_user_is_compared_with_the_bound(model):
    """At the exact score the closed form is the bound's own expectation."""
    score = gaussian("vp")
    raw = 1 + 2 * score.sample(400, torch.Generator().manual_seed(0)).float()

    @dataclass(frozen=True, kw_only=True)
    class OfScore(Exact):
        def estimate(self, model, raw, reference, generator):
            x, log_q = from_data(model, raw, generator=generator)
            nats = -normal_log_prob(x.double(), score.mean, score.variance)
            return Estimate.of(nats, None, log_q, {})

    found = indm.evaluate(model, raw, [indm.Bound(times=8), OfScore()], progress=False)
    mean, error = found.mean("nelbo", "nats")
    assert mean == pytest.approx(found.mean("exact", "nats")[0], abs=error)


def test_a_users_measure_may_state_its_solvers_error(model):
    @dataclass(frozen=True, kw_only=True)
    class Solved(Exact):
        kind = "of-a-user"
        allowed: float | None = None

        def estimate(self, model, raw, reference, generator):
            estimate = super().estimate(model, raw, reference, generator)
            error = torch.linspace(0, 1, len(raw)).double()
            return replace(estimate, solver_error=error, nll_error=self.allowed, nfe=3)

    (found,) = evaluated(model, [Solved()]).report.measured.values()
    assert (found.unconverged, found.nfe) == (None, 3)
    asked = evaluated(model, [Solved(allowed=0.25)]).report
    assert asked.measured["of-a-user"].unconverged == sum(
        error > 0.25 * 2 * math.log(2)
        for batch in (5, 5, 2)
        for error in torch.linspace(0, 1, batch)
    )
    (line,) = unconverged(asked)
    assert "above 0.25 bits/dim in" in line


@pytest.mark.parametrize("taken", ["images", "seed", "unit"])
def test_a_measure_may_not_take_the_place_of_a_setting(taken):
    with pytest.raises(ValueError, match=f"kind of Taken must not be .* got '{taken}'"):

        class Taken(Exact):
            kind = taken
