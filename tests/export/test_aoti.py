"""Compiled graphs. Compiling one takes half a minute of a processor, so there is one, of one layer."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from syncflow.engine.config import ModelConfig
from syncflow.engine.exports import Export
from syncflow.engine.package import sha256
from syncflow.engine.runtime import aoti
from syncflow.export import writing
from syncflow.export.verification import graph_error

from ..engine.plain import CONFIG, SEQUENCE, randomised

CPU = torch.device("cpu")
SMALL = CONFIG.replace(depth=1)


@pytest.fixture(scope="module")
def parts(bundled):
    return dataclasses.replace(
        bundled, config=ModelConfig(sequence=SEQUENCE, ddit=SMALL), ddit=randomised(SMALL), digest="a" * 64
    )


@pytest.fixture(scope="module")
def graph(parts):
    (found,) = (g for g in writing.graphs_of(parts, "cpu", codecs=False) if g.name == "denoise_audio")
    return found


@pytest.fixture(scope="module")
def export(parts, graph, tmp_path_factory) -> Export:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("there is no C++ compiler")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(writing, "graphs_of", lambda *_, **__: [graph])
        return writing.write_export(parts, tmp_path_factory.mktemp("compiled"), "aoti")


def test_a_compiled_graph_computes_what_its_module_does(export, graph):
    """With one row, the smallest lengths, lengths other than the example's, and rows that see nothing."""
    spec = export.graphs["denoise_audio"]
    assert spec.outputs["velocity"].shape == ("R", "A", 5)
    assert graph_error(aoti.sessions(export, CPU), graph, spec) <= 1e-5
    assert export.machine == aoti.machine(CPU)


def test_machine_code_is_not_loaded_from_a_changed_file(export, tmp_path):
    shutil.copytree(export.path, tmp_path / "copy")
    file = tmp_path / "copy" / "denoise_audio.pt2"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="does not match its checksum"):
        aoti.sessions(Export.read(tmp_path / "copy", export.model), CPU)
    assert sha256(export.path / file.name) == export.checksums[file.name]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"versions": {"torch": "2.0.0"}}, "was compiled by torch 2.0.0"),
        ({"machine": "sm_90"}, "was compiled for sm_90, and this is"),
    ],
    ids=str,
)
def test_code_for_another_torch_or_machine(export, changes, said):
    with pytest.raises(ValueError, match=said):
        aoti.sessions(dataclasses.replace(export, **changes), CPU)
