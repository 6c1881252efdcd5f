"""Steps of a one-way model: the tower that reads nothing leads, the other follows (``step_plan.py``).

What the following rows read of a leading track that stands still is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..model.bridges import Context
from ..model.denoiser import AudioInputs, Denoiser, VideoContextRef, VideoInputs
from .batch import Batch, Index
from .conditioning_cache import ConditioningCache
from .job import Job
from .latent_state import LatentState, Modality
from .step_plan import BranchRow, StepPlan, Weights, audio_leads, lay_out, video_leads
from .streams import Streams


class OneWayBatch(Batch):
    """Requests of an ``adaptor`` model, whose video leads, or of an ``audio_rope`` model, whose audio does."""

    def __init__(self, model: Denoiser, cache: ConditioningCache, streams: Streams | None = None) -> None:
        super().__init__(model, cache, streams)
        self.leader: Modality = "audio" if model.config.bridge == "audio_rope" else "video"
        self.follower: Modality = "video" if self.leader == "audio" else "audio"
        self.context: Context = []
        self.contexts: tuple[BranchRow, ...] = ()

    def plan(self) -> StepPlan:
        """The rows of the step that comes next."""
        return self._planned(self._weights(self.video), self._weights(self.audio))[0]

    def _planned(self, video: list[Weights], audio: list[Weights]) -> tuple[StepPlan, Index]:
        """The layout for these weights and its indices on the device; the same as long as nothing changes."""
        key = (*self._key(video, audio), self.contexts)
        if key not in self._plans:
            audio_text = self.model.config.audio_text
            if self.leader == "video":
                layout = lay_out(video_leads(self.owner, audio_text=audio_text), video, audio, self.contexts)
            else:
                firsts = [self.owner.index(b) for b in range(len(self.jobs))]
                layout = lay_out(audio_leads(firsts, audio_text=audio_text), audio, video, self.contexts)
            self._plans[key] = layout, self._indices(layout)
        return self._plans[key]

    def _indices(self, layout: StepPlan) -> Index:
        begins = layout.following if self.leader == "video" else layout.prefixes
        read = [-1 if row.reads is None else layout.contexts.index(row.reads) for row in layout.following]
        prefixes = [begins.index(row if row in begins else replace(row, reads=None)) for row in layout.following]
        return {
            **self._rows("leading", self.leader, layout.leading),
            **self._rows("following", self.follower, begins),
            "context_rows": self._tensor([layout.leading.index(row) for row in layout.context_rows]),
            "context": self._tensor(read),
            "prefix": self._tensor(prefixes),
            **self._sums(self.leader, layout.leading_weights),
            **self._sums(self.follower, layout.following_weights),
        }

    def _rows(self, name: str, modality: Modality, rows: Sequence[BranchRow]) -> Index:
        owners = self.owner if modality == "audio" else range(len(self.jobs))
        return {
            f"{name}_track": self._tensor([row.track for row in rows]),
            f"{name}_text": self._text_index([(owners[row.track], row.text) for row in rows]),
            f"{name}_replaced": self._tensor([row.replaced for row in rows]),
        }

    def _settle(self, jobs: list[Job], video: list[LatentState], audio: list[LatentState]) -> None:
        super()._settle(jobs, video, audio)
        if jobs and self.leader == "video":
            patch = self.model.config.patch
            _, _, frames, height, width = self.video.latents.shape
            self.positions = self.model.video_token_positions(frames, (height // patch) * (width // patch))

    def _step(self, video: list[Weights], audio: list[Weights]) -> None:
        """What the leading tower does waits for nothing of the following one, here or in the steps that come."""
        layout, index = self._planned(video, audio)
        if self.leader == "video":
            leads, follows, still = self.video, self.audio, _still(video)
        else:
            leads, follows, still = self.audio, self.video, _still(audio)
        self.streams.lead()
        velocities, context = self._lead(layout, index)
        with self.streams.follow(*context, *follows.moving):
            following = self._follow(layout, index, context)
            if self.streams.apart:
                self._move(following, index, follows)
        if self.streams.apart:
            self._move(velocities, index, leads)
        else:
            self._move({**velocities, **following}, index, leads, follows)
        self._keep(layout.contexts, context, still)

    def _lead(self, layout: StepPlan, index: Index) -> tuple[dict[Modality, Tensor], Context]:
        """What moves the leading modality, and all contexts: those that were kept and those of this step."""
        if not layout.leading:
            return {}, self.context
        leading = self._video if self.leader == "video" else self._audio
        velocity, computed = leading(layout, index, "leading", [])
        if not layout.context_rows:
            context = self.context
        elif self.context:
            context = [torch.cat(pair) for pair in zip(self.context, computed, strict=True)]
        else:
            context = computed
        return ({self.leader: velocity} if layout.num_outputs else {}), context

    def _follow(self, layout: StepPlan, index: Index, context: Context) -> dict[Modality, Tensor]:
        """What moves the following modality."""
        if not layout.following:
            return {}
        following = self._audio if self.leader == "video" else self._video
        return {self.follower: following(layout, index, "following", context)[0]}

    def _video(self, layout: StepPlan, index: Index, name: str, context: Context) -> tuple[Tensor, Context]:
        static = _replaced(layout, index, name)
        rows = *self._video_rows(index[f"{name}_track"], static), self.text, index[f"{name}_text"]
        if name == "leading":
            num_outputs = _fewer(layout.num_outputs, layout.leading)
            context_rows = index["context_rows"] if layout.context_rows else None
            inputs = VideoInputs(*rows, num_outputs=num_outputs, context_rows=context_rows)
        elif not _reads(layout.following):
            inputs = VideoInputs(*rows)
        else:
            prefix = index["prefix"] if len(rows[0]) < len(layout.following) else None
            of_row = index["context"]
            inputs = VideoInputs(*rows, audio_context=context, audio_context_of_row=of_row, prefix_of_row=prefix)
        return self.model.video_pass(inputs)

    def _audio(self, layout: StepPlan, index: Index, name: str, context: Context) -> tuple[Tensor, Context]:
        muted = _replaced(layout, index, name)
        rows = *self._audio_rows(index[f"{name}_track"], muted), self.text, index[f"{name}_text"]
        if name == "leading":
            inputs = AudioInputs(*rows, num_outputs=_fewer(layout.num_outputs, layout.leading))
            velocity, contexts = self.model.audio_pass(inputs)
            if layout.context_rows != layout.leading:
                contexts = [part[index["context_rows"]] for part in contexts]
            return velocity, contexts
        if not _reads(layout.following):
            return self.model.audio_pass(AudioInputs(*rows))
        ref = VideoContextRef(self.positions, index["context"])
        return self.model.audio_pass(AudioInputs(*rows, video_context=context, video_context_ref=ref))

    # What is kept

    def _leave(self, stay: Sequence[int]) -> None:
        tracks = stay
        if self.leader == "audio":
            tracks = [track for track, owner in enumerate(self.owner) if owner in set(stay)]
        self._keep(self.contexts, self.context, {track: place for place, track in enumerate(tracks)})

    def _keep(self, rows: Sequence[BranchRow], context: Context, places: Mapping[int, int]) -> None:
        """Keep, of the contexts of leading ``rows``, those of tracks that have a place, under that place.

        Copied only when others are to be kept than before: what a pass has returned is not ours beyond the step, and
        what does not change stays the same tensor.
        """
        keep = [i for i, row in enumerate(rows) if row.track in places]
        if keep != list(range(len(self.contexts))):
            index = self._tensor(keep) if keep else None
            self.context = [] if index is None else [part[index] for part in context]
        self.contexts = tuple(replace(rows[i], track=places[rows[i].track]) for i in keep)


def _fewer(num_outputs: int, rows: Sequence[BranchRow]) -> int | None:
    return num_outputs if num_outputs < len(rows) else None


def _replaced(layout: StepPlan, index: Index, name: str) -> Tensor | None:
    """Which rows have something in place of their latents (R,); None if none has."""
    rows = layout.leading if name == "leading" else layout.following
    return index[f"{name}_replaced"] if any(row.replaced for row in rows) else None


def _still(weights: Sequence[Weights]) -> dict[int, int]:
    """The tracks that do not move, under their own places."""
    return {track: track for track, of_track in enumerate(weights) if of_track is None}


def _reads(rows: Sequence[BranchRow]) -> bool:
    return any(row.reads is not None for row in rows)
