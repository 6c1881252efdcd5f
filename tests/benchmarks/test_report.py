"""The Markdown made of a benchmark file, and that the table of README.md is made of the results beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from syncflow.benchmarks import history, report
from syncflow.benchmarks.report import Results

ROOT = Path(__file__).parents[2]
MACHINE = {
    "processor": "Some CPU",
    "digest": "0123456789abcdef",
    "instructions": "x86-64-v3",
    "cores": 2,
    "threads": 2,
    "load": 0.1,
    "revision": "0123456789ab",
    "versions": {"Python": "3.11.7", "torch": "2.13.0"},
}
RATIO = {"median": 6.7, "low": 6.512, "high": 6.9}


def row(name: str, median: float, **extra: object) -> dict[str, object]:
    stats = {"median": median, "q1": 0.9 * median, "q3": 1.1 * median, "rounds": 3, "data": [median]}
    return {"name": name, "stats": stats, "extra_info": {"machine": MACHINE, **extra}}


@pytest.fixture
def results() -> dict[str, object]:
    step = row("test_step[1]", 0.05, own="auto (native)", ratios={"reference": RATIO}, rows={"reference": {}})
    takes = row("test_takes", 0.2, own="together", ratios={"one by one": RATIO})
    clip = row("test_clip[1]", 12.0, own="auto (native)", steps=8)
    return {"datetime": "2026-01-02T03:04:05", "benchmarks": [step, clip, takes]}


def test_rows_carry_figures_and_machine(results) -> None:
    lines = report.report(Results(results)).splitlines()
    assert lines[0] == ("2026-01-02: Some CPU, x86-64-v3 (AVX2), 2 cores, 2 threads; Python 3.11.7, torch 2.13.0.")
    assert lines[2:5] == [
        "| times as fast as | a step | a clip |",
        "|---|--:|--:|",
        "| plain PyTorch loop, a forward for each branch | 6.70 (6.51 to 6.90) |  |",
    ]
    assert lines[5] == "| median of auto (native) | 50 ms | 12 s |"
    assert "Eight sounds of one video in one request: 6.70 (6.51 to 6.90) times as fast as in eight requests." in lines
    assert (
        "| step 1 (auto (native)) | 50 ms | 45 ms to 55 ms | 3 | 6.70 (6.51 to 6.90) times as fast as reference |"
        in lines
    )
    assert "| clip 1 (auto (native)) | 12 s | 10.8 s to 13.2 s | 3 | steps 8 |" in lines


def test_a_busy_machine_is_named(results) -> None:
    results["benchmarks"][0]["extra_info"]["machine"] = MACHINE | {"load": 7.2}
    assert "beside other work (load 7.2)" in report.readme_table(Results(results))


def test_refuses_a_file_without_benchmarks() -> None:
    with pytest.raises(ValueError, match="no benchmarks"):
        Results({"datetime": "2026-01-02", "benchmarks": []})


def test_the_command_writes_page_results_and_history(results, tmp_path, capsys) -> None:
    file, page, saved = tmp_path / "bench.json", tmp_path / "page.md", tmp_path / "saved.json"
    whole = tmp_path / "whole.md"
    whole.write_text(f"{report.BEGIN}\n{report.END}\n")
    file.write_text(json.dumps(results))
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    command = [str(file), "--readme", str(page), "--page", str(whole), "--save", str(saved)]
    command += ["--history", str(tmp_path / "history")]
    report.main(command)
    report.main(command)
    table = report.readme_table(Results(results))
    assert page.read_text() == f"before\n{report.BEGIN}\n\n{table}\n\n{report.END}\nafter\n"
    assert whole.read_text() == f"{report.BEGIN}\n\n{report.report(Results(results))}\n\n{report.END}\n"
    assert capsys.readouterr().out.startswith(table)
    kept = json.loads(saved.read_text())
    assert report.readme_table(Results(kept)) == table and "data" not in kept["benchmarks"][0]["stats"]
    ((kind, runs),) = history.read(tmp_path / "history").items()
    assert kind == "some-cpu-01234567-x86-64-v3-2-threads" and len(runs) == 2
    assert runs[0].figures == {
        "step 1, s": 0.05,
        "clip 1, s": 12.0,
        "takes, s": 0.2,
        "step 1 over reference": 6.7,
        "takes over one by one": 6.7,
    }


@pytest.mark.parametrize(
    ("page", "render"), [("README.md", report.readme_table), ("docs/performance.md", report.report)]
)
def test_pages_hold_what_the_committed_results_say(page, render) -> None:
    """Nothing where `make bench` has not been run yet."""
    shown, file = report.inserted((ROOT / page).read_text()), ROOT / "docs" / "speed.json"
    if not file.is_file():
        assert shown == ""
        return
    results = Results(json.loads(file.read_text()))
    assert shown == render(results)
    assert {"test_step[1]", "test_step[8]", "test_clip[1]", "test_clip[8]"} <= results.rows.keys()


def test_a_page_without_a_place_is_refused(results, tmp_path) -> None:
    file, page = tmp_path / "bench.json", tmp_path / "page.md"
    file.write_text(json.dumps(results))
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="no place for the table"):
        report.main([str(file), "--readme", str(page)])


def test_another_file_is_refused(tmp_path) -> None:
    file = tmp_path / "bench.json"
    file.write_text("[]")
    with pytest.raises(SystemExit, match="no pytest-benchmark result"):
        report.main([str(file)])
