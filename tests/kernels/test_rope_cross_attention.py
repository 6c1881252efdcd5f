"""Cross-attention with positions on both sides against SDPA over rotations by complex numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from syncflow.kernels import implementation, rope_cross_attention
from syncflow.kernels.attention_ops import cosine_sine
from syncflow.kernels.launch import Launch, tl, triton

NO_WINDOW = -1.0


def rotated(x, angles):
    """(R, n, N, d) with channel pairs as complex numbers, each multiplied by e^(i angle)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    turn = torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * turn).flatten(-2).to(x.dtype)


def formulation(q, k, v, q_positions, k_positions, frequencies, window, context_of_row=None, tail_k=None, tail_v=None):
    """Query by query: SDPA over the keys that it sees, one after the other in a list."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    q, k = (rotated(x, torch.outer(p, frequencies)) for x, p in ((q, q_positions), (k, k_positions)))
    none = q[:, :, :0]
    tails = [none, none] if tail_k is None else [x.transpose(1, 2) for x in (tail_k, tail_v)]
    contexts = range(len(q)) if context_of_row is None else context_of_row.tolist()
    attended = torch.zeros_like(q)
    for row, context in enumerate(contexts):
        for i, position in enumerate(q_positions):
            near = (k_positions - position).abs() <= window if window >= 0 else torch.ones_like(k_positions).bool()
            own = [x[row] for x in tails]
            if context >= 0:
                own = [torch.cat((x[context][:, near], tail), 1) for x, tail in zip((k, v), own, strict=True)]
            if own[0].shape[1]:
                attended[row, :, i] = scaled_dot_product_attention(q[row, :, i : i + 1], *own)[:, 0]
    return attended.transpose(1, 2).flatten(2)


def inputs(
    rows,
    queries,
    keys,
    heads,
    width,
    dtype,
    seed,
    *,
    strided=False,
    window=NO_WINDOW,
    k_step=1.0,
    contexts=None,
    context_of_row=None,
    tail=None,
):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    def pair(count, length):
        packed = normal(count, length, 2, heads, width).unbind(2)
        return packed if strided else tuple(x.contiguous() for x in packed)

    # half of it: with larger logits the luck of their rounding would outweigh what is tested
    q, (k, v) = normal(rows, queries, heads, width) / 2, pair(contexts or rows, keys)
    positions = torch.arange(queries).float(), k_step * torch.arange(keys).float()
    frequencies = 10.0 ** (-4 * torch.rand(width // 2, generator=generator))
    arguments = (q, k, v, *positions, frequencies, window)
    if context_of_row is None and tail is None:
        return arguments
    context = None if context_of_row is None else torch.tensor(context_of_row)
    return (*arguments, context, *((None, None) if tail is None else pair(rows, tail)))


def poison_what_nobody_reads(arguments):
    """NaN in the contexts that are not among ``context_of_row``."""
    _, k, v, _, _, _, _, context_of_row, _, _ = arguments
    unread = sorted(set(range(len(k))) - set(context_of_row.tolist()))
    k[unread], v[unread] = float("nan"), float("nan")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@given(
    context_of_row=st.none() | st.lists(st.integers(-1, 2), min_size=1, max_size=3),
    tail=st.sampled_from([None, 0, 1, 3, 70]),
    queries=st.sampled_from([0, 1, 2, 13, 67]),
    keys=st.sampled_from([1, 2, 9, 71]),
    heads=st.integers(1, 2),
    width=st.sampled_from([32, 48, 64, 72, 128]),
    strided=st.booleans(),
    window=st.sampled_from([NO_WINDOW, 0.3, 2.5]),
    k_step=st.sampled_from([0.25, 1.0, 12.5]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_equals_complex_rotation_and_sdpa(check, dtype, context_of_row, **sizes):
    rows, contexts = (2, 2) if context_of_row is None else (len(context_of_row), 3)
    arguments = inputs(rows, dtype=dtype, contexts=contexts, context_of_row=context_of_row, **sizes)
    if context_of_row is not None:
        poison_what_nobody_reads(arguments)
    check(rope_cross_attention, formulation, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(5, 1030), (131, 70), (130, 1030)])
def test_keys_in_parts_and_keys_rotated_first(check, dtype, queries, keys):
    """Long contexts are read by several programs, and many queries read keys that were rotated by a kernel before."""
    form = {"contexts": 2, "context_of_row": [1, -1, 0], "tail": 3}
    arguments = inputs(3, queries, keys, 1, 40, dtype, 0, strided=True, **form)
    kernels = [launch.kernel.__name__ for launch in rope_cross_attention.plan_launches(*arguments)[1]]
    assert ("rotate_keys_kernel" in kernels) == (queries > 128)
    assert ("combine_parts_kernel" in kernels) == (keys > 1024)
    check(rope_cross_attention, formulation, *arguments)


@pytest.mark.slow
def test_a_window_over_many_keys_is_not_split(check):
    arguments = inputs(1, 150, 1100, 1, 32, torch.float32, 0, window=2.5)
    check(rope_cross_attention, formulation, *arguments)
    assert "combine_parts_kernel" not in {
        one.kernel.__name__ for one in rope_cross_attention.plan_launches(*arguments)[1]
    }


@pytest.mark.slow
def test_the_number_of_parts_does_not_depend_on_the_rows():
    """To the bit: a row alone, and among others."""
    arguments = inputs(3, 4, 1100, 1, 32, torch.bfloat16, 0)
    with torch.no_grad(), implementation("triton"):
        together = rope_cross_attention(*arguments)
        alone = rope_cross_attention(*(x[:1] for x in arguments[:3]), *arguments[3:])
    assert torch.equal(together[:1], alone)


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_a_row_without_context_and_tail_reads_nothing(name):
    arguments = inputs(2, 3, 5, 2, 32, torch.float32, 0, contexts=1, context_of_row=[-1, 0])
    with torch.no_grad(), implementation(name):
        read = rope_cross_attention(*arguments)
    assert torch.equal(read[0], torch.zeros(3, 64))
    assert read[1].abs().min() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reference", "triton"])
@pytest.mark.parametrize("keys", [8, 64, 90])
def test_a_tail_is_further_keys_at_position_zero(name, keys):
    """To the bit: what the model reads does not depend on which keys are kept over steps."""
    arguments = inputs(2, 5, keys, 2, 72, torch.float32, 0, tail=3)
    q, k, v, q_positions, k_positions, *rest, _, tail_k, tail_v = arguments
    k, v = torch.cat((k, tail_k), 1), torch.cat((v, tail_v), 1)
    with torch.no_grad(), implementation(name):
        apart = rope_cross_attention(*arguments)
        together = rope_cross_attention(q, k, v, q_positions, torch.cat((k_positions, torch.zeros(3))), *rest)
    assert torch.equal(apart, together)


@pytest.mark.parametrize("window", [NO_WINDOW, 0.3])
@pytest.mark.parametrize("tail", [None, 2])
def test_derivatives_of_rows_that_read_nothing_are_zero(window, tail):
    """Beside a context of NaN that nobody reads, and with queries outside of every window."""
    sizes = {"window": window, "k_step": 12.5, "contexts": 2, "context_of_row": [-1, 1, 1], "tail": tail}
    arguments = inputs(3, 4, 5, 2, 8, torch.float64, 0, **sizes)
    poison_what_nobody_reads(arguments)
    q, k, v = (x.requires_grad_() for x in arguments[:3])
    rope_cross_attention(*arguments).square().sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))
    assert not k.grad[0].any()
    assert not v.grad[0].any()
    assert v.grad[1, 0].all()
    assert bool(v.grad[1, 1].any()) == (window < 0)
    assert bool(q.grad[0].any()) == (tail is not None)


@pytest.mark.slow
@pytest.mark.parametrize("form", [{}, {"context_of_row": [1, -1, 1]}, {"tail": 2}], ids=str)
def test_opcheck_of_what_may_be_left_out(form):
    q, k, v, *rest = inputs(3, 4, 5, 2, 8, torch.float32, 0, window=1.5, **form)
    wanting = [x.requires_grad_() for x in (q, k, v)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.syncflow.rope_cross_attention.default, (*wanting, *rest), test_utils=checks)


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_no_keys_read_nothing(name):
    q, k, v, *rest = inputs(2, 3, 0, 2, 32, torch.float32, 0)
    with torch.no_grad(), implementation(name):
        assert torch.equal(rope_cross_attention(q, k, v, *rest), torch.zeros(2, 3, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reference", "triton"])
def test_tokens_outside_the_window_do_not_count(name):
    """Video frames of 20 tokens read 100 audio tokens within one frame, as Syncphony's bridge does."""
    frames, tokens, keys = 8, 20, 100
    q, k, v, _, _, frequencies, _ = inputs(1, frames * tokens, keys, 2, 32, torch.float32, 0)
    clocks = torch.arange(frames).repeat_interleave(tokens).float(), torch.arange(keys) * (frames / keys)
    with torch.no_grad(), implementation(name):
        before = rope_cross_attention(q, k, v, *clocks, frequencies, 1.0)
        late = clocks[1] > 3
        k[:, late], v[:, late] = 1e4, -1e4
        after = rope_cross_attention(q, k, v, *clocks, frequencies, 1.0)
    early = clocks[0] + 1 <= 3
    assert torch.equal(before[:, early], after[:, early])
    assert not torch.equal(before[:, ~early], after[:, ~early])


def test_tiles_outside_the_window_are_not_read():
    q, k, v, at_q, at_k, *rest = inputs(1, 7, 600, 1, 32, torch.float32, 0, window=1.0)
    k[:, 192:], v[:, 192:] = float("nan"), float("nan")
    k[:, :64], v[:, :64] = float("nan"), float("nan")
    with torch.no_grad(), implementation("triton"):
        assert rope_cross_attention(q, k, v, at_q + 130, at_k, *rest).isfinite().all()


def test_positions_need_no_order():
    """Tokens without a time of their own, at position 0, follow the others in the audio tower's context."""
    arguments = inputs(1, 5, 90, 1, 32, torch.float32, 0, window=2.5)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    q, k, v, q_positions, k_positions, *rest = arguments
    with torch.no_grad(), implementation("triton"):
        sorted_ = rope_cross_attention(*arguments)
        shuffled = rope_cross_attention(q, k[:, order], v[:, order], q_positions, k_positions[order], *rest)
    torch.testing.assert_close(shuffled, sorted_)


def test_one_key_is_all_that_is_read():
    q, k, v, *clocks = inputs(2, 3, 1, 2, 8, torch.float32, 0)
    torch.testing.assert_close(rope_cross_attention(q, k, v, *clocks), v.flatten(2).expand(-1, 3, -1))


def test_only_differences_between_the_clocks_count():
    q, k, v, at_q, at_k, frequencies, window = inputs(1, 4, 5, 2, 8, torch.float64, 0)
    here = rope_cross_attention(q, k, v, at_q.double(), at_k.double(), frequencies.double(), window)
    both_later = rope_cross_attention(q, k, v, at_q.double() + 3, at_k.double() + 3, frequencies.double(), window)
    one_later = rope_cross_attention(q, k, v, at_q.double() + 3, at_k.double(), frequencies.double(), window)
    torch.testing.assert_close(here, both_later)
    assert not torch.allclose(here, one_later, atol=1e-3)


@triton.jit
def both(x, cosine, sine, SIZE: tl.constexpr):
    o = tl.arange(0, SIZE)
    cos, sin = cosine_sine(tl.load(x + o))
    tl.store(cosine + o, cos)
    tl.store(sine + o, sin)


def test_cosine_and_sine():
    """To 1e-7 over the positions of minutes of audio, and exact at 0."""
    x = torch.cat((torch.linspace(-8192, 8192, 4096 - 512), torch.linspace(-2 * math.pi, 2 * math.pi, 512)))
    x[0] = 0
    cosine, sine = torch.empty_like(x), torch.empty_like(x)
    arguments = {"x": x, "cosine": cosine, "sine": sine}
    Launch(both, (1,), arguments, {"SIZE": x.numel()}, {"num_warps": 4, "num_stages": 1}).run()
    assert (cosine.double() - x.double().cos()).abs().max() < 1.2e-7
    assert (sine.double() - x.double().sin()).abs().max() < 1.2e-7
    assert cosine[0] == 1
    assert sine[0] == 0


@pytest.mark.parametrize(("width", "offset", "aligned"), [(72, 0, True), (72, 8, True), (72, 1, False), (36, 0, False)])
def test_keys_count_as_aligned_where_each_begins_at_16_bytes(width, offset, aligned):
    """Of a head of 36 half-precision channels 72 bytes, which is no multiple; and a view may begin anywhere."""
    q, k, v, *rest = inputs(1, 3, 5, 2, width, torch.bfloat16, 0, tail=2)
    moved = torch.zeros(k.numel() + offset, dtype=k.dtype)[offset:].view_as(k).copy_(k)
    (launch,) = rope_cross_attention.plan_launches(q, moved, v, *rest)[1]
    assert launch.constants["ALIGNED"] is aligned
    assert not rope_cross_attention.plan_launches(q, k, v, *rest[:4])[1][0].constants["ALIGNED"]
