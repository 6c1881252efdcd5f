"""The C++ loops of a CPU beside the references in float64, with every set of instructions that this processor has."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncflow.kernels import guided_euler_step, native, weight_cache
from syncflow.kernels.reference_ops import rope_table

pytestmark = pytest.mark.skipif(native.EXTENSION is None, reason="the native part was not built")

EPS = 1e-6
WIDTHS = st.sampled_from([2, 8, 16, 30, 32, 48, 72])
SEEDS = st.integers(0, 2**16)


def reference(name, *arguments):
    """An operation's reference in float64."""
    wide = (x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in arguments)
    return import_module(f"syncflow.kernels.{name}").reference(*wide)


def assert_close(found, exact):
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=2e-5)


@given(st.integers(0, 2), st.integers(1, 3), st.integers(1, 70), st.integers(1, 3), WIDTHS, st.booleans(), SEEDS)
@settings(max_examples=60)
def test_self_attention(rows, few, many, heads, width, over_frames, seed):
    torch.manual_seed(seed)
    frames, tokens = (many, few) if over_frames else (few, many)
    qkv = 2 * torch.randn(rows, frames, tokens, 3, heads, width)
    weights = torch.rand(width) + 0.5, torch.rand(width) + 0.5
    if over_frames:
        rope = rope_table(torch.arange(frames)[:, None] * torch.rand(width // 2))
        found = native.self_attention(qkv, *weights, rope, EPS, 1)
        assert_close(found, reference("temporal_attention", qkv, *weights, rope, EPS))
    else:
        found = native.self_attention(qkv, *weights, None, EPS, 2)
        assert_close(found, reference("spatial_attention", qkv, *weights, EPS))


@given(st.integers(0, 4), st.integers(1, 3), st.integers(0, 70), st.integers(1, 40), st.integers(1, 3), WIDTHS, SEEDS)
@settings(max_examples=60)
def test_text(rows, texts, queries, tokens, heads, width, seed):
    torch.manual_seed(seed)
    q = 3 * torch.randn(rows, queries, heads, width)
    k, v = torch.randn(2, texts, tokens, heads, width)
    lengths, of_row = torch.randint(1, tokens + 1, (texts,)), torch.randint(0, texts, (rows,))
    found = native.cross_attention(q, k, v, context_of_row=of_row, lengths=lengths)
    assert_close(found, reference("text_cross_attention", q, k, v, lengths, of_row))


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(0, 3),
    WIDTHS,
    st.sampled_from([-1.0, 0.0, 3.0]),
    st.booleans(),
    SEEDS,
)
@settings(max_examples=80)
def test_clocks(rows, contexts, queries, keys, tail, width, window, chosen, seed):
    """Windows, rows without a context, tails, and queries that see nothing at all."""
    torch.manual_seed(seed)
    contexts = contexts if chosen else rows
    q, (k, v) = torch.randn(rows, queries, 2, width), torch.randn(2, contexts, keys, 2, width)
    tails = torch.randn(2, rows, tail, 2, width).unbind() if tail else None
    positions = torch.arange(queries) * 1.5, torch.arange(keys) * 2.0 + 7
    frequencies = torch.rand(width // 2)
    of_row = torch.randint(-1, contexts, (rows,)) if chosen else None
    found = native.cross_attention(
        q,
        k,
        v,
        context_of_row=of_row,
        rope=tuple(rope_table(one[:, None] * frequencies) for one in positions),
        positions=positions,
        window=window,
        tail=tails,
    )
    arguments = q, k, v, *positions, frequencies, window, of_row, *(tails or (None, None))
    assert_close(found, reference("rope_cross_attention", *arguments))


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 7, 16, 33, 128]), st.booleans(), SEEDS
)
@settings(max_examples=60)
def test_residual_and_norm(rows, frames, tokens, width, every_frame, seed):
    torch.manual_seed(seed)
    x, branch = torch.randn(2, rows, frames, tokens, width) + 3
    table, other = torch.randn(2, 6, width)
    modulation = torch.randn(rows, frames if every_frame else 1, 6, width)
    y, normed = native.residual_norm(x, branch, table, modulation, 0, other, 3, EPS)
    exact_y, exact = reference("gated_residual_norm", x, branch, table, modulation, 0, other, 3, EPS)
    assert_close(y, exact_y)
    if width > 1:  # of one channel nothing is left but what rounding made
        assert_close(normed, exact)
    found = native.residual(x, branch, table, modulation, 0)
    assert_close(found, reference("gated_residual", x, branch, table, modulation, 0))
    if width > 1:
        assert_close(
            native.norm(x, other, modulation, 3, EPS), reference("modulated_layer_norm", x, other, modulation, 3, EPS)
        )


@given(
    st.integers(0, 70),
    st.sampled_from([1, 7, 16, 100, 512]),
    st.sampled_from([1, 20, 32, 50, 192]),
    st.booleans(),
    SEEDS,
)
@settings(max_examples=60)
def test_linear(rows, inputs, outputs, gelu, seed):
    torch.manual_seed(seed)
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs)
    name = "linear_gelu" if gelu else None
    found = native.linear(x, weight, bias, gelu=gelu)
    exact = (
        reference(name, x, weight, bias)
        if name
        else torch.nn.functional.linear(*(y.double() for y in (x, weight, bias)))
    )
    assert_close(found, exact)


@given(st.integers(0, 5), st.integers(1, 7), st.integers(1, 4), st.sampled_from([1, 15, 64, 1000]), SEEDS)
@settings(max_examples=60)
def test_guided_step(requests, rows, branches, size, seed):
    """Also where a branch that does not count is no number."""
    torch.manual_seed(seed)
    z, v = torch.randn(requests, size, 2), torch.randn(rows, 2, size).transpose(1, 2)
    of_row, weights = torch.randint(0, rows, (requests, branches)), torch.randn(requests, branches)
    weights[torch.rand_like(weights) < 0.3] = 0
    unread = sorted(set(range(rows)) - set(of_row[weights != 0].tolist()))
    v[unread] = torch.nan
    dt = torch.rand(requests)
    (exact,) = guided_euler_step.__wrapped__(z.double(), v.double(), of_row, weights.double(), dt.double())
    assert_close(native.guided_step(z, v, of_row, weights, dt), exact)


def test_a_weight_that_changes_is_read_anew():
    """In place, or by a checkpoint."""
    layer, x = torch.nn.Linear(8, 40).requires_grad_(False), torch.randn(3, 8)

    for change in (
        lambda: None,
        lambda: layer.weight.mul_(2),
        lambda: layer.load_state_dict(torch.nn.Linear(8, 40).state_dict()),
        lambda: layer.load_state_dict(torch.nn.Linear(8, 40).state_dict(), assign=True) and layer.requires_grad_(False),
    ):
        change()
        expected = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
        assert_close(native.linear(x, layer.weight, layer.bias), expected)
    assert native.linear(x, torch.nn.Linear(8, 40).weight, layer.bias) is None  # wants gradients


def test_nothing_is_kept_of_a_weight_that_is_gone():
    weight = torch.randn(4, 3)
    native.linear(torch.randn(2, 3), weight, torch.zeros(4))
    before = len(weight_cache._entries)
    del weight
    assert len(weight_cache._entries) == before - 1


def test_views_are_read_where_they_lie():
    """Keys and values of a packed projection, one of many layers' texts, queries with gaps."""
    q = torch.randn(2, 9, 3, 2, 8)[:, :, 1]
    packed = torch.randn(4, 3, 6, 2, 2, 8)
    k, v = packed[1].unbind(2)
    lengths, of_row = torch.tensor([6, 2, 4]), torch.tensor([2, 0])
    found = native.cross_attention(q, k, v, context_of_row=of_row, lengths=lengths)
    assert_close(found, reference("text_cross_attention", q, k, v, lengths, of_row))


def test_bits_do_not_depend_on_threads_or_neighbours():
    torch.manual_seed(0)
    qkv, weight = torch.randn(6, 5, 70, 3, 2, 32), torch.rand(32)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(native.self_attention(qkv, weight, weight, None, EPS, 2))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert torch.equal(native.self_attention(qkv[4:5], weight, weight, None, EPS, 2), found[0][4:5])


def test_several_python_threads_at_once():
    torch.manual_seed(0)
    qkv, weight = torch.randn(4, 3, 40, 3, 2, 32), torch.rand(32)
    expected = native.self_attention(qkv, weight, weight, None, EPS, 2)
    wrong = []

    def work():
        for _ in range(50):
            if not torch.equal(native.self_attention(qkv, weight, weight, None, EPS, 2), expected):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_what_is_not_there_is_not_read():
    q, k = torch.randn(2, 3, 1, 8), torch.randn(2, 4, 1, 8)
    with pytest.raises(IndexError, match="not there"):
        native.cross_attention(q, k, k, context_of_row=torch.tensor([0, 2]))
    with pytest.raises(IndexError, match="longer"):
        native.cross_attention(q, k, k, lengths=torch.tensor([4, 5]))
    with pytest.raises(IndexError, match="not there"):
        native.guided_step(k[:1], k, torch.tensor([[2]]), torch.ones(1, 1), torch.ones(1))


def test_other_shapes_are_refused():
    """One sentence that names the tensor, before anything is read or written."""
    x, table, modulation = torch.randn(2, 3, 4, 8), torch.randn(6, 8), torch.randn(2, 1, 6, 8)
    with pytest.raises(ValueError, match=r"branch has the shape \(2, 3, 4, 7\); expected \(2, 3, 4, 8\)"):
        native.residual(x, torch.randn(2, 3, 4, 7), table, modulation, 0)
    with pytest.raises(ValueError, match=r"modulation has the shape \(1, 1, 6, 8\)"):
        native.norm(x, table, modulation[:1], 0, EPS)
    with pytest.raises(IndexError, match="part"):
        native.norm(x, table, modulation, 5, EPS)
    with pytest.raises(ValueError, match=r"bias has the shape \(1, 4\)"):
        native.linear(x, torch.randn(4, 8), torch.randn(1, 4))
    with pytest.raises(ValueError, match="k has the shape"):
        native.cross_attention(torch.randn(1, 2, 3, 8), torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8))
    extension = native.EXTENSION
    with pytest.raises(ValueError, match="y must be contiguous"):
        packed = torch.zeros(extension.packed_size(4, 8))
        extension.linear(torch.randn(3, 8), packed, torch.randn(4), torch.randn(4, 3).T, False, 1)
    with pytest.raises(TypeError, match="incompatible"):
        extension.linear(torch.randn(3, 8).double(), packed, torch.randn(4), torch.randn(3, 4), False, 1)


def test_what_it_leaves_to_others():
    wide = torch.randn(1, 2, 3, 3, 2, 8, dtype=torch.float64)
    assert native.self_attention(wide, wide[0, 0, 0, 0, 0], wide[0, 0, 0, 0, 0], None, EPS, 2) is None
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, native.MAX_KEYS + 1, 1, 8)
    assert native.cross_attention(q, k, k) is None


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["x86-64-v3", "baseline"])
def test_older_processors(instructions):
    """These tests again with fewer instructions, in a process of their own."""
    if os.environ.get("SYNCFLOW_INSTRUCTIONS"):
        pytest.skip("this is that process")
    if instructions == native.instructions():
        pytest.skip("the other tests run with these instructions")
    name = "import syncflow._native as n; print(n.instructions())"
    environment = {**os.environ, "SYNCFLOW_INSTRUCTIONS": instructions}
    said = subprocess.run([sys.executable, "-c", name], env=environment, capture_output=True, text=True, check=True)
    if said.stdout.strip() != instructions:
        pytest.skip(f"this processor has no {instructions}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
