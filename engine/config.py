"""What a model is, as data: frozen dataclasses with a JSON round trip.

Every length (frames, latents, tokens, samples) derives from seconds, rates and factors in :class:`SequenceConfig`.
Presets stand in :mod:`syncflow.engine.presets`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from .config_base import Config
from .types import CHECKS
from .validation import number_between, text, truth, whole_between

AdaptorTokens = Literal["all", "frame", "none"]
Bridge = Literal["adaptor", "audio_rope", "global_local", "bidirectional", "none"]

MAX_SECONDS = 60.0
MAX_SIDE = 2048
MAX_FPS = 240
MOST_OF_SEQUENCE = {
    "fps": MAX_FPS,
    "sample_rate": 384_000,
    "time_factor": 64,
    "space_factor": 256,
    "patch": 16,
    "audio_hop": 100_000,
    "audio_multiple": 1024,
}
MOST_OF_DDIT = {
    "width": 65_536,
    "depth": 1024,
    "heads": 1024,
    "audio_heads": 1024,
    "patch": 16,
    "video_channels": 4096,
    "audio_channels": 4096,
    "text_width": 65_536,
    "text_tokens": 65_536,
    "base_size": 65_536,
    "audio_bins": 4096,
    "audio_patch": 1024,
    "prior_width": 65_536,
}


@dataclass(frozen=True)
class SequenceConfig(Config):
    """How long, how large and how fine a clip is; every length derives from here.

    ``seconds`` and sizes are in output units (seconds, pixels); ``*_factor`` and ``audio_hop`` are the strides of the
    codecs. ``chunk_frames``: frames that the video codec codes at a time, each chunk padded in front by itself; 0 is
    the whole clip. ``any_size`` allows sizes that are not of whole patches: latents are those of whole ``space_factor``
    squares, and the frames made of them as much smaller. The number of audio latent frames is a multiple of
    ``audio_multiple``. Raises ``ValueError`` for a size or duration that the factors
    cannot carry.
    """

    seconds: float = 2.0
    width: int = 256
    height: int = 256
    fps: int = 16
    sample_rate: int = 48_000
    time_factor: int = 4
    space_factor: int = 8
    patch: int = 2
    audio_hop: int = 960
    chunk_frames: int = 0
    any_size: bool = False
    audio_multiple: int = 1

    def __post_init__(self) -> None:
        whole_between("chunk_frames", self.chunk_frames, 0, 1024)
        for name, most in MOST_OF_SEQUENCE.items():
            whole_between(name, getattr(self, name), 1, most)
        if not math.isfinite(self.seconds) or not 0 < self.seconds <= MAX_SECONDS:
            raise ValueError(f"seconds is {self.seconds}; it must be above 0 and at most {MAX_SECONDS:g}")
        if self.frames < 1 or self.audio_tokens < 1:
            least = max(0.5 / self.fps, 0.5 / self.sample_rate)
            raise ValueError(
                f"seconds is {self.seconds}, shorter than half a frame; at {self.fps} fps it must be above {least:g}"
            )
        step = self.space_factor * self.patch
        for name, side in (("width", self.width), ("height", self.height)):
            if (side % step and not self.any_size) or not step <= side <= MAX_SIDE:
                multiple = "" if self.any_size else f"a multiple of {step} "
                raise ValueError(f"{name} is {side}; it must be {multiple}from {step} to {MAX_SIDE}")

    @property
    def frames(self) -> int:
        """F, video frames."""
        return round(self.seconds * self.fps)

    @property
    def latent_frames(self) -> int:
        """T, latent frames."""
        chunks, rest = divmod(self.frames, self.chunk_frames) if self.chunk_frames else (0, self.frames)
        return chunks * -(-self.chunk_frames // self.time_factor) - (-rest // self.time_factor)

    @property
    def latent_ends(self) -> tuple[int, ...]:
        """For each latent frame, the number of frames of the clip up to its end (T of them)."""
        chunk = self.chunk_frames or self.frames
        ends: list[int] = []
        for start in range(0, self.frames, chunk):
            end = min(start + chunk, self.frames)
            ends += range(end, start, -self.time_factor)[::-1]
        return tuple(ends)

    @property
    def padding(self) -> int:
        """Frames that the video codec pads in front of the last chunk, so that its time stride divides their number."""
        return -(self.frames % self.chunk_frames if self.chunk_frames else self.frames) % self.time_factor

    @property
    def frame_times(self) -> tuple[float, ...]:
        """The middle of each latent frame, in seconds from the start of the clip (T of them)."""
        return tuple((end - self.time_factor / 2) / self.fps for end in self.latent_ends)

    @property
    def latent_height(self) -> int:
        """H."""
        return self.height // self.space_factor

    @property
    def latent_width(self) -> int:
        """W."""
        return self.width // self.space_factor

    @property
    def spatial_tokens(self) -> int:
        """S, tokens of one latent frame; a patch at the right or lower edge may reach beyond it."""
        return -(-self.latent_height // self.patch) * -(-self.latent_width // self.patch)

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height of the frames that the latents decode to, in pixels."""
        return self.latent_width * self.space_factor, self.latent_height * self.space_factor

    @property
    def whole_patches(self) -> bool:
        """Whether the tokens cover the clip's size exactly."""
        step = self.space_factor * self.patch
        return not (self.width % step or self.height % step)

    @property
    def samples(self) -> int:
        """M, audio samples."""
        return round(self.frames / self.fps * self.sample_rate)

    @property
    def audio_tokens(self) -> int:
        """A, audio latent frames."""
        return -(-self.samples // (self.audio_hop * self.audio_multiple)) * self.audio_multiple

    @property
    def latent_fps(self) -> float:
        """Latent frames a second."""
        return self.fps / self.time_factor

    @property
    def audio_rate(self) -> float:
        """Audio latent frames a second."""
        return self.sample_rate / self.audio_hop


@dataclass(frozen=True)
class DDiTConfig(Config):
    """Shape of the dual diffusion transformer (SyncFlow section 3.2). Symbols as in ``docs/method.md``.

    ``adaptor_tokens``: what the modality adaptor attends over: ``all`` T*S video tokens, ``frame`` means, or ``none``
    (the ablation: video features are read as they are). ``sigma_head`` doubles the output channels of the video tower
    as Open-Sora's checkpoints do; the second half is not used.

    ``bridge``: what crosses between the towers (``docs/method.md`` section 3): ``adaptor``, the audio reads the video
    (SyncFlow); ``audio_rope``, the video reads the audio, from layer ``first_block`` on (Syncphony); ``global_local``,
    each reads the other (Harmony). These two see ``window`` latent frames to either side. ``bidirectional``: each reads
    the other and both a prior of the prompt (JavisDiT). ``none``: the video tower alone, a model without sound
    (Open-Sora).

    A ``bidirectional`` model alone: its audio latents are ``audio_bins`` mel bins of ``audio_channels / audio_bins``
    channels, of which ``audio_patch`` frames are a token at each bin; its prior has ``prior_tokens`` spatial tokens and
    as many temporal ones of ``prior_width`` numbers.
    """

    width: int = 1152
    depth: int = 28
    heads: int = 16
    audio_heads: int = 16
    mlp_ratio: float = 4.0
    patch: int = 2
    video_channels: int = 4
    audio_channels: int = 128
    text_width: int = 4096
    text_tokens: int = 300
    sigma_head: bool = True
    base_size: int = 512
    latent_fps: float = 4.0
    audio_rate: float = 50.0
    rope_theta: float = 1e4
    adaptor_tokens: AdaptorTokens = "all"
    audio_text: bool = False
    bridge: Bridge = "adaptor"
    first_block: int = 0
    window: float = 1.0
    audio_bins: int = 1
    audio_patch: int = 1
    prior_tokens: int = 0
    prior_width: int = 128

    def __post_init__(self) -> None:
        for name, most in MOST_OF_DDIT.items():
            whole_between(name, getattr(self, name), 1, most)
        for name, high in (("mlp_ratio", 64), ("latent_fps", MAX_FPS), ("audio_rate", 1e5), ("rope_theta", 1e9)):
            number_between(name, getattr(self, name), 0, high, above=True)
        if self.width * self.mlp_ratio < 1:
            raise ValueError(f"mlp_ratio is {self.mlp_ratio}; it must be at least {1 / self.width:g} at this width")
        for name, heads in (("heads", self.heads), ("audio_heads", self.audio_heads)):
            if self.width % heads or (self.width // heads) % 2:
                raise ValueError(f"width {self.width} must split into {name} ({heads}) parts of even width")
        if self.width % 4:
            raise ValueError(f"width is {self.width}; it must be a multiple of 4, for sines and cosines of two axes")
        for name, allowed in (("adaptor_tokens", get_args(AdaptorTokens)), ("bridge", get_args(Bridge))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        if self.first_block and self.bridge != "audio_rope":
            raise ValueError(f"first_block is {self.first_block}; it must be 0 with the bridge {self.bridge}")
        if self.first_block and not 0 < self.first_block < self.depth:
            raise ValueError(f"first_block is {self.first_block}; it must be from 0 to {self.depth - 1}")
        if not math.isfinite(self.window) or self.window <= 0:
            raise ValueError(f"window is {self.window}; it must be a number of latent frames above 0")
        whole_between("prior_tokens", self.prior_tokens, int(self.bridge == "bidirectional"), 65_536)
        if self.bridge == "bidirectional":
            self._check_bidirectional()
        elif (self.audio_bins, self.audio_patch, self.prior_tokens) != (1, 1, 0):
            raise ValueError(
                f"audio_bins, audio_patch and prior_tokens must be 1, 1 and 0 with the bridge {self.bridge}"
            )

    def _check_bidirectional(self) -> None:
        if self.heads % 2:
            raise ValueError(
                f"heads is {self.heads}; it must be even with the bridge bidirectional, which has half of them"
            )
        if self.audio_channels % self.audio_bins:
            raise ValueError(
                f"audio_channels is {self.audio_channels}; it must be a multiple of audio_bins, {self.audio_bins}"
            )
        if self.audio_text:
            raise ValueError(
                "audio_text is true; it must be false with the bridge bidirectional, whose audio always reads the text"
            )

    @property
    def head_width(self) -> int:
        """d of the video tower."""
        return self.width // self.heads

    @property
    def audio_head_width(self) -> int:
        """d of the audio tower."""
        return self.width // self.audio_heads

    @property
    def audio_reads_video(self) -> bool:
        """Whether the audio tower's velocity depends on the video."""
        return self.bridge in ("adaptor", "global_local", "bidirectional")

    @property
    def video_reads_audio(self) -> bool:
        """Whether the video tower's velocity depends on the audio."""
        return self.bridge in ("audio_rope", "global_local", "bidirectional")

    @property
    def is_joint(self) -> bool:
        """Whether each tower reads the other, so that they run layer by layer."""
        return self.audio_reads_video and self.video_reads_audio

    @property
    def is_stdit(self) -> bool:
        """Whether all is STDiT3's: times reach the towers in double precision, sizes may be any."""
        return self.bridge in ("bidirectional", "none")

    @property
    def has_audio(self) -> bool:
        """Whether there is an audio tower."""
        return self.bridge != "none"


@dataclass(frozen=True)
class SamplingConfig(Config):
    """How a model is sampled unless a request says otherwise.

    ``shift`` bends the time grid towards noise (1 = off); ``video_lead`` in [0, 1] lets the video's time run ahead of
    the audio's (0 = shared time, 1 = the video is finished first). ``sync_guidance`` 0, ``sync_cfg_audio`` 1 and
    ``sync_cfg_video`` 1 are off; ``v2a_sync_guidance`` is the sync guidance of video-to-audio. ``size_shift``
    multiplies ``shift`` by :func:`shift_of_size` of the clip.
    """

    steps: int = 50
    guidance: float = 6.0
    shift: float = 1.0
    video_lead: float = 0.0
    sync_guidance: float = 0.0
    sync_cfg_audio: float = 1.0
    sync_cfg_video: float = 1.0
    v2a_sync_guidance: float = 0.0
    size_shift: bool = False

    def __post_init__(self) -> None:
        checks = CHECKS | {"v2a_sync_guidance": CHECKS["sync_guidance"]}
        for f in dataclasses.fields(self):
            checks.get(f.name, truth)(f.name, getattr(self, f.name))

    def sync_guidance_of(self, task: str) -> float:
        """The sync guidance of a request that asks for none."""
        return self.v2a_sync_guidance if task == "video-to-audio" else self.sync_guidance

    def shift_for(self, sequence: SequenceConfig) -> float:
        """The shift of the time grid of a clip for which none is asked."""
        return self.shift * shift_of_size(sequence) if self.size_shift else self.shift


def shift_of_size(sequence: SequenceConfig) -> float:
    """Open-Sora 1.2's shift of a clip: sqrt(height * width) / 512 * sqrt(T'), T' the latent frames of its whole chunks.

    A clip shorter than a chunk counts all its latent frames, where Open-Sora's formula gives 0. Rounded as there, to
    single precision after each square root.
    """
    whole = sequence.frames // (sequence.chunk_frames or 17) * 5
    frames = 1 if sequence.frames == 1 else whole or sequence.latent_frames
    space, time = (np.sqrt(np.float32(value)) for value in (sequence.height * sequence.width / 512**2, frames))
    return float(space * time)


@dataclass(frozen=True)
class CodecConfig(Config):
    """A codec or text encoder as its library describes it: class name and the arguments of its configuration."""

    class_name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelConfig(Config):
    """Everything needed to build a model from nothing."""

    name: str = "unnamed"
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    ddit: DDiTConfig = field(default_factory=DDiTConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    video_vae: CodecConfig = field(default_factory=CodecConfig)
    audio_vae: CodecConfig = field(default_factory=CodecConfig)
    text_encoder: CodecConfig = field(default_factory=CodecConfig)

    def __post_init__(self) -> None:
        text("name", self.name)
        if self.sequence.any_size and not self.ddit.is_stdit:
            raise ValueError(f"any_size is true; it must be false with the bridge {self.ddit.bridge}")
        if self.sequence.audio_multiple % self.ddit.audio_patch:
            least = self.ddit.audio_patch
            raise ValueError(
                f"audio_multiple is {self.sequence.audio_multiple}; it must be a multiple of audio_patch, {least}"
            )
