"""Rendered training data: balls that fall, bounce and strike a floor, with the sound of every impact."""

from __future__ import annotations

from .captions import caption, sample_caption
from .dataset import render_clip, render_impacts, sample_clip
from .render import PALETTE
from .scene import COLORS, Event, Look, Scene, Split, looks, sample_scene

__all__ = [
    "COLORS",
    "PALETTE",
    "Event",
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
