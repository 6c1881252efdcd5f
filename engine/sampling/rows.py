"""Which rows the towers compute: the branches of all requests, each thing once.

In a model whose video reads no audio a branch is a row of the video tower (its text, or a still picture) and a row of
the audio tower that reads one of those, or none where the bridge is skipped. Branches that come to the same row share
it: the video tower knows nothing of a skipped bridge or of muted audio, so a sync branch adds rows to the audio tower
alone; and a row that no weight and no audio row asks for is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .guidance import Branch

Weights = Mapping[Branch, float]


@dataclass(frozen=True)
class VideoRow:
    """A request's video with its text or the absence of it; ``static``: a still picture, clean, in its place."""

    request: int
    text: bool
    static: bool = False


@dataclass(frozen=True)
class AudioRow:
    """A request's audio that reads the features of ``source``, or nothing; ``text`` counts where the tower reads it."""

    request: int
    text: bool
    source: VideoRow | None


@dataclass(frozen=True)
class JointRow:
    """A branch of a request through both towers at once, in a model whose video reads the audio."""

    request: int
    branch: Branch


@dataclass(frozen=True)
class JointLayout:
    """Rows of a forward through both towers, and per request the rows that its steps add up."""

    rows: tuple[JointRow, ...]
    video_weights: tuple[tuple[tuple[int, float], ...], ...]
    audio_weights: tuple[tuple[tuple[int, float], ...], ...]


def lay_out_jointly(video: Sequence[Weights] | None, audio: Sequence[Weights] | None) -> JointLayout:
    """Every branch that has a weight on a modality that moves, once."""
    sums = [
        [_merged(weights, lambda branch, b=b: JointRow(b, branch)) for b, weights in _each(of)] for of in (video, audio)
    ]
    rows = tuple(dict.fromkeys(row for of in sums for one in of for row in one))
    return JointLayout(rows, _indexed(sums[0], rows), _indexed(sums[1], rows))


@dataclass(frozen=True)
class Layout:
    """Rows of both towers, and per request the rows that its step adds up: (index, weight) pairs.

    Audio rows that read the video come first. Empty weights belong to a modality that does not move.
    """

    video: tuple[VideoRow, ...]
    audio: tuple[AudioRow, ...]
    video_weights: tuple[tuple[tuple[int, float], ...], ...]
    audio_weights: tuple[tuple[tuple[int, float], ...], ...]

    @property
    def sources(self) -> tuple[VideoRow, ...]:
        """The video rows that the audio reads, each once."""
        return tuple(dict.fromkeys(row.source for row in self.audio if row.source is not None))


def lay_out(
    video: Sequence[Weights] | None, audio: Sequence[Weights] | None, *, audio_text: bool, features_kept: bool = False
) -> Layout:
    """Rows for the weights of B requests; None for a modality that does not move at this step.

    ``features_kept``: what the audio reads is there already, and the video tower runs only for its own weights.
    """
    video_sums = [_merged(weights, lambda branch, b=b: VideoRow(b, branch.text)) for b, weights in _each(video)]
    audio_sums = [
        _merged(weights, lambda branch, b=b: _audio_row(b, branch, audio_text)) for b, weights in _each(audio)
    ]
    audio_rows = sorted({row: None for sums in audio_sums for row in sums}, key=lambda row: row.source is None)
    wanted = dict.fromkeys(row for sums in video_sums for row in sums)
    if not features_kept:
        wanted |= dict.fromkeys(row.source for row in audio_rows if row.source is not None)
    video_rows = tuple(wanted)
    return Layout(video_rows, tuple(audio_rows), _indexed(video_sums, video_rows), _indexed(audio_sums, audio_rows))


def _audio_row(request: int, branch: Branch, audio_text: bool) -> AudioRow:
    source = VideoRow(request, branch.text, branch.static) if branch.bridge else None
    return AudioRow(request, branch.text or not (branch.bridge or audio_text), source)


def _each(weights: Sequence[Weights] | None) -> list[tuple[int, Weights]]:
    return [] if weights is None else list(enumerate(weights))


def _merged(weights, row_of):
    """Weights by row; a row whose weights cancel is left out."""
    sums: dict = {}
    for branch, weight in weights.items():
        row = row_of(branch)
        sums[row] = sums.get(row, 0.0) + weight
    return {row: weight for row, weight in sums.items() if abs(weight) > 1e-9}


def _indexed(sums, rows):
    places = {row: i for i, row in enumerate(rows)}
    return tuple(tuple((places[row], weight) for row, weight in one.items()) for one in sums)
