"""``benchmarks/gpu/run``: its stages on a CPU, what it leaves when it is cut off, its report, the tuning of tiles."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import syncflow
from syncflow import kernels
from syncflow.benchmarks.gpu import model, report, tune
from syncflow.benchmarks.gpu.compiled_layers import LAYERS, CompiledLayers
from syncflow.benchmarks.gpu.stages import FULL, GRACE, PLANTED, QUICK, SECONDS, Records, Run, deadlines, section
from syncflow.benchmarks.kernels.cases import cases
from syncflow.engine.model import DDiT
from syncflow.engine.sampling.sequential import batch_of
from syncflow.kernels.launch import tiles

from .interruptions import MARK, interrupt, marked

pytestmark = pytest.mark.slow

ROOT = Path(syncflow.__file__).parent
NAMES = {name for name in kernels.__all__ if hasattr(getattr(kernels, name), "plan_launches")}
BLOCKED = ("av", "diffusers", "librosa", "matplotlib", "scipy", "tqdm", "transformers", "typer")


@pytest.fixture
def bare(tmp_path):
    """The environment of a machine that has only torch, triton and numpy: other libraries cannot be imported."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in BLOCKED:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not there')\n", encoding="utf-8")
    others = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(folder), *([others] if others else [])])
    return {**os.environ, "PYTHONPATH": path, "PYTHON": sys.executable, MARK: str(tmp_path)}


def started(bare, tmp_path, *arguments):
    command = [str(ROOT / "benchmarks" / "gpu" / "run"), *arguments]
    return subprocess.run(command, env=bare, capture_output=True, text=True, check=False, timeout=400, cwd=tmp_path)


def report_in(folder):
    (path,) = [path for path in folder.glob("*.json") if path.name != "smoke.json"]
    return json.loads(path.read_text(encoding="utf-8")), path


def test_smoke_run(bare, tmp_path):
    """Every stage on the CPU, on a machine with nothing but torch, triton and numpy; its worker is killed once."""
    output = tmp_path / "results"
    done = started(bare, tmp_path, "--smoke", "--output", str(output), "--stages", ",".join(SECONDS))
    assert done.returncode == 0, done.stdout + done.stderr
    run, path = report_in(output)
    assert run["smoke"] and run["status"] == "complete" and run["faults"] == []
    assert set(run["results"]) == {section(name) for name in SECONDS}
    planted = run["results"]["setup"].pop(PLANTED)
    assert "exit code -9" in planted["error"]
    ends = [record for items in run["results"].values() for record in items.values()]
    assert all("result" in record for record in ends)
    for stage in ("correctness", "kernels"):
        assert {key.split()[0] for key in run["results"][stage]} == NAMES
    steps = {key: record["result"] for key, record in run["results"]["step"].items()}
    assert steps["batch 1 compiled, cuda graphs"]["compiled_graphs"] > 1
    assert all(end["difference"] < 1e-3 for key, end in steps.items() if "plain" not in key)
    assert run["headline"]["over_torch_compile"] > 0
    assert len(path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()) > 2 * len(ends) - 2
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert text.startswith("# Smoke run") and "No faults." in text
    assert "baseline / kernel" in done.stdout
    assert not marked(str(tmp_path))


@pytest.mark.parametrize(("number", "after"), [(signal.SIGTERM, 0.5), (signal.SIGKILL, 2.0)])
def test_an_interrupted_run_leaves_its_report_and_no_process(tmp_path, number, after):
    found = interrupt(tmp_path / "results", after, number)
    assert found["status"] == ("running" if number == signal.SIGKILL else "ended by SIGTERM")


def test_a_run_whose_time_is_over_ends_with_its_report(bare, tmp_path):
    done = started(bare, tmp_path, "--smoke", "--output", str(tmp_path / "out"), "--seconds", "1.5")
    run, _ = report_in(tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert run["status"] == "the time of the run was over"
    assert not marked(str(tmp_path))


@pytest.mark.parametrize(
    "arguments", [["--stages", "setup,sleep", "--smoke"], ["--smoke"], ["--seconds", "0", "--smoke", "--output", "x"]]
)
def test_a_mistake_in_the_command_is_refused(bare, tmp_path, arguments):
    done = started(bare, tmp_path, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "bare"]


GRANDCHILD = "import subprocess, sys; subprocess.Popen(['sleep', '600'], start_new_session=True); {}"


@pytest.mark.parametrize(
    ("command", "expected"),
    [("sys.exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137), ("import time; time.sleep(600)", 143)],
)
def test_a_guard_ends_the_children_of_its_command(tmp_path, command, expected):
    """Of a command that ends, of one that is killed, and of one that it is told to end."""
    marks = {**os.environ, MARK: str(tmp_path)}
    guard = [sys.executable, "-m", "syncflow.benchmarks.gpu.guard", str(os.getpid())]
    process = subprocess.Popen([*guard, sys.executable, "-c", GRANDCHILD.format(command)], env=marks)
    if expected == 143:
        while len(marked(str(tmp_path))) < 3:
            time.sleep(0.05)
        process.terminate()
    assert process.wait(60) == expected
    assert not marked(str(tmp_path))


def test_records_survive_a_death_in_the_middle_of_a_line(tmp_path):
    records = Records(tmp_path / "records.jsonl")
    assert records.read() == [] and records.unfinished() is None
    records.add(event="start", stage="step", key="a")
    records.add(event="end", stage="step", key="a", seconds=1.0, result={"ms": 1.0})
    records.add(event="start", stage="step-rest", key="b")
    with records.path.open("a", encoding="utf-8") as file:
        file.write('{"event": "en')
    item = records.unfinished()
    assert item is not None and item["key"] == "b"
    records.add(event="end", stage="step-rest", key="b", error="the worker ended")  # by the supervisor
    assert records.unfinished() is None
    assert {key: list(ends) for key, ends in records.results().items()} == {"step": ["a", "b"]}


def test_stages_fit_into_their_time():
    assert sum(FULL.values()) <= 555 < 600 and sum(QUICK.values()) <= 235 < 240
    assert list(QUICK) == [name for name in FULL if not name.endswith("-rest")]
    ends = deadlines(list(FULL), SECONDS, 555, start=1000)
    assert ends["setup"] == 1000 + FULL["setup"] and ends["kernels-rest"] == 1555
    assert deadlines(["step", "clip"], SECONDS, (FULL["step"] + FULL["clip"]) / 2, 0)["step"] == FULL["step"] / 2
    assert ends["kernels-rest"] + GRACE < 1600


def test_faults_and_summary_of_a_run():
    good = {"ok": True, "margin": 0.5, "repeatable": True}
    row = {"operation": "op", "case": "xl", "shape": "R=2", "method": "graph", "cold": True}
    results = {
        "correctness": {
            "a": {"result": good},
            "b": {"result": {"ok": False, "margin": 3.0, "repeatable": False}},
            "c": {"error": "RuntimeError: illegal address"},
        },
        "kernels": {
            name: {"result": {**row, "variant": name, "p50_us": time}}
            for name, time in (("kernel", 10.0), ("eager", 50.0), ("sdpa", 25.0))
        },
        "step": {
            "batch 1 cuda graphs, overlap": {"result": {"ms": 20.0}},
            "batch 1 plain PyTorch": {"result": {"ms": 70.0, "faults": ["batch 1: the step is not that"]}},
            "batch 16 eager": {"stopped": "the time of the run was over"},
            "left out of step-rest": {"result": {"items": 3, "reason": "the time of the stage was over"}},
        },
    }
    faults = report.faults(results)
    assert len(faults) == 3 and "other bits" in faults[0] and "illegal address" in faults[1] and "not that" in faults[2]
    assert "| op xl | 10.0 | - | sdpa | 25.0 | 2.50 |" in report.summary(results)
    figures = report.headline(results)
    assert figures["step_ms"] == 20.0 and figures["over_plain_pytorch"] == 3.5 and figures["clip_s"] is None
    text = report.markdown(results, "Some GPU, today", "complete")
    assert "3 faults" in text and "1 checks passed" in text
    assert "step-rest: 3 items" in text and "step, batch 16 eager: the time" in text
    alive = {"setup": {PLANTED: {"result": {}}}}
    assert "should have been killed" in report.faults(alive)[0]
    assert not report.faults({"setup": {PLANTED: {"stopped": "the time of the run was over"}}})


def graphs_of(depth: int) -> int:
    """Compilations of five steps of a model."""
    config = replace(model.MICRO.ddit, depth=depth)
    torch.manual_seed(0)
    network = DDiT(config).eval().requires_grad_(False)
    with CompiledLayers("trace") as layers:
        one = batch_of(network)
        one.join(model._jobs(True, 1, 5))
        while not one.step():
            pass
    return layers.graphs


def test_compiled_layers_do_not_depend_on_depth():
    plain = [layer.forward for layer in LAYERS]
    assert graphs_of(2) == graphs_of(5) < 8
    assert [layer.forward for layer in LAYERS] == plain


def test_neighbours_of_tiles():
    found = list(tune.neighbours({"BLOCK": 64, "num_stages": 2, "num_warps": 1}))
    assert {"BLOCK": 32, "num_stages": 2, "num_warps": 1} in found
    assert {"BLOCK": 64, "num_stages": 3, "num_warps": 1} in found
    assert not any(tiles["num_warps"] < 1 for tiles in found)


def test_every_case_has_a_target_that_no_batch_changes():
    chosen = cases(presets=("syncflow-xl",), batches=(1, 16))
    found = tune.targets(chosen)
    assert {case.operation for target in found for case in target.cases} == NAMES
    assert len({str(target) for target in found}) == len(found) <= 40
    for target in found:
        if target.name in ("linear_gelu", "gated_linear", "fp8_linear"):
            assert "tokens" not in target.when  # those of all rows
        with tiles.target("some_gpu"), tiles.override(target.name, target.start):
            assert target.cases[0].launches(torch.bfloat16)


def test_tuning_goes_on_where_the_last_round_ended(tmp_path, monkeypatch):
    """Candidates that do not compile are not timed; the best tiles lead on; a rule is written for what gains."""
    target = tune.Target("op", {"dtype": "bfloat16"}, {"BLOCK": 64}, (cases(["spatial_attention"])[0],))
    run = Run("cpu", False, tmp_path, {"tune": {}})
    monkeypatch.setattr(tune, "_times", lambda run, target, tiles: [1000.0 / tiles["BLOCK"]] * 2)
    first = tune.candidates(run, target, 0)
    assert first == [{"BLOCK": 32}, {"BLOCK": 128}]
    run.found["tune"]["compile, round 0"] = {"refused": [[str(target), {"BLOCK": 32}]]}
    run.found["tune"][f"{target}, round 0"] = tune.climb(run, target, first, 0)
    second = tune.candidates(run, target, 1)
    assert second == [{"BLOCK": 256}]
    run.found["tune"][f"{target}, round 1"] = last = tune.climb(run, target, second, 1)
    assert last["tiles"] == {"BLOCK": 256} and last["gain"] == 0.75
    assert [tried for tried, _ in last["tried"]] == [{"BLOCK": 64}, {"BLOCK": 128}, {"BLOCK": 256}]
    smoke = Run("cpu", True, tmp_path, run.found)
    assert tune.write(smoke)["rules"] == 1
    rules = json.loads((tmp_path / "smoke.json").read_text(encoding="utf-8"))
    assert rules == {"op": [{"when": {"dtype": "bfloat16"}, "tiles": {"BLOCK": 256}}]}
