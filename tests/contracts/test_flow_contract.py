"""What every flow must do. The flows of the table of parts are here by their rows, with some
variants of them.

Against the autograd Jacobian, the flow's own inverse, copies of itself, and other divisions of the
same batch.
"""

import copy
import math

import pytest
import torch
from contract_parts import constructions
from flow_tools import batched_jacobian, perturb, slopes

import indm
from indm.flows import (
    ActNorm,
    Compose,
    CouplingFlow,
    ElementwiseFlow,
    ExactLogDet,
    Frozen,
    Identity,
    PowerSeries,
    ResidualFlow,
    SecondHalf,
    Squeeze,
    Unsqueeze,
    use_log_det,
)
from indm.flows.residual import ResidualBlock
from indm.model import build

TABLE = constructions("flow")


def one_map(flow):
    """The flow, or one of the maps from which it draws in every call."""
    return flow if flow.has_log_det else flow.at(torch.linspace(-2, 2, flow.code_dim))


def composed():
    inner = Compose([ActNorm(3), ResidualFlow((3, 4, 6), (1,), 8)])
    return Compose([Squeeze(), ActNorm(12), Unsqueeze(), inner, Identity(), ActNorm(3)])


def variant(kind, shape, *arguments, **options):
    return lambda: kind(shape, *arguments, **options), shape


FLOWS = {
    name: (lambda t=table, s=shape: one_map(build(t, "flow", s)), shape)
    for name, (table, shape) in TABLE.items()
}
FLOWS |= {
    "composed": (composed, (3, 4, 6)),
    "second-half": (lambda: SecondHalf(ActNorm(3)), (5, 2, 4)),
    "elementwise-channel-2x4x6": variant(ElementwiseFlow, (2, 4, 6), "channel", bins=4),
    "elementwise-each-2x4x6": variant(ElementwiseFlow, (2, 4, 6), "none", bins=4),
    "residual-2-spectral": variant(ResidualFlow, (2,), (2, 2), 16, 2.0),
    "residual-2x6x10-spectral": variant(ResidualFlow, (2, 6, 10), (2, 2), 16, 2.0),
    "residual-1x8x8-inf": variant(ResidualFlow, (1, 8, 8), (2, 2), 16, math.inf),
}
for transform in ("affine", "spline"):
    for shape in [(2,), (5,), (1, 8, 8)]:
        name = f"coupling-{transform}-{'x'.join(map(str, shape))}"
        FLOWS[name] = variant(CouplingFlow, shape, scales=2, depth=1, width=8, transform=transform)
for activation in ("softplus", "elu", "swish", "lcube"):
    more = {"actnorm": activation == "elu", "squeeze": activation == "elu"}
    FLOWS[f"residual-rows-{activation}"] = variant(
        ResidualFlow, (2, 4, 4), (1, 1), 8, "rows", 0.9, activation, **more
    )


TRAINABLE = [name for name, (make, _) in FLOWS.items() if any(True for _ in make().parameters())]
ITERATIVE = [
    name
    for name, (make, _) in FLOWS.items()
    if any(isinstance(m, ResidualBlock) for m in make().modules())
]
VARIANTS = {  # of a flow whose other rows are tried each time
    "elementwise-channel-2x4x6", "residual-2-spectral",
    "coupling-affine-2", "coupling-affine-5", "coupling-spline-5", "coupling-spline-1x8x8",
    "residual-rows-softplus", "residual-rows-swish",
}  # fmt: skip


def marked(names):
    return [pytest.param(name, marks=[pytest.mark.long] * (name in VARIANTS)) for name in names]


trainable = pytest.mark.parametrize("case", marked(TRAINABLE), indirect=True)


@pytest.fixture(params=marked(FLOWS))
def case(request):
    """A fresh flow (exact log-determinant in evaluation, in evaluation mode), and three samples."""
    make, shape = FLOWS[request.param]
    torch.manual_seed(3)
    flow = make().eval()
    use_log_det(flow, evaluation=ExactLogDet())
    return flow, torch.randn(3, *shape), make


def test_starts_at_the_identity(case):
    flow, x, _ = case
    z, log_det = flow(x)
    torch.testing.assert_close(z, x, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_det, torch.zeros(3), rtol=0, atol=1e-5)


def test_round_trip_in_single_precision(case):
    flow, x, _ = case
    perturb(flow)
    with torch.no_grad():
        z, log_det = flow(x)
        back = flow.inverse(z, 1e-5)
    assert z.shape == x.shape == back.shape and log_det.shape == (3,)
    assert z.dtype == log_det.dtype == back.dtype == torch.float32
    if list(flow.parameters()):
        assert (z - x).abs().amax() > 0.1, (
            "the parameters should have moved the flow from the identity"
        )
    assert (back - x).abs().amax() <= 1e-5


def test_other_round_trip(case):
    """x with h(x) = z exists for every z, not only for those that were seen as h(x)."""
    flow, z, _ = case
    perturb(flow)
    with torch.no_grad():
        torch.testing.assert_close(flow(flow.inverse(3 * z, 1e-5))[0], 3 * z, rtol=0, atol=2e-5)


def test_log_det_is_that_of_the_autograd_jacobian(case):
    """In double precision, as its input; the Jacobian also shows that no entry of the event is left
    as it is, and that of a flow that says so, that it is elementwise.
    """
    flow, x, _ = case
    perturb(flow).double()
    z, log_det = flow(x.double())
    jacobian = batched_jacobian(flow, x.double())
    assert not flow.is_elementwise or torch.equal(
        jacobian, jacobian.diagonal(dim1=1, dim2=2).diag_embed()
    )
    sign, expected = torch.linalg.slogdet(jacobian)
    assert z.dtype == log_det.dtype == torch.float64
    assert bool((sign.abs() == 1).all())
    torch.testing.assert_close(log_det, expected, rtol=1e-9, atol=1e-9)


def test_an_inverse_that_is_a_formula_is_differentiable(case, request):
    """Its Jacobian is the inverse of h's; what iterates says so."""
    flow, x, _ = case
    assert flow.inverse_is_formula is (request.node.callspec.params["case"] not in ITERATIVE)
    if flow.inverse_is_formula:
        x = x[:1].double()
        z = perturb(flow).double()(x)[0].detach()
        inverse = torch.autograd.functional.jacobian(
            lambda z: flow.solve_inverse(z)[0].flatten(), z
        ).flatten(1)
        torch.testing.assert_close(
            inverse @ batched_jacobian(flow, x)[0], torch.eye(x.numel()).double()
        )


def likelihood(flow, x, generator=None):
    """Mean −log N(h(x); 0, I) − log|det| up to a constant."""
    z, log_det = flow(x, generator=generator)
    return (0.5 * z.flatten(1).square().sum(1) - log_det).mean()


@trainable
def test_every_parameter_gets_a_gradient_and_moves(case):
    """Also where every weight has left its start; by the estimators of training, each of which sees
    all of the batch once in a while.
    """
    flow, x, _ = case
    perturb(flow).train()
    before = copy.deepcopy(dict(flow.named_parameters()))
    likelihood(flow, x.repeat(11, *(1,) * (x.ndim - 1))).backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()) and bool((parameter.grad != 0).any()), name
    torch.optim.AdamW(flow.parameters(), weight_decay=0.0).step()
    still = [
        name for name, parameter in flow.named_parameters() if torch.equal(parameter, before[name])
    ]
    assert not still


@trainable
def test_gradient_is_that_of_finite_differences(case):
    """Along a random direction in parameter space, through the constraint, with the exact
    log-determinant.
    """
    flow, x, _ = case
    perturb(flow).double()
    parameters = list(flow.parameters())

    direction = [torch.randn_like(p) for p in parameters]
    slope, difference = slopes(lambda: likelihood(flow, x.double()), parameters, direction)
    assert slope == pytest.approx(difference, rel=1e-5, abs=1e-6)


@trainable
def test_two_passes_and_one_backward(case):
    """A loss may call the flow more than once before it is differentiated: the gradients add."""
    flow, x, _ = case
    parameters = list(perturb(flow).double().train().parameters())
    x = x.double()
    use_log_det(flow, training=PowerSeries(1, 0.0))

    def loss(part):
        z, log_det = flow(part, generator=torch.Generator().manual_seed(0))
        return 0.5 * z.square().sum() - log_det.sum()

    first, second = (torch.autograd.grad(loss(part), parameters) for part in (x[:1], x[1:]))
    both = torch.autograd.grad(loss(x[:1]) + loss(x[1:]), parameters)
    for a, b, total in zip(first, second, both, strict=True):
        torch.testing.assert_close(a + b, total, rtol=1e-9, atol=1e-9)


def test_state_round_trip(case):
    """The state of a flow holds its parameters, and gives a fresh one that computes the same bits."""
    flow, x, make = case
    perturb(flow)
    assert set(flow.state_dict()) >= {name for name, _ in flow.named_parameters()}
    other = make().eval()
    use_log_det(other, evaluation=ExactLogDet())
    other.load_state_dict(flow.state_dict())
    with torch.no_grad():
        for a, b in zip(flow(x), other(x), strict=True):
            assert torch.equal(a, b)


def test_deep_copy_is_independent(case):
    flow, x, _ = case
    perturb(flow)
    with torch.no_grad():
        before = flow(x)
        twin = copy.deepcopy(flow)
        assert all(map(torch.equal, twin(x), before))
        perturb(twin, scale=2.0)
        assert all(map(torch.equal, flow(x), before))
        if list(flow.parameters()):
            assert (twin(x)[0] - before[0]).abs().amax() > 0.1


def test_samples_do_not_interact(case):
    """Another order, other neighbours, none at all: a sample's z, log|det| and inverse stay what
    they are.
    """
    flow, x, _ = case
    perturb(flow)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        z, log_det = flow(x)
        permuted, permuted_log_det = flow(x[order])
        torch.testing.assert_close(permuted, z[order], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(permuted_log_det, log_det[order], rtol=1e-5, atol=1e-4)
        other = x.clone()
        other[1] = 50.0
        changed, changed_log_det = flow(other)
        torch.testing.assert_close(changed[[0, 2]], z[[0, 2]], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(changed_log_det[[0, 2]], log_det[[0, 2]], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(flow.inverse(z[order], 1e-5), x[order], rtol=1e-5, atol=1e-5)
        for some in (slice(1, 2), slice(1, 3)):
            part, part_log_det = flow(x[some])
            torch.testing.assert_close(part, z[some], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(part_log_det, log_det[some], rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(flow.inverse(z[some], 1e-5), x[some], rtol=1e-5, atol=1e-5)


def test_inverse_has_one_entry_a_sample(case):
    flow, z, _ = case
    perturb(flow)
    x, residual, iterations, converged = flow.solve_inverse(z)
    assert x.shape == z.shape
    assert residual.shape == iterations.shape == converged.shape == (3,)
    assert (
        converged.dtype == torch.bool and bool(converged.all()) and iterations.dtype == torch.long
    )


@pytest.mark.parametrize(
    "case",
    marked([*(name for name in FLOWS if name not in ITERATIVE), "composed", "residual-4"]),
    indirect=True,
)
def test_a_broken_sample_is_named_and_the_others_are_solved(case):
    flow, z, _ = case
    perturb(flow)
    good = flow.inverse(z)
    z[1].view(-1)[0] = math.nan
    x, _, _, converged = flow.solve_inverse(z)
    assert converged.tolist() == [True, False, True]
    torch.testing.assert_close(x[[0, 2]], good[[0, 2]], rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match=r"1 of 3 samples \(indices 1"):
        flow.inverse(z)


def test_latent_is_what_forward_gives(case):
    flow, x, _ = case
    perturb(flow)
    with torch.no_grad():
        assert torch.equal(flow.latent(x), flow(x)[0])


def test_autocast_changes_no_inverse(case):
    flow, x, _ = case
    perturb(flow)
    with torch.no_grad():
        z = flow.latent(x)
        plain = flow.inverse(z)
        with torch.autocast("cpu", torch.bfloat16):
            cast = flow.inverse(z)
    assert cast.dtype == plain.dtype
    torch.testing.assert_close(cast, plain, rtol=1e-3, atol=1e-3)


@trainable
def test_frozen_is_the_same_map_without_a_gradient(case):
    flow, x, _ = case
    frozen = Frozen(perturb(flow))
    assert frozen.is_identity == flow.is_identity
    z, log_det = frozen(x)
    with torch.no_grad():  # as the frozen one: with a graph the norms are rounded differently
        expected = flow.latent(x)
    assert not z.requires_grad and torch.equal(z, expected) and log_det.tolist() == [0.0] * 3
    for a, b in zip(frozen.solve_inverse(z), flow.solve_inverse(z), strict=True):
        assert torch.equal(a, b)


# ── of the rows of the table alone, as models have them ───────────────────────────────────────────


@pytest.fixture(params=TABLE)
def part(request):
    """A flow of the table as it is built, codes and estimators and all, far from its start; its
    table and shape.
    """
    table, shape = TABLE[request.param]
    torch.manual_seed(3)
    return perturb(build(table, "flow", shape)), table, shape


def test_saved_and_loaded_it_computes_the_same_bits(part, tmp_path):
    flow, table, shape = part
    model = indm.build_model(
        {"flow": table, "sde": {"name": "vp"}, "net": {"name": "zero"}}, shape
    ).eval()
    model.flow.load_state_dict(flow.state_dict())
    model.save(tmp_path)
    again, x = indm.INDM.load(tmp_path), torch.randn(3, *shape)
    assert again.description() == model.description()
    state, saved = model.state_dict(), again.state_dict()
    assert state.keys() == saved.keys() and all(
        torch.equal(state[name], saved[name]) for name in state
    )
    with torch.no_grad():
        for one, other in zip(
            *(m.flow(x, generator=torch.Generator().manual_seed(0)) for m in (model, again)),
            strict=True,
        ):
            assert torch.equal(one, other)
