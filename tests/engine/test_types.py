"""The values that travel: what a request may be, and what a clip knows of itself."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syncflow import Clip, Request
from syncflow.engine import media
from syncflow.engine.types import MAX_SEED, MAX_STEPS, MAX_TAKES, Latents


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


@pytest.mark.parametrize("prompt", ["", " ", "\n\t"])
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
        ({"seed": "7"}, r"seed is '7'; it must be a whole number from 0"),
        ({"seed": True}, r"seed is True; it must be a whole number from 0"),
        ({"seed": None}, r"seed is None; it must be a whole number from 0"),
        ({"seed": 10**5000}, r"seed is a value of type int; it must be a whole number from 0"),
        ({"steps": np.int64(0)}, r"steps is 0; it must be a whole number from 1 to 1000"),
        ({"steps": True}, r"steps is True; it must be a whole number from 1 to 1000"),
        ({"guidance": "3"}, r"guidance is '3'; it must be a finite number from -100 to 100"),
        ({"guidance": np.float32("nan")}, r"guidance is nan; it must be a finite number"),
        ({"guidance": np.ones(2)}, r"guidance is array\(\[1., 1.\]\); it must be a finite number"),
        ({"sync_cfg_video": [1]}, r"sync_cfg_video is \[1\]; it must be a finite number from -100 to 100"),
        ({"shift": "x"}, r"shift is 'x'; it must be above 0 and at most 100"),
        ({"shift": 10**400}, r"shift is 10*….*; it must be above 0 and at most 100"),
        ({"video_lead": "1"}, r"video_lead is '1'; it must be from 0 to 1"),
        ({"seconds": "2"}, r"seconds is '2'; it must be a number"),
        ({"width": 64.0}, r"width is 64.0; it must be a whole number"),
        ({"height": "64"}, r"height is '64'; it must be a whole number"),
        ({"video": 5}, r"video is 5; it must be a clip or the path of a file"),
        ({"image": b"x.png"}, r"image is b'x.png'; it must be a clip or the path of a file"),
        ({"extend": ""}, r"extend is ''; it must be a clip or the path of a file"),
        ({"audio": "a\0b"}, r"audio is 'a\\x00b'; it must be a clip or the path of a file"),
        ({"reference": np.zeros(5)}, r"reference is array.*; it must be a clip or the path of a file"),
        ({"strength": "x", "video": clip()}, r"strength is 'x'; it must be above 0 and at most 1"),
        ({"negative_prompt": 5}, r"negative_prompt is 5; it must be text"),
        ({"guidance_interval": 0.5}, r"guidance_interval is 0.5; it must be two rising times from 0 to 1"),
        ({"guidance_interval": "ab"}, r"guidance_interval is 'a'; it must be two rising times from 0 to 1"),
        ({"guidance_interval": (0, 0.5, 1)}, r"guidance_interval is \(0, 0.5, 1\); it must be two rising times"),
        ({"guidance_rescale": "x"}, r"guidance_rescale is 'x'; it must be from 0 to 1"),
        ({"branch_interval": 2.0}, r"branch_interval is 2.0; it must be a whole number from 1 to 1000"),
        ({"sound_only": "yes"}, r"sound_only is 'yes'; it must be true or false"),
        ({"sound_only": None}, r"sound_only is None; it must be true or false"),
        ({"takes": "2"}, rf"takes is '2'; it must be a whole number from 1 to {MAX_TAKES}"),
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


@pytest.mark.parametrize("prompt", [None, 5, b"a ball", ["a ball"], "a ball \ud800"], ids=repr)
def test_a_prompt_is_text(prompt):
    with pytest.raises(ValueError, match=r"prompt is .*; it must be text"):
        Request(prompt)


ANYTHING = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
    | st.lists(st.floats(), max_size=3) | st.dictionaries(st.text(), st.none(), max_size=1)
    | st.sampled_from([np.int64(3), np.float32(0.5), np.float64("inf"), np.zeros(2), np.bool_(True), object(), clip])
)  # fmt: skip


@given(name=st.sampled_from([f.name for f in dataclasses.fields(Request)]), value=ANYTHING)
def test_any_value_is_taken_or_refused_in_one_sentence_that_names_it(name, value):
    try:
        request = Request(**{"prompt": "a ball", name: value})
    except ValueError as error:
        message = str(error)
        assert name.replace("negative_prompt", "negative").split("_")[0] in message and "\n" not in message
    else:
        assert type(getattr(request, name)) in (type(None), bool, int, float, str, tuple, dict, Clip, type(Path()))


def test_scalars_of_numpy_become_those_of_python():
    request = Request(
        np.str_("a ball"),
        seed=np.random.default_rng(0).integers(100),
        guidance=np.float32(2),
        steps=np.uint8(3),
        seconds=np.float16(0.5),
        width=np.int32(64),
        guidance_interval=np.array([0.25, 1.0]),
        sound_only=np.bool_(False),
    )
    plain = {"guidance": 2.0, "steps": 3, "seconds": 0.5, "width": 64, "guidance_interval": (0.25, 1.0)}
    assert request == Request("a ball", seed=request.seed, **plain)
    values = {name: value for name, value in vars(request).items() if value is not None}
    assert json.loads(json.dumps(values)) == {**values, "guidance_interval": [0.25, 1.0]}


def test_media_may_be_named_by_text():
    assert Request("", video="known.mp4").video == Path("known.mp4")


def test_a_request_with_adapters_has_a_hash():
    assert len({Request("a", adapters="x"), Request("a", adapters={"x": 1.0}), Request("a", adapters="y")}) == 2


def test_clips_are_equal_when_all_of_them_is():
    first, second = clip(), clip()
    assert first == second and first is not second
    assert second in [first] and hash(first) == hash(second)
    assert len({first, second, Request("", video=first), Request("", video=second)}) == 2
    others = [
        clip(frames=9),
        clip(fps=25.0),
        dataclasses.replace(first, frames=first.frames + 1),
        dataclasses.replace(first, waveform=first.waveform + 1),
        dataclasses.replace(first, sample_rate=44_100),
        dataclasses.replace(first, provenance={"seed": 1}),
        dataclasses.replace(first, latents=np.zeros((1, 2, 2, 2), np.float32)),
    ]
    for other in others:
        assert first != other and other == other
    assert first not in others and first != "a clip"


def test_values_of_tensors_are_compared_by_identity():
    latents = Latents(torch.zeros(2), torch.zeros(3))
    assert latents == latents and latents != Latents(torch.zeros(2), torch.zeros(3))
    assert len({latents}) == 1


def test_a_request_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Request("a ball").seed = 3  # type: ignore[misc]


def test_seconds_of_a_clip_are_those_of_its_video():
    assert clip(frames=24, fps=16.0).seconds == 1.5


def test_seconds_of_a_sound_alone_are_its_own():
    assert Clip(np.zeros((0, 16, 16, 3), np.uint8), np.zeros(12_000, np.float32), 16.0, 48_000).seconds == 0.25


def test_saving_calls_the_media_package(monkeypatch):
    saved = []
    monkeypatch.setattr(media, "save_clip", lambda *args, **options: saved.append((*args, options)) or args[1])
    made = clip()
    assert made.save("out.mp4") == made.save("out.mp4", latents=True) == "out.mp4"
    assert saved == [(made, "out.mp4", {"latents": False}), (made, "out.mp4", {"latents": True})]
