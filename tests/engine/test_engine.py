"""The engine: clips of mixed shapes, takes of a sound, retakes, sounds alone and reference sounds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from syncflow import Clip, Engine, Request, preset
from syncflow.engine.components import Components
from syncflow.engine.media import load_audio, load_clip
from syncflow.engine.model import DDiT
from syncflow.engine.types import MAX_SEED

PROMPT = "a large red rubber ball bounces on a wooden floor"
OTHER = "a small blue glass ball falls on a stone floor"
SHORT: dict[str, Any] = {"steps": 2, "seconds": 0.5}
CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained(device="cpu")


def random_model(engine: Engine, name: str, **changes: object) -> Engine:
    """A preset, two layers deep and untrained, with the codecs and the text encoder of the bundled model."""
    config = preset(name)
    config = config.replace(ddit=config.ddit.replace(depth=2, first_block=min(1, config.ddit.first_block), **changes))
    torch.manual_seed(0)
    ddit = DDiT(config.ddit)
    for parameter in ddit.parameters():
        if parameter.ndim > 1 and not parameter.any():  # what starts at zero would hide all that comes before it
            torch.nn.init.normal_(parameter, std=0.2)
    parts = engine.components
    return Engine(Components(config, ddit.requires_grad_(False), parts.video, parts.audio, parts.text))


@pytest.fixture(scope="module")
def syncphony(engine: Engine) -> Engine:
    return random_model(engine, "syncphony-tiny")


@pytest.fixture(scope="module")
def harmony(engine: Engine) -> Engine:
    return random_model(engine, "harmony-tiny")


@pytest.fixture(scope="module")
def speaking(engine: Engine) -> Engine:
    """A model whose audio reads the text."""
    return random_model(engine, "syncflow-tiny", audio_text=True)


@pytest.fixture(scope="module")
def clip(engine: Engine) -> Clip:
    """Drawn at a size and with settings that are not the model's own."""
    return engine.generate(PROMPT, seed=7, width=96, guidance=3.0, sync_guidance=1.0, **SHORT)


@pytest.fixture
def encoded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the frames that the video codec has encoded."""
    codec, found = engine.components.video, []
    plain = codec.encode
    monkeypatch.setattr(codec, "encode", lambda frames: found.append(tuple(frames.shape)) or plain(frames))
    return found


def tone(seconds: float, pitch: float = 440.0) -> Clip:
    """A sound alone."""
    time = np.arange(round(seconds * 48_000)) / 48_000
    wave = 0.5 * np.sin(2 * np.pi * pitch * time)
    return Clip(np.zeros((0, 64, 64, 3), np.uint8), wave.astype(np.float32), 16, 48_000)


def assert_different(waveform: np.ndarray, other: np.ndarray) -> None:
    """By a share of their own level: a sound of a few steps may be soft."""
    assert np.abs(waveform - other).max() > 0.05 * np.abs(other).max() > 0


def assert_same(found: Clip, expected: Clip) -> None:
    assert np.abs(found.frames.astype(int) - expected.frames).max() <= 1
    np.testing.assert_allclose(found.waveform, expected.waveform, **CLOSE)


@pytest.mark.slow
def test_requests_of_any_shape_come_back_in_order(engine: Engine) -> None:
    requests = [
        Request(PROMPT, seed=1, **SHORT),
        Request(PROMPT, seed=2, steps=2, seconds=0.75),
        Request(PROMPT, seed=3, takes=2, **SHORT),
    ]
    clips = engine.generate(requests)
    assert [len(one.frames) for one in clips] == [8, 12, 8, 8]
    for request, found in zip([*requests[:2], dataclasses.replace(requests[2], takes=1)], clips, strict=False):
        assert_same(found, engine.generate(request))


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [False, True], ids=["shared batches", "deterministic"])
def test_generate_and_submit_are_one_path(engine: Engine, deterministic: bool) -> None:
    """A request alone gives the same bits either way; deterministic ones do so whatever shares their batch."""
    requests = [Request(PROMPT, seed=1, takes=2, **SHORT), Request(OTHER, seed=2, steps=3, seconds=0.5)]
    with Engine(engine.components, deterministic=deterministic) as other:
        alone = [other.generate([request]) for request in requests]
        if deterministic:
            handles = [other.submit(request) for request in requests]
            submitted = [handle.result(60) for handle in handles]
        else:
            submitted = [other.submit(request).result(60) for request in requests]
    for expected, found in zip(alone, submitted, strict=True):
        for one, two in zip(expected, found, strict=True):
            assert np.array_equal(one.frames, two.frames) and np.array_equal(one.waveform, two.waveform)
            assert one.provenance == two.provenance


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [False, True], ids=["shared batches", "deterministic"])
def test_steps_are_reported_with_their_latents(engine: Engine, deterministic: bool) -> None:
    """Of the requests that are stepped together, in steps 1 to the longest of them."""
    requests = [Request(PROMPT, seed=1, takes=2, **SHORT), Request(OTHER, seed=2, steps=1, seconds=0.5, video_lead=0.0)]
    calls: list[tuple[int, int, int, int]] = []
    with Engine(engine.components, deterministic=deterministic) as other:
        other.generate(requests, on_step=lambda k, n, z: calls.append((k, n, len(z.video), len(z.audio))))
    if deterministic:
        assert calls == [(k, 4, 1, 2) for k in (1, 2, 3, 4)] + [(1, 1, 1, 1)]
    else:
        assert calls == [(k, 4, 2, 3) for k in (1, 2, 3, 4)]


# Takes


@pytest.mark.slow
def test_a_take_is_the_request_with_its_audio_seed(engine: Engine) -> None:
    takes = engine.generate(PROMPT, seed=7, audio_seed=5, takes=3, **SHORT)
    assert isinstance(takes, list)
    assert [one.provenance.get("audio_seed") for one in takes] == [5, 6, None]  # the third has the seed of the clip
    for seed, found in zip((5, 6, 7), takes, strict=True):
        alone = engine.generate(PROMPT, seed=7, audio_seed=seed, **SHORT)
        assert np.array_equal(found.frames, takes[0].frames)
        assert_same(found, alone)
        assert found.provenance == alone.provenance
    assert_different(takes[0].waveform, takes[1].waveform)


@pytest.mark.slow
def test_the_seed_of_the_sound_is_that_of_the_clip_unless_it_is_given(engine: Engine) -> None:
    plain, named = (engine.generate(PROMPT, seed=7, **more, **SHORT) for more in ({}, {"audio_seed": 7}))
    assert np.array_equal(plain.waveform, named.waveform)
    assert "audio_seed" not in plain.provenance


def test_seeds_of_takes_begin_anew_after_the_last(engine: Engine) -> None:
    last, first = engine.generate(PROMPT, seed=0, audio_seed=MAX_SEED, takes=2, **SHORT)
    assert (last.provenance["audio_seed"], first.provenance.get("audio_seed")) == (MAX_SEED, None)


# Retakes


@pytest.mark.slow
def test_a_retake_with_the_same_seed_is_the_clip(engine: Engine, clip: Clip, encoded: list) -> None:
    again = engine.retake(clip)
    assert np.array_equal(again.frames, clip.frames)
    np.testing.assert_allclose(again.waveform, clip.waveform, **CLOSE)
    assert again.provenance == clip.provenance | {"task": "video-to-audio"}
    assert np.array_equal(again.latents, clip.latents)
    assert encoded == []


def test_a_retake_from_a_file_with_its_latents_has_the_sound_of_the_clip(
    engine: Engine, clip: Clip, encoded: list, tmp_path: Path
) -> None:
    again = engine.retake(str(clip.save(tmp_path / "clip.mp4", latents=True)))
    np.testing.assert_allclose(again.waveform, clip.waveform, **CLOSE)
    assert again.frames.shape == clip.frames.shape
    assert encoded == []


def test_a_retake_from_a_bare_file_encodes_its_frames(
    engine: Engine, clip: Clip, encoded: list, tmp_path: Path
) -> None:
    path = clip.save(tmp_path / "clip.mp4")
    again = engine.retake(path)
    assert encoded == [(1, *clip.frames.shape)]
    assert np.array_equal(again.frames, load_clip(path).frames)
    assert again.provenance == clip.provenance | {"task": "video-to-audio"}


def test_latents_of_another_model_are_encoded_anew(engine: Engine, clip: Clip, encoded: list) -> None:
    """Its prompt counts; its size and settings were another model's."""
    foreign = dataclasses.replace(clip, provenance={**clip.provenance, "model_hash": "another"})
    again = engine.retake(foreign, steps=1)
    assert encoded == [(1, 8, 64, 64, 3)]
    assert (again.provenance["prompt"], again.provenance["guidance"]) == (PROMPT, engine.config.sampling.guidance)


@pytest.mark.slow
def test_a_retake_changes_what_it_is_told_to(engine: Engine, clip: Clip) -> None:
    takes = engine.retake(clip, OTHER, audio_seed=8, takes=2, sync_guidance=0.0)
    assert [one.provenance["audio_seed"] for one in takes] == [8, 9]
    for one in takes:
        assert np.array_equal(one.frames, clip.frames)
        assert_different(one.waveform, clip.waveform)
        told = one.provenance
        assert (told["prompt"], told["sync_guidance"], told["guidance"], told["seed"]) == (OTHER, 0.0, 3.0, 7)


def test_a_retake_of_a_retake_goes_on_from_its_sound(engine: Engine, clip: Clip) -> None:
    second = engine.retake(clip, audio_seed=8)
    assert np.abs(engine.retake(second).waveform - second.waveform).max() < CLOSE["atol"]


def test_all_guidance_of_a_clip_is_taken_over(engine: Engine, tmp_path: Path) -> None:
    """Through the file, where the interval is a list."""
    settings = {"negative_prompt": OTHER, "guidance_interval": (0.1, 0.9), "guidance_rescale": 0.5}
    sampled = engine.generate(PROMPT, **settings, **SHORT)
    again = engine.retake(sampled.save(tmp_path / "clip.mp4", latents=True))
    assert np.abs(again.waveform - sampled.waveform).max() < CLOSE["atol"]
    assert "negative_prompt" not in engine.retake(sampled, "", steps=1).provenance


@pytest.mark.parametrize("comment", [{}, {"prompt": {"3": "a workflow of another program"}}], ids=["none", "foreign"])
def test_a_video_of_another_origin_has_no_prompt(engine: Engine, comment: dict, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (15, 48, 80, 3), dtype=np.uint8)
    path = Clip(frames, np.zeros(0, np.float32), 30.0, 48_000, comment).save(tmp_path / "any.mp4")
    found = engine.retake(path, steps=1)
    assert found.frames.shape == (8, 64, 64, 3)
    assert found.provenance["prompt"] == ""


def test_a_sound_alone_has_no_other_sound(engine: Engine) -> None:
    with pytest.raises(ValueError, match="the clip has no frames; it is a sound alone"):
        engine.retake(tone(0.5), steps=1)


def test_a_model_that_hears_and_sees_takes_again(harmony: Engine) -> None:
    """Its video reads the audio, and stays as it is given."""
    sampled = harmony.generate(PROMPT, seed=1, sync_cfg_audio=1.0, sync_cfg_video=1.0, **SHORT)
    again = harmony.retake(sampled, audio_seed=2)
    assert np.array_equal(again.frames, sampled.frames)
    assert_different(again.waveform, sampled.waveform)


# A sound alone


def test_a_sound_is_drawn_without_a_video(speaking: Engine, tmp_path: Path) -> None:
    first, second = speaking.generate(PROMPT, sound_only=True, takes=2, **SHORT)
    assert first.frames.shape == (0, 64, 64, 3) and first.latents is None
    assert first.seconds == 0.5 and first.waveform.shape == (24_000,)
    assert np.abs(first.waveform - second.waveform).max() > 0.3 * np.abs(first.waveform).max() > 1e-4
    assert first.provenance["task"] == "text-to-audio" and "sync_guidance" not in first.provenance
    heard = load_audio(first.save(tmp_path / "sound.wav"))
    np.testing.assert_allclose(heard, first.waveform, rtol=0, atol=1e-4)


def test_a_sound_alone_reads_its_text_and_computes_no_video(speaking: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the video tower ran")

    monkeypatch.setattr(speaking.components.ddit.video, "forward", fail)
    first, second = speaking.generate([PROMPT, OTHER], sound_only=True, audio_seed=1, **SHORT)
    assert np.abs(first.waveform - second.waveform).max() > 1e-3


@pytest.mark.slow
def test_a_sound_alone_shares_a_batch_with_clips(speaking: Engine) -> None:
    requests = [Request(PROMPT, seed=1, **SHORT), Request(OTHER, seed=2, sound_only=True, **SHORT)]
    for request, found in zip(requests, speaking.generate(requests), strict=True):
        alone = speaking.generate(request)
        assert found.frames.shape == alone.frames.shape
        np.testing.assert_allclose(found.waveform, alone.waveform, **CLOSE)


# A reference sound


@pytest.mark.slow
def test_a_reference_changes_the_sound(harmony: Engine, tmp_path: Path) -> None:
    """As a clip, a sound alone or a file; requests with one and without share a call."""
    low, high = tone(0.3, 220.0), tone(0.3, 3000.0)
    requests = [
        Request(PROMPT, reference=low, **SHORT),
        Request(PROMPT, **SHORT),
        Request(PROMPT, reference=high, **SHORT),
        Request(PROMPT, reference=low.save(tmp_path / "low.wav"), **SHORT),
        Request(PROMPT, reference=tone(0.1), **SHORT),
    ]
    together = harmony.generate(requests)
    for request, found in zip(requests, together, strict=True):
        assert_same(found, harmony.generate(request))
    sounds = [one.waveform for one in together]
    for i, j in ((0, 1), (0, 2), (1, 2), (0, 4)):
        assert_different(sounds[i], sounds[j])
    assert np.abs(sounds[0] - sounds[3]).max() < 0.003  # 16 bits are near enough


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (tone(0.01), r"the reference sound has 0.01 s; it must have from 0.02 s to 60 s"),
        (tone(0.0), r"the clip whose sound is asked for has none"),
        (Path("nowhere.wav"), r"nowhere.wav does not exist"),
    ],
    ids=["too short", "silent", "no file"],
)
def test_references_that_are_refused(harmony: Engine, sound: Clip | Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        harmony.generate(Request(PROMPT, reference=sound, **SHORT))


# What a model has no way for


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("engine", {"reference": tone(0.5)}, "a reference sound needs a model with the bridge global_local"),
        ("syncphony", {"reference": tone(0.5)}, "a reference sound needs .* this one has the bridge audio_rope"),
        ("engine", {"sound_only": True}, "a sound without a video needs a model whose audio reads the text"),
        ("harmony", {"takes": 2}, "more than one take needs a model with an audio tower whose video does not read"),
        ("syncphony", {"takes": 2}, "more than one take needs .* this one has the bridge audio_rope"),
    ],
    ids=str,
)
def test_what_a_model_cannot_do_is_refused(
    model: str, settings: dict, message: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(ValueError, match=message):
        request.getfixturevalue(model).generate(Request(PROMPT, **settings, **SHORT))


def test_a_model_whose_audio_sees_nothing_takes_no_sound_again(syncphony: Engine, clip: Clip) -> None:
    with pytest.raises(ValueError, match=r"video-to-audio needs a model whose audio reads the video; .* audio_rope"):
        syncphony.retake(clip)


# What is given in Python


def test_every_call_refuses_what_it_would_drop(engine: Engine, clip: Clip) -> None:
    request = Request(PROMPT, **SHORT)
    for call in (engine.generate, engine.submit):
        with pytest.raises(ValueError, match="seed cannot be given beside a Request"):
            call(request, seed=9)
        with pytest.raises(ValueError, match="has no setting num_inference_steps; did you mean steps"):
            call(PROMPT, num_inference_steps=9)
        with pytest.raises(ValueError, match=r"the request is \{'prompt'.*Request\(\*\*values\)"):
            call({"prompt": PROMPT})
    with pytest.raises(ValueError, match=r"the request is \['a.*; it must be a prompt or a Request"):
        engine.submit([PROMPT])
    with pytest.raises(ValueError, match="has no setting audio_sed; did you mean audio_seed"):
        engine.retake(clip, audio_sed=1)
    with pytest.raises(ValueError, match="video is the clip itself in a retake"):
        engine.retake(clip, video=clip)
    with pytest.raises(ValueError, match="prompt is 5; it must be text"):
        engine.retake(clip, 5)
    with pytest.raises(ValueError, match="clip is 5; it must be a clip or the path of a file"):
        engine.retake(5)


@pytest.mark.slow
def test_scalars_of_numpy_reach_the_file_and_come_back(engine: Engine, tmp_path: Path) -> None:
    made = engine.generate(PROMPT, seed=np.int64(3), guidance=np.float32(2.5), **SHORT)
    assert json.loads(json.dumps(dict(made.provenance)))["guidance"] == 2.5
    again = engine.retake(made.save(tmp_path / "clip.mp4"), audio_seed=np.uint8(5))
    assert (again.provenance["seed"], again.provenance["audio_seed"]) == (3, 5)


@pytest.mark.slow
def test_the_bundled_model_has_a_name(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Engine.from_pretrained("syncflow-tiny", device="cpu", runtime="torch")
    assert found.components.digest == engine.components.digest
    assert repr(found) == "<Engine syncflow-tiny on cpu, runtime torch>"
    other = Engine.from_pretrained("syncphony-tiny", device="cpu", runtime="torch")
    assert (other.config.name, other.config.ddit.bridge) == ("syncphony-tiny", "audio_rope")
    with pytest.raises(ValueError, match="syncphony-large"):
        Engine.from_pretrained("syncphony-large")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "syncflow-tiny").mkdir()
    with pytest.raises(ValueError, match="syncflow-tiny is no model package"):
        Engine.from_pretrained("syncflow-tiny")


@pytest.mark.parametrize("device", ["banana", "cuda:99", "meta", 5, None, ""], ids=repr)
def test_devices_that_are_not_there(device: Any) -> None:
    with pytest.raises(ValueError, match=rf"device is .*{device}.*; it must be auto, cpu or") as caught:
        Engine.from_pretrained(device=device)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_without_cuda() -> None:
    with pytest.raises(ValueError, match=r"device is 'cuda'; it must be auto, cpu or another .*it finds no CUDA"):
        Engine.from_pretrained(device="cuda")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"torch_dtype": "float16"}, "an engine has no setting torch_dtype; did you mean precision"),
        ({"limit": 1}, "an engine has no setting limit; did you mean limits"),
        ({"path": 5}, "path is 5; it must be the folder of a model package"),
    ],
)
def test_engines_that_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine.from_pretrained(**settings)
