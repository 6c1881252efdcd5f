"""The scheduler on a simulated clock: whatever happens, limits and order hold, and every request is removed once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from syncflow.engine.batching import Full, Limits, Policy
from syncflow.engine.batching.request_state import Phase, RequestState
from syncflow.engine.batching.scheduler import Scheduler

from .helpers import make_request

RESERVED = {Phase.PREPARING, Phase.READY, Phase.RUNNING, Phase.DECODING}
AGEING = 8.0


class Machine(RuleBasedStateMachine):
    """Everything that a batcher may do, in any order; times are whole numbers, so that ranks are exact."""

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
        self.taken: list[RequestState] = []
        self.left: dict[RequestState, int] = {}
        self.alone: set[RequestState] = set()
        self.ended: Counter[RequestState] = Counter()

    @rule(
        shape=st.integers(0, 2),
        memory=st.integers(0, 6),
        priority=st.integers(-2, 2),
        steps=st.integers(1, 4),
        timeout=st.none() | st.integers(1, 12),
    )
    def submit(self, shape, memory, priority, steps, timeout):
        request = make_request(shape=shape, memory=memory, submitted_at=self.now, priority=priority, timeout=timeout)
        waiting = self.scheduler.num_waiting
        try:
            self.scheduler.submit(request)
        except ValueError:
            assert self.limits.memory is not None and memory > self.limits.memory
        except Full:
            assert waiting == self.limits.queue
        else:
            assert waiting < self.limits.queue
            self.taken.append(request)
            self.left[request] = steps
        self.admit()

    @precondition(lambda self: self.of(Phase.PREPARING))
    @rule(data=st.data())
    def prepare(self, data):
        self.scheduler.mark_ready(data.draw(st.sampled_from(self.of(Phase.PREPARING))), self.now)

    @rule(seconds=st.integers(1, 4))
    def step(self, seconds):
        running = {group: tuple(group.running) for group in self.groups()}
        decision = self.scheduler.next_step(self.now)
        if decision is None:
            assert not any(running.values())
            return
        group = decision.group
        ready = [request for request in self.of(Phase.READY) if self.scheduler.group_of(request) is group]
        assert all(joined.rank < left.rank for joined in decision.joining for left in ready)
        if not self.policy.continuous:
            assert not (decision.joining and running.get(group))
        elif ready:
            assert len(group.running) == group.capacity
        self.now += seconds
        self.scheduler.record_step(group, seconds)
        for request in tuple(group.running):
            self.left[request] -= 1
            if self.left[request] <= 0:
                self.scheduler.mark_decoding(request)
        self.admit()

    @precondition(lambda self: any(len(group.running) > 1 for group in self.groups()))
    @rule()
    def fail(self):
        group = next(group for group in self.groups() if len(group.running) > 1)
        self.alone.update(group.running)
        self.scheduler.isolate(group, self.now)

    @precondition(lambda self: self.of(Phase.DECODING))
    @rule(data=st.data())
    def decode(self, data):
        self.end(data.draw(st.sampled_from(self.of(Phase.DECODING))))

    @precondition(lambda self: self.scheduler.requests)
    @rule(data=st.data())
    def cancel(self, data):
        self.end(data.draw(st.sampled_from(list(self.scheduler.requests))))

    @rule(seconds=st.integers(0, 5))
    def wait(self, seconds):
        self.now += seconds
        late = self.scheduler.expire(self.now)
        live = [request for request in self.scheduler.requests if request.phase is not Phase.DECODING]
        assert set(late) == {request for request in live if request.deadline <= self.now}
        assert self.scheduler.expire(self.now) == []
        for request in late:
            self.end(request)

    @invariant()
    def limits_hold(self):
        if not hasattr(self, "scheduler"):
            return
        reserved = [request for request in self.taken if request.phase in RESERVED]
        assert self.scheduler.reserved == sum(request.memory for request in reserved)
        assert self.limits.memory is None or self.scheduler.reserved <= self.limits.memory
        assert self.scheduler.num_waiting == len(self.of(Phase.WAITING)) <= self.limits.queue
        for group in self.groups():
            assert 0 < len(group) <= self.limits.batch + self.limits.ahead
            assert len(group.running) <= group.capacity <= self.limits.batch
            assert {request.shape for request in group.running} <= {group.shape}
        for request in self.alone - set(self.of(Phase.REMOVED)) - set(self.of(Phase.DECODING)):
            group = self.scheduler.group_of(request)
            assert group is not None and group.isolated and len(group) == 1

    @invariant()
    def the_next_event_is_not_missed(self):
        if not hasattr(self, "scheduler"):
            return
        timed = [request.deadline for request in self.taken if request.phase not in (Phase.DECODING, Phase.REMOVED)]
        assert self.scheduler.next_event() <= min(timed, default=float("inf"))

    def teardown(self):
        """Nothing new comes: what is there ends, each once, and nothing stays reserved."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(10_000):
            for request in self.of(Phase.PREPARING):
                self.scheduler.mark_ready(request, self.now)
            for request in self.of(Phase.DECODING):
                self.end(request)
            if not self.scheduler.requests:
                break
            self.step(1)
            self.wait(1)
        assert all(self.ended[request] == 1 for request in self.taken)
        assert (self.scheduler.reserved, self.scheduler.num_waiting, self.scheduler.num_groups) == (0, 0, 0)
        assert not self.scheduler.requests

    def of(self, phase):
        return [request for request in self.taken if request.phase is phase]

    def groups(self):
        found = map(self.scheduler.group_of, self.taken)
        return list(dict.fromkeys(group for group in found if group is not None))

    def end(self, request):
        self.ended[request] += 1
        self.scheduler.remove(request)
        assert request.phase is Phase.REMOVED
        self.admit()

    def admit(self):
        """Against the definition: by urgency now, over all shapes; the first without memory ends it."""
        waiting = self.of(Phase.WAITING)
        waiting.sort(key=lambda request: -(request.priority + (self.now - request.submitted_at) / AGEING))
        members = Counter({group.shape: len(group) for group in self.groups() if not group.isolated})
        memory, expected, blocked = self.scheduler.reserved, [], False
        for most in (self.limits.batch, self.limits.batch + self.limits.ahead):
            for request in waiting:
                if request in expected or members[request.shape] >= most or blocked:
                    continue
                if self.limits.memory is not None and memory + request.memory > self.limits.memory:
                    blocked = True
                    continue
                memory, members[request.shape] = memory + request.memory, members[request.shape] + 1
                expected.append(request)
        assert self.scheduler.admit() == expected
        assert self.scheduler.admit() == []


TestScheduler = Machine.TestCase
TestScheduler.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def submit(scheduler, now=0.0, **values):
    """A request that is submitted, admitted if there is room, and prepared at once."""
    one = make_request(submitted_at=now, **values)
    scheduler.submit(one)
    for admitted in scheduler.admit():
        scheduler.mark_ready(admitted, now)
    return one


def test_a_request_that_can_never_fit_is_refused_at_once():
    scheduler = Scheduler(Limits(memory=2**30), Policy())
    with pytest.raises(ValueError, match=r"needs 1\.5 GiB of memory and 1 GiB are allowed"):
        scheduler.submit(make_request(memory=3 * 2**29))
    assert not scheduler.requests


def test_small_requests_cannot_starve_a_large_one_of_memory():
    scheduler = Scheduler(Limits(memory=10, batch=4), Policy())
    first = [submit(scheduler, memory=4) for _ in range(2)]
    large = submit(scheduler, shape=1, memory=9)
    small = [submit(scheduler, memory=1) for _ in range(2)]
    assert [one.phase for one in (large, *small)] == [Phase.WAITING] * 3
    for one in first:
        scheduler.remove(one)
        admitted = scheduler.admit()
    assert admitted == [large, small[0]]


def test_a_request_without_a_place_holds_up_nobody():
    scheduler = Scheduler(Limits(memory=10, batch=1, ahead=0), Policy())
    submit(scheduler, memory=2)
    waits = submit(scheduler, memory=9)
    other = submit(scheduler, shape=1, memory=3)
    assert waits.phase is Phase.WAITING
    assert other.phase is Phase.READY


def test_who_is_ready_joins_by_rank_whoever_was_ready_first():
    scheduler = Scheduler(Limits(batch=1, ahead=1), Policy())
    first, second = (make_request() for _ in range(2))
    for one in (first, second):
        scheduler.submit(one)
    for one in reversed(scheduler.admit()):
        scheduler.mark_ready(one, 0.0)
    assert scheduler.next_step(0.0).joining == (first,)


def test_memory_that_somebody_waits_for_makes_nobody_ready_ahead():
    scheduler = Scheduler(Limits(memory=10, batch=1, ahead=1), Policy())
    submit(scheduler, memory=5)
    ahead = make_request(memory=2, priority=1)
    waits = make_request(shape=1, memory=6)
    scheduler.submit(ahead)
    scheduler.submit(waits)
    assert scheduler.admit() == []


@pytest.mark.parametrize(("waiting", "share"), [(0, 2), (1, 3), (9, 4)])
def test_a_batch_has_a_share_for_each_request_and_at_most_as_many_for_those_who_wait(waiting, share):
    scheduler = Scheduler(Limits(batch=2, ahead=1), Policy())
    busy, *_ = (submit(scheduler, shape="busy") for _ in range(2 + waiting))
    submit(scheduler, shape="odd")
    steps = Counter()
    for _ in range(20 * (share + 1)):
        decision = scheduler.next_step(0.0)
        scheduler.record_step(decision.group, 1.0)
        steps[decision.group is scheduler.group_of(busy)] += 1
    assert steps[True] == pytest.approx(20 * share, abs=share)


def test_a_batch_gathers_for_a_while_and_starts_early_when_it_is_full():
    scheduler = Scheduler(Limits(batch=2), Policy(max_wait=5.0))
    one = submit(scheduler, now=1.0)
    assert scheduler.next_step(1.0) is None
    assert scheduler.next_event() == 6.0
    assert scheduler.next_step(6.0).joining == (one,)
    two = [submit(scheduler, shape=1, now=7.0) for _ in range(2)]
    scheduler.remove(one)
    assert scheduler.next_step(7.0).joining == tuple(two)


def test_a_batch_of_static_batching_takes_nobody_in():
    scheduler = Scheduler(Limits(batch=2), Policy(continuous=False))
    first, second = submit(scheduler), None
    assert scheduler.next_step(0.0).joining == (first,)
    second = submit(scheduler)
    assert scheduler.next_step(0.0).joining == ()
    scheduler.mark_decoding(first)
    assert scheduler.next_step(0.0).joining == (second,)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 20))
def test_a_stream_of_higher_priority_overtakes_for_so_long_and_no_longer(gap, priority, flood):
    """One place, a request a second, and each takes two: the queue only grows."""
    scheduler = Scheduler(Limits(queue=10_000, batch=1, ahead=0), Policy(ageing=float(gap)))
    running = submit(scheduler)
    humble = submit(scheduler)
    overtakers = []
    for second in range(1, priority * gap + flood + 200):
        urgent = make_request(submitted_at=float(second), priority=priority)
        scheduler.submit(urgent)
        if second % 2 == 0:
            scheduler.remove(running)
            (running,) = scheduler.admit()
            if running is humble:
                break
            overtakers.append(running)
    assert humble.phase is Phase.PREPARING
    assert all(one.submitted_at < priority * gap for one in overtakers)
