"""Damaged files are read or refused with a sentence: no crash, no hang, bounded memory.

``SYNCFLOW_FUZZ_MUTATIONS`` asks for more damaged files than the few hundred of a test run, ``SYNCFLOW_FUZZ_SEED`` for
others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

KINDS = {
    "mp4": ("libx264", "aac"),
    "mkv": ("libx264", "aac"),
    "webm": ("libvpx", "libopus"),
    "avi": ("mpeg4", "libmp3lame"),
    "ts": ("mpeg2video", "mp2"),
}


def write(path: Path, video_codec: str, audio_codec: str) -> None:
    with av.open(str(path), "w") as container:
        audio = container.add_stream(audio_codec, rate=48_000, layout="stereo")
        if video_codec:
            video = container.add_stream(video_codec, rate=25)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
            for index in range(15):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 9 * index, np.uint8), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                container.mux(video.encode(frame))
            container.mux(video.encode())
        tone = 0.5 * np.sin(np.arange(28_800) / 20)
        resampler = av.AudioResampler(format=audio.format.name, layout="stereo", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]).astype(np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        for part in (*resampler.resample(frame), None):
            container.mux(audio.encode(part))


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    for kind, codecs in KINDS.items():
        write(tmp_path / f"file.{kind}", *codecs)
    write(tmp_path / "file.ogg", "", "libopus")
    pictures = [Image.fromarray(np.full((32, 32, 3), level, np.uint8)) for level in (40, 120)]
    pictures[0].save(tmp_path / "file.webp", save_all=True, append_images=pictures[1:], duration=100)
    script = Path(__file__).with_name("fuzz_media.py")
    mutations = int(os.environ.get("SYNCFLOW_FUZZ_MUTATIONS", "350"))
    command = [sys.executable, str(script), str(tmp_path), str(mutations), os.environ.get("SYNCFLOW_FUZZ_SEED", "0")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120 + mutations)
    assert finished.returncode == 0, f"{list((tmp_path / 'now').iterdir())}: {finished.stderr[-2000:]}"
    assert f"{mutations} damaged files: " in finished.stdout
