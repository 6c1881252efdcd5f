"""Times of pictures as FFmpeg takes them, in exact fractions of a second."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, repeat
from typing import TYPE_CHECKING, Generic, TypeVar

from .limits import MAX_FPS, MIN_FPS
from .opening import jumps, time_of

if TYPE_CHECKING:
    import numpy as np
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream

DEFAULT_FPS = Fraction(25)
MAX_COMMON_FPS = 60  # above it a common multiple of unequal intervals is no rate that anybody chose
COARSE_TICK = Fraction(1, 500)
JUMP_BACK, JUMP_AHEAD = Fraction(1, 10), Fraction(10)  # seconds; beyond them FFmpeg takes timestamps to begin anew
T = TypeVar("T")


@dataclass(frozen=True)
class Timed(Generic[T]):
    """A picture and when it is shown, in seconds; ``duration`` is ``None`` where the file does not say."""

    at: Fraction
    duration: Fraction | None
    picture: T


@dataclass(frozen=True)
class Timeline:
    """When a stream begins and ends on the clock of its file, its rate in pictures per second, and whether its
    timestamps begin anew within it.
    """

    start: Fraction
    end: Fraction
    rate: Fraction
    jumps: bool = False

    @property
    def seconds(self) -> Fraction:
        return self.end - self.start


class Clock:
    """Timestamps in seconds: without gaps where a container's begin anew, counted on where a frame has none."""

    def __init__(self, first: Fraction, *, jumping: bool) -> None:
        self.jumping = jumping
        self.offset = Fraction(0)
        self.next = first
        self.last: Fraction | None = None
        self.jumped = False

    def read(self, at: Fraction | None, duration: Fraction) -> Fraction:
        """The time of a frame with this timestamp."""
        if at is None:
            at = self.next
        elif self.jumping and self.last is not None:
            ahead = at + self.offset - self.next
            if ahead > JUMP_AHEAD or at + self.offset < self.last - JUMP_BACK:
                self.offset, self.jumped = self.next - at, True
            at += self.offset
        self.last, self.next = at, at + duration
        return at


def exact(value: float) -> Fraction:
    """The fraction that a rate or a time was rounded from: 30000/1001 for 29.97002997…"""
    return Fraction(value).limit_denominator(1_000_000)


def timeline(container: InputContainer, stream: VideoStream | AudioStream, *, scan: bool = True) -> Timeline:
    """Of a stream of a file that was just opened.

    A file without a complete index is read to its end unless ``scan`` is false; then end and rate are what its headers
    say.
    """
    start = time_of(stream.start_time, stream.time_base)
    stated = time_of(stream.duration, stream.time_base)
    if stream.frames > 0 and stated and start is not None and "mp4" in container.format.name:
        entries = (entry.timestamp for entry in stream.index_entries if not entry.is_discard)
        times = [entry * Fraction(stream.time_base or 0) for entry in entries]
        shortest = min((later - earlier for earlier, later in pairwise(times)), default=stated)
        if not scan or (times and times[-1] - times[0] + shortest / 2 < stated):
            return Timeline(start, start + stated, _rate(stream, times, start + stated))
    if not scan and start is not None and not jumps(container):
        return Timeline(start, start + (stated or 0), _stated_rate(stream))
    return _scan(container, stream)


def _scan(container: InputContainer, stream: VideoStream | AudioStream) -> Timeline:
    """By reading every packet and decoding none."""
    step = 1 / _stated_rate(stream)
    clock = Clock(Fraction(0), jumping=jumps(container))
    times: list[Fraction] = []
    end = Fraction(0)
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        duration = time_of(packet.duration, packet.time_base) or Fraction(0)
        decoded = time_of(packet.dts if packet.dts is not None else packet.pts, packet.time_base)
        shown = time_of(packet.pts if packet.pts is not None else packet.dts, packet.time_base)
        at = clock.read(decoded, duration or step)
        if decoded is not None and shown is not None:
            at += shown - decoded
        times.append(at)
        end = max(end, at + (duration or _last_interval(times) or step))
    start = time_of(stream.start_time, stream.time_base)
    if start is None:
        start = min(times, default=Fraction(0))
    return Timeline(start, max(end, start), _rate(stream, times, end), clock.jumped)


def _last_interval(times: list[Fraction]) -> Fraction:
    return abs(times[-1] - times[-2]) if len(times) > 1 else Fraction(0)


def _stated_rate(stream: VideoStream | AudioStream) -> Fraction:
    """Pictures per second as FFmpeg takes them from the file's headers and first packets."""
    for rate in () if stream.type == "audio" else (stream.guessed_rate, stream.average_rate):
        if rate and MIN_FPS <= rate <= MAX_FPS:
            return Fraction(rate)
    return DEFAULT_FPS


def _rate(stream: VideoStream | AudioStream, times: list[Fraction], end: Fraction) -> Fraction:
    return common_rate(times, end, Fraction(stream.time_base or Fraction(1, 1000)), _stated_rate(stream))


def common_rate(times: list[Fraction], end: Fraction, tick: Fraction, stated: Fraction) -> Fraction:
    """Pictures per second at which every picture is seen: the stated rate if they stand for equal times, else the
    smallest that all of their times are multiples of, up to 60, else the stated one, at least 25.
    """
    times = sorted(set(times))
    intervals = [later - earlier for earlier, later in pairwise(times)]
    if not intervals:
        return stated
    last = end - times[-1]
    if len(intervals) == 1:
        intervals.append(last or intervals[0])
    if max(intervals) - min(intervals) <= min(2 * tick, min(intervals) / 4):
        return stated if abs(stated * intervals[0] - 1) < Fraction(1, 4) else 1 / intervals[0]
    ticks = [round(interval / tick) for interval in intervals]
    for common in (math.gcd(*ticks, round(last / tick)) * tick, math.gcd(*ticks) * tick):
        if common and MIN_FPS <= 1 / common <= MAX_COMMON_FPS:
            return 1 / common
    return max(stated, DEFAULT_FPS)


def hold(
    pictures: Iterable[Timed[T]],
    convert: Callable[[T], np.ndarray],
    *,
    rate: Fraction,
    start: Fraction,
    count: int | None,
    tick: Fraction,
    least: Fraction,
    ended: Callable[[Fraction], ValueError],
    check: Callable[[int], None],
) -> Iterator[np.ndarray]:
    """What is shown at ``start`` + k / ``rate``, converted: each picture from its time until that of the next.

    ``count`` of them, or all. Before the first picture stands the first, after the end the last. Times that a container
    rounded to its ``tick`` count as the exact ones. The last picture is shown for ``least`` seconds or more. ``ended``
    makes the error for a start beyond the end; ``check`` refuses too many.
    """
    early = min(tick, 1 / (4 * rate)) if tick <= COARSE_TICK else Fraction(0)
    given, shown = 0, None
    step = 1 / rate
    for picture in pictures:
        at = picture.at if shown is None else max(picture.at, shown.at)
        if shown is not None:
            step = at - shown.at or step
            until = math.ceil((at - early - start) * rate)  # the first k that shows the next picture
            until = until if count is None else min(until, count)
            if until > given:
                image = convert(shown.picture)
                check(until)
                yield from repeat(image, until - given)
                given = until
        if given == count:
            return
        shown = Timed(at, picture.duration, picture.picture)
    if shown is None:
        return
    end = shown.at + max(shown.duration or step, least)
    if end <= start:
        raise ended(end)
    total = max(1, round((end - start) * rate)) if count is None else count
    check(total)
    if total > given:
        yield from repeat(convert(shown.picture), total - given)
