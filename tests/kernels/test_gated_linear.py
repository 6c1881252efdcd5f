"""A gated linear layer with its residual against the formula, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from syncflow.kernels import gated_linear, gated_residual, implementation
from syncflow.kernels.launch import tiles

PARTS = 6


def formulation(x, weight, bias, residual, table, rows, part):
    y = residual.clone()
    for r in range(x.shape[0]):
        for t in range(x.shape[1]):
            gate = table[part + 2] + rows[r, t % rows.shape[1], part + 2]
            y[r, t] += gate.to(y.dtype) * (x[r, t] @ weight.mT + bias)
    return y


def inputs(shape, k, n, dtype, seed, *, frames=1, rows_dtype=None, part=0):
    generator = torch.Generator().manual_seed(seed)

    def numbers(*sizes, dtype=dtype):
        return torch.randn(sizes, generator=generator).to(dtype)

    weight = (torch.randn(n, k, generator=generator) / math.sqrt(k)).to(dtype)
    modulation = (
        numbers(PARTS, n, dtype=rows_dtype or dtype),
        numbers(shape[0], frames, PARTS, n, dtype=rows_dtype or dtype),
    )
    return numbers(*shape, k), weight, numbers(n), numbers(*shape, n), *modulation, part


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(
    shape=st.sampled_from([(1, 1, 1), (2, 3, 5), (1, 2, 64), (3, 2, 32), (2, 1, 130)]),
    per_frame=st.booleans(),
    k=st.sampled_from([1, 16, 72, 130]),
    n=st.sampled_from([1, 16, 72, 130]),
    part=st.sampled_from([0, 3]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=30)
def test_equals_the_formula(check, dtype, shape, per_frame, k, n, part, seed):
    frames = shape[1] if per_frame else 1
    check(gated_linear, formulation, *inputs(shape, k, n, dtype, seed, frames=frames, part=part))


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 4], ids=["one gate a row", "one gate a frame"])
@pytest.mark.parametrize(
    ("shape", "k", "n", "dtype"),
    [
        ((2, 4, 32), 72, 200, torch.bfloat16),
        ((1, 4, 128), 72, 136, torch.float16),
        ((2, 4, 3), 136, 1152, torch.bfloat16),
    ],
    ids=str,
)
def test_large_tiles(check, shape, k, n, dtype, frames):
    """The tiles that large products use: within a row, within a frame, across both."""
    with tiles.override("gated_linear", {"BLOCK_M": 128, "BLOCK_N": 128, "GROUP": 2}):
        check(gated_linear, formulation, *inputs(shape, k, n, dtype, 0, frames=frames, part=3))


def test_modulation_of_another_type_and_strided(check):
    x, weight, bias, residual, table, rows, part = inputs(
        (2, 3, 5), 16, 24, torch.bfloat16, 0, rows_dtype=torch.float32
    )
    shared = rows[:1].expand(2, -1, -1, -1)
    residual = residual.transpose(1, 2).contiguous().transpose(1, 2)
    check(gated_linear, formulation, x[:, :, ::1], weight, bias, residual, table, shared, part)


@pytest.mark.parametrize("name", ["reference", "auto", "triton"])
@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 3, 0)], ids=str)
def test_no_tokens(name, shape):
    arguments = inputs(shape, 16, 8, torch.float32, 0)
    with torch.no_grad(), implementation(name):
        assert gated_linear(*arguments).shape == (*shape, 8)


@pytest.mark.parametrize("name", ["reference", "auto", "triton"])
def test_it_is_the_layer_and_then_the_gated_residual(name):
    x, weight, bias, residual, table, rows, part = inputs((2, 3, 5), 16, 24, torch.float32, 0)
    with torch.no_grad(), implementation(name):
        fused = gated_linear(x, weight, bias, residual, table, rows, part)
        apart = gated_residual(residual, torch.nn.functional.linear(x, weight, bias), table, rows, part)
    torch.testing.assert_close(fused, apart)


def test_what_no_kernel_takes():
    x, weight, bias, residual, table, rows, part = inputs((2, 3, 5), 16, 24, torch.float32, 0)
    assert gated_linear.plan_launches(x, weight, bias, residual.double(), table, rows, part) is None
    assert gated_linear.plan_launches(x, weight, bias, residual, table.double(), rows, part) is None


def test_who_computes_on_a_gpu():
    """The library and then the launch of the gated residual, unless the tile rules ask for one kernel."""
    shapes = ((2, 3, 5, 16), (24, 16), (24,), (2, 3, 5, 24), (PARTS, 24), (2, 1, PARTS, 24))
    with FakeTensorMode():
        arguments = (*(torch.empty(shape, device="cuda") for shape in shapes), 0)
        y, (apart,) = gated_linear.plan_launches(*arguments)
        with tiles.override("gated_linear", {"TRITON": 1}):
            _, (fused,) = gated_linear.plan_launches(*arguments)
    assert y.shape == (2, 3, 5, 24)
    assert (apart.kernel.__name__, fused.kernel.__name__) == ("gated_residual_kernel", "matmul_kernel")
