"""The ``Engine``: a sentence in, a clip with sound out."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch

from .components import Components
from .config import SequenceConfig
from .sampling.guidance import GuidancePlan, combine, sync_cfg_audio, sync_cfg_video, sync_guidance, text_guidance
from .sampling.job import Job, Known, Text
from .sampling.loop import StepCallback, sample
from .sampling.schedule import schedule
from .tasks import Given, default, known_latents, restore, take, task_of
from .types import Clip, Latents, Request

BUNDLED = "pretrained/syncflow-tiny"
# Settings of a request: those with a default of the model's, and those that are off unless they are given.
DEFAULTED = ("steps", "guidance", "shift", "video_lead", "sync_guidance", "sync_cfg_audio", "sync_cfg_video")
OPTIONAL = ("negative_prompt", "guidance_interval", "guidance_rescale", "strength")


class Engine:
    """Draws clips with one model.

    >>> engine = Engine.from_pretrained()
    >>> engine.generate("a red rubber ball bounces on a wooden floor", seed=7).save("clip.mp4")
    """

    def __init__(self, components: Components, device: str | torch.device = "cpu") -> None:
        self.components = components
        self.config = components.config
        self.device = torch.device(device)
        for module in (components.ddit, components.video, components.audio, components.text):
            module.to(self.device).eval()

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None, *, device: str = "auto") -> Self:
        """Load a model package, or the bundled ``syncflow-tiny``. ``device`` "auto" takes a GPU where there is one.

        Raises ``ValueError`` for a folder that is no package or does not match its checksums.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(Components.load(bundled_model() if path is None else path), device)

    @overload
    def generate(
        self, request: str | Request, *, on_step: StepCallback | None = None, progress: bool = False, **settings: Any
    ) -> Clip: ...

    @overload
    def generate(
        self,
        request: Sequence[str | Request],
        *,
        on_step: StepCallback | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> list[Clip]: ...

    def generate(
        self,
        request: str | Request | Sequence[str | Request],
        *,
        on_step: StepCallback | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Clip | list[Clip]:
        """Draw one clip, or one for each of several prompts or requests in one batch.

        ``settings`` are those of :class:`~syncflow.engine.types.Request` (seed, steps, guidance, seconds, width,
        height, …) and apply to plain prompts. Several prompts with one ``seed`` get seed, seed + 1, …. ``on_step(step,
        steps, latents)`` is called after every step; ``progress`` shows a bar. The requests of one call must share size
        and duration. Raises ``ValueError`` for what a request must not be.
        """
        single = isinstance(request, (str, Request))
        several: Sequence[str | Request] = [request] if isinstance(request, (str, Request)) else request
        if not several:
            raise ValueError("there is nothing to generate: the list of requests is empty")
        seed = settings.pop("seed", 0)
        requests = [
            item if isinstance(item, Request) else Request(item, seed=seed + i, **settings)
            for i, item in enumerate(several)
        ]
        taken = [take(item, self.config.sequence) for item in requests]
        jobs = [self.prepare(item, given) for item, given in taken]
        shapes = {(job.sequence.seconds, job.sequence.width, job.sequence.height) for job in jobs}
        if len(shapes) > 1:
            raise ValueError(f"requests of one batch must share seconds and size; these have {sorted(shapes)}")
        with _bar(progress, on_step) as step:
            latents = sample(self.components.ddit, jobs, step)
        clips = self.decode(latents, taken, jobs)
        return clips[0] if single else clips

    @torch.inference_mode()
    def prepare(self, request: Request, given: Given | None = None) -> Job:
        """Everything that is computed once for a request: lengths, times, guidance, text states, known latents.

        ``given`` holds the request's media, from :func:`~syncflow.engine.tasks.take`.
        """
        sequence, sampling, parts = self.sequence(request), self.config.sampling, self.components
        times = schedule(
            default(request.steps, sampling.steps),
            shift=default(request.shift, sampling.shift),
            lead=default(request.video_lead, sampling.video_lead),
        )
        video: Known | None = None
        audio: Known | None = None
        if given is not None:
            video, audio = known_latents(given, sequence, parts, request.strength, self.device)
            if given.task == "video-to-audio":
                times = times.known_video()
            elif given.task == "audio-to-video":
                times = times.known_audio()
            elif video is not None:
                times = times.after(video.start)
        null = parts.ddit.video.y_embedder.y_embedding
        text = self._text(request.prompt) if request.prompt.strip() else Text(null, len(null))
        negative = None if request.negative_prompt is None else self._text(request.negative_prompt)
        plan = self.plan(request)
        silence = self._silence(sequence) if any(branch.muted for branch in plan.branches) else None
        return Job(sequence, request.seed, times, plan, text, negative, video, audio, silence)

    def plan(self, request: Request) -> GuidancePlan:
        """The branches and weights of a request. Without a prompt there is no text to move away from."""
        sampling, model = self.config.sampling, self.config.ddit
        of_audio = default(request.sync_cfg_audio, sampling.sync_cfg_audio)
        of_video = default(request.sync_cfg_video, sampling.sync_cfg_video)
        if of_audio != 1 and not model.audio_reads_video:
            raise ValueError(f"sync_cfg_audio needs a model whose audio reads the video; this one has {model.bridge}")
        if of_video != 1 and not model.video_reads_audio:
            raise ValueError(f"sync_cfg_video needs a model whose video reads the audio; this one has {model.bridge}")
        if request.audio is not None and not model.video_reads_audio:
            raise ValueError(f"audio-to-video needs a model whose video reads the audio; this one has {model.bridge}")
        directions = [
            sync_guidance(default(request.sync_guidance, sampling.sync_guidance)),
            sync_cfg_audio(of_audio),
            sync_cfg_video(of_video),
        ]
        if request.prompt.strip():
            directions.insert(0, text_guidance(default(request.guidance, sampling.guidance)))
        return combine(
            directions,
            interval=default(request.guidance_interval, (0.0, 1.0)),
            rescale=default(request.guidance_rescale, 0.0),
        )

    def _silence(self, sequence: SequenceConfig) -> torch.Tensor:
        return self.components.audio.encode(torch.zeros(1, sequence.samples, device=self.device))[0]

    def _text(self, prompt: str) -> Text:
        states, mask = self.components.text.encode([prompt])
        return Text(states[0], int(mask.sum()))

    def sequence(self, request: Request) -> SequenceConfig:
        """The lengths of a request's clip."""
        base = self.config.sequence
        return base.replace(
            seconds=default(request.seconds, base.seconds),
            width=default(request.width, base.width),
            height=default(request.height, base.height),
        )

    @torch.inference_mode()
    def decode(
        self, latents: Latents, taken: Sequence[tuple[Request, Given | None]], jobs: Sequence[Job]
    ) -> list[Clip]:
        """Latents to clips, with the provenance of each. What is known of a clip stays as it was given."""
        clips = []
        for i, ((request, given), job) in enumerate(zip(taken, jobs, strict=True)):
            sequence = job.sequence
            sound = self.components.audio.decode(latents.audio[i : i + 1], sequence.samples)[0].float().cpu().numpy()
            waveform = np.clip(sound, -1.0, 1.0)
            if given is not None and given.task == "video-to-audio":
                frames = given.clip.frames
            else:
                frames = self.components.video.decode(latents.video[i : i + 1], sequence.frames)[0].cpu().numpy()
            if given is not None:
                frames, waveform = restore(given, sequence, frames, waveform)
            provenance = {
                "prompt": request.prompt,
                "seed": request.seed,
                **{name: default(getattr(request, name), getattr(self.config.sampling, name)) for name in DEFAULTED},
                **{name: value for name in OPTIONAL if (value := getattr(request, name)) is not None},
                "task": task_of(request),
                "model": self.config.name,
                "model_hash": self.components.digest,
            }
            clips.append(Clip(frames, waveform, sequence.fps, sequence.sample_rate, provenance))
        return clips


def bundled_model() -> Path:
    """The folder of the model that comes with the package."""
    return Path(str(files(__package__).joinpath(BUNDLED)))


class _bar:
    """A step callback that moves a progress bar and then calls the user's."""

    def __init__(self, shown: bool, on_step: StepCallback | None) -> None:
        self.shown, self.on_step = shown, on_step

    def __enter__(self) -> StepCallback:
        from tqdm import tqdm

        self.bar = tqdm(desc="sampling", unit="step", disable=not self.shown)
        return self

    def __call__(self, step: int, steps: int, latents: Latents) -> None:
        self.bar.total = steps
        self.bar.update(1)
        if self.on_step is not None:
            self.on_step(step, steps, latents)

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
