"""A model compiled by AOTInductor, from the command line: right, the same clips, and refused where it does not belong.

Compiling a graph takes half a minute of a processor. So one model of one layer is compiled for all that is promised of
compiled graphs, with the wrappers around its kernels unoptimised. With ``SYNCFLOW_EVERY_EXPORT`` set, libsyncflow also
computes compiled models of the other papers, and the bundled model.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from syncflow.engine.components import Components
from syncflow.engine.engine import bundled_model
from syncflow.engine.exports import Export
from syncflow.engine.package import sha256
from syncflow.engine.runtime import aoti
from syncflow.engine.runtime.exported import graph_names
from syncflow.export.verification import graph_error
from syncflow.export.writing import graphs_of

from ..native.parity import PROGRAM, has_backend
from .exporting import Exported, check_auto, check_clips, check_cpp, check_files, export, small

CPU = torch.device("cpu")

pytestmark = pytest.mark.slow

NO_BACKEND = "libsyncflow is built without AOTInductor; docs/cpp.md says how to build it"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    return compiled_model(small("syncflow-tiny"), tmp_path_factory.mktemp("compiled") / "model")


def compiled_model(parts: Components, package: Path) -> Exported:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("there is no C++ compiler")
    with torch._inductor.config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
        return export(parts, package, "aoti")


@pytest.fixture(scope="module")
def parts(exported) -> Components:
    return Components.load(exported.package)


@pytest.fixture(scope="module")
def compiled(exported, parts) -> Export:
    return Export.read(exported.package / "exports" / "aoti" / "cpu", parts.digest)


def test_compiled_graphs_compute_what_their_modules_do(exported, parts, compiled):
    """With one row, the smallest lengths, lengths other than the example's, and rows that read no context."""
    (result,) = exported.results
    assert result["runtime"] == "aoti"
    assert result["errors"].keys() == set(graph_names(parts.config.ddit))
    assert result["seconds"]["step"][0] > 0
    assert compiled.machine == aoti.machine(CPU)
    assert compiled.graphs["denoise_audio"].outputs["velocity"].shape == ("R", "A", parts.config.ddit.audio_channels)
    sessions = aoti.sessions(compiled, CPU)
    for graph in graphs_of(parts, "cpu", codecs=False):
        assert graph_error(sessions, graph, compiled.graphs[graph.name]) <= 1e-5, graph.name


@pytest.mark.parametrize(("count", "clip"), [(2, {"seconds": 0.5}), (1, {"seconds": 1.0, "width": 96})], ids=str)
def test_the_same_seed_is_the_same_clip(exported, count, clip):
    check_clips(exported, count, **clip)


def test_libsyncflow_computes_the_same(exported, tmp_path):
    check_cpp(exported, tmp_path)


@pytest.mark.skipif("SYNCFLOW_EVERY_EXPORT" not in os.environ, reason="SYNCFLOW_EVERY_EXPORT is not set")
@pytest.mark.parametrize("name", ["syncphony-tiny", "harmony-tiny", "bundled"])
def test_libsyncflow_computes_every_model(name, tmp_path):
    if not has_backend("aoti"):
        pytest.skip(NO_BACKEND)
    parts = Components.load(bundled_model()) if name == "bundled" else small(name)
    check_cpp(compiled_model(parts, tmp_path / "model"), tmp_path)


def test_the_same_seed_is_the_same_file(exported, tmp_path):
    check_files(exported, tmp_path)


def test_auto_times_what_was_verified(exported, monkeypatch):
    check_auto(exported, monkeypatch)


def test_machine_code_is_not_loaded_from_a_changed_file(compiled, tmp_path):
    shutil.copytree(compiled.path, tmp_path / "copy")
    file = tmp_path / "copy" / "denoise_audio.pt2"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="does not match its checksum"):
        aoti.sessions(Export.read(tmp_path / "copy", compiled.model), CPU)
    assert sha256(compiled.path / file.name) == compiled.checksums[file.name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"versions": {"torch": "2.0.0"}}, "was compiled by torch 2.0.0"),
        ({"machine": "sm_90"}, "was compiled for sm_90, and this is"),
    ],
    ids=str,
)
def test_code_for_another_torch_or_machine(compiled, changes, message):
    with pytest.raises(ValueError, match=message):
        aoti.sessions(dataclasses.replace(compiled, **changes), CPU)


def test_libsyncflow_refuses_what_is_not_right(exported, tmp_path):
    if not has_backend("aoti"):
        pytest.skip(NO_BACKEND)
    package = tmp_path / "model"
    shutil.copytree(exported.package, package)
    graphs = package / "exports" / "aoti" / "cpu"
    manifest = graphs / "manifest.json"
    right = json.loads(manifest.read_text())
    (result,) = right["proofs"]

    def refusal() -> str:
        run = subprocess.run([PROGRAM, "clip", package, "{}", "aoti"], capture_output=True, text=True)
        assert run.returncode == 1
        return run.stderr

    for changes, message in (
        ({"schema": 1}, "export schema 1, and this version reads schema 2"),
        ({"model": "0" * 64}, "belongs to another model"),
        ({"proofs": []}, "were not verified in aoti"),
        ({"proofs": [result | {"errors": result["errors"] | {"denoise_audio": 1.0}}]}, "denoise_audio wrong in aoti"),
        ({"graphs": {}}, "it has no prepare_text"),
        ({"versions": {"torch": "2.0.0"}}, "compiled by torch 2.0.0"),
        ({"machine": "sm_90"}, "compiled for sm_90"),
    ):
        manifest.write_text(json.dumps(right | changes))
        assert message in refusal()
    manifest.write_text(json.dumps(right))
    file = graphs / "denoise_audio.pt2"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert "denoise_audio.pt2 does not match its checksum" in refusal()
    shutil.rmtree(graphs)
    assert "there are none in" in refusal()
