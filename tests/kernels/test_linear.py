"""The linear layer by a library of the CPU against the product written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from syncflow.kernels import implementation, linear, native, patch_embedding

ONEDNN = torch.backends.mkldnn.is_available()


def inputs(leading, k, n, dtype, seed, strided=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*leading, 2 * k if strided else k, generator=generator).to(dtype)
    weight = (torch.randn(n, k, generator=generator) / k**0.5).to(dtype)
    return x[..., :k], weight, torch.randn(n, generator=generator).to(dtype)


def called(function):
    """The names of the operations of PyTorch that a call runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return {event.name for event in profile.events()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@given(
    leading=st.sampled_from([(0,), (1,), (3, 0, 2), (130,), (2, 3, 101), (2, 8, 16)]),
    k=st.sampled_from([1, 72, 128, 130]),
    n=st.sampled_from([1, 72, 128, 515]),
    strided=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_equals_the_product(dtype, leading, k, n, strided, seed):
    x, weight, bias = inputs(leading, k, n, dtype, seed, strided)
    with torch.no_grad():
        y = linear(x, weight, bias)
    exact = torch.einsum("...k,nk->...n", x.double(), weight.double()) + bias.double()
    assert (y.shape, y.dtype) == (exact.shape, dtype)
    assert y.is_contiguous()
    if y.numel():
        plain = (functional.linear(x, weight, bias).double() - exact).abs().max()
        floor = 2 * torch.finfo(dtype).eps * exact.abs().max()
        assert (y.double() - exact).abs().max() <= 2 * plain + floor


@pytest.mark.skipif(not ONEDNN, reason="PyTorch comes without oneDNN here")
def test_only_large_products_of_float32_go_to_onednn(monkeypatch):
    monkeypatch.setattr(native, "EXTENSION", None)
    op = "mkldnn::_linear_pointwise"
    with torch.no_grad():
        for shape, dtype, expected in (
            (((256,), 128, 128), torch.float32, True),
            (((8,), 128, 128), torch.float32, False),
            (((256,), 128, 128), torch.float64, False),
        ):
            arguments = inputs(*shape, dtype, 0)
            assert (op in called(lambda a=arguments: linear(*a))) is expected
        large = inputs((256,), 128, 128, torch.float32, 0)
        with implementation("reference"):
            assert op not in called(lambda: linear(*large))


def test_gradients_are_those_of_the_linear_layer():
    x, weight, bias = (a.requires_grad_() for a in inputs((256,), 128, 128, torch.float32, 0))
    found = torch.autograd.grad(linear(x, weight, bias).sum(), (x, weight, bias))
    expected = torch.autograd.grad(functional.linear(x, weight, bias).sum(), (x, weight, bias))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_compilers_see_a_linear_layer():
    class Layer(nn.Module):
        def forward(self, x, weight, bias):
            return linear(x, weight, bias)

    arguments = inputs((256,), 128, 128, torch.float32, 0)
    with torch.no_grad():
        exported = torch.export.export(Layer(), arguments)
    called = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert called == [torch.ops.aten.linear.default]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(
    rows=st.integers(0, 3),
    channels=st.integers(1, 5),
    frames=st.integers(1, 4),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    patch=st.integers(1, 3),
    width=st.sampled_from([1, 32, 50]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_patches_are_a_convolution(dtype, rows, channels, frames, size, patch, width, seed):
    """The same on a CPU without gradients as everywhere else, also of latents that lie strided."""
    generator = torch.Generator().manual_seed(seed)
    height, across = size[0] * patch, size[1] * patch
    z = torch.randn(rows, frames, channels, height, across, generator=generator).transpose(1, 2).to(dtype)
    weight = torch.randn(width, channels, 1, patch, patch, generator=generator).to(dtype)
    bias = torch.randn(width, generator=generator).to(dtype)
    with torch.no_grad():
        found = patch_embedding(z, weight, bias)
    exact = (
        functional.conv3d(z.double(), weight.double(), bias.double(), stride=(1, patch, patch))
        .flatten(3)
        .permute(0, 2, 3, 1)
    )
    assert (found.shape, found.dtype) == ((rows, frames, size[0] * size[1], width), dtype)
    tolerance = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance * (channels * patch**2) ** 0.5)
    given = patch_embedding(z, weight, bias)  # with gradients on
    torch.testing.assert_close(given.double(), exact, rtol=tolerance, atol=tolerance * (channels * patch**2) ** 0.5)
