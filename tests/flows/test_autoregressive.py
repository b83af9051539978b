"""The autoregressive flow: what its tokens see, its cached inverse, its derivatives in every mode of autograd."""

import pytest
import torch
from flow_tools import batched_jacobian, perturb
from torch.func import jvp, vmap
from torch.nn import functional as F

from indm.flows import AutoregressiveFlow
from indm.flows.autoregressive import causal_attention
from indm.linearization import second_derivative

SHAPES = [(6,), (2, 4, 6)]
KINDS = ["affine", "spline"]


def moved(shape, **options):
    """A small flow in float64, far from the identity, and three samples."""
    torch.manual_seed(0)
    options = {"blocks": 2, "width": 16, "head_width": 8} | options
    return perturb(AutoregressiveFlow(shape, **options)).double().eval(), torch.rand(3, *shape).double() * 2 - 1


@pytest.mark.parametrize("past", [0, 4])
def test_attention_is_that_of_pytorch(past):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 7, 5).double()
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(causal_attention(query[:, :, past:], key, value), expected[:, :, past:])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backwards", [False, True])
def test_a_token_sees_all_tokens_before_it_and_none_after(shape, backwards):
    """The Jacobian of tokens is block triangular, full below the diagonal blocks, which scale entry by entry."""
    flow, x = moved(shape, layers=2)
    block = flow.flows[int(backwards)]
    tokens = block._tokens(x)[:1]
    n, entries = tokens.shape[1:]
    jacobian = torch.autograd.functional.jacobian(lambda t: block._tokens(block(block._event(t))[0]), tokens)
    jacobian = jacobian.reshape(n, entries, n, entries).transpose(1, 2)  # (to, from, entries, entries)
    if backwards:
        assert torch.equal(block._tokens(x), flow.flows[0]._tokens(x).flip(1))
    for i in range(n):
        assert not jacobian[i, i + 1 :].any()
        assert bool((jacobian[i, :i].abs() > 1e-9).all())
        assert bool((jacobian[i, i].diagonal() > 0).all())
        assert not (jacobian[i, i] - jacobian[i, i].diagonal().diag()).any()


def test_a_token_of_an_image_is_a_patch():
    flow, x = moved((2, 4, 6))
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, 2, 2, 3, 2, 2): channels, rows and columns of patches, pixels
    assert torch.equal(flow.flows[0]._tokens(x), patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_cached_inverse_is_that_of_parallel_passes(shape, kind):
    """Without a cache: as many parallel passes as there are tokens, each of which makes one more token right."""
    flow, z = moved(shape, layers=2, transform=kind)
    for block in flow.flows:
        latents = block._tokens(z)
        tokens = torch.zeros_like(latents)
        for _ in range(latents.shape[1]):
            raw, _ = block._conditioned(F.pad(tokens[:, :-1], (0, 0, 1, 0)))
            tokens = block.transform.inverse(latents, raw)
        torch.testing.assert_close(block.inverse_step(z), block._event(tokens), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "error"), [("affine", 1e-5), ("spline", 3e-4)])
def test_round_trip_at_the_default_size(kind, error):
    """An image of 64 patches through four blocks; a spline has slopes of a thousandth, which the inverse divides by."""
    torch.manual_seed(0)
    flow, x = perturb(AutoregressiveFlow((1, 16, 16), transform=kind)).eval(), torch.rand(4, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        z = flow(x)[0]
        assert (z - x).abs().amax() > 0.5
        assert (flow.inverse(z) - x).abs().amax() < error
        flow.double()
        assert (flow.inverse(flow(x.double())[0]) - x).abs().amax() < 1e-8 * error


@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_and_vmap(kind):
    """Without a context manager, through h and its inverse: products of the dense Jacobian of reverse mode."""
    flow, x = moved((1, 4, 4), transform=kind)
    v = torch.randn_like(x)
    z, pushed = jvp(flow.latent, (x,), (v,))
    dense = batched_jacobian(flow, x) @ v.flatten(1).unsqueeze(2)
    torch.testing.assert_close(pushed.flatten(1), dense.squeeze(2))
    torch.testing.assert_close(jvp(lambda z: flow.solve_inverse(z)[0], (z,), (pushed,))[1], v)
    torch.testing.assert_close(vmap(lambda x: flow.latent(x[None])[0])(x), z)
    torch.testing.assert_close(vmap(lambda z: flow.flows[0].inverse_step(z[None])[0])(z), flow.flows[0].inverse_step(z))


def test_the_laplacian_is_the_trace_of_the_hessian():
    """By forward mode over forward mode, against reverse mode over reverse mode."""
    flow, x = moved((1, 4, 4))
    basis = torch.eye(16, dtype=x.dtype).reshape(16, 1, 1, 4, 4)
    laplacian = sum(second_derivative(flow.latent, x[:1], e) for e in basis)
    for i in (1, 6, 15):
        hessian = torch.autograd.functional.hessian(lambda x, i=i: flow.latent(x)[0].flatten()[i], x[:1])
        torch.testing.assert_close(laplacian.flatten()[i], hessian.reshape(16, 16).trace())


@pytest.mark.parametrize(("kind", "smooth"), [("affine", True), ("spline", False)])
def test_the_affine_flow_has_a_continuous_second_derivative(kind, smooth):
    """Along a line: on a grid twice as fine it changes by half as much from point to point, where it does not jump."""
    flow, x = moved((1, 4, 4), layers=2, transform=kind)
    v = torch.randn_like(x[:1])

    def largest_change(points):
        s = torch.linspace(0, 1, points, dtype=x.dtype).reshape(-1, 1, 1, 1)
        return second_derivative(flow.latent, x[:1] + s * v, v.expand(points, -1, -1, -1)).diff(dim=0).abs().amax()

    ratio = (largest_change(801) / largest_change(401)).item()
    assert ratio < 0.55 if smooth else ratio > 0.8


def test_under_autocast_the_log_determinant_is_in_single_precision():
    torch.manual_seed(0)
    flow, x = perturb(AutoregressiveFlow((1, 8, 8))).flows[0].eval(), torch.rand(3, 1, 8, 8)
    z, log_det = flow(x)
    with torch.autocast("cpu", torch.bfloat16):
        lower, lower_log_det = flow(x)
    assert lower.dtype == lower_log_det.dtype == torch.float32
    torch.testing.assert_close(lower, z, rtol=0, atol=0.1)
    torch.testing.assert_close(lower_log_det, log_det, rtol=0.01, atol=0.1)
