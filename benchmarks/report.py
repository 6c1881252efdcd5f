"""The results of ``make bench`` as Markdown: ``python -m syncflow.benchmarks.report out/bench.json``.

Prints how many times as fast the engine is as each baseline, and a line for every benchmark below it. ``--readme FILE``
replaces the table of baselines between the markers of a page, ``--page FILE`` all of that; ``--save FILE`` keeps what
it was made of; ``--history FOLDER`` adds the figures to the history of machines like this one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .history import Run, append
from .machine import Machine

BEGIN = "<!-- begin: make bench -->"
END = "<!-- end: make bench -->"
HEAD = "| benchmark | median | quartiles | rounds | beside it |\n|---|--:|--:|--:|---|"
COLUMNS = {
    "test_step[1]": "a step",
    "test_step[8]": "a step of 8 clips",
    "test_clip[1]": "a clip",
    "test_clip[8]": "8 clips",
}
ROWS = {
    "reference": "plain PyTorch loop, a forward for each branch",
    "torch-plain": "PyTorch, eager, branches in one forward",
    "compiled": "`torch.compile`",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime alone": "ONNX Runtime, its graphs without the loop",
    "openvino": "OpenVINO",
    "openvino alone": "OpenVINO, its graphs without the loop",
    "diffusers": "diffusers' LTX loop, another model of equal FLOPs",
}
OTHERS = {
    "test_throughput": ("one by one", "Clips that are submitted together", "as one by one"),
    "test_takes": ("one by one", "Eight sounds of one video in one request", "as in eight requests"),
}
HIDDEN = ("machine", "ratios", "rows", "own", "flops")


class Results:
    """What a pytest-benchmark JSON holds, as far as the report reads it."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        rows = results["benchmarks"]
        if not rows:
            raise ValueError("the file holds no benchmarks; were they skipped?")
        self.date = str(results["datetime"])[:10]
        self.rows = {row["name"]: row for row in rows}
        self.machine = Machine(**rows[0]["extra_info"]["machine"])

    def ratio(self, name: str, other: str) -> dict[str, float] | None:
        """How many times as fast a benchmark is as ``other`` in the same alternating run."""
        found = self.rows.get(name, {}).get("extra_info", {}).get("ratios", {}).get(other)
        return None if found is None else dict(found)

    def compact(self) -> dict[str, Any]:
        """The same without the times of single rounds."""
        kept = ("name", "extra_info")
        stats = ("median", "q1", "q3", "rounds")
        rows = [
            {**{key: row[key] for key in kept}, "stats": {key: row["stats"][key] for key in stats}}
            for row in self.rows.values()
        ]
        return {"datetime": self.date, "benchmarks": rows}

    def figures(self) -> dict[str, float]:
        """Seconds of every benchmark, and its ratios, by name."""
        found = {f"{short(name)}, s": float(row["stats"]["median"]) for name, row in self.rows.items()}
        for name, row in self.rows.items():
            for other, one in row["extra_info"].get("ratios", {}).items():
                found[f"{short(name)} over {other}"] = float(one["median"])
        return found


def short(name: str) -> str:
    """``test_step[8]`` -> ``step 8``."""
    return name.removeprefix("test_").replace("[", " ").rstrip("]")


def readme_table(results: Results) -> str:
    """How many times as fast the engine is as each baseline, with the interval, its own time, and the machine."""
    columns = {name: title for name, title in COLUMNS.items() if name in results.rows}
    lines = [
        f"{results.date}: {results.machine}.",
        "",
        f"| times as fast as | {' | '.join(columns.values())} |",
        f"|---|{'--:|' * len(columns)}",
    ]
    for other, title in ROWS.items():
        cells = [_cell(results.ratio(name, other)) for name in columns]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    rows = [results.rows[name] for name in columns]
    own = dict.fromkeys(row["extra_info"]["own"] for row in rows)
    times = " | ".join(_seconds(row["stats"]["median"]) for row in rows)
    return "\n".join([*lines, f"| median of {', '.join(own)} | {times} |"])


def report(results: Results) -> str:
    """The table of baselines, then a row for every benchmark."""
    lines = [readme_table(results)]
    for name, (other, title, beside) in OTHERS.items():
        if (found := results.ratio(name, other)) is not None:
            lines += ["", f"{title}: {_cell(found)} times as fast {beside}."]
    return "\n".join((*lines, "", HEAD, *map(_row, results.rows.values())))


def insert(page: str, table: str) -> str:
    """The page with the table between its markers. Raises ``ValueError`` for a page without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no place for the table; it needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def inserted(page: str) -> str:
    """The table between the markers of a page."""
    return page.partition(BEGIN)[2].partition(END)[0].strip()


def _cell(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _row(row: Mapping[str, Any]) -> str:
    stats, extra = row["stats"], row["extra_info"]
    quartiles = f"{_seconds(stats['q1'])} to {_seconds(stats['q3'])}"
    beside = [f"{key} {value}" for key, value in extra.items() if key not in HIDDEN]
    beside += [f"{_cell(one)} times as fast as {name}" for name, one in extra.get("ratios", {}).items()]
    name = short(row["name"]) + (f" ({extra['own']})" if "own" in extra else "")
    return f"| {name} | {_seconds(stats['median'])} | {quartiles} | {stats['rounds']} | {', '.join(beside)} |"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report of the file that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m syncflow.benchmarks.report", description=__doc__.partition(".")[0])
    parser.add_argument("results", type=Path, help="JSON of pytest-benchmark")
    parser.add_argument("--readme", type=Path, help="page whose table is replaced")
    parser.add_argument("--page", type=Path, help="page whose table and lines are replaced")
    parser.add_argument("--save", type=Path, help="file for the results without the times of single rounds")
    parser.add_argument("--history", type=Path, help="folder of the history, see `syncflow bench history`")
    given = parser.parse_args(arguments)
    try:
        results = Results(json.loads(given.results.read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SystemExit(f"{given.results} is no pytest-benchmark result ({error})") from None
    try:
        if given.save is not None:
            given.save.write_text(json.dumps(results.compact(), indent=1) + "\n", encoding="utf-8")
        for page, render in ((given.readme, readme_table), (given.page, report)):
            if page is not None:
                page.write_text(insert(page.read_text(encoding="utf-8"), render(results)), encoding="utf-8")
        if given.history is not None:
            append(given.history, Run("make bench", results.date, results.machine, results.figures()))
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
    print(report(results))


if __name__ == "__main__":
    main()
