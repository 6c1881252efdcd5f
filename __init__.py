"""syncflow: joint audio-video diffusion transformers, from training to embedded inference.

The public face. Everything heavy (torch, codecs, media) is imported on first use: ``import syncflow`` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .engine.config import ModelConfig, SequenceConfig, preset
from .engine.types import Clip, Request

if TYPE_CHECKING:
    from .engine.engine import Engine

__version__ = "0.1.0"
__all__ = ["Clip", "Engine", "ModelConfig", "Request", "SequenceConfig", "__version__", "preset"]


def __getattr__(name: str) -> object:
    if name == "Engine":
        return import_module(".engine.engine", __name__).Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
