"""Exports without graphs, results of their verification, and libraries that load nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from syncflow.engine.exports import CONSTANTS, STEP, Export, GraphSpec, VerificationResult
from syncflow.engine.package import sha256
from syncflow.engine.runtime import aoti, onnxruntime, openvino
from syncflow.engine.runtime.exported import Sessions, graph_names
from syncflow.engine.runtime.selection import libraries
from syncflow.engine.runtime.selection.processor import processor

from ..plain import CONFIG

MODEL = "7" * 64
GRAPHS = graph_names(CONFIG)
CODECS = ("text_encoder", "video_decoder")
SECONDS = {"onnxruntime": 0.02, "openvino": 0.01, "aoti": 0.03}
TORCH = 0.04
HERE = str(processor())


def stand_in(patch: pytest.MonkeyPatch, cache: Path) -> None:
    """Libraries of version 1 that load nothing, and an empty cache."""
    patch.setenv("SYNCFLOW_CACHE", str(cache))
    patch.setattr(libraries, "version_of", lambda runtime: "1")
    for module in (aoti, onnxruntime, openvino):
        patch.setattr(module, "sessions", lambda export, *_, **__: Sessions(export, None, {"threads": 2}))


def result(runtime: str, **changes: Any) -> VerificationResult:
    """What was found of a runtime here: right everywhere, one codec slower and one faster."""
    errors = dict.fromkeys((*GRAPHS, *CODECS), 1e-6)
    seconds = {STEP: [SECONDS[runtime], TORCH], "text_encoder": [2.0, 1.0], "video_decoder": [1.0, 2.0]}
    return dataclasses.replace(
        VerificationResult(runtime, "1", "cpu", "float32", errors, 1e-4, seconds, HERE), **changes
    )


def exported(folder: Path, *results: VerificationResult, format: str = "onnx") -> Path:
    """An export with what was found of it, in a package. -> the package."""
    path = folder / "exports" / ("onnx" if format == "onnx" else "aoti/cpu")
    path.mkdir(parents=True)
    for name in ("graph", CONSTANTS):
        (path / name).write_bytes(b"x")
    checksums = {file.name: sha256(file) for file in path.iterdir()}
    graphs = {name: GraphSpec("graph", {}, {}, {}) for name in (*GRAPHS, *CODECS)}
    device = "any" if format == "onnx" else "cpu"
    Export(path, MODEL, format, device, "float32", graphs, {}, checksums, results=results).write()
    return folder
