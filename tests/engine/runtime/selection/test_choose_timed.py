"""The choice of a runtime by timing on a CPU, with given times. Exports and libraries are stand-ins."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from typing import Any

import pytest

from syncflow.engine.exports import STEP, Export, ExportLocations
from syncflow.engine.model import DDiT
from syncflow.engine.presets import PRESETS
from syncflow.engine.runtime.exported import GraphDenoiser
from syncflow.engine.runtime.native import NativeDDiT
from syncflow.engine.runtime.pytorch import PlainTorchDenoiser
from syncflow.engine.runtime.selection import calibration, libraries, timing
from syncflow.engine.runtime.selection import choose as choose_module
from syncflow.engine.runtime.selection.calibration import TIE_RATIO
from syncflow.engine.runtime.selection.choose import choose
from syncflow.engine.runtime.selection.timing import StepTimes, Workload
from syncflow.kernels import implementation, native

from ...plain import CONFIG
from ..exported import GRAPHS, HERE, MODEL, TORCH, exported, result, stand_in

WIDE = CONFIG.replace(width=32)
SEQUENCE = PRESETS["syncflow-tiny"].sequence
WITHOUT_EXPORTS = ("torch-plain", "torch", "native")
KINDS = {PlainTorchDenoiser: "torch-plain", DDiT: "torch", NativeDDiT: "native", GraphDenoiser: "export"}
built = pytest.mark.skipif(native.EXTENSION is None, reason="the native part was not built")


def unexpected(denoiser: Any) -> Any:
    raise AssertionError("something was timed")


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path / "cache")


@pytest.fixture
def timed(monkeypatch) -> None:
    """Timing is on, with nothing known."""
    monkeypatch.setenv("SYNCFLOW_CALIBRATION", "on")
    monkeypatch.setattr(calibration, "_in_memory", {})


@pytest.fixture
def wide() -> DDiT:
    """A model that the native part takes."""
    return DDiT(WIDE).eval().requires_grad_(False)


@pytest.fixture
def planted(monkeypatch, timed) -> Any:
    """``planted(seconds)``: what the next timing finds. Its ``asked`` are the runtimes of every timing."""

    def plant(seconds: dict[str, float], **more: Any) -> None:
        def time_denoisers(factories: Any, workload: Workload) -> tuple[StepTimes, dict[str, Any]]:
            plant.asked.append(tuple(factories))
            return StepTimes({name: s for name, s in seconds.items() if name in factories}, **more), {}

        monkeypatch.setattr(choose_module, "time_denoisers", time_denoisers)

    plant.asked = []
    return plant


@built
@pytest.mark.parametrize("order", list(itertools.permutations(WITHOUT_EXPORTS)), ids=" ".join)
def test_the_fastest_is_taken(wide, tmp_path, timed, monkeypatch, order):
    """By the time that planted steps really take, on a clock."""
    for name in ("PAUSE", "ROUND", "BUDGET"):
        monkeypatch.setattr(timing, name, 0.002)
    delay = dict(zip(order, (0.002, 0.012, 0.05), strict=True))
    workload = Workload(SEQUENCE, lambda denoiser: lambda: time.sleep(delay[KINDS[type(denoiser)]]))
    chosen = choose("auto", wide, ExportLocations(tmp_path, MODEL), workload=workload)
    assert chosen.runtime == KINDS[type(chosen.denoiser)] == order[0]
    told = chosen.describe()
    assert list(told["step_ms"]) == list(order) and told["timed"]["processor"] == HERE
    assert told["why"].startswith("the fastest of 3 that were timed on this machine: ")
    again = choose("auto", wide, ExportLocations(tmp_path, MODEL), workload=Workload(SEQUENCE, unexpected))
    assert again.runtime == chosen.runtime and again.describe()["step_ms"] == told["step_ms"]
    assert isinstance(again.denoiser, type(chosen.denoiser))


@built
@pytest.mark.parametrize("slow", WITHOUT_EXPORTS)
@pytest.mark.parametrize("times", [1.04, 1.06, 2.0, 30.0])
def test_the_choice_is_within_the_tie_ratio_of_the_fastest(wide, tmp_path, planted, slow, times):
    seconds = {name: 0.01 * (times if name == slow else 1.0) for name in WITHOUT_EXPORTS}
    planted(seconds)
    chosen = choose("auto", wide, ExportLocations(tmp_path, MODEL), workload=Workload(SEQUENCE, unexpected))
    assert min(seconds.values()) >= TIE_RATIO * seconds[chosen.runtime]
    assert (chosen.runtime == slow) is (slow == "native" and times < 1 / TIE_RATIO)
    assert f"{1000 * seconds[chosen.runtime]:.3g} ms a step" in chosen.why


@built
def test_exports_are_timed_beside_the_others(wide, tmp_path, planted):
    """Those that were found right, in this version, on this processor; the fastest is loaded."""
    wrong = result("aoti", errors=dict.fromkeys(GRAPHS, 0.5))
    foreign = result("onnxruntime", processor="Another CPU [0123]")
    package = exported(tmp_path, foreign, result("openvino", seconds={STEP: [TORCH, TORCH]}))
    exported(package, wrong, format="aoti")
    planted({"torch-plain": 0.04, "torch": 0.02, "native": 0.015, "openvino": 0.01})
    chosen = choose("auto", wide, ExportLocations(package, MODEL), workload=Workload(SEQUENCE, unexpected))
    assert planted.asked == [(*WITHOUT_EXPORTS, "openvino")]
    assert (
        chosen.runtime == "openvino" and isinstance(chosen.denoiser, GraphDenoiser) and chosen.verification is not None
    )
    assert chosen.others["native"] == "15 ms a step" and "is off by" in chosen.others["aoti"]
    assert "verified on Another CPU" in chosen.others["onnxruntime"]


@built
def test_a_new_verification_is_timed_again(wide, tmp_path, planted):
    """And again when it is exported anew, or in another version."""
    package = exported(tmp_path)
    workload = Workload(SEQUENCE, unexpected)
    planted({"torch-plain": 0.04, "torch": 0.02, "native": 0.015, "openvino": 0.01})
    for _ in range(2):
        assert choose("auto", wide, ExportLocations(package, MODEL), workload=workload).runtime == "native"
    export = Export.read(package / "exports" / "onnx", MODEL).with_result(result("openvino"))
    export.write()
    for _ in range(2):
        assert choose("auto", wide, ExportLocations(package, MODEL), workload=workload).runtime == "openvino"
    os.utime(export.path / "graph", (1, 1))
    assert choose("auto", wide, ExportLocations(package, MODEL), workload=workload).runtime == "openvino"
    assert planted.asked == [WITHOUT_EXPORTS, *[(*WITHOUT_EXPORTS, "openvino")] * 2]


@built
def test_a_damaged_export_is_skipped(wide, tmp_path, planted):
    """Also when it was the fastest before it was damaged."""
    package = exported(tmp_path, result("openvino"))
    planted({"torch-plain": 0.04, "torch": 0.02, "native": 0.015, "openvino": 0.01})
    (package / "exports" / "onnx" / "graph").write_bytes(b"y")
    with pytest.warns(UserWarning, match="does not match its checksum.*; the next best runtime is taken"):
        chosen = choose("auto", wide, ExportLocations(package, MODEL), workload=Workload(SEQUENCE, unexpected))
    assert chosen.runtime == "native" and "does not match its checksum" in chosen.others["openvino"]


@built
def test_another_version_must_be_verified_again(wide, tmp_path, planted, monkeypatch):
    locations = ExportLocations(exported(tmp_path, result("openvino")), MODEL)
    planted({"torch-plain": 0.04, "torch": 0.02, "native": 0.015, "openvino": 0.01})
    assert choose("auto", wide, locations, workload=Workload(SEQUENCE, unexpected)).runtime == "openvino"
    monkeypatch.setattr(libraries, "version_of", lambda runtime: "2")
    with pytest.warns(UserWarning, match="version 1 was verified, and 2 is installed; run `syncflow verify` again"):
        chosen = choose("auto", wide, locations, workload=Workload(SEQUENCE, unexpected))
    assert chosen.runtime == "native" and "version 1 was verified" in chosen.others["openvino"]


@built
def test_a_missing_library_is_not_timed(wide, tmp_path, planted, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    planted({"torch-plain": 0.04, "torch": 0.02, "native": 0.015})
    locations = ExportLocations(exported(tmp_path, result("openvino")), MODEL)
    chosen = choose("auto", wide, locations, workload=Workload(SEQUENCE, unexpected))
    assert planted.asked == [WITHOUT_EXPORTS]
    assert "pip install syncflow[openvino]" in chosen.others["openvino"]


@built
def test_a_failure_is_reported_and_not_repeated(wide, tmp_path, planted):
    """And it is not tried again with every engine."""
    package = exported(tmp_path, result("openvino"))
    planted({"torch-plain": 0.04, "torch": 0.02, "native": 0.015}, failures={"openvino": "no such operator"})
    for _ in range(2):
        chosen = choose("auto", wide, ExportLocations(package, MODEL), workload=Workload(SEQUENCE, unexpected))
        assert chosen.runtime == "native"
        assert chosen.others["openvino"].startswith("could not be timed on ")
        assert chosen.others["openvino"].endswith(": no such operator")
    assert len(planted.asked) == 1


@built
@pytest.mark.parametrize("runtime", ["torch", "torch-plain", "native", "compiled", "openvino"])
def test_a_named_runtime_is_not_timed(wide, tmp_path, timed, runtime):
    locations = ExportLocations(exported(tmp_path, result("openvino")), MODEL)
    chosen = choose(runtime, wide, locations, workload=Workload(SEQUENCE, unexpected))
    assert (chosen.runtime, chosen.why) == (runtime, "it was asked for")
    assert not (tmp_path / "cache" / "calibration").exists()


@built
def test_renew_times_again(wide, tmp_path, planted):
    locations, workload = ExportLocations(tmp_path, MODEL), Workload(SEQUENCE, unexpected)
    planted({"torch-plain": 0.04, "torch": 0.02, "native": 0.015})
    assert choose("auto", wide, locations, workload=workload).runtime == "native"
    planted({"torch-plain": 0.01, "torch": 0.02, "native": 0.015})
    assert choose("auto", wide, locations, workload=workload).runtime == "native"
    assert choose("auto", wide, locations, workload=workload, renew=True).runtime == "torch-plain"
    assert choose("auto", wide, locations, workload=workload).runtime == "torch-plain"


@built
def test_without_a_writable_cache_a_process_times_once(wide, tmp_path, planted):
    (tmp_path / "cache").write_text("")
    planted({"torch-plain": 0.04, "torch": 0.02, "native": 0.015})
    for _ in range(2):
        chosen = choose("auto", wide, ExportLocations(tmp_path, MODEL), workload=Workload(SEQUENCE, unexpected))
        assert chosen.runtime == "native" and chosen.describe()["timed"]["file"] is None
    assert len(planted.asked) == 1


@built
def test_engines_in_threads_agree(wide, tmp_path, timed, monkeypatch):
    """One of them times the candidates, once."""
    for name in ("PAUSE", "ROUND", "BUDGET"):
        monkeypatch.setattr(timing, name, 0.002)
    delay, steps, found = {"torch-plain": 0.012, "torch": 0.002, "native": 0.05}, set(), []

    def start(denoiser: Any) -> Any:
        steps.add(threading.current_thread().name)
        return lambda: time.sleep(delay[KINDS[type(denoiser)]])

    def work() -> None:
        found.append(choose("auto", wide, ExportLocations(tmp_path, MODEL), workload=Workload(SEQUENCE, start)))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(steps) == 1 and {chosen.runtime for chosen in found} == {"torch"} and len(found) == 6


def test_a_single_candidate_is_not_timed(wide, tmp_path, timed, monkeypatch):
    monkeypatch.setattr(native, "EXTENSION", None)
    chosen = choose("auto", wide, ExportLocations(tmp_path, MODEL), workload=Workload(SEQUENCE, unexpected))
    assert (chosen.runtime, chosen.why) == ("torch", "there is no other runtime here")


@built
def test_the_rule_decides_where_nothing_is_timed(wide, tmp_path, timed, monkeypatch):
    """A switch, operations that somebody has chosen, a large model, and one whose first step is slow."""
    locations, workload = ExportLocations(tmp_path, MODEL), Workload(SEQUENCE, unexpected)
    expected = choose("auto", wide, locations).runtime

    def chosen() -> Any:
        found = choose("auto", wide, locations, workload=workload)
        assert found.runtime == expected and "step_ms" not in found.describe()
        return found.why

    with implementation("reference"):
        assert "not timed: the operations are those of SYNCFLOW_KERNELS=reference" in chosen()
    monkeypatch.setenv("SYNCFLOW_CALIBRATION", "off")
    assert "not timed: SYNCFLOW_CALIBRATION is off" in chosen()
    monkeypatch.setenv("SYNCFLOW_CALIBRATION", "on")
    stopped = StepTimes({"torch-plain": 0.9}, stopped="a step in torch-plain takes 0.9 s")
    monkeypatch.setattr(choose_module, "time_denoisers", lambda *_: (stopped, {}))
    assert "not timed: a step in torch-plain takes 0.9 s" in chosen()
    monkeypatch.setattr(choose_module, "time_denoisers", unexpected)
    assert "not timed: a step in torch-plain takes 0.9 s" in chosen()  # as is known by now
    monkeypatch.setattr(timing, "FLOPS_PER_THREAD", 1.0)
    assert "is expected to take" in chosen()
