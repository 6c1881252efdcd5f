"""Exports on disk: what is written is read; what is damaged, foreign or newer is refused with one sentence."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncflow.engine.exports import (
    CONSTANTS,
    SCHEMA,
    Axis,
    Export,
    ExportLocations,
    GraphSpec,
    TensorSpec,
    VerificationResult,
    cache_folder,
    folder_name,
)
from syncflow.engine.package import MANIFEST, sha256

MODEL = "5" * 64
GRAPH = GraphSpec(
    "denoise_audio.onnx",
    {"z": TensorSpec("float32", ("R", "A", 5)), "context_of_row": TensorSpec("int64", ("R",))},
    {"velocity": TensorSpec("float32", ("R", "A", 5))},
    {"R": Axis(1, None, 4), "A": Axis(0, 3000, 100, 2)},
)
RESULT = VerificationResult(
    "onnxruntime", "1.31.1", "cpu", "float32", {"denoise_audio": 1e-6}, 1e-4, {"step": [0.01, 0.02]}, "a CPU"
)


def written(path: Path, **changes: object) -> Export:
    """An export of one graph, in a folder."""
    path.mkdir(parents=True)
    for name in (GRAPH.file, CONSTANTS):
        (path / name).write_bytes(name.encode() * 100)
    checksums = {file.name: sha256(file) for file in path.iterdir()}
    export = Export(path, MODEL, "onnx", "any", "float32", {"denoise_audio": GRAPH}, {"torch": "2"}, checksums)
    export = dataclasses.replace(export, **changes)
    export.write()
    return export


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "onnx", results=(RESULT,)).path


def rewrite(folder: Path, **changes: object) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(values | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        Export.read(folder, MODEL).check()
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


def test_round_trip(tmp_path):
    export = written(tmp_path / "onnx", missing={"audio_decoder": "why"}, machine="sm_90", results=(RESULT,))
    assert Export.read(export.path, MODEL).check() == export
    assert [file.name for file in export.path.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize("name", [GRAPH.file, CONSTANTS])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:50] + b"!" + b[51:], lambda b: b + b"!"])
def test_damaged_files(folder, name, damage):
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    assert "does not match its checksum; the export is damaged" in refusal(folder)


def test_a_file_that_is_gone(folder):
    (folder / GRAPH.file).unlink()
    assert "lacks denoise_audio.onnx; the export is incomplete" in refusal(folder)


@pytest.mark.parametrize("schema", [1, SCHEMA + 1])
def test_an_export_of_another_schema_is_refused(folder, schema):
    rewrite(folder, schema=schema)
    assert refusal(folder) == (
        f"{folder} has export schema {schema}; this version reads schema {SCHEMA}: "
        "export the model again with `syncflow export`"
    )


def test_of_another_model(folder):
    rewrite(folder, model="6" * 64)
    assert "belongs to another model" in refusal(folder)


def test_no_manifest(folder):
    (folder / MANIFEST).unlink()
    assert "is no export: it has no manifest.json" in refusal(folder)


def test_a_truncated_manifest(folder):
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: len(text) // 2])
    assert "cannot be read as JSON" in refusal(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"graphs": []},
        {"graphs": {"denoise_audio": {"file": GRAPH.file}}},
        {"graphs": {"denoise_audio": None}},
        {"format": "tflite"},
        {"precision": "int4"},
        {"proofs": [{"runtime": "onnxruntime"}]},
        {"sha256": ["denoise_audio.onnx"]},
        {"sha256": {"../outside": "0"}},
        {"versions": []},
        {"unheard_of": 1},
    ],
    ids=str,
)
def test_manifests_that_say_something_else(folder, changes):
    rewrite(folder, **changes)
    assert "is damaged" in refusal(folder)


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just([]) | st.just({}) | st.just(["x"])


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_manifest_that_was_tampered_with_is_read_or_refused(folder, data):
    """With any one value replaced: the error is never another than the sentence."""
    text = (folder / MANIFEST).read_text()
    values = json.loads(text)
    within = values
    while True:
        key = data.draw(st.sampled_from(sorted(within) if isinstance(within, dict) else range(len(within))))
        if not (isinstance(within[key], (dict, list)) and within[key] and data.draw(st.booleans())):
            break
        within = within[key]
    within[key] = data.draw(VALUES)
    try:
        (folder / MANIFEST).write_text(json.dumps(values))
        with suppress(ValueError):
            Export.read(folder, MODEL).check()
    finally:
        (folder / MANIFEST).write_text(text)


def test_a_graph_without_a_checksum(folder):
    """What is not checked is not run."""
    values = json.loads((folder / MANIFEST).read_text())
    values["graphs"]["denoise_audio"]["file"] = "stranger.onnx"
    (folder / MANIFEST).write_text(json.dumps(values))
    (folder / "stranger.onnx").write_bytes(b"")
    assert "lists no checksum of stranger.onnx" in refusal(folder)


def test_a_proof_replaces_the_one_before(folder):
    export = Export.read(folder, MODEL)
    other = dataclasses.replace(RESULT, runtime="openvino")
    again = dataclasses.replace(RESULT, version="1.32.0")
    elsewhere = dataclasses.replace(RESULT, processor="another CPU")
    for result in (RESULT, other, elsewhere, again):
        export = export.with_result(result)
    assert export.results == (other, elsewhere, again)
    assert export.find_result("onnxruntime", "cpu", "float32", "a CPU") == again
    assert export.find_result("onnxruntime", "cpu", "float32", "another CPU") == elsewhere
    assert export.find_result("onnxruntime", "cuda", "float32", "a CPU") is None
    assert export.other_processors("onnxruntime", "cpu", "float32", "a CPU") == ["another CPU"]


def test_what_older_versions_found_was_found_on_no_known_processor(folder):
    """Their manifests do not name it."""
    values = json.loads((folder / MANIFEST).read_text())
    del values["proofs"][0]["processor"]
    rewrite(folder, **values)
    export = Export.read(folder, MODEL)
    assert export.find_result("onnxruntime", "cpu", "float32", "a CPU") is None
    assert export.other_processors("onnxruntime", "cpu", "float32", "a CPU") == [""]


@pytest.mark.parametrize(
    ("error", "within"), [(0.0, True), (1e-4, True), (1.1e-4, False), (float("nan"), False), (None, False)]
)
def test_errors_within_the_bound(error, within):
    result = dataclasses.replace(RESULT, errors={"denoise_audio": error})
    assert result.within_bound(["denoise_audio"]) == within
    assert not result.within_bound(["denoise_audio", "never measured"])


def test_speed():
    assert RESULT.speedup() == 2
    assert RESULT.speedup("video_decoder") == 0


@given(axis=st.builds(Axis, st.integers(0, 9), st.none() | st.integers(9, 40), st.just(9), st.integers(1, 4)))
def test_lengths_of_an_axis(axis):
    most = 60 if axis.most is None else axis.most
    assert {n for n in range(61) if axis.allows(n)} == set(range(axis.least, most + 1, axis.step))


@pytest.mark.parametrize(
    ("rows", "shape", "taken"),
    [
        (1, (1, 3000, 5), True),
        (1, (1, 3, 5), False),
        (1, (1, 3002, 5), False),
        (0, (0, 2, 5), False),
        (1, (1, 2, 6), False),
    ],
)
def test_inputs_that_a_graph_takes(rows, shape, taken):
    assert GRAPH.accepts({"z": shape, "context_of_row": (rows,)}) == taken


def test_places(tmp_path, monkeypatch):
    """The package's own exports come before those of the cache."""
    monkeypatch.setenv("SYNCFLOW_CACHE", str(tmp_path / "cache"))
    package = tmp_path / "model"
    locations = ExportLocations(package, MODEL)
    assert cache_folder() == tmp_path / "cache"
    assert locations.find("onnx", "cpu", "float32") is None and locations.all() == []
    in_cache = written(tmp_path / "cache" / MODEL / "onnx").path
    assert locations.find("onnx", "cpu", "float32") == in_cache
    in_package = written(package / "exports" / "onnx").path
    compiled = written(package / "exports" / "aoti" / "cpu-bfloat16").path
    assert locations.find("onnx", "cuda", "float32") == in_package
    assert locations.all() == [in_package, compiled]
    assert ExportLocations(None, "").all() == []


def test_every_export_has_a_folder_of_its_own():
    assert folder_name("onnx", "cpu", "float32") == folder_name("onnx", "cuda", "float32") == "onnx"
    assert folder_name("aoti", "cuda", "bfloat16") == "aoti/cuda-bfloat16"
