"""A linear layer and its GELU against the two formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from syncflow.kernels import implementation, linear_gelu
from syncflow.kernels.launch import tiles


def formulation(x, weight, bias):
    u = torch.einsum("...k,nk->...n", x, weight) + bias
    return 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))


def inputs(leading, k, n, dtype, seed, strided=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*leading, 2 * k if strided else k, generator=generator).to(dtype)
    weight = (torch.randn(n, k, generator=generator) / math.sqrt(k)).to(dtype)
    return x[..., :k], weight, torch.randn(n, generator=generator).to(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(
    leading=st.sampled_from([(1,), (5,), (130,), (2, 3, 7)]),
    k=st.sampled_from([1, 16, 72, 130]),
    n=st.sampled_from([1, 16, 72, 130]),
    strided=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=30)
def test_equals_the_formulas(check, dtype, leading, k, n, strided, seed):
    check(linear_gelu, formulation, *inputs(leading, k, n, dtype, seed, strided))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("leading", "k", "n", "dtype"),
    [((5,), 1152, 1152, torch.bfloat16), ((130,), 72, 200, torch.float16), ((2, 65, 9), 136, 320, torch.bfloat16)],
    ids=str,
)
def test_large_tiles(check, leading, k, n, dtype):
    """The tiles that large products use, whose epilogue goes by halves, and more groups of them than one."""
    with tiles.override("linear_gelu", {"BLOCK_M": 128, "BLOCK_N": 128, "GROUP": 2}):
        check(linear_gelu, formulation, *inputs(leading, k, n, dtype, 0))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")
@pytest.mark.parametrize("name", ["reference", "auto", "triton"])
def test_far_from_zero_it_is_the_identity_or_nothing(name):
    x, weight = torch.tensor([[-1e4], [-20.0], [0.0], [20.0], [1e4]]), torch.ones(1, 1)
    with torch.no_grad(), implementation(name):
        y = linear_gelu(x, weight, torch.zeros(1))
    torch.testing.assert_close(y, x.clamp(min=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["reference", "auto", "triton"])
def test_no_tokens(name):
    x, weight, bias = inputs((2, 0), 16, 8, torch.float32, 0)
    with torch.no_grad(), implementation(name):
        assert linear_gelu(x, weight, bias).shape == (2, 0, 8)


def test_a_token_does_not_depend_on_how_many_there_are():
    """Neither tiles nor batch change the order of its sums."""
    x, weight, bias = inputs((300,), 200, 136, torch.bfloat16, 0)
    with torch.no_grad(), implementation("triton"):
        alone = linear_gelu(x[:3], weight, bias)
        with tiles.override("linear_gelu", {"BLOCK_M": 128, "BLOCK_N": 128}):
            together = linear_gelu(x, weight, bias)
    torch.testing.assert_close(together[:3], alone, rtol=0, atol=0)


def test_what_no_kernel_takes():
    x, weight, bias = inputs((3,), 16, 8, torch.float32, 0)
    assert linear_gelu.plan_launches(x.double(), weight.double(), bias.double()) is None
    assert linear_gelu.plan_launches(x.bfloat16(), weight, bias) is None


def test_who_computes_on_a_gpu():
    """The library, unless the tile rules or the user ask for the kernel."""
    with FakeTensorMode():
        x, weight, bias = (torch.empty(*shape, device="cuda") for shape in ((2, 3, 16), (32, 16), (32,)))
        y, launches = linear_gelu.plan_launches(x, weight, bias)
        assert (y.shape, y.dtype, launches) == ((2, 3, 32), torch.float32, [])
        with tiles.override("linear_gelu", {"TRITON": 1}):
            _, (launch,) = linear_gelu.plan_launches(x, weight, bias)
        with implementation("triton"):
            assert len(linear_gelu.plan_launches(x, weight, bias)[1]) == 1
    assert "TRITON" not in launch.tiles
