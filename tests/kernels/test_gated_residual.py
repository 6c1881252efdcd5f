"""The gated residual against its formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.kernels import gated_residual
from syncflow.kernels.launch import tiles


def formulation(x, branch, table, rows, part):
    gate = (table[part + 2] + rows[:, :, part + 2]).to(x.dtype)
    return torch.addcmul(x, gate.unsqueeze(2).expand_as(x), branch)


def inputs(rows, frames, tokens, width, dtype, seed, *, part=0, per_frame=False, strided=False, wide=False):
    """``strided``: x and branch in the order (R, S, T, D); ``wide``: tables in float32."""
    generator = torch.Generator().manual_seed(seed)
    x, branch = (torch.randn(rows, tokens, frames, width, generator=generator).transpose(1, 2) for _ in range(2))
    table = torch.randn(6, width, generator=generator)
    modulation = torch.randn(rows, frames if per_frame else 1, 6, width, generator=generator)
    x, branch = (x, branch) if strided else (x.contiguous(), branch.contiguous())
    tables = torch.float32 if wide else dtype
    return (x.to(dtype), branch.to(dtype), table.to(tables), modulation.to(tables), part)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@given(
    rows=st.integers(0, 2),
    frames=st.sampled_from([1, 2, 3]),
    tokens=st.sampled_from([1, 3, 5]),
    width=st.sampled_from([1, 48, 73, 128, 1152]),
    part=st.sampled_from([0, 3]),
    per_frame=st.booleans(),
    strided=st.booleans(),
    wide=st.booleans(),
    each=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_equals_the_formula(check, dtype, rows, frames, tokens, width, part, per_frame, strided, wide, each, seed):
    options = {"part": part, "per_frame": per_frame, "strided": strided, "wide": wide}
    with tiles.override("gated_residual", {"TOKENS": each}):
        check(gated_residual, formulation, *inputs(rows, frames, tokens, width, dtype, seed, **options))


@pytest.mark.parametrize("width", [1537, 2048, 4095, 4096])
def test_wide_tokens(check, width):
    check(gated_residual, formulation, *inputs(1, 1, 3, width, torch.bfloat16, 0))


def test_where_no_kernel_takes_the_arguments():
    x, branch, *rest = inputs(1, 1, 1, 8, torch.float32, 0)
    assert gated_residual.plan_launches(x, branch.bfloat16(), *rest) is None
    assert gated_residual.plan_launches(x.double(), branch.double(), *rest) is None
    assert gated_residual.plan_launches(*inputs(1, 1, 1, 4097, torch.float32, 0)) is None


def test_a_closed_gate_passes_nothing():
    x, branch, _, _, part = inputs(2, 3, 4, 8, torch.float32, 0)
    closed = gated_residual(x, branch, torch.zeros(6, 8), torch.zeros(2, 1, 6, 8), part)
    torch.testing.assert_close(closed, x, rtol=0, atol=0)


def test_inputs_stay_as_they_are():
    arguments = inputs(2, 3, 4, 8, torch.float32, 0)
    copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    with torch.no_grad():
        gated_residual(*arguments)
    for argument, copy in zip(arguments, copies, strict=True):
        assert torch.equal(argument, copy) if isinstance(argument, torch.Tensor) else argument == copy
