"""The guided Euler step against loops over requests and branches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.kernels import guided_euler_step

SHAPES = [(1,), (5, 3), (2, 3, 5, 7)]


def formulation(z, v, rows, weights, dt, known=None, noise=None, mask=None, t=None):
    wide = torch.promote_types(z.dtype, torch.float32)
    stepped = []
    for b in range(len(z)):
        velocity = torch.zeros(z.shape[1:], dtype=wide)
        for g in range(rows.shape[1]):
            velocity += weights[b, g] * v[rows[b, g]].to(wide)
        latent = z[b].to(wide) + dt[b] * velocity
        if mask is not None:
            held = t[b] * known[b].to(wide) + (1 - t[b]) * noise[b].to(wide)
            latent = torch.where(mask.expand(z.shape)[b], held, latent)
        stepped.append(latent.to(z.dtype))
    return torch.stack(stepped)


def inputs(branches, shape, dtype, seed, mask_of=None):
    """Requests with ``branches`` branches each; a request with fewer repeats its first row with weight 0."""
    generator = torch.Generator().manual_seed(seed)
    count, total, most = len(branches), sum(branches), max(branches)
    z = torch.randn(count, *shape, generator=generator).to(dtype)
    v = torch.randn(total, *shape, generator=generator).to(dtype)
    rows, weights, first = torch.zeros(count, most, dtype=torch.int64), torch.zeros(count, most), 0
    for b, own in enumerate(branches):
        rows[b] = first
        rows[b, :own] = torch.arange(first, first + own)
        weights[b, :own] = 3 * torch.randn(own, generator=generator)
        first += own
    dt = torch.rand(count, generator=generator)
    if mask_of is None:
        return z, v, rows, weights, dt
    known, noise = (torch.randn(count, *shape, generator=generator).to(dtype) for _ in range(2))
    mask = torch.rand(mask_of(z.shape), generator=generator) < 0.5
    return z, v, rows, weights, dt, known, noise, mask, torch.rand(count, generator=generator)


def per_request(shape):
    return (shape[0], *[1] * (len(shape) - 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(
    branches=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    shape=st.sampled_from(SHAPES),
    mask_of=st.sampled_from([None, per_request, tuple]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_equals_loops(check, dtype, branches, shape, mask_of, seed):
    check(guided_euler_step, formulation, *inputs(branches, shape, dtype, seed, mask_of))


def test_classifier_free_guidance():
    z, v, *_ = inputs([2], (4, 3), torch.float32, 0)
    weight, dt = 6.0, torch.tensor([0.02])
    stepped = guided_euler_step(z, v, torch.tensor([[0, 1]]), torch.tensor([[weight, 1 - weight]]), dt)
    text, null = v
    torch.testing.assert_close(stepped[0], z[0] + 0.02 * (null + weight * (text - null)))


def test_a_branch_of_weight_0_changes_nothing():
    z, v, *_ = inputs([1, 1], (4, 3), torch.float32, 0)
    dt = torch.tensor([0.5, 0.25])
    alone = guided_euler_step(z, v, torch.tensor([[0], [1]]), torch.ones(2, 1), dt)
    padded = guided_euler_step(z, v, torch.tensor([[0, 0], [1, 1]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), dt)
    torch.testing.assert_close(alone, padded, rtol=0, atol=0)


@pytest.mark.parametrize(("t", "held"), [(0.0, "noise"), (1.0, "known")])
def test_the_known_part_at_both_ends_of_time(t, held):
    z, v, rows, weights, dt, known, noise, *_ = inputs([2, 1], (4, 3), torch.float32, 0, per_request)
    mask = torch.tensor([True, False])[:, None, None]
    stepped = guided_euler_step(z, v, rows, weights, dt, known, noise, mask, torch.tensor([t, t]))
    torch.testing.assert_close(stepped[0], {"noise": noise, "known": known}[held][0], rtol=0, atol=0)
    torch.testing.assert_close(stepped[1], guided_euler_step(z, v, rows, weights, dt)[1], rtol=0, atol=0)


def test_sums_are_made_in_float32():
    """CFG subtracts large velocities: rounding between the branches would show."""
    z, v = torch.zeros(1, 1, dtype=torch.bfloat16), torch.tensor([[1.0], [1.0078125]], dtype=torch.bfloat16)
    stepped = guided_euler_step(z, v, torch.tensor([[0, 1]]), torch.tensor([[-99.0, 100.0]]), torch.ones(1))
    torch.testing.assert_close(stepped, torch.tensor([[1.78125]], dtype=torch.bfloat16), rtol=0, atol=0)


def test_inputs_stay_as_they_are():
    arguments = inputs([2, 1], (4, 3), torch.float32, 0, per_request)
    copies = [a.clone() for a in arguments]
    with torch.no_grad():
        guided_euler_step(*arguments)
    for argument, copy in zip(arguments, copies, strict=True):
        assert torch.equal(argument, copy)


def test_strided_inputs_count_as_their_values():
    z, v, *rest = inputs([2, 1], (4, 3), torch.float32, 0)
    strided = guided_euler_step(z.mT.contiguous().mT, v.mT.contiguous().mT, *rest)
    torch.testing.assert_close(strided, guided_euler_step(z, v, *rest), rtol=0, atol=0)
