"""What every network of the table of parts must do."""

import copy

import pytest
import torch
from contract_parts import SHAPES, constructions

import indm
from indm.foreign.libraries import OfDiffusers
from indm.model import INDM, build
from indm.nets import Backbone
from indm.score import has_kinks, is_smooth, score_for
from indm.sde.linear import VPSDE
from indm.tables.networks import MixtureMLP

NETS = constructions("net")
trainable = [
    name for name, case in NETS.items() if list(build(*case[:1], "net", case[1]).parameters())
]


def moved(module, scale=0.1):
    """``module`` with noise on every parameter, so that nothing is hidden behind a layer that
    starts at zero.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
        for part in module.modules():
            if isinstance(part, MixtureMLP):  # of N(0, I) it gives its MLP nothing to see
                part.mean.normal_()
    return module.eval()


def evaluated(net, z):
    """A network at noise levels as its score gives them, from ε to T."""
    t = torch.linspace(0.01, 0.99, len(z)).to(z)
    seen = []
    with torch.no_grad():
        hook = net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
        score_for(net)(net, VPSDE())(z, t)
        hook.remove()
    return net(z, seen[0][1])


def make(table, shape):
    torch.manual_seed(0)
    return build(table, "net", shape)


@pytest.fixture(params=NETS)
def net(request):
    return moved(make(*NETS[request.param]))


def draw(net, n=4, dtype=torch.float32):
    shape = net.__dict__.get("shape", SHAPES["net"][0])
    return torch.randn(n, *shape, dtype=dtype)


@pytest.mark.parametrize("name", NETS)
def test_starts_at_zero_so_that_the_score_is_that_of_standard_normal_latents(name):
    table, shape = NETS[name]
    z = torch.randn(3, *shape)
    output = evaluated(make(table, shape).eval(), z)
    # 0, but for rounding where it is converted
    assert output.shape == z.shape and bool((output.abs() < 1e-3).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_dtype_and_is_a_function(net, dtype):
    net, z = net.to(dtype), draw(net, dtype=dtype)
    output = evaluated(net, z)
    assert output.dtype == dtype and bool(output.isfinite().all())
    assert torch.equal(evaluated(net, z), output)


def test_samples_do_not_see_one_another(net):
    """Another order, other neighbours, none at all."""
    net, z = net.double(), draw(net, dtype=torch.float64)
    level = torch.linspace(0.5, 3.0, len(z), dtype=z.dtype)

    def outputs(rows, z=z):
        return net(z[rows], level[rows])

    with torch.no_grad():
        whole = outputs(slice(None))
        for rows in ([2, 0, 3, 1], [1], [1, 3]):
            torch.testing.assert_close(outputs(rows), whole[rows], rtol=1e-9, atol=1e-9)
        other = z.clone()
        other[0] = 10.0
        torch.testing.assert_close(outputs(slice(None), other)[1:], whole[1:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", trainable)
def test_output_depends_on_z_and_on_the_level(name):
    net = moved(make(*NETS[name]))
    z, level = draw(net), torch.linspace(0.5, 3.0, 4)
    output = net(z, level)
    for other in (net(-z, level), net(z, level + 0.5)):
        assert bool(((other - output).flatten(1).norm(dim=1) > 1e-3).all())


def test_every_parameter_gets_a_gradient_and_moves(net):
    before = copy.deepcopy(dict(net.named_parameters()))
    if before:
        evaluated(net.train(), draw(net)).square().sum().backward()
        torch.optim.AdamW(net.parameters(), weight_decay=0.0).step()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("name", NETS)
def test_saved_and_loaded_it_computes_the_same_bits(name, tmp_path):
    """From its description: the constructor's arguments are attributes."""
    table, shape = NETS[name]
    model = moved(
        indm.build_model({"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": table}, shape)
    )
    model.save(tmp_path)
    z = torch.randn(3, *shape)
    assert torch.equal(
        evaluated(model.score.backbone, z), evaluated(INDM.load(tmp_path).score.backbone, z)
    )


@pytest.mark.parametrize("name", NETS)
def test_it_declares_what_it_is(name):
    net = make(*NETS[name])
    if isinstance(net, OfDiffusers):
        pytest.skip("a network that a Denoiser calls")
    assert isinstance(net, Backbone) and isinstance(net.is_smooth, bool)
    score = score_for(net)(net, VPSDE())
    assert (score.takes_condition, has_kinks(score)) == (net.takes_condition, net.has_kinks)


class Doubling(Backbone):
    """What a user writes: the noise is half of z more than N(0, I) expects."""

    is_smooth = True

    def forward(self, z, level, c=None):
        return 0.5 * z if c is None else 0.5 * z + c


class Plain(torch.nn.Module):
    """The same as a plain module, whose attributes say nothing."""

    is_smooth = has_kinks = takes_condition = True

    def forward(self, z, level):
        return 0.5 * z


def test_a_plain_module_works_with_the_defaults():
    z, t = torch.randn(4, 2), torch.full((4,), 0.3)
    ours, plain = (indm.ScoreModel(net, VPSDE()) for net in (Doubling(), Plain()))
    assert torch.equal(ours(z, t), plain(z, t))
    assert (is_smooth(ours), is_smooth(plain)) == (True, False)
    assert not plain.takes_condition and not has_kinks(plain) and plain.base is ours.base


def test_the_parts_of_its_noise_sum_to_its_output():
    net, z, level = Doubling(), torch.randn(4, 2), torch.zeros(4)
    law, added = net.noise_parts(z, level)
    assert law.abs().max() == 0 and torch.equal(added, net(z, level))
    assert torch.equal(net.noise_parts(z, level, torch.ones(4, 2))[1], 0.5 * z + 1)
