"""``indm.evaluate``: its numbers against closed forms, what it repeats, shares, keeps and says."""

import json
import math
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from closed_form import SDES, GaussianScore, gaussian, normal_log_prob
from tqdm import tqdm

import indm
from indm.evaluation.evaluate import CALLS, draw_all, evaluate, moving
from indm.evaluation.mean_nll import RepeatableDraws
from indm.evaluation.measures import NLL, Bound, Estimate, Measure, SamplerBound
from indm.evaluation.report import Report, level_table
from indm.evaluation.statistics import number_of_draws
from indm.flows import Identity
from indm.flows.base import ExactFlow
from indm.likelihood import nll
from indm.model import INDM
from indm.number import Number
from indm.objective import nelbo
from indm.ode import OUT_OF_REACH
from indm.scaling import Scaling
from indm.sde.linear import VPSDE


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_a_number_of_draws_by_hand():
    """Draws = image effect + noise: the standard error is of the images' means, the noise what
    repeats can show.
    """
    n, repeats = 4000, 3
    effect, noise = (
        2.0 * torch.randn(n, generator=seeded(0)),
        0.5 * torch.randn(repeats, n, generator=seeded(1)),
    )
    number = number_of_draws((7 + effect + noise).double())
    assert number.mean == pytest.approx(7 + (effect + noise.mean(0)).mean().item(), rel=1e-6)
    total = math.sqrt(2.0**2 + 0.5**2 / repeats) / math.sqrt(n)
    assert number.standard_error == pytest.approx(total, rel=0.05)
    assert number.estimator_noise == pytest.approx(0.5 / math.sqrt(repeats * n), rel=0.05)


def test_a_number_in_a_file_has_both_units_and_its_errors():
    number = Number(2.0, 0.5, 0.25)
    content = number.content(10)
    assert [content[key] for key in ("nats", "nats_standard_error", "nats_estimator_noise")] == [
        2.0, 0.5, 0.25,
    ]  # fmt: skip
    bits = Number.read(content, "bits_per_dim")
    assert bits == number / (10 * math.log(2)) and Number.read(content) == number
    unknown = Number(2.0).content(10)
    assert unknown["nats_standard_error"] is None and len(unknown) == 4


def test_the_bound_of_few_steps_is_a_row_beside_that_of_the_sde():
    score, x = gaussian("vp", (3,)), torch.randn(400, 3, generator=seeded(0))
    model = INDM(Identity(), score)
    found = evaluate(model, x, [Bound(times=8), SamplerBound(steps=8, times=8)], progress=False)
    report, nats = found.report, found.nats
    terms = nelbo(model, x, times=64, ancestral=8, generator=seeded(1))
    row, noise = report.ancestral.with_reconstruction, terms.total.std().item() / 20
    wanted = pytest.approx(terms.total.mean().item(), abs=4 * row.estimator_noise + noise / 4)
    assert row.mean == wanted
    assert row.mean > report.nelbo.with_reconstruction.mean + 1
    assert nats["ancestral"].shape == (400,)
    lines = str(found).splitlines()
    assert (
        sum(line.startswith("NELBO of few steps, N = 8") for line in lines) == 2
        and "ε = 1e-05" in lines
    )


@pytest.mark.parametrize("groups", [None, torch.arange(10).repeat(20)])
def test_print_shows_each_number_with_its_error_and_how_many_examples_it_is_of(groups):
    model, raw, _ = grey_model(True)
    found = evaluate(
        model, raw, [Bound(), NLL(examples=20, steps=32)], groups=groups, progress=False
    )
    head, *lines = str(found).splitlines()
    assert head.split() == [
        "examples",
        "bits/dim",
        "±",
        "standard",
        "error",
        "estimator",
        "noise",
        "solver",
        "error",
    ]
    for name, kind, n in (("NELBO", "nelbo", 200), ("NLL (ODE)", "nll", 20)):
        (row,) = (line for line in lines if re.match(rf"{re.escape(name)} +\d", line))
        mean, error = found.mean(kind)
        assert row.removeprefix(name).split()[:3] == [str(n), f"{mean:.4f}", f"{error:.4f}"]
    assert any("over 10 groups" in line for line in lines) == (groups is not None)


def test_a_tolerance_out_of_reach_is_said_once():
    """Of many batches and repeats; a bound that is no likelihood hides nothing that comes after it."""

    def draw(job, repeat):
        warnings.warn(f"{OUT_OF_REACH} {job}{repeat}", RuntimeWarning, stacklevel=1)
        return Estimate.of(*torch.zeros(3, 2), {})

    jobs = [(measure(), 1.0) for measure in (Bound, NLL, NLL)]
    with pytest.warns(RuntimeWarning) as caught:
        draw_all(draw, jobs, 2, torch.nn.Identity(), progress=False, distributed=False)
    assert [str(w.message).removeprefix(OUT_OF_REACH) for w in caught] == [" 00", " 01", " 10"]


def test_the_bar_moves_as_the_network_is_called():
    """Also within a single job; it never passes the end of the job, and is there when the job is
    done.
    """
    network, places = torch.nn.Identity(), []
    with tqdm(total=10.0, disable=True) as bar:
        # as a bar that is shown counts
        bar.update = lambda amount: setattr(bar, "n", bar.n + amount)
        with moving(bar, network, 10.0, CALLS):
            for _ in range(3 * CALLS):
                network(torch.zeros(1))
                places.append(bar.n)
        assert bar.n == pytest.approx(10.0)
    assert places == sorted(places)
    assert 0 < places[0] < places[10] < 10.0
    assert places[-1] < 10.0


@pytest.mark.parametrize("grouped", [False, True])
def test_a_difference_of_evaluations_is_paired_over_examples_or_groups(tmp_path, grouped):
    """Saved, read again and subtracted, against the formula by hand; pairing takes away most of the
    spread.
    """
    x, groups = (
        2 * torch.randn(60, 2, generator=seeded(0)),
        torch.arange(60) // 3 if grouped else None,
    )
    models = [INDM(Identity(), gaussian("vp"), Scaling(0.0, scale), (2,)) for scale in (1.0, 1.1)]
    for name, model in zip("ab", models, strict=True):
        found = evaluate(model, x, [Bound(), NLL(each=True)], groups=groups, progress=False)
        found.save(tmp_path / name)
        again = indm.Likelihoods.load(tmp_path / name)
        assert again.report == found.report and str(again) == str(found)
        assert all(torch.equal(again.nats[key], value) for key, value in found.nats.items())
    a, b = (indm.Likelihoods.load(tmp_path / name) for name in "ab")
    paired = a - b
    assert paired.keys() == {"nelbo", "nll"}
    for kind, (mean, error) in paired.items():
        apart = (a.nats[kind] - b.nats[kind]).numpy()
        sums = (apart - apart.mean()).reshape(20, 3).sum(1) if grouped else apart - apart.mean()
        by_hand = math.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1)) / 60
        assert mean == pytest.approx(apart.mean()) and error == pytest.approx(by_hand)
        assert mean == pytest.approx(a.mean(kind, "nats")[0] - b.mean(kind, "nats")[0])
        assert error < 0.5 * math.hypot(a.mean(kind, "nats")[1], b.mean(kind, "nats")[1])


def test_the_fields_of_a_report_do_not_depend_on_the_measures(tmp_path):
    model, x = INDM(Identity(), gaussian("vp"), shape=(2,)), torch.randn(20, 2, generator=seeded(0))
    keys = []
    for measures in ([Bound()], [NLL(steps=8)], [Bound(), NLL(steps=8), SamplerBound(steps=4)]):
        evaluate(model, x, measures, progress=False).save(tmp_path)
        content = json.loads((tmp_path / "evaluation.json").read_text())
        keys += [
            set(content),
            *(set(content[kind]) for kind in ("nelbo", "nll", "ancestral") if content[kind]),
        ]
        assert [kind for kind in ("nelbo", "nll", "iw", "ancestral") if content[kind]] == [
            m.kind for m in measures
        ]
    # the report's, and those of the numbers of a measure
    assert len({frozenset(found) for found in keys}) == 2


def test_a_difference_needs_the_same_examples_seed_and_unit():
    model, x = INDM(Identity(), gaussian("vp"), shape=(2,)), torch.randn(20, 2, generator=seeded(0))
    of_levels = INDM(Identity(), gaussian("vp"), Scaling.images(4), (2,))

    def found(model=model, x=x, examples=None, **options):
        return evaluate(model, x, [Bound(examples=examples)], progress=False, **options)

    first = found()
    for other, said in (
        (found(examples=8), r"examples of nelbo in other must be 20, got 8"),
        (found(x=x + 1), "examples_sha256 of other must be '"),
        (
            found(seed=1),
            "seed of other must be 0, as in the evaluation that it is taken from, got 1",
        ),
        (found(of_levels, (x > 0).long()), "unit of other must be 'nats', .* got 'bits/dim'"),
    ):
        with pytest.raises(ValueError, match=said):
            first - other


@pytest.fixture
def interrupted_at(monkeypatch):
    """Ctrl-C when the NLL is drawn that many times, or when its corrections begin."""

    def patched(number):
        calls, estimate = [], NLL.estimate

        def estimate_or_stop(*arguments):
            calls.append(1)
            if len(calls) == number:
                raise KeyboardInterrupt
            return estimate(*arguments)

        def stop(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(NLL, "estimate", estimate_or_stop)
        if number is None:
            monkeypatch.setattr(RepeatableDraws, "solve", stop)

    return patched


@pytest.mark.parametrize("number, rows", [(2, None), (3, 40), (4, 40), (None, 100)])
def test_ctrl_c_keeps_what_is_done(interrupted_at, number, rows):
    """Batches of 40, two draws each: of the NLL the batches whose draws are all done, in few steps
    each.
    """
    model, x = (
        INDM(Identity(), gaussian("vp"), shape=(2,)),
        torch.randn(100, 2, generator=seeded(0)),
    )
    options = {"batch_size": 40, "progress": False}
    whole = evaluate(model, x, [Bound(), NLL(steps=16)], **options)
    interrupted_at(number)
    found = evaluate(model, x, [Bound(), NLL() if number is None else NLL(steps=16)], **options)
    assert found.report.interrupted and "interrupted: these are the examples" in str(found)
    assert found.report.images == {"nelbo": 100} | ({} if rows is None else {"nll": rows})
    assert torch.equal(found.nats["nelbo"], whole.nats["nelbo"])
    if rows == 40:
        assert torch.equal(found.nats["nll"], whole.nats["nll"][:40])
    assert ("nll" in found.nats) == (
        rows is not None
    ) and found.report.interrupted > whole.report.interrupted


def test_ctrl_c_before_anything_is_done_is_an_interruption(interrupted_at):
    interrupted_at(1)
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            INDM(Identity(), gaussian("vp"), shape=(2,)), torch.randn(9, 2), [NLL()], progress=False
        )


def test_the_bar_moves_by_what_a_draw_costs(monkeypatch):
    """A NELBO of four evaluations is a few percent of an NLL that is solved finely."""
    moved = {"NELBO": 0.0, "NLL": 0.0}

    class Bar(tqdm):
        def update(self, n=1):
            self.n += n
            moved[self.desc.removesuffix(": ")] += n / self.total

    monkeypatch.setattr("indm.evaluation.evaluate.tqdm", Bar)
    evaluate(
        INDM(Identity(), gaussian("vp"), shape=(2,)), torch.randn(30, 2), [Bound(), NLL(each=True)]
    )
    assert sum(moved.values()) == pytest.approx(1)
    assert moved["NELBO"] < 0.05


def test_evaluate_vectors():
    """Raw vectors: mean 100, deviation 50 in one feature. The entropy is that of the raw data; NLL
    draws have next to no noise of their own, so that its standard error is the spread of the data;
    the NELBO's draws have much.
    """
    score = gaussian("vp")
    scale, shift = torch.tensor([50.0, 0.1]), torch.tensor([100.0, -3.0])
    model = INDM(Identity(), score, Scaling(shift, scale))
    raw = score.sample(3000, seeded(0), dtype=torch.float32) * scale + shift
    measures = [Bound(), NLL(examples=400, each=True, nll_error=1e-4)]
    found = evaluate(model, raw, measures, batch_size=300, progress=False)
    report, samples = found.report, found.nats

    assert Report.read(json.loads(json.dumps(report.content()))) == report
    assert report.images == {"nelbo": 3000, "nll": 400} and report.dims == 2 and report.eps == 1e-5
    assert report.dequantization.startswith("none")
    assert {"nll_error", "divergence"} <= set(report.nll.settings) and report.nll.nfe > 0
    for kind, n in (("nelbo", 3000), ("nll", 400)):
        found_of_kind = report.measured[kind]
        for number, key in (
            (found_of_kind.with_reconstruction, kind),
            (found_of_kind.without_reconstruction, f"{kind}_without_reconstruction"),
        ):
            error = (samples[key].std() / math.sqrt(n)).item()
            assert samples[key].shape == (n,)
            assert number.mean == pytest.approx(samples[key].mean().item(), rel=1e-9)
            assert number.standard_error == pytest.approx(error, rel=1e-9)

    errors, largest = samples["nll_solver_error"], report.nll.largest_bits_per_dim
    stated = report.nll.with_reconstruction.solver_error
    assert errors.shape == (400,) and stated == pytest.approx(errors.mean().item())
    assert largest == pytest.approx(errors.max().item() / (2 * math.log(2)))

    std = score.variance.sqrt() * scale.double()
    truth = -normal_log_prob(raw.double(), score.mean * scale + shift, std**2)
    solved = report.nll.with_reconstruction
    assert (samples["nll"] - truth[:400]).mean().abs().item() < 2e-3
    assert solved.estimator_noise < 1e-3 * solved.standard_error
    assert solved.standard_error == pytest.approx(
        (truth[:400].std() / math.sqrt(400)).item(), rel=0.01
    )
    nelbo = report.nelbo.with_reconstruction
    difference = samples["nelbo"] - truth
    assert abs(difference.mean().item()) < 4 * difference.std().item() / math.sqrt(3000)
    assert nelbo.estimator_noise > 3 * solved.estimator_noise
    # Without the reconstruction: the entropy of z_ε, a little another number in model units.
    gap = report.nll.without_reconstruction.mean - solved.mean
    assert gap == pytest.approx(0.0, abs=0.01)


def grey_model(centered, levels=256):
    """A Gaussian over the grey levels around the middle, the same density of raw data in both
    conventions.
    """
    mean, std = torch.full((1, 4, 4), 0.55 * levels), torch.full((1, 4, 4), 0.08 * levels)
    scaling = Scaling.images(levels, centered)
    score = GaussianScore(
        VPSDE(), (mean - scaling.shift) / scaling.scale, (std / scaling.scale) ** 2
    )
    generator = seeded(7)
    raw = (
        (mean + std * torch.randn(200, 1, 4, 4, generator=generator))
        .floor()
        .clamp(0, levels - 1)
        .to(torch.uint8)
    )
    # −log ∫ over the cell is bounded by the mean of −log p over it: ((raw + ½ − m)² + 1/12)/2v, in
    # raw units.
    square = (raw.double() + 0.5 - mean.double()) ** 2 + 1 / 12
    nats = (
        (square / (2 * std.double() ** 2) + 0.5 * math.log(2 * math.pi) + std.double().log())
        .flatten(1)
        .sum(1)
    )
    return INDM(Identity(), score, scaling), raw, nats


@pytest.mark.parametrize("centered, levels", [(True, 256), (False, 17)])
def test_evaluate_grey_levels(centered, levels):
    """Bits/dim of the raw levels do not depend on the convention of scaling."""
    model, raw, nats = grey_model(centered, levels)
    found = evaluate(model, raw, [Bound(), NLL(exact=True, steps=32)], repeats=4, progress=False)
    report, samples = found.report, found.nats
    m = f"{levels * 2.0**-22:.3g}"
    assert (
        report.dequantization
        == f"uniform on [{m}, 1 − {m}], {levels} grey levels, its density counted"
    )
    difference = samples["nll"] - nats
    assert (
        abs(difference.mean().item()) < 4.5 * difference.std().item() / math.sqrt(200) + 16 * 1e-3
    )
    bits, _ = found.mean("nll")
    assert bits == pytest.approx(nats.mean().item() / (16 * math.log(2)), abs=0.01)
    # cells much narrower than the Gaussian: its differential entropy in grey levels
    if levels == 256:
        assert bits == pytest.approx(
            math.log2(0.08 * levels * math.sqrt(2 * math.pi * math.e)), abs=0.03
        )
    assert abs(found.mean()[0] - bits) < 0.5
    # Dequantization is drawn anew in every repeat: estimator noise that the NLL's report shows.
    noise = report.nll.with_reconstruction.estimator_noise
    # leading order
    per_pixel = (2 * (raw.double() + 0.5 - 0.55 * levels)) ** 2 / 12 / (4 * (0.08 * levels) ** 4)
    expected = math.sqrt(per_pixel.flatten(1).sum(1).mean().item() / (4 * 200))
    assert noise == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    "name, eps, own", [("vp", 0.6, 0.6), ("ve", 0.3, 0.3), ("vp", 0.6, 1e-5), ("ve", 0.3, 0.1)]
)
def test_evaluate_names_the_numbers_without_reconstruction(name, eps, own):
    """At an ε where it matters, the SDE's own or a raised one: the entropy of z_ε without the term,
    the data's and the known gap with it.
    """
    score = GaussianScore(
        SDES[name](eps=own), torch.tensor([0.2, -0.1]).double(), torch.tensor([0.05, 0.1]).double()
    )
    raw, n = score.sample(4000, seeded(0), dtype=torch.float32), 4000
    measures = [Bound(times=8), NLL()]
    report = evaluate(
        INDM(Identity(), score), raw, measures, eps=eps, progress=False, batch_size=n
    ).report
    assert report.eps == report.nll.settings["eps"] == eps and score.sde.eps == own
    variance = score.law(
        torch.tensor(eps, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    )[1]
    at_eps = 0.5 * (2 * math.pi * math.e * variance).log().sum().item()
    for kind in ("nelbo", "nll"):
        measured = report.measured[kind]
        for number, expected in (
            (measured.with_reconstruction, score.entropy() + score.bound_gap(eps)),
            (measured.without_reconstruction, at_eps),
        ):
            assert abs(number.mean - expected) < 4.5 * number.standard_error + 2e-3
            assert number.standard_error < 0.1
    assert abs(at_eps - score.entropy() - score.bound_gap(eps)) > 0.1


@pytest.mark.parametrize(
    "groups", [None, torch.arange(60).repeat(5), torch.zeros(300, dtype=torch.long)]
)
def test_evaluate_says_where_the_bound_lies(groups):
    """Terms and levels sum to the NELBO. Errors are of means of groups, which have equal sizes
    here.
    """
    model, raw, _ = grey_model(True)
    raw = raw.repeat(300 // len(raw) + 1, *[1] * (raw.ndim - 1))[:300]
    found = evaluate(model, raw, [Bound()], groups=groups, batch_size=128, progress=False)
    report, nats = found.report, found.nats
    assert Report.read(json.loads(json.dumps(report.content()))) == report
    # its fields do not depend on options
    assert report.groups == (None if groups is None else len(groups.unique()))
    assert report.network is report.codes is None and report.interrupted is False
    nelbo, levels = report.nelbo, nats["nelbo_by_noise_level"]
    by_level, terms = nelbo.by_noise_level, nelbo.terms
    assert levels.shape == (300, 8) and set(terms) == {
        "score",
        "reconstruction",
        "prior",
        "flow",
        "constant",
        "log_q",
    }
    difference = nelbo.with_reconstruction.mean - nelbo.without_reconstruction.mean
    assert terms["reconstruction"].mean == pytest.approx(difference, rel=1e-5)
    score = sum(level.number.mean for level in by_level)
    assert score == pytest.approx(terms["score"].mean, rel=1e-9)
    total = sum(term.mean for term in terms.values())
    assert total == pytest.approx(nelbo.with_reconstruction.mean, rel=1e-6)
    for level, own in zip(by_level, levels.T, strict=True):
        assert level.number.mean == pytest.approx(own.mean().item())
        means = (
            own
            if groups is None
            else torch.stack([own[groups == group].mean() for group in groups.unique()])
        )
        error = means.std().item() / math.sqrt(len(means)) if len(means) > 1 else None
        assert level.number.standard_error == (error and pytest.approx(error))
    ends = [noise for level in by_level for noise in level.noise]
    t = torch.tensor([model.sde.eps, 1.0]).double()
    assert [ends[0], ends[-1]] == pytest.approx((model.sde.sigma(t) / model.sde.alpha(t)).tolist())
    assert ends[1:-1:2] == ends[2::2] and np.diff(np.log(ends))[::2] == pytest.approx(
        np.log(ends[-1] / ends[0]) / 8
    )
    table, others = level_table(replace(report, unit="bits/dim"))
    assert (
        len(table.splitlines()) == 9
        and f"flow {terms['flow'].mean / report.dims / math.log(2):.4f} ± " in others
    )


def test_evaluate_repeats_and_pairs():
    model, raw, _ = grey_model(True)
    measures = [Bound(), NLL(steps=8)]
    runs = [
        evaluate(model, raw[:20], measures, seed=seed, batch_size=8, progress=False).nats
        for seed in (3, 3, 4)
    ]
    for key in runs[0]:
        assert torch.equal(runs[0][key], runs[1][key])
        assert not torch.equal(runs[0][key], runs[2][key])


class Noisy(ExactFlow):
    """The identity, with a draw from the generator as a stochastic log-determinant makes it."""

    def forward(self, x, *, generator=None):
        torch.randn(x.shape, generator=generator)
        return x, x.new_zeros(len(x))

    def inverse_step(self, z):
        return z


def test_models_compared_at_one_seed_share_dequantization_times_and_noise():
    """What evaluate promises for paired differences, for a flow that draws and one that does not."""
    model, raw, _ = grey_model(True)
    twin = INDM(Noisy(), model.score, model.scaling)
    measures = [Bound(), NLL(exact=True, steps=16)]
    one, two = (evaluate(m, raw[:20], measures, progress=False).nats for m in (model, twin))
    for kind in ("nelbo", "nll"):
        torch.testing.assert_close(one[kind], two[kind])
        without = f"{kind}_without_reconstruction"
        torch.testing.assert_close(one[without], two[without])


def test_evaluate_without_nll():
    model, raw, _ = grey_model(True)
    found = evaluate(model, raw, [Bound()], progress=False)
    assert (
        found.report.nll is None
        and "nll" not in found.nats
        and found.report.images == {"nelbo": len(raw)}
    )


def test_evaluate_checks_its_arguments():
    model, raw, _ = grey_model(True)
    with pytest.raises(ValueError, match="repeats must be at least 2"):
        evaluate(model, raw, repeats=1)
    with pytest.raises(ValueError, match=r"examples of Bound must be at least 2 .*, got 1"):
        evaluate(model, raw[:1])
    with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
        evaluate(model, raw, [NLL(probes=0)])
    for measures in (Bound(), [Bound], ["nll"]):  # as one may write them
        with pytest.raises(
            ValueError, match=r"measures must be a list of measures, got .*; \[indm\.Bound\(\), "
        ):
            evaluate(model, raw, measures)
    for error in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"nll_error must be positive and finite, got {error}"):
            evaluate(model, raw, [NLL(nll_error=error)])
        with pytest.raises(ValueError, match=f"nll_error must be positive and finite, got {error}"):
            nll(model, model.scaling.centre(raw), nll_error=error)


NUMBERS_OF_GROUPS = [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "groups", [NUMBERS_OF_GROUPS, *(np.array(NUMBERS_OF_GROUPS, kind) for kind in ("u2", "f4"))]
)
def test_groups_are_a_list_or_an_array_too(groups):
    score = gaussian("vp", (3,))
    model, x = INDM(Identity(), score), score.sample(6, seeded(0)).float()
    asked = torch.tensor(NUMBERS_OF_GROUPS)
    found, expected = (
        evaluate(model, x, [Bound()], groups=g, progress=False) for g in (groups, asked)
    )
    assert found.mean() == expected.mean() and found.report == expected.report
    assert found.report.groups == 3


@pytest.mark.parametrize(
    "groups",
    [
        torch.arange(7),
        torch.zeros(6, 1),
        np.zeros((6, 1)),
        3,
        list("aabbcc"),
        [None] * 6,
    ],
    ids=["seven", "column", "column of an array", "a number", "names", "None"],
)
def test_wrong_groups_are_named_before_anything_is_computed(groups, monkeypatch):
    monkeypatch.setattr(Bound, "estimate", lambda *_: pytest.fail("a bound was computed"))
    model = INDM(Identity(), gaussian("vp", (3,)))
    with pytest.raises(ValueError, match="groups must"):
        evaluate(
            model, torch.randn(6, 3, generator=seeded(0)), [Bound()], groups=groups, progress=False
        )


@pytest.mark.parametrize("examples", [1, 0, -1])
def test_evaluate_needs_two_images_for_a_standard_error_of_the_nll(examples):
    model, raw, _ = grey_model(True)
    with pytest.raises(
        ValueError, match=f"examples of NLL must be at least 2 for a standard error, got {examples}"
    ):
        evaluate(model, raw[:10], [Bound(), NLL(examples=examples)], progress=False)
    with pytest.raises(
        ValueError, match=r"measures must be one or more, each kind once, got \['nll', 'nll'\]"
    ):
        evaluate(model, raw, [NLL(), NLL(each=True)])


def test_a_measure_must_say_its_cost_and_its_estimate():
    with pytest.raises(TypeError, match=r"abstract methods '?calls'?, '?estimate'?"):
        type("Nothing", (Measure,), {"kind": "nothing"})()
