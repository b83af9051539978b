"""One body of tests for every flow: against the autograd Jacobian, its own inverse, and copies of itself."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from indm.config import parts
from indm.flows import (
    ActNorm,
    AutoregressiveFlow,
    Compose,
    ConditionalResidualFlow,
    CouplingFlow,
    ExactFlow,
    ExactLogDet,
    Flow,
    Frozen,
    Identity,
    InvertibleLinear,
    NormflowsFlow,
    PowerSeries,
    ResidualFlow,
    SecondHalf,
    Squeeze,
    Unsqueeze,
    ZukoFlow,
    check_flow,
    use_log_det,
)
from indm.model import build

SPLINE = "AutoregressiveRationalQuadraticSpline"


def composed():
    inner = Compose([ActNorm(3), ResidualFlow((3, 4, 6), (1,), 8)])
    return Compose([Squeeze(), ActNorm(12), Unsqueeze(), inner, Identity(), ActNorm(3)])


FLOWS = {
    "identity": (Identity, (5,)),
    "identity-images": (Identity, (3, 8, 8)),
    "actnorm": (lambda: ActNorm(5), (5,)),
    "actnorm-images": (lambda: ActNorm(3), (3, 4, 6)),
    "squeeze-unsqueeze": (lambda: Compose([Squeeze(), Unsqueeze()]), (2, 6, 4)),
    "unsqueeze-squeeze": (lambda: Compose([Unsqueeze(), Squeeze()]), (8, 3, 2)),
    "composed": (composed, (3, 4, 6)),
    "linear": (lambda: InvertibleLinear(5), (5,)),
    "linear-images": (lambda: InvertibleLinear(3), (3, 4, 6)),
    "second-half": (lambda: SecondHalf(ActNorm(3)), (5, 2, 4)),
    "autoregressive-5": (lambda: AutoregressiveFlow((5,), 2, width=16, layers=1), (5,)),
    "autoregressive-1x8x8": (lambda: AutoregressiveFlow((1, 8, 8), 2, width=16, layers=1), (1, 8, 8)),
    "autoregressive-3x4x6": (lambda: AutoregressiveFlow((3, 4, 6), 2, width=16, layers=1), (3, 4, 6)),
    "zuko-nsf": (lambda: ZukoFlow((3,), "nsf", 2, 16), (3,)),
    "zuko-maf": (lambda: ZukoFlow((5,), "maf", 2, 16), (5,)),
    "zuko-realnvp": (lambda: ZukoFlow((5,), "realnvp", 2, 16), (5,)),
    "normflows": (lambda: NormflowsFlow((4,), SPLINE, 1, 8, {"num_blocks": 1}, inverse_is_formula=True), (4,)),
}
for transform in ("affine", "spline"):
    for shape in [(2,), (5,), (1, 8, 8), (3, 4, 12)]:
        name = f"coupling-{transform}-{'x'.join(map(str, shape))}"
        FLOWS[name] = (lambda s=shape, t=transform: CouplingFlow(s, levels=2, depth=1, width=8, transform=t), shape)
for shape in [(2,), (5,), (1, 8, 8), (3, 8, 8), (2, 6, 10)]:
    for norm in (2.0, math.inf):
        name = f"residual-{'x'.join(map(str, shape))}-{norm:g}"
        FLOWS[name] = (lambda shape=shape, norm=norm: ResidualFlow(shape, (2, 2), 16, norm), shape)


for activation in ("softplus", "elu", "swish", "lcube"):
    FLOWS[f"residual-rows-{activation}"] = (
        lambda a=activation: ResidualFlow((2, 4, 4), (1, 1), 8, "rows", 0.9, a, actnorm=a == "elu", squeeze=a == "elu"),
        (2, 4, 4),
    )
for shape in [(5,), (1, 8, 8)]:
    FLOWS[f"conditional-{'x'.join(map(str, shape))}"] = (
        lambda s=shape: ConditionalResidualFlow(s, (1, 1), 16, code_dim=4).at(torch.linspace(-2, 2, 4)),
        shape,
    )


def perturb(flow, scale=0.4):
    """Random parameters: far from the identity, with every constraint of a residual flow active.

    The weights of free networks move by what keeps their outputs of the order of one.
    """
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in flow.modules():
            free = isinstance(module, nn.Linear | nn.Conv2d | InvertibleLinear)
            for parameter in module.parameters(recurse=False):
                fan_in = 9 * parameter[0].numel() if free and parameter.ndim > 1 else 1
                parameter.add_(scale / math.sqrt(fan_in) * torch.randn(parameter.shape, generator=generator))
    return flow


BY_HAND = {"identity", "residual", "conditional-residual", "coupling", "autoregressive", "zuko", "normflows", "actnorm",
           "linear", "squeeze", "unsqueeze", "compose"}  # fmt: skip


def by_default(name, shape):
    """A flow of the table of parts as it is by default; None where it does not take events of that shape."""
    try:
        return build({"name": name}, "flow", shape)
    except ValueError:
        return None


for name in parts.BUILT_IN["flow"].keys() - BY_HAND:  # a new row is tested without a word here
    shapes = [shape for shape in [(5,), (1, 8, 8)] if by_default(name, shape) is not None]
    assert shapes, f"{name} takes neither vectors nor images by default"
    FLOWS |= {f"{name}-{len(shape)}d": (lambda n=name, s=shape: by_default(n, s), shape) for shape in shapes}


TRAINABLE = [name for name, (make, _) in FLOWS.items() if any(True for _ in make().parameters())]
TRIVIAL = [name for name in FLOWS if not name.startswith(("residual", "composed"))]
trainable = pytest.mark.parametrize("case", TRAINABLE, indirect=True)


@pytest.fixture(params=FLOWS)
def case(request):
    """A fresh flow (exact log-determinant in evaluation, in evaluation mode), and three samples."""
    make, shape = FLOWS[request.param]
    torch.manual_seed(3)
    flow = make().eval()
    use_log_det(flow, evaluation=ExactLogDet())
    return flow, torch.randn(3, *shape), make


def batched_jacobian(flow, x):
    """∂h(x)/∂x of each sample, by reverse-mode autograd: (B, d, d)."""
    x = x.clone().requires_grad_()
    z = flow(x)[0].flatten(1)
    d = z.shape[1]
    rows = torch.eye(d, dtype=x.dtype)[:, None, :].expand(d, len(x), d)
    (jacobian,) = torch.autograd.grad(z, x, rows, is_grads_batched=True)
    return jacobian.flatten(2).transpose(0, 1)


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
        assert (z - x).abs().amax() > 0.1, "the parameters should have moved the flow from the identity"
    assert (back - x).abs().amax() <= 1e-5


def test_other_round_trip(case):
    """x with h(x) = z exists for every z, not only for those that were seen as h(x)."""
    flow, z, _ = case
    perturb(flow)
    with torch.no_grad():
        torch.testing.assert_close(flow(flow.inverse(3 * z, 1e-5))[0], 3 * z, rtol=0, atol=2e-5)


def test_log_det_is_that_of_the_autograd_jacobian(case):
    flow, x, _ = case
    perturb(flow).double()
    z, log_det = flow(x.double())
    sign, expected = torch.linalg.slogdet(batched_jacobian(flow, x.double()))
    assert z.dtype == log_det.dtype == torch.float64
    assert bool((sign.abs() == 1).all())
    torch.testing.assert_close(log_det, expected, rtol=1e-9, atol=1e-9)


def test_log_det_of_the_inverse_is_the_opposite(case):
    """The Jacobian of the inverse, by central differences through the solver."""
    flow, x, _ = case
    if x[0].numel() > 30:
        x = x[:1]
    perturb(flow).double()
    with torch.no_grad():
        z, log_det = flow(x.double())
        step, d = 1e-4, z[0].numel()
        directions = (step * torch.eye(d, dtype=torch.float64)).reshape(d, *z.shape[1:])
        columns = [
            (flow.inverse(sample + directions, 1e-12) - flow.inverse(sample - directions, 1e-12)) / (2 * step)
            for sample in z
        ]
    inverse_log_det = torch.stack([torch.linalg.slogdet(c.flatten(1))[1] for c in columns])
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=1e-4, atol=1e-4 * d)


def test_an_inverse_that_is_a_formula_is_differentiable(case, request):
    """Its Jacobian is the inverse of h's; what iterates says so."""
    flow, x, _ = case
    iterative = request.node.callspec.params["case"].startswith(("residual", "conditional", "composed"))
    assert flow.inverse_is_formula is not iterative
    if flow.inverse_is_formula:
        x = x[:1].double()
        z = perturb(flow).double()(x)[0].detach()
        inverse = torch.autograd.functional.jacobian(lambda z: flow.solve_inverse(z)[0].flatten(), z).flatten(1)
        torch.testing.assert_close(inverse @ batched_jacobian(flow, x)[0], torch.eye(x.numel()).double())


class Outside(Flow):
    """A composition by somebody else, whose parts do not lie where ours do."""

    def __init__(self, *flows):
        super().__init__()
        self.stages = nn.ModuleDict({f"stage{i}": nn.Sequential(flow) for i, flow in enumerate(flows)})

    def forward(self, x, *, generator=None):
        raise AssertionError("check needs no pass")

    def solve_inverse(self, z, tol=0.0):
        raise AssertionError("check needs no pass")


@pytest.mark.parametrize(
    "wrap, name",
    [
        (lambda flow: flow, ""),
        (lambda flow: Compose([Identity(), flow]), "flows.1."),
        (Frozen, "flow."),
        (SecondHalf, "flow."),
        (lambda flow: Outside(Identity(), flow), "stages.stage1.0."),
        (lambda flow: Outside(Compose([flow])), "stages.stage0.0.flows.0."),
    ],
)
def test_a_flow_checks_its_parts_and_names_the_one_that_fails(wrap, name):
    residual = ResidualFlow((4,), (1, 1), 8)
    flow = wrap(residual)
    flow.check()
    with torch.no_grad():
        residual.flows[1].maps[2].weight[0, 0] = math.inf
    with pytest.raises(RuntimeError, match=rf"^{re.escape(name)}flows\.1\.maps\.2\.weight has norm nan"):
        flow.check()


def test_a_conditional_flow_checks_its_blocks():
    flow = ConditionalResidualFlow((4,), (1,), 8, code_dim=2)
    with torch.no_grad():
        flow.chain[0].maps[0].weight.fill_(math.nan)
    for part, name in ((flow, "chain.0"), (flow.at(torch.zeros(2)), "flows.0.block")):
        with pytest.raises(RuntimeError, match=rf"^{name}\.maps\.0\.weight has norm nan"):
            part.check()


@pytest.mark.parametrize("base, missing", [(Flow, "forward"), (Flow, "solve_inverse"), (ExactFlow, "inverse_step")])
def test_a_flow_that_lacks_a_method_cannot_be_made(base, missing):
    methods = {name: getattr(Identity, name) for name in ("forward", "solve_inverse", "inverse_step")}
    del methods[missing]
    with pytest.raises(TypeError, match=f"abstract method '?{missing}'?"):
        type("Partial", (base,), methods)()


@trainable
def test_every_parameter_gets_a_gradient(case):
    flow, x, _ = case
    perturb(flow).train()
    z, log_det = flow(x)
    (0.5 * z.flatten(1).square().sum(1) - log_det).mean().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()) and bool((parameter.grad != 0).any()), name


def slopes(loss, parameters, direction, step=1e-6):
    """The slope of ``loss()`` along a direction of its parameters, by autograd and by a central difference.

    The step is small as splines have no second derivative at their knots.
    """
    gradients = torch.autograd.grad(loss(), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)).item()

    @torch.no_grad()
    def moved(step):
        for p, d in zip(parameters, direction, strict=True):
            p.add_(d, alpha=step)
        value = loss().item()
        for p, d in zip(parameters, direction, strict=True):
            p.sub_(d, alpha=step)
        return value

    return slope, (moved(step) - moved(-step)) / (2 * step)


@trainable
def test_gradient_is_that_of_finite_differences(case):
    """Along a random direction in parameter space, through the constraint, with the exact log-determinant."""
    flow, x, _ = case
    perturb(flow).double()
    parameters = list(flow.parameters())

    def loss():
        z, log_det = flow(x.double())
        return (0.5 * z.flatten(1).square().sum(1) - log_det).mean()

    direction = [torch.randn_like(p) for p in parameters]
    slope, difference = slopes(loss, parameters, direction)
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


def test_certificate_has_one_entry_a_sample(case):
    flow, z, _ = case
    perturb(flow)
    x, residual, iterations, converged = flow.solve_inverse(z)
    assert x.shape == z.shape
    assert residual.shape == iterations.shape == converged.shape == (3,)
    assert converged.dtype == torch.bool and bool(converged.all()) and iterations.dtype == torch.long


@pytest.mark.parametrize("case", [*TRIVIAL, "composed", "residual-5-2"], indirect=True)
def test_a_broken_sample_is_named_and_the_others_are_solved(case):
    flow, z, _ = case
    perturb(flow)
    good = flow.inverse(z)
    z[1].view(-1)[0] = math.nan
    x, _, _, converged = flow.solve_inverse(z)
    assert converged.tolist() == [True, False, True]
    torch.testing.assert_close(x[[0, 2]], good[[0, 2]], rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match=r"1 of 3 samples \(indices 1;"):
        flow.inverse(z)


def test_squeeze_gathers_each_two_by_two_square():
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    z, log_det = Squeeze()(x)
    assert z.shape == (2, 12, 2, 3) and log_det.tolist() == [0.0, 0.0]
    for c in range(3):
        for i in range(2):
            for j in range(3):
                square = x[:, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(1)
                assert torch.equal(z[:, 4 * c : 4 * c + 4, i, j], square)
    assert torch.equal(Squeeze().inverse(z), x)
    assert torch.equal(Unsqueeze()(z)[0], x) and torch.equal(Unsqueeze().inverse(x), z)


def test_what_cannot_be_squeezed():
    for flow, x in [
        (Squeeze(), torch.zeros(2, 3, 5, 4)),
        (Squeeze(), torch.zeros(2, 6)),
        (Unsqueeze(), torch.zeros(2, 6)),
    ]:
        with pytest.raises(ValueError, match=r"x must be"):
            flow(x)
    with pytest.raises(ValueError, match="multiple of 4"):
        Unsqueeze()(torch.zeros(2, 6, 3, 3))


@pytest.mark.parametrize("shape", [(4,), (4, 3, 5)])
def test_actnorm_initializes_to_zero_mean_and_unit_variance(shape):
    x = torch.randn(500, *shape) * torch.tensor([0.01, 1.0, 3.0, 50.0]).reshape(4, *[1] * (len(shape) - 1)) + 7
    flow = ActNorm(4)
    flow.initialize(x)
    z, log_det = flow(x)
    per_channel = z.detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(per_channel.mean(1), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(per_channel.std(1), torch.ones(4), rtol=1e-3, atol=0)
    stds = x.transpose(0, 1).flatten(1).std(1)
    expected = -stds.log().sum() * math.prod(shape[1:])
    torch.testing.assert_close(log_det.detach(), expected.expand(500), rtol=1e-4, atol=1e-4)


def test_compose_meets_the_data_in_the_order_given():
    double, shift = ActNorm(1), ActNorm(1)
    with torch.no_grad():
        double.log_scale.fill_(math.log(2))
        shift.shift.fill_(1.0)
    x = torch.tensor([[3.0]])
    assert Compose([double, shift])(x)[0].item() == pytest.approx(7)
    assert Compose([shift, double])(x)[0].item() == pytest.approx(8)
    assert Compose([shift, double]).inverse(torch.tensor([[8.0]])).item() == pytest.approx(3)


def test_latent_is_what_forward_gives(case):
    flow, x, _ = case
    perturb(flow)
    with torch.no_grad():
        assert torch.equal(flow.latent(x), flow(x)[0])


@trainable
def test_frozen_is_the_same_map_without_a_gradient(case):
    flow, x, _ = case
    frozen = Frozen(perturb(flow))
    z, log_det = frozen(x)
    with torch.no_grad():  # as the frozen one: with a graph the norms are rounded differently
        expected = flow.latent(x)
    assert not z.requires_grad and torch.equal(z, expected) and log_det.tolist() == [0.0] * 3
    for a, b in zip(frozen.solve_inverse(z), flow.solve_inverse(z), strict=True):
        assert torch.equal(a, b)


class Bent(ExactFlow):
    """z = eˢ x + tanh of the entry before, with an error where one is asked for."""

    def __init__(self, wrong=""):
        super().__init__()
        self.wrong = wrong
        self.log_scale = nn.Parameter(torch.zeros(3))

    def forward(self, x, *, generator=None):
        z = self.log_scale.exp() * x
        z = torch.cat([z[:, :1], z[:, 1:] + z[:, :-1].tanh()], 1)
        log_det = 0 * self.log_scale.sum() if self.wrong == "log_det" else self.log_scale.sum()
        return z, log_det.expand(len(x))

    def inverse_step(self, z):
        entries = [z[:, 0]]
        for i in (1, 2):
            entries.append(z[:, i] - (0 if self.wrong == "inverse" else entries[-1].tanh()))
        return torch.stack(entries, 1) * (-self.log_scale).exp()


def test_check_flow_finds_a_wrong_log_det_and_a_wrong_inverse():
    x = torch.randn(4, 3)
    state = torch.get_rng_state()
    check_flow(Bent(), x)
    assert torch.equal(torch.get_rng_state(), state), "it leaves the random state alone"
    wrong = Bent("log_det")
    assert wrong(x)[1].abs().max() == 0, "at its start it is right by luck"
    with pytest.raises(ValueError, match=r"Bent gives log\|det ∂z/∂x\| = 0 nats where its Jacobian has -?0\.\d+"):
        check_flow(wrong, x)
    with pytest.raises(ValueError, match=r"Bent does not invert itself: h\(h⁻¹\(z\)\) is off from z by \d"):
        check_flow(Bent("inverse"), x)
    assert wrong.log_scale.abs().max() == 0 and wrong.log_scale.dtype == torch.float32, "it is left as it was"


@pytest.mark.parametrize("name", ["coupling-spline-1x8x8", "autoregressive-5", "composed", "residual-5-inf"])
def test_check_flow_passes_right_flows(name):
    make, shape = FLOWS[name]
    check_flow(perturb(make()), torch.randn(2, *shape))
