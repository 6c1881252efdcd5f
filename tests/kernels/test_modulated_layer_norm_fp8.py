"""The quantising norm: every code is the nearest to the float64 value, every scale the largest value over 448."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import layer_norm

from syncflow.kernels import implementation, modulated_layer_norm_fp8
from syncflow.kernels.launch import interpreted, tiles, tl, triton
from syncflow.kernels.modulated_layer_norm_fp8 import to_e4m3

EPS = 1e-6
CODES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
GRID = CODES[CODES.isfinite()].unique()  # all numbers that a code can hold


def formulation(x, table, rows, part, eps):
    modulation = (table + rows).unsqueeze(2)
    return layer_norm(x, x.shape[-1:], eps=eps) * (1 + modulation[..., part + 1, :]) + modulation[..., part, :]


def inputs(rows, frames, tokens, width, dtype, seed, *, part=0, per_frame=False, strided=False):
    """``strided``: x in the order (R, S, T, D)."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(rows, tokens, frames, width, generator=generator).transpose(1, 2) + 1
    table = torch.randn(6, width, generator=generator)
    modulation = torch.randn(rows, frames if per_frame else 1, 6, width, generator=generator)
    return ((x if strided else x.contiguous()).to(dtype), table.to(dtype), modulation.to(dtype), part, EPS)


def nearest(values):
    """The numbers of the grid that are nearest to ``values``."""
    upper = torch.searchsorted(GRID.double(), values.contiguous()).clamp(1, len(GRID) - 1)
    below, above = GRID.double()[upper - 1], GRID.double()[upper]
    return torch.where(values - below <= above - values, below, above)


def check_codes(arguments):
    """Codes and scales within float32's error, 1e-5 of a token's largest value, of the best for the float64 norm."""
    x, table, rows, part, eps = arguments
    exact = formulation(x.double(), table.double(), rows.double(), part, eps)
    assert modulated_layer_norm_fp8.plan_launches(*arguments) is not None
    for name in ("reference", "triton"):
        with torch.no_grad(), implementation(name):
            codes, scales = modulated_layer_norm_fp8(*arguments)
        assert codes.dtype == torch.float8_e4m3fn
        assert codes.shape == x.shape
        assert codes.is_contiguous()
        assert scales.dtype == torch.float32
        assert scales.shape == x.shape[:-1]
        if not x.numel():
            continue
        scale, top = scales.double()[..., None], exact.abs().amax(-1, keepdim=True)
        torch.testing.assert_close(scale, top / 448, rtol=1e-5, atol=0)
        best = (nearest(exact / scale) * scale - exact).abs()
        error = (codes.double() * scale - exact).abs()
        assert ((error - best) / top).max() <= 1e-5
        assert (codes.float().abs().amax(-1) == 448).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@given(
    rows=st.integers(0, 2),
    frames=st.sampled_from([1, 2, 3]),
    tokens=st.sampled_from([1, 3, 5]),
    width=st.sampled_from([2, 48, 73, 128, 1152]),
    part=st.sampled_from([0, 3]),
    per_frame=st.booleans(),
    strided=st.booleans(),
    each=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_codes_are_the_nearest(dtype, rows, frames, tokens, width, part, per_frame, strided, each, seed):
    options = {"part": part, "per_frame": per_frame, "strided": strided}
    with tiles.override("modulated_layer_norm_fp8", {"TOKENS": each}):
        check_codes(inputs(rows, frames, tokens, width, dtype, seed, **options))


@pytest.mark.parametrize("width", [1537, 2048, 4095, 4096])
def test_wide_tokens(width):
    check_codes(inputs(1, 1, 3, width, torch.bfloat16, 0))


def test_tables_in_float32():
    x, table, rows, part, eps = inputs(2, 2, 5, 48, torch.bfloat16, 0)
    check_codes((x, table.float(), rows.float(), part, eps))


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_a_token_of_zeros_has_codes_of_zero(name):
    x = torch.cat((torch.full((1, 1, 2, 48), 7.0), torch.randn(1, 1, 1, 48)), 2)
    with torch.no_grad(), implementation(name):
        codes, scales = modulated_layer_norm_fp8(x, torch.zeros(6, 48), torch.zeros(1, 1, 6, 48), 0, EPS)
    assert (codes[:, :, :2].float() == 0).all()
    assert codes[:, :, 2].float().abs().max() == 448
    assert (scales > 0).all()


@triton.jit
def round_all(values, codes, COUNT: tl.constexpr):
    o_value = tl.arange(0, COUNT)
    tl.store(codes + o_value, to_e4m3(tl.load(values + o_value)))


def test_rounding_is_to_the_nearest_and_ties_to_even():
    """Every number of the grid, the middles between two, and their float32 neighbours, as PyTorch rounds them."""
    middles = (GRID[1:] + GRID[:-1]) / 2
    up, down = (torch.nextafter(middles, torch.tensor(end)) for end in (1e9, -1e9))
    values = torch.cat((GRID, middles, up, down, torch.tensor([448.00003, -448.00003, 1e-30])))
    device = "cpu" if interpreted() else "cuda"
    values = torch.nn.functional.pad(values, (0, 1024 - len(values))).to(device)
    codes = torch.empty(1024, dtype=torch.float8_e4m3fn, device=device)
    round_all[(1,)](values, codes, 1024)
    torch.testing.assert_close(codes.float(), values.to(torch.float8_e4m3fn).float(), rtol=0, atol=0)


def test_codes_and_scales_have_no_derivative():
    x, *rest = inputs(1, 1, 2, 8, torch.float32, 0)
    codes, scales = modulated_layer_norm_fp8(x.requires_grad_(), *rest)
    assert not codes.requires_grad
    assert not scales.requires_grad


def test_where_no_kernel_takes_the_arguments():
    x, *rest = inputs(1, 1, 1, 8, torch.float32, 0)
    assert modulated_layer_norm_fp8.plan_launches(x.double(), *rest) is None
    assert modulated_layer_norm_fp8.plan_launches(*inputs(1, 1, 1, 4097, torch.float32, 0)) is None
