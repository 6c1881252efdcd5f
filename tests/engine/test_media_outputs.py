"""Files that are written: formats, links, pipes, names, integer PCM; and reading in a process of its own."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from syncflow.engine.media import (
    conform,
    destinations,
    isolated,
    load_audio,
    load_clip,
    load_picture,
    probe,
    resample,
    save_clip,
    stream_clip,
)
from syncflow.engine.media.fork_server import ForkServer
from syncflow.engine.types import Clip

RATE = 48_000
linux = pytest.mark.skipif(sys.platform != "linux", reason="readers are forked on Linux")


@pytest.fixture
def clip() -> Clip:
    frames = np.zeros((16, 48, 64, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[:, :, :] = np.linspace(20, 90, 64, dtype=np.uint8)[None, :, None]
        frame[16:32, 2 * index : 2 * index + 16] = (220, 60, 40)
    tone = 0.25 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    return Clip(frames, tone.astype(np.float32), 16, RATE, {"prompt": "ü", "seed": 7})


@pytest.mark.parametrize(
    ("suffix", "codecs"),
    [("mp4", ("h264", "aac")), ("mov", ("h264", "aac")), ("mkv", ("h264", "aac")), ("webm", ("vp9", "opus"))],
)
def test_videos_of_every_kind_come_back(suffix: str, codecs: tuple[str, str], clip: Clip, tmp_path: Path) -> None:
    path = clip.save(tmp_path / f"clip.{suffix}")
    info, found = probe(path), load_clip(path)
    assert (info.video_codec, info.audio_codec) == codecs and info.seconds == pytest.approx(1, abs=0.01)
    assert found.fps == 16 and found.frames.shape == clip.frames.shape and found.provenance == clip.provenance
    assert np.mean(np.abs(found.frames.astype(int) - clip.frames)) < 6
    assert np.sqrt(np.mean((found.waveform - clip.waveform) ** 2)) < 0.05
    assert path.read_bytes() == clip.save(tmp_path / f"again.{suffix}").read_bytes()
    if suffix in ("mp4", "mov"):
        data = path.read_bytes()
        assert data.index(b"moov") < data.index(b"mdat")


def test_a_gif_has_every_picture_and_no_sound(clip: Clip, tmp_path: Path) -> None:
    found = load_clip(clip.save(tmp_path / "clip.gif"))
    assert found.fps == 16 and found.frames.shape == clip.frames.shape and not found.waveform.any()
    assert np.mean(np.abs(found.frames.astype(int) - clip.frames)) < 8
    with pytest.raises(ValueError, match="gif shows at most 50 pictures a second, not 60"):
        dataclasses.replace(clip, fps=60).save(tmp_path / "fast.gif")


def test_opus_takes_rates_that_it_has_not(clip: Clip, tmp_path: Path) -> None:
    heard = load_audio(dataclasses.replace(clip, sample_rate=44_100).save(tmp_path / "clip.webm"), 44_100)
    assert abs(len(heard) - RATE) < 2000
    assert np.sqrt(np.mean(heard**2)) == pytest.approx(np.sqrt(np.mean(clip.waveform**2)), rel=0.05)


def test_a_stream_is_an_mp4_of_fragments(clip: Clip, tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise OSError(29, "Illegal seek")

    pipe = Pipe()
    stream_clip(clip, pipe)
    (tmp_path / "stream.mp4").write_bytes(pipe.getvalue())
    found = load_clip(tmp_path / "stream.mp4")
    assert found.frames.shape == clip.frames.shape and found.provenance == clip.provenance


@pytest.mark.parametrize(("dtype", "full", "zero"), [("int16", 2**15, 0), ("int32", 2**31, 0), ("uint8", 128, 128)])
def test_integer_pcm_is_scaled(dtype: str, full: int, zero: int, clip: Clip, tmp_path: Path) -> None:
    given = dataclasses.replace(clip, waveform=np.rint(clip.waveform * (full - 1) + zero).astype(dtype))
    for name in ("clip.wav", "clip.mp4"):
        heard = load_audio(given.save(tmp_path / name), RATE)[:RATE]
        assert np.abs(heard).max() == pytest.approx(0.25, abs=0.02)
    assert np.abs(resample(given.waveform, RATE, RATE) - clip.waveform).max() < 0.01
    assert np.abs(conform(given).waveform).max() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"waveform": np.array([0, np.nan], np.float32)}, "finite"),
        ({"waveform": np.array([0, np.inf], np.float32)}, "finite"),
        ({"waveform": np.zeros(9, np.int64)}, "waveform is int64"),
        ({"waveform": np.zeros(9, np.complex64)}, "waveform is complex64"),
        ({"fps": float("inf")}, "fps is inf"),
        ({"fps": 1e-9}, "fps is 1e-09"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"sample_rate": 0}, "sample rate is 0"),
    ],
    ids=str,
)
def test_values_that_no_clip_has_are_refused(
    changes: dict[str, object], message: str, clip: Clip, tmp_path: Path
) -> None:
    bad = dataclasses.replace(clip, **changes)  # type: ignore[arg-type]
    for use in (lambda: bad.save(tmp_path / "bad.mp4"), lambda: bad.save(tmp_path / "bad.wav"), lambda: conform(bad)):
        with pytest.raises(ValueError, match=message):
            use()
    assert not list(tmp_path.iterdir())


def test_a_link_is_followed(clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "real.mp4").write_text("old")
    (tmp_path / "link.mp4").symlink_to(Path("folder") / "real.mp4")
    clip.save(tmp_path / "link.mp4")
    assert (tmp_path / "link.mp4").is_symlink()
    assert len(load_clip(tmp_path / "folder" / "real.mp4").frames) == 16
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    with pytest.raises(ValueError, match=r"cannot write .*loop\.mp4"):
        clip.save(tmp_path / "loop.mp4")


def test_a_pipe_takes_the_whole_file(clip: Clip, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe.mp4").read_bytes()), daemon=True)
    reader.start()
    clip.save(tmp_path / "pipe.mp4")
    reader.join(30)
    assert received == [clip.save(tmp_path / "file.mp4").read_bytes()]
    assert (tmp_path / "pipe.mp4").is_fifo()


def test_long_names_are_written_or_refused(clip: Clip, tmp_path: Path) -> None:
    assert clip.save(tmp_path / ("a" * 251 + ".mp4")).is_file()
    with pytest.raises(ValueError, match="the name has 304 bytes"):
        clip.save(tmp_path / ("a" * 300 + ".mp4"))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_reading_in_another_process_gives_the_same(clip: Clip, tmp_path: Path) -> None:
    path = save_clip(
        dataclasses.replace(clip, latents=np.ones((4, 2, 6, 8), np.float32)), tmp_path / "c.mp4", latents=True
    )
    here, there = load_clip(path), load_clip(path, isolated=True)
    assert np.array_equal(here.frames, there.frames) and np.array_equal(here.waveform, there.waveform)
    assert (here.fps, here.provenance) == (there.fps, there.provenance) and np.array_equal(here.latents, there.latents)  # type: ignore[arg-type]
    assert probe(path, isolated=True) == probe(path)
    assert np.array_equal(load_audio(path, isolated=True), load_audio(path))
    assert np.array_equal(load_picture(path, isolated=True).frames, load_picture(path).frames)
    with pytest.raises(ValueError, match=r"nothing\.mp4 does not exist"):
        load_clip(tmp_path / "nothing.mp4", isolated=True)


@pytest.mark.parametrize("forks", [False, pytest.param(True, marks=linux)])
def test_a_reader_that_crashes_or_hangs_is_one_sentence(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: bool
) -> None:
    path = clip.save(tmp_path / "clip.mp4")
    monkeypatch.setattr("syncflow.engine.media.fork_server.AVAILABLE", forks)
    with pytest.raises(ValueError, match=r"clip\.mp4 cannot be read as media: its reader took more than 0\.0001 s"):
        isolated.read("probe", path, {}, isolated.ReadLimits(seconds=0.0001))
    assert isolated.read("probe", path, {}) == probe(path)
    crashing = "import os, sys; from syncflow.engine.media import isolated, reading; "
    crashing += "reading.probe = reading.load_clip = lambda *_, **__: os.kill(os.getpid(), 11); "
    command = [sys.executable, "-c", crashing + "isolated.main(sys.argv[1:])"]
    monkeypatch.setattr(isolated, "_command", lambda: command)
    server = ForkServer(isolated._start)
    monkeypatch.setattr(isolated, "_fork_server", server)
    with pytest.raises(ValueError, match=r"clip\.mp4 cannot .*: its reader crashed \(ended by signal 11\)"):
        load_clip(path, isolated=True)
    monkeypatch.setenv("SYNCFLOW_ISOLATED_MEDIA", "1")
    with pytest.raises(ValueError, match="its reader crashed"):
        probe(path)
    server.close()


def test_reading_within_a_block_is_isolated_and_limited(clip: Clip, tmp_path: Path) -> None:
    path = clip.save(tmp_path / "clip.mp4")
    with isolated.reading_isolated(isolated.ReadLimits(memory=1000)):
        with pytest.raises(ValueError, match=r"at most 0\.0 GiB are read"):
            load_clip(path)
        load_clip(path, isolated=False)
    with (
        isolated.reading_isolated(isolated.ReadLimits(seconds=0.0001)),
        pytest.raises(ValueError, match=r"more than 0\.0001"),
    ):
        probe(path)
    assert not isolated.wanted(None)


@pytest.mark.parametrize("name", ["x.wav", "x.mp4", "frames"])
def test_an_interruption_at_any_line_leaves_nothing_half_written(name: str, tmp_path: Path) -> None:
    """What ends a save at each line of the module in turn leaves an empty folder or the whole output."""
    clip = Clip(np.zeros((2, 16, 16, 3), np.uint8), np.zeros(800, np.float32), 16, 48_000)
    module = destinations.__file__

    def interrupted(after: int, folder: Path) -> bool:
        left = after

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            if frame.f_code.co_filename != module:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            clip.save(folder / name)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    for after in range(1, 100):
        folder = tmp_path / str(after)
        folder.mkdir()
        found = interrupted(after, folder)
        assert not [path for path in folder.iterdir() if path.name.startswith(destinations.TEMPORARY)]
        if not found:
            break
    assert 3 < after < 99
