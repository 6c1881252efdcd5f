"""The load on a server: its table, and a short run with few clients."""

from __future__ import annotations

import pytest

from syncflow.benchmarks.load.__main__ import _percentile, _print, main


def test_percentiles_of_a_histogram():
    times = {10: 50, 20: 45, 1000: 5}
    assert [_percentile(times, share) for share in (0.5, 0.95, 0.99)] == [10, 20, 1000]
    assert _percentile({}, 0.5) == 0


def test_the_table_counts_back_pressure_and_failures(capsys):
    rows = [
        {"name": "create", "num_requests": 3, "num_failures": 1, "response_times": {"10": 2, "30": 1}},
        {"name": "429", "num_requests": 7, "num_failures": 0, "response_times": {"0": 7}},
    ]
    assert _print(rows) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["create", "3", "1", "10", "30", "30"]
    assert lines[2].split() == ["all", "3", "1", "10", "30", "30"]
    assert lines[3] == "429 with Retry-After: 7; failures, with every status of 500 and more: 1"


@pytest.mark.slow
def test_a_short_load(capsys):
    pytest.importorskip("psutil", reason="psutil is not installed: pip install 'syncflow[load]'")
    if not _has_locust():
        pytest.skip("locust is not installed: pip install 'syncflow[load]'")
    assert main(["--clients", "4", "--seconds", "4"]) == 0
    out = capsys.readouterr().out
    assert "failures, with every status of 500 and more: 0" in out
    assert "steps after the deletion of a running video" in out


def _has_locust() -> bool:
    """Not by importing it, which patches the standard library for its own threads."""
    from importlib.util import find_spec

    return find_spec("locust") is not None
