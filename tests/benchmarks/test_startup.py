"""The table of start-up times."""

from __future__ import annotations

import pytest

from syncflow.benchmarks.startup import measure, table

pytestmark = pytest.mark.slow


def test_every_stage_of_a_clip_is_timed() -> None:
    found = measure(runs=1)
    assert all(len(times) == 1 and times[0] >= 0 for times in found.values())
    text = table(found)
    for stage in ("PyTorch", "weights", "first step", "video decoder", "mp4", "**together**", "second clip"):
        assert f"| {stage}" in text or f"| a {stage}" in text


def test_the_stages_add_up_run_by_run() -> None:
    found = {"a": [1.0, 5.0, 3.0], "b": [5.0, 1.0, 2.0], "second clip": [1.5] * 3}
    assert table(found).splitlines()[2:] == [
        "| a | 3.00 s |",
        "| b | 2.00 s |",
        "| **together** | 6.00 s |",
        "| a second clip of the same engine | 1.50 s |",
    ]
