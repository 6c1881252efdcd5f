"""Offline batch generation: a file of prompts in, a folder of clips and a manifest out, on one machine or on many.

Prompt file -> entries -> those that are left to do, sorted by shape -> a :class:`ClipWriter` in this process or in
each Ray actor -> a record of every clip in the manifest.
"""

from __future__ import annotations

from .cluster import ClusterOptions
from .manifest import Record
from .outputs import Outputs
from .plan import Plan, Shard
from .prompts import Entry, read_entries
from .run import generate_entries
from .worker import ClipWriter, EngineSettings

__all__ = [
    "ClipWriter",
    "ClusterOptions",
    "EngineSettings",
    "Entry",
    "Outputs",
    "Plan",
    "Record",
    "Shard",
    "generate_entries",
    "read_entries",
]
