"""The values that travel: what a request may be, and what a clip knows of itself."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow import Clip, Request
from syncflow.engine import media
from syncflow.engine.types import MAX_SEED, MAX_STEPS, MAX_TAKES


def clip(frames=8, fps=16.0):
    return Clip(np.zeros((frames, 16, 16, 3), np.uint8), np.zeros(100, np.float32), fps, 48_000)


@given(
    prompt=st.text(min_size=1).filter(str.strip),
    seed=st.integers(0, MAX_SEED),
    steps=st.none() | st.integers(1, MAX_STEPS),
    guidance=st.none() | st.floats(-100, 100),
    shift=st.none() | st.floats(0.01, 100),
    video_lead=st.none() | st.floats(0, 1),
    audio_seed=st.none() | st.integers(0, MAX_SEED),
    takes=st.integers(1, MAX_TAKES),
)
def test_requests_that_are_taken(prompt, **settings):
    request = Request(prompt, **settings)
    assert request.prompt == prompt
    assert {name: getattr(request, name) for name in settings} == settings


@pytest.mark.parametrize("prompt", ["", " ", "\n\t", None, 5])
def test_a_prompt_must_say_something(prompt):
    with pytest.raises(ValueError, match="the prompt is empty; say in a sentence what the clip shows"):
        Request(prompt)


def test_a_known_video_needs_no_prompt():
    assert Request("", video=clip()).prompt == ""
    assert Request("", video=Path("known.mp4")).prompt == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, rf"seed is -1; it must be a whole number from 0 to {MAX_SEED}"),
        ({"seed": MAX_SEED + 1}, rf"seed is {MAX_SEED + 1}; it must be a whole number"),
        ({"seed": 0.5}, r"seed is 0.5; it must be a whole number"),
        ({"seed": "7"}, r"seed is 7; it must be a whole number"),
        ({"steps": 0}, r"steps is 0; it must be a whole number from 1 to 1000"),
        ({"steps": -3}, r"steps is -3; it must be a whole number from 1 to 1000"),
        ({"steps": 1001}, r"steps is 1001; it must be a whole number from 1 to 1000"),
        ({"steps": 2.5}, r"steps is 2.5; it must be a whole number from 1 to 1000"),
        ({"guidance": float("nan")}, r"guidance is nan; it must be a finite number from -100 to 100"),
        ({"guidance": float("inf")}, r"guidance is inf; it must be a finite number"),
        ({"guidance": -101.0}, r"guidance is -101.0; it must be a finite number from -100 to 100"),
        ({"sync_guidance": float("nan")}, r"sync_guidance is nan; it must be a finite number"),
        ({"sync_cfg_audio": 101.0}, r"sync_cfg_audio is 101.0; it must be a finite number from -100 to 100"),
        ({"guidance_interval": (0.5, 0.2)}, r"guidance_interval is 0.5 to 0.2; it must be two rising times"),
        ({"guidance_rescale": 1.5}, r"guidance_rescale is 1.5; it must be from 0 to 1"),
        ({"negative_prompt": " "}, r"the negative prompt is empty; leave it out"),
        ({"strength": 0.5}, r"strength says how far to move away from a video; there is none"),
        ({"strength": 0.0, "video": clip()}, r"strength is 0.0; it must be above 0 and at most 1"),
        ({"image": clip(), "extend": clip()}, r"image and extend are given; a clip is made from one of them"),
        ({"shift": 0.0}, r"shift is 0.0; it must be above 0 and at most 100"),
        ({"shift": float("nan")}, r"shift is nan; it must be above 0"),
        ({"shift": float("inf")}, r"shift is inf; it must be above 0"),
        ({"video_lead": -0.1}, r"video_lead is -0.1; it must be from 0 to 1"),
        ({"video_lead": 1.5}, r"video_lead is 1.5; it must be from 0 to 1"),
        ({"video_lead": float("nan")}, r"video_lead is nan; it must be from 0 to 1"),
        ({"audio_seed": -1}, rf"audio_seed is -1; it must be a whole number from 0 to {MAX_SEED}"),
        ({"takes": 0}, rf"takes is 0; it must be a whole number from 1 to {MAX_TAKES}"),
        ({"takes": MAX_TAKES + 1}, rf"takes is {MAX_TAKES + 1}; it must be a whole number"),
        ({"takes": 1.5}, r"takes is 1.5; it must be a whole number"),
        ({"sound_only": True, "video": clip()}, r"sound_only draws a sound without a video; it goes without video"),
        ({"sound_only": True, "audio": clip()}, r"it goes without audio"),
        ({"sound_only": True, "width": 64, "height": 64}, r"it goes without width, height"),
        ({"sound_only": True, "sync_guidance": 2.0}, r"it goes without sync_guidance"),
        ({"sound_only": True, "reference": clip()}, r"it goes without reference"),
    ],
)
def test_requests_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Request("a ball", **settings)


def test_a_request_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Request("a ball").seed = 3  # type: ignore[misc]


def test_seconds_of_a_clip_are_those_of_its_video():
    assert clip(frames=24, fps=16.0).seconds == 1.5


def test_seconds_of_a_sound_alone_are_its_own():
    assert Clip(np.zeros((0, 16, 16, 3), np.uint8), np.zeros(12_000, np.float32), 16.0, 48_000).seconds == 0.25


def test_saving_is_the_media_rooms_work(monkeypatch):
    saved = []
    monkeypatch.setattr(media, "save_clip", lambda *args, **options: saved.append((*args, options)) or args[1])
    made = clip()
    assert made.save("out.mp4") == made.save("out.mp4", latents=True) == "out.mp4"
    assert saved == [(made, "out.mp4", {"latents": False}), (made, "out.mp4", {"latents": True})]
