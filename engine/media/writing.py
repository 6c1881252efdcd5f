"""Clips to files: mp4 with H.264 and AAC, wav, numbered pictures. A file is written beside its target, then renamed."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..types import Clip

if TYPE_CHECKING:
    from av import AudioFrame

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
AAC_BITS_PER_SAMPLE = 4
H264_QUALITY = "12"
COLOR_ITU601 = 6
COLOR_RANGE_LIMITED = 1
PICTURE_NAME = "frame_%05d.png"


def save_clip(clip: Clip, path: str | Path, *, latents: bool = False) -> Path:
    """Write a clip; the name says how.

    ``x.mp4`` is H.264 (yuv420p) with AAC and the provenance as JSON in the comment; ``x.wav`` is the sound alone (16
    bit); ``x_%04d.png`` and a name without suffix (a new or empty folder) are the frames. Missing parent folders are
    made. ``latents`` are written beside an mp4, as ``x.latents.safetensors`` with the checksum of the mp4. Raises
    ``ValueError`` for a clip that cannot be encoded and an output that cannot be written.
    """
    import av

    path = Path(path)
    suffix = path.suffix.lower()
    _check_clip(clip, silent=suffix == ".wav")
    if latents and suffix != ".mp4":
        raise ValueError(f"latents are kept beside an mp4, and {path.name} is none")
    if latents and clip.latents is None:
        raise ValueError("the clip has no latents to keep; only one that was drawn has")
    if suffix == ".mp4":
        write = _write_mp4
    elif suffix == ".wav":
        write = _write_wav
    elif suffix == ".png" and "%" in path.name:
        write = _write_pattern
    elif not suffix:
        write = _write_folder
    else:
        raise ValueError(f"cannot write {path.name}: the name must end in .mp4, .wav or %d.png, or name a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(clip, path)
        if latents:
            _write_latents(clip, path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
    except av.error.FFmpegError as error:
        raise ValueError(f"cannot write {path}: the encoder refuses it ({error})") from error
    return path


def latents_path(path: Path) -> Path:
    """Where the latents of a saved clip lie."""
    return path.with_suffix(".latents.safetensors")


def latents_notes(path: Path, shape: tuple[int, ...], fps: float) -> dict[str, str]:
    """What is written with the latents of a clip, by which a reader knows whether they are those of its frames."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "frames": " ".join(map(str, shape)), "fps": f"{fps:g}"}


def _write_latents(clip: Clip, path: Path) -> None:
    from safetensors.numpy import save_file

    assert clip.latents is not None
    with _beside(latents_path(path)) as target:
        save_file({"video": clip.latents}, target, latents_notes(path, clip.frames.shape, clip.fps))


def _check_clip(clip: Clip, *, silent: bool) -> None:
    frames, waveform = clip.frames, clip.waveform
    if not len(frames) and len(waveform) and not silent:
        raise ValueError("the clip is a sound alone; save it as .wav")
    no_pictures = frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size
    if no_pictures and not (silent and not len(frames)):
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; they must be uint8 (F, H, W, 3) and not empty")
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise ValueError(f"the waveform is {waveform.shape}; it must be (M,) of finite numbers")
    if not clip.fps > 0:
        raise ValueError(f"fps is {clip.fps}; it must be above 0")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of ``path``, renamed to it when all went well, removed otherwise."""
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder")
    descriptor, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(descriptor)
    try:
        yield Path(name)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _write_mp4(clip: Clip, path: Path) -> None:
    import av

    _, height, width, _ = clip.frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"cannot write {path.name}: mp4 needs an even width and height, not {width}x{height}")
    if len(clip.waveform) and clip.sample_rate not in AAC_RATES:
        raise ValueError(f"cannot write {path.name}: AAC has no sample rate {clip.sample_rate}; it has {AAC_RATES}")
    with (
        _beside(path) as target,
        av.open(str(target), "w", format="mp4", container_options={"movflags": "faststart"}) as container,
    ):
        container.metadata["comment"] = json.dumps(dict(clip.provenance), default=str)
        video = container.add_stream("libx264", rate=Fraction(clip.fps).limit_denominator(1001))
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.options = {"crf": H264_QUALITY, "preset": "medium", **_reproducible()}
        video.codec_context.thread_count = 1
        video.codec_context.colorspace = video.codec_context.color_primaries = video.codec_context.color_trc = (
            COLOR_ITU601
        )
        video.codec_context.color_range = COLOR_RANGE_LIMITED
        audio = None
        if len(clip.waveform):
            audio = container.add_stream("aac", rate=clip.sample_rate, layout="mono")
            audio.codec_context.bit_rate = AAC_BITS_PER_SAMPLE * clip.sample_rate
        for image in clip.frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(video.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU601")))
        container.mux(video.encode())
        if audio is not None:
            container.mux(audio.encode(_audio_frame(clip, "fltp")))
            container.mux(audio.encode())


@functools.cache
def _reproducible() -> dict[str, str]:
    """x264's AVX-512 code reads memory that it has not written: the same frames would give other files each time."""
    try:
        features = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    return {"x264-params": "asm=AVX2"} if "avx512f" in features else {}


def _write_wav(clip: Clip, path: Path) -> None:
    import av

    with _beside(path) as target, av.open(str(target), "w", format="wav") as container:
        audio = container.add_stream("pcm_s16le", rate=clip.sample_rate, layout="mono")
        if len(clip.waveform):
            container.mux(audio.encode(_audio_frame(clip, "s16")))
        container.mux(audio.encode())


def _write_pattern(clip: Clip, path: Path) -> None:
    try:
        names = [path.name % index for index in range(len(clip.frames))]
    except (TypeError, ValueError):
        names = []
    if len(set(names)) < len(clip.frames):
        raise ValueError(f"cannot write {path.name}: the pattern must hold one number such as %04d")
    with tempfile.TemporaryDirectory(prefix=".frames.", dir=path.parent) as beside:
        for source in _write_pictures(clip, Path(beside), names):
            os.replace(source, path.parent / source.name)


def _write_folder(clip: Clip, path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"cannot write frames to {path}: it exists and is not an empty folder")
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        pictures = beside / path.name
        pictures.mkdir()
        _write_pictures(clip, pictures, [PICTURE_NAME % index for index in range(len(clip.frames))])
        os.replace(pictures, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_pictures(clip: Clip, folder: Path, names: list[str]) -> list[Path]:
    import av

    paths = [folder / name for name in names]
    for image, path in zip(clip.frames, paths, strict=True):
        av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").save(str(path))
    return paths


def _audio_frame(clip: Clip, sample_format: str) -> AudioFrame:
    """The whole waveform as one frame of ``fltp`` or ``s16`` samples; the encoder cuts it."""
    import av

    samples = np.clip(clip.waveform, -1, 1).astype(np.float32)
    if sample_format == "s16":
        samples = np.rint(samples * 32767).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(samples[None], format=sample_format, layout="mono")
    frame.sample_rate = clip.sample_rate
    frame.pts = 0
    frame.time_base = Fraction(1, clip.sample_rate)
    return frame
