"""The package on disk: checked whole, refused with one sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from syncflow import preset
from syncflow.engine.package import COMPONENTS, INDEX, MANIFEST, SCHEMA, open_package, write_manifest

CONFIG = preset("syncflow-tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package whose components hold a config.json and some bytes."""
    path = tmp_path / "model"
    for component in COMPONENTS:
        (path / component).mkdir(parents=True)
        (path / component / "config.json").write_text(json.dumps({"of": component}))
        (path / component / "weights.safetensors").write_bytes(component.encode() * 100)
    write_manifest(path, CONFIG)
    return path


def rewrite(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        open_package(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_round_trip(folder):
    package = open_package(folder)
    assert package.config == CONFIG
    assert package == write_manifest(folder, CONFIG)
    assert package.component("ddit") == folder / "ddit"
    assert open_package(str(folder)) == package


def test_the_index_is_that_of_diffusers(folder):
    index = json.loads((folder / INDEX).read_text())
    assert index["_class_name"] == "SyncFlowPipeline"
    assert all(len(index[component]) == 2 for component in COMPONENTS)


def test_every_file_is_in_the_manifest(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    files = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    assert manifest["sha256"].keys() == files - {MANIFEST}
    assert manifest["schema"] == SCHEMA


def test_the_hash_changes_with_any_file_and_not_with_the_place(folder, tmp_path):
    digest = open_package(folder).digest
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert open_package(tmp_path / "elsewhere").digest == digest
    (folder / "ddit" / "weights.safetensors").write_bytes(b"other")
    assert write_manifest(folder, CONFIG).digest != digest


def test_missing_folder(tmp_path):
    assert "there is no model folder" in refusal(tmp_path / "nowhere")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model").write_text("x")
    assert "there is no model folder" in refusal(tmp_path / "model")


def test_foreign_folders(tmp_path, folder):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    assert f"is no model package: it has no {MANIFEST}" in refusal(foreign)
    shutil.copy(folder / MANIFEST, foreign)
    assert f"is no model package: it has no {INDEX}" in refusal(foreign)
    run = tmp_path / "run"
    shutil.copytree(folder, run / "model")
    assert refusal(run) == f"{run} is the folder of a training run; its model is {run / 'model'}"


@pytest.mark.parametrize("name", [MANIFEST, INDEX])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]"], ids=["empty", "cut", "binary", "list"])
def test_json_that_is_none(folder, name, content):
    (folder / name).write_bytes(content)
    assert name in refusal(folder)


@pytest.mark.parametrize("schema", [SCHEMA + 1, 0, "1", None])
def test_other_schemas(folder, schema):
    rewrite(folder / MANIFEST, schema=schema)
    assert f"has package schema {schema}; this version reads schema {SCHEMA}" in refusal(folder)


@pytest.mark.parametrize("checksums", [{}, [], None, {"ddit/config.json": "00"}])
def test_manifests_without_checksums(folder, checksums):
    rewrite(folder / MANIFEST, sha256=checksums)
    assert "lists no checksums; the package is damaged" in refusal(folder)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_file_that_is_gone(folder, component):
    (folder / component / "weights.safetensors").unlink()
    assert f"lacks {component}/weights.safetensors; the package is incomplete" in refusal(folder)


@pytest.mark.parametrize("name", [INDEX, *(f"{component}/weights.safetensors" for component in COMPONENTS)])
def test_a_file_with_one_bit_changed(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert Path(name).name in refusal(folder)


def test_a_truncated_file(folder):
    file = folder / "ddit" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "does not match its checksum; the package is damaged" in refusal(folder)


@pytest.mark.parametrize("name", ["text_encoder/tokenizer.json", "tokenizer/spiece.model", "ddit/deep/down.bin"])
def test_a_file_that_nobody_listed(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    assert f"{folder / name} is not listed in manifest.json; the package was changed" in refusal(folder)


def test_exports_and_notes_may_be_added(folder):
    (folder / "exports" / "onnxruntime").mkdir(parents=True)
    (folder / "exports" / "onnxruntime" / "denoise.onnx").write_bytes(b"graph")
    (folder / "README.md").write_text("what this model is")
    assert open_package(folder).config == CONFIG


@pytest.mark.parametrize(
    "name",
    [".DS_Store", "ddit/.DS_Store", "ddit/._weights.safetensors", "video_vae/Thumbs.db", "audio_vae/desktop.ini",
     ".git/HEAD", ".git/objects/ab/cd", ".cache/huggingface/x.lock", "ddit/__MACOSX/x", "text_encoder/.x.swp"],
)  # fmt: skip
def test_what_programs_leave_behind_is_not_looked_at(folder, name):
    package = open_package(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"left")
    assert open_package(folder) == package == write_manifest(folder, CONFIG)


@pytest.mark.parametrize(
    "name",
    ["../secret", "ddit/../../secret", "/etc/passwd", "ddit//x", "./x", "", "C:/x", "ddit\\x", "a\0b", "ddit/.."],
)
def test_a_manifest_that_names_files_elsewhere(folder, name):
    (folder.parent / "secret").write_text("x")
    checksums = json.loads((folder / MANIFEST).read_text())["sha256"]
    digest = hashlib.sha256(b"x").hexdigest()
    rewrite(folder / MANIFEST, sha256={name: digest, **checksums})
    assert "it must list files of its own folder" in refusal(folder)


@pytest.mark.parametrize("name", ["x" * 300, "ddit/\ud800", "ddit"], ids=["long", "surrogate", "folder"])
def test_a_manifest_that_names_what_cannot_be_a_file(folder, name):
    checksums = json.loads((folder / MANIFEST).read_text())["sha256"]
    rewrite(folder / MANIFEST, sha256={**checksums, name: "00"})
    assert "the package is incomplete" in refusal(folder)


@pytest.mark.parametrize("name", [MANIFEST, INDEX])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "it is nested too deeply"),
        ('{"schema": NaN}', "NaN is no finite number"),
        ('{"schema": -1e999}', "-1e999 is no finite number"),
        ('{"schema": ' + "1" * 5000 + "}", "integer string conversion"),
    ],
    ids=["deep", "nan", "overflow", "digits"],
)
def test_json_of_unreasonable_values(folder, name, content, message):
    (folder / name).write_text(content)
    assert message in refusal(folder)


def test_a_manifest_that_leaves_a_component_out(folder):
    shutil.rmtree(folder / "audio_vae")
    write_manifest(folder, CONFIG)
    assert "lists no audio_vae/config.json; the package is incomplete" in refusal(folder)


@pytest.mark.parametrize("settings", [None, 5, {"no_such": 1}, {"sequence": {"seconds": "long"}}, {"ddit": []}])
def test_configurations_that_are_none(folder, settings):
    """Checksums that agree do not make a foreign configuration readable."""
    rewrite(folder / INDEX, syncflow=settings)
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST)
    checksums = {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    rewrite(folder / MANIFEST, sha256=checksums)
    with pytest.raises(ValueError) as caught:
        open_package(folder)
    assert "\n" not in str(caught.value)
