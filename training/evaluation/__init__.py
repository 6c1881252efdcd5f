"""Evaluation of clips: visible events, audio onsets, their sync, and the colour that the prompt names."""

from __future__ import annotations

from .blind import BlindBaselines, blind_baselines
from .color import object_color, prompt_color
from .contact_sheet import contact_sheet
from .evaluate import GenerationScores, SoundScores, VideoScores, evaluate_a2v, evaluate_generation, evaluate_v2a
from .events import video_events
from .inspection import Inspection, inspect_clip
from .lag import sound_lag
from .matching import Matches, av_align, av_align_any, cycle_sync, match_times, pool
from .motion import motion_energy, motion_peaks
from .onsets import audio_onsets
from .report import draw_report

__all__ = [
    "BlindBaselines",
    "GenerationScores",
    "Inspection",
    "Matches",
    "SoundScores",
    "VideoScores",
    "audio_onsets",
    "av_align",
    "av_align_any",
    "blind_baselines",
    "contact_sheet",
    "cycle_sync",
    "draw_report",
    "evaluate_a2v",
    "evaluate_generation",
    "evaluate_v2a",
    "inspect_clip",
    "match_times",
    "motion_energy",
    "motion_peaks",
    "object_color",
    "pool",
    "prompt_color",
    "sound_lag",
    "video_events",
]
