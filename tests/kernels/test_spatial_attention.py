"""Spatial attention against SDPA, frame by frame."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from syncflow.kernels import implementation, spatial_attention

EPS = 1e-6


def formulation(qkv, q_weight, k_weight, eps):
    q, k, v = (x.transpose(2, 3) for x in qkv.unbind(3))  # (R, T, n, S, d)
    q, k = rms_norm(q, q.shape[-1:], q_weight, eps), rms_norm(k, k.shape[-1:], k_weight, eps)
    return scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(3)


def inputs(rows, frames, tokens, heads, width, dtype, seed, strided=False):
    generator = torch.Generator().manual_seed(seed)
    shape = (frames, rows, tokens, 3, heads, width) if strided else (rows, frames, tokens, 3, heads, width)
    qkv = torch.randn(shape, generator=generator)
    weights = (0.5 + torch.rand(width, generator=generator) for _ in range(2))
    return ((qkv.transpose(0, 1) if strided else qkv).to(dtype), *(w.to(dtype) for w in weights), EPS)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@given(
    rows=st.integers(0, 2),
    frames=st.integers(1, 2),
    tokens=st.sampled_from([0, 1, 2, 7, 31, 64, 67, 131]),
    heads=st.integers(1, 2),
    width=st.sampled_from([32, 48, 64, 72, 128]),
    strided=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_equals_sdpa(check, dtype, rows, frames, tokens, heads, width, strided, seed):
    check(spatial_attention, formulation, *inputs(rows, frames, tokens, heads, width, dtype, seed, strided))


def test_one_token_attends_to_itself():
    qkv, *rest = inputs(2, 3, 1, 2, 8, torch.float32, 0)
    torch.testing.assert_close(spatial_attention(qkv, *rest), qkv[:, :, :, 2].flatten(3))


@pytest.mark.parametrize("name", ["reference", "auto", "triton"])
def test_frames_do_not_see_each_other(name):
    qkv, *rest = inputs(1, 3, 4, 2, 8, torch.float32, 0)
    changed = qkv.clone()
    changed[:, 1] += 1
    with torch.no_grad(), implementation(name):
        before, after = spatial_attention(qkv, *rest), spatial_attention(changed, *rest)
    torch.testing.assert_close(before[:, [0, 2]], after[:, [0, 2]], rtol=0, atol=0)
    assert not torch.allclose(before[:, 1], after[:, 1])
