"""What stands around sampling: a request made ready for it, and latents made into clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .components import Components
from .config import SequenceConfig
from .media import probe
from .sampling.guidance import (
    GuidancePlan,
    combine,
    sync_cfg_audio,
    sync_cfg_video,
    sync_guidance,
    text_guidance,
    unbridged,
)
from .sampling.job import Job, Known, Text
from .sampling.schedule import Schedule, schedule
from .tasks import Given, default, heard, known_latents, reference, restore, take, task_of
from .types import MAX_SEED, OF_VIDEO, Clip, Latents, Request

PROMPTS = 256
# Settings of a request: those with a default of the model's, and those that are off unless they are given.
DEFAULTED = ("steps", "guidance", "shift", "video_lead", "sync_guidance", "sync_cfg_audio", "sync_cfg_video")
OF_GUIDANCE = ("negative_prompt", "guidance_interval", "guidance_rescale", "branch_interval")
OPTIONAL = (*OF_GUIDANCE, "strength")
# What a further take of a clip's sound has in common with the clip.
RETAKEN = ("seed", "audio_seed", *DEFAULTED, *OF_GUIDANCE)


@dataclass(frozen=True)
class Read:
    """A request found possible, with its media read: ``reference`` is the waveform whose style is wanted."""

    request: Request
    sequence: SequenceConfig
    plan: GuidancePlan
    given: Given | None = None
    reference: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the job that it becomes: :attr:`~syncflow.engine.sampling.job.Job.shape`."""
        s = self.sequence
        reference = 0 if self.reference is None else -(-len(self.reference) // s.audio_hop)
        return s.latent_frames, s.latent_height, s.latent_width, s.audio_tokens, reference


@dataclass(frozen=True)
class Prepared:
    """A request with what was read for it and the job that it became."""

    request: Request
    given: Given | None
    job: Job


class Pipeline:
    """From requests to jobs, and from latents to clips, with one model's codecs and text encoder."""

    def __init__(self, components: Components, device: torch.device) -> None:
        self.components, self.config, self.device = components, components.config, device
        self._text = lru_cache(PROMPTS)(self._encode)
        null = components.ddit.video.y_embedder.y_embedding
        self._null = Text(null, len(null))

    def read(self, request: Request) -> Read:
        """Read the media of a request. Raises ``ValueError`` for what the model cannot do and what cannot be read."""
        plan = self.plan(request)
        request, given = take(request, self.config.sequence)
        return Read(request, self.sequence(request), plan, given, reference(request, self.config.sequence))

    @torch.inference_mode()
    def prepare(self, read: Read) -> Prepared:
        """Everything that is computed once for a request: lengths, times, guidance, text states, known latents.

        Raises ``ValueError`` for media that are shorter than a latent.
        """
        request, given, sequence, plan = read.request, read.given, read.sequence, read.plan
        parts = self.components
        video: Known | None = None
        audio: Known | None = None
        if given is not None:
            video, audio = known_latents(given, sequence, parts, request.strength, self.device)
        job = Job(
            sequence,
            request.seed,
            self._times(request, video),
            plan,
            self._text(request.prompt) if request.prompt.strip() else self._null,
            None if request.negative_prompt is None else self._text(request.negative_prompt),
            video,
            audio,
            self._silence(sequence) if any(branch.muted for branch in plan.branches) else None,
            tuple((default(request.audio_seed, request.seed) + i) % (MAX_SEED + 1) for i in range(request.takes)),
            None if read.reference is None else heard(read.reference, parts, self.device),
        )
        return Prepared(request, given, job)

    def plan(self, request: Request) -> GuidancePlan:
        """The branches and weights of a request. Without a prompt there is no text to move away from.

        Raises ``ValueError`` for a request that this model has no way for.
        """
        sampling, model = self.config.sampling, self.config.ddit
        task = task_of(request)
        of_audio = default(request.sync_cfg_audio, sampling.sync_cfg_audio)
        of_video = default(request.sync_cfg_video, sampling.sync_cfg_video)
        needs = {
            "sync_cfg_audio": (of_audio != 1 and not model.audio_reads_video, "a model whose audio reads the video"),
            "sync_cfg_video": (of_video != 1 and not model.video_reads_audio, "a model whose video reads the audio"),
            "video-to-audio": (
                task == "video-to-audio" and not model.audio_reads_video,
                "a model whose audio reads the video",
            ),
            "audio-to-video": (
                task == "audio-to-video" and not model.video_reads_audio,
                "a model whose video reads the audio",
            ),
            "a reference sound": (
                request.reference is not None and model.bridge != "global_local",
                "a model with the bridge global_local",
            ),
            "more than one take": (
                request.takes > 1 and model.video_reads_audio,
                "a model whose video does not read the audio",
            ),
        }
        for name, (asked, needed) in needs.items():
            if asked:
                raise ValueError(f"{name} needs {needed}; this one has {model.bridge}")
        if request.sound_only and not model.audio_text:
            raise ValueError("a sound without a video needs a model whose audio reads the text (audio_text)")
        directions = []
        if request.prompt.strip():
            directions.append(text_guidance(default(request.guidance, sampling.guidance)))
        if not request.sound_only:
            directions.append(sync_guidance(default(request.sync_guidance, sampling.sync_guidance)))
            directions += [sync_cfg_audio(of_audio), sync_cfg_video(of_video)]
        plan = combine(
            directions,
            interval=default(request.guidance_interval, (0.0, 1.0)),
            rescale=default(request.guidance_rescale, 0.0),
            branch_interval=default(request.branch_interval, 1),
        )
        return unbridged(plan) if request.sound_only else plan

    def retake(self, clip: Clip | Path, prompt: str | None, settings: Mapping[str, Any]) -> Request:
        """The request for another sound of a clip or a video file.

        Where ``prompt`` and ``settings`` say nothing, and this model drew the clip, it is as the clip's provenance has
        it. Raises ``ValueError`` for what a request must not be.
        """
        if isinstance(clip, Clip):
            told, (height, width) = clip.provenance, clip.frames.shape[1:3]
        else:
            info = probe(clip)
            told, height, width = info.provenance, info.height, info.width
        kept: dict[str, Any] = {}
        if told.get("model_hash") == self.components.digest:
            kept = {name: told[name] for name in RETAKEN if told.get(name) is not None}
            kept |= {"width": width, "height": height}
        if prompt is None:
            prompt = str(told.get("prompt", "")) if "model_hash" in told else ""
        if not prompt.strip():
            kept.pop("negative_prompt", None)
        return Request(prompt, **kept | dict(settings) | {"video": clip})

    def sequence(self, request: Request) -> SequenceConfig:
        """The lengths of a request's clip."""
        base = self.config.sequence
        return base.replace(
            seconds=default(request.seconds, base.seconds),
            width=default(request.width, base.width),
            height=default(request.height, base.height),
        )

    @torch.inference_mode()
    def finish(self, prepared: Prepared, latents: Latents) -> list[Clip]:
        """A clip for each take of a request: video (1, C_v, T, H, W), audio (takes, A, C_a), and its provenance.

        What is known of a clip stays as it was given.
        """
        request, given, sequence = prepared.request, prepared.given, prepared.job.sequence
        task = task_of(request)
        if task == "text-to-audio":
            frames, kept = np.zeros((0, sequence.height, sequence.width, 3), np.uint8), None
        else:
            kept = latents.video[0].float().cpu().numpy()
            if given is not None and task == "video-to-audio":
                frames = given.clip.frames
            else:
                frames = self.components.video.decode(latents.video, sequence.frames)[0].cpu().numpy()
        clips = []
        for seed, latent in zip(prepared.job.sounds, latents.audio, strict=True):
            if given is not None and task == "audio-to-video":
                waveform = given.clip.waveform
            else:
                sound = self.components.audio.decode(latent[None], sequence.samples)[0]
                waveform = np.clip(sound.float().cpu().numpy(), -1.0, 1.0)
            seen, sounding = (frames, waveform) if given is None else restore(given, sequence, frames, waveform)
            provenance = self._provenance(request, seed)
            clips.append(Clip(seen, sounding, sequence.fps, sequence.sample_rate, provenance, kept))
        return clips

    def _provenance(self, request: Request, audio_seed: int) -> dict[str, object]:
        optional = {name: value for name in OPTIONAL if (value := getattr(request, name)) is not None}
        if audio_seed != request.seed:
            optional["audio_seed"] = audio_seed
        defaulted = [name for name in DEFAULTED if not (request.sound_only and name in OF_VIDEO)]
        return {
            "prompt": request.prompt,
            "seed": request.seed,
            **{name: default(getattr(request, name), getattr(self.config.sampling, name)) for name in defaulted},
            **optional,
            "task": task_of(request),
            "model": self.config.name,
            "model_hash": self.components.digest,
        }

    def _times(self, request: Request, video: Known | None) -> Schedule:
        sampling, task = self.config.sampling, task_of(request)
        times = schedule(
            default(request.steps, sampling.steps),
            shift=default(request.shift, sampling.shift),
            lead=default(request.video_lead, sampling.video_lead),
        )
        if task == "video-to-audio":
            return times.known_video()
        if task == "audio-to-video":
            return times.known_audio()
        if task == "text-to-audio":
            return times.without_video()
        return times if video is None else times.after(video.start)

    def _silence(self, sequence: SequenceConfig) -> torch.Tensor:
        return self.components.audio.encode(torch.zeros(1, sequence.samples, device=self.device))[0]

    def _encode(self, prompt: str) -> Text:
        states, mask = self.components.text.encode([prompt])
        return Text(states[0], int(mask.sum()))
