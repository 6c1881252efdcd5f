"""Codecs and text: adapters over diffusers and transformers classes, imported on first use.

:class:`VideoCodec` frames <-> video latents, :class:`AudioCodec` waveform <-> audio latents, :class:`TextEncoder`
prompts -> text states.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .audio import AudioCodec
    from .text import TextEncoder
    from .video import VideoCodec

__all__ = ["AudioCodec", "TextEncoder", "VideoCodec"]

_HOME = {"AudioCodec": ".audio", "TextEncoder": ".text", "VideoCodec": ".video"}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
