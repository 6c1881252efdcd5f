"""Data: rendered impacts, folders of captioned clips, cached latents."""

from __future__ import annotations

from .clips import ClipEntry, ClipFolder, ClipSample, UnreadableClip, find_clips
from .impacts import render_impacts

__all__ = ["ClipEntry", "ClipFolder", "ClipSample", "UnreadableClip", "find_clips", "render_impacts"]
