"""A run as Markdown: the headline and what went wrong first, then the machine and the figures of every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .stages import PLANTED, SECONDS, section

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]

LEFT_OUT = "left out"
FIGURES = ("p20_us", "p50_us", "p80_us", "gb_s", "tflop_s", "roofline_percent")  # of an operation


def faults(results: Results) -> list[str]:
    """Everything that failed: an error, a kernel beyond its tolerance, one that spills. What was cut off is none."""
    found = []
    for stage, items in results.items():
        for key, record in items.items():
            result = record.get("result", {})
            if key == PLANTED:
                if "stopped" not in record and "-9" not in record.get("error", ""):
                    found.append(f"{stage}, {key}: the worker should have been killed")
            elif "error" in record:
                found.append(f"{stage}, {key}: {record['error']}")
            elif result.get("ok") is False:
                again = "" if result["repeatable"] else ", other bits in a second run"
                found.append(f"{stage}, {key}: error {result['margin']} times what is allowed{again}")
            found += [f"{stage}: {fault}" for fault in result.get("faults", [])]
    return found


def headline(results: Results) -> dict[str, float | None]:
    """The numbers of the README, None where a run has not come to them: syncflow-xl, 2 s at 256x256, two branches."""
    steps, clips = _results(results, "step"), _results(results, "clip")
    ms = {key: end["ms"] for key, end in steps.items() if "ms" in end}
    best = ms.get("batch 1 cuda graphs, overlap")

    def over(runtime: str) -> float | None:
        other = ms.get(f"batch 1 {runtime}")
        return None if best is None or other is None else round(other / best, 2)

    temporal = [
        end.get("copy_percent")
        for end in _results(results, "kernels").values()
        if (end.get("operation"), end.get("variant")) == ("temporal_attention", "kernel")
        and str(end.get("case", "")).startswith("video xl 256x256 batch 1")
    ]
    return {
        "step_ms": best,
        "step_batch_16_ms": ms.get("batch 16 cuda graphs, overlap"),
        "clip_s": clips.get("batch 1 cuda graphs, overlap", {}).get("s"),
        "clips_a_second_batch_16": clips.get("batch 16 cuda graphs, overlap", {}).get("clips_a_second"),
        "over_plain_pytorch": over("plain PyTorch"),
        "over_torch_compile": over("compiled, cuda graphs"),
        "over_max_autotune": over("max-autotune, cuda graphs"),
        "over_reference_loop": over("reference loop"),
        "temporal_attention_percent_of_copy": next(iter(temporal), None),
    }


def markdown(results: Results, title: str, status: str) -> str:
    """The whole run."""
    parts = [f"# {title}", f"The run: {status}.", _headline(results), _faults(results), _machine(results)]
    if ends := _results(results, "correctness"):
        good = sum(bool(end.get("ok")) for end in ends.values())
        worst = max((end["margin"] for end in ends.values() if "margin" in end), default=0)
        parts.append(f"Correctness: {good} checks passed; the largest error is {worst:.2f} times what is allowed.")
    parts += [_model(results, "step"), _model(results, "clip"), _kernels(results), _tuned(results), _left_out(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(results: Results) -> str:
    """The kernels beside the best baseline, and the model: a table short enough for the end of a log."""
    times_of: dict[str, dict[str, float]] = {}
    shares: dict[str, Any] = {}
    for end in _results(results, "kernels").values():
        if "p50_us" in end:
            name = f"{end['operation']} {end['case']}"
            times_of.setdefault(name, {})[end["variant"]] = end["p50_us"]
            if end["variant"] == "kernel":
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


def _headline(results: Results) -> str:
    rows = [[name.replace("_", " "), "-" if value is None else value] for name, value in headline(results).items()]
    return _table(["figure", "value"], rows)


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
        if "variant" not in end:
            continue
        about = [end["operation"], end["case"], end["shape"], end["variant"]]
        if "p50_us" in end:
            figures = [end.get(name, "-") for name in FIGURES]
            rows.append([*about, *figures, end["method"] + ("" if end["cold"] else ", in cache")])
        else:
            rows.append([*about, *["-"] * 6, end["reason"]])
    units = ["p20 us", "p50 us", "p80 us", "GB/s", "TFLOP/s", "% of roofline"]
    return _table(["operation", "case", "shape", "variant", *units, "how"], rows)


def _model(results: Results, stage: str) -> str:
    ends = {key: end for key, end in _results(results, stage).items() if not key.startswith(LEFT_OUT)}
    if not ends:
        return ""
    names = [name for name in dict.fromkeys(name for end in ends.values() for name in end) if name != "faults"]
    return _table([stage, *names], [[key, *(end.get(name, "-") for name in names)] for key, end in ends.items()])


def _tuned(results: Results) -> str:
    ends = {key: end for key, end in _results(results, "tune").items() if "tiles" in end}
    rows = [[key, end["before_us"], end["after_us"], end["tiles"]] for key, end in ends.items()]
    return _table(["tuned", "before us", "after us", "tiles"], rows)


def _left_out(results: Results) -> str:
    lines = []
    for stage, items in results.items():
        for key, record in items.items():
            if key.startswith(LEFT_OUT):
                lines.append(f"- {key.removeprefix(LEFT_OUT + ' of ')}: {record['result']['items']} items")
            elif "stopped" in record:
                lines.append(f"- {stage}, {key}: {record['stopped']}")
    return "\n".join(["Left out because the time was over:", "", *lines]) if lines else ""


def _results(results: Results, stage: str) -> dict[str, Mapping[str, Any]]:
    assert stage in {section(name) for name in SECONDS}
    return {key: record["result"] for key, record in results.get(stage, {}).items() if "result" in record}


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)
