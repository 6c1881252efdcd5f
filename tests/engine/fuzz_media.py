"""Damaged media files, read in one process: ``python tests/engine/fuzz_media.py FOLDER MUTATIONS [SEED]``.

Every file of the folder is damaged in many ways and read. What is not read is one ``ValueError``. The mutation at hand
is in FOLDER/now, so that a crash can be repeated. Prints how many were read and how many refused.
"""

from __future__ import annotations

import resource
import signal
import sys
import warnings
from fractions import Fraction
from pathlib import Path
from types import FrameType

import av
import numpy as np
from PIL import Image

from syncflow.engine.media import load_audio, load_clip, load_picture, probe

SECONDS = 20  # of the processor, for one file
MEMORY = 6 * 2**30  # bytes of address space


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


def write_samples(folder: Path) -> None:
    """A short file of every kind."""
    for kind, codecs in KINDS.items():
        write(folder / f"file.{kind}", *codecs)
    write(folder / "file.ogg", "", "libopus")
    pictures = [Image.fromarray(np.full((32, 32, 3), level, np.uint8)) for level in (40, 120)]
    pictures[0].save(folder / "file.webp", save_all=True, append_images=pictures[1:], duration=100)


def damage(data: bytes, random: np.random.Generator) -> bytes:
    """A few bytes changed, a range removed, repeated or zeroed, the end cut off."""
    found = bytearray(data)
    for _ in range(random.integers(1, 4)):
        if not found:
            break
        at = int(random.integers(len(found)))
        if random.random() < 0.5:  # headers decide most
            at %= min(len(found), 1024)
        length = int(random.integers(1, 64))
        kind = random.integers(6)
        if kind < 2:
            found[at] = int(random.integers(256))
        elif kind == 2:
            found[at : at + 4] = random.choice([b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"])
        elif kind == 3:
            del found[at : at + length]
        elif kind == 4:
            found[at:at] = found[at : at + length]
        else:
            del found[max(1, at) :]
    return bytes(found)


def read(path: Path) -> bool:
    """Read a file in every way. Whether one of them gave an answer."""
    answered = False
    readers = (
        probe,
        load_audio,
        load_picture,
        lambda path: load_clip(path, size=16, seconds=1.0),
        lambda path: load_clip(path, size=16, fps=5, start=0.3, seconds=0.4),
    )
    for reader in readers:
        try:
            reader(path)
            answered = True
        except ValueError as error:
            assert str(error).strip() and "\n" not in str(error), error
    return answered


def hung(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"a file took more than {SECONDS} s of the processor")


def main(folder: Path, mutations: int, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, hung)
    warnings.simplefilter("ignore")
    files = sorted(path for path in folder.iterdir() if path.suffix)
    random, read_files = np.random.default_rng(seed), 0
    for number in range(mutations):
        source = files[number % len(files)]
        damaged = folder / "now" / f"{seed}-{number}{source.suffix}"
        damaged.parent.mkdir(exist_ok=True)
        damaged.write_bytes(damage(source.read_bytes(), random))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        read_files += read(damaged)
        signal.setitimer(signal.ITIMER_PROF, 0)
        damaged.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{mutations} damaged files: {read_files} read, {mutations - read_files} refused, {peak} MiB at most")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
