"""Cross-attention with positions on both sides against SDPA over rotations by complex numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from syncflow.kernels import rope_cross_attention


def rotated(x, angles):
    """(R, n, N, d) with channel pairs as complex numbers, each multiplied by e^(i angle)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    turn = torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * turn).flatten(-2).to(x.dtype)


def formulation(q, k, v, q_angles, k_angles):
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    return scaled_dot_product_attention(rotated(q, q_angles), rotated(k, k_angles), v).transpose(1, 2).flatten(2)


def inputs(rows, queries, keys, heads, width, dtype, seed, strided=False):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, queries, heads, width, generator=generator)
    packed = torch.randn(rows, keys, 2, heads, width, generator=generator)
    k, v = packed.unbind(2) if strided else (x.contiguous() for x in packed.unbind(2))
    angles = (10 * torch.randn(count, width // 2, generator=generator) for count in (queries, keys))
    return (q.to(dtype), k.to(dtype), v.to(dtype), *angles)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(
    rows=st.integers(1, 3),
    queries=st.sampled_from([1, 2, 13, 25]),
    keys=st.sampled_from([1, 2, 9, 17]),
    heads=st.integers(1, 3),
    width=st.sampled_from([32, 48, 64, 72]),
    strided=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_equals_complex_rotation_and_sdpa(check, dtype, rows, queries, keys, heads, width, strided, seed):
    check(rope_cross_attention, formulation, *inputs(rows, queries, keys, heads, width, dtype, seed, strided))


def test_one_key_is_all_that_is_read():
    q, k, v, *angles = inputs(2, 3, 1, 2, 8, torch.float32, 0)
    torch.testing.assert_close(rope_cross_attention(q, k, v, *angles), v.flatten(2).expand(-1, 3, -1))


def test_only_differences_between_the_clocks_count():
    q, k, v, q_angles, k_angles = inputs(1, 4, 5, 2, 8, torch.float64, 0)
    here = rope_cross_attention(q, k, v, q_angles.double(), k_angles.double())
    both_later = rope_cross_attention(q, k, v, q_angles.double() + 3, k_angles.double() + 3)
    one_later = rope_cross_attention(q, k, v, q_angles.double() + 3, k_angles.double())
    torch.testing.assert_close(here, both_later)
    assert not torch.allclose(here, one_later, atol=1e-3)
