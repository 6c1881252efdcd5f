"""syncflow: joint audio-video diffusion transformers, from training to embedded inference.

The public face. Everything heavy (torch, codecs, media) is imported on first use: ``import syncflow`` stays cheap.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from .engine.config import ModelConfig, SequenceConfig
from .engine.presets import preset
from .engine.types import Clip, Request

if TYPE_CHECKING:
    from .engine.batching import Cancelled, Closed, Expired, Full, Handle, Limits, Policy
    from .engine.engine import Engine
    from .engine.media import load_clip, probe

# PyTorch's idle threads spin for milliseconds before they sleep, and take a core from a process beside this one. Read
# when PyTorch is loaded: without effect where that came first.
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

__version__ = "0.1.0"
__all__ = [
    "Cancelled",
    "Clip",
    "Closed",
    "Engine",
    "Expired",
    "Full",
    "Handle",
    "Limits",
    "ModelConfig",
    "Policy",
    "Request",
    "SequenceConfig",
    "__version__",
    "load_clip",
    "preset",
    "probe",
]
_ON_FIRST_USE = {
    "Engine": ".engine.engine",
    **dict.fromkeys(("Cancelled", "Closed", "Expired", "Full", "Handle", "Limits", "Policy"), ".engine.batching"),
    **dict.fromkeys(("load_clip", "probe"), ".engine.media"),
}


def __getattr__(name: str) -> object:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_ON_FIRST_USE[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
