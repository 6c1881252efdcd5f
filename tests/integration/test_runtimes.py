"""A small model of each paper, exported, verified and sampled by the runtimes of ONNX graphs, from the command line."""

from __future__ import annotations

import json

import pytest

from syncflow.engine.runtime.exported import graph_names

from .exporting import BOUND, Exported, call, check_auto, check_clips, check_cpp, check_files, export, small

PAPERS = ("syncflow", "syncphony", "harmony")
CLIPS = ({"seconds": 0.5}, {"seconds": 1.0, "width": 96})
CODECS = {"text_encoder", "video_encoder", "video_decoder", "audio_encoder", "audio_decoder"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=PAPERS)
def exported(request, tmp_path_factory) -> Exported:
    """A model of random weights beside the bundled codecs, which are exported with one of the models."""
    for library in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    package = tmp_path_factory.mktemp(request.param) / "model"
    options = () if request.param == PAPERS[0] else ("--no-codecs",)
    return export(small(f"{request.param}-tiny"), package, "onnx", *options)


def test_every_runtime_computes_every_graph(exported):
    """Velocities, and what they are made of, within 1e-4 of PyTorch's."""
    config = exported.engine("torch").config
    assert set(exported.runtimes) >= {"onnxruntime", "openvino"}
    for result in exported.results:
        errors = result["errors"]
        assert set(graph_names(config.ddit)) <= errors.keys()
        assert max(errors.values()) <= BOUND, result["runtime"]
        assert result["seconds"]["step"][0] > 0
        assert config.name != "syncflow-tiny" or errors.keys() >= CODECS


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_the_same_seed_is_the_same_clip(exported, clip, count):
    check_clips(exported, count, **clip)


def test_libsyncflow_computes_the_same(exported, tmp_path):
    check_cpp(exported, tmp_path)


def test_the_same_seed_is_the_same_file(exported, tmp_path):
    check_files(exported, tmp_path)


def test_auto_times_what_was_verified(exported, monkeypatch):
    check_auto(exported, monkeypatch)


def test_half_precision_has_its_own_bound(exported):
    """OpenVINO in bfloat16: what random weights make of its rounding is near, and is said to hold or not to hold.

    A processor without the type computes in float32, to float32's bound.
    """
    code, out, _ = call("verify", exported.package, "--runtimes", "openvino", "--precision", "bfloat16", "--json")
    (result,) = json.loads(out)["exports"][0]["runtimes"]
    assert (result["precision"], result["bound"]) == ("bfloat16", 5e-2)
    errors = result["errors"]
    largest = max(errors.values())
    assert code == int(largest > 5e-2)
    assert errors["prepare_times"] <= BOUND
    if "BF16" in pytest.importorskip("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert BOUND < errors["prepare_text"] < 5e-2
        assert largest < 0.2
    else:
        assert largest <= BOUND
