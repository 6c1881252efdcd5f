"""The order of the queue, against the definition of priority with ageing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.batching import Full
from syncflow.engine.batching.scheduler import Queue

from .helpers import make_request

AGEING = 8.0  # a power of two, with whole times: ranks are exact
DRAFTS = st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3), st.integers(0, 2)), max_size=30)


def requests(drafts):
    """In the order of submission, at rising times."""
    time, found = 0, []
    for wait, priority, shape in drafts:
        time += wait
        found.append(make_request(shape=shape, submitted_at=float(time), priority=priority))
    return found


@given(DRAFTS, st.integers(0, 100))
def test_the_first_is_the_most_urgent_at_any_time(drafts, later):
    waiting = requests(drafts)
    queue = Queue(len(waiting) + 1, AGEING)
    for request in waiting:
        queue.push(request)
    now = max((request.submitted_at for request in waiting), default=0.0) + later
    urgency = {request: request.priority + (now - request.submitted_at) / AGEING for request in waiting}
    expected = sorted(waiting, key=lambda request: -urgency[request])  # stable: first come first served
    order = []
    while (request := queue.first(lambda shape: True)) is not None:
        order.append(request)
        queue.remove(request)
    assert order == expected
    assert len(queue) == 0


@given(DRAFTS, st.data())
def test_removal_from_anywhere_keeps_the_rest(drafts, data):
    waiting = requests(drafts)
    queue = Queue(len(waiting) + 1, AGEING)
    for request in waiting:
        queue.push(request)
    gone = data.draw(st.lists(st.sampled_from(waiting), unique=True)) if waiting else []
    for request in gone:
        queue.remove(request)
    rest = [request for request in waiting if request not in gone]
    assert len(queue) == len(rest)
    for shape in range(3):
        of_shape = [request for request in rest if request.shape == shape]
        assert queue.num_waiting(shape) == len(of_shape)
        assert queue.first(lambda other, shape=shape: other == shape) is min(
            of_shape, key=lambda e: e.rank, default=None
        )


def test_one_too_many_is_refused_and_leaves_the_queue_as_it_was():
    queue = Queue(2, AGEING)
    for _ in range(2):
        queue.push(make_request())
    with pytest.raises(Full, match="2 requests wait and 2 may"):
        queue.push(make_request(shape=1, priority=9))
    assert len(queue) == 2
    assert queue.num_waiting(1) == 0
