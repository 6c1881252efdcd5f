"""The choice of a runtime and its description. The exports hold no graphs, and the libraries are stand-ins."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest

from syncflow.engine.exports import STEP, ExportLocations
from syncflow.engine.model import DDiT
from syncflow.engine.runtime.compiled import CompiledDenoiser
from syncflow.engine.runtime.exported import GraphDenoiser
from syncflow.engine.runtime.selection import libraries
from syncflow.engine.runtime.selection.choose import choose
from syncflow.engine.runtime.selection.libraries import LIBRARIES, version_of
from syncflow.engine.runtime.selection.settings import TorchOptions

from ...plain import CONFIG
from ..exported import GRAPHS, MODEL, TORCH, exported, result, stand_in


@pytest.fixture
def model() -> DDiT:
    return DDiT(CONFIG).eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path / "cache")


def test_without_exports_it_is_torch(model, tmp_path):
    chosen = choose("auto", model, ExportLocations(tmp_path, MODEL))
    assert (chosen.runtime, chosen.denoiser) == ("torch", model)
    assert set(chosen.others) == set(LIBRARIES)
    assert "syncflow export" in chosen.others["openvino"]


def test_auto_takes_the_fastest(model, tmp_path):
    exported(tmp_path, *map(result, ("onnxruntime", "openvino")))
    exported(tmp_path, result("aoti"), format="aoti")
    chosen = choose("auto", model, ExportLocations(tmp_path, MODEL))
    assert chosen.runtime == "openvino"
    assert isinstance(chosen.denoiser, GraphDenoiser)
    said = chosen.describe()
    assert "10 ms a step, 40 without exports" in said["why"]
    assert said["others"]["onnxruntime"] == "20 ms a step" and said["others"]["aoti"] == "30 ms a step"
    assert said["threads"] == 2


def test_codecs_run_as_graphs_that_are_correct_and_faster(model, tmp_path):
    chosen = choose("auto", model, ExportLocations(exported(tmp_path, result("openvino")), MODEL))
    assert chosen.codecs == ("video_decoder",)
    wrong = result("openvino", errors=result("openvino").errors | {"video_decoder": None})
    chosen = choose("auto", model, ExportLocations(exported(tmp_path / "other", wrong), MODEL))
    assert (chosen.runtime, chosen.codecs) == ("openvino", ())


@dataclasses.dataclass(frozen=True)
class Parts:
    """Codecs and text encoder by name alone."""

    video: Any = "video"
    audio: Any = "audio"
    text: Any = "text"


def test_only_those_codecs_are_replaced(model, tmp_path):
    chosen = choose("auto", model, ExportLocations(exported(tmp_path, result("openvino")), MODEL))
    coded = chosen.with_codecs(Parts())
    assert coded.video.graphs.keys() == {"video_decoder"}
    assert [coded.video.part, coded.audio.part, coded.text.part] == ["video", "audio", "text"]
    plain = choose("torch", model, ExportLocations(tmp_path, MODEL))
    assert plain.with_codecs(Parts()) == Parts()


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
def test_auto_excludes_unverified_runtimes(model, tmp_path, changes, said):
    chosen = choose("auto", model, ExportLocations(exported(tmp_path, result("openvino", **changes)), MODEL))
    assert chosen.runtime == "torch"
    assert said in chosen.others["openvino"]


def test_auto_skips_a_damaged_export(model, tmp_path):
    package = exported(tmp_path, result("openvino"))
    exported(package, result("aoti"), format="aoti")
    (package / "exports" / "onnx" / "graph").write_bytes(b"y")
    with pytest.warns(UserWarning, match="does not match its checksum"):
        chosen = choose("auto", model, ExportLocations(package, MODEL))
    assert chosen.runtime == "aoti"


def test_a_damaged_export_is_never_loaded(model, tmp_path):
    package = exported(tmp_path, format="aoti")
    (package / "exports" / "aoti" / "cpu" / "graph").write_bytes(b"y")
    with pytest.raises(ValueError, match="does not match its checksum"):
        choose("aoti", model, ExportLocations(package, MODEL))


def test_a_named_runtime_need_not_be_verified(model, tmp_path):
    chosen = choose("onnxruntime", model, ExportLocations(exported(tmp_path), MODEL))
    assert (chosen.runtime, chosen.why, chosen.codecs) == ("onnxruntime", "it was asked for", ())


def test_a_runtime_that_was_verified_as_wrong_is_refused(model, tmp_path):
    wrong = result("openvino", precision="bfloat16", errors=dict.fromkeys(GRAPHS, 0.5))
    package = exported(tmp_path, wrong)
    with pytest.raises(ValueError, match="openvino computes this model wrongly in bfloat16: prepare_text is off by"):
        choose("openvino", model, ExportLocations(package, MODEL), "bfloat16")
    assert choose("openvino", model, ExportLocations(package, MODEL)).runtime == "openvino"


def test_a_verification_on_another_processor_does_not_count(model, tmp_path):
    """Neither that a runtime is wrong nor that a codec pays."""
    wrong = result("openvino", processor="Another CPU [0123]", errors=dict.fromkeys(GRAPHS, 0.5))
    chosen = choose("openvino", model, ExportLocations(exported(tmp_path, wrong), MODEL))
    assert (chosen.runtime, chosen.verification, chosen.codecs) == ("openvino", None, ())


def test_runtimes_of_pytorch(model, tmp_path):
    locations = ExportLocations(tmp_path, MODEL)
    assert choose("torch", model, locations).denoiser is model
    assert isinstance(choose("compiled", model, locations).denoiser, CompiledDenoiser)
    assert str(choose("torch", model, locations, "bfloat16").denoiser.dtype) == "torch.bfloat16"
    with pytest.raises(ValueError, match="CUDA"):
        choose("torch", model, locations, options=TorchOptions(cuda_graphs=True))


@pytest.mark.parametrize(
    ("runtime", "precision", "said"),
    [
        ("tflite", "float32", "runtime is 'tflite'; it must be one of auto, torch,"),
        ("auto", "int8", "precision is 'int8'; it must be one of auto, float32,"),
        ("tensorrt", "float32", "does not work on cpu; it works on cuda"),
        ("aoti", "float32", "syncflow export /.* --to aoti"),
    ],
)
def test_unknown_or_missing_runtimes_are_refused(model, tmp_path, runtime, precision, said):
    with pytest.raises(ValueError, match=said):
        choose(runtime, model, ExportLocations(tmp_path, MODEL), precision)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_missing_library_is_one_sentence(monkeypatch, runtime):
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(ValueError, match=f"needs {runtime}; install it with `pip install syncflow.{runtime}.`"):
        version_of(runtime)


def test_auto_skips_a_missing_library(model, tmp_path, monkeypatch):
    monkeypatch.setattr(libraries, "version_of", version_of)
    monkeypatch.setitem(sys.modules, "openvino", None)
    chosen = choose("auto", model, ExportLocations(exported(tmp_path, result("openvino")), MODEL))
    assert chosen.runtime == "torch"
    assert "pip install syncflow[openvino]" in chosen.others["openvino"]


def test_machine_code_for_another_machine(model, tmp_path, monkeypatch):
    monkeypatch.undo()
    package = exported(tmp_path, format="aoti")
    with pytest.raises(ValueError, match="was compiled by torch no torch"):
        choose("aoti", model, ExportLocations(package, MODEL))
