"""Clips to files and back."""

from __future__ import annotations

import dataclasses
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate

from syncflow.engine.media import conform, load_audio, load_clip, probe, save_clip
from syncflow.engine.types import Clip

RATE = 48_000


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-3, np.mean((a.astype(float) - b) ** 2))))


def lag(reference: np.ndarray, heard: np.ndarray) -> int:
    """Samples by which ``heard`` comes late."""
    return int(correlate(heard, reference, method="fft").argmax()) - len(reference) + 1


@pytest.fixture
def clip() -> Clip:
    return make_clip()


def make_clip() -> Clip:
    """A square that runs across a gradient, and a click in the middle of every half second."""
    frames = np.zeros((32, 64, 64, 3), np.uint8)
    frames[...] = np.linspace(20, 90, 64, dtype=np.uint8)[:, None, None]
    for index, frame in enumerate(frames):
        frame[20:36, index : index + 16] = (220, 60, 40)
    time = np.arange(2 * RATE) / RATE
    decay = (time - 0.25) % 0.5
    waveform = 0.7 * np.sin(2 * np.pi * 900 * decay) * np.exp(-decay / 0.02) * (time >= 0.25)
    return Clip(frames, waveform.astype(np.float32), 16, RATE, {"prompt": "a square ü", "seed": 7})


def encode(
    path: Path,
    *,
    width: int = 96,
    height: int = 64,
    fps: Fraction = Fraction(30000, 1001),
    frames: int = 45,
    sound: np.ndarray | None = None,
    sample_rate: int = 44_100,
    rotation: int = 0,
) -> Path:
    """A foreign file: frame k is grey level 5 k, red on the left edge; ``sound`` is stereo (2, M)."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        if rotation:
            video.set_display_rotation(rotation)
        if sound is not None:
            audio = container.add_stream("aac", rate=sample_rate, layout="stereo")
        for index in range(frames):
            image = np.full((height, width, 3), 5 * index, np.uint8)
            image[:, : width // 4] = (230, 20, 20)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound, np.float32), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def test_mp4_round_trip_keeps_picture_sound_time_and_provenance(clip: Clip, tmp_path: Path) -> None:
    path = save_clip(clip, tmp_path / "new" / "clip.mp4")
    found = load_clip(path)
    assert found.frames.shape == clip.frames.shape and found.fps == 16
    assert psnr(found.frames, clip.frames) > 30
    assert found.waveform.shape == clip.waveform.shape and found.waveform.dtype == np.float32
    assert abs(lag(clip.waveform, found.waveform)) < RATE // 1000
    assert np.mean((found.waveform - clip.waveform) ** 2) < 0.02 * np.mean(clip.waveform**2)
    assert found.provenance == clip.provenance
    assert [file.name for file in path.parent.iterdir()] == ["clip.mp4"]


def test_mp4_is_what_ordinary_players_open(clip: Clip, tmp_path: Path) -> None:
    path = clip.save(tmp_path / "clip.mp4")
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt, audio.codec_context.name) == ("h264", "yuv420p", "aac")
        assert video.frames == 32
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    info = probe(path)
    assert (info.width, info.height, info.fps, info.sample_rate, info.channels) == (64, 64, 16, RATE, 1)
    assert info.seconds == pytest.approx(2, abs=0.05)
    assert info.to_dict()["provenance"] == clip.provenance


def test_saving_twice_gives_the_same_bytes(clip: Clip, tmp_path: Path) -> None:
    assert clip.save(tmp_path / "a.mp4").read_bytes() == clip.save(tmp_path / "b.mp4").read_bytes()


def test_start_and_seconds_choose_a_window(clip: Clip, tmp_path: Path) -> None:
    path = clip.save(tmp_path / "clip.mp4")
    found = load_clip(path, start=0.75, seconds=1.0)
    assert psnr(found.frames, clip.frames[12:28]) > 30
    assert abs(lag(clip.waveform[36_000:84_000], found.waveform)) < RATE // 1000


def test_beyond_the_end_stand_the_last_frame_and_silence(clip: Clip, tmp_path: Path) -> None:
    found = load_clip(clip.save(tmp_path / "clip.mp4"), seconds=3.0)
    assert len(found.frames) == 48 and len(found.waveform) == 3 * RATE
    assert (found.frames[32:] == found.frames[31]).all()
    assert np.abs(found.waveform[-RATE // 2 :]).max() == 0


def test_any_rate_becomes_the_asked_one_by_what_is_shown(tmp_path: Path) -> None:
    path = encode(tmp_path / "ntsc.mp4")
    found = load_clip(path, fps=16)
    shown = np.rint(found.frames[:, 20:44, 60:].mean(axis=(1, 2, 3)) / 5).astype(int)
    expected = np.floor(np.arange(24) / 16 * 30000 / 1001).astype(int)
    assert len(shown) == 24
    assert np.abs(shown - expected).max() == 0
    assert not found.waveform.any() and len(found.waveform) == 72_000


def test_other_shapes_are_cut_around_the_centre(tmp_path: Path) -> None:
    path = encode(tmp_path / "wide.mp4", width=256, height=64)
    found = load_clip(path, size=32, seconds=0.5)
    assert found.frames.shape == (15, 32, 32, 3)
    assert np.ptp(found.frames[10].astype(int)) < 30, "the red edge lies outside the centre square"
    whole = load_clip(path, size=(128, 32), seconds=0.5)
    assert whole.frames[10, 16, 10, 0] > 180 and whole.frames[10, 16, 100, 0] < 100
    assert load_clip(path, size=(512, 128), seconds=0.1).frames.shape[1:3] == (128, 512)


@pytest.mark.parametrize(("rotation", "edge"), [(90, "bottom"), (-90, "top"), (180, "right")])
def test_rotated_video_is_shown_upright(rotation: int, edge: str, tmp_path: Path) -> None:
    frame = load_clip(encode(tmp_path / "turned.mp4", rotation=rotation, frames=3)).frames[0].astype(int)
    redness = frame[..., 0] - frame[..., 1]
    bands = {"top": redness[:8], "bottom": redness[-8:], "left": redness[:, :8], "right": redness[:, -8:]}
    assert max(bands, key=lambda name: bands[name].mean()) == edge
    assert frame.shape[:2] == ((64, 96) if rotation == 180 else (96, 64))


def test_stereo_of_another_rate_becomes_mono_in_time(tmp_path: Path) -> None:
    time = np.arange(66_150) / 44_100
    left = (np.sin(2 * np.pi * 500 * time) * np.exp(-((time - 0.8) % 10) / 0.05) * (time > 0.8)).astype(np.float32)
    path = encode(tmp_path / "stereo.mp4", sound=np.stack([left, np.zeros_like(left)]))
    found = load_clip(path, fps=16)
    there = np.arange(len(found.waveform)) / RATE
    expected = 0.5 * np.interp(there, time, left)
    assert abs(lag(expected, found.waveform)) < RATE // 1000
    assert np.mean((found.waveform - expected) ** 2) < 0.05 * np.mean(expected**2)
    assert load_audio(path, 24_000).shape[0] == pytest.approx(36_000, abs=1100)


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([8, 12.5, 16, 24, 30]),
    st.sampled_from([None, 32, (96, 64), (48, 80)]),
    st.sampled_from([16_000, 44_100, 48_000]),
    st.sampled_from([None, 0.5, 2.5]),
)
def test_a_clip_conforms_as_its_file_is_read(
    fps: float, size: int | tuple[int, int] | None, sample_rate: int, seconds: float | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stored = load_clip(save_clip(make_clip(), Path(folder) / "clip.mp4"))
        shape = {"fps": fps, "size": size, "sample_rate": sample_rate, "seconds": seconds}
        read = load_clip(Path(folder) / "clip.mp4", **shape)  # type: ignore[arg-type]
    made = conform(stored, **shape)  # type: ignore[arg-type]
    assert (made.fps, made.sample_rate, made.frames.shape) == (fps, sample_rate, read.frames.shape)
    assert made.waveform.shape == read.waveform.shape
    assert np.abs(made.waveform - read.waveform).max() < 0.02
    assert np.mean(made.frames != read.frames) < 0.2 and psnr(made.frames, read.frames) > 25


def test_wav_and_pictures(clip: Clip, tmp_path: Path) -> None:
    wav = load_audio(clip.save(tmp_path / "clip.wav"), RATE)
    assert np.abs(wav - clip.waveform).max() < 1e-4
    clip.save(tmp_path / "frames")
    clip.save(tmp_path / "still_%03d.png")
    with av.open(str(tmp_path / "frames" / "frame_00031.png")) as picture:
        assert (next(picture.decode(video=0)).to_ndarray(format="rgb24") == clip.frames[31]).all()
    assert len(list((tmp_path / "frames").iterdir())) == len(list(tmp_path.glob("still_*.png"))) == 32
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_truncated_file_is_refused_wherever_it_was_cut(clip: Clip, tmp_path: Path) -> None:
    data = clip.save(tmp_path / "whole.mp4").read_bytes()
    path = tmp_path / "part.mp4"
    for kept in np.linspace(0, len(data) - 1, 25, dtype=int):
        path.write_bytes(data[:kept])
        for read in (load_clip, load_audio):
            with pytest.raises(ValueError, match=r"part\.mp4 .*(truncated|damaged)"):
                read(path)


def test_what_is_no_video_is_refused(clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello " * 500)
    (tmp_path / "notes.txt").write_text("hello " * 500)
    clip.save(tmp_path / "sound.wav")
    clip.save(tmp_path / "frames")
    with pytest.raises(ValueError, match="does not exist"):
        load_clip(tmp_path / "missing.mp4")
    with pytest.raises(ValueError, match="is not a file"):
        load_clip(tmp_path)
    for name in ("text.mp4", "notes.txt", "sound.wav", "frames/frame_00000.png"):
        with pytest.raises(ValueError, match=r"is not a video|cannot be read"):
            load_clip(tmp_path / name)
    with pytest.raises(ValueError, match="no sound"):
        load_audio(encode(tmp_path / "silent.mp4", frames=4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fps": 0}, "fps is 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"size": 0}, "size is 0"),
        ({"sample_rate": 1}, "sample rate is 1"),
        ({"start": -1.0}, "start is -1"),
        ({"start": 5.0}, "ends at 2.000 s"),
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": float("inf")}, "seconds is inf"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, float], message: str, clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_clip(clip.save(tmp_path / "clip.mp4"), **arguments)  # type: ignore[arg-type]


def test_nothing_half_written_is_left(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full.mp4").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    for name in ("clip.avi", "full.mp4", "full", "file/clip.mp4", "x_%s.%d.png", "%%.png"):
        with pytest.raises(ValueError, match="cannot write"):
            clip.save(tmp_path / name)
    with pytest.raises(ValueError, match="even width and height, not 64x63"):
        dataclasses.replace(clip, frames=clip.frames[:, :63]).save(tmp_path / "odd.mp4")
    with pytest.raises(ValueError, match="no sample rate 47000"):
        dataclasses.replace(clip, sample_rate=47_000).save(tmp_path / "odd.mp4")
    with pytest.raises(ValueError, match=r"sound alone; save it as \.wav"):
        dataclasses.replace(clip, frames=clip.frames[:0]).save(tmp_path / "odd.mp4")
    with pytest.raises(ValueError, match="frames are"):
        dataclasses.replace(clip, frames=clip.frames[0]).save(tmp_path / "odd.mp4")
    with pytest.raises(ValueError, match="no latents to keep"):
        clip.save(tmp_path / "odd.mp4", latents=True)
    with pytest.raises(ValueError, match=r"beside an mp4, and odd\.wav is none"):
        clip.save(tmp_path / "odd.wav", latents=True)
    with pytest.raises(ValueError, match="finite"):
        dataclasses.replace(clip, waveform=clip.waveform * np.nan).save(tmp_path / "odd.mp4")
    kept = clip.save(tmp_path / "kept.mp4").read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", fail)
    with pytest.raises(ValueError, match="No space left"):
        clip.save(tmp_path / "kept.mp4")
    assert (tmp_path / "kept.mp4").read_bytes() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "full.mp4", "kept.mp4"]


def test_clip_without_sound_has_no_audio_stream(clip: Clip, tmp_path: Path) -> None:
    path = dataclasses.replace(clip, waveform=clip.waveform[:0]).save(tmp_path / "mute.mp4")
    assert probe(path).channels == 0
    assert not load_clip(path).waveform.any()


def test_a_sound_alone_is_a_wav(clip: Clip, tmp_path: Path) -> None:
    sound = dataclasses.replace(clip, frames=clip.frames[:0])
    heard = load_audio(sound.save(tmp_path / "sound.WAV"), RATE)
    assert np.abs(heard - clip.waveform).max() < 1e-4
    with pytest.raises(ValueError, match="the clip has no frames; it is a sound alone"):
        conform(sound, fps=8)


@pytest.fixture
def sampled(clip: Clip) -> Clip:
    """A clip with the latents that it might have been decoded from."""
    latents = np.random.default_rng(0).normal(size=(16, 8, 8, 8)).astype(np.float32)
    return dataclasses.replace(clip, latents=latents)


def test_latents_lie_beside_their_clip(sampled: Clip, tmp_path: Path) -> None:
    path = sampled.save(tmp_path / "clip.mp4", latents=True)
    assert sampled.latents is not None
    for found in (load_clip(path), load_clip(path, fps=16, size=64, seconds=2.0)):
        assert found.latents is not None and found.latents.dtype == np.float32
        assert np.array_equal(found.latents, sampled.latents)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.latents.safetensors", "clip.mp4"]


@pytest.mark.parametrize("shape", [{"fps": 8}, {"size": 32}, {"seconds": 1.0}, {"start": 0.5}, {"fps": 32}], ids=str)
def test_latents_are_those_of_all_frames(shape: dict[str, float], sampled: Clip, tmp_path: Path) -> None:
    assert load_clip(sampled.save(tmp_path / "clip.mp4", latents=True), **shape).latents is None  # type: ignore[arg-type]
    if "start" not in shape:
        assert conform(sampled, **shape).latents is None  # type: ignore[arg-type]


def test_latents_stay_with_a_clip_that_conforms_to_itself(sampled: Clip) -> None:
    assert conform(sampled, fps=16, size=(64, 64), sample_rate=16_000, seconds=2.0).latents is sampled.latents


def test_latents_of_a_file_that_has_changed_are_left_alone(sampled: Clip, tmp_path: Path) -> None:
    """Another clip of the same shape and provenance in its place."""
    path = sampled.save(tmp_path / "clip.mp4", latents=True)
    dataclasses.replace(sampled, frames=255 - sampled.frames).save(path)
    assert load_clip(path).latents is None


def test_damaged_latents_are_left_alone_with_a_warning(sampled: Clip, tmp_path: Path) -> None:
    path = sampled.save(tmp_path / "clip.mp4", latents=True)
    beside = tmp_path / "clip.latents.safetensors"
    beside.write_bytes(beside.read_bytes()[:-9])
    with pytest.warns(
        UserWarning, match=r"clip\.latents\.safetensors is damaged; the clip is read without its latents"
    ):
        found = load_clip(path)
    assert found.latents is None and len(found.frames) == 32
