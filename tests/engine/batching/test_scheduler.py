"""The scheduler on a simulated clock: whatever happens, limits hold, order holds, and every request ends once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from syncflow.engine.batching import Full, Limits, Policy
from syncflow.engine.batching.entry import Entry, Phase
from syncflow.engine.batching.scheduler import Scheduler

RESERVED = {Phase.PREPARING, Phase.READY, Phase.RUNNING, Phase.DECODING}
AGEING = 8.0


class Machine(RuleBasedStateMachine):
    """Everything that a worker may do, in any order; times are whole, so that ranks are exact."""

    @initialize(
        batch=st.integers(1, 4),
        ahead=st.integers(0, 2),
        queue=st.integers(1, 6),
        memory=st.none() | st.integers(4, 12),
        continuous=st.booleans(),
        max_wait=st.sampled_from([0.0, 2.0]),
    )
    def begin(self, batch, ahead, queue, memory, continuous, max_wait):
        self.limits = Limits(queue=queue, batch=batch, ahead=ahead, memory=memory)
        self.policy = Policy(continuous=continuous, max_wait=max_wait, ageing=AGEING)
        self.scheduler = Scheduler(self.limits, self.policy)
        self.now = 0.0
        self.taken: list[Entry] = []
        self.left: dict[Entry, int] = {}
        self.alone: set[Entry] = set()
        self.ended: Counter[Entry] = Counter()

    @rule(
        key=st.integers(0, 2),
        cost=st.integers(0, 6),
        priority=st.integers(-2, 2),
        steps=st.integers(1, 4),
        timeout=st.none() | st.integers(1, 12),
    )
    def submit(self, key, cost, priority, steps, timeout):
        entry = Entry(key=key, cost=cost, submitted=self.now, priority=priority, timeout=timeout)
        waiting = self.scheduler.waiting
        try:
            self.scheduler.submit(entry)
        except ValueError:
            assert self.limits.memory is not None and cost > self.limits.memory
        except Full:
            assert waiting == self.limits.queue
        else:
            assert waiting < self.limits.queue
            self.taken.append(entry)
            self.left[entry] = steps
        self.admit()

    @precondition(lambda self: self.of(Phase.PREPARING))
    @rule(data=st.data())
    def prepare(self, data):
        self.scheduler.prepared(data.draw(st.sampled_from(self.of(Phase.PREPARING))), self.now)

    @rule(seconds=st.integers(1, 4))
    def step(self, seconds):
        running = {bucket: tuple(bucket.running) for bucket in self.buckets()}
        turn = self.scheduler.turn(self.now)
        if turn is None:
            assert not any(running.values())
            return
        bucket = turn.bucket
        ready = [entry for entry in self.of(Phase.READY) if entry.bucket is bucket]
        assert all(joined.rank < left.rank for joined in turn.joining for left in ready)
        if not self.policy.continuous:
            assert not (turn.joining and running.get(bucket))
        elif ready:
            assert len(bucket.running) == bucket.places
        self.now += seconds
        self.scheduler.stepped(bucket, seconds)
        for entry in tuple(bucket.running):
            self.left[entry] -= 1
            if self.left[entry] <= 0:
                self.scheduler.leave(entry)
        self.admit()

    @precondition(lambda self: any(len(bucket.running) > 1 for bucket in self.buckets()))
    @rule()
    def fail(self):
        bucket = next(bucket for bucket in self.buckets() if len(bucket.running) > 1)
        self.alone.update(bucket.running)
        self.scheduler.isolate(bucket, self.now)

    @precondition(lambda self: self.of(Phase.DECODING))
    @rule(data=st.data())
    def decode(self, data):
        self.end(data.draw(st.sampled_from(self.of(Phase.DECODING))))

    @precondition(lambda self: self.scheduler.entries)
    @rule(data=st.data())
    def cancel(self, data):
        self.end(data.draw(st.sampled_from(list(self.scheduler.entries))))

    @rule(seconds=st.integers(0, 5))
    def wait(self, seconds):
        self.now += seconds
        late = self.scheduler.overdue(self.now)
        live = [entry for entry in self.scheduler.entries if entry.phase is not Phase.DECODING]
        assert set(late) == {entry for entry in live if entry.deadline <= self.now}
        assert self.scheduler.overdue(self.now) == []
        for entry in late:
            self.end(entry)

    @invariant()
    def limits_hold(self):
        if not hasattr(self, "scheduler"):
            return
        reserved = [entry for entry in self.taken if entry.phase in RESERVED]
        assert self.scheduler.memory == sum(entry.cost for entry in reserved)
        assert self.limits.memory is None or self.scheduler.memory <= self.limits.memory
        assert self.scheduler.waiting == len(self.of(Phase.WAITING)) <= self.limits.queue
        for bucket in self.buckets():
            assert 0 < len(bucket) <= self.limits.batch + self.limits.ahead
            assert len(bucket.running) <= bucket.places <= self.limits.batch
            assert {entry.key for entry in bucket.running} <= {bucket.key}
        for entry in self.alone - set(self.of(Phase.GONE)) - set(self.of(Phase.DECODING)):
            assert entry.bucket is not None and entry.bucket.alone and len(entry.bucket) == 1

    @invariant()
    def the_next_event_is_not_missed(self):
        if not hasattr(self, "scheduler"):
            return
        timed = [entry.deadline for entry in self.taken if entry.phase not in (Phase.DECODING, Phase.GONE)]
        assert self.scheduler.next_event() <= min(timed, default=float("inf"))

    def teardown(self):
        """Nothing new comes: what is there ends, each once, and nothing stays reserved."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(10_000):
            for entry in self.of(Phase.PREPARING):
                self.scheduler.prepared(entry, self.now)
            for entry in self.of(Phase.DECODING):
                self.end(entry)
            if not self.scheduler.entries:
                break
            self.step(1)
            self.wait(1)
        assert all(self.ended[entry] == 1 for entry in self.taken)
        assert (self.scheduler.memory, self.scheduler.waiting, self.scheduler.buckets) == (0, 0, 0)
        assert not self.scheduler.entries

    def of(self, phase):
        return [entry for entry in self.taken if entry.phase is phase]

    def buckets(self):
        return list(dict.fromkeys(entry.bucket for entry in self.taken if entry.bucket is not None))

    def end(self, entry):
        self.ended[entry] += 1
        self.scheduler.release(entry)
        assert entry.phase is Phase.GONE
        self.admit()

    def admit(self):
        """Against the definition: by urgency now, over all shapes; the first without memory ends it."""
        waiting = self.of(Phase.WAITING)
        waiting.sort(key=lambda entry: -(entry.priority + (self.now - entry.submitted) / AGEING))
        members = Counter(e.key for e in self.taken if e.bucket is not None and not e.bucket.alone)
        memory, expected, blocked = self.scheduler.memory, [], False
        for places in (self.limits.batch, self.limits.batch + self.limits.ahead):
            for entry in waiting:
                if entry in expected or members[entry.key] >= places or blocked:
                    continue
                if self.limits.memory is not None and memory + entry.cost > self.limits.memory:
                    blocked = True
                    continue
                memory, members[entry.key] = memory + entry.cost, members[entry.key] + 1
                expected.append(entry)
        assert self.scheduler.admit() == expected
        assert self.scheduler.admit() == []


TestScheduler = Machine.TestCase
TestScheduler.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def entry(scheduler, now=0.0, **values):
    """A request that is submitted, admitted if there is room, and prepared at once."""
    one = Entry(**{"key": 0, "cost": 0, "submitted": now, **values})
    scheduler.submit(one)
    for admitted in scheduler.admit():
        scheduler.prepared(admitted, now)
    return one


def test_a_request_that_can_never_fit_is_refused_at_once():
    scheduler = Scheduler(Limits(memory=2**30), Policy())
    with pytest.raises(ValueError, match=r"needs 1\.5 GiB of memory and 1 GiB are allowed"):
        scheduler.submit(Entry(key=0, cost=3 * 2**29, submitted=0.0))
    assert not scheduler.entries


def test_small_requests_cannot_starve_a_large_one_of_memory():
    scheduler = Scheduler(Limits(memory=10, batch=4), Policy())
    first = [entry(scheduler, cost=4) for _ in range(2)]
    large = entry(scheduler, key=1, cost=9)
    small = [entry(scheduler, cost=1) for _ in range(2)]
    assert [one.phase for one in (large, *small)] == [Phase.WAITING] * 3
    for one in first:
        scheduler.release(one)
        admitted = scheduler.admit()
    assert admitted == [large, small[0]]


def test_a_request_without_a_place_holds_up_nobody():
    scheduler = Scheduler(Limits(memory=10, batch=1, ahead=0), Policy())
    entry(scheduler, cost=2)
    waits = entry(scheduler, cost=9)
    other = entry(scheduler, key=1, cost=3)
    assert waits.phase is Phase.WAITING
    assert other.phase is Phase.READY


def test_who_is_ready_joins_by_rank_whoever_was_ready_first():
    scheduler = Scheduler(Limits(batch=1, ahead=1), Policy())
    first, second = (Entry(key=0, cost=0, submitted=0.0) for _ in range(2))
    for one in (first, second):
        scheduler.submit(one)
    for one in reversed(scheduler.admit()):
        scheduler.prepared(one, 0.0)
    assert scheduler.turn(0.0).joining == (first,)


def test_memory_that_somebody_waits_for_makes_nobody_ready_ahead():
    scheduler = Scheduler(Limits(memory=10, batch=1, ahead=1), Policy())
    entry(scheduler, cost=5)
    ahead = Entry(key=0, cost=2, submitted=0.0, priority=1)
    waits = Entry(key=1, cost=6, submitted=0.0)
    scheduler.submit(ahead)
    scheduler.submit(waits)
    assert scheduler.admit() == []


@pytest.mark.parametrize(("waiting", "share"), [(0, 2), (1, 3), (9, 4)])
def test_a_batch_has_a_share_for_each_request_and_at_most_as_many_for_those_who_wait(waiting, share):
    scheduler = Scheduler(Limits(batch=2, ahead=1), Policy())
    busy, *_ = (entry(scheduler, key="busy") for _ in range(2 + waiting))
    entry(scheduler, key="odd")
    turns = Counter()
    for _ in range(20 * (share + 1)):
        turn = scheduler.turn(0.0)
        scheduler.stepped(turn.bucket, 1.0)
        turns[turn.bucket is busy.bucket] += 1
    assert turns[True] == pytest.approx(20 * share, abs=share)


def test_a_batch_gathers_for_a_while_and_starts_early_when_it_is_full():
    scheduler = Scheduler(Limits(batch=2), Policy(max_wait=5.0))
    one = entry(scheduler, now=1.0)
    assert scheduler.turn(1.0) is None
    assert scheduler.next_event() == 6.0
    assert scheduler.turn(6.0).joining == (one,)
    two = [entry(scheduler, key=1, now=7.0) for _ in range(2)]
    scheduler.release(one)
    assert scheduler.turn(7.0).joining == tuple(two)


def test_a_batch_of_static_batching_takes_nobody_in():
    scheduler = Scheduler(Limits(batch=2), Policy(continuous=False))
    first, second = entry(scheduler), None
    assert scheduler.turn(0.0).joining == (first,)
    second = entry(scheduler)
    assert scheduler.turn(0.0).joining == ()
    scheduler.leave(first)
    assert scheduler.turn(0.0).joining == (second,)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 20))
def test_a_stream_of_higher_priority_overtakes_for_so_long_and_no_longer(gap, priority, flood):
    """One place, a request a second, and each takes two: the queue only grows."""
    scheduler = Scheduler(Limits(queue=10_000, batch=1, ahead=0), Policy(ageing=float(gap)))
    running = entry(scheduler)
    humble = entry(scheduler)
    overtakers = []
    for second in range(1, priority * gap + flood + 200):
        urgent = Entry(key=0, cost=0, submitted=float(second), priority=priority)
        scheduler.submit(urgent)
        if second % 2 == 0:
            scheduler.release(running)
            (running,) = scheduler.admit()
            if running is humble:
                break
            overtakers.append(running)
    assert humble.phase is Phase.PREPARING
    assert all(one.submitted < priority * gap for one in overtakers)
