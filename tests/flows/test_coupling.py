"""Coupling and elementwise flows: transforms against other implementations, starts, refusals."""

import copy
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from indm.flows import ActNorm, CouplingFlow, ElementwiseFlow, InvertibleLinear, initialize_actnorms
from indm.flows.coupling import Affine, RationalQuadratic
from indm.model import build
from indm.names import find


@settings(max_examples=50, deadline=None)
@example(seed=0, scale=0.0, bins=4, bound=1.0)  # entries that lie on a knot
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(0.0, 4.0),
    bins=st.integers(2, 12),
    bound=st.floats(0.5, 5.0),
)
def test_spline_is_a_smooth_bijection_of_the_line(seed, scale, bins, bound):
    """It inverts, its log-slope is that of autograd, and value and slope are continuous at knots
    and ends.
    """
    generator = torch.Generator().manual_seed(seed)
    spline = RationalQuadratic(bins, bound)
    raw = scale * torch.randn(spline.size, generator=generator, dtype=torch.float64)
    y = torch.linspace(-1.5 * bound, 1.5 * bound, 400, dtype=torch.float64, requires_grad=True)
    z, log_slope = spline(y[:, None], raw[None, :, None].expand(400, -1, 1))
    (slope,) = torch.autograd.grad(z.sum(), y)
    torch.testing.assert_close(log_slope[:, 0].exp(), slope, rtol=1e-8, atol=1e-10)
    assert bool((z[1:] > z[:-1]).all())
    back = spline.inverse(z.detach(), raw[None, :, None].expand(400, -1, 1))
    torch.testing.assert_close(back[:, 0], y.detach(), rtol=0, atol=1e-6 * bound)

    knots = spline._knots(raw[None, : 2 * bins, None])[0, 0, :, 0]
    for side in (-1e-12, 1e-12):
        value, log_slope = spline(
            (knots + side)[:, None], raw[None, :, None].expand(bins + 1, -1, 1)
        )
        middle, log_middle = spline(knots[:, None], raw[None, :, None].expand(bins + 1, -1, 1))
        torch.testing.assert_close(value, middle, rtol=0, atol=1e-5)
        torch.testing.assert_close(log_slope, log_middle, rtol=0, atol=2e-3)


def _unclipped(v, c):
    """What zuko's soft limit v/(1 + c |v|/|log slope|) takes to v."""
    return v / (1 - c * v.abs() / abs(math.log(1e-30)))


def test_spline_is_that_of_zuko():
    from zuko.transforms import MonotonicRQSTransform

    torch.manual_seed(0)
    spline = RationalQuadratic(bins=6, bound=2.0)
    raw = torch.randn(1, spline.size, 1, dtype=torch.float64)
    shares = [
        (spline.least + (1 - 6 * spline.least) * part.softmax(1))[0, :, 0]
        for part in (raw[:, :6], raw[:, 6:12])
    ]
    slopes = spline.least + (1 - spline.least) * torch.nn.functional.softplus(
        raw[0, 12:, 0] + math.log(math.e - 1)
    )
    widths, heights, slopes = (
        _unclipped(v.log(), c) for v, c in zip((*shares, slopes), (2, 2, 1), strict=True)
    )
    other = MonotonicRQSTransform(widths, heights, slopes, bound=2.0, slope=1e-30)
    y = torch.linspace(-2.5, 2.5, 101, dtype=torch.float64)
    z, log_slope = spline(y[:, None], raw.expand(101, -1, 1))
    expected, ladj = other.call_and_ladj(y)
    torch.testing.assert_close(z[:, 0], expected)
    torch.testing.assert_close(log_slope[:, 0], ladj)


@pytest.mark.parametrize("shape", [(5,), (2, 4, 6)])
@pytest.mark.parametrize("shared", ["all", "channel", "none"])
def test_an_elementwise_flow_is_the_spline_with_the_same_parameters_for_each_entry(shape, shared):
    """Values, log-determinants, inverses and gradients of the spline whose parameters are given
    entry by entry.
    """
    torch.manual_seed(0)
    flow, x = ElementwiseFlow(shape, shared).double(), torch.randn(3, *shape, dtype=torch.float64)
    torch.nn.init.normal_(flow.raw)
    # the axes along which parameters differ
    own = {"all": (), "channel": shape[:1], "none": shape}[shared]
    raw = flow.raw.mT.reshape(flow.spline.size, *own, *(1,) * (len(shape) - len(own))).expand(
        3, -1, *shape
    )
    spline = RationalQuadratic(8, flow.bound)
    z, log_slope = spline(x, raw)
    expected, results = (z, log_slope.flatten(1).sum(1)), flow(x)
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result, value)
        gradients = (
            torch.autograd.grad(v.square().sum(), flow.raw, retain_graph=True)[0]
            for v in (result, value)
        )
        torch.testing.assert_close(*gradients)
    torch.testing.assert_close(flow.inverse_step(z), spline.inverse(z, raw))
    assert flow.raw.numel() == 23 * math.prod(own)


def test_log_scales_stay_within_their_bound():
    raw = torch.tensor([-1e3, -1.0, 0.0, 1.0, 1e3]).reshape(5, 1, 1).repeat(1, 2, 1)
    y = torch.ones(5, 1)
    _, bounded = Affine(0.5)(y, raw)
    assert bounded.abs().max() <= 0.5 and bounded[2].item() == 0.0
    assert Affine(math.inf)(y, raw)[1][3].item() == 1.0


def test_rotation_start_is_a_rotation_and_identity_start_is_not_moved():
    torch.manual_seed(0)
    x = torch.randn(4, 6, 2, 2, dtype=torch.float64)
    rotated, log_det = InvertibleLinear(6, "rotation").double()(x)
    assert (rotated - x).abs().max() > 0.1
    torch.testing.assert_close(rotated.square().sum(1), x.square().sum(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(log_det, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-4)
    assert torch.equal(InvertibleLinear(6).double()(x)[0], x)


def test_data_dependent_start_standardises_what_every_actnorm_gives():
    torch.manual_seed(0)
    flow, x = (
        CouplingFlow((3, 8, 8), scales=2, depth=2, width=8, start="rotation"),
        3 + 2 * torch.randn(200, 3, 8, 8),
    )
    initialize_actnorms(flow, x)
    seen = []
    for module in flow.modules():
        if type(module).__name__ == "ActNorm":
            module.register_forward_hook(lambda m, i, o: seen.append(o[0].detach()))
    flow(x)
    assert len(seen) == 4
    for z in seen:
        per_channel = z.transpose(0, 1).flatten(1)
        torch.testing.assert_close(
            per_channel.mean(1), torch.zeros(len(per_channel)), rtol=0, atol=1e-3
        )
        torch.testing.assert_close(
            per_channel.std(1), torch.ones(len(per_channel)), rtol=1e-3, atol=0
        )
    torch.testing.assert_close(flow(x[:5])[0], flow(x)[0][:5])  # other batches start nothing anew


def test_what_single_precision_cannot_invert_is_inverted_in_double():
    """A flow that expands a thousandfold: its float32 residual is over the tolerance, x is right
    all the same.
    """
    torch.manual_seed(0)
    flow, x = (
        CouplingFlow((4,), depth=6, width=8, transform="affine", max_log_scale="inf"),
        torch.randn(50, 4),
    )
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        z = flow(x)[0]
        tol = 1e-7
        assert not bool(flow.solve_inverse(z, tol)[3].all())
        expected = copy.deepcopy(flow).double().inverse(z.double(), 1e-10)
        torch.testing.assert_close(flow.inverse(z, tol).double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "flow",
    [
        CouplingFlow((5,), depth=2, width=8, transform="affine"),
        CouplingFlow((5,), depth=2, width=8),
        CouplingFlow((1, 4, 4), scales=2, depth=2, width=8),
    ],
    ids=lambda flow: f"{type(flow).__name__}{flow.shape}",
)
def test_every_entry_is_transformed_by_what_others_are(flow):
    """Where nothing but the networks has left its start: no linear map mixes the entries, so that
    the Jacobian shows which of them a coupling moves, and that two in opposite directions leave
    none as it is.
    """
    flow = flow.double()
    with torch.no_grad():
        for module in flow.modules():
            for parameter in module.parameters(recurse=False):
                if not isinstance(module, InvertibleLinear | ActNorm):
                    parameter.add_(0.3 * torch.randn_like(parameter))
    x = 0.5 * torch.randn(flow.shape, dtype=torch.float64)
    d = x.numel()
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x[None])[0][0], x).reshape(d, d)
    by_others = (jacobian - jacobian.diag().diag()).abs().amax(1)
    assert bool((by_others > 1e-6).all()), (
        f"entries {(by_others <= 1e-6).nonzero().flatten().tolist()} are left alone"
    )


@pytest.mark.parametrize(
    ("flow", "options", "named"),
    [
        (CouplingFlow, {"shape": (1, 8, 6), "scales": 2}, "scales"),
        (CouplingFlow, {"shape": (1, 6, 8), "scales": 2}, "scales"),
        (CouplingFlow, {"shape": (1,)}, "shape"),
        (CouplingFlow, {"depth": 0}, "depth"),
        (CouplingFlow, {"bins": 1}, "bins"),
        (CouplingFlow, {"bins": 1000}, "bins"),
        (ElementwiseFlow, {"bins": 1}, "bins"),
        (ElementwiseFlow, {"bins": 1000}, "bins"),
    ],
)
def test_what_cannot_be_built_is_named(flow, options, named):
    with pytest.raises(ValueError, match=named):
        flow(**({"shape": (4,)} | options))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("coupling", {"transform": "cubic"}),
        ("masked", {"transform": "cubic"}),
        ("coupling", {"start": "random"}),
        ("elementwise", {"shared": "pixel"}),
        ("residual", {"activation": "tanh"}),
    ],
)
def test_an_unknown_word_of_an_option_is_named(name, option):
    """By a table, which is held against the annotation, and by the flow."""
    ((argument, word),) = option.items()
    with pytest.raises(ValueError, match=rf"flow\.{argument} .*{word}"):
        build({"name": name} | option, "flow", (4,))
    with pytest.raises(ValueError, match=f"{argument} must be one of .* got '{word}'"):
        find("flow", name)((4,), **option)
