"""Graphs are captured once and evicted by use and size; outputs stay valid until their buffer is written again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.runtime.cuda_graphs.graph_runner import GraphCache, GraphRunner
from syncflow.engine.runtime.cuda_graphs.static_inputs import GraphInput
from syncflow.engine.runtime.cuda_graphs.stream_order import StreamOrder

from .tape import TapeCapture


class CountingOrder(StreamOrder):
    """Counts how often the host waits for the device."""

    times = 0

    def synchronize(self) -> None:
        self.times += 1


def graph_cache(max_graphs=100, max_bytes=None):
    return GraphCache(TapeCapture(), CountingOrder(), max_graphs, max_bytes)


def doubled(runner, x, *, returns_contexts=False):
    inputs = {"x": GraphInput(x, exact=True)}
    return runner.run(None, inputs, lambda static: 2 * static["x"], returns_contexts=returns_contexts)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20), st.integers(1, 4))
def test_the_least_recently_used_graph_is_evicted(sizes, most):
    cache = graph_cache(most)
    runner, expected, made = GraphRunner("a", cache, cache.order), [], 0
    for size in sizes:
        x = torch.randn(size)
        assert torch.equal(doubled(runner, x)[0], 2 * x)
        made += size not in expected
        expected = [*(other for other in expected if other != size), size][-most:]
        assert cache.num_captures == made
        assert len(cache) == len(expected)


def test_bytes_are_bounded():
    cache = graph_cache(max_bytes=3 * 400)
    runner = GraphRunner("a", cache, cache.order)
    for size in (100, 50, 75):
        doubled(runner, torch.zeros(size))
        assert cache.bytes <= 1200
    assert (len(cache), cache.order.times) == (2, 1)
    doubled(runner, torch.zeros(1000))  # larger than the limit, and still captured
    assert len(cache) == 1


def test_a_graph_that_reads_the_outputs_of_an_evicted_one_is_evicted_too():
    cache = graph_cache(max_graphs=3)
    first, second = GraphRunner("a", cache, cache.order), GraphRunner("b", cache, cache.order)

    def read(size):
        x = torch.randn(size)
        result, buffer = doubled(first, x, returns_contexts=True)
        found, _ = second.run(None, {}, lambda static: result + 1, source=buffer)
        assert torch.equal(found, 2 * x + 1)

    read(3)
    read(4)  # evicts the first graph, and its reader, which could never be replayed again
    assert len(cache) == 2
    read(3)
    assert cache.num_captures == 6


def test_buffers_alternate_for_calls_that_return_contexts():
    cache = graph_cache()
    runner = GraphRunner("a", cache, cache.order, num_buffers=2)
    results = []
    for value in (1.0, 2.0, 3.0):
        result, buffer = doubled(runner, torch.tensor([value]), returns_contexts=True)
        buffer.set_contexts([result])
        results.append(result)
        assert runner.buffer_of([result]) is buffer
    assert [float(x) for x in results] == [6.0, 4.0, 6.0]
    assert runner.buffer_of([results[1]]) is not None
    assert runner.buffer_of([results[1].clone()]) is None
    assert runner.buffer_of([results[1], results[2]]) is None
    assert runner.buffer_of([]) is runner.buffer_of(None) is None


def test_a_call_without_contexts_leaves_the_last_returned_contexts_valid():
    cache = graph_cache()
    runner = GraphRunner("a", cache, cache.order, num_buffers=2)
    result, buffer = doubled(runner, torch.ones(2), returns_contexts=True)
    buffer.set_contexts([result])
    for _ in range(3):
        doubled(runner, torch.zeros(3))
    assert runner.buffer_of([result]) is buffer
    assert result.tolist() == [2.0, 2.0]


def test_the_tape_forgets_and_freezes():
    """The stand-in for CUDA graphs has their pitfalls."""
    capture, x, factor = TapeCapture(), torch.ones(2), 2

    def work():
        return x * factor

    replay = capture(work, "pool")
    other = capture(lambda: x + 10, "pool")
    factor = 3
    result = replay()
    assert result.tolist() == [2.0, 2.0], "numbers are frozen"
    x.fill_(5.0)
    assert result.tolist() == [2.0, 2.0]
    assert replay() is result
    assert result.tolist() == [10.0, 10.0], "memory is read anew"
    assert other().tolist() == [15.0, 15.0]
    assert result.isnan().all(), "a replay may write over results of its pool"


@pytest.mark.parametrize("most", [1, 2])
def test_the_newest_graph_and_its_source_are_not_evicted(most):
    cache = graph_cache(most)
    first, second = GraphRunner("a", cache, cache.order), GraphRunner("b", cache, cache.order)
    for _ in range(2):
        result, buffer = doubled(first, torch.ones(2), returns_contexts=True)
        found, _ = second.run(None, {}, lambda static: result + 1, source=buffer)  # noqa: B023
        assert found.tolist() == [3.0, 3.0]
