"""Opens a media file; whatever is wrong with it is one ``ValueError`` that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .limits import MAX_PIXELS, check_pixels

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream

SEEK_BACK = (0, 2, 10)  # seconds before the asked time from which decoding is tried, and then the beginning


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """An open file whose every failure is a ``ValueError`` that names it."""
    import av

    try:
        if not path.exists():
            raise ValueError(f"{path} does not exist")
        if not path.is_file():
            raise ValueError(f"{path} is not a file")
        with av.open(str(path), metadata_errors="replace", options={"max_pixels": str(MAX_PIXELS)}) as container:
            _check_complete(container, path)
            yield container
    except (PermissionError, av.error.PermissionError) as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except av.error.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as media: it is damaged, truncated or of another kind") from error
    except MemoryError as error:
        raise ValueError(f"{path} needs more memory than there is to be read") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def _check_complete(container: InputContainer, path: Path) -> None:
    """Refuse a file without decodable streams and one whose own index points beyond its end."""
    streams = [*container.streams.video, *container.streams.audio]
    if all(stream.codec_context is None for stream in streams):
        raise ValueError(f"{path} holds nothing that can be decoded: it is damaged, truncated or of another kind")
    length = path.stat().st_size
    for stream in streams:
        if any(entry.pos + entry.size > length for entry in stream.index_entries):
            raise ValueError(f"{path} is truncated: it has {length} bytes and its index needs more")


def video_stream(container: InputContainer, path: Path) -> VideoStream | None:
    """The video of a file, no cover picture: the stream that FFmpeg takes, or one with more pictures than that."""
    import av

    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if stream.codec_context and not stream.disposition & cover]
    if not streams:
        return None
    # An animated AVIF is a still picture and a video, and each may have its alpha beside it.
    moving = [stream for stream in streams if stream.frames > 1 or len(stream.index_entries) > 1]
    best = container.streams.best("video")
    found = best if best in streams and (best in moving or not moving) else (moving or streams)[0]
    check_pixels(str(path), found.width, found.height)
    found.thread_type = "AUTO"
    found.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return found


def cover_picture(container: InputContainer) -> VideoStream | None:
    """The picture beside a sound."""
    return next((stream for stream in container.streams.video if stream.codec_context), None)


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The sound of a file: the stream that FFmpeg takes."""
    best = container.streams.best("audio")
    streams = [stream for stream in container.streams.audio if stream.codec_context]
    return next((stream for stream in streams if stream is best), next(iter(streams), None))


def time_of(value: int | None, time_base: Fraction | None) -> Fraction | None:
    """A timestamp in seconds."""
    return None if value is None or not time_base else value * Fraction(time_base)


def jumps(container: InputContainer) -> bool:
    """Whether the timestamps of this kind of container may begin anew within a file (MPEG-TS, MPEG-PS, Ogg)."""
    import av

    flags: Any = container.format.flags
    return bool(flags & av.format.Flags.ts_discont.value)


def seekable(container: InputContainer) -> bool:
    """Whether timestamps are still right after a seek: not where FFmpeg counts them from the beginning of the file."""
    import av

    counted: Any = av.format.Flags.generic_index.value | av.format.Flags.no_timestamps.value
    flags: Any = container.format.flags
    return not flags & counted


def decode(container: InputContainer, stream: VideoStream | AudioStream, path: Path) -> Iterator[Any]:
    """The frames of a stream, ``VideoFrame`` or ``AudioFrame``. Damaged packets are left out as FFmpeg does;
    ``ValueError`` where most of them are.
    """
    import av

    good, damaged = 0, 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            damaged += 1
            continue
        for frame in frames:
            good += 1
            yield frame
    if damaged > good:
        raise ValueError(f"{path} is damaged: {damaged} of its packets cannot be decoded")
