"""The results of ``make bench`` as Markdown: ``python -m syncflow.benchmarks.report out/bench.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = "| benchmark | median | quartiles | rounds | beside it |\n|---|--:|--:|--:|---|"


def report(results: dict[str, Any]) -> str:
    """A line on the machine, then a row for every benchmark of a pytest-benchmark JSON."""
    rows = results["benchmarks"]
    if not rows:
        raise ValueError("the file holds no benchmarks; were they skipped?")
    machine = rows[0]["extra_info"]["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    what = f"torch {machine['torch']}, Python {machine['python']}"
    title = f"{results['datetime'][:10]}: {where}; {what}."
    return "\n".join((title, "", HEAD, *map(_row, rows)))


def _row(row: dict[str, Any]) -> str:
    stats = row["stats"]
    name = row["name"].removeprefix("test_")
    quartiles = f"{_seconds(stats['q1'])} to {_seconds(stats['q3'])}"
    beside = ", ".join(f"{key} {value}" for key, value in row["extra_info"].items() if key != "machine")
    return f"| {name} | {_seconds(stats['median'])} | {quartiles} | {stats['rounds']} | {beside} |"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def main() -> None:
    """Print the report of the file that the command line names."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m syncflow.benchmarks.report BENCH.json")
    try:
        print(report(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
    except (OSError, KeyError, ValueError) as error:
        raise SystemExit(f"{sys.argv[1]} is no pytest-benchmark result ({error})") from None


if __name__ == "__main__":
    main()
