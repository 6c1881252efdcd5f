"""Temporal attention against SDPA over rotations by complex numbers, position by position."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from syncflow.kernels import implementation, rope_table, temporal_attention
from syncflow.kernels.launch import tiles

EPS = 1e-6


def rotated(x, rope):
    """(..., T, d) with channel pairs as complex numbers, each multiplied by cos + i sin."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    turn = torch.view_as_complex(rope)
    return torch.view_as_real(torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * turn).flatten(-2).to(x.dtype)


def formulation(qkv, q_weight, k_weight, rope, eps):
    q, k, v = (x.permute(0, 2, 3, 1, 4) for x in qkv.unbind(3))  # (R, S, n, T, d)
    q = rotated(rms_norm(q, q.shape[-1:], q_weight, eps), rope)
    k = rotated(rms_norm(k, k.shape[-1:], k_weight, eps), rope)
    return scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2, 4).flatten(3)


def inputs(rows, frames, tokens, heads, width, dtype, seed, strided=False):
    generator = torch.Generator().manual_seed(seed)
    shape = (tokens, frames, rows, 3, heads, width) if strided else (rows, frames, tokens, 3, heads, width)
    qkv = torch.randn(shape, generator=generator)
    weights = (0.5 + torch.rand(width, generator=generator) for _ in range(2))
    angles = 10 * torch.randn(frames, width // 2, generator=generator)
    return (
        (qkv.transpose(0, 2) if strided else qkv).to(dtype),
        *(w.to(dtype) for w in weights),
        rope_table(angles),
        EPS,
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@given(
    rows=st.integers(0, 2),
    frames=st.sampled_from([1, 2, 5, 8, 13, 31, 64, 67, 131]),
    tokens=st.sampled_from([0, 1, 3]),
    heads=st.integers(1, 2),
    width=st.sampled_from([32, 48, 64, 72, 128]),
    strided=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_equals_complex_rotation_and_sdpa(check, dtype, rows, frames, tokens, heads, width, strided, seed):
    check(temporal_attention, formulation, *inputs(rows, frames, tokens, heads, width, dtype, seed, strided))


@pytest.mark.slow
@pytest.mark.parametrize("frames", [257, 320])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keys_of_long_sequences_are_rotated_first(check, dtype, frames):
    arguments = inputs(1, frames, 2, 1, 72, dtype, 0, strided=True)
    kernels = [launch.kernel.__name__ for launch in temporal_attention.plan_launches(*arguments)[1]]
    assert kernels == ["rotate_keys_kernel", "flash_attention_kernel"]
    check(temporal_attention, formulation, *arguments)


@pytest.mark.parametrize("each", [2, 4, 8])
def test_a_tile_rule_that_does_not_divide_the_heads_leaves_none_out(check, each):
    arguments = inputs(1, 5, 3, 6, 16, torch.float32, 0)
    with tiles.override("temporal_attention", {"HEADS_EACH": each}):
        check(temporal_attention, formulation, *arguments)


def test_one_frame_attends_to_itself():
    qkv, *rest = inputs(2, 1, 3, 2, 8, torch.float32, 0)
    torch.testing.assert_close(temporal_attention(qkv, *rest), qkv[:, :, :, 2].flatten(3))


@pytest.mark.parametrize("name", ["reference", "auto", "triton"])
def test_positions_do_not_see_each_other(name):
    qkv, *rest = inputs(1, 4, 3, 2, 8, torch.float32, 0)
    changed = qkv.clone()
    changed[:, :, 1] += 1
    with torch.no_grad(), implementation(name):
        before, after = temporal_attention(qkv, *rest), temporal_attention(changed, *rest)
    torch.testing.assert_close(before[:, :, [0, 2]], after[:, :, [0, 2]], rtol=0, atol=0)
    assert not torch.allclose(before[:, :, 1], after[:, :, 1])


def test_only_differences_of_positions_count():
    qkv, q_weight, k_weight, _, eps = inputs(1, 5, 2, 2, 8, torch.float64, 0)
    frequencies = 10.0 ** -torch.arange(4, dtype=torch.float64)
    near, far = (torch.arange(start, start + 5)[:, None] * frequencies for start in (0, 11))
    rope = (rope_table(angles) for angles in (near, far, 2 * near))
    here, there, slower = (temporal_attention(qkv, q_weight, k_weight, turn, eps) for turn in rope)
    torch.testing.assert_close(here, there)
    assert not torch.allclose(here, slower, atol=1e-3)
