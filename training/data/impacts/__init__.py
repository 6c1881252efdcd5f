"""Rendered training data: objects that strike a floor, a wall or each other, with the sound of every impact."""

from __future__ import annotations

from .captions import caption, sample_caption
from .dataset import render_clip, render_impacts, sample_clip
from .kinds import KINDS, Kind, sample_scene
from .looks import COLORS, Look, Split, looks
from .render import PALETTE
from .scene import Event, Format, Scene

__all__ = [
    "COLORS",
    "KINDS",
    "PALETTE",
    "Event",
    "Format",
    "Kind",
    "Look",
    "Scene",
    "Split",
    "caption",
    "looks",
    "render_clip",
    "render_impacts",
    "sample_caption",
    "sample_clip",
    "sample_scene",
]
