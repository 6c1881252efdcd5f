"""From a request to a job that can be sampled, and from its latents to clips.

    Request -> prepare -> PreparedRequest -> encode -> Job -> (sampling) -> Latents -> decode -> Clips

``prepare`` plans the guidance, reads the media and derives the lengths, and so finds the mistakes of a request before
anything is computed. ``encode`` and ``decode`` run the text encoder and the codecs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from .sampling.job import Job, Known, Text, batch_shape
from .sampling.noise import Stream, normal
from .sampling.schedule import Schedule, schedule
from .sampling.tensor_cache import CAPACITY, TensorCache
from .tasks import (
    KnownMedia,
    Task,
    default,
    encode_waveform,
    known_latents,
    read_media,
    read_reference,
    restore_known,
    task_of,
)
from .types import MAX_SEED, VIDEO_FIELDS, WHOLE, Clip, DecodeTiles, Latents, Request

# Fields of a request: those for which the model has a default, and those that are off by default.
MODEL_DEFAULTS = ("steps", "guidance", "shift", "video_lead", "sync_guidance", "sync_cfg_audio", "sync_cfg_video")
GUIDANCE_FIELDS = ("negative_prompt", "guidance_interval", "guidance_rescale", "branch_interval")
OPTIONAL_FIELDS = (*GUIDANCE_FIELDS, "strength", "adapters")
# Fields of a retake that default to those of the clip.
RETAKE_FIELDS = ("seed", "audio_seed", *MODEL_DEFAULTS, *GUIDANCE_FIELDS)


@dataclass(frozen=True)
class PreparedRequest:
    """A request that the model can serve, with its media read and its lengths derived; nothing of it is encoded.

    ``media`` are known parts of the clip, ``reference`` (M,) is the waveform of the reference sound; ``noise``
    (C_v, T, H, W) is the video's, where it is not that of the seed.
    """

    request: Request
    sequence: SequenceConfig
    plan: GuidancePlan
    media: KnownMedia | None = None
    reference: np.ndarray | None = None
    noise: torch.Tensor | None = None

    @property
    def task(self) -> Task:
        """The task of the request."""
        return task_of(self.request)

    @property
    def shape(self) -> tuple[int, ...]:
        """Requests of equal shapes can share a batch; equal to the ``shape`` of the job."""
        samples = 0 if self.reference is None else len(self.reference)
        return batch_shape(self.sequence, -(-samples // self.sequence.audio_hop))

    @property
    def audio_seeds(self) -> tuple[int, ...]:
        """The seed of each take."""
        first = default(self.request.audio_seed, self.request.seed)
        return tuple((first + i) % (MAX_SEED + 1) for i in range(self.request.takes))


class Pipeline:
    """Prepares, encodes and decodes requests with the codecs and the text encoder of one model.

    The states of prompts are kept, up to ``cache_bytes``. ``tiles_of`` says how much of a clip is decoded at once.
    """

    def __init__(self, components: Components, device: torch.device, cache_bytes: int = CAPACITY) -> None:
        self.components, self.config, self.device = components, components.config, device
        self.check_adapters: Callable[[Iterable[str]], None] = _no_adapters
        self.tiles_of: Callable[[SequenceConfig], DecodeTiles] = lambda sequence: WHOLE
        self.texts: TensorCache[Text] = TensorCache(lambda text: [text.states], cache_bytes)

    def prepare(self, request: Request) -> PreparedRequest:
        """Plan the guidance, read the media, derive the lengths.

        Raises ``ValueError`` for what the model cannot do and for media that cannot be read.
        """
        plan = self.plan(request)
        if request.adapters:
            self.check_adapters(request.adapters)
        media, sequence = read_media(request, self.config.sequence)
        return PreparedRequest(request, sequence, plan, media, read_reference(request, self.config.sequence))

    @torch.inference_mode()
    def encode(self, prepared: PreparedRequest) -> Job:
        """The job of a request: text states, time grid, known latents.

        Raises ``ValueError`` for media that are shorter than a latent.
        """
        request, sequence, plan, parts = prepared.request, prepared.sequence, prepared.plan, self.components
        video: Known | None = None
        audio: Known | None = None
        if prepared.media is not None:
            video, audio = known_latents(prepared.media, sequence, parts, request.strength, self.device)
        return Job(
            sequence,
            request.seed,
            self._schedule(request, sequence, video),
            plan,
            text=self._encode_text(request.prompt) if request.prompt.strip() else None,
            negative=None if request.negative_prompt is None else self._encode_text(request.negative_prompt),
            video=video,
            audio=audio,
            silence=self._silence(sequence) if any(branch.muted for branch in plan.branches) else None,
            takes=prepared.audio_seeds,
            reference=None if prepared.reference is None else encode_waveform(prepared.reference, parts, self.device),
            adapters=tuple((request.adapters or {}).items()),
            noise=prepared.noise,
            prior=self._encode_prior(request) if self.config.ddit.prior_tokens else None,
        )

    def plan(self, request: Request) -> GuidancePlan:
        """The branches and weights of a request. Without a prompt there is no text to move away from.

        Raises ``ValueError`` for a request that this model cannot serve.
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
                request.takes > 1 and (model.video_reads_audio or not model.has_audio),
                "a model with an audio tower whose video does not read the audio",
            ),
            "sync_guidance": (
                default(request.sync_guidance, sampling.sync_guidance_of(task)) != 0 and not model.has_audio,
                "a model with an audio tower",
            ),
        }
        for name, (asked, needed) in needs.items():
            if asked:
                bridge = f"the bridge {model.bridge}" if model.has_audio else "no audio tower"
                raise ValueError(f"{name} needs {needed}; this one has {bridge}")
        if request.sound_only and not model.audio_text:
            raise ValueError("a sound without a video needs a model whose audio reads the text (audio_text)")
        directions = []
        if request.prompt.strip():
            directions.append(text_guidance(default(request.guidance, sampling.guidance)))
        if not request.sound_only and model.has_audio:
            directions.append(sync_guidance(default(request.sync_guidance, sampling.sync_guidance_of(task))))
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

        What ``prompt`` and ``settings`` leave out is taken from the clip's provenance if this model made the clip.
        Raises ``ValueError`` for a request that is not valid.
        """
        if isinstance(clip, Clip):
            provenance, (height, width) = clip.provenance, clip.frames.shape[1:3]
        else:
            info = probe(clip)
            provenance, height, width = info.provenance, info.height, info.width
        kept: dict[str, Any] = {}
        if provenance.get("model_hash") == self.components.digest:
            kept = {name: provenance[name] for name in RETAKE_FIELDS if provenance.get(name) is not None}
            kept |= {"width": width, "height": height}
        if prompt is None:
            prompt = str(provenance.get("prompt", "")) if "model_hash" in provenance else ""
        if not prompt.strip():
            kept.pop("negative_prompt", None)
        return Request(prompt, **kept | dict(settings) | {"video": clip})

    @torch.inference_mode()
    def decode(self, prepared: PreparedRequest, latents: Latents) -> list[Clip]:
        """A clip for each take, from latents video (1, C_v, T, H, W) and audio (takes, A, C_a).

        Known frames and sounds stay as they were given. Raises ``ValueError`` for latents that are not finite.
        """
        request, sequence, media, task = prepared.request, prepared.sequence, prepared.media, prepared.task
        video_latents: np.ndarray | None = None
        if task == "text-to-audio":
            width, height = sequence.frame_size
            frames = np.zeros((0, height, width, 3), np.uint8)
        else:
            video_latents = _finite(latents.video[0])
            if media is not None and task == "video-to-audio":
                frames = media.clip.frames
            else:
                with self.components.using("video"):
                    decoded = self.components.video.decode(latents.video, sequence.frames, self.tiles_of(sequence))
                    frames = decoded[0].cpu().numpy()
        clips = []
        for seed, audio in zip(prepared.audio_seeds, latents.audio, strict=True):
            if media is not None and task == "audio-to-video":
                waveform = media.clip.waveform
            else:
                with self.components.using("audio"):
                    sound = self.components.audio.decode(audio[None], sequence.samples)[0]
                waveform = np.clip(_finite(sound), -1.0, 1.0)
            shown = frames
            if media is not None and task == "continuation":
                shown, waveform = restore_known(media, sequence, frames, waveform)
            provenance = self._provenance(request, sequence, seed)
            if prepared.noise is not None:
                provenance["noise"] = hashlib.sha256(prepared.noise.numpy().tobytes()).hexdigest()
            clips.append(Clip(shown, waveform, sequence.fps, sequence.sample_rate, provenance, video_latents))
        return clips

    def _provenance(self, request: Request, sequence: SequenceConfig, audio_seed: int) -> dict[str, object]:
        sampling, task = self.config.sampling, task_of(request)
        defaults = {name: getattr(sampling, name) for name in MODEL_DEFAULTS} | {
            "shift": sampling.shift_for(sequence),
            "sync_guidance": sampling.sync_guidance_of(task),
        }
        optional = {name: value for name in OPTIONAL_FIELDS if (value := getattr(request, name)) is not None}
        if audio_seed != request.seed:
            optional["audio_seed"] = audio_seed
        with_default = [name for name in MODEL_DEFAULTS if not (request.sound_only and name in VIDEO_FIELDS)]
        return {
            "prompt": request.prompt,
            "seed": request.seed,
            **{name: default(getattr(request, name), defaults[name]) for name in with_default},
            **optional,
            "task": task if self.config.ddit.has_audio else task.replace("-to-audio-video", "-to-video"),
            "model": self.config.name,
            "model_hash": self.components.digest,
        }

    def _schedule(self, request: Request, sequence: SequenceConfig, video: Known | None) -> Schedule:
        sampling, task = self.config.sampling, task_of(request)
        times = schedule(
            default(request.steps, sampling.steps),
            shift=default(request.shift, sampling.shift_for(sequence)),
            lead=default(request.video_lead, sampling.video_lead),
            single=sampling.size_shift,
        )
        if not self.config.ddit.has_audio:
            times = times.without_audio()
        if task == "video-to-audio":
            return times.known_video()
        if task == "audio-to-video":
            return times.known_audio()
        if task == "text-to-audio":
            return times.without_video()
        return times if video is None or video.start is None else times.after(video.start)

    def _silence(self, sequence: SequenceConfig) -> torch.Tensor:
        with self.components.using("audio"):
            return self.components.audio.encode(torch.zeros(1, sequence.samples, device=self.device))[0]

    def _encode_prior(self, request: Request) -> Text | None:
        """The prior of the prompt, drawn with noise of its own; None, for the null prior, without a prompt or without a
        prior encoder."""
        if not request.prompt.strip():
            return None
        with self.components.using("text"):
            found = self.components.text.encode_prior(request.prompt)
        if found is None:
            return None
        mean, deviation = found
        noise = torch.from_numpy(normal(request.seed, Stream.PRIOR, mean.shape)).to(mean)
        return Text(mean + deviation * noise, len(mean), key=(request.prompt, request.seed))

    def _encode_text(self, prompt: str) -> Text:
        def compute() -> Text:
            with self.components.using("text"):
                states, mask = self.components.text.encode([prompt])
            return Text(states[0], int(mask.sum()), key=prompt)

        return self.texts.get(prompt, compute)


def with_noise(prepared: Sequence[PreparedRequest], latents: object, channels: int) -> list[PreparedRequest]:
    """Requests whose videos begin with ``latents``: noise (B, C_v, T, H, W), or (C_v, T, H, W) for one request.

    Raises ``ValueError`` for others.
    """
    s = prepared[0].sequence
    expected = (len(prepared), channels, s.latent_frames, s.latent_height, s.latent_width)
    if not isinstance(latents, torch.Tensor) or any(one.shape != prepared[0].shape for one in prepared):
        raise ValueError("latents must be a tensor, for requests of one size and duration")
    found = latents[None] if latents.ndim == 4 else latents
    if found.shape != expected or not found.isfinite().all():
        raise ValueError(f"latents are {tuple(latents.shape)}; they must be finite numbers in the shape {expected}")
    if any(one.task == "text-to-audio" for one in prepared):
        raise ValueError("latents are those of a video; a sound alone has none")
    rows = found.detach().float().cpu()
    return [replace(one, noise=row.contiguous()) for one, row in zip(prepared, rows, strict=True)]


def _no_adapters(names: Iterable[str]) -> None:
    """Refuse the adapters of a request where none are loaded."""
    raise ValueError(f"there is no adapter {', '.join(map(repr, names))}; loaded are none")


def _finite(values: torch.Tensor) -> np.ndarray:
    """Values of a model as float32 in NumPy. Raises ``ValueError`` where they are NaN or infinite."""
    found = values.float().cpu().numpy()
    if not np.isfinite(found).all():
        raise ValueError(
            "the model computed NaN or infinity; its weights, the guidance or the precision are out of range"
        )
    return found
