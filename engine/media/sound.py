"""Decoded sound in mono at one sample rate, every sample at the time that its file says."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .limits import MAX_CHANNELS, MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, check_memory
from .opening import SEEK_BACK, audio_stream, decode, jumps, opened, seekable, time_of
from .timing import Clock

if TYPE_CHECKING:
    from av import AudioFrame

LEAD_IN = Fraction(1, 5)  # seconds decoded before the start, which a codec needs to have settled
SMALLEST_GAP = Fraction(3, 200)  # seconds; less is the rounding and jitter of a recorder's timestamps
BEYOND = 1  # seconds read past the end, for frames out of order
GUESSED_LAYOUTS = 8  # channels; where a file names none, FFmpeg takes the usual layout for their number


def read_sound(path: Path, sample_rate: int, start: Fraction, samples: int | None) -> np.ndarray:
    """Mono samples float32 (M,) from ``start`` (seconds on the clock of the file) on, ``samples`` of them or all.

    Gaps are silent. A sound of more than two channels that would exceed full scale is scaled down to it.
    """
    blocks: list[tuple[int, np.ndarray]] = []
    length, surround = 0, False
    end = None if samples is None else start + Fraction(samples, sample_rate) + BEYOND
    run: _Run | None = None
    for at, frame in _frames(path, start):
        if end is not None and at >= end:
            break
        if run is None or not run.continues(at, frame):
            blocks += run.finish() if run else []
            run = _Run(path, at, frame, sample_rate, start)
            surround = surround or frame.layout.nb_channels > 2
        blocks += run.push(frame)
        reach = round((at - start) * sample_rate) + frame.samples * sample_rate // frame.sample_rate
        length = max(length, reach)
        check_memory(f"{path} has too many samples", length if samples is None else samples, 4)
    blocks += run.finish() if run else []
    if samples is None:
        samples = max((position + len(block) for position, block in blocks), default=0)
    check_memory(f"{path} has too many samples", max(0, samples), 4)
    waveform = np.zeros(max(0, samples), np.float32)
    for position, block in blocks:
        first, last = max(0, position), min(len(waveform), position + len(block))
        if first < last:
            waveform[first:last] = block[first - position : last - position]
    np.nan_to_num(waveform, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
    peak = max(float(waveform.max(initial=0)), -float(waveform.min(initial=0)))
    if surround and peak > 1:
        waveform /= np.float32(peak)
    return np.clip(waveform, -1, 1, out=waveform)


def _frames(path: Path, start: Fraction) -> Iterator[tuple[Fraction, AudioFrame]]:
    """The frames of a sound with their times, from a little before ``start`` on."""
    for back in (*SEEK_BACK, None):
        with opened(path) as container:
            stream = audio_stream(container)
            if stream is None:
                return
            first = time_of(stream.start_time, stream.time_base)
            target = start - LEAD_IN - (back or 0)
            seeks = back is not None and first is not None and target > first and seekable(container)
            if seeks:
                try:
                    container.seek(int(target * 1_000_000))
                except OSError:
                    continue
            clock = Clock(first or Fraction(0), jumping=jumps(container) and not seeks)
            counted = not seekable(container) and not jumps(container)  # and wrongly after a change of the rate
            reached = not seeks
            for frame in decode(container, stream, path):
                if not MIN_SAMPLE_RATE <= frame.sample_rate <= MAX_SAMPLE_RATE or not frame.samples:
                    raise ValueError(f"{path} is damaged: it states a sample rate of {frame.sample_rate}")
                if seeks and frame.pts is None:
                    break
                stated = None if counted else time_of(frame.pts, frame.time_base)
                at = clock.read(stated, Fraction(frame.samples, frame.sample_rate))
                if not reached and at > start:
                    break  # the seek went too far
                reached = True
                yield at, frame
            if reached:
                return


class _Run:
    """Frames of one kind without a gap between them, through one graph of FFmpeg filters."""

    def __init__(self, path: Path, at: Fraction, frame: AudioFrame, sample_rate: int, start: Fraction) -> None:
        import av

        if frame.layout.nb_channels > MAX_CHANNELS:
            raise ValueError(f"{path} has {frame.layout.nb_channels} channels; at most {MAX_CHANNELS} are mixed")
        self.kind = _kind(frame)
        self.at, self.pushed, self.rate = at, 0, frame.sample_rate
        self.position = round((at - start) * sample_rate)
        self.graph = av.filter.Graph()
        layout, mix = _mix(frame)
        source = self.graph.add(
            "abuffer",
            sample_rate=str(frame.sample_rate),
            sample_fmt=frame.format.name,
            channel_layout=layout,
            time_base=f"1/{frame.sample_rate}",
        )
        form = self.graph.add("aformat", sample_rates=str(sample_rate), sample_fmts="flt", channel_layouts="mono")
        nodes = [source, *(self.graph.add(name, options) for name, options in mix), form, self.graph.add("abuffersink")]
        for node, following in pairwise(nodes):
            node.link_to(following)
        self.graph.configure()

    def continues(self, at: Fraction, frame: AudioFrame) -> bool:
        """Whether the frame is of this kind and begins where the last one ends."""
        return _kind(frame) == self.kind and abs(self.at + Fraction(self.pushed, self.rate) - at) <= SMALLEST_GAP

    def push(self, frame: AudioFrame | None) -> list[tuple[int, np.ndarray]]:
        """Mix and resample a frame, or the end: blocks of samples and where they belong."""
        import av

        if frame is not None:
            frame.pts, frame.time_base = self.pushed, Fraction(1, self.rate)
            self.pushed += frame.samples
        self.graph.push(frame)
        blocks: list[tuple[int, np.ndarray]] = []
        while True:
            try:
                block = self.graph.pull().to_ndarray()[0]
            except (av.error.BlockingIOError, av.error.EOFError):
                return blocks
            blocks.append((self.position, block))
            self.position += len(block)

    def finish(self) -> list[tuple[int, np.ndarray]]:
        """What the filters still hold."""
        return self.push(None)


def _kind(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _mix(frame: AudioFrame) -> tuple[str, list[tuple[str, str]]]:
    """The layout by name, and the filters that mix it to mono: libswresample's matrix, which is that of ITU-R BS.775
    (centre 1, left and right 0.71, surround 0.5, no LFE); for stereo half of each; where FFmpeg knows no layout, the
    mean of all channels; of ambisonics the omnidirectional channel.
    """
    import av

    count, layout = frame.layout.nb_channels, frame.layout.name
    if count == 1:
        return layout, [("pan", "mono|c0=c0")]
    if layout.startswith("ambisonic"):
        return layout, [("pan", "mono|c0=c0")]
    if _is_unknown(layout):
        if count > GUESSED_LAYOUTS:
            return layout, [("pan", "mono|c0=" + "+".join(f"{1 / count:.9f}*c{index}" for index in range(count)))]
        layout = av.AudioLayout(_USUAL[count]).name
    return layout, [("aresample", "rematrix_maxval=1.0" if count == 2 else "rematrix_maxval=0")]


def _is_unknown(layout: str) -> bool:
    return layout.endswith(" channels")


_USUAL = {2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
