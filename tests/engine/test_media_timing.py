"""When pictures are shown, how long a file is, and reading from a later start."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from syncflow.engine.media import load_clip, probe
from syncflow.engine.types import Clip

SHADES = 8  # between the grey levels of one picture and the next


def write_video(
    path: Path,
    times: Sequence[float],
    *,
    base: int = 1000,
    codec: str = "libx264",
    rate: int = 25,
    seconds: float | None = None,
    sound: float = 0,
    layout: str = "mono",
    form: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Picture k is grey level 8 k, from its time in seconds on; the last one until ``seconds``."""
    with av.open(str(path), "w", format=form, options=options or {}) as container:
        video = container.add_stream(codec, rate=rate)
        video.width, video.height, video.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video.codec_context.time_base = Fraction(1, base)
        if sound:
            audio = container.add_stream("aac" if path.suffix == ".mp4" else "libopus", rate=48_000, layout=layout)
            silence = np.zeros((audio.codec_context.layout.nb_channels, round(sound * 48_000)), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, "fltp", layout)
            frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
        ends = [*times[1:], seconds if seconds is not None else times[-1] + 1 / rate]
        for index, (at, end) in enumerate(zip(times, ends, strict=True)):
            image = np.full((48, 64, 3), SHADES * index, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=video.pix_fmt)
            frame.pts, frame.time_base = round(at * base), Fraction(1, base)
            frame.duration = round((end - at) * base)
            container.mux(video.encode(frame))
        container.mux(video.encode())
    return path


def shown(clip: Clip) -> list[int]:
    """Which picture each frame is."""
    return [round(float(frame[8:40, 8:56].mean()) / SHADES) for frame in clip.frames]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_picture_is_shown_until_the_next(suffix: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"slides{suffix}", [0, 4], seconds=5)
    assert shown(load_clip(path, fps=8, seconds=5)) == [0] * 32 + [1] * 8
    assert shown(load_clip(path, fps=8, start=3.5, seconds=1)) == [0] * 4 + [1] * 4


def test_a_screen_recording_changes_when_it_changed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "screen.mp4", [0, 0.125, 1.5, 1.875])
    assert shown(load_clip(path, fps=16, seconds=2)) == [0] * 2 + [1] * 22 + [2] * 6 + [3] * 2
    found = load_clip(path)
    assert found.fps == 8 and shown(found)[:16] == [0] + [1] * 11 + [2] * 3 + [3]


def test_one_picture_a_second_is_not_early(tmp_path: Path) -> None:
    path = write_video(tmp_path / "slow.mp4", [0, 1, 2], rate=1)
    assert shown(load_clip(path, fps=4)) == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize(("name", "codec"), [("even.mp4", "libx264"), ("even.avi", "ffv1")])
def test_a_start_between_frames_skips_and_repeats_none(name: str, codec: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, [k / 25 for k in range(30)], base=25, codec=codec)
    assert shown(load_clip(path, start=0.5, seconds=0.6)) == list(range(12, 27))
    assert shown(load_clip(path, start=0.52, seconds=0.2)) == list(range(13, 18))


@pytest.mark.parametrize("rate", [24, 30, 60])
def test_times_that_a_container_rounded_give_every_picture_once(rate: int, tmp_path: Path) -> None:
    """Matroska counts milliseconds."""
    path = write_video(tmp_path / "even.mkv", [0.021 + k / rate for k in range(30)], base=rate * 1000, rate=rate)
    found = load_clip(path)
    assert found.fps == rate and shown(found) == list(range(30))


@pytest.mark.parametrize(
    ("name", "codec", "form", "options", "rate"),
    [
        ("browser.webm", "libvpx", "webm", {"live": "1"}, 20),
        ("piped.mkv", "libx264", "matroska", {"live": "1"}, 20),
        ("raw.h264", "libx264", "h264", {}, 20),
        ("raw.mjpeg", "mjpeg", "mjpeg", {}, 25),
        ("pictures.apng", "apng", "apng", {}, 20),
        ("fragments.mp4", "libx264", "mp4", {"movflags": "frag_keyframe+empty_moov"}, 20),
        ("stream.ts", "libx264", "mpegts", {}, 20),
    ],
)
def test_a_file_that_states_no_duration_has_its_own(
    name: str, codec: str, form: str, options: dict[str, str], rate: int, tmp_path: Path
) -> None:
    times = [k / rate for k in range(30)]
    if codec == "apng":
        path = tmp_path / name
        with av.open(str(path), "w", format=form) as container:
            video = container.add_stream(codec, rate=rate)
            video.width, video.height, video.pix_fmt = 64, 48, "rgb24"
            for index in range(30):
                image = np.full((48, 64, 3), SHADES * index, np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(video.encode())
    else:
        path = write_video(tmp_path / name, times, base=rate, codec=codec, rate=rate, form=form, options=options)
    info, found = probe(path), load_clip(path)
    assert (info.seconds, info.fps, found.fps) == (pytest.approx(30 / rate, abs=1e-3), rate, rate)
    assert shown(found) == list(range(30))
    assert shown(load_clip(path, start=0.48, seconds=0.2)) == list(
        range(int(0.48 * rate), int(0.48 * rate) + rate // 5)
    )


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv"])
def test_the_video_decides_how_long_a_file_is(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, [k / 25 for k in range(25)], base=25, sound=3)
    assert probe(path).seconds == pytest.approx(1, abs=1e-3)
    assert len(load_clip(path).frames) == 25


def test_timestamps_that_begin_anew_are_counted_on(tmp_path: Path) -> None:
    """Two MPEG-TS files, one after the other."""
    one = write_video(tmp_path / "one.ts", [k / 25 for k in range(25)], base=25, form="mpegts")
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() * 2)
    assert probe(both).seconds == pytest.approx(2, abs=0.05)
    assert shown(load_clip(both)) == [*range(25), *range(25)]
    assert shown(load_clip(both, start=1.2, seconds=0.4)) == list(range(5, 15))


def test_a_header_that_promises_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "long.mkv", [0, 400_000], seconds=400_001)
    with pytest.raises(ValueError, match=r"long\.mkv has too many frames of 64x48: .* GiB are read"):
        load_clip(path, fps=100)
    assert os.path.getsize(path) < 100_000


@pytest.mark.parametrize("share", [2, 1.03])
def test_a_stated_duration_that_ends_before_the_last_picture_hides_none(tmp_path: Path, share: float) -> None:
    path = write_video(tmp_path / "short.mp4", [k / 25 for k in range(20)])
    data = bytearray(path.read_bytes())
    at = data.index(b"mdhd") + 20  # the duration of the track, in ticks of its own
    data[at : at + 4] = round(int.from_bytes(data[at : at + 4], "big") / share).to_bytes(4, "big")
    path.write_bytes(data)
    assert probe(path).seconds == pytest.approx(0.8)
    assert shown(load_clip(path)) == shown(load_clip(path, fps=25)) == list(range(20))
