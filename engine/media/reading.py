"""Any ordinary video or sound file as a :class:`Clip`. Whatever is wrong with a file is one ``ValueError``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..types import Clip
from . import isolated as isolation
from .checking import check_shape
from .heif import read_grid
from .limits import check_memory
from .opening import SEEK_BACK, audio_stream, cover_picture, decode, jumps, opened, seekable, time_of, video_stream
from .pictures import SQUARE, fit, picture, pixel_aspect
from .sound import read_sound
from .stills import WEBP_TICK, is_animated_webp, read_still, webp_pictures, webp_timeline
from .timing import Clock, Timed, Timeline, exact, hold, timeline
from .writing import latents_notes, latents_path

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

PICTURE_FORMATS = ("image2", "_pipe", "tty")
PICTURE_BRANDS = ("avif", "avis", "heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1")


@dataclass(frozen=True)
class MediaInfo:
    """What :func:`probe` finds: ``width`` and ``height`` in pixels (as stored), ``seconds`` of the video, or of the
    sound in a file without one.

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
    isolated: bool | None = None,
) -> Clip:
    """Read any ordinary video as a clip.

    Frame k is what the video shows at k / ``fps`` (the file's own rate by default; 25 or more where its pictures stand
    for unequal times): each picture until the next. Frames are turned upright, cut around the centre to the shape of
    ``size`` (width, height, or one number for a square; the file's own size by default) and resized by area or Lanczos;
    pixels that are not square count as what they look like, transparent ones are white. The sound is mixed to mono (as
    FFmpeg and ITU-R BS.775 do: centre 1, left and right 0.71, surround 0.5, no LFE; stereo half of each) and resampled,
    gaps in it and a file without sound are silent. ``start`` and ``seconds`` choose a window; what lies beyond the end
    of the video is the last frame, and beyond that of the sound silence. The waveform lasts exactly as long as the
    frames. Latents that were saved beside the file come along with all of its frames, as long as the file is the one
    that they were saved with. ``isolated`` reads in a process of its own, as do all functions here: a file at which a
    media library crashes or hangs is a ``ValueError`` then, too (by default if ``SYNCFLOW_ISOLATED_MEDIA`` is set).

    Raises ``ValueError`` for a missing, unreadable, truncated or empty file, one that is no
    video, one that takes more than half of the memory, and a bad setting.
    """
    path = Path(path)
    check_shape(fps, size, sample_rate, seconds)
    if not 0 <= start < float("inf"):
        raise ValueError(f"start is {start}; it must be 0 or more seconds")
    if isolation.wanted(isolated):
        given = {"fps": fps, "size": size, "sample_rate": sample_rate, "start": start, "seconds": seconds}
        return isolation.read("load_clip", path, given)
    side = None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])
    video = _find_video(path, scan=fps is None)
    rate = video.times.rate if fps is None else exact(fps)
    count = None if seconds is None else max(1, round(seconds * float(rate)))
    frames = _frames(path, video, rate, exact(start), count, side, least=1 / rate if fps is None else Fraction(0))
    rate_as_float = float(rate) if fps is None else fps
    samples = round(len(frames) / rate_as_float * sample_rate)
    waveform = np.zeros(samples, np.float32)
    if video.sounding:
        waveform = read_sound(path, sample_rate, video.times.start + exact(start), samples)
    provenance = video.provenance or {"source": path.name}
    latents = _latents(path, frames.shape, rate_as_float, start)
    return Clip(frames, waveform, rate_as_float, sample_rate, provenance, latents)


def load_audio(path: str | Path, sample_rate: int = 48_000, *, isolated: bool | None = None) -> np.ndarray:
    """The sound of a sound or video file, mixed to mono: float32 (M,). Raises ``ValueError`` when there is none."""
    path = Path(path)
    check_shape(None, None, sample_rate, None)
    if isolation.wanted(isolated):
        return isolation.read("load_audio", path, {"sample_rate": sample_rate})
    with opened(path) as container:
        if audio_stream(container) is None:
            raise ValueError(f"{path} has no sound")
        origin = Fraction(container.start_time or 0, 1_000_000)
    waveform = read_sound(path, sample_rate, origin, None)
    if not len(waveform):
        raise ValueError(f"{path} has no sound: it is empty, damaged or truncated")
    return waveform


def load_picture(path: str | Path, *, isolated: bool | None = None) -> Clip:
    """A picture, or the first frame of a video, as a clip of one frame without sound: upright, transparent parts white.

    Raises ``ValueError`` for what holds no picture.
    """
    path = Path(path)
    if isolation.wanted(isolated):
        return isolation.read("load_picture", path, {})
    image = None
    if path.is_file():
        image = read_still(path)
        image = read_grid(path) if image is None else image
    if image is None:
        with opened(path) as container:
            stream = video_stream(container, path) or cover_picture(container)
            frame = None if stream is None else next(decode(container, stream, path), None)
            if stream is None or frame is None:
                raise ValueError(f"{path} holds no picture")
            image = picture(frame, None, pixel_aspect(stream))
    return Clip(image[None], np.zeros(0, np.float32), 1.0, 48_000)


def probe(path: str | Path, *, isolated: bool | None = None) -> MediaInfo:
    """What a file holds, without decoding it; packets are counted where it states no duration. Raises ``ValueError``
    for what is no media file.
    """
    path = Path(path)
    if isolation.wanted(isolated):
        return isolation.read("probe", path, {})
    if path.is_file() and is_animated_webp(path):
        times, (width, height) = webp_timeline(path)
        return MediaInfo(width, height, float(times.rate), "webp", 0, 0, "", float(times.seconds))
    with opened(path) as container:
        moving, audio = video_stream(container, path), audio_stream(container)
        video, main = moving or cover_picture(container), moving or audio
        lasts = timeline(container, main) if main else None
        return MediaInfo(
            width=video.width if video else 0,
            height=video.height if video else 0,
            fps=float(lasts.rate) if lasts and video else 0.0,
            video_codec=video.codec_context.name if video and video.codec_context else "",
            sample_rate=audio.rate or 0 if audio else 0,
            channels=audio.channels if audio else 0,
            audio_codec=audio.codec_context.name if audio else "",
            seconds=float(lasts.seconds) if lasts else 0.0,
            provenance=_provenance(container.metadata),
        )


@dataclass(frozen=True)
class _Video:
    """The video of a file: its times, the shape of its pixels, how fine its timestamps are; and what is beside it."""

    times: Timeline
    aspect: Fraction = SQUARE
    tick: Fraction = WEBP_TICK
    sounding: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)


def _find_video(path: Path, *, scan: bool) -> _Video:
    """The video of a file, read to its end where ``scan`` needs it. Raises ``ValueError`` for what is no video."""
    if path.is_file() and is_animated_webp(path):
        return _Video(webp_timeline(path)[0])
    with opened(path) as container:
        stream = video_stream(container, path)
        sounding, provenance = audio_stream(container) is not None, _provenance(container.metadata)
        still = any(kind in container.format.name for kind in PICTURE_FORMATS)
        still = still or container.metadata.get("major_brand") in PICTURE_BRANDS
        if stream is None or (still and not _has_two_packets(container, stream)):
            kind = container.format.long_name or container.format.name
            raise ValueError(f"{path} is not a video ({kind})")
        if not still:
            aspect, tick = pixel_aspect(stream), Fraction(stream.time_base or 0)
            return _Video(timeline(container, stream, scan=scan), aspect, tick, sounding, provenance)
    with opened(path) as container:  # anew, after the packets that were counted
        stream = video_stream(container, path)
        assert stream is not None
        tick = Fraction(stream.time_base or 0)
        return _Video(timeline(container, stream, scan=scan), pixel_aspect(stream), tick, sounding, provenance)


def _has_two_packets(container: InputContainer, stream: VideoStream) -> bool:
    """Whether a file of pictures is a video after all, as a file of JPEG pictures one after the other is."""
    if container.format.name == "tty":
        return False
    packets = (packet for packet in container.demux(stream) if packet.size)
    return next(packets, None) is not None and next(packets, None) is not None


def _frames(
    path: Path,
    video: _Video,
    rate: Fraction,
    start: Fraction,
    count: int | None,
    size: tuple[int, int] | None,
    least: Fraction,
) -> np.ndarray:
    """Upright pictures (F, H, W, 3) that are shown at ``start`` + k / ``rate``: ``count`` of them, or all; the last one
    for ``least`` seconds or more.
    """
    shape: list[tuple[int, int]] = [] if size is None else [size]

    def same_size(image: np.ndarray) -> np.ndarray:
        """Where the size changes within a file, all pictures take the size of the first."""
        shape[:] = shape or [(image.shape[1], image.shape[0])]
        return fit(image, shape[0])

    def check(frames: int) -> None:
        width, height = shape[0] if shape else (1, 1)
        check_memory(f"{path} has too many frames of {width}x{height}", frames, width * height * 3)

    def ended(end: Fraction) -> ValueError:
        return ValueError(f"start is {float(start):g} s; {path} ends at {float(end):.3f} s")

    times = {"rate": rate, "start": start, "count": count, "least": least, "tick": video.tick}
    settings: dict[str, Any] = {**times, "ended": ended, "check": check}
    if is_animated_webp(path):
        return np.stack(list(hold(webp_pictures(path), same_size, **settings)))

    def convert(frame: VideoFrame) -> np.ndarray:
        return same_size(picture(frame, shape[0] if shape else None, video.aspect))

    frames = list(hold(_decoded(path, video.times, start), convert, **settings))
    if not frames:
        raise ValueError(f"{path} has no frames: it is empty, damaged or truncated")
    return np.stack(frames)


def _decoded(path: Path, video: Timeline, start: Fraction) -> Iterator[Timed[VideoFrame]]:
    """The pictures of a video and their times after its beginning, from that at ``start`` on or from earlier."""
    for back in (*SEEK_BACK, None):
        with opened(path) as container:
            stream = video_stream(container, path)
            assert stream is not None
            first = time_of(stream.start_time, stream.time_base)
            target = start - (back or 0)
            seeks = back is not None and first is not None and target > 0 and seekable(container) and not video.jumps
            if seeks:
                try:
                    container.seek(int((video.start + target) * 1_000_000))
                except OSError:
                    continue
            clock = Clock(video.start, jumping=jumps(container) and not seeks)
            reached = not seeks
            for frame in decode(container, stream, path):
                if seeks and frame.pts is None:
                    break
                duration = time_of(frame.duration or None, frame.time_base)
                at = clock.read(time_of(frame.pts, frame.time_base), duration or 1 / video.rate) - video.start
                if not reached and at > start:
                    break  # the seek went too far
                reached = True
                yield Timed(at, duration, frame)
            if reached:
                return


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
        found = json.loads(metadata.get("comment") or metadata.get("COMMENT") or "")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
