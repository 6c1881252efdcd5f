"""A run as Markdown: what went wrong first, then the machine, its roofline, and the figures of every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .stages import BUDGETS

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]

FIGURES = ("p20_us", "p50_us", "p80_us", "gb_s", "tflop_s", "roofline_percent")  # of an operation


def faults(results: Results) -> list[str]:
    """Everything that failed: an error, a kernel beyond its tolerance, one that spills."""
    found = []
    for stage, items in results.items():
        for key, record in items.items():
            result = record.get("result", {})
            if "error" in record:
                found.append(f"{stage}, {key}: {record['error']}")
            elif result.get("ok") is False:
                again = "" if result["repeatable"] else ", other bits in a second run"
                found.append(f"{stage}, {key}: error {result['margin']} times what is allowed{again}")
            found += [f"{stage}: {fault}" for fault in result.get("faults", [])]
    return found


def markdown(results: Results, title: str) -> str:
    """The whole run."""
    parts = [f"# {title}", _machine(results), _faults(results)]
    if ends := _results(results, "correctness"):
        good = sum(bool(end.get("ok")) for end in ends.values())
        worst = max((end["margin"] for end in ends.values() if "margin" in end), default=0)
        parts.append(f"Correctness: {good} checks passed; the largest error is {worst:.2f} times what is allowed.")
    parts += [_kernels(results), _model(results, "step"), _model(results, "clip"), _tuned(results), _left_out(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(results: Results) -> str:
    """The kernels beside the best baseline, and the model: a table short enough for the end of a log."""
    times_of: dict[str, dict[str, float]] = {}
    shares: dict[str, Any] = {}
    for end in _results(results, "kernels").values():
        if "p50_us" in end:
            name = f"{end['operation']} {end['case']}"
            times_of.setdefault(name, {})[end["contender"]] = end["p50_us"]
            if end["contender"] == "kernel":
                shares[name] = end.get("roofline_percent", "-")
    rows = []
    for name, times in times_of.items():
        own = times.pop("kernel", None)
        if own is not None:
            best = min(times, key=lambda n: times[n], default=None)
            beside = [best, times[best], f"{times[best] / own:.2f}"] if best is not None else ["-", "-", "-"]
            rows.append([name, own, shares[name], *beside])
    head = ["operation", "kernel us", "% of roofline", "best baseline", "its us", "baseline / kernel"]
    return "\n\n".join(part for part in (_table(head, rows), _model(results, "step"), _model(results, "clip")) if part)


def _machine(results: Results) -> str:
    about = _results(results, "setup").get("machine", {})
    lines = [", ".join(f"{name} {value}" for name, value in about.items() if value is not None)]
    if roofline := _results(results, "roofline").get("roofline"):
        rates = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in roofline["matrix"].items())
        lines.append(f"Roofline, measured: copy {roofline['copy'] / 1e12:.2f} TB/s, {rates}.")
    return "\n\n".join(filter(None, lines))


def _faults(results: Results) -> str:
    found = faults(results)
    return "\n".join([f"{len(found)} faults:", "", *(f"- {fault}" for fault in found)]) if found else "No faults."


def _kernels(results: Results) -> str:
    rows = []
    for end in _results(results, "kernels").values():
        if "contender" not in end:
            continue
        about = [end["operation"], end["case"], end["shape"], end["contender"]]
        if "p50_us" in end:
            figures = [end.get(name, "-") for name in FIGURES]
            rows.append([*about, *figures, end["method"] + ("" if end["cold"] else ", in cache")])
        else:
            rows.append([*about, *["-"] * 6, end["reason"]])
    units = ["p20 us", "p50 us", "p80 us", "GB/s", "TFLOP/s", "% of roofline"]
    return _table(["operation", "case", "shape", "contender", *units, "how"], rows)


def _model(results: Results, stage: str) -> str:
    ends = {key: end for key, end in _results(results, stage).items() if key != "left out"}
    if not ends:
        return ""
    names = list(dict.fromkeys(name for end in ends.values() for name in end))
    return _table([stage, *names], [[key, *(end.get(name, "-") for name in names)] for key, end in ends.items()])


def _tuned(results: Results) -> str:
    ends = {key: end for key, end in _results(results, "tune").items() if "tiles" in end}
    rows = [[key, end["before_us"], end["after_us"], end["tiles"]] for key, end in ends.items()]
    return _table(["tuned", "before us", "after us", "tiles"], rows)


def _left_out(results: Results) -> str:
    lines = [
        f"- {stage}: {items['left out']['result']['items']} items, {items['left out']['result']['reason']}"
        for stage, items in results.items()
        if "left out" in items
    ]
    return "\n".join(["Left out:", "", *lines]) if lines else ""


def _results(results: Results, stage: str) -> dict[str, Mapping[str, Any]]:
    assert stage in BUDGETS
    return {key: record["result"] for key, record in results.get(stage, {}).items() if "result" in record}


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)
