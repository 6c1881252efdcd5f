"""Times in alternation, and the interval of their ratio."""

from __future__ import annotations

import time

import numpy as np
import pytest

from syncflow.benchmarks import alternating
from syncflow.benchmarks.alternating import Timing, alternate, ratio


def test_functions_alternate_and_every_other_round_goes_backwards():
    told = []
    functions = {"a": lambda: told.append("a"), "b": lambda: told.append("b")}
    seconds = alternate(functions, Timing(3))
    # One call each that shows how long they are, then pairs of which the second one is timed.
    assert told == [*"ab", *"bbaa", *"aabb", *"bbaa", *"aabb"]
    assert len(seconds["a"]) == len(seconds["b"]) == 3


def test_long_calls_are_not_repeated(monkeypatch):
    monkeypatch.setattr(alternating, "LONG", 0.0)
    told = []
    assert len(alternate({"a": lambda: told.append("a")}, Timing(3))["a"]) == 3
    assert len(told) == 4


def test_progress_is_told():
    told = []

    def bar(rounds, desc):
        for k in rounds:
            told.append((desc, k))
            yield k

    alternate({"a": lambda: None}, Timing(2, progress=bar), "batch 8")
    assert told == [("batch 8", k) for k in range(3)]


def test_the_cpu_clock_does_not_count_waiting():
    seconds = alternate({"waits": lambda: time.sleep(0.02)}, Timing(3, clock=time.process_time))
    assert max(seconds["waits"]) < 0.015


def test_a_ratio_is_of_rounds_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    machine = rng.uniform(1, 20, 40)  # what disturbs both alike
    found = ratio(2 * machine * rng.normal(1, 0.02, 40), machine * rng.normal(1, 0.02, 40))
    assert found.low <= found.median <= found.high
    assert found.median == pytest.approx(2, rel=0.02) and found.high - found.low < 0.1
    assert str(alternating.Ratio(1.5, 1.25, 2.0)) == "1.50 (1.25 to 2.00)"


def test_events_time_a_gpu_after_its_cache_was_overwritten(monkeypatch):
    """With a stand-in for the GPU."""
    told: list[str] = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            told.append("record")

        def synchronize(self):
            told.append("synchronize")

        def elapsed_time(self, end):
            return 2.5  # ms

    class Buffer:
        def zero_(self):
            told.append("flush")

    def empty(size, dtype, device):
        assert (size, device) == (200, "cuda")
        return Buffer()

    properties = type("Properties", (), {"L2_cache_size": 100})
    monkeypatch.setattr(alternating.torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(alternating.torch.cuda, "Event", Event)
    monkeypatch.setattr(alternating.torch, "empty", empty)
    seconds = alternate({"a": lambda: told.append("work")}, Timing(1, device="cuda"))
    assert seconds == {"a": [0.0025]}
    assert told[:5] == ["flush", "record", "work", "record", "synchronize"]
