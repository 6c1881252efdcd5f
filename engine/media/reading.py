"""Any ordinary video or sound file as a :class:`Clip`. Whatever is wrong with a file is one ``ValueError``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..types import Clip
from .conform import check_shape, fit
from .writing import latents_notes, latents_path

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

DEFAULT_FPS = 25.0
SEEK_MARGIN = 0.2
STILL_FORMATS = ("image2", "_pipe", "tty")


@dataclass(frozen=True)
class MediaInfo:
    """What :func:`probe` finds: ``width`` and ``height`` in pixels (as stored), ``seconds`` of the longest stream.

    The picture's fields are 0 or empty without a video stream, the sound's without an audio stream.
    """

    width: int
    height: int
    fps: float
    video_codec: str
    sample_rate: int
    channels: int
    audio_codec: str
    seconds: float
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dump``."""
        return asdict(self)


def load_clip(
    path: str | Path,
    *,
    fps: float | None = None,
    size: int | tuple[int, int] | None = None,
    sample_rate: int = 48_000,
    start: float = 0.0,
    seconds: float | None = None,
) -> Clip:
    """Read any ordinary video as a clip.

    Frames are those nearest in time to k / ``fps`` (the file's own rate by default), turned upright, cut around the
    centre to the shape of ``size`` (width, height, or one number for a square; the file's own size by default) and
    resized by area or Lanczos. The sound is mixed to mono and resampled; a file without sound is silent. ``start`` and
    ``seconds`` choose a window; what lies beyond the end of the file is the last frame and silence. The waveform lasts
    exactly as long as the frames. Latents that were saved beside the file come along with all of its frames, as long as
    the file is the one that they were saved with. Raises ``ValueError`` for a missing, unreadable, truncated or empty
    file, one that is no video, and a bad setting.
    """
    path = Path(path)
    check_shape(fps, size, sample_rate, seconds)
    if not 0 <= start < float("inf"):
        raise ValueError(f"start is {start}; it must be 0 or more seconds")
    with _reading(path) as container:
        stream = _video_stream(container, path)
        rate = fps or float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        count = None if seconds is None else max(1, round(seconds * rate))
        side = (size, size) if isinstance(size, int) else size
        frames = np.stack(list(_nearest_frames(container, stream, path, rate, start, count, side)))
        origin = float((stream.start_time or 0) * (stream.time_base or 0))
        provenance = _provenance(container.metadata) or {"source": path.name}
        sounding = bool(container.streams.audio)
    samples = round(len(frames) / rate * sample_rate)
    waveform = np.zeros(samples, np.float32)
    if sounding:
        with _reading(path) as container:
            heard = _decode_audio(container, sample_rate, origin + start, samples)
        waveform[: len(heard)] = heard
    return Clip(frames, waveform, rate, sample_rate, provenance, _latents(path, frames.shape, rate, start))


def load_audio(path: str | Path, sample_rate: int = 48_000) -> np.ndarray:
    """The sound of a sound or video file, mixed to mono: float32 (M,). Raises ``ValueError`` when there is none."""
    path = Path(path)
    check_shape(None, None, sample_rate, None)
    with _reading(path) as container:
        if not container.streams.audio:
            raise ValueError(f"{path} has no sound")
        origin = float((container.start_time or 0) / 1_000_000)
        waveform = _decode_audio(container, sample_rate, origin, None)
    if not len(waveform):
        raise ValueError(f"{path} has no sound: it is empty, damaged or truncated")
    return waveform


def load_picture(path: str | Path) -> Clip:
    """A picture, or the first frame of a video, as a clip of one frame without sound.

    Raises ``ValueError`` for what holds no picture.
    """
    path = Path(path)
    with _reading(path) as container:
        frame = next(container.decode(video=0), None) if container.streams.video else None
        if frame is None:
            raise ValueError(f"{path} holds no picture")
        return Clip(_picture(frame, None)[None], np.zeros(0, np.float32), 1.0, 48_000)


def probe(path: str | Path) -> MediaInfo:
    """What a file says it holds, without decoding it. Raises ``ValueError`` for what is no media file."""
    path = Path(path)
    with _reading(path) as container:
        video = next(iter(container.streams.video), None)
        audio = next(iter(container.streams.audio), None)
        return MediaInfo(
            width=video.width if video else 0,
            height=video.height if video else 0,
            fps=float(video.average_rate or 0) if video else 0.0,
            video_codec=video.codec_context.name if video else "",
            sample_rate=audio.rate or 0 if audio else 0,
            channels=audio.channels if audio else 0,
            audio_codec=audio.codec_context.name if audio else "",
            seconds=(container.duration or 0) / 1_000_000,
            provenance=_provenance(container.metadata),
        )


@contextmanager
def _reading(path: Path) -> Iterator[InputContainer]:
    """An open file whose every failure is a ``ValueError`` that names it."""
    import av

    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            _check_complete(container, path)
            yield container
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except av.error.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as media: it is damaged, truncated or of another kind") from error


def _check_complete(container: InputContainer, path: Path) -> None:
    """Refuse a file without decodable streams and one whose own index points beyond its end."""
    streams = [*container.streams.video, *container.streams.audio]
    if not streams or any(stream.codec_context is None for stream in streams):
        raise ValueError(f"{path} holds nothing that can be decoded: it is damaged, truncated or of another kind")
    length = path.stat().st_size
    for stream in streams:
        if any(entry.pos + entry.size > length for entry in stream.index_entries):
            raise ValueError(f"{path} is truncated: it has {length} bytes and its index needs more")


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    import av

    cover = av.stream.Disposition.attached_pic
    stream = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
    if stream is None or any(kind in container.format.name for kind in STILL_FORMATS):
        raise ValueError(f"{path} is not a video ({container.format.long_name or container.format.name})")
    stream.thread_type = "AUTO"
    return stream


def _nearest_frames(
    container: InputContainer,
    stream: VideoStream,
    path: Path,
    rate: float,
    start: float,
    count: int | None,
    size: tuple[int, int] | None,
) -> Iterator[np.ndarray]:
    """Upright pictures (H, W, 3) nearest in time to ``start`` + k / ``rate``: ``count`` of them, or all."""
    origin = float((stream.start_time or 0) * (stream.time_base or 0))
    if start > 0:
        container.seek(int((origin + start) * 1_000_000))
    step = 1 / float(stream.average_rate or rate)
    given, shown, shown_at = 0, None, -step
    for frame in container.decode(stream):
        at = shown_at + step if frame.time is None else frame.time - origin - start
        if shown is not None and given / rate < (middle := (shown_at + at) / 2):
            image = _picture(shown, size)
            while given / rate < middle and given != count:
                yield image
                given += 1
        if given == count:
            return
        shown, shown_at = frame, at
    if shown is None:
        raise ValueError(f"{path} has no frames: it is empty, damaged or truncated")
    lasts = float((shown.duration or 0) * (shown.time_base or 0)) or step
    if shown_at + lasts <= 0:
        raise ValueError(f"start is {start} s; {path} ends at {shown_at + lasts + start:.3f} s")
    image = _picture(shown, size)
    for _ in range(given, count or max(1, round((shown_at + lasts) * rate))):
        yield image


def _picture(frame: VideoFrame, size: tuple[int, int] | None) -> np.ndarray:
    """The frame as uint8 (H, W, 3), upright, in ``size`` (width, height)."""
    image: np.ndarray = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return np.ascontiguousarray(image) if size is None else fit(image, size)


def _decode_audio(container: InputContainer, sample_rate: int, start: float, samples: int | None) -> np.ndarray:
    """Mono samples float32 from time ``start`` of the container's clock on, at most ``samples`` of them."""
    import av

    stream = container.streams.audio[0]
    if start > SEEK_MARGIN:
        container.seek(int((start - SEEK_MARGIN) * 1_000_000))
    resampler = av.AudioResampler(format="fltp", rate=sample_rate)
    parts: list[np.ndarray] = []
    offset, length = None, 0
    for frame in container.decode(stream):
        if offset is None:
            offset = round(((frame.time or 0.0) - start) * sample_rate)
        heard = [part.to_ndarray().mean(axis=0) for part in resampler.resample(frame)]
        parts += heard
        length += sum(map(len, heard))
        if samples is not None and offset + length >= samples:
            break
    if offset is None:
        return np.zeros(0, np.float32)
    parts += [part.to_ndarray().mean(axis=0) for part in resampler.resample(None)]
    waveform = np.concatenate([np.zeros(max(0, offset), np.float32), *parts])[max(0, -offset) :]
    return np.clip(waveform[:samples], -1, 1).astype(np.float32)


def _latents(path: Path, shape: tuple[int, ...], rate: float, start: float) -> np.ndarray | None:
    """The latents that :func:`save_clip` wrote beside a clip, if they are those of frames of this shape and rate."""
    beside = latents_path(path)
    if start > 0 or not beside.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(beside), "numpy") as file:
            if file.metadata() != latents_notes(path, shape, rate):
                return None
            found: np.ndarray = file.get_tensor("video")
            return found
    except (OSError, SafetensorError):
        warnings.warn(f"{beside} is damaged; the clip is read without its latents", stacklevel=3)
        return None


def _provenance(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The provenance that :func:`save_clip` wrote, or nothing."""
    try:
        found = json.loads(metadata.get("comment", ""))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
