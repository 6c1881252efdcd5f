"""The modulated layer norm against mean and variance written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.kernels import modulated_layer_norm

EPS = 1e-6


def formulation(x, table, rows, part, eps):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(-1, keepdim=True)
    normed = (centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()).to(x.dtype)
    shift = (table[part] + rows[:, :, part]).to(x.dtype)
    scale = (table[part + 1] + rows[:, :, part + 1]).to(x.dtype)
    return normed * (1 + scale[:, :, None]) + shift[:, :, None]


def inputs(rows, frames, tokens, width, dtype, seed, *, parts=6, part=0, per_frame=False, strided=False):
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(rows, tokens, frames, width, generator=generator).transpose(1, 2) + 1
    table = torch.randn(parts, width, generator=generator)
    modulation = torch.randn(rows, frames if per_frame else 1, parts, width, generator=generator)
    return ((x if strided else x.contiguous()).to(dtype), table.to(dtype), modulation.to(dtype), part, EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(
    rows=st.integers(1, 3),
    frames=st.sampled_from([1, 2, 5]),
    tokens=st.sampled_from([1, 3, 7]),
    width=st.sampled_from([2, 48, 73, 128, 1152]),
    layout=st.sampled_from([(6, 0), (6, 3), (2, 0)]),
    per_frame=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_equals_the_formula(check, dtype, rows, frames, tokens, width, layout, per_frame, strided, seed):
    parts, part = layout
    arguments = inputs(
        rows, frames, tokens, width, dtype, seed, parts=parts, part=part, per_frame=per_frame, strided=strided
    )
    check(modulated_layer_norm, formulation, *arguments)


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
    repeated = modulated_layer_norm(x, table, rows.expand(-1, 3, -1, -1), part, eps)
    torch.testing.assert_close(repeated, modulated_layer_norm(x, table, rows, part, eps), rtol=0, atol=0)
