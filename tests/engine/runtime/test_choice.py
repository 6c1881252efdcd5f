"""Which runtime computes, and what is said of it. The exports here hold no graphs: whoever loads one is a stand-in."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from syncflow.engine.exports import CONSTANTS, STEP, Export, GraphSpec, Places, Proof
from syncflow.engine.model import DDiT
from syncflow.engine.package import sha256
from syncflow.engine.presets import PRESETS
from syncflow.engine.runtime import aoti, calibration, choice, libraries, onnxruntime, openvino, timing
from syncflow.engine.runtime.calibration import ALIKE
from syncflow.engine.runtime.choice import choose
from syncflow.engine.runtime.compiled import CompiledDenoiser
from syncflow.engine.runtime.graphs import GraphDenoiser, graph_names
from syncflow.engine.runtime.libraries import LIBRARIES, version_of
from syncflow.engine.runtime.native import NativeDDiT
from syncflow.engine.runtime.plain import PlainTorchDenoiser
from syncflow.engine.runtime.processor import processor
from syncflow.engine.runtime.sessions import Sessions
from syncflow.engine.runtime.timing import Times, Workload
from syncflow.kernels import implementation, native

from ..plain import CONFIG

MODEL = "7" * 64
GRAPHS = graph_names(CONFIG)
CODECS = ("text_encoder", "video_decoder")
SECONDS = {"onnxruntime": 0.02, "openvino": 0.01, "aoti": 0.03}
TORCH = 0.04
HERE = str(processor())


@pytest.fixture
def model() -> DDiT:
    return DDiT(CONFIG).eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch, tmp_path):
    """Libraries of version 1 that load nothing."""
    monkeypatch.setenv("SYNCFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(libraries, "version_of", lambda runtime: "1")
    for module in (aoti, onnxruntime, openvino):
        monkeypatch.setattr(module, "sessions", lambda export, *_, **__: Sessions(export, None, {"threads": 2}))


def proof(runtime: str, **changes: Any) -> Proof:
    errors = dict.fromkeys((*GRAPHS, *CODECS), 1e-6)
    seconds = {STEP: [SECONDS[runtime], TORCH], "text_encoder": [2.0, 1.0], "video_decoder": [1.0, 2.0]}
    return dataclasses.replace(Proof(runtime, "1", "cpu", "float32", errors, 1e-4, seconds, HERE), **changes)


def exported(folder: Path, *proofs: Proof, format: str = "onnx") -> Path:
    """An export with what was found of it, in a package. -> the package."""
    path = folder / "exports" / ("onnx" if format == "onnx" else "aoti/cpu")
    path.mkdir(parents=True)
    for name in ("graph", CONSTANTS):
        (path / name).write_bytes(b"x")
    checksums = {file.name: sha256(file) for file in path.iterdir()}
    graphs = {name: GraphSpec("graph", {}, {}, {}) for name in (*GRAPHS, *CODECS)}
    device = "any" if format == "onnx" else "cpu"
    Export(path, MODEL, format, device, "float32", graphs, {}, checksums, proofs=proofs).write()
    return folder


def test_without_exports_it_is_torch(model, tmp_path):
    chosen = choose("auto", model, Places(tmp_path, MODEL))
    assert (chosen.runtime, chosen.denoiser) == ("torch", model)
    assert set(chosen.others) == set(LIBRARIES)
    assert "syncflow export" in chosen.others["openvino"]


def test_auto_takes_the_fastest(model, tmp_path):
    exported(tmp_path, *map(proof, ("onnxruntime", "openvino")))
    exported(tmp_path, proof("aoti"), format="aoti")
    chosen = choose("auto", model, Places(tmp_path, MODEL))
    assert chosen.runtime == "openvino"
    assert isinstance(chosen.denoiser, GraphDenoiser)
    said = chosen.describe()
    assert "10 ms a step, 40 without exports" in said["why"]
    assert said["others"]["onnxruntime"] == "20 ms a step" and said["others"]["aoti"] == "30 ms a step"
    assert said["threads"] == 2


def test_codecs_go_through_graphs_where_that_pays(model, tmp_path):
    chosen = choose("auto", model, Places(exported(tmp_path, proof("openvino")), MODEL))
    assert chosen.codecs == ("video_decoder",)
    wrong = proof("openvino", errors=proof("openvino").errors | {"video_decoder": None})
    chosen = choose("auto", model, Places(exported(tmp_path / "other", wrong), MODEL))
    assert (chosen.runtime, chosen.codecs) == ("openvino", ())


@dataclasses.dataclass(frozen=True)
class Parts:
    """Codecs and text encoder by name alone."""

    video: Any = "video"
    audio: Any = "audio"
    text: Any = "text"


def test_only_those_codecs_are_put_behind_graphs(model, tmp_path):
    chosen = choose("auto", model, Places(exported(tmp_path, proof("openvino")), MODEL))
    coded = chosen.code(Parts())
    assert coded.video.graphs.keys() == {"video_decoder"}
    assert [coded.video.part, coded.audio.part, coded.text.part] == ["video", "audio", "text"]
    plain = choose("torch", model, Places(tmp_path, MODEL))
    assert plain.code(Parts()) == Parts()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "0.9"}, "version 0.9 was verified, and 1 is installed"),
        ({"device": "cuda"}, "not verified on this kind of device"),
        ({"precision": "bfloat16"}, "not verified on this kind of device"),
        ({"processor": "Another CPU [0123]"}, "verified on Another CPU [0123], not on this one"),
        ({"processor": ""}, "verified on an unknown processor, not on this one"),
        ({"errors": dict.fromkeys(GRAPHS, 1e-6) | {"denoise_audio": 0.5}}, "denoise_audio is off by 5.0e-01"),
        ({"errors": dict.fromkeys(GRAPHS, 1e-6) | {"denoise_audio": None}}, "denoise_audio fails"),
        ({"errors": {}}, "fails"),
        ({"seconds": {STEP: [TORCH, TORCH]}}, "not faster than what needs no export"),
        ({"seconds": {}}, "not faster than what needs no export"),
    ],
    ids=str,
)
def test_auto_leaves_out_what_is_not_proven(model, tmp_path, changes, said):
    chosen = choose("auto", model, Places(exported(tmp_path, proof("openvino", **changes)), MODEL))
    assert chosen.runtime == "torch"
    assert said in chosen.others["openvino"]


def test_auto_passes_a_damaged_export_by(model, tmp_path):
    package = exported(tmp_path, proof("openvino"))
    exported(package, proof("aoti"), format="aoti")
    (package / "exports" / "onnx" / "graph").write_bytes(b"y")
    with pytest.warns(UserWarning, match="does not match its checksum"):
        chosen = choose("auto", model, Places(package, MODEL))
    assert chosen.runtime == "aoti"


def test_a_damaged_export_is_never_loaded(model, tmp_path):
    package = exported(tmp_path, format="aoti")
    (package / "exports" / "aoti" / "cpu" / "graph").write_bytes(b"y")
    with pytest.raises(ValueError, match="does not match its checksum"):
        choose("aoti", model, Places(package, MODEL))


def test_a_runtime_that_was_asked_for_need_not_be_proven(model, tmp_path):
    chosen = choose("onnxruntime", model, Places(exported(tmp_path), MODEL))
    assert (chosen.runtime, chosen.why, chosen.codecs) == ("onnxruntime", "it was asked for", ())


def test_a_runtime_that_was_found_wrong_is_refused(model, tmp_path):
    wrong = proof("openvino", precision="bfloat16", errors=dict.fromkeys(GRAPHS, 0.5))
    package = exported(tmp_path, wrong)
    with pytest.raises(ValueError, match="openvino computes this model wrongly in bfloat16: prepare_text is off by"):
        choose("openvino", model, Places(package, MODEL), "bfloat16")
    assert choose("openvino", model, Places(package, MODEL)).runtime == "openvino"


def test_what_was_found_on_another_processor_says_nothing_of_this_one(model, tmp_path):
    """Neither that a runtime is wrong nor that a codec pays."""
    wrong = proof("openvino", processor="Another CPU [0123]", errors=dict.fromkeys(GRAPHS, 0.5))
    chosen = choose("openvino", model, Places(exported(tmp_path, wrong), MODEL))
    assert (chosen.runtime, chosen.proof, chosen.codecs) == ("openvino", None, ())


def test_of_torch(model, tmp_path):
    places = Places(tmp_path, MODEL)
    assert choose("torch", model, places).denoiser is model
    assert isinstance(choose("compiled", model, places).denoiser, CompiledDenoiser)
    assert str(choose("torch", model, places, "bfloat16").denoiser.dtype) == "torch.bfloat16"
    with pytest.raises(ValueError, match="CUDA"):
        choose("graphed", model, places)


@pytest.mark.parametrize(
    ("runtime", "precision", "said"),
    [
        ("tflite", "float32", "runtime is 'tflite'; it must be one of auto, torch,"),
        ("auto", "int8", "precision is 'int8'; it must be one of float32,"),
        ("tensorrt", "float32", "does not work on cpu; it works on cuda"),
        ("aoti", "float32", "syncflow export --to aoti"),
    ],
)
def test_what_there_is_not(model, tmp_path, runtime, precision, said):
    with pytest.raises(ValueError, match=said):
        choose(runtime, model, Places(tmp_path, MODEL), precision)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_missing_library_is_one_sentence(monkeypatch, runtime):
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(ValueError, match=f"needs {runtime}; install it with `pip install syncflow.{runtime}.`"):
        version_of(runtime)


def test_auto_does_without_a_missing_library(model, tmp_path, monkeypatch):
    monkeypatch.setattr(libraries, "version_of", version_of)
    monkeypatch.setitem(sys.modules, "openvino", None)
    chosen = choose("auto", model, Places(exported(tmp_path, proof("openvino")), MODEL))
    assert chosen.runtime == "torch"
    assert "pip install syncflow[openvino]" in chosen.others["openvino"]


def test_machine_code_for_another_machine(model, tmp_path, monkeypatch):
    monkeypatch.undo()
    package = exported(tmp_path, format="aoti")
    with pytest.raises(ValueError, match="was compiled by torch no torch"):
        choose("aoti", model, Places(package, MODEL))


# Timed on a CPU

WIDE = CONFIG.replace(width=32)
SEQUENCE = PRESETS["syncflow-tiny"].sequence
WITHOUT_EXPORTS = ("torch-plain", "torch", "native")
KINDS = {PlainTorchDenoiser: "torch-plain", DDiT: "torch", NativeDDiT: "native", GraphDenoiser: "export"}
built = pytest.mark.skipif(native.LOOPS is None, reason="the native part was not built")


def unexpected(denoiser: Any) -> Any:
    raise AssertionError("something was timed")


@pytest.fixture
def timed(monkeypatch) -> None:
    """Timing is on, with nothing known."""
    monkeypatch.setenv("SYNCFLOW_CALIBRATION", "on")
    monkeypatch.setattr(calibration, "_of_process", {})


@pytest.fixture
def wide() -> DDiT:
    """A model that the native part takes."""
    return DDiT(WIDE).eval().requires_grad_(False)


@pytest.fixture
def planted(monkeypatch, timed) -> Any:
    """``planted(seconds)``: what the next timing finds. Its ``asked`` are the runtimes of every timing."""

    def plant(seconds: dict[str, float], **more: Any) -> None:
        def race(makers: Any, workload: Workload) -> tuple[Times, dict[str, Any]]:
            plant.asked.append(tuple(makers))
            return Times({name: s for name, s in seconds.items() if name in makers}, **more), {}

        monkeypatch.setattr(choice, "race", race)

    plant.asked = []
    return plant


@built
@pytest.mark.parametrize("order", list(itertools.permutations(WITHOUT_EXPORTS)), ids=" ".join)
def test_the_fastest_is_taken(wide, tmp_path, timed, monkeypatch, order):
    """By the time that planted steps really take, on a clock."""
    for name in ("REST", "TURN", "BUDGET"):
        monkeypatch.setattr(timing, name, 0.002)
    delay = dict(zip(order, (0.002, 0.012, 0.05), strict=True))
    workload = Workload(SEQUENCE, lambda denoiser: lambda: time.sleep(delay[KINDS[type(denoiser)]]))
    chosen = choose("auto", wide, Places(tmp_path, MODEL), workload=workload)
    assert chosen.runtime == KINDS[type(chosen.denoiser)] == order[0]
    told = chosen.describe()
    assert list(told["step_ms"]) == list(order) and told["timed"]["processor"] == HERE
    assert told["why"].startswith("the fastest of 3 that were timed on this machine: ")
    again = choose("auto", wide, Places(tmp_path, MODEL), workload=Workload(SEQUENCE, unexpected))
    assert again.runtime == chosen.runtime and again.describe()["step_ms"] == told["step_ms"]
    assert isinstance(again.denoiser, type(chosen.denoiser))


@built
@pytest.mark.parametrize("slow", WITHOUT_EXPORTS)
@pytest.mark.parametrize("times", [1.04, 1.06, 2.0, 30.0])
def test_never_one_slower_than_its_share_of_the_fastest(wide, tmp_path, planted, slow, times):
    seconds = {name: 0.01 * (times if name == slow else 1.0) for name in WITHOUT_EXPORTS}
    planted(seconds)
    chosen = choose("auto", wide, Places(tmp_path, MODEL), workload=Workload(SEQUENCE, unexpected))
    assert min(seconds.values()) >= ALIKE * seconds[chosen.runtime]
    assert (chosen.runtime == slow) is (slow == "native" and times < 1 / ALIKE)
    assert f"{1000 * seconds[chosen.runtime]:.3g} ms a step" in chosen.why


@built
def test_exports_are_timed_beside_the_others(wide, tmp_path, planted):
    """Those that were found right, in this version, on this processor; the fastest is loaded."""
    wrong = proof("aoti", errors=dict.fromkeys(GRAPHS, 0.5))
    foreign = proof("onnxruntime", processor="Another CPU [0123]")
    package = exported(tmp_path, foreign, proof("openvino", seconds={STEP: [TORCH, TORCH]}))
    exported(package, wrong, format="aoti")
    planted({"torch-plain": 0.04, "torch": 0.02, "native": 0.015, "openvino": 0.01})
    chosen = choose("auto", wide, Places(package, MODEL), workload=Workload(SEQUENCE, unexpected))
    assert planted.asked == [(*WITHOUT_EXPORTS, "openvino")]
    assert chosen.runtime == "openvino" and isinstance(chosen.denoiser, GraphDenoiser) and chosen.proof is not None
    assert chosen.others["native"] == "15 ms a step" and "is off by" in chosen.others["aoti"]
    assert "verified on Another CPU" in chosen.others["onnxruntime"]


@built
def test_what_is_verified_later_is_timed_then(wide, tmp_path, planted):
    """And again when it is exported anew, or in another version."""
    package = exported(tmp_path)
    workload = Workload(SEQUENCE, unexpected)
    planted({"torch-plain": 0.04, "torch": 0.02, "native": 0.015, "openvino": 0.01})
    for _ in range(2):
        assert choose("auto", wide, Places(package, MODEL), workload=workload).runtime == "native"
    export = Export.read(package / "exports" / "onnx", MODEL).proven(proof("openvino"))
    export.write()
    for _ in range(2):
        assert choose("auto", wide, Places(package, MODEL), workload=workload).runtime == "openvino"
    os.utime(export.path / "graph", (1, 1))
    assert choose("auto", wide, Places(package, MODEL), workload=workload).runtime == "openvino"
    assert planted.asked == [WITHOUT_EXPORTS, *[(*WITHOUT_EXPORTS, "openvino")] * 2]


@built
def test_a_damaged_export_is_passed_by(wide, tmp_path, planted):
    """Also when it was the fastest before it was damaged."""
    package = exported(tmp_path, proof("openvino"))
    planted({"torch-plain": 0.04, "torch": 0.02, "native": 0.015, "openvino": 0.01})
    (package / "exports" / "onnx" / "graph").write_bytes(b"y")
    with pytest.warns(UserWarning, match="does not match its checksum.*; the next best runtime is taken"):
        chosen = choose("auto", wide, Places(package, MODEL), workload=Workload(SEQUENCE, unexpected))
    assert chosen.runtime == "native" and "does not match its checksum" in chosen.others["openvino"]


@built
def test_another_version_must_be_verified_again(wide, tmp_path, planted, monkeypatch):
    places = Places(exported(tmp_path, proof("openvino")), MODEL)
    planted({"torch-plain": 0.04, "torch": 0.02, "native": 0.015, "openvino": 0.01})
    assert choose("auto", wide, places, workload=Workload(SEQUENCE, unexpected)).runtime == "openvino"
    monkeypatch.setattr(libraries, "version_of", lambda runtime: "2")
    with pytest.warns(UserWarning, match="version 1 was verified, and 2 is installed; run `syncflow verify` again"):
        chosen = choose("auto", wide, places, workload=Workload(SEQUENCE, unexpected))
    assert chosen.runtime == "native" and "version 1 was verified" in chosen.others["openvino"]


@built
def test_a_missing_library_is_not_timed(wide, tmp_path, planted, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    planted({"torch-plain": 0.04, "torch": 0.02, "native": 0.015})
    places = Places(exported(tmp_path, proof("openvino")), MODEL)
    chosen = choose("auto", wide, places, workload=Workload(SEQUENCE, unexpected))
    assert planted.asked == [WITHOUT_EXPORTS]
    assert "pip install syncflow[openvino]" in chosen.others["openvino"]


@built
def test_what_could_not_be_timed_is_said(wide, tmp_path, planted):
    """And it is not tried again with every engine."""
    package = exported(tmp_path, proof("openvino"))
    planted({"torch-plain": 0.04, "torch": 0.02, "native": 0.015}, failures={"openvino": "no such operator"})
    for _ in range(2):
        chosen = choose("auto", wide, Places(package, MODEL), workload=Workload(SEQUENCE, unexpected))
        assert chosen.runtime == "native"
        assert chosen.others["openvino"].startswith("could not be timed on ")
        assert chosen.others["openvino"].endswith(": no such operator")
    assert len(planted.asked) == 1


@built
@pytest.mark.parametrize("runtime", ["torch", "torch-plain", "native", "compiled", "openvino"])
def test_a_runtime_that_was_asked_for_is_not_timed(wide, tmp_path, timed, runtime):
    places = Places(exported(tmp_path, proof("openvino")), MODEL)
    chosen = choose(runtime, wide, places, workload=Workload(SEQUENCE, unexpected))
    assert (chosen.runtime, chosen.why) == (runtime, "it was asked for")
    assert not (tmp_path / "cache" / "calibration").exists()


@built
def test_it_is_timed_anew_on_demand(wide, tmp_path, planted):
    places, workload = Places(tmp_path, MODEL), Workload(SEQUENCE, unexpected)
    planted({"torch-plain": 0.04, "torch": 0.02, "native": 0.015})
    assert choose("auto", wide, places, workload=workload).runtime == "native"
    planted({"torch-plain": 0.01, "torch": 0.02, "native": 0.015})
    assert choose("auto", wide, places, workload=workload).runtime == "native"
    assert choose("auto", wide, places, workload=workload, renew=True).runtime == "torch-plain"
    assert choose("auto", wide, places, workload=workload).runtime == "torch-plain"


@built
def test_with_an_unwritable_cache_a_process_times_once(wide, tmp_path, planted):
    (tmp_path / "cache").write_text("")
    planted({"torch-plain": 0.04, "torch": 0.02, "native": 0.015})
    for _ in range(2):
        chosen = choose("auto", wide, Places(tmp_path, MODEL), workload=Workload(SEQUENCE, unexpected))
        assert chosen.runtime == "native" and chosen.describe()["timed"]["file"] is None
    assert len(planted.asked) == 1


@built
def test_engines_in_threads_agree(wide, tmp_path, timed, monkeypatch):
    """They are timed once, and by one of them."""
    for name in ("REST", "TURN", "BUDGET"):
        monkeypatch.setattr(timing, name, 0.002)
    delay, steps, found = {"torch-plain": 0.012, "torch": 0.002, "native": 0.05}, set(), []

    def start(denoiser: Any) -> Any:
        steps.add(threading.current_thread().name)
        return lambda: time.sleep(delay[KINDS[type(denoiser)]])

    def work() -> None:
        found.append(choose("auto", wide, Places(tmp_path, MODEL), workload=Workload(SEQUENCE, start)))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(steps) == 1 and {chosen.runtime for chosen in found} == {"torch"} and len(found) == 6


def test_where_there_is_one_runtime_nothing_is_timed(wide, tmp_path, timed, monkeypatch):
    monkeypatch.setattr(native, "LOOPS", None)
    chosen = choose("auto", wide, Places(tmp_path, MODEL), workload=Workload(SEQUENCE, unexpected))
    assert (chosen.runtime, chosen.why) == ("torch", "there is no other runtime here")


@built
def test_what_is_not_timed_goes_by_a_rule(wide, tmp_path, timed, monkeypatch):
    """A switch, operations that somebody has chosen, a large model, and one whose first step is slow."""
    places, workload = Places(tmp_path, MODEL), Workload(SEQUENCE, unexpected)
    expected = choose("auto", wide, places).runtime

    def chosen() -> Any:
        found = choose("auto", wide, places, workload=workload)
        assert found.runtime == expected and "step_ms" not in found.describe()
        return found.why

    with implementation("reference"):
        assert "not timed: the operations are those of SYNCFLOW_KERNELS=reference" in chosen()
    monkeypatch.setenv("SYNCFLOW_CALIBRATION", "off")
    assert "not timed: SYNCFLOW_CALIBRATION is off" in chosen()
    monkeypatch.setenv("SYNCFLOW_CALIBRATION", "on")
    stopped = Times({"torch-plain": 0.9}, stopped="a step in torch-plain takes 0.9 s")
    monkeypatch.setattr(choice, "race", lambda *_: (stopped, {}))
    assert "not timed: a step in torch-plain takes 0.9 s" in chosen()
    monkeypatch.setattr(choice, "race", unexpected)
    assert "not timed: a step in torch-plain takes 0.9 s" in chosen()  # as is known by now
    monkeypatch.setattr(timing, "PEAK", 1.0)
    assert "is expected to take" in chosen()
