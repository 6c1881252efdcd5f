"""The gated residual against its formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.kernels import gated_residual


def formulation(x, branch, table, rows, part):
    gate = (table[part + 2] + rows[:, :, part + 2]).to(x.dtype)
    return torch.addcmul(x, gate.unsqueeze(2).expand_as(x), branch)


def inputs(rows, frames, tokens, width, dtype, seed, *, part=0, per_frame=False, strided=False):
    generator = torch.Generator().manual_seed(seed)
    x, branch = (torch.randn(rows, tokens, frames, width, generator=generator).transpose(1, 2) for _ in range(2))
    table = torch.randn(6, width, generator=generator)
    modulation = torch.randn(rows, frames if per_frame else 1, 6, width, generator=generator)
    x, branch = (x, branch) if strided else (x.contiguous(), branch.contiguous())
    return (x.to(dtype), branch.to(dtype), table.to(dtype), modulation.to(dtype), part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(
    rows=st.integers(1, 3),
    frames=st.sampled_from([1, 2, 5]),
    tokens=st.sampled_from([1, 3, 7]),
    width=st.sampled_from([1, 48, 73, 1152]),
    part=st.sampled_from([0, 3]),
    per_frame=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_equals_the_formula(check, dtype, rows, frames, tokens, width, part, per_frame, strided, seed):
    arguments = inputs(rows, frames, tokens, width, dtype, seed, part=part, per_frame=per_frame, strided=strided)
    check(gated_residual, formulation, *arguments)


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
