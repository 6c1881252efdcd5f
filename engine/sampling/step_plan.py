"""Which rows the towers compute: the branches of all requests, each thing once.

In a one-way model one tower leads, reading nothing of the other, and one follows. A branch is a row of the leading
tower (its text; a still picture or silence in place of the latents) and a row of the following tower that reads one of
those, or none where the bridge is skipped. Branches that come to the same row share it: the leading tower knows nothing
of a skipped bridge, so a sync branch adds rows to the following tower alone, and all takes of a sound read the rows of
one video; a tower that reads no text has one row for all texts. A row that no weight and no reader asks for is left
out, and a row whose readers find what they read of it kept. In a model where each tower reads the other a branch is a
row of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from .guidance import Branch

Weights = Mapping[Branch, float] | None
"""Weights of the branches of one sample; None while it does not move."""
Sums = tuple[tuple[tuple[int, float], ...], ...]
"""By sample the rows that its step adds up: (index, weight) pairs."""


@dataclass(frozen=True)
class BranchRow:
    """A row of a tower: a sample of its modality (the video of a request, or one take of its sound), with the text or
    the absence of it.

    ``replaced``: a still picture or silence, clean, stands in place of the latents. ``reads``: the row of the other
    tower that it reads.
    """

    sample: int
    text: bool
    replaced: bool = False
    reads: BranchRow | None = None


@dataclass(frozen=True)
class StepPlan:
    """Rows of one step of a one-way model.

    ``leading`` rows, of which the first ``num_outputs`` have weights, and of which ``context_rows`` give contexts;
    ``following`` rows; ``contexts``: the rows whose contexts are there after the leading pass, those that were kept
    first.
    """

    leading: tuple[BranchRow, ...]
    num_outputs: int
    context_rows: tuple[BranchRow, ...]
    following: tuple[BranchRow, ...]
    contexts: tuple[BranchRow, ...]
    leading_weights: Sums
    following_weights: Sums

    @cached_property
    def all_give_contexts(self) -> bool:
        """Whether every leading row gives a context, so that none has to be selected."""
        return self.context_rows == self.leading

    @property
    def prefixes(self) -> tuple[BranchRow, ...]:
        """The following rows as they are before they read anything, each once."""
        return tuple(dict.fromkeys(replace(row, reads=None) for row in self.following))


@dataclass(frozen=True)
class RowMapping:
    """How the branch of a sample becomes rows: of the leading tower, and of the following one."""

    leading: Callable[[int, Branch], BranchRow]
    following: Callable[[int, Branch], BranchRow]


def video_leads(video_of: Sequence[int], *, audio_text: bool) -> RowMapping:
    """The audio reads the video (``adaptor``); ``video_of`` gives the video of every take of a sound."""

    def leading(sample: int, branch: Branch) -> BranchRow:
        return BranchRow(sample, branch.text, branch.static)

    def following(sample: int, branch: Branch) -> BranchRow:
        read = leading(video_of[sample], branch) if branch.bridge else None
        return BranchRow(sample, branch.text or not audio_text, reads=read)

    return RowMapping(leading, following)


def audio_leads(audio_of: Sequence[int], *, audio_text: bool) -> RowMapping:
    """The video reads the audio (``audio_rope``); ``audio_of`` gives the sound of every video."""

    def leading(sample: int, branch: Branch) -> BranchRow:
        return BranchRow(sample, branch.text or not audio_text, branch.muted)

    def following(sample: int, branch: Branch) -> BranchRow:
        read = leading(audio_of[sample], branch) if branch.bridge else None
        return BranchRow(sample, branch.text, branch.static, read)

    return RowMapping(leading, following)


def plan_step(
    mapping: RowMapping, leading: Sequence[Weights], following: Sequence[Weights], kept: Sequence[BranchRow] = ()
) -> StepPlan:
    """Rows for the weights of every sample; ``kept`` are leading rows whose contexts are there already."""
    leading_sums, following_sums = _sums(leading, mapping.leading), _sums(following, mapping.following)
    weighted, follows = _rows(leading_sums), _rows(following_sums)
    read = dict.fromkeys(row.reads for row in follows if row.reads is not None)
    context_rows = tuple(row for row in read if row not in kept)
    rows = tuple(dict.fromkeys((*weighted, *context_rows)))
    return StepPlan(
        leading=rows,
        num_outputs=len(weighted),
        context_rows=context_rows,
        following=follows,
        contexts=(*kept, *context_rows),
        leading_weights=_indexed(leading_sums, rows),
        following_weights=_indexed(following_sums, follows),
    )


@dataclass(frozen=True)
class JointBranchRow:
    """A branch of a request through both towers at once."""

    sample: int
    branch: Branch


@dataclass(frozen=True)
class JointStepPlan:
    """Rows of a pass through both towers; ``bridged`` come first. Weights count within the rows of their modality."""

    rows: tuple[JointBranchRow, ...]
    bridged: int
    video: tuple[JointBranchRow, ...]
    audio: tuple[JointBranchRow, ...]
    video_weights: Sums
    audio_weights: Sums


def plan_joint_step(video: Sequence[Weights], audio: Sequence[Weights]) -> JointStepPlan:
    """Every branch that has a weight on a modality that moves, once."""
    video_sums, audio_sums = _sums(video, JointBranchRow), _sums(audio, JointBranchRow)
    of_video, of_audio = _rows(video_sums), _rows(audio_sums)
    rows = sorted(dict.fromkeys((*of_video, *of_audio)), key=lambda row: not row.branch.bridge)
    bridged = sum(row.branch.bridge for row in rows)
    return JointStepPlan(
        tuple(rows), bridged, of_video, of_audio, _indexed(video_sums, of_video), _indexed(audio_sums, of_audio)
    )


def _sums(samples: Sequence[Weights], row_of):
    """By sample, weights by row. A row whose weights cancel is left out; not the first, to which a plan may rescale."""
    found = []
    for sample, weights in enumerate(samples):
        sums: dict = {}
        for branch, weight in (weights or {}).items():
            row = row_of(sample, branch)
            sums[row] = sums.get(row, 0.0) + weight
        first = next(iter(sums), None)
        found.append({row: weight for row, weight in sums.items() if abs(weight) > 1e-9 or row == first})
    return found


def _rows(sums: Iterable[Mapping]) -> tuple:
    return tuple(dict.fromkeys(row for one in sums for row in one))


def _indexed(sums, rows) -> Sums:
    places = {row: i for i, row in enumerate(rows)}
    return tuple(tuple((places[row], weight) for row, weight in one.items()) for one in sums)
