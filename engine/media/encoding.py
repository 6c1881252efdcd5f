"""Clips as files of video and sound: which codecs, containers and settings."""

from __future__ import annotations

import functools
import json
import wave
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..types import Clip
from .checking import float_waveform
from .conform import resample
from .pictures import SCALING_THREADS

if TYPE_CHECKING:
    from av import AudioFrame
    from av.container import OutputContainer

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
AAC_BITS_PER_SAMPLE = 4
H264_QUALITY = "12"
VP9_QUALITY = "18"
COLOR_ITU601 = 6
COLOR_RANGE_LIMITED = 1
GIF_MAX_FPS = 50  # players show faster ones slowly


@dataclass(frozen=True)
class Container:
    """A format of FFmpeg, and its codecs."""

    name: str
    video: str = "libx264"
    audio: str = "aac"
    options: dict[str, str] = field(default_factory=dict)


CONTAINERS = {
    ".mp4": Container("mp4", options={"movflags": "faststart"}),
    ".mov": Container("mov", options={"movflags": "faststart"}),
    ".mkv": Container("matroska", options={"fflags": "bitexact"}),
    ".webm": Container("webm", "libvpx-vp9", "libopus", {"fflags": "bitexact"}),
}
STREAMED = Container("mp4", options={"movflags": "frag_keyframe+empty_moov+default_base_moof"})


def encode_video(clip: Clip, target: Path | BinaryIO, container: Container, name: str) -> None:
    """H.264 (yuv420p) with AAC, or VP9 with Opus; the provenance is JSON in the comment. ``name`` is for errors."""
    import av

    _, height, width, _ = clip.frames.shape
    if container.video == "libx264" and (height % 2 or width % 2):
        raise ValueError(f"cannot write {name}: {container.name} needs an even width and height, not {width}x{height}")
    if len(clip.waveform) and container.audio == "aac" and clip.sample_rate not in AAC_RATES:
        raise ValueError(f"cannot write {name}: AAC has no sample rate {clip.sample_rate}; it has {AAC_RATES}")
    file = str(target) if isinstance(target, Path) else target
    with av.open(file, "w", format=container.name, container_options=container.options) as output:
        output.metadata["comment"] = json.dumps(dict(clip.provenance), default=str)
        video = _video_stream(output, container.video, clip)
        audio: Any = None
        if len(clip.waveform):
            rate = clip.sample_rate if container.audio == "aac" or clip.sample_rate in OPUS_RATES else OPUS_RATES[-1]
            audio = output.add_stream(container.audio, rate=rate, layout="mono")
            audio.codec_context.bit_rate = AAC_BITS_PER_SAMPLE * rate
        for image in clip.frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            output.mux(video.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU601", threads=SCALING_THREADS)))
        output.mux(video.encode())
        if audio is not None:
            waveform = resample(clip.waveform, clip.sample_rate, audio.rate)
            output.mux(audio.encode(audio_frame(waveform, audio.rate, audio.format.name)))
            output.mux(audio.encode())


def _video_stream(output: OutputContainer, codec: str, clip: Clip) -> Any:
    """A stream with the settings of its codec and the colours of ITU-R BT.601."""
    video: Any = output.add_stream(codec, rate=Fraction(clip.fps).limit_denominator(1001))
    _, video.height, video.width, _ = clip.frames.shape
    video.pix_fmt = "yuv420p"
    if codec == "libx264":
        video.options = {"crf": H264_QUALITY, "preset": "medium", **_reproducible()}
    else:
        video.bit_rate = 0
        video.options = {"crf": VP9_QUALITY, "deadline": "good", "cpu-used": "4"}
    context = video.codec_context
    context.thread_count = 1
    context.colorspace = context.color_primaries = context.color_trc = COLOR_ITU601
    context.color_range = COLOR_RANGE_LIMITED
    return video


@functools.cache
def _reproducible() -> dict[str, str]:
    """x264's AVX-512 code reads memory that it has not written: the same frames would give other files each time."""
    try:
        features = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    return {"x264-params": "asm=AVX2"} if "avx512f" in features else {}


def encode_gif(clip: Clip, target: Path, name: str) -> None:
    """The pictures alone, in the 256 colours that suit them best."""
    import av

    if clip.fps > GIF_MAX_FPS:
        raise ValueError(f"cannot write {name}: gif shows at most {GIF_MAX_FPS} pictures a second, not {clip.fps:g}")
    rate = Fraction(clip.fps).limit_denominator(1001)
    _, height, width, _ = clip.frames.shape
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=1 / rate)
    split, palette, use = graph.add("split"), graph.add("palettegen"), graph.add("paletteuse")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    with av.open(str(target), "w", format="gif") as output:
        video: Any = output.add_stream("gif", rate=rate)
        video.width, video.height, video.pix_fmt = width, height, "pal8"
        for index, image in enumerate([*clip.frames, None]):
            frame = None
            if image is not None:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame.pts, frame.time_base = index, 1 / rate
            graph.push(frame)
        for _ in clip.frames:
            output.mux(video.encode(graph.vpull()))
        output.mux(video.encode())


def encode_wav(clip: Clip, target: Path) -> None:
    """The sound alone, in 16 bit."""
    with wave.open(str(target), "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(clip.sample_rate)
        output.writeframes(_samples_16(clip.waveform).astype("<i2").tobytes())


def audio_frame(waveform: np.ndarray, rate: int, sample_format: str) -> AudioFrame:
    """The whole waveform as one frame of samples in a format of FFmpeg; the encoder cuts it."""
    import av

    samples = _samples_16(waveform) if sample_format.startswith("s16") else float_waveform(waveform)
    frame = av.AudioFrame.from_ndarray(samples[None], format=sample_format, layout="mono")
    frame.sample_rate = rate
    frame.pts = 0
    frame.time_base = Fraction(1, rate)
    return frame


def _samples_16(waveform: np.ndarray) -> np.ndarray:
    """Samples of 16 bit; full scale is 32767."""
    return np.rint(float_waveform(waveform) * 32767).astype(np.int16)
