"""The Markdown made of a benchmark file."""

from __future__ import annotations

import pytest

from syncflow.benchmarks.report import report

MACHINE = {"cpu": "Some CPU", "cores": 2, "threads": 2, "torch": "2.13.0", "python": "3.11.7"}


def row(name: str, median: float, **extra: object) -> dict[str, object]:
    stats = {"median": median, "q1": 0.9 * median, "q3": 1.1 * median, "rounds": 3}
    return {"name": name, "stats": stats, "extra_info": {"machine": MACHINE, **extra}}


def test_rows_carry_figures_and_machine() -> None:
    results = {
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [row("test_step", 0.05, ratio=1.5), row("test_clip", 12.0)],
    }
    lines = report(results).splitlines()
    assert lines[0] == "2026-01-02: Some CPU, 2 cores, 2 threads; torch 2.13.0, Python 3.11.7."
    assert lines[-2] == "| step | 50 ms | 45 ms to 55 ms | 3 | ratio 1.5 |"
    assert lines[-1] == "| clip | 12 s | 10.8 s to 13.2 s | 3 |  |"


def test_refuses_a_file_without_benchmarks() -> None:
    with pytest.raises(ValueError, match="no benchmarks"):
        report({"datetime": "2026-01-02", "benchmarks": []})
