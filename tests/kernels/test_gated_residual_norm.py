"""The gated residual with the norm that follows it, against its formula and against the two operations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import layer_norm

from syncflow.kernels import gated_residual, gated_residual_norm, implementation, modulated_layer_norm
from syncflow.kernels.launch import tiles

EPS = 1e-6


def formulation(x, branch, gate_table, rows, gate_part, norm_table, norm_part, eps):
    def part(table, index):
        return (table[index] + rows[:, :, index]).to(x.dtype)[:, :, None]

    y = x + branch * (1 if gate_table is None else part(gate_table, gate_part + 2))
    normed = layer_norm(y, x.shape[-1:], eps=eps)
    return y, torch.addcmul(part(norm_table, norm_part), normed, 1 + part(norm_table, norm_part + 1))


def inputs(rows, frames, tokens, width, dtype, seed, *, parts=(0, 3), gated=True, per_frame=False, strided=False):
    """``strided``: x and branch in the order (R, S, T, D)."""
    generator = torch.Generator().manual_seed(seed)
    x, branch = (3 * torch.randn(rows, tokens, frames, width, generator=generator).transpose(1, 2) for _ in range(2))
    gate_table, norm_table = (torch.randn(6, width, generator=generator).to(dtype) for _ in range(2))
    modulation = torch.randn(rows, frames if per_frame else 1, 6, width, generator=generator)
    x, branch = (
        (x.to(dtype), branch.to(dtype)) if strided else (x.contiguous().to(dtype), branch.contiguous().to(dtype))
    )
    return (x, branch, gate_table if gated else None, modulation.to(dtype), parts[0], norm_table, parts[1], EPS)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@given(
    rows=st.integers(0, 2),
    frames=st.sampled_from([1, 2, 3]),
    tokens=st.sampled_from([1, 3, 5]),
    width=st.sampled_from([6, 48, 73, 128, 1152]),
    parts=st.sampled_from([(0, 3), (3, 0)]),
    gated=st.booleans(),
    per_frame=st.booleans(),
    strided=st.booleans(),
    each=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_equals_the_formula(check, dtype, rows, frames, tokens, width, parts, gated, per_frame, strided, each, seed):
    options = {"parts": parts, "gated": gated, "per_frame": per_frame, "strided": strided}
    with tiles.override("gated_residual_norm", {"TOKENS": each}):
        check(gated_residual_norm, formulation, *inputs(rows, frames, tokens, width, dtype, seed, **options))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [73, 1152])
@pytest.mark.parametrize("name", ["reference", "triton"])
def test_equals_the_two_operations(name, width, dtype):
    x, branch, gate_table, rows, gate_part, norm_table, norm_part, eps = inputs(2, 2, 5, width, dtype, 0)
    with torch.no_grad(), implementation(name):
        y, n = gated_residual_norm(x, branch, gate_table, rows, gate_part, norm_table, norm_part, eps)
        expected = gated_residual(x, branch, gate_table, rows, gate_part)
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
        expected = modulated_layer_norm(y, norm_table, rows, norm_part, eps)
    floor = 2 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(n, expected, rtol=0, atol=floor)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1537, 2048, 4095, 4096])
def test_wide_tokens(check, width):
    check(gated_residual_norm, formulation, *inputs(1, 1, 3, width, torch.bfloat16, 0))


def test_tables_in_float32(check):
    x, branch, gate_table, rows, gate_part, norm_table, norm_part, eps = inputs(2, 2, 5, 48, torch.bfloat16, 0)
    wide = (gate_table.float(), rows.float(), gate_part, norm_table.float(), norm_part, eps)
    check(gated_residual_norm, formulation, x, branch, *wide)


def test_without_a_gate_the_residual_is_the_plain_sum():
    x, branch, *rest = inputs(2, 3, 4, 8, torch.float32, 0, gated=False)
    for name in ("reference", "triton"):
        with torch.no_grad(), implementation(name):
            y, _ = gated_residual_norm(x, branch, *rest)
        torch.testing.assert_close(y, x + branch, rtol=0, atol=0)


def test_where_no_kernel_takes_the_arguments():
    x, branch, *rest = inputs(1, 1, 1, 8, torch.float32, 0)
    assert gated_residual_norm.plan_launches(x, branch.bfloat16(), *rest) is None
    assert gated_residual_norm.plan_launches(x.double(), branch.double(), *rest) is None
    assert gated_residual_norm.plan_launches(*inputs(1, 1, 1, 4097, torch.float32, 0)) is None
