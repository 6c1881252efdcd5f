"""The guided Euler step against loops over requests and branches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.kernels import guided_euler_step
from syncflow.kernels.launch import implementation

SHAPES = [(1,), (5, 3), (2, 3, 5, 7), (1100,)]
NOTHING_KNOWN = (None, None, None, None)


def loops(z, v, rows, weights, dt, known=None, noise=None, mask=None, t=None, dtype=None):
    wide = torch.promote_types(z.dtype, torch.float32)
    stepped = []
    for b in range(len(z)):
        velocity = torch.zeros(z.shape[1:], dtype=wide)
        for g in range(rows.shape[1]):
            if weights[b, g] != 0:
                velocity += weights[b, g] * v[rows[b, g]].to(wide)
        latent = z[b].to(wide) + dt[b] * velocity
        if mask is not None:
            held = t[b] * known[b].to(wide) + (1 - t[b]) * noise[b].to(wide)
            latent = torch.where(mask.expand(z.shape)[b], held, latent)
        stepped.append(latent.to(z.dtype))
    latents = torch.stack(stepped)
    return [latents] if dtype is None else [latents, latents.to(dtype)]


def entry(branches, shape, dtype, seed, mask_of=None, v_dtype=None):
    """Requests with ``branches`` branches each; one with fewer repeats its first row with weight 0."""
    generator = torch.Generator().manual_seed(seed)
    count, total, most = len(branches), sum(branches), max(branches)
    z = torch.randn(count, *shape, generator=generator).to(dtype)
    v = torch.randn(total, *shape, generator=generator).to(v_dtype or dtype)
    rows, weights, first = torch.zeros(count, most, dtype=torch.int64), torch.zeros(count, most), 0
    for b, own in enumerate(branches):
        rows[b] = first
        rows[b, :own] = torch.arange(first, first + own)
        weights[b, :own] = 3 * torch.randn(own, generator=generator)
        first += own
    dt = torch.rand(count, generator=generator)
    if mask_of is None:
        return z, v, rows, weights, dt, *NOTHING_KNOWN
    known, noise = (torch.randn(count, *shape, generator=generator).to(dtype) for _ in range(2))
    mask = torch.rand(mask_of(z.shape), generator=generator) < 0.5
    return z, v, rows, weights, dt, known, noise, mask, torch.rand(count, generator=generator)


def step(*arguments):
    """The new latents, without a copy."""
    (latents,) = guided_euler_step(*arguments)
    return latents


def per_request(shape):
    return (shape[0], *[1] * (len(shape) - 1))


def per_frame(shape):
    """The axis that video latents (B, C, T, H, W) have their frames on, or the last."""
    axis = min(2, len(shape) - 1)
    return tuple(size if i in (0, axis) else 1 for i, size in enumerate(shape))


def shared_by_requests(shape):
    return shape[1:]


MASKS = [None, per_request, per_frame, shared_by_requests, tuple]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(
    branches=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    shape=st.sampled_from(SHAPES),
    mask_of=st.sampled_from(MASKS),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_equals_loops(check, dtype, branches, shape, mask_of, seed):
    check(guided_euler_step, loops, *entry(branches, shape, dtype, seed, mask_of))


@pytest.mark.slow
@pytest.mark.parametrize("copy", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@given(
    branches=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    shape=st.sampled_from(SHAPES),
    mask_of=st.sampled_from(MASKS),
    v_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=20)
def test_latents_and_their_copy_equal_loops(check, copy, branches, shape, mask_of, v_dtype, seed):
    check(guided_euler_step, loops, *entry(branches, shape, torch.float32, seed, mask_of, v_dtype), copy)


@pytest.mark.parametrize("name", ["reference", "triton"])
@pytest.mark.parametrize("shape", [(0,), (2, 0)], ids=str)
def test_empty_latents(name, shape):
    arguments = entry([2, 1], shape, torch.float32, 0)
    with torch.no_grad(), implementation(name):
        torch.testing.assert_close(step(*arguments), *loops(*arguments))


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_a_branch_of_weight_0_is_not_read(name):
    z, v, *_ = entry([1, 2], (4, 3), torch.float32, 0)
    dt = torch.tensor([0.5, 0.25])
    with torch.no_grad(), implementation(name):
        alone = step(z, v, torch.tensor([[0], [1]]), torch.ones(2, 1), dt)
        v[2] = float("nan")
        padded = step(z, v, torch.tensor([[0, 2], [1, 1]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), dt)
    torch.testing.assert_close(alone, padded, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_sums_are_made_in_float32(name):
    """Guidance subtracts large velocities: rounding between the branches would show."""
    z, v = torch.zeros(1, 1, dtype=torch.bfloat16), torch.tensor([[1.0], [1.0078125]], dtype=torch.bfloat16)
    with torch.no_grad(), implementation(name):
        stepped = step(z, v, torch.tensor([[0, 1]]), torch.tensor([[-99.0, 100.0]]), torch.ones(1))
    torch.testing.assert_close(stepped, torch.tensor([[1.78125]], dtype=torch.bfloat16), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_strided_inputs_count_as_their_values(name):
    """Transposed latents; velocities that are a slice of more channels."""
    z, v, *rest = entry([2, 1], (4, 3), torch.float32, 0)
    wider = torch.cat((v, torch.full_like(v, float("nan"))), 1)
    with torch.no_grad(), implementation(name):
        expected = step(z, v, *rest)
        torch.testing.assert_close(step(z.mT.contiguous().mT, v.mT.contiguous().mT, *rest), expected, rtol=0, atol=0)
        torch.testing.assert_close(step(z, wider[:, :4], *rest), expected, rtol=0, atol=0)


def test_what_no_kernel_takes():
    z, *rest = entry([1], (3,), torch.float32, 0)
    assert guided_euler_step.plan_launches(z.double(), *rest) is None
    assert guided_euler_step.plan_launches(z, *rest, torch.float64) is None


def test_classifier_free_guidance():
    z, v, *_ = entry([2], (4, 3), torch.float32, 0)
    weight, dt = 6.0, torch.tensor([0.02])
    stepped = step(z, v, torch.tensor([[0, 1]]), torch.tensor([[weight, 1 - weight]]), dt)
    text, null = v
    torch.testing.assert_close(stepped[0], z[0] + 0.02 * (null + weight * (text - null)))


@pytest.mark.parametrize(("t", "held"), [(0.0, "noise"), (1.0, "known")])
def test_the_known_part_at_both_ends_of_time(t, held):
    z, v, rows, weights, dt, known, noise, *_ = entry([2, 1], (4, 3), torch.float32, 0, per_request)
    mask = torch.tensor([True, False])[:, None, None]
    stepped = step(z, v, rows, weights, dt, known, noise, mask, torch.tensor([t, t]))
    torch.testing.assert_close(stepped[0], {"noise": noise, "known": known}[held][0], rtol=0, atol=0)
    torch.testing.assert_close(stepped[1], step(z, v, rows, weights, dt)[1], rtol=0, atol=0)


def test_inputs_stay_as_they_are():
    arguments = entry([2, 1], (4, 3), torch.float32, 0, per_request)
    copies = [a.clone() for a in arguments]
    with torch.no_grad():
        step(*arguments)
    for argument, copy in zip(arguments, copies, strict=True):
        assert torch.equal(argument, copy)
