"""The guided Euler step of one and of two modalities against loops over requests and branches."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.kernels import guided_euler_step
from syncflow.kernels.launch import implementation

SHAPES = [(1,), (5, 3), (2, 3, 5, 7), (1100,)]
NOTHING_KNOWN = (None, None, None, None)


def loops(z, v, rows, weights, dt, known, noise, mask, t):
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
    return torch.stack(stepped) if stepped else z.clone()


def formulation(*arguments):
    *lists, dtype = arguments
    stepped = [loops(*entry) for entry in zip(*lists, strict=True)]
    return stepped + ([] if dtype is None else [latent.to(dtype) for latent in stepped])


def entry(branches, shape, dtype, seed, mask_of=None, v_dtype=None):
    """One modality: requests with ``branches`` branches each; one with fewer repeats its first row with weight 0."""
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


def together(*entries, dtype=None):
    """The arguments of the operation: entries of one or two modalities, and the type of the copies."""
    return *map(list, zip(*entries, strict=True)), dtype


def step(*given):
    """One modality, no copies."""
    (stepped,) = guided_euler_step(*together((*given, *[None] * (9 - len(given)))))
    return stepped


def per_request(shape):
    return (shape[0], *[1] * (len(shape) - 1))


def per_frame(shape):
    """The axis that video latents (B, C, T, H, W) have their frames on, or the last."""
    axis = min(2, len(shape) - 1)
    return tuple(size if i in (0, axis) else 1 for i, size in enumerate(shape))


def shared_by_requests(shape):
    return shape[1:]


MASKS = [None, per_request, per_frame, shared_by_requests, tuple]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(
    branches=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    shape=st.sampled_from(SHAPES),
    mask_of=st.sampled_from(MASKS),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_one_modality_equals_loops(check, dtype, branches, shape, mask_of, seed):
    check(guided_euler_step, formulation, *together(entry(branches, shape, dtype, seed, mask_of)))


@pytest.mark.parametrize(
    ("dtype", "copy"),
    [(torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.float32, torch.float32)],
    ids=str,
)
@given(
    branches=st.tuples(*[st.lists(st.integers(1, 3), min_size=1, max_size=3)] * 2),
    shapes=st.tuples(*[st.sampled_from(SHAPES)] * 2),
    masks=st.tuples(*[st.sampled_from(MASKS)] * 2),
    v_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**30),
)
@settings(max_examples=20)
def test_two_modalities_and_their_copies_equal_loops(check, dtype, copy, branches, shapes, masks, v_dtype, seed):
    entries = [
        entry(each, shape, dtype, seed + i, mask_of, v_dtype)
        for i, (each, shape, mask_of) in enumerate(zip(branches, shapes, masks, strict=True))
    ]
    check(guided_euler_step, formulation, *together(*entries, dtype=copy))


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_two_modalities_are_two_steps(name):
    video = entry([2, 1], (2, 3, 5, 7), torch.float32, 0, per_frame)
    audio = entry([1, 2], (1100,), torch.float32, 1)
    with torch.no_grad(), implementation(name):
        both = guided_euler_step(*together(video, audio, dtype=torch.float16))
        single = [step(*video), step(*audio)]
    for actual, expected in zip(both, [*single, *(x.half() for x in single)], strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["reference", "triton"])
@pytest.mark.parametrize("shapes", [[(0,), (3,)], [(3,), (0,)], [(0,), (2, 0)]], ids=str)
def test_empty_latents(name, shapes):
    entries = [entry([2, 1], shape, torch.float32, 0) for shape in shapes]
    with torch.no_grad(), implementation(name):
        stepped = guided_euler_step(*together(*entries))
    for actual, given_ in zip(stepped, entries, strict=True):
        torch.testing.assert_close(actual, loops(*given_))


def test_in_place():
    """A launch may write the latents that it reads."""
    arguments = together(
        entry([2, 1, 2], (2, 3, 5, 7), torch.float32, 0, per_frame), entry([1, 3, 1], (1100,), torch.float32, 1)
    )
    expected = formulation(*arguments)
    _, (launch,) = guided_euler_step.prepare(*arguments)
    in_place = {"out_a": launch.arguments["z_a"], "out_b": launch.arguments["z_b"]}
    dataclasses.replace(launch, arguments={**launch.arguments, **in_place}).run()
    for latent, exact in zip(arguments[0], expected, strict=True):
        torch.testing.assert_close(latent, exact)


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
    assert guided_euler_step.prepare(*together((z.double(), *rest))) is None
    assert guided_euler_step.prepare(*together((z, *rest), dtype=torch.float64)) is None
    assert guided_euler_step.prepare(*together(*[(z, *rest)] * 3)) is None


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
