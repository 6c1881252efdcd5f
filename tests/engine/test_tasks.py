"""Tasks: which media a request may give, how long the clip becomes, and what is known of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from syncflow import preset
from syncflow.engine import tasks
from syncflow.engine.engine import Engine
from syncflow.engine.model import DDiT
from syncflow.engine.sampling.reference import ReferenceLoop
from syncflow.engine.sampling.schedule import schedule
from syncflow.engine.tasks import known_lengths, read_media, restore_known, task_of
from syncflow.engine.types import Clip, Request

pytestmark = pytest.mark.slow

PROMPT = "a large red rubber ball bounces on a wooden floor"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained(device="cpu")


def clip(seconds=1.0, side=64, fps=16):
    """Frames that count up, and a tone."""
    count = round(seconds * fps)
    frames = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None] * 4, (count, side, side, 3))
    tone = 0.3 * np.sin(np.arange(round(seconds * 48_000)) / 20, dtype=np.float32)
    return Clip(np.ascontiguousarray(frames), tone, fps, 48_000)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "still.png"
    av.VideoFrame.from_ndarray(np.full((48, 80, 3), 200, np.uint8), format="rgb24").to_image().save(path)
    return path


@pytest.mark.parametrize(
    ("media", "task"),
    [
        ({}, "text-to-audio-video"),
        ({"video": clip()}, "video-to-audio"),
        ({"video": clip(), "strength": 0.5}, "variation"),
        ({"image": clip()}, "image-to-audio-video"),
        ({"extend": clip()}, "continuation"),
        ({"audio": clip()}, "audio-to-video"),
        ({"sound_only": True}, "text-to-audio"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_media_make_the_task(media, task):
    assert task_of(Request(PROMPT, **media)) == task


@pytest.mark.parametrize(
    ("media", "seconds"),
    [({"video": clip(1.5)}, 1.5), ({"extend": clip(1.5)}, 2.5), ({"image": clip(1.5)}, 2.0)],
    ids=["video", "extend", "image"],
)
def test_media_make_the_duration(engine, media, seconds):
    known, sequence = read_media(Request(PROMPT, **media), engine.config.sequence)
    assert sequence.seconds == seconds
    assert known.clip.frames.shape == (round(16 * seconds), 64, 64, 3)
    assert len(known.clip.waveform) == round(48_000 * seconds)


def test_a_picture_of_any_shape_is_cut_to_the_clip(engine, picture):
    known, _ = read_media(Request(PROMPT, image=picture, seconds=0.5), engine.config.sequence)
    assert known.clip.frames.shape == (8, 64, 64, 3)
    assert (known.clip.frames == 200).all()


@pytest.mark.parametrize("settings", [{}, {"seconds": 0.5}, {"width": 96, "height": 32}], ids=str)
def test_without_media_the_lengths_are_those_asked_for_or_the_models_own(engine, settings):
    known, sequence = read_media(Request(PROMPT, **settings), engine.config.sequence)
    assert known is None
    assert sequence == engine.config.sequence.replace(**settings)


@pytest.mark.parametrize(
    "settings",
    [{}, {"seconds": 0.5, "width": 96}, {"video": clip(0.5)}, {"extend": clip(0.5), "seconds": 0.75}],
    ids=["plain", "sized", "video", "extend"],
)
def test_the_shape_is_known_before_anything_is_encoded(engine, settings):
    prepared = engine.pipeline.prepare(Request(PROMPT, **settings))
    assert prepared.shape == engine.pipeline.encode(prepared).shape


def test_media_are_read_once(engine, tmp_path, monkeypatch):
    """From the file, when the request is prepared; what is decoded later is what was read then."""
    path, calls = clip(0.5).save(tmp_path / "clip.mp4"), []
    load = tasks.load_clip
    monkeypatch.setattr(tasks, "load_clip", lambda *given, **settings: calls.append(given) or load(*given, **settings))
    with Engine(engine.components, device="cpu") as other:
        (made,) = other.submit(Request("", video=path, steps=1)).result(60)
    assert len(calls) == 1
    assert np.array_equal(made.frames, load(path).frames)


def test_what_is_known_of_a_continuation_is_what_fills_whole_latents(engine):
    prepared = engine.pipeline.prepare(Request(PROMPT, extend=clip(0.7), seconds=1.5))
    job = engine.pipeline.encode(prepared)
    assert known_lengths(prepared.media, prepared.sequence) == (2, 34)  # 11 frames of 4 a latent, 33 000 samples of 960
    assert job.video.mask.tolist() == [True] * 2 + [False] * 4
    assert job.audio.mask.tolist() == [True] * 34 + [False] * 41


def test_the_known_part_of_a_continuation_stays_as_it_was_given(engine):
    known, sequence = read_media(Request(PROMPT, extend=clip(1.0), seconds=1.5), engine.config.sequence)
    frames, waveform = np.full((24, 64, 64, 3), 9, np.uint8), np.ones(72_000, np.float32)
    kept, sound = restore_known(known, sequence, frames, waveform)
    assert np.array_equal(kept[:16], clip(1.0).frames)
    assert (kept[16:] == 9).all()
    assert np.array_equal(sound[: 48_000 - 480], clip(1.0).waveform[: 48_000 - 480])
    assert (sound[48_000:] == 1).all()


def test_a_variation_begins_between_noise_and_the_clip(engine):
    request = Request(PROMPT, video=clip(1.0), strength=0.25, steps=8)
    job = engine.pipeline.encode(engine.pipeline.prepare(request))
    assert job.video.start == job.audio.start == 0.75
    assert job.schedule.video[0] == job.schedule.audio[0] == 0.75
    assert job.video.mask is None


@pytest.mark.parametrize("lead", [0.0, 0.5, 1.0])
def test_a_grid_after_a_time(lead):
    grid = schedule(10, shift=3.0, lead=lead)
    late = grid.after(0.6)
    assert late.video[0] == late.audio[0] == 0.6
    assert late.video[-1] == late.audio[-1] == 1
    assert set(late.video[1:]) <= set(grid.video) | {0.6}
    assert len(late) < len(grid)
    assert (np.diff(late.video) + np.diff(late.audio) > 0).all()
    assert np.array_equal(grid.after(0.0).video, grid.video)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"extend": clip(2.0), "seconds": 1.0},
            "the clip to continue has 2 s and the result 1 s; ask for more seconds",
        ),
        ({"extend": clip(0.125), "seconds": 1.0}, "the clip to continue has 0.125 s; it must have at least 0.25 s"),
        ({"image": Path("nowhere.png")}, "nowhere.png does not exist"),
    ],
    ids=["shorter", "too short", "no file"],
)
def test_media_that_are_refused(engine, settings, message):
    with pytest.raises(ValueError, match=message):
        engine.generate(Request(PROMPT, steps=1, **settings))


def test_tasks_share_a_batch(engine):
    """Each clip is what it would be alone."""
    given = clip(0.5)
    requests = [
        Request(PROMPT, seed=1, steps=2, seconds=1.0),
        Request("", seed=2, steps=3, video=given, seconds=1.0),
        Request(PROMPT, seed=3, steps=2, extend=given, seconds=1.0, sync_guidance=2.0),
        Request(PROMPT, seed=4, steps=4, image=given, seconds=1.0, negative_prompt="a small blue ball"),
        Request(PROMPT, seed=5, steps=4, video=given, strength=0.5, seconds=1.0, guidance_rescale=0.7),
    ]
    together = engine.generate(requests)
    for request, one in zip(requests, together, strict=True):
        alone = engine.generate(request)
        assert np.abs(alone.frames.astype(int) - one.frames).max() <= 2
        assert np.abs(alone.waveform - one.waveform).max() < 1e-3
        assert one.provenance["task"] == task_of(request)


def test_the_first_frame_is_that_of_the_picture(engine):
    with torch.inference_mode():
        sampled = engine.generate(Request(PROMPT, image=clip(0.1), seconds=1.0, steps=4, seed=1))
    assert np.abs(sampled.frames[0].astype(float) - clip(0.1).frames[0]).mean() < 20


def test_video_to_audio_has_a_sync_guidance_of_its_own(engine):
    """It is the model's default for this task alone."""
    config = engine.config.replace(sampling=engine.config.sampling.replace(sync_guidance=0.5, v2a_sync_guidance=2.0))
    other = Engine(dataclasses.replace(engine.components, config=config), device="cpu")
    found = other.generate(Request("", video=clip(0.5), steps=2))
    asked = engine.generate(Request("", video=clip(0.5), steps=2, sync_guidance=2.0))
    assert found.provenance["sync_guidance"] == 2.0
    loudest = np.abs(asked.waveform).max()
    np.testing.assert_allclose(found.waveform, asked.waveform, atol=1e-3 * loudest)
    off = other.generate(Request("", video=clip(0.5), steps=2, sync_guidance=0.0))
    assert np.abs(off.waveform - found.waveform).max() > 1e-2 * loudest
    assert other.pipeline.plan(Request(PROMPT)) == engine.pipeline.plan(Request(PROMPT, sync_guidance=0.5))
    with pytest.raises(ValueError, match=r"v2a_sync_guidance is nan; it must be a finite number"):
        config.sampling.replace(v2a_sync_guidance=float("nan"))


@pytest.fixture(scope="module", params=["syncphony-tiny", "harmony-tiny"])
def hearing(request, engine) -> Engine:
    """A model whose video reads the audio, with random weights and the codecs of the bundled one."""
    config = preset(request.param)
    torch.manual_seed(0)
    ddit = DDiT(config.ddit).eval().requires_grad_(False)
    return Engine(dataclasses.replace(engine.components, config=config, ddit=ddit), device="cpu")


def test_a_sound_is_given(hearing):
    """The clip keeps it and has its duration; all guidances of the model are on."""
    sampled = hearing.generate(Request(PROMPT, audio=clip(0.5), steps=2, sync_guidance=1.5))
    assert sampled.provenance["task"] == "audio-to-video"
    assert sampled.frames.shape == (8, 64, 64, 3)
    assert np.array_equal(sampled.waveform, clip(0.5).waveform)


def test_sound_files_and_sounds_alone_are_read(hearing, tmp_path):
    """A sound alone has a duration of its own; at another rate it is resampled."""
    sound = dataclasses.replace(clip(0.5), frames=clip().frames[:0])
    slower = dataclasses.replace(sound, waveform=sound.waveform[::2], sample_rate=24_000)
    for given in (sound.save(tmp_path / "tone.wav"), sound, slower):
        sampled = hearing.generate(Request("", audio=given, steps=1))
        assert sampled.seconds == 0.5
        assert np.abs(sampled.waveform[4_000:20_000] - sound.waveform[4_000:20_000]).max() < 0.05
    with pytest.raises(ValueError, match="the clip whose sound is asked for has none"):
        hearing.generate(Request("", audio=dataclasses.replace(clip(), waveform=sound.waveform[:0])))


def test_tasks_share_a_batch_of_a_hearing_model(hearing):
    requests = [
        Request(PROMPT, seed=1, steps=2, seconds=0.5),
        Request(PROMPT, seed=2, steps=3, seconds=0.5, audio=clip(0.5)),
        Request(PROMPT, seed=3, steps=2, seconds=0.5, image=clip(0.5), sync_guidance=2.0),
    ]
    together = hearing.generate(requests)
    for request, one in zip(requests, together, strict=True):
        assert np.abs(hearing.generate(request).frames.astype(int) - one.frames).max() <= 2


@pytest.mark.parametrize(("name", "clean"), [("syncflow-tiny", False), ("harmony-tiny", True)])
def test_a_known_video_is_clean_where_the_towers_read_each_other(engine, name, clean):
    """SyncFlow's is noised to the shared time; Harmony's audio is trained with clean video."""
    config = preset(name)
    parts = dataclasses.replace(engine.components, config=config.replace(sampling=config.sampling.replace(shift=1.0)))
    other = Engine(dataclasses.replace(parts, ddit=DDiT(config.ddit)), device="cpu")
    request = Request("", video=clip(0.5), steps=2, video_lead=0.0)
    job = other.pipeline.encode(other.pipeline.prepare(request))
    assert job.video is not None and job.video.clean is clean
    loop = ReferenceLoop(other.components.ddit, [job])
    given: list[float] = []
    forward = loop.model.forward
    loop.model.forward = lambda z_v, z_a, t_v, *rest: given.append(t_v.max().item()) or forward(z_v, z_a, t_v, *rest)
    loop.run()
    assert max(given) == (1.0 if clean else 0.5)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("syncflow-tiny", {"audio": clip(0.5)}, "audio-to-video needs a model whose video reads the audio; .* adaptor"),
        (
            "syncphony-tiny",
            {"video": clip(0.5)},
            "video-to-audio needs a model whose audio reads the video; .* audio_rope",
        ),
        ("syncflow-tiny", {"sync_cfg_video": 3.0}, "sync_cfg_video needs a model whose video reads the audio"),
        ("syncphony-tiny", {"sync_cfg_audio": 2.0}, "sync_cfg_audio needs a model whose audio reads the video"),
    ],
    ids=["audio", "video", "SyncCFG of the video", "SyncCFG of the audio"],
)
def test_what_a_one_way_model_cannot_do_is_refused(engine, name, settings, message):
    components = dataclasses.replace(engine.components, config=preset(name))
    with pytest.raises(ValueError, match=message):
        Engine(components, device="cpu").pipeline.plan(Request(PROMPT, **settings))
