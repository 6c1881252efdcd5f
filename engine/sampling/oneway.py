"""Steps of a one-way model: the tower that reads nothing leads, the other follows (``step_plan.py``).

What the following rows read of a leading modality that stands still is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..model.bridges import Context
from ..model.denoiser import (
    ALL_ROWS,
    AudioInputs,
    Denoiser,
    Modulation,
    StepDenoiser,
    VideoContextRef,
    VideoInputs,
    spatial_tokens,
)
from ..model.tower_step import TowerStep
from .batch import Batch, Index
from .conditioning_cache import ConditioningCache
from .job import Job
from .latent_state import LatentState, Modality
from .step_plan import BranchRow, StepPlan, Weights, audio_leads, plan_step, video_leads
from .streams import Streams


class OneWayBatch(Batch):
    """Requests of an ``adaptor`` model, whose video leads, of an ``audio_rope`` model, whose audio does, or of a model
    without an audio tower, whose audio stands still."""

    def __init__(self, model: Denoiser, cache: ConditioningCache, streams: Streams | None = None) -> None:
        super().__init__(model, cache, streams)
        self.leader: Modality = "audio" if model.config.bridge == "audio_rope" else "video"
        self.follower: Modality = "video" if self.leader == "audio" else "audio"
        self._stepper = model if isinstance(model, StepDenoiser) else None
        self.context: Context = []
        self.contexts: tuple[BranchRow, ...] = ()

    def plan(self) -> StepPlan:
        """The rows of the step that comes next."""
        return self._planned(self._weights(self.video), self._weights(self.audio))[0]

    def _planned(self, video: list[Weights], audio: list[Weights]) -> tuple[StepPlan, Index]:
        """The plan for these weights and its indices on the device; the same as long as nothing changes."""
        key = (*self._key(video, audio), self.contexts)
        if key not in self._plans:
            audio_text = self.model.config.audio_text
            if self.leader == "video":
                plan = plan_step(video_leads(self.owner, audio_text=audio_text), video, audio, self.contexts)
            else:
                firsts = [self.owner.index(b) for b in range(len(self.jobs))]
                plan = plan_step(audio_leads(firsts, audio_text=audio_text), audio, video, self.contexts)
            self._plans[key] = plan, self._indices(plan)
        return self._plans[key]

    def _indices(self, plan: StepPlan) -> Index:
        begins = plan.following if self.leader == "video" else plan.prefixes
        read = [-1 if row.reads is None else plan.contexts.index(row.reads) for row in plan.following]
        prefixes = [begins.index(row if row in begins else replace(row, reads=None)) for row in plan.following]
        return {
            **self._rows("leading", self.leader, plan.leading),
            **self._rows("following", self.follower, begins),
            "context_rows": self._tensor([plan.leading.index(row) for row in plan.context_rows]),
            "context": self._tensor(read),
            "prefix": self._tensor(prefixes),
            **self._sums(self.leader, plan.leading_weights),
            **self._sums(self.follower, plan.following_weights),
        }

    def _rows(self, name: str, modality: Modality, rows: Sequence[BranchRow]) -> Index:
        owners = self.owner if modality == "audio" else range(len(self.jobs))
        return {
            f"{name}_sample": self._tensor([row.sample for row in rows]),
            f"{name}_text": self._text_index([(owners[row.sample], row.text) for row in rows]),
            f"{name}_replaced": self._tensor([row.replaced for row in rows]),
        }

    def _stack_latents(self, jobs: list[Job], video: list[LatentState], audio: list[LatentState]) -> None:
        super()._stack_latents(jobs, video, audio)
        if not jobs:
            return
        if self.leader == "video" and self.model.config.has_audio:
            tokens = spatial_tokens(self.model.config, self.video.latents)
            self.positions = self.model.video_token_positions(self.frame_times, tokens)

    def _step(self, video: list[Weights], audio: list[Weights]) -> None:
        """What the leading tower does waits for nothing of the following one, here or in the steps that come."""
        plan, index = self._planned(video, audio)
        if self.leader == "video":
            leads, follows, standing = self.video, self.audio, _standing(video)
        else:
            leads, follows, standing = self.audio, self.video, _standing(audio)
        self.streams.lead()
        velocities, context = self._lead(plan, index)
        with self.streams.follow(*context, *follows.moving):
            following = self._follow(plan, index, context)
            if self.streams.overlap:
                self._move(following, index, follows)
        if self.streams.overlap:
            self._move(velocities, index, leads)
        else:
            self._move({**velocities, **following}, index, leads, follows)
        self._keep(plan.contexts, context, standing)

    def _lead(self, plan: StepPlan, index: Index) -> tuple[dict[Modality, Tensor], Context]:
        """What moves the leading modality, and all contexts: those that were kept and those of this step."""
        if not plan.leading:
            return {}, self.context
        leading = self._video if self.leader == "video" else self._audio
        velocity, computed = leading(plan, index, "leading", [])
        if not plan.context_rows:
            context = self.context
        elif self.context:
            context = [torch.cat(pair) for pair in zip(self.context, computed, strict=True)]
        else:
            context = computed
        return ({} if velocity is None or not plan.num_outputs else {self.leader: velocity}), context

    def _follow(self, plan: StepPlan, index: Index, context: Context) -> dict[Modality, Tensor]:
        """What moves the following modality."""
        if not plan.following:
            return {}
        following = self._audio if self.leader == "video" else self._video
        velocity, _ = following(plan, index, "following", context)
        return {} if velocity is None else {self.follower: velocity}

    def _whole_step(self, plan: StepPlan, index: Index, name: str) -> TowerStep | None:
        """The step of the ``leading`` or ``following`` modality for a model that takes it whole.

        None where the model does not, and where the step is more than a sum of velocities.
        """
        modality = self.leader if name == "leading" else self.follower
        batched, rows = (self.video if modality == "video" else self.audio), getattr(plan, name)
        moves = plan.num_outputs > 0 if name == "leading" else bool(rows)
        fits = self._stepper is not None and len(rows) <= self._stepper.max_rows
        plain = batched.is_plain and not self._rescales and not any(row.replaced for row in rows)
        if not (moves and fits and plain) or (modality == "video" and self._wants_estimate):
            return None
        self._stepped.add(modality)
        return batched.tower_step(index[f"{name}_sample"], index[f"{modality}_rows"], index[f"{modality}_weights"])

    def _video(self, plan: StepPlan, index: Index, name: str, context: Context) -> tuple[Tensor | None, Context]:
        """Velocity, None after a whole step, and contexts."""
        step = self._whole_step(plan, index, name)
        if step is None:
            latents, modulation = self._video_rows(index[f"{name}_sample"], _replaced(plan, index, name))
        else:
            latents, modulation = step.latents, Modulation(*step.times)
        rows = latents, modulation, self.text, index[f"{name}_text"]
        if name == "leading":
            num_outputs = _fewer(plan.num_outputs, plan.leading)
            context_rows = ALL_ROWS if plan.all_give_contexts else index["context_rows"]
            inputs = VideoInputs(
                *rows,
                num_outputs=num_outputs,
                context_rows=context_rows if plan.context_rows else None,
                frame_times=self.frame_times,
                pixels=self.pixels,
            )
        elif not _reads(plan.following):
            inputs = VideoInputs(*rows, frame_times=self.frame_times)
        else:
            prefix = index["prefix"] if len(plan.prefixes) < len(plan.following) else None
            inputs = VideoInputs(
                *rows,
                audio_context=context,
                audio_context_of_row=index["context"],
                prefix_of_row=prefix,
                frame_times=self.frame_times,
            )
        if step is None or self._stepper is None:
            return self.model.video_pass(inputs)
        return None, self._stepper.video_step(inputs, step)

    def _audio(self, plan: StepPlan, index: Index, name: str, context: Context) -> tuple[Tensor | None, Context]:
        """Velocity, None after a whole step, and contexts."""
        step = self._whole_step(plan, index, name)
        if step is None:
            latents, (found,) = self._audio_rows(index[f"{name}_sample"], _replaced(plan, index, name))
            times = found[:, 0]
        else:
            latents, (times,) = step.latents, step.times
        inputs = AudioInputs(latents, times, self.text, index[f"{name}_text"])
        if name == "leading":
            inputs = replace(inputs, num_outputs=_fewer(plan.num_outputs, plan.leading))
        elif _reads(plan.following):
            ref = VideoContextRef(self.positions, index["context"])
            inputs = replace(inputs, video_context=context, video_context_ref=ref)
        velocity: Tensor | None = None
        if step is None or self._stepper is None:
            velocity, contexts = self.model.audio_pass(inputs)
        else:
            contexts = self._stepper.audio_step(inputs, step)
        if name == "leading" and not plan.all_give_contexts:
            contexts = [part[index["context_rows"]] for part in contexts]
        return velocity, contexts

    # What is kept

    def _leave(self, stay: Sequence[int]) -> None:
        samples = stay
        if self.leader == "audio":
            samples = [sample for sample, owner in enumerate(self.owner) if owner in set(stay)]
        self._keep(self.contexts, self.context, {sample: place for place, sample in enumerate(samples)})

    def _keep(self, rows: Sequence[BranchRow], context: Context, places: Mapping[int, int]) -> None:
        """Keep, of the contexts of leading ``rows``, those of samples that have a place, under that place.

        Copied only when others are to be kept than before: what a pass has returned is not ours beyond the step, and
        what does not change stays the same tensor.
        """
        keep = [i for i, row in enumerate(rows) if row.sample in places]
        if keep != list(range(len(self.contexts))):
            index = self._tensor(keep) if keep else None
            self.context = [] if index is None else [part[index] for part in context]
        self.contexts = tuple(replace(rows[i], sample=places[rows[i].sample]) for i in keep)


def _fewer(num_outputs: int, rows: Sequence[BranchRow]) -> int | None:
    return num_outputs if num_outputs < len(rows) else None


def _replaced(plan: StepPlan, index: Index, name: str) -> Tensor | None:
    """Which rows have something in place of their latents (R,); None if none has."""
    rows = plan.leading if name == "leading" else plan.following
    return index[f"{name}_replaced"] if any(row.replaced for row in rows) else None


def _standing(weights: Sequence[Weights]) -> dict[int, int]:
    """The samples that do not move, under their own places."""
    return {sample: sample for sample, of_sample in enumerate(weights) if of_sample is None}


def _reads(rows: Sequence[BranchRow]) -> bool:
    return any(row.reads is not None for row in rows)
