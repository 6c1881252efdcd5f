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
from syncflow.engine.types import MAX_SEED, MAX_STEPS


def clip(frames=8, fps=16.0):
    return Clip(np.zeros((frames, 16, 16, 3), np.uint8), np.zeros(100, np.float32), fps, 48_000)


@given(
    prompt=st.text(min_size=1).filter(str.strip),
    seed=st.integers(0, MAX_SEED),
    steps=st.none() | st.integers(1, MAX_STEPS),
    guidance=st.none() | st.floats(-100, 100),
    shift=st.none() | st.floats(0.01, 100),
    video_lead=st.none() | st.floats(0, 1),
)
def test_requests_that_are_taken(prompt, seed, steps, guidance, shift, video_lead):
    request = Request(prompt, seed=seed, steps=steps, guidance=guidance, shift=shift, video_lead=video_lead)
    assert (request.prompt, request.seed, request.steps) == (prompt, seed, steps)


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


def test_saving_is_the_media_rooms_work(monkeypatch):
    saved = []
    monkeypatch.setattr(media, "save_clip", lambda value, path: saved.append((value, path)) or path)
    made = clip()
    assert made.save("out.mp4") == "out.mp4"
    assert saved == [(made, "out.mp4")]
