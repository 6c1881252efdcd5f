"""Small models of every bridge, exported as ONNX once for all tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from syncflow.engine.components import Components
from syncflow.engine.config import ModelConfig
from syncflow.engine.engine import bundled_model
from syncflow.engine.exports import Export
from syncflow.export.writing import write_export

from ..engine.plain import CONFIG, SEQUENCE, randomised

BRIDGES = {
    "adaptor": CONFIG,
    "audio_rope": CONFIG.replace(bridge="audio_rope", first_block=1),
    "global_local": CONFIG.replace(bridge="global_local", audio_text=True),
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
    """The ONNX graphs of the small models."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    torch.manual_seed(0)
    folder: Path = tmp_path_factory.mktemp("exports")
    return {name: write_export(parts, folder / name, "onnx", codecs=False) for name, parts in models.items()}
