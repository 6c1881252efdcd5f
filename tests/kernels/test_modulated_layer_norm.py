"""The modulated layer norm against mean and variance written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.kernels import implementation, modulated_layer_norm
from syncflow.kernels.launch import tiles

EPS = 1e-6


def formulation(x, table, rows, part, eps):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(-1, keepdim=True)
    normed = (centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()).to(x.dtype)
    shift = (table[part] + rows[:, :, part]).to(x.dtype)
    scale = (table[part + 1] + rows[:, :, part + 1]).to(x.dtype)
    return normed * (1 + scale[:, :, None]) + shift[:, :, None]


def inputs(rows, frames, tokens, width, dtype, seed, *, parts=6, part=0, per_frame=False, strided=False, wide=False):
    """``strided``: x in the order (R, S, T, D), one modulation for all parts; ``wide``: tables in float32."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(rows, tokens, frames, width, generator=generator).transpose(1, 2) + 1
    table = torch.randn(parts, width, generator=generator)
    modulation = torch.randn(rows, frames if per_frame else 1, 1 if strided else parts, width, generator=generator)
    modulation = modulation.expand(-1, -1, parts, -1)
    tables = torch.float32 if wide else dtype
    return ((x if strided else x.contiguous()).to(dtype), table.to(tables), modulation.to(tables), part, EPS)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@given(
    rows=st.integers(0, 2),
    frames=st.sampled_from([1, 2, 3]),
    tokens=st.sampled_from([1, 3, 5]),
    width=st.sampled_from([2, 48, 73, 128, 1152]),
    layout=st.sampled_from([(6, 0), (6, 3), (2, 0)]),
    per_frame=st.booleans(),
    strided=st.booleans(),
    wide=st.booleans(),
    each=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_equals_the_formula(check, dtype, rows, frames, tokens, width, layout, per_frame, strided, wide, each, seed):
    parts, part = layout
    options = {"parts": parts, "part": part, "per_frame": per_frame, "strided": strided, "wide": wide}
    with tiles.override("modulated_layer_norm", {"TOKENS": each}):
        check(modulated_layer_norm, formulation, *inputs(rows, frames, tokens, width, dtype, seed, **options))


@pytest.mark.parametrize("width", [1537, 2048, 4095, 4096])
def test_wide_tokens(check, width):
    check(modulated_layer_norm, formulation, *inputs(1, 1, 3, width, torch.bfloat16, 0))


def test_channels_that_are_no_neighbours(check):
    x, table, rows, part, eps = inputs(2, 3, 5, 48, torch.float32, 0)
    x, table, rows = (a.transpose(-1, -2).contiguous().transpose(-1, -2) for a in (x, table, rows))
    check(modulated_layer_norm, formulation, x, table, rows, part, eps)


def test_a_mean_that_dwarfs_the_deviation(check):
    x, *rest = inputs(1, 1, 4, 1152, torch.float32, 0)
    check(modulated_layer_norm, formulation, x + 1000, *rest)


def test_where_no_kernel_takes_the_arguments():
    x, table, rows, part, eps = inputs(1, 1, 1, 8, torch.float64, 0)
    assert modulated_layer_norm.plan_launches(x, table, rows, part, eps) is None
    assert modulated_layer_norm.plan_launches(x.float(), table, rows, part, eps) is None
    assert modulated_layer_norm.plan_launches(*inputs(1, 1, 1, 4097, torch.float32, 0)) is None


@pytest.mark.parametrize("tokens", [1, 100, 256, 2048])
def test_a_row_does_not_know_how_many_share_its_batch(tokens):
    """Programs take as many tokens whatever R is: the order of a token's sums stays."""

    def launch(rows):
        x = torch.empty(rows, 8, tokens, 1152, dtype=torch.bfloat16, device="meta")
        table, modulation = x.new_empty(6, 1152), x.new_empty(rows, 8, 6, 1152)
        _, (launch,) = modulated_layer_norm.plan_launches(x, table, modulation, 0, EPS)
        return launch

    alone, shared = launch(1), launch(64)
    assert alone.tiles == shared.tiles
    assert alone.grid[:2] == shared.grid[:2]


def test_without_modulation_every_token_has_mean_0_and_variance_1():
    x = 5 * torch.randn(2, 3, 4, 64, generator=torch.Generator().manual_seed(0)) - 2
    normed = modulated_layer_norm(x, torch.zeros(6, 64), torch.zeros(2, 1, 6, 64), 0, EPS)
    torch.testing.assert_close(normed.mean(-1), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.var(-1, correction=0), torch.ones(2, 3, 4), atol=1e-4, rtol=0)


def test_a_constant_token_becomes_the_shift():
    x, table, rows, part, eps = inputs(2, 3, 4, 8, torch.float32, 0)
    shifted = modulated_layer_norm(torch.full_like(x, 7.0), table, rows, part, eps)
    torch.testing.assert_close(shifted, (table[0] + rows[:, :, 0])[:, :, None].expand_as(x), atol=1e-4, rtol=0)


def test_equal_frames_are_one_frame_repeated():
    x, table, rows, part, eps = inputs(2, 3, 4, 8, torch.float32, 0)
    for name in ("reference", "triton"):
        with torch.no_grad(), implementation(name):
            once, expanded, repeated = (
                modulated_layer_norm(x, table, r, part, eps)
                for r in (rows, rows.expand(-1, 3, -1, -1), rows.repeat(1, 3, 1, 1))
            )
        torch.testing.assert_close(expanded, once, rtol=0, atol=0)
        torch.testing.assert_close(repeated, once, rtol=0, atol=0)
