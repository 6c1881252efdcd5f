"""Small models of every bridge, exported as ONNX once for all tests."""

from __future__ import annotations

import dataclasses
import os
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from syncflow.engine.components import Components
from syncflow.engine.config import ModelConfig
from syncflow.engine.engine import bundled_model
from syncflow.engine.exports import Export
from syncflow.export.writing import write_export

from ..engine.plain import CONFIG, SEQUENCE, randomised
from ..library_caches import register_onnx_operations_once

register_onnx_operations_once()

BRIDGES = {
    "adaptor": CONFIG.replace(depth=1),
    "audio_rope": CONFIG.replace(bridge="audio_rope", first_block=1),
    "global_local": CONFIG.replace(depth=1, bridge="global_local", audio_text=True),
}


@pytest.fixture(scope="session")
def bundled() -> Components:
    """The parts of the bundled model."""
    return Components.load(bundled_model())


@pytest.fixture(scope="session")
def models(bundled: Components) -> dict[str, Components]:
    """A small random d-DiT of every bridge, beside codecs that do not fit it, under a made-up hash."""
    return {
        name: dataclasses.replace(
            bundled, config=ModelConfig(sequence=SEQUENCE, ddit=config), ddit=randomised(config), digest=f"{i}" * 64
        )
        for i, (name, config) in enumerate(BRIDGES.items())
    }


@pytest.fixture(scope="session")
def exports(models: dict[str, Components], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Export]:
    """The ONNX graphs of the small models; processes that ask for them at the same time share the work."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    found: dict[str, Export] = {}
    for timeout in (0, -1):  # those that no other process writes at the moment, and then the rest
        for name in models.keys() - found.keys():
            with suppress(Timeout), FileLock(folder / f"{name}.lock", timeout=timeout):
                found[name] = _written(models[name], folder / "exports" / name)
    return found


def _written(parts: Components, folder: Path) -> Export:
    there = (folder / "onnx").exists()
    return Export.read(folder / "onnx", parts.digest) if there else write_export(parts, folder, "onnx", codecs=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs exported models is slow."""
    for item in items:
        if "exports" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
