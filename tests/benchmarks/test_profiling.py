"""The profile of a step: its parts and operations add up, and the trace is one."""

from __future__ import annotations

import json

import pytest

from syncflow.benchmarks import profiling
from syncflow.benchmarks.step import runtimes
from syncflow.engine.engine import Engine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine():
    return Engine.from_pretrained(device="cpu", runtime="torch")


@pytest.mark.parametrize("runtime", ["torch-plain", "auto"])
def test_the_parts_and_operations_of_a_step_add_up(engine, runtime, tmp_path):
    (chosen,) = runtimes(engine, [runtime]).values()
    found = profiling.profile(engine, chosen, batch=2, steps=3, trace=tmp_path / "trace.json")
    parts = {part.name: part for part in found.parts}
    assert parts["video_pass"].calls == parts["audio_pass"].calls == 1
    assert 0.5 < parts["video_pass"].share + parts["audio_pass"].share <= 1
    assert sum(one.share for one in (*found.operations, found.outside)) == pytest.approx(1, abs=0.02)
    times = [one.ms for one in found.operations]
    assert times == sorted(times, reverse=True)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "video_pass" for event in events) >= 3
    assert "video_pass" not in vars(chosen.denoiser)


def test_the_table_adds_up_what_it_leaves_out(engine, tmp_path):
    (chosen,) = runtimes(engine, ["torch-plain"]).values()
    found = profiling.profile(engine, chosen, batch=1, steps=1, trace=tmp_path / "trace.json")
    lines = profiling.table(found, 3).splitlines()
    assert len(lines) == 2 + len(found.parts) + 1 + 3 + 1
    assert lines[-1].startswith(f"| {len(found.operations) - 3} other operations | ")
