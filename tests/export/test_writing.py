"""Exports of whole models: what their manifest says, what runtimes make of them, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from syncflow.engine.exports import CONSTANTS, Export
from syncflow.engine.package import MANIFEST
from syncflow.engine.presets import OPEN_SORA
from syncflow.engine.runtime.exported import GraphDenoiser, graph_names
from syncflow.engine.runtime.selection.libraries import load
from syncflow.engine.sampling.loop import sample
from syncflow.export import verification, writing
from syncflow.export.verification import relative_error, verify, verify_runtimes
from syncflow.export.writing import write_export

from ..engine.plain import HEARING_JOBS, JOBS, TOLERANCE
from .conftest import BRIDGES

pytestmark = pytest.mark.slow

RUNTIMES = ("onnxruntime", "openvino")


@pytest.fixture(params=RUNTIMES, scope="module")
def runtime(request) -> str:
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return request.param


@pytest.mark.parametrize("bridge", BRIDGES)
def test_the_manifest_says_what_there_is(exports, models, bridge):
    export, parts = exports[bridge], models[bridge]
    assert Export.read(export.path, parts.digest).check() == export
    assert tuple(export.graphs) == graph_names(parts.config.ddit)
    assert {"torch", "onnx", "syncflow"} <= export.versions.keys()
    assert export.checksums.keys() == {file.name for file in export.path.iterdir()} - {MANIFEST}
    for graph in export.graphs.values():
        free = {length for port in graph.inputs.values() for length in port.shape if isinstance(length, str)}
        assert free == graph.axes.keys()
        assert all(axis.least <= axis.usual for axis in graph.axes.values())


def test_lengths_of_what_is_given_have_the_names_of_what_is_taken(exports):
    outputs = exports["adaptor"].graphs["denoise_audio"].outputs
    assert outputs["velocity"].shape == ("R", "A", 5)
    assert exports["adaptor"].graphs["denoise_video"].axes["H"].step == 2


def test_constants_are_the_weights_that_no_graph_holds(exports, models):
    for bridge, export in exports.items():
        constants, model = load_file(export.path / CONSTANTS), models[bridge].ddit
        assert torch.equal(constants["null_text"], model.null_text)
        assert ("silence" in constants) == (bridge == "global_local")


@pytest.fixture(scope="module")
def denoisers(exports, models) -> dict[tuple[str, str], GraphDenoiser]:
    """Every small model in every runtime, loaded once."""
    kept: dict[tuple[str, str], GraphDenoiser] = {}

    class Loaded(dict):
        def __missing__(self, key):
            bridge, runtime = key
            self[key] = load(runtime, exports[bridge], models[bridge].ddit, "float32")
            return self[key]

    return Loaded(kept)


@pytest.mark.parametrize("bridge", BRIDGES)
@given(data=st.data())
@settings(max_examples=6)
def test_sampling_through_a_runtime_is_sampling(denoisers, models, runtime, bridge, data):
    jobs = data.draw(st.lists(JOBS if bridge == "adaptor" else HEARING_JOBS, min_size=1, max_size=3))
    through, plain = sample(denoisers[bridge, runtime], jobs), sample(models[bridge].ddit, jobs)
    torch.testing.assert_close(through.video, plain.video, **TOLERANCE)
    torch.testing.assert_close(through.audio, plain.audio, **TOLERANCE)


@pytest.mark.parametrize("bridge", BRIDGES)
def test_a_runtime_is_verified(exports, models, runtime, bridge, monkeypatch):
    monkeypatch.setattr(verification, "STEPS", 1)
    told: list[str] = []
    result = verify(models[bridge], exports[bridge], runtime, progress=told.append)
    assert result.within_bound(exports[bridge].graphs), result.errors
    assert told == [*exports[bridge].graphs, "a step"]
    assert result.speedup() > 0


def test_another_model_does_not_pass(exports, models, monkeypatch):
    """Graphs of other weights under the right name."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(verification, "STEPS", 1)
    changed = dataclasses.replace(models["adaptor"], ddit=type(models["adaptor"].ddit)(BRIDGES["adaptor"]).eval())
    result = verify(changed, exports["adaptor"], "onnxruntime")
    assert not result.within_bound(["adapt_video"]) and not result.within_bound(["prepare_text"])


def test_what_was_found_is_kept(models, tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "verify", lambda *_, **__: RESULT)
    export = Export.read(_stub(models["adaptor"], tmp_path, monkeypatch).path, models["adaptor"].digest)
    after, results = verify_runtimes(models["adaptor"], export, ["onnxruntime"])
    assert results == [RESULT]
    assert Export.read(export.path, models["adaptor"].digest) == after
    assert after.results == (RESULT,)


def test_what_was_found_and_cannot_be_kept(models, tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "verify", lambda *_, **__: RESULT)
    export = _stub(models["adaptor"], tmp_path, monkeypatch)

    def refuse(self: Export) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Export, "write", refuse)
    with pytest.warns(UserWarning, match="are not saved"):
        assert verify_runtimes(models["adaptor"], export, ["onnxruntime"])[1] == [RESULT]


def test_relative_errors():
    exact = torch.tensor([1.0, -4.0])
    assert relative_error(exact + 0.4, exact) == pytest.approx(0.1)
    assert relative_error(torch.empty(0, 3), torch.empty(0, 3)) == 0
    colours = torch.tensor([0, 128, 255], dtype=torch.uint8)
    assert relative_error(torch.tensor([1, 127, 255], dtype=torch.uint8), colours) == 0
    assert relative_error(torch.tensor([0, 138, 255], dtype=torch.uint8), colours) == pytest.approx(9 / 255)


def test_an_export_takes_the_place_of_the_one_before(models, tmp_path, monkeypatch):
    first = _stub(models["adaptor"], tmp_path, monkeypatch)
    (first.path / "left behind").write_text("x")
    second = _stub(models["adaptor"], tmp_path, monkeypatch)
    assert second.path == first.path
    assert not (second.path / "left behind").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["onnx"]


def test_a_failed_export_leaves_the_one_before(models, tmp_path, monkeypatch):
    first = _stub(models["adaptor"], tmp_path, monkeypatch)

    def fail(graph: object, path: Path) -> dict:
        raise RuntimeError("no way")

    monkeypatch.setattr(writing, "_writer", lambda *_: fail)
    with pytest.raises(RuntimeError, match="no way"):
        write_export(models["adaptor"], tmp_path, "onnx", codecs=False)
    assert Export.read(first.path, first.model).check() == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["onnx"]


def test_a_codec_that_does_not_export_is_left_out(bundled, tmp_path, monkeypatch):
    """One fails, one is written with a length of its example; the manifest says why they are not there."""

    def write(graph, path: Path) -> dict:
        if graph.name == "text_encoder":
            raise NotImplementedError("no such operator\nand more")
        path.write_bytes(b"graph")
        with torch.inference_mode():
            found = graph.module(*graph.inputs.values())
        outputs = found if isinstance(found, tuple) else (found,)
        return {name: writing._spec(y, {}) for name, y in zip(graph.outputs, outputs, strict=True)}

    monkeypatch.setattr(writing, "_writer", lambda *_: write)
    export = write_export(bundled, tmp_path, "onnx")
    assert export.missing["text_encoder"] == "NotImplementedError: no such operator"
    assert "specialised" in export.missing["audio_decoder"]
    assert tuple(export.graphs) == graph_names(bundled.config.ddit)
    assert not (export.path / "audio_decoder.onnx").exists()


def test_refusals(models, tmp_path, monkeypatch):
    unsaved = dataclasses.replace(models["adaptor"], digest="")
    with pytest.raises(ValueError, match="only a saved model"):
        write_export(unsaved, tmp_path, "onnx")
    config = models["adaptor"].config.replace(ddit=OPEN_SORA.ddit)
    with pytest.raises(ValueError, match="a model without sound cannot be exported"):
        write_export(dataclasses.replace(models["adaptor"], config=config), tmp_path, "onnx")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs a CUDA device"):
            write_export(models["adaptor"], tmp_path, "onnx", device="cuda")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be made"):
        write_export(models["adaptor"], tmp_path / "file", "onnx")


def _stub(parts, folder: Path, monkeypatch) -> Export:
    """An export whose graphs are empty files."""

    def write(graph, path: Path) -> dict:
        path.write_bytes(graph.name.encode())
        return {}

    with monkeypatch.context() as patched:
        patched.setattr(writing, "_writer", lambda *_: write)
        return write_export(parts, folder, "onnx", codecs=False)


RESULT = verification.VerificationResult("onnxruntime", "1", "cpu", "float32", {}, 1e-4, {})
