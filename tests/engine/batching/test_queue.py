"""The order of the queue, against the definition of priority with ageing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.batching import Full
from syncflow.engine.batching.entry import Entry
from syncflow.engine.batching.queue import Queue

AGEING = 8.0  # a power of two, with whole times: ranks are exact
ENTRIES = st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3), st.integers(0, 2)), max_size=30)


def entries(drafts):
    """In the order of submission, at rising times."""
    time, found = 0, []
    for wait, priority, key in drafts:
        time += wait
        found.append(Entry(key=key, cost=0, submitted=float(time), priority=priority))
    return found


@given(ENTRIES, st.integers(0, 100))
def test_the_first_is_the_most_urgent_at_any_time(drafts, later):
    waiting = entries(drafts)
    queue = Queue(len(waiting) + 1, AGEING)
    for entry in waiting:
        queue.push(entry)
    now = max((entry.submitted for entry in waiting), default=0.0) + later
    urgency = {entry: entry.priority + (now - entry.submitted) / AGEING for entry in waiting}
    expected = sorted(waiting, key=lambda entry: -urgency[entry])  # stable: first come first served
    order = []
    while (entry := queue.first(lambda key: True)) is not None:
        order.append(entry)
        queue.remove(entry)
    assert order == expected
    assert len(queue) == 0


@given(ENTRIES, st.data())
def test_removal_from_anywhere_keeps_the_rest(drafts, data):
    waiting = entries(drafts)
    queue = Queue(len(waiting) + 1, AGEING)
    for entry in waiting:
        queue.push(entry)
    gone = data.draw(st.lists(st.sampled_from(waiting), unique=True)) if waiting else []
    for entry in gone:
        queue.remove(entry)
    rest = [entry for entry in waiting if entry not in gone]
    assert len(queue) == len(rest)
    for key in range(3):
        of_key = [entry for entry in rest if entry.key == key]
        assert queue.waiting(key) == len(of_key)
        assert queue.first(lambda other, key=key: other == key) is min(of_key, key=lambda e: e.rank, default=None)


def test_one_too_many_is_refused_and_leaves_the_queue_as_it_was():
    queue = Queue(2, AGEING)
    for _ in range(2):
        queue.push(Entry(key=0, cost=0, submitted=0.0))
    with pytest.raises(Full, match="2 requests wait and 2 may"):
        queue.push(Entry(key=1, cost=0, submitted=0.0, priority=9))
    assert len(queue) == 2
    assert queue.waiting(1) == 0
