"""Recordings are made once, kept within bounds, and lend their results until they are written again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.runtime.cuda_graphs.graph_runner import Lane, Recordings
from syncflow.engine.runtime.cuda_graphs.static_inputs import Input
from syncflow.engine.runtime.cuda_graphs.stream_order import Order

from .tape import TapeCapture


class Settled(Order):
    """Counts how often the host waits."""

    times = 0

    def settle(self) -> None:
        self.times += 1


def recordings(most=100, most_bytes=None):
    return Recordings(TapeCapture(), Settled(), most, most_bytes)


def doubled(lane, x, *, lends=False):
    result, slot = lane.run(None, {"x": Input(x, exact=True)}, lambda given: 2 * given["x"], lends=lends)
    return result, slot


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20), st.integers(1, 4))
def test_the_last_used_stay(sizes, most):
    kept = recordings(most)
    lane, expected, made = Lane("a", kept, kept.order), [], 0
    for size in sizes:
        x = torch.randn(size)
        assert torch.equal(doubled(lane, x)[0], 2 * x)
        made += size not in expected
        expected = [*(other for other in expected if other != size), size][-most:]
        assert kept.captured == made
        assert len(kept) == len(expected)


def test_bytes_are_bounded():
    kept = recordings(most_bytes=3 * 400)
    lane = Lane("a", kept, kept.order)
    for size in (100, 50, 75):
        doubled(lane, torch.zeros(size))
        assert kept.bytes <= 1200
    assert (len(kept), kept.order.times) == (2, 1)
    doubled(lane, torch.zeros(1000))  # more than there is room for, and yet wanted
    assert len(kept) == 1


def test_what_reads_the_results_of_a_recording_goes_with_it():
    kept = recordings(most=3)
    first, second = Lane("a", kept, kept.order), Lane("b", kept, kept.order)

    def read(size):
        x = torch.randn(size)
        result, slot = doubled(first, x, lends=True)
        found, _ = second.run(None, {}, lambda given: result + 1, reads=slot)
        assert torch.equal(found, 2 * x + 1)

    read(3)
    read(4)  # the first recording of all makes way, and its reader, which could never be used again
    assert len(kept) == 2
    read(3)
    assert kept.captured == 6


def test_slots_take_turns_for_what_is_lent():
    kept = recordings()
    lane = Lane("a", kept, kept.order, slots=2)
    results = []
    for value in (1.0, 2.0, 3.0):
        result, slot = doubled(lane, torch.tensor([value]), lends=True)
        slot.lend([result])
        results.append(result)
        assert lane.lender([result]) is slot
    assert [float(x) for x in results] == [6.0, 4.0, 6.0]
    assert lane.lender([results[1]]) is not None
    assert lane.lender([results[1].clone()]) is None
    assert lane.lender([results[1], results[2]]) is None
    assert lane.lender([]) is lane.lender(None) is None


def test_what_is_not_lent_leaves_the_last_that_was_alone():
    kept = recordings()
    lane = Lane("a", kept, kept.order, slots=2)
    result, slot = doubled(lane, torch.ones(2), lends=True)
    slot.lend([result])
    for _ in range(3):
        doubled(lane, torch.zeros(3))
    assert lane.lender([result]) is slot
    assert result.tolist() == [2.0, 2.0]


def test_the_tape_forgets_and_freezes():
    """What stands for CUDA graphs in these tests has their traps."""
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
def test_a_recording_and_what_it_reads_stay_together(most):
    kept = recordings(most)
    first, second = Lane("a", kept, kept.order), Lane("b", kept, kept.order)
    for _ in range(2):
        result, slot = doubled(first, torch.ones(2), lends=True)
        found, _ = second.run(None, {}, lambda given: result + 1, reads=slot)  # noqa: B023
        assert found.tolist() == [3.0, 3.0]
