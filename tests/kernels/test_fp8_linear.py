"""A linear layer on 8-bit codes against the product of the numbers that they stand for."""

from __future__ import annotations

import math
import sys
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from syncflow.kernels import fp8_linear, implementation
from syncflow.kernels.launch import tiles

CODE = torch.float8_e4m3fn


def formulation(codes, scales, weight_codes, weight_scales, bias, gelu):
    wide = torch.float64 if scales.dtype == torch.float64 else torch.float32
    u = torch.einsum("...k,nk->...n", codes.to(wide), weight_codes.to(wide)) * scales[..., None] * weight_scales
    return activated(u + bias.to(wide), bias.dtype, gelu)


def with_roundings_of_terms(codes, scales, weight_codes, weight_scales, bias, gelu, roundings=1):
    """Where terms cancel, the output is less than what rounding leaves of their sums, whose spread counts here."""
    u = formulation(codes, scales, weight_codes, weight_scales, bias.to(scales.dtype), False)
    x, weight = codes.to(u.dtype) * scales[..., None], weight_codes.to(u.dtype) * weight_scales[:, None]
    spread = torch.maximum((x.square() @ weight.square().T).sqrt(), bias.abs().to(u.dtype))
    return activated(u + roundings * torch.finfo(u.dtype).eps * spread, bias.dtype, gelu)


def activated(u, dtype, gelu):
    y = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))) if gelu else u
    return y.to(dtype)


def quantised(x):
    scales = x.abs().amax(-1).clamp(min=1e-12) / 448
    return (x / scales[..., None]).to(CODE), scales


def inputs(leading, k, n, dtype, seed, gelu=False):
    generator = torch.Generator().manual_seed(seed)
    codes, scales = quantised(torch.randn(*leading, k, generator=generator))
    weight_codes, weight_scales = quantised(torch.randn(n, k, generator=generator) / math.sqrt(k))
    return codes, scales, weight_codes, weight_scales, torch.randn(n, generator=generator).to(dtype), gelu


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(
    leading=st.sampled_from([(1,), (5,), (130,), (2, 3, 7)]),
    k=st.sampled_from([1, 16, 72, 130, 256]),
    n=st.sampled_from([1, 16, 72, 130]),
    gelu=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=30)
def test_equals_the_product_of_the_numbers(check, dtype, leading, k, n, gelu, seed):
    orders = (with_roundings_of_terms, partial(with_roundings_of_terms, roundings=-1))
    check(fp8_linear, formulation, *inputs(leading, k, n, dtype, seed, gelu), orders=orders)


@pytest.mark.parametrize(
    ("leading", "k", "n", "dtype"),
    [((5,), 1152, 1152, torch.bfloat16), ((130,), 200, 200, torch.float16)],
    ids=str,
)
def test_large_tiles(check, leading, k, n, dtype):
    with tiles.override("fp8_linear", {"BLOCK_M": 128, "BLOCK_N": 128, "GROUP": 2}):
        check(fp8_linear, formulation, *inputs(leading, k, n, dtype, 0, True))


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_every_code_counts_as_its_value(name):
    """All finite codes, subnormal ones too, each alone on the way through the product."""
    codes = torch.arange(256, dtype=torch.uint8).view(CODE)
    codes = codes[~codes.float().isnan()][:, None]
    one = torch.ones(1, 1).to(CODE)
    with torch.no_grad(), implementation(name):
        y = fp8_linear(codes, torch.ones(len(codes)), one, torch.ones(1), torch.zeros(1), False)
    torch.testing.assert_close(y, codes.float(), rtol=0, atol=0)


@pytest.mark.parametrize("gelu", [False, True])
def test_near_the_layer_that_was_quantised(gelu):
    """The codes keep 3 bits after the first: 1/16 of a number at most, 3 % of it as a root mean square."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 512, generator=generator), torch.randn(96, 512, generator=generator) / 16
    exact = torch.nn.functional.linear(x, weight)
    exact = torch.nn.functional.gelu(exact, approximate="tanh") if gelu else exact
    y = fp8_linear(*quantised(x), *quantised(weight), torch.zeros(96), gelu)
    assert (y - exact).square().mean() < 0.05**2 * exact.square().mean()


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_no_tokens(name):
    codes, scales, *rest = inputs((2, 1), 16, 8, torch.float32, 0)
    with torch.no_grad(), implementation(name):
        assert fp8_linear(codes[:, :0], scales[:, :0], *rest).shape == (2, 0, 8)


def test_what_no_kernel_takes():
    codes, scales, *rest, bias, gelu = inputs((3,), 16, 8, torch.float32, 0)
    assert fp8_linear.plan_launches(codes.to(torch.float8_e5m2), scales, *rest, bias, gelu) is None
    assert fp8_linear.plan_launches(codes, scales.double(), *rest, bias, gelu) is None
    assert fp8_linear.plan_launches(codes, scales, *rest, bias.double(), gelu) is None


@pytest.mark.parametrize(
    ("name", "dtype", "k", "able", "who"),
    [
        ("auto", torch.bfloat16, 16, True, "library"),
        ("auto", torch.float16, 16, True, "kernel"),
        ("auto", torch.bfloat16, 24, True, "kernel"),
        ("triton", torch.bfloat16, 16, True, "kernel"),
        ("auto", torch.bfloat16, 16, False, "reference"),
    ],
    ids=str,
)
def test_who_computes_on_a_gpu(monkeypatch, name, dtype, k, able, who):
    monkeypatch.setattr(sys.modules[fp8_linear.__module__], "has_fp8", lambda device: able)
    with FakeTensorMode(), implementation(name):
        codes, weight = (torch.empty(*shape, k, device="cuda", dtype=CODE) for shape in ((2, 3), (32,)))
        scales, weight_scales = torch.empty(2, 3, device="cuda"), torch.empty(32, device="cuda")
        bias = torch.empty(32, device="cuda", dtype=dtype)
        planned = fp8_linear.plan_launches(codes, scales, weight, weight_scales, bias, True)
    if planned is None:
        assert who == "reference"
        return
    y, launches = planned
    assert (y.shape, y.dtype) == ((2, 3, 32), dtype)
    assert len(launches) == {"library": 0, "kernel": 1}[who]
