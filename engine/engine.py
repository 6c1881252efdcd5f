"""The ``Engine``: a sentence in, a clip with sound out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import numpy as np
import torch

from .components import Components
from .config import MAX_SECONDS, SequenceConfig
from .media import conform, load_clip, probe
from .sampling.guidance import cfg
from .sampling.job import Job
from .sampling.loop import StepCallback, sample
from .sampling.schedule import schedule
from .types import Clip, Latents, Request

BUNDLED = "pretrained/syncflow-tiny"
T = TypeVar("T")


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
        requests = [item if item.video is None else self.conform(item) for item in requests]
        jobs = [self.prepare(item) for item in requests]
        shapes = {(job.sequence.seconds, job.sequence.width, job.sequence.height) for job in jobs}
        if len(shapes) > 1:
            raise ValueError(f"requests of one batch must share seconds and size; these have {sorted(shapes)}")
        with _bar(progress, on_step) as step:
            latents = sample(self.components.ddit, jobs, step)
        clips = self.decode(latents, requests, jobs)
        return clips[0] if single else clips

    def conform(self, request: Request) -> Request:
        """The request with its known video at the model's rate and the clip's size and duration.

        Where the request names no duration it is the video's own, at most a minute.
        """
        base, video = self.config.sequence, request.video
        if video is None:
            return request
        long = video.seconds if isinstance(video, Clip) else probe(video).seconds
        seconds = _default(request.seconds, min(max(long, 1 / base.fps), MAX_SECONDS))
        sequence = base.replace(
            seconds=seconds, width=_default(request.width, base.width), height=_default(request.height, base.height)
        )
        shape: dict[str, Any] = {
            "fps": sequence.fps,
            "size": (sequence.width, sequence.height),
            "sample_rate": sequence.sample_rate,
            "seconds": sequence.seconds,
        }
        known = conform(video, **shape) if isinstance(video, Clip) else load_clip(video, **shape)
        return dataclasses.replace(request, video=known, seconds=seconds)

    @torch.inference_mode()
    def prepare(self, request: Request) -> Job:
        """Everything that is computed once for a request: lengths, times, guidance, text states, known latents.

        A known video must have the clip's shape; see :meth:`conform`.
        """
        sequence, sampling, parts = self.sequence(request), self.config.sampling, self.components
        times = schedule(
            _default(request.steps, sampling.steps),
            shift=_default(request.shift, sampling.shift),
            lead=_default(request.video_lead, sampling.video_lead),
        )
        known = None
        if isinstance(request.video, Clip):
            frames = torch.from_numpy(request.video.frames)
            known = parts.video.encode(frames[None].to(self.device))[0]
            times = times.known_video()
        if request.prompt.strip():
            encoded, mask = parts.text.encode([request.prompt])
            states, length = encoded[0], int(mask.sum())
            plan = cfg(_default(request.guidance, sampling.guidance))
        else:  # no words to weigh against their absence
            states = parts.ddit.video.y_embedder.y_embedding
            length, plan = len(states), cfg(0)
        return Job(sequence, request.seed, times, plan, states, length, known)

    def sequence(self, request: Request) -> SequenceConfig:
        """The lengths of a request's clip."""
        base = self.config.sequence
        return base.replace(
            seconds=_default(request.seconds, base.seconds),
            width=_default(request.width, base.width),
            height=_default(request.height, base.height),
        )

    @torch.inference_mode()
    def decode(self, latents: Latents, requests: Sequence[Request], jobs: Sequence[Job]) -> list[Clip]:
        """Latents to clips, with the provenance of each. A known video keeps its own pixels."""
        clips = []
        for i, (request, job) in enumerate(zip(requests, jobs, strict=True)):
            sequence = job.sequence
            if isinstance(request.video, Clip):
                frames = request.video.frames
            else:
                pixels = self.components.video.decode(latents.video[i : i + 1], sequence.frames)
                frames = pixels[0].cpu().numpy()
            sound = self.components.audio.decode(latents.audio[i : i + 1], sequence.samples)[0].float().cpu().numpy()
            provenance = {
                "prompt": request.prompt,
                "seed": request.seed,
                "steps": _default(request.steps, self.config.sampling.steps),
                "guidance": _default(request.guidance, self.config.sampling.guidance),
                "shift": _default(request.shift, self.config.sampling.shift),
                "video_lead": _default(request.video_lead, self.config.sampling.video_lead),
                "task": "text-to-audio-video" if request.video is None else "video-to-audio",
                "model": self.config.name,
                "model_hash": self.components.digest,
            }
            waveform = np.clip(sound, -1.0, 1.0)
            clips.append(Clip(frames, waveform, sequence.fps, sequence.sample_rate, provenance))
        return clips


def bundled_model() -> Path:
    """The folder of the model that comes with the package."""
    return Path(str(files(__package__).joinpath(BUNDLED)))


def _default(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value


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
