"""The ``Engine``: a sentence in, a clip with sound out."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import numpy as np
import torch

from .components import Components
from .config import SequenceConfig
from .media import conform, load_clip
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
        folder = Path(str(files("syncflow.engine").joinpath(BUNDLED))) if path is None else Path(path)
        return cls(Components.load(folder), device)

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
        jobs = [self.prepare(item) for item in requests]
        shapes = {(job.sequence.seconds, job.sequence.width, job.sequence.height) for job in jobs}
        if len(shapes) > 1:
            raise ValueError(f"requests of one batch must share seconds and size; these have {sorted(shapes)}")
        with _bar(progress, on_step) as step:
            latents = sample(self.components.ddit, jobs, step)
        clips = self.decode(latents, requests, jobs)
        return clips[0] if single else clips

    def prepare(self, request: Request) -> Job:
        """Everything that is computed once for a request: lengths, times, guidance, text states, known latents."""
        sequence, sampling = self.sequence(request), self.config.sampling
        steps = _default(request.steps, sampling.steps)
        times = schedule(
            steps, shift=_default(request.shift, sampling.shift), lead=_default(request.video_lead, sampling.video_lead)
        )
        known = None
        with torch.inference_mode():
            if request.video is not None:
                frames = torch.from_numpy(self._known_video(request.video, sequence).frames)
                known = self.components.video.encode(frames[None].to(self.device))[0]
                times = times.known_video()
            if request.prompt.strip():
                encoded, mask = self.components.text.encode([request.prompt])
                states, length = encoded[0], int(mask.sum())
            else:
                states = self.components.ddit.video.y_embedder.y_embedding
                length = len(states)
        plan = cfg(_default(request.guidance, sampling.guidance))
        return Job(sequence, request.seed, times, plan, states, length, known)

    def sequence(self, request: Request) -> SequenceConfig:
        """The lengths of a request's clip. A known video gives duration where the request does not."""
        base = self.config.sequence
        seconds = request.seconds
        if seconds is None and isinstance(request.video, Clip):
            seconds = min(request.video.seconds, base.seconds)
        return base.replace(
            seconds=_default(seconds, base.seconds),
            width=_default(request.width, base.width),
            height=_default(request.height, base.height),
        )

    @torch.inference_mode()
    def decode(self, latents: Latents, requests: Sequence[Request], jobs: Sequence[Job]) -> list[Clip]:
        """Latents to clips, with the provenance of each. A known video keeps its own pixels."""
        clips = []
        for i, (request, job) in enumerate(zip(requests, jobs, strict=True)):
            sequence = job.sequence
            if request.video is None:
                pixels = self.components.video.decode(latents.video[i : i + 1], sequence.frames)
                frames = pixels[0].cpu().numpy()
            else:
                frames = self._known_video(request.video, sequence).frames
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

    def _known_video(self, video: Clip | Path, sequence: SequenceConfig) -> Clip:
        shape: dict[str, Any] = {
            "fps": sequence.fps,
            "size": (sequence.width, sequence.height),
            "sample_rate": sequence.sample_rate,
            "seconds": sequence.seconds,
        }
        return conform(video, **shape) if isinstance(video, Clip) else load_clip(video, **shape)


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
