"""Clips to files and back, by PyAV."""

from __future__ import annotations

from .conform import conform, resample
from .reading import MediaInfo, load_audio, load_clip, load_picture, probe
from .writing import save_clip, stream_clip

__all__ = [
    "MediaInfo",
    "conform",
    "load_audio",
    "load_clip",
    "load_picture",
    "probe",
    "resample",
    "save_clip",
    "stream_clip",
]
